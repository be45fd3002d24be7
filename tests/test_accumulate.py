"Accumulation: k small batches make the step of one large one"
import pickle
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelFitException, CancelTrainException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, Recorder
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from torch import nn
from torch.utils.data import TensorDataset

from vitnb.callback.accumulate import Accumulate
from vitnb.callback.ema import EMACallback
from vitnb.callback.mix import MixCallback


class HalfPrecision(MixedPrecision):
    "fastai's mixed precision, which knows CUDA only, on the CPU"
    def before_fit(self):
        self.kwargs["enabled"],self.scales = self.amp_mode.value == "fp16",[]
        dtype = torch.bfloat16 if self.amp_mode.value == "bf16" else torch.float16
        self.autocast,self.learn.scaler = torch.autocast("cpu", dtype=dtype),torch.amp.GradScaler("cpu", **self.kwargs)


class Spy(Callback):
    "What happened, event by event"
    order = 70
    def before_fit(self): self.events,self.steps,self.losses,self.seen = [],0,[],[]
    def after_step(self):
        self.steps += 1
        self.grads = [p.grad.clone() for p in self.model.parameters()]
    def after_batch(self):
        if self.training and len(self.yb): self.losses.append(self.loss.item()); self.seen.append((len(self.yb[0]), len(self.pred)))


def tiny(*cbs, n=75, bs=8, opt="AdamW", lr=1e-2, model=None, loss=None, recorder=None, **kw):
    torch.manual_seed(0)
    x = torch.randn(100,6)[:n]
    y = (x.sum(1) > 0).long()
    dls = DataLoaders(*(DataLoader(TensorDataset(x, y), bs=bs) for _ in range(2)))
    model = model() if model else nn.Sequential(nn.Linear(6,16), nn.GELU(), nn.Linear(16,2))
    learn = Learner(dls, model, loss or nn.CrossEntropyLoss(), opt_func=partial(OptimWrapper, opt=getattr(torch.optim, opt), **kw), lr=lr, cbs=[*cbs, Spy()], metrics=accuracy)
    return learn


def fit(learn, n=3):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


@pytest.mark.parametrize("opt,kw", [("SGD", dict(momentum=.9)), ("AdamW", {}), ("Adam", {})])
@pytest.mark.parametrize("n", [64, 75, 67, 33, 5])
@pytest.mark.parametrize("clip", [None, .2])
def test_equals_the_large_batch(opt, kw, n, clip):
    "n: whole groups; a last group of 8+3; of 3 alone; of one sample; less than one batch"
    cbs = lambda: [GradientClip(clip)] if clip else []
    large = fit(tiny(*cbs(), n=n, bs=32, opt=opt, **kw))
    small = fit(tiny(Accumulate(4), *cbs(), n=n, bs=8, opt=opt, **kw))
    assert (weights(large)-weights(small)).abs().max() < 1e-6
    assert np.allclose(large.spy.losses, small.spy.losses, atol=1e-6) and large.spy.steps == small.spy.steps
    assert large.spy.seen == small.spy.seen


@pytest.mark.parametrize("k", [1,2,3,8,100])
def test_any_k(k):
    large = fit(tiny(n=50, bs=min(4*k, 50)))
    small = fit(tiny(Accumulate(k), n=50, bs=4))
    assert (weights(large)-weights(small)).abs().max() < 1e-6


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
def test_mixed_precision(mode):
    "Half-precision layers round each small gradient to their format; what remains beside that is nothing"
    kw = dict(opt="SGD", lr=1e-3, momentum=.9)
    large = fit(tiny(HalfPrecision(mode), GradientClip(.5), bs=32, **kw))
    small = fit(tiny(HalfPrecision(mode), GradientClip(.5), Accumulate(4), **kw))
    moved = (weights(small)-weights(tiny(**kw))).abs().max()
    unit = torch.finfo(dict(fp16=torch.float16, bf16=torch.bfloat16)[mode]).eps
    assert moved > 1e-3 and (weights(large)-weights(small)).abs().max() < unit*moved
    assert np.allclose(large.spy.losses, small.spy.losses, atol=1e-3)


