"""What a step costs outside the model: operations dispatched, and waits of the host for the device

The bare step is the model's forward and backward pass, the objective (loss and running score), the optimiser and the clearing of gradients:
they are what training is. What anything else adds is the difference to it, step by step, at its largest."""
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from simulated_device import on_device, reads, simulated
from tiny_heads import TinyHeads
from tiny_spectral import masked_learner
from tiny_tasks import task_learner
from vitnb.callback.base import TrainCallback
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import run_callbacks, train_callbacks
from vitnb.task import ClassMap, MultiLabel, OneClass, Ordinal, Tasks, Value
from vitnb.testing import tiny_learner

CEILINGS = dict(files=8, ema=4, mix=25, crop_flip=45) # of operations a step


class Count(TorchDispatchMode):
    "Operations, but for those of `quiet` functions"
    def __init__(self):
        super().__init__()
        self.seen,self.on = Counter(),True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[str(func)] += self.on
        return func(*args, **(kwargs or {}))

    def quiet(self, f):
        "`f`, uncounted"
        def g(*args, **kw):
            was,self.on = self.on,False
            try: return f(*args, **kw)
            finally: self.on = was
        return g


class Mark(TrainCallback):
    "Note what a step has cost, when all others are done with it"
    order = 1000
    def __init__(self, seen): self.seen,self.steps = seen,[]
    def before_train(self): self.seen.clear()
    def after_batch(self):
        if not self.learn.training: return
        self.steps.append(Counter({k:n for k,n in self.seen.items() if n}))
        self.seen.clear()


def costs(engine=None, cbs=(), model_quiet=True):
    "Operations of each step"
    learn = tiny_learner(engine=engine, augment="none")
    count = Count()
    if model_quiet:
        learn.model.forward = count.quiet(learn.model.forward)
        learn.parallel.backward = count.quiet(learn.parallel.backward)
    mark = Mark(count.seen)
    with count, learn.no_bar(), learn.no_logging(): learn.fit(2, cbs=[*cbs, mark])
    return mark.steps


@pytest.fixture(scope="module")
def bare(): return costs()


def added(steps, bare):
    "The most operations that a step has more than the bare one; the first ones of an epoch build and load ahead, the last may read the device"
    more = [sum((a-b).values()) for a,b in zip(steps, bare)]
    return max(more[2:5] + more[8:11])


def test_a_bare_step_is_itself(bare):
    assert len(bare) == 12 and added(bare, bare) == 0
    assert len({sum(o.values()) for o in bare[2:5]}) == 1, "steps are alike"


def test_records_and_callbacks_of_a_run(bare, tmp_path):
    steps = costs(cbs=run_callbacks(tmp_path, tracker="none"))
    assert added(steps, bare) <= CEILINGS["files"]


def test_the_average_of_the_weights(bare): assert added(costs(dict(ema_decay=.9)), bare) <= CEILINGS["ema"]
def test_mixup_and_cutmix(bare): assert added(costs(dict(mixup=.8, cutmix=1.)), bare) <= CEILINGS["mix"]


def test_crop_and_flip_on_the_device():
    "All that the loader does with a batch once it is where the model computes, against the same without augmentation"
    def of(augment):
        dls = image_loaders(load_set("digits", limit=16), bs=32, augment=augment, device="cpu", workers=0, on_device=True)
        with Count() as count: next(iter(dls.train))
        return sum(count.seen.values())
    assert 0 < of("crop_flip") - of("none") <= CEILINGS["crop_flip"]


def test_the_budget_sees_what_is_added(bare):
    "A callback of ten operations a step is above the ceiling of the files"
    class Wasteful(TrainCallback):
        def after_batch(self):
            for _ in range(10): self.learn.loss + 1
    assert added(costs(cbs=[Wasteful()]), bare) == 10


# waits of the host

