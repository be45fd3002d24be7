"Accumulation: k small batches make the step of one large one"
import pickle
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelFitException, CancelTrainException
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn

from tiny_tasks import From, TwoHeads, classes, fit, loaders, task_learner, weights
from vitnb.callback.accumulate import Accumulate
from vitnb.callback.ema import EMACallback
from vitnb.callback.mix import MixCallback
from vitnb.losses.base import add_terms, weigh
from vitnb.losses.objective import Objective
from vitnb.task import ClassMap, MultiLabel, Ordinal, Value


class Spy(Callback):
    "What happened at the end of each step: its loss, and how many samples it was divided by"
    order = 70
    def before_fit(self): self.steps,self.losses,self.seen = 0,[],[]
    def after_step(self):
        self.steps += 1
        self.grads = [p.grad.clone() for p in self.model.parameters()]
    def after_batch(self):
        if not self.training or self.learn.report is None: return
        self.losses.append(self.loss.item())
        self.seen.append(int(self.learn.report.terms["loss"][1]))
    def state_dict(self): return {}
    def load_state_dict(self, s): pass


def wrapped(model, lr, opt, **kw): return OptimWrapper(list(model.parameters()), opt=getattr(torch.optim, opt), lr=lr, **kw)
def optimizer(opt, **kw): return partial(wrapped, opt=opt, **kw)


def tiny(*cbs, n=75, bs=8, opt="AdamW", lr=1e-2, model=None, opt_kw=None, loader=From, **kw):
    torch.manual_seed(0)
    x = torch.randn(100,6)[:n]
    y = (x.sum(1) > 0).long()
    model = model() if model else nn.Sequential(nn.Linear(6,16), nn.GELU(), nn.Linear(16,2))
    return task_learner(x, y, classes(2), model, *cbs, Spy(), bs=bs, lr=lr, opt_func=optimizer(opt, **(opt_kw or {})), metrics=accuracy, loader=loader, **kw)


def half(learn, precision):
    "The same Learner in half precision"
    learn.run_in(dict(fp16=torch.float16, bf16=torch.bfloat16)[precision])
    return learn


@pytest.mark.parametrize("opt,kw", [("SGD", dict(momentum=.9)), ("AdamW", {}), ("Adam", {})])
@pytest.mark.parametrize("n", [64, 75, 67, 33, 5])
@pytest.mark.parametrize("clip", [None, .2])
def test_equals_the_large_batch(opt, kw, n, clip):
    "n: whole groups; a last group of 8+3; of 3 alone; of one sample; less than one batch"
    cbs = lambda: [GradientClip(clip)] if clip else []
    large = fit(tiny(*cbs(), n=n, bs=32, opt=opt, opt_kw=kw), 3)
    small = fit(tiny(Accumulate(4), *cbs(), n=n, bs=8, opt=opt, opt_kw=kw), 3)
    assert (weights(large)-weights(small)).abs().max() < 1e-6
    assert np.allclose(large.spy.losses, small.spy.losses, atol=1e-6) and large.spy.steps == small.spy.steps
    assert large.spy.seen == small.spy.seen


@pytest.mark.parametrize("k", [1,2,3,8,100])
def test_any_k(k):
    large = fit(tiny(n=50, bs=min(4*k, 50)), 3)
    small = fit(tiny(Accumulate(k), n=50, bs=4), 3)
    assert (weights(large)-weights(small)).abs().max() < 1e-6


# ---- what a mean over samples is not: weights of classes, unknown entries, maps, several tasks

class MapNet(nn.Module):
    "A class for each patch of 2x2 pixels, and a value for the image"
    def __init__(self, classes):
        super().__init__()
        self.conv,self.head = nn.Conv2d(1, classes, 2, stride=2),nn.Linear(16, 1)
    def forward(self, x): return self.conv(x)


class Several(MapNet):
    def forward(self, x):
        flat = x.flatten(1)
        return dict(what=self.conv(x).mean((2,3)), where=self.conv(x), how_much=self.head(flat))


def sample_targets(kind, n, g):
    "Targets of `n` images of 4x4 pixels, many of them unknown"
    draw = lambda high, *shape: torch.randint(0, high, (n, *shape), generator=g)
    holes = lambda y: torch.where(torch.rand(y.shape, generator=g) < .4, -1, y)
    if kind == "weighted": return draw(3)
    if kind == "unknown": return holes(draw(3))
    if kind == "zones": return holes(draw(3, 2))
    if kind == "map": return holes(draw(3, 4, 4))
    if kind == "labels": return holes(draw(2, 3))
    y = torch.rand(n, generator=g)
    values = torch.where(y < .4, torch.nan, y)
    return dict(what=holes(draw(3)), where=holes(draw(3, 4, 4)), how_much=values)


class ZoneNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(16, 6)
    def forward(self, x): return self.l(x.flatten(1)).view(-1, 2, 3)


def flat(n): return nn.Sequential(nn.Flatten(), nn.Linear(16, n))

WEIGHT = [.2,1.,5.]
KINDS = dict( # tasks, model, arguments of the objective
    weighted = (lambda: classes(3), lambda: flat(3), dict(loss_kw=dict(weight=WEIGHT), label_smoothing=.1)),
    unknown  = (lambda: classes(3, unknown=-1), lambda: flat(3), dict(loss_kw=dict(weight=WEIGHT))),
    zones    = (lambda: Ordinal("lr", levels=3, unknown=-1), ZoneNet, {}),
    map      = (lambda: ClassMap("abc", unknown=-1), lambda: MapNet(3), dict(loss_kw=dict(weight=WEIGHT))),
    labels   = (lambda: MultiLabel("abc", unknown=-1), lambda: flat(3), dict(loss_kw=dict(pos_weight=WEIGHT))),
    several  = (lambda: dict(what=classes(3, unknown=-1), where=ClassMap("abc", unknown=-1), how_much=Value(unknown=0)), lambda: Several(3),
                dict(loss_kw=dict(what=dict(weight=WEIGHT)), task_weights=dict(where=.3))))


def of_kind(kind, n, bs, seed, *cbs):
    tasks,model,kw = KINDS[kind]
    g = torch.Generator().manual_seed(seed)
    x,y = torch.randn(n,1,4,4, generator=g),sample_targets(kind, n, g)
    torch.manual_seed(seed)
    return task_learner(x, y, tasks(), model(), *cbs, bs=bs, lr=.02, opt_func=optimizer("SGD", momentum=.9), **kw)


def alike(a, b): return a is b if a is None or b is None else a == pytest.approx(b, rel=1e-5, abs=2e-6) # None: nothing was known


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(n=st.integers(1, 40), bs=st.integers(1, 8), k=st.integers(2, 5), seed=st.integers(0, 10**6))
def test_parts_of_a_batch_are_the_whole_batch(kind, n, bs, k, seed):
    "The update, the losses of steps and the row of the epoch, whatever the loss divides by"
    large,small = fit(of_kind(kind, n, bs*k, seed), 2),fit(of_kind(kind, n, bs, seed, Accumulate(k)), 2)
    assert torch.allclose(weights(large), weights(small), atol=2e-6)
    assert large.opt_steps == small.opt_steps
    losses = lambda learn: [o["loss"] or 0. for o in learn.recorder.steps] # none where nothing was known
    assert losses(small) == pytest.approx(losses(large), rel=1e-5, abs=2e-6)
    for a,b in zip(small.recorder.rows, large.recorder.rows):
        for column in (c for c in b if "train_" in c): assert alike(a[column], b[column]), column


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_of_the_parts_would_be_another_update(kind):
    "The test above sees something: dividing each batch by its own count moves the weights elsewhere"
    large,small = of_kind(kind, 32, 16, 5),of_kind(kind, 32, 8, 5, Accumulate(2))
    small.whole_counts = lambda batches: None
    def halve(learn):
        measure = type(learn).measure
        def f(whole):
            measure(learn, whole)
            learn.loss_grad = learn.loss_grad/2
        return f
    small.measure = halve(small)
    assert not torch.allclose(weights(fit(large)), weights(fit(small)), atol=1e-4)


def test_a_loss_that_cannot_be_divided_refuses():
    class Pairs(Objective):
        whole_batch = True
        def terms(self, pred, batch): return dict(loss=(pred.std(), 1))
        def counts(self, batch): return dict(loss=1)
    learn = tiny(Accumulate(2), loss=Pairs())
    with pytest.raises(ValueError, match="depends on the whole batch.*Pairs.*gradient checkpointing"): fit(learn)
    with pytest.raises(ValueError, match="class weights.*make_loss"): fit(tiny(Accumulate(2), loss=nn.CrossEntropyLoss(weight=torch.ones(2))))
    fit(tiny(Accumulate(1), loss=nn.CrossEntropyLoss(weight=torch.ones(2))))