def test_gradient_scaler():
    "The scaler's part alone, without the rounding of half-precision layers: equal to 1e-6, with clipping of the unscaled gradients"
    class ScalerOnly(HalfPrecision):
        order = MixedPrecision.order
        def before_batch(self): pass
        def after_loss(self): pass
    large = fit(tiny(ScalerOnly("fp16"), GradientClip(.2), bs=32))
    small = fit(tiny(ScalerOnly("fp16"), GradientClip(.2), Accumulate(4)))
    plain = fit(tiny(GradientClip(.2), bs=32))
    for o in (large, plain): assert (weights(o)-weights(small)).abs().max() < 1e-6


def test_overflow_skips_the_whole_group():
    class Boom(Callback):
        order = 9
        def after_backward(self):
            if self.train_iter == 2: self.model[0].weight.grad[0,0] = float("inf")
    learn = tiny(HalfPrecision("fp16"), Accumulate(4), Boom(), EMACallback(.9), n=64, opt="SGD")
    learn.add_cb(Rows())
    fit(learn, 1)
    assert learn.ema.n_updates == 1 # two groups, one skipped
    assert torch.equal(learn.rows.kept[0], learn.rows.kept[1]) # no weight moved in the skipped group


class Rows(Callback):
    order = 80
    def before_fit(self): self.kept = [weights(self.learn)]
    def after_step(self): self.kept.append(weights(self.learn))


def test_recorder_sees_large_batches():
    def learner(*cbs, bs):
        learn = tiny(*cbs, bs=bs)
        learn.recorder.train_metrics = True
        return fit(learn)
    large,small = learner(bs=32),learner(Accumulate(4), bs=8)
    assert len(small.recorder.losses) == len(large.recorder.losses) == 9
    assert np.allclose(torch.stack(small.recorder.losses), torch.stack(large.recorder.losses), atol=1e-6)
    assert np.allclose(np.array(small.recorder.values, dtype=float), np.array(large.recorder.values, dtype=float), atol=1e-6) # metrics over training samples too


def test_no_trailing_gradients():
    class Left(Callback):
        order = 90
        def before_fit(self): self.rest = []
        def after_train(self): self.rest += [p.grad for p in self.model.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    learn = fit(tiny(Accumulate(4), Left(), n=75))
    assert learn.left.rest == [] and learn.accumulate.pending == 0
    fastais = fit(tiny(GradientAccumulation(32), Left(), n=75))
    assert fastais.left.rest # the defect this answers


class Stop(Callback):
    order = 40
    def __init__(self, ex, event="after_backward", at=5): self.ex,self.event,self.at = ex,event,at
    def __call__(self, name):
        if name == self.event and self.training and self.train_iter == self.at: raise self.ex
        return super().__call__(name)


@pytest.mark.parametrize("ex", [KeyboardInterrupt, RuntimeError, CancelFitException, CancelTrainException])
def test_interrupted_group_leaves_nothing(ex):
    learn = tiny(Accumulate(4), Stop(ex("stop")))
    if ex in (CancelFitException, CancelTrainException): fit(learn, 1)
    else:
        with pytest.raises(ex): fit(learn, 1)
    learn.remove_cb(learn.stop)
    twin = tiny(Accumulate(4))
    twin.model.load_state_dict(learn.model.state_dict())
    for l in (learn, twin): l.opt = None
    assert torch.equal(weights(fit(learn, 1)), weights(fit(twin, 1))) # the rest of the broken group had no part in it


def test_cancelled_batch_of_another_callback():
    "A batch that another callback skips before its gradients exist counts as absent"
    class Skip(Callback):
        order = 1
        def before_batch(self):
            if self.training and self.iter == 1: raise CancelBatchException()
    learn = fit(tiny(Accumulate(2), Skip(), n=40), 1) # batches 0 2 | 3 4
    assert learn.spy.steps == 2 and learn.spy.seen[-1] == (16,16)
    one = fit(tiny(Accumulate(1), Skip(), n=40), 1) # right after a step, too
    assert one.spy.steps == 4


def test_loader_that_announced_too_much():
    class Fewer(DataLoader):
        def __iter__(self):
            for i,b in enumerate(super().__iter__()):
                if i < 6: yield b
    learn = tiny(Accumulate(4), n=64)
    dl = learn.dls.train
    learn.dls = DataLoaders(Fewer(dl.dataset, bs=8), learn.dls[1])
    fit(learn, 1)
    twin = fit(tiny(bs=32, n=48), 1)
    assert learn.spy.steps == 2 and learn.accumulate.pending == 0
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
    with pytest.raises(KeyboardInterrupt): fit(learn, 1)
    learn.remove_cb(learn.stop)
    fit(learn, 1)
    assert not learn.model.quiet


def test_with_mixing_and_average():
    "Mixing comes first, the average counts steps"
    learn = tiny(MixCallback(mixup=.5, cutmix=None, mode="elem"), Accumulate(4), EMACallback(half_life=1.), n=75, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(6,2)))
    learn.dls.c = 2
    for dl in learn.dls.loaders: dl.dataset = TensorDataset(dl.dataset.tensors[0].view(-1,1,1,6), dl.dataset.tensors[1])
    fit(learn, 2)
    assert learn.ema.n_updates == learn.spy.steps == 6
    assert abs(learn.ema.avg.decay - .5**(1/3)) < 1e-12