def waits(learn, *cbs, epochs=2):
    "What the host waited for in each training step, and in each validation batch"
    valid = []
    class Valid(TrainCallback):
        order = 1000
        def before_validate(self): reads.clear()
        def after_batch(self):
            if self.learn.training: return
            valid.append(dict(reads))
            reads.clear()
    with simulated():
        on_device(learn)
        mark = Mark(reads)
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs, cbs=[*cbs, mark, Valid()])
    assert mark.steps and valid
    return mark.steps,valid


def assert_no_wait(learn, *cbs):
    train,valid = waits(learn, *cbs)
    assert not any(train), f"the host waits in training: {[dict(o) for o in train if o][0]}"
    assert not any(valid), f"the host waits in validation: {[o for o in valid if o][0]}"


ENGINES = [dict(ema_decay=.9), dict(mixup=.8, cutmix=1.), dict(mixup=.8, cutmix=1., mix_mode="elem"), dict(accumulate=2)]
OPTIONS = [dict(class_weights=True), dict(clip=1.), dict(precision="bf16"), dict(label_smoothing=.1), dict(augment="crop_flip")]

@pytest.mark.parametrize("kw", [dict(), *(dict(engine=o) for o in ENGINES), *OPTIONS, dict(engine=ENGINES[1], class_weights=True, clip=1.)], ids=str)
def test_no_step_and_no_batch_makes_the_host_wait(kw): assert_no_wait(tiny_learner(**kw))


def test_the_callbacks_of_a_run_do_not_make_it_wait(tmp_path): assert_no_wait(tiny_learner(), *run_callbacks(tmp_path, tracker="none"))
@pytest.mark.parametrize("normalize", ["log", "zscore"])
@pytest.mark.parametrize("metrics", [(), None], ids=["loss", "metrics"])
def test_masked_training_does_not_make_it_wait(metrics, normalize): assert_no_wait(masked_learner(metrics=metrics, normalize=normalize))


def rows(n=16): return torch.randn(n, 3, 8, 8)

TASKS = dict(
    unknown=(OneClass(["a", "b", "c"], unknown=-1), torch.tensor([0, 1, 2, -1]*4), 3, ()),
    labels=(MultiLabel(["a", "b"]), torch.randint(0, 2, (16, 2)), 2, ()),
    zones=(Ordinal(levels=3, names=["left", "right"], unknown=3), torch.randint(0, 4, (16, 2)), (2, 3), ()),
    map=(ClassMap(["a", "b", "c"], unknown=-1), torch.randint(-1, 3, (16, 8, 8)), 3, ("",)),
    value=(Value(), torch.randn(16), 1, ()))


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("k", TASKS)
def test_no_task_makes_it_wait(k, mixed):
    task,target,n,dense = TASKS[k]
    assert_no_wait(task_learner(rows(), target, task, TinyHeads(num_classes=n, dense=dense), *train_callbacks(**dict(mixup=.8, cutmix=1.) if mixed else {})))


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
def test_several_tasks_do_not_make_it_wait(mixed):
    tasks = Tasks({k:o[0] for k,o in TASKS.items()})
    model = TinyHeads(num_classes={k:o[2] for k,o in TASKS.items()}, dense=("map",))
    engine = dict(mixup=.8, cutmix=1.) if mixed else {}
    assert_no_wait(task_learner(rows(), {k:o[1] for k,o in TASKS.items()}, tasks, model, *train_callbacks(**engine)))


def test_the_recorder_reads_once_in_so_many_steps():
    learn = tiny_learner()
    learn.recorder.every_n_steps = 4
    train,_ = waits(learn)
    assert [bool(o) for o in train] == [i % 6 == 3 for i in range(12)] # six steps an epoch: what is left is read at its end


def test_a_callback_that_reads_the_loss_is_seen():
    class Reads(TrainCallback):
        def after_batch(self): float(self.learn.loss)
    with pytest.raises(AssertionError, match="waits in training"): assert_no_wait(tiny_learner(), Reads())
