"The moving average: against a slow reference, in all of the Learner's situations, and over a resume"
import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelStepException, CancelTrainException, CancelValidException
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from hypothesis import given, settings, strategies as st
from timm.utils import ModelEmaV3
from torch import nn

from tiny_tasks import classes, fit, task_learner
from vitnb.callback.accumulate import Accumulate
from vitnb.callback.ema import CachedEma, EMACallback, decay_for
from vitnb.callback.history import History
from vitnb.metrics.base import make_task_metrics
from vitnb.task import Tasks


def net():
    return nn.Sequential(nn.Conv2d(1,4,3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64,2))


def wrapped(model, lr, opt): return OptimWrapper(list(model.parameters()), opt=getattr(torch.optim, opt), lr=lr)


def tiny(*cbs, n=44, bs=8, model=None, opt="SGD", metrics=accuracy, **kw):
    torch.manual_seed(0)
    x = torch.randn(n,1,6,6)
    y = (x.mean((1,2,3)) > 0).long()
    return task_learner(x, y, classes(2), (model or net)(), *cbs, bs=bs, lr=.05, opt_func=partial(wrapped, opt=opt), metrics=metrics, **kw)


def state(model): return {k:v.clone() for k,v in model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class States(Callback):
    "Every state after a step"
    order = 80
    def before_fit(self): self.kept = []
    def after_step(self): self.kept.append(state(self.model))


def slow_average(kept, decay, warmup, power=2/3):
    avg = {k:v.double() if v.is_floating_point() else v for k,v in kept[0].items()}
    for t,s in enumerate(kept[1:], 1): # timm counts the updates after the first, which copies
        d = min(decay, 1-(1+t)**-power) if warmup else decay
        avg = {k:d*avg[k] + (1-d)*v if v.is_floating_point() else v for k,v in s.items()}
    return avg


@pytest.mark.parametrize("decay", [0., .5, .95, .9999])
@pytest.mark.parametrize("warmup,power", [(True,2/3), (True,1.), (False,2/3)])
def test_against_a_slow_reference(decay, warmup, power):
    learn = fit(tiny(EMACallback(decay, warmup=warmup, power=power), States()), 3)
    want = slow_average(learn.states.kept, decay, warmup, power)
    got = learn.ema.module.state_dict()
    assert learn.ema.n_updates == 18
    for k in got: assert torch.allclose(got[k].double(), want[k].double(), atol=1e-6), k


def test_power_one_is_the_plain_mean():
    learn = fit(tiny(EMACallback(.9999, power=1.), States()), 1)
    # the first update copies, and 1-(1+t)^-1 = t/(t+1) then weights all states alike
    mean = torch.stack([s["4.weight"] for s in learn.states.kept]).mean(0)
    assert torch.allclose(learn.ema.module[4].weight, mean, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.floats(.05, 50), st.integers(1, 5000))
def test_half_life(half_life, steps):
    d = decay_for(half_life, steps)
    assert 0 < d < 1 and abs(d**(half_life*steps) - .5) < 1e-6


def test_half_life_counts_steps():
    assert abs(fit(tiny(EMACallback(half_life=2.)), 1).ema.avg.decay - decay_for(2., 6)) < 1e-12
    assert abs(fit(tiny(EMACallback()), 1).ema.avg.decay - decay_for(1., 6)) < 1e-12
    assert abs(fit(tiny(Accumulate(4), EMACallback(half_life=2.)), 1).ema.avg.decay - decay_for(2., 2)) < 1e-12


class Zoo(nn.Module):
    "Shared, frozen, non-persistent, absent and whole-number tensors"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(36,36),nn.Linear(36,36, bias=False),nn.Linear(36,2)
        self.b.weight = self.a.weight
        self.c.bias.requires_grad_(False)
        self.bn = nn.BatchNorm1d(36)
        self.register_buffer("table", torch.arange(4))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.register_buffer("nothing", None)
    def forward(self, x): return self.c(self.bn(self.b(self.a(x.flatten(1)))))


@pytest.mark.parametrize("model", [net, lambda: net().bfloat16(), lambda: nn.Sequential(nn.Linear(36,2).double(), nn.Linear(2,2))])
def test_same_bits_as_timm(model):
    torch.manual_seed(0)
    m = model()
    mine,timms = (cls(m, decay=.9, use_warmup=True) for cls in (CachedEma, ModelEmaV3))
    for t in range(1, 8):
        with torch.no_grad():
            for v in m.state_dict().values(): v += torch.randn_like(v) if v.is_floating_point() else 1
        for e in (mine, timms): e.update(m, step=t)
    assert same(state(mine.module), state(timms.module))
    assert not same(state(mine.module), state(m))


@pytest.mark.parametrize("share", [1e-4, .1, .4999, .5, 1.])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_same_bits_as_lerp_in_any_layout(share, format):
    torch.manual_seed(0)
    m = nn.Sequential(nn.Conv2d(3,5,3), nn.BatchNorm2d(5), nn.Linear(7,1)).to(memory_format=format)
    mine,slow = CachedEma(m, decay=1-share),copy.deepcopy(m)
    for t in range(3):
        if t == 2: m.to(memory_format=torch.channels_last) # the tensors stay, their layout changes
        with torch.no_grad():
            for v in m.state_dict().values(): v += torch.randn_like(v) if v.is_floating_point() else 1
            for a,b in zip(slow.state_dict().values(), m.state_dict().values()): a.lerp_(b, 1-(1-share)) if a.is_floating_point() else a.copy_(b)
        before = state(m)
        mine.update(m)
        assert same(state(mine.module), state(slow)) and same(state(m), before)


def test_shared_weights_are_averaged_once():
    "timm averages a tensor as often as it has names, so that tied weights follow with a decay of d**2"
    torch.manual_seed(0)
    m = Zoo()
    start,mine,timms = m.a.weight.detach().clone(),CachedEma(m, decay=.9),ModelEmaV3(m, decay=.9)
    with torch.no_grad(): m.a.weight.add_(1)
    for e in (mine, timms): e.update(m)
    assert torch.allclose(mine.module.a.weight, start + .1, atol=1e-6) and mine.module.b.weight is mine.module.a.weight
    if not torch.allclose(timms.module.a.weight, start + .19, atol=1e-6): pytest.skip("timm now averages tied weights once")
    assert torch.equal(mine.module.table, m.table) and torch.equal(mine.module.c.bias, m.c.bias) # whole numbers are copied, frozen weights stay


def test_batchnorm_statistics_move():
    "The regression that froze running_mean at 0"
    ema = fit(tiny(EMACallback(.9)), 2).ema.module[1]
    assert (ema.running_mean != 0).all() and ema.num_batches_tracked == 12


def test_buffer_that_is_replaced():
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(36,2)
            self.register_buffer("seen", torch.zeros(1))
        def forward(self, x):
            if self.training: self.seen = self.seen + 1 # a new tensor each time
            return self.l(x.flatten(1))
    learn = fit(tiny(EMACallback(0.), model=Moving), 1)
    assert learn.ema.module.seen == 6 and learn.model.seen == 6


# one update a step

def test_one_update_an_optimizer_step():
    assert fit(tiny(Accumulate(4), EMACallback(.9)), 3).ema.n_updates == 6
    class Skip(Callback):
        def __init__(self, event, ex): self.event,self.ex = event,ex
        def __call__(self, name):
            if name == self.event and self.training and self.iter == 2: raise self.ex
            return super().__call__(name)
    for event,ex in (("before_step",CancelStepException), ("before_step",CancelBatchException), ("after_pred",CancelBatchException)):
        learn = fit(tiny(EMACallback(.9), Skip(event, ex)), 1)
        assert learn.ema.n_updates == 5, event


def test_validation_of_both():
    learn = tiny(EMACallback(.5), States())
    fit(learn, 2)
    rec,last = learn.recorder,learn.recorder.values[-1]
    assert list(rec.metric_names) == ["epoch","train_loss","valid_loss","accuracy","valid_loss_ema","accuracy_ema"]
    assert all(len(v) == 5 for v in rec.values)
    with learn.no_bar():
        raw = learn.validate()
        with learn.ema.averaged(): avg = learn.validate()
    assert len(raw) == 2 # outside of an epoch nothing is validated twice
    assert np.allclose(last[1:3], raw, atol=1e-6) and np.allclose(last[3:], avg, atol=1e-6)
    assert abs(raw[0]-avg[0]) > 1e-4
    before = state(learn.ema.module)
    with learn.no_bar():
        learn.get_preds()
        learn.validate()
    assert same(before, state(learn.ema.module)) and learn.ema.n_updates == 12


def test_training_is_not_touched():
    with_ema,without = fit(tiny(EMACallback(.5), States()), 2),fit(tiny(States()), 2)
    assert all(same(a, b) for a,b in zip(with_ema.states.kept, without.states.kept))
    assert same(state(with_ema.model), state(without.model))
    assert np.allclose([v[:3] for v in with_ema.recorder.values], [v for v in without.recorder.values])


def test_options_act():
    assert list(fit(tiny(EMACallback(.5, validate=False)), 2).recorder.metric_names) == ["epoch","train_loss","valid_loss","accuracy"]
    a,b,c = (fit(tiny(EMACallback(.9, **kw)), 2).ema.module[4].weight for kw in ({}, dict(warmup=False), dict(power=.3)))
    assert not torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("metrics", [accuracy, make_task_metrics(Tasks.of(classes(2))), []], ids=["fastai", "task", "none"])
def test_columns(metrics):
    "Those of validation, with their directions, declared before they are filled"
    learn = tiny(EMACallback(.5), metrics=metrics)
    names = [m.name for m in learn.metrics]
    declared = learn.columns
    assert [o for o in declared if o.endswith("_ema")] == ["valid_loss_ema", *(f"{n}_ema" for n in names)]
    fit(learn)
    assert len(learn.recorder.log) == len(learn.recorder.metric_names)
    assert [o for o in learn.recorder.metric_names if o.endswith("_ema")] == ["valid_loss_ema", *(f"{n}_ema" for n in names)]
    for o in declared.values():
        if o.name.endswith("_ema"): assert (o.better, o.unit) == (declared[o.name.removesuffix("_ema")].better, declared[o.name.removesuffix("_ema")].unit)
    row = learn.recorder.rows[-1]
    assert set(row) - {"epoch", "step", "seconds"} == set(declared) and all(v is not None for v in row.values())


def test_trackers_can_watch_the_average(tmp_path):
    learn = tiny(EMACallback(.5), SaveModelCallback("accuracy_ema", with_opt=False), EarlyStoppingCallback("valid_loss_ema", patience=3), path=tmp_path,
                 metrics=make_task_metrics(Tasks.of(classes(2)))) # whose direction is declared
    fit(learn, 3, cbs=History(tmp_path))
    rows = (tmp_path/"history.csv").read_text().splitlines()
    assert {"valid_loss_ema","accuracy_ema"} <= set(rows[0].split(",")) and len(rows) == 4 and all(len(r.split(",")) == len(rows[0].split(",")) for r in rows)
    assert len(list(tmp_path.rglob("model.pth"))) == 1 # SaveModelCallback found its column, too


def test_without_a_recorder():
    learn = tiny(EMACallback(.5))
    learn.remove_cbs([cb for cb in list(learn.cbs) if cb.name in ("recorder","progress")])
    learn.fit(1)
    assert learn.ema.n_updates == 6


# trading places

def test_swap_is_exact_and_keeps_objects():
    learn = fit(tiny(EMACallback(.5), opt="AdamW"), 2)
    raw,avg,ids = state(learn.model),state(learn.ema.module),[id(p) for p in learn.model.parameters()]
    with learn.ema.averaged() as m:
        assert m is learn.model and same(state(m), avg) and same(state(learn.ema.module), raw)
        assert [id(p) for p in m.parameters()] == ids
    assert same(state(learn.model), raw) and same(state(learn.ema.module), avg)
    with pytest.raises(KeyboardInterrupt):
        with learn.ema.averaged(): raise KeyboardInterrupt
    assert same(state(learn.model), raw)
    fit(learn, 1) # the optimiser still knows its parameters
    assert not same(state(learn.model), raw)
    with pytest.raises(RuntimeError, match="begins with fit"):
        with EMACallback(.9).averaged(): pass


class Stop(Callback):
    order = 20
    def __init__(self, ex, event, training, at): self.ex,self.event,self.phase,self.at,self.n = ex,event,training,at,0
    def __call__(self, name):
        if name == self.event and self.training is self.phase:
            self.n += 1
            if self.n == self.at: raise self.ex
        return super().__call__(name)


ALL = [KeyboardInterrupt, RuntimeError, CancelFitException, CancelEpochException, CancelTrainException, CancelValidException, CancelBatchException]

@pytest.mark.parametrize("ex", ALL)
@pytest.mark.parametrize("event,training,at", [("after_pred",True,3), ("after_pred",False,3), ("after_pred",False,8), ("before_validate",False,2)])
def test_no_trace_after_an_interruption(ex, event, training, at):
    "at=8 is in the middle of the average's validation"
    learn = tiny(EMACallback(.5), States(), Stop(ex("stop"), event, training, at))
    caught = (Exception,KeyboardInterrupt)
    try: fit(learn, 1)
    except caught as e: assert isinstance(e, ex)
    if learn.states.kept:
        for k,v in state(learn.model).items():
            if "num_batches" not in k and "running" not in k: assert torch.equal(v, learn.states.kept[-1][k]), k
    with learn.no_bar():
        learn.remove_cb(learn.stop)
        assert len(learn.validate()) == 2
        assert len(learn.get_preds()[0]) == 44
        fit(learn, 1)
    assert learn.ema.n_updates == 6 and len(learn.recorder.values[-1]) == 5
    learn.remove_cb(learn.ema)
    fit(learn, 1)
    assert len(learn.recorder.values[-1]) == 3


# resume

@pytest.mark.parametrize("before", [True, False])
def test_resume_is_exact(before, tmp_path):
    "Loaded before the fit or inside it, the state gives the average of the uninterrupted run, bit for bit"
    whole = fit(tiny(EMACallback(.99)), 4)
    half = fit(tiny(EMACallback(.99)), 2)
    torch.save(dict(model=half.model.state_dict(), ema=half.ema.state_dict()), tmp_path/"ck.pth")
    ck = torch.load(tmp_path/"ck.pth", weights_only=True)
    rest = tiny(EMACallback(.99))
    rest.model.load_state_dict(ck["model"])
    if before:
        rest.ema.load_state_dict(ck["ema"])
        with rest.no_bar(): rest.validate() # fires before_fit and after_fit, and must not use it up
    else:
        class Load(Callback):
            order = 90
            def before_fit(self): self.learn.ema.load_state_dict(ck["ema"])
        rest.add_cb(Load())
    fit(rest, 2)
    assert rest.ema.n_updates == whole.ema.n_updates == 24
    assert same(state(rest.model), state(whole.model)) and same(state(rest.ema.module), state(whole.ema.module))
    lost = tiny(EMACallback(.99))
    lost.model.load_state_dict(ck["model"])
    assert not same(state(fit(lost, 2).ema.module), state(whole.ema.module)) # without the state it would differ


def test_a_new_fit_begins_anew():
    learn = fit(tiny(EMACallback(.5)), 2)
    fit(learn, 1)
    assert learn.ema.n_updates == 6
    old = learn.ema.state_dict()
    learn.ema.load_state_dict(old)
    fit(learn, 1)
    assert learn.ema.n_updates == 12
    fit(learn, 1)
    assert learn.ema.n_updates == 6 # a state is used once
    assert EMACallback(.5).state_dict() == dict(module=None, n_updates=0)
    empty = tiny(EMACallback(.5))
    empty.ema.load_state_dict(EMACallback(.5).state_dict())
    assert fit(empty, 1).ema.n_updates == 6


def test_wrappers_are_looked_through():
    learn = tiny(EMACallback(.5), model=lambda: torch.compile(net(), backend="eager"))
    fit(learn, 1)
    assert list(learn.ema.state_dict()["module"]) == list(net().state_dict())
    plain = fit(tiny(EMACallback(.5)), 1)
    for a,b in zip(learn.ema.module.parameters(), plain.ema.module.parameters()): assert torch.allclose(a, b, atol=1e-6)


def test_pickles():
    learn = fit(tiny(EMACallback(.5)), 1)
    ema = learn.ema
    learn.remove_cb(ema) # a Learner is not read from a pickle
    again = pickle.loads(pickle.dumps(ema))
    assert again.n_updates == 6 and same(state(again.module), state(ema.module))
    other = tiny(again)
    assert fit(other, 1).ema.n_updates == 6


@pytest.mark.parametrize("kw,say", [(dict(decay=1.), "decay=1.0"), (dict(decay=-.1), "decay=-0.1"), (dict(decay=float("nan")), "decay=nan"), (dict(half_life=0), "half_life=0"),
                                    (dict(half_life=-1.), "half_life"), (dict(decay=.9, half_life=1.), "give one"), (dict(power=0.), "power=0")])
def test_bad_input(kw, say):
    with pytest.raises(ValueError, match=say): EMACallback(**kw)


@pytest.mark.parametrize("at", [2, 8, None])
def test_interrupted_in_either_validation(at, tmp_path):
    "Interrupted in the validation of the trained weights (2) or of the average (8), or not at all"
    learn = tiny(EMACallback(.5), States())
    if at:
        learn.add_cb(Stop(KeyboardInterrupt(), "after_pred", False, at))
        with pytest.raises(KeyboardInterrupt): fit(learn, 1)
        assert all(torch.equal(p, learn.states.kept[-1][k]) for k,p in learn.model.named_parameters())
        learn.remove_cb(learn.stop)
    fit(learn, 1)
    row = learn.recorder.rows[-1]
    assert {"valid_loss","accuracy","valid_loss_ema","accuracy_ema"} <= set(row) and row["valid_loss"] != row["valid_loss_ema"]
    torch.save(learn.training_state(), tmp_path/"ck.pth")
    assert torch.load(tmp_path/"ck.pth", weights_only=True)["callbacks"]["EMACallback"]["n_updates"] == 6