def test_validation_and_prediction():
    learn = fit(tiny(Accumulate(4)))
    plain = fit(tiny(bs=32))
    with learn.no_bar(), plain.no_bar():
        assert len(learn.get_preds()[0]) == 75
        assert np.allclose(learn.validate(), plain.validate(), atol=1e-6)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "4"])
def test_bad_input(k):
    with pytest.raises(ValueError, match="n_batches"): Accumulate(k)


def test_pickles():
    learn = tiny(Accumulate(4))
    fit(learn, 1)
    again = pickle.loads(pickle.dumps(learn.accumulate))
    assert again.n_batches == 4 and again.pending == 0


class From(DataLoader):
    "A loader that can begin later, as vitnb's own"
    start = 0
    def __iter__(self):
        skip,self.start = self.start,0
        for i,b in enumerate(super().__iter__()):
            if i >= skip: yield b


def vit(*cbs, n=75, bs=8, **kw):
    core = pytest.importorskip("vitnb.learner.core")
    torch.manual_seed(0)
    x = torch.randn(100,6)[:n]
    y = (x.sum(1) > 0).long()
    dls = DataLoaders(*(From(TensorDataset(x, y), bs=bs) for _ in range(2)))
    learn = core.VitLearner(dls, nn.Sequential(nn.Linear(6,16), nn.GELU(), nn.Linear(16,2)), nn.CrossEntropyLoss(), lr=1e-2, precision="fp32", cbs=[*cbs, Spy()], **kw)
    for cb in list(learn.cbs):
        if cb.name == "live_view": learn.remove_cb(cb)
    return learn


def test_vit_learner():
    large,small = fit(vit(GradientClip(.3), bs=32)),fit(vit(GradientClip(.3), Accumulate(4)))
    assert (weights(large)-weights(small)).abs().max() < 1e-6
    assert small.opt_steps == large.opt_steps == 9
    assert np.allclose([o["loss"] for o in small.recorder.steps], [o["loss"] for o in large.recorder.steps], atol=1e-6)
    for a,b in zip(small.recorder.rows, large.recorder.rows): assert abs(a["train_loss"]-b["train_loss"]) < 1e-6


@pytest.mark.parametrize("ex", [KeyboardInterrupt, RuntimeError, CancelFitException])
def test_vit_learner_interrupted(ex):
    learn = vit(Accumulate(4), EMACallback(.5), Stop(ex("stop")))
    try: fit(learn, 1)
    except (KeyboardInterrupt, RuntimeError): pass
    assert learn.accumulate.pending == 0 and all(p.grad is None for p in learn.model.parameters())


@pytest.mark.parametrize("at", [4, 5, 7, 9, 12])
def test_resume_in_the_middle_of_a_group(at, tmp_path):
    class Save(Callback):
        order = 100
        def after_batch(self):
            if self.training and self.train_iter == at: torch.save(self.learn.training_state(), tmp_path/"ck.pth")
    cbs = lambda: (Accumulate(4), EMACallback(.9))
    whole = fit(vit(*cbs(), Save()), 2)
    rest = vit(*cbs())
    with rest.no_bar(), rest.no_logging(): rest.fit(2, resume=torch.load(tmp_path/"ck.pth", weights_only=True))
    assert torch.equal(weights(whole), weights(rest))
    assert all(torch.equal(a, b) for a,b in zip(whole.ema.module.parameters(), rest.ema.module.parameters()))
    assert [o["loss"] for o in whole.recorder.steps] == [o["loss"] for o in rest.recorder.steps]