# ---- half precision

@pytest.mark.parametrize("mode", ["fp16", "bf16"])
def test_mixed_precision(mode):
    "Half-precision layers round each small gradient to their format; what remains beside that is nothing"
    kw = dict(opt="SGD", lr=1e-3, opt_kw=dict(momentum=.9))
    large = fit(half(tiny(GradientClip(.5), bs=32, **kw), mode), 3)
    small = fit(half(tiny(GradientClip(.5), Accumulate(4), **kw), mode), 3)
    moved = (weights(small)-weights(tiny(**kw))).abs().max()
    unit = torch.finfo(dict(fp16=torch.float16, bf16=torch.bfloat16)[mode]).eps
    assert moved > 1e-3 and (weights(large)-weights(small)).abs().max() < unit*moved
    assert np.allclose(large.spy.losses, small.spy.losses, atol=1e-3)


def test_gradient_scaler():
    "The scaler's part alone, without the rounding of half-precision layers: equal to 1e-6, with clipping of the unscaled gradients"
    def scaled(*cbs, **kw):
        learn = half(tiny(*cbs, **kw), "fp16")
        learn.dtype = torch.float32
        return learn
    large = fit(scaled(GradientClip(.2), bs=32), 3)
    small = fit(scaled(GradientClip(.2), Accumulate(4)), 3)
    plain = fit(tiny(GradientClip(.2), bs=32), 3)
    assert small.scaler is not None
    for o in (large, plain): assert (weights(o)-weights(small)).abs().max() < 1e-6


class Kept(Callback):
    order = 80
    def before_fit(self): self.kept = [weights(self.learn)]
    def after_step(self): self.kept.append(weights(self.learn))


def test_overflow_skips_the_whole_group():
    class Boom(Callback):
        order = 9
        def after_backward(self):
            if self.train_iter == 2: self.model[0].weight.grad[0,0] = float("inf")
    learn = fit(half(tiny(Accumulate(4), Boom(), EMACallback(.9), Kept(), n=64, opt="SGD"), "fp16"))
    assert learn.ema.n_updates == 1 and learn.opt_steps == 1 # two groups, one skipped
    assert torch.equal(learn.kept.kept[0], learn.kept.kept[1]) # no weight moved in the skipped group


# ---- what others see

def test_the_recorder_sees_large_batches():
    large,small = fit(tiny(bs=32), 3),fit(tiny(Accumulate(4), bs=8), 3)
    assert len(small.recorder.losses) == len(large.recorder.losses) == 9
    assert np.allclose(torch.stack([*small.recorder.losses]), torch.stack([*large.recorder.losses]), atol=1e-6)
    assert np.allclose(np.array(small.recorder.values, dtype=float), np.array(large.recorder.values, dtype=float), atol=1e-6)
    for a,b in zip(small.recorder.rows, large.recorder.rows): assert a["train_accuracy"] == pytest.approx(b["train_accuracy"]) # scores over training samples too
    assert [o["loss"] for o in small.recorder.steps] == pytest.approx([o["loss"] for o in large.recorder.steps], abs=1e-6)
    assert small.opt_steps == large.opt_steps == 9


def test_no_trailing_gradients():
    class Left(Callback):
        order = 90
        def before_fit(self): self.rest = []
        def after_train(self): self.rest += [p.grad for p in self.model.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    learn = fit(tiny(Accumulate(4), Left(), n=75), 3)
    assert learn.left.rest == [] and learn.group_size == 1
    twin = tiny()
    fastais = Learner(twin.dls, twin.model, nn.CrossEntropyLoss(), opt_func=partial(OptimWrapper, opt=torch.optim.SGD), lr=.01, cbs=[GradientAccumulation(32), Left()])
    assert fit(fastais, 3).left.rest # the defect this answers


class Stop(Callback):
    order = 40
    def __init__(self, ex, event="after_backward", at=5): self.ex,self.event,self.at = ex,event,at
    def __call__(self, name):
        if name == self.event and self.training and self.train_iter == self.at: raise self.ex
        return super().__call__(name)


@pytest.mark.parametrize("ex", [KeyboardInterrupt, RuntimeError, CancelFitException, CancelTrainException])
@pytest.mark.parametrize("event,at", [("after_backward", 5), ("after_pred", 6), ("before_step", 7), ("before_batch", 4)])
def test_interrupted_group_leaves_nothing(ex, event, at):
    learn = tiny(Accumulate(4), EMACallback(.5), Stop(ex("stop"), event, at))
    if ex in (CancelFitException, CancelTrainException): fit(learn)
    else:
        with pytest.raises(ex): fit(learn)
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters()) and learn.group_size == 1
    learn.remove_cb(learn.stop)
    twin = tiny(Accumulate(4))
    twin.model.load_state_dict(learn.model.state_dict())
    twin.epochs_done = learn.epochs_done
    for l in (learn, twin): l.opt = None
    assert torch.equal(weights(fit(learn)), weights(fit(twin))) # the rest of the broken group had no part in it


