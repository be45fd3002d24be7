"class_weights=True for every kind of task: the weights by hand, a loss by hand, training with mixing, or a refusal that names the remedy"
import numpy as np
import pytest
import tiny_heads
import torch
import torch.nn.functional as F

from vitnb.data.loader import image_loaders
from vitnb.data.holdout import Split
from vitnb.data.table import ImageSet
from vitnb.learner.core import train_callbacks, vit_learner
from vitnb.task import ClassMap, MultiLabel, OneClass, Ordinal, Tasks, Value

N = 32
TASKS = dict(
    class_=OneClass("abc"),
    unknown=OneClass("abc", unknown=-1),
    background=OneClass("abc", unknown=0), # one of the classes means unknown
    grade=Ordinal(levels=3),
    zones=Ordinal("lr", levels=3, unknown=-1),
    abstain=Ordinal("lr", levels=2, unknown=2, abstain=True),
    abstain_far=Ordinal("lr", levels=2, unknown=9, abstain=True),
    cumulative=Ordinal("lr", levels=3, unknown=-1, cumulative=True),
    map=ClassMap("abc", unknown=255),
    ground=ClassMap("abc", unknown=0),
    several=Tasks.of(dict(a=OneClass("abc"), b=Ordinal("lr", levels=2, unknown=-1, abstain=True), c=Ordinal(levels=3, cumulative=True))))
SHAPES = dict(zones=(2,), abstain=(2,), abstain_far=(2,), cumulative=(2,), map=(8, 8), ground=(8, 8))
LOSSES = dict(class_=("cross_entropy", "focal", "combined"), zones=("cross_entropy", "focal"), cumulative=("cumulative",))


@pytest.fixture(autouse=True)
def registered():
    with tiny_heads.known(): yield


def entries(kind, rng):
    "Skewed classes, and what is unknown where the task has that"
    if kind == "several": return dict(a=entries("class_", rng), b=np.where(rng.random((N, 2)) < .2, -1, rng.choice(2, (N, 2))), c=entries("grade", rng))
    task,shape = TASKS[kind],(N, *SHAPES.get(kind, ()))
    levels = getattr(task, "levels", 0) or 3
    y = rng.choice(levels, shape, p=[.6, .3, .1] if levels == 3 else [.7, .3])
    return y if task.unknown is None else np.where(rng.random(shape) < .2, task.unknown, y)


def learner(kind, y=None, task=None, engine=None, **kw):
    rng = np.random.default_rng(1)
    x,task = rng.normal(size=(N, 8, 8, 3)).astype(np.float32),task or TASKS[kind]
    y = entries(kind, rng) if y is None else y
    s = ImageSet(kind, task, {k:Split(x, y) for k in ("train", "valid", "test")})
    dls = image_loaders(s, bs=8, augment="none", seed=5, workers=0, device="cpu")
    model_kw = dict(dense=("",)) if isinstance(task, ClassMap) else {}
    learn = vit_learner(dls, "tiny_heads", model_kw, device="cpu", precision="fp32", seed=3, metrics=(), cbs=train_callbacks(**(engine or {})), class_weights=True, **kw)
    learn.progress.plot,learn.logger = False,lambda *a: None
    return learn


def weights_by_hand(task, y):
    "N/(K n_k), entry by entry; an entry that is unknown is a level of its own where the model may say so, else it is left out"
    found = []
    for o in np.ravel(y).tolist():
        if o != task.unknown: found.append(o)
        elif getattr(task, "abstain", False): found.append(task.levels)
    return [len(found)/(len(set(found))*found.count(k)) if k in found else 1. for k in range(task.n)]


@pytest.mark.parametrize("kind", TASKS)
def test_weights_are_those_of_the_training_entries(kind):
    learn = learner(kind)
    for name,task in learn.tasks.items():
        y = learn.dls.train.dataset.targets[name]
        assert learn.objective.loss_of(name).weight.tolist() == pytest.approx(weights_by_hand(task, y), rel=1e-6)


def loss_by_hand(task, pred, y, w):
    "The weighted mean, entry by entry"
    total = count = 0.
    pred = pred.movedim(1, -1) if isinstance(task, ClassMap) else pred
    width = pred.shape[-1]
    for logits,level in zip(pred.reshape(-1, width).double(), np.ravel(y).tolist()):
        if level == task.unknown and not getattr(task, "abstain", False): continue
        k = task.levels if level == task.unknown else level
        if getattr(task, "cumulative", False): loss = sum(F.softplus(-o if k > j else o) for j,o in enumerate(logits))
        else: loss = -logits.log_softmax(0)[k]
        total,count = total + w[k]*loss,count + w[k]
    return float(total/count)


@pytest.mark.parametrize("kind", TASKS)
def test_the_loss_is_the_weighted_mean(kind):
    learn = learner(kind)
    target = {k:torch.as_tensor(v[:N]) for k,v in learn.dls.train.dataset.targets.items()}
    image = torch.randn(N, 3, 8, 8)
    pred = learn.model.eval()(image)
    with torch.no_grad(): got = float(learn.objective.eval()(pred, target if not learn.tasks.only else target[""]))
    by_task = learn.tasks.split(pred, target if not learn.tasks.only else target[""])
    want = sum(loss_by_hand(task, p.detach(), y.numpy(), learn.objective.loss_of(k).weight.tolist()) for k,task,p,y in by_task)
    assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_it_trains_with_mixing_and_accumulation(kind, mode):
    learn = learner(kind, engine=dict(mixup=.8, cutmix=1., mix_mode=mode, accumulate=2), label_smoothing=0. if kind in ("cumulative", "several") else .1)
    before = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(): learn.fit(1)
    assert learn.opt_steps == 2 and all(np.isfinite(o["loss"]) for o in learn.recorder.steps) and np.isfinite(learn.recorder.rows[-1]["valid_loss"])
    assert all(not torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))


@pytest.mark.parametrize("kind,loss", [(k, o) for k,names in LOSSES.items() for o in names])
def test_every_loss_of_classes_takes_them(kind, loss):
    learn = learner(kind, loss=loss)
    assert learn.objective.loss_of("").weight is not None


@pytest.mark.parametrize("task,y,says", [
    (MultiLabel("ab"), np.ones((N, 2), int), "weigh labels with loss_kw=dict\\(pos_weight"),
    (Value(), np.ones((N, 1), np.float32), "a value has none; leave it out"),
    (OneClass("abc"), np.arange(N)%2, "class without samples has no weight: take it out of the task"),
    (Ordinal("lr", levels=2, unknown=-1, abstain=True), np.arange(2*N).reshape(N, 2)%2, "abstain=True where no entry is unknown")])
def test_what_cannot_be_weighed_is_refused_with_the_remedy(task, y, says):
    with pytest.raises(ValueError, match=says): learner("refused", y, task)