def test_cancelled_batch_of_another_callback():
    "A batch that another callback skips before its gradients exist counts as absent"
    class Skip(Callback):
        order = 1
        def before_batch(self):
            if self.training and self.iter == 1: raise CancelBatchException()
    learn = fit(tiny(Accumulate(2), Skip(), n=40)) # batches 0 2 | 3 4
    assert learn.spy.steps == 2 and learn.spy.seen[-1] == 16
    one = fit(tiny(Accumulate(1), Skip(), n=40)) # right after a step, too
    assert one.spy.steps == 4


class Cancel(Callback):
    "Cancel some batches of each epoch at an event, each time it comes to them"
    order = 40
    def __init__(self, event, *batches): self.event,self.batches = event,batches
    def __call__(self, name):
        if name == self.event and self.training and self.iter in self.batches: raise CancelBatchException()
        return super().__call__(name)
    def state_dict(self): return {}
    def load_state_dict(self, s): pass


class Norm(nn.Module):
    "Several heads behind a batch normalisation"
    def __init__(self):
        super().__init__()
        self.norm,self.heads = nn.BatchNorm2d(1),Several(3)
    def forward(self, x): return self.heads(self.norm(x))


INSIDE = ["after_pred", "after_loss", "before_backward", "after_backward"]


def cancelling(event, batches, k=3, n=40, cbs=()):
    "Ten batches of four, several tasks with weights and unknown entries, whose terms are divided by different numbers"
    g = torch.Generator().manual_seed(5)
    x,y = torch.randn(n,1,4,4, generator=g),sample_targets("several", n, g)
    tasks,_,kw = KINDS["several"]
    torch.manual_seed(5)
    return task_learner(x, y, tasks(), Norm(), Accumulate(k), EMACallback(.9), Cancel(event, *batches), Each(), *cbs, bs=4, lr=.02, opt_func=optimizer("SGD", momentum=.9), **kw)


class Each(Callback):
    "What happened to each batch, and each step"
    order = 75
    def before_fit(self): self.batches,self.steps = [],[]
    def after_batch(self):
        if self.training: self.batches.append((self.iter, self.train_iter))
    def after_step(self): self.steps.append(self.iter)
    def state_dict(self): return {}
    def load_state_dict(self, s): pass


def by_hand(learn, batches, k):
    "An epoch in which each group of `k` leaves its cancelled batches out: one batch of all rows that are left, divided once"
    opt,losses = learn.opt_func(learn.model, lr=.02),[]
    all_batches = list(learn.dls.train)
    for first in range(0, len(all_batches), k):
        terms = {}
        for i in range(first, min(first+k, len(all_batches))):
            x,y = all_batches[i]
            pred = learn.model(x) # a cancelled batch has run, too
            if i not in batches: terms = add_terms(terms, learn.objective.terms(pred, dict(target=y)))
        if not terms: continue
        loss = weigh(terms, learn.objective.weights)
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("event", INSIDE)
@pytest.mark.parametrize("batches", [(0,), (1,), (2,), (3,), (5,), (8,), (9,), (0, 1), (1, 2), (0, 2, 9), (0, 1, 2), (9, 8, 7)])
def test_a_cancelled_batch_has_no_part_in_its_step(event, batches):
    "Any position of a group, the last group of an epoch too: the step is made of the rest, divided by what the rest counts"
    learn,twin = fit(cancelling(event, batches)),cancelling(event, batches)
    losses = by_hand(twin, batches, 3)
    assert learn.opt_steps == len(losses) == learn.ema.n_updates
    assert [o["loss"] for o in learn.recorder.steps] == pytest.approx(losses, rel=1e-5)
    assert torch.allclose(weights(learn), weights(twin), atol=1e-6)
    for a,b in zip(learn.model.buffers(), twin.model.buffers()): assert torch.allclose(a.double(), b.double(), atol=1e-6) # each batch was seen once
    assert learn.each.batches == [(i, i+1) for i in range(10)], "every batch ends once, in its place"
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())


@pytest.mark.parametrize("batches", [(1,), (2,), (0, 2), (9,)])
def test_a_step_that_lost_a_batch_is_that_of_a_group_without_it(batches):
    "To the bit: the batches that are left draw and count as if there had never been another"
    class Drop(nn.Module):
        def __init__(self):
            super().__init__()
            self.l,self.drop = nn.Linear(6, 2),nn.Dropout(.5)
        def forward(self, x): return self.l(self.drop(x))
    class Announce(Callback):
        "Groups end where those of the other run end, though this one has fewer batches"
        order = 45
        def before_batch(self):
            if self.training: self.learn.group_size = 3 - sum(i//3 == self.iter//3 for i in batches)
    inside = fit(tiny(Accumulate(3), Cancel("after_loss", *batches), n=80, model=Drop))
    absent = fit(tiny(Accumulate(3), Cancel("before_batch", *batches), Announce(), n=80, model=Drop))
    assert torch.equal(weights(inside), weights(absent)) and inside.opt_steps == absent.opt_steps == 4 - (9 in batches) # the last group has that batch alone
    assert [o["loss"] for o in inside.recorder.steps] == [o["loss"] for o in absent.recorder.steps]


def test_a_cancelled_step_stays_cancelled():
    "Who cancels at `before_step` wants no step: nothing of the group is left"
    learn = fit(tiny(Accumulate(3), Cancel("before_step", 2), n=80))
    assert learn.opt_steps == 3 and all(p.grad is None or not p.grad.any() for p in learn.model.parameters())


def test_who_cancels_by_the_loss_may_cancel_another_when_it_is_counted_anew():
    "The share of a batch grows when another is left out; in the end nothing is in the step that was cancelled"
    class Huge(Callback):
        order = 40
        def after_loss(self):
            if self.training and self.learn.loss > .5: raise CancelBatchException()
    learn = fit(tiny(Accumulate(2), Cancel("after_loss", 1), Huge(), n=16, opt="SGD"))
    assert learn.opt_steps == 0 and torch.equal(weights(learn), weights(tiny())) # of two, one; then the other alone is too much


def test_a_batch_without_targets_is_no_part_of_a_step():
    "Wherever it stands, and where it is the last"
    class Blind(Callback):
        order = 1
        def before_batch(self):
            if self.training and self.iter in (1, 4): self.learn.batch = self.learn.batch.replace(target=None)
    learn = fit(tiny(Accumulate(3), Blind(), n=40)) # batches 0 1 2 | 3 4
    assert learn.spy.steps == 2 and learn.spy.seen == [16, 8]


def cut_at(step, path):
    "A state of a step, and the end of the run there"
    class Cut(Callback):
        order = 100
        def after_batch(self):
            if not self.training or self.learn.report is None or self.opt_steps != step: return
            torch.save(self.learn.training_state(), path)
            raise KeyboardInterrupt
    return Cut()


@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_backward"])
@pytest.mark.parametrize("batches", [(2,), (5,), (8,), (9,), (8, 9)])
def test_resume_around_cancelled_batches_is_exact(event, batches, tmp_path):
    "Weights, buffers, average, history and counters, from every step of two epochs"
    whole = fit(cancelling(event, batches), 2)
    for step in range(1, whole.opt_steps+1):
        with pytest.raises(KeyboardInterrupt): fit(cancelling(event, batches, cbs=[cut_at(step, tmp_path/"ck.pth")]), 2)
        rest = fit(cancelling(event, batches), 2, resume=torch.load(tmp_path/"ck.pth", weights_only=True))
        assert torch.equal(weights(whole), weights(rest)) and rest.opt_steps == whole.opt_steps
        assert all(torch.equal(a, b) for a,b in zip(whole.model.buffers(), rest.model.buffers()))
        assert (rest.train_iter, round(rest.pct_train, 9)) == (whole.train_iter, round(whole.pct_train, 9))
        assert [o["loss"] for o in whole.recorder.steps] == [o["loss"] for o in rest.recorder.steps]
        same = [{k:v for k,v in o.items() if k != "seconds"} for learn in (whole, rest) for o in learn.recorder.rows]
        assert same[:2] == same[2:]


def test_loader_that_announced_too_much():
    class Fewer(From):
        def __iter__(self):
            for i,b in enumerate(super().__iter__()):
                if i < 6: yield b
    learn,twin = fit(tiny(Accumulate(4), n=64, loader=Fewer)),fit(tiny(bs=32, n=48))
    assert learn.spy.steps == 2 and all(p.grad is None or not p.grad.any() for p in learn.model.parameters())
    assert (weights(learn)-weights(twin)).abs().max() < 1e-6


class Syncing(nn.Module):
    "Counts, as a distributed model would, which passes exchange gradients"
    def __init__(self):
        super().__init__()
        self.l,self.quiet,self.passes = nn.Linear(6,2),False,[]
    @contextmanager
    def no_sync(self):
        self.quiet = True
        try: yield
        finally: self.quiet = False
    def forward(self, x):
        if self.training: self.passes.append(self.quiet)
        return self.l(x)


def test_no_sync_on_small_batches():
    learn = fit(tiny(Accumulate(4), n=75, model=Syncing), 2)
    assert learn.model.passes == [True,True,True,False]*2 + [True,False] + [True,True,True,False]*2 + [True,False]
    assert not learn.model.quiet
    learn = tiny(Accumulate(4), Stop(KeyboardInterrupt(), at=1), model=Syncing)
    with pytest.raises(KeyboardInterrupt): fit(learn)
    learn.remove_cb(learn.stop)
    fit(learn)
    assert not learn.model.quiet


def test_with_mixing_and_average():
    "Mixing comes first, the average counts steps"
    learn = tiny(MixCallback(mixup=.5, cutmix=None, mode="elem"), Accumulate(4), EMACallback(half_life=1.), n=75, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(6,2)))
    x,y = learn.dls.train.dataset.tensors
    learn.dls = loaders(x.view(-1,1,1,6), y, 8)
    fit(learn, 2)
    assert learn.ema.n_updates == learn.spy.steps == 6
    assert abs(learn.ema.avg.decay - .5**(1/3)) < 1e-12


def test_validation_and_prediction():
    learn,plain = fit(tiny(Accumulate(4)), 3),fit(tiny(bs=32), 3)
    with learn.no_bar(), plain.no_bar():
        assert len(learn.get_preds()[0]) == 75
        assert np.allclose(learn.validate(), plain.validate(), atol=1e-6)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "4"])
def test_bad_input(k):
    with pytest.raises(ValueError, match="n_batches"): Accumulate(k)


def test_pickles():
    learn = fit(tiny(Accumulate(4)))
    accumulate = learn.accumulate
    learn.remove_cb(accumulate) # a Learner is not read from a pickle
    assert pickle.loads(pickle.dumps(accumulate)).n_batches == 4


# ---- states

class Save(Callback):
    "A state at the first step's end from batch `at` on"
    order = 100
    def __init__(self, at, path): self.at,self.path,self.done = at,path,False
    def after_batch(self):
        if self.done or not self.training or self.train_iter < self.at or self.learn.report is None: return
        torch.save(self.learn.training_state(), self.path)
        self.done = True


@pytest.mark.parametrize("at", [4, 5, 7, 9, 12])
def test_resume_between_the_groups_of_an_epoch(at, tmp_path):
    cbs = lambda: (Accumulate(4), EMACallback(.9))
    whole = fit(tiny(*cbs(), Save(at, tmp_path/"ck.pth")), 2)
    state,rest = torch.load(tmp_path/"ck.pth", weights_only=True),tiny(*cbs())
    assert tuple(state["position"]) in ((0, 4), (0, 8), (0, 10), (1, 4)) # whole groups
    fit(rest, 2, resume=state)
    assert torch.equal(weights(whole), weights(rest))
    assert all(torch.equal(a, b) for a,b in zip(whole.ema.module.parameters(), rest.ema.module.parameters()))
    assert [o["loss"] for o in whole.recorder.steps] == [o["loss"] for o in rest.recorder.steps]
    with pytest.raises(ValueError, match="n_batches: 4 -> 2"): fit(tiny(Accumulate(2), EMACallback(.9)), 2, resume=state)


@pytest.mark.parametrize("at", [0, 1, 2, 5, 8])
def test_a_state_between_the_batches_of_a_step_is_refused(at):
    "It would lose the gradients of the batches before it"
    class Ask(Callback):
        order = 100
        def after_batch(self):
            if self.training and self.iter == at: self.learn.training_state()
    learn = tiny(Accumulate(4), Ask())
    with pytest.raises(RuntimeError, match="between the batches of a step.*learn.report"): fit(learn)
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())
