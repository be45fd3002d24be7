"Schedules against closed forms, torch's and fastai's, and what holds for all of them"
import math
import warnings

import numpy as np
import pytest
import torch
from fastai.callback.schedule import combined_cos
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_optim import PLATEAU_MODE, PURE

from vitnb.callback.schedule import make_schedule, scale_lr, schedule_options, schedules


def lrs(name, total, per_epoch=1, lr=1., **kw): return make_schedule(name, lr, total, per_epoch, **kw).curve()

@pytest.mark.parametrize("per_epoch", [1, 10, 1563])
def test_the_guides_warmup_cosine(per_epoch):
    s = make_schedule("warmup_cosine", 3e-4, 100*per_epoch, per_epoch, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5)
    for e,want in ((0, 1e-6), (1, 6.08e-5), (5, 3e-4), (52, 1.574e-4), (99, 1.008e-5), (100, 1e-5)):
        assert s.hypers(e*per_epoch)["lr"] == pytest.approx(want, rel=5e-4), e
    for e in (101, 150, 195, 1000): assert s.hypers(e*per_epoch)["lr"] == 1e-5 # the guide's trainer was back at the peak at 195
    assert s.hypers(5*per_epoch)["lr"] == 3e-4 and s.hypers(100*per_epoch)["lr"] == 1e-5 # exact at both ends

def test_the_guides_warmup_cosine_is_the_default():
    a = make_schedule("warmup_cosine", 3e-4, 1000, 10)
    b = make_schedule("warmup_cosine", 3e-4, 1000, 10, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5)
    assert np.array_equal(a.curve(), b.curve())
    assert make_schedule("warmup_cosine", 1e-3, 30, 10).span.start == 3 # three epochs: a tenth of the run

def test_step_30_60():
    y = lrs("step", 90*7, 7, lr=.1, step_size=30, gamma=.1)
    np.testing.assert_allclose(y[:-1], np.repeat([.1, .01, .001], 30*7))
    assert y[-1] == pytest.approx(.001) # a third drop at the very end would act on nothing

def test_multistep_half_and_three_quarters():
    for total,per in ((200*3, 3), (300, 1), (40, 4)):
        y = lrs("multistep", total, per, lr=.1)
        assert y[total//2-1] == .1 and y[total//2] == pytest.approx(.01) and y[total*3//4-1] == pytest.approx(.01) and y[total*3//4] == pytest.approx(.001)
    assert np.array_equal(lrs("multistep", 200, 2, milestones=(50, 75)), lrs("multistep", 200, 2, milestones=(.5, .75)))

def torch_curve(make, n, lr=1.):
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=.9)
    sch,out,mom = make(opt),[],[]
    for _ in range(n):
        out.append(opt.param_groups[0]["lr"]); mom.append(opt.param_groups[0]["momentum"])
        opt.step(); sch.step()
    return np.array(out), np.array(mom)

@pytest.mark.parametrize("name,ours,theirs", [
    ("cosine", dict(min_lr=.1), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 60, eta_min=.1)),
    ("step", dict(step_size=7, gamma=.5), lambda o: torch.optim.lr_scheduler.StepLR(o, 7, .5)),
    ("multistep", dict(milestones=(10, 25, 40), gamma=.3), lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 25, 40], .3)),
    ("constant", {}, lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 1.))])
def test_against_torch(name, ours, theirs):
    np.testing.assert_allclose(lrs(name, 60, **ours)[:60], torch_curve(theirs, 60)[0], rtol=1e-9, atol=1e-12)

def test_torchs_cosine_rebounds_and_ours_does_not():
    theirs = torch_curve(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 200), 301, lr=.1)[0]
    assert theirs[250] == pytest.approx(.0146, abs=1e-4) and theirs[300] == pytest.approx(.05, abs=1e-4)
    s = make_schedule("cosine", .1, 200)
    assert all(s.hypers(e)["lr"] == 0 for e in range(200, 400))

def test_one_cycle_against_fastai_and_torch():
    s = make_schedule("one_cycle", 2., 80)
    f,m = combined_cos(.25, 2/25, 2, 2/1e5),combined_cos(.25, .95, .85, .95)
    for i in range(81):
        assert s.hypers(i)["lr"] == pytest.approx(f(i/80), rel=1e-6, abs=1e-7) and s.hypers(i)["mom"] == pytest.approx(m(i/80), rel=1e-6)
    # torch puts the ends on steps 0 and n-1; then its rates are ours over n-1 steps. Its last rate is a share of the first
    make = lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1., total_steps=101, pct_start=31/101, div_factor=25, final_div_factor=1e4)
    lr,mom = torch_curve(make, 101)
    s = make_schedule("one_cycle", 1., 100, pct_start=.3, div=25, div_final=25e4)
    np.testing.assert_allclose([s.hypers(i)["lr"] for i in range(101)], lr, rtol=1e-6)
    np.testing.assert_allclose([s.hypers(i)["mom"] for i in range(101)], mom, rtol=1e-6)

@pytest.mark.parametrize("mode,opts", [("min", {}), ("max", dict(monitor="accuracy")), ("min", dict(monitor="accuracy")), ("min", dict(cooldown=2)), ("min", dict(min_lr=.05)),
                                       ("min", dict(threshold=.2)), ("min", dict(factor=.3, patience=0)), ("max", {})])
def test_plateau_against_torch(mode, opts):
    opts = dict(factor=.5, patience=2, mode=mode) | opts
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.)
    ref = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, mode=mode, **{k:v for k,v in opts.items() if k not in ("monitor", "mode")})
    s,rng,seen = make_schedule("plateau", 1., 400, 10, **opts),np.random.default_rng(0),[]
    for e in range(1, 41):
        v = rng.uniform(.5, 1)
        s.listen(v, e*10); ref.step(v); opt.step()
        assert s.hypers(e*10) == dict(lr=opt.param_groups[0]["lr"])
        seen.append(opt.param_groups[0]["lr"])
        twin = make_schedule("plateau", 1., 400, 10, **opts) # a resumed run stands where this one does
        twin.load_state_dict(s.state_dict())
        assert twin.state_dict() == s.state_dict() and twin.hypers(0) == s.hypers(0)
        s = twin
    assert len(set(seen)) > 2

def test_plateau_state_is_plain(tmp_path):
    s = make_schedule("plateau", 1., 40, 10, mode="min"); s.listen(.5, 10)
    torch.save(s.state_dict(), tmp_path/"s.pth")
    assert torch.load(tmp_path/"s.pth", weights_only=True) == s.state_dict()


# ---------------------------------------------------------------- schedules: properties

warm = st.integers(0, 30)

@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(PURE+["plateau"]), lr=st.floats(1e-4, 10), total=st.integers(31, 300), per=st.integers(1, 40), w=warm)
def test_rates_stay_between_zero_and_the_peak(name, lr, total, per, w):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        s = make_schedule(name, lr, total, per, warmup_steps=w, **PLATEAU_MODE.get(name, {}))
    y = s.curve()
    assert (y >= 0).all() and (y <= lr*(1+1e-12)).all() and np.isfinite(y).all()
    assert s.hypers(-5) == s.hypers(0) and s.hypers(total+100) == s.hypers(total)
    assert [s.hypers(i)["lr"] for i in reversed(range(total+1))] == y[::-1].tolist() # pure: the order of asking does not matter

@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(["constant", "cosine", "warmup_cosine", "one_cycle"]), total=st.integers(40, 400), w=warm)
def test_smooth_schedules_are_continuous_and_end_where_they_say(name, total, w):
    y = lrs(name, total, warmup_steps=w)
    room = min(w or total, total-w)*(.25 if name == "one_cycle" else 1) # steps of the steepest part
    assert np.abs(np.diff(y)).max() <= 1.6/max(1, room) + 1e-12 # half a cosine over n steps moves at most pi/2n a step
    assert y[-1] == pytest.approx(dict(constant=1, cosine=0, warmup_cosine=1e-5, one_cycle=1e-5)[name], abs=1e-15)

@pytest.mark.parametrize("name", PURE+["plateau"])
def test_every_schedule_takes_a_warmup(name):
    lrs = lambda *a, **kw: make_schedule(name, 1., 200, 10, **({"step_size":8} if name == "step" else {}), **PLATEAU_MODE.get(name, {}), **kw).curve()
    plain,y = lrs(name, 200, 10),lrs(name, 200, 10, warmup_epochs=3, warmup_lr=1e-3)
    goal = 1/25 if name == "one_cycle" else 1
    np.testing.assert_allclose(y[:31], np.linspace(1e-3, goal, 31), rtol=1e-9)
    assert not np.allclose(plain[:30], y[:30])
    assert np.array_equal(lrs(name, 200, 10, warmup_steps=30), lrs(name, 200, 10, warmup_epochs=3))

ACTS = dict(cosine=dict(min_lr=.2), warmup_cosine=dict(min_lr=.2), step=dict(step_size=3, gamma=.5, min_lr=.05), multistep=dict(milestones=(.3,), gamma=.5, min_lr=.05),
            one_cycle=dict(pct_start=.5, div=2., div_final=2., moms=(.9, .8, .7)), plateau=dict(monitor="accuracy", mode="max", factor=.7, patience=3, threshold=.5, cooldown=9, min_lr=.5), constant={})

ACTS["reduce_lr_on_plateau"] = ACTS["plateau"]


@pytest.mark.parametrize("name", schedules.names())
def test_each_schedule_option_acts(name):
    assert set(ACTS[name]) == set(schedule_options(name)) # a new option needs its line here
    base = dict(step=dict(step_size=8), plateau=dict(mode="min"), reduce_lr_on_plateau=dict(mode="min")).get(name, {})
    def run(**kw):
        s,out = make_schedule(name, 1., 300, 10, **base | kw),[]
        for i in range(301):
            if i and i%10 == 0: s.listen(2. - .3*min(i/10, 3), i)
            out.append(list(s.hypers(i).values()))
        return np.array(out)
    for k,v in ACTS[name].items(): assert k == "monitor" or not np.allclose(run(), run(**{k:v})), k
    if "monitor" in ACTS[name]: assert make_schedule(name, 1., 300, 10, **base, monitor="accuracy").monitor == "accuracy" # which number a fit hands on
    w = dict(warmup_epochs=2)
    assert not np.allclose(run(**w), run(**w, warmup_lr=.01))

@pytest.mark.parametrize("kw,match", [
    (dict(name="cosin"), "unknown schedule 'cosin': did you mean 'cosine'"), (dict(gama=1), "has no option 'gama'.*did you mean 'gamma'"),
    (dict(lr=0), "lr=0 must be a positive"), (dict(lr=math.nan), "positive"), (dict(min_lr=2.), "min_lr=2.0 must lie between 0 and lr=1"),
    (dict(warmup_lr=2., warmup_epochs=1), "warmup_lr=2.0"), (dict(warmup_epochs=9), "does not end within"), (dict(warmup_steps=-1), "does not end within"),
    (dict(warmup_epochs=1, warmup_steps=2), "give one"), (dict(total_steps=0), "must be at least 1"), (dict(gamma=1.5), "gamma=1.5"), (dict(step_size=0), "above 0")])
def test_schedule_bad_input(kw, match):
    with pytest.raises(ValueError, match=match): make_schedule(**dict(name="step", lr=1., total_steps=90, steps_per_epoch=10) | kw)
    
def test_a_drop_that_never_acts_is_said():
    with pytest.warns(UserWarning, match="never acts"): make_schedule("multistep", .1, 90, milestones=(30, 60, 90))
    with pytest.warns(UserWarning, match="never acts"): make_schedule("step", .1, 20)
    with pytest.raises(ValueError, match="did you mean 'monitor'"): make_schedule("plateau", .1, 90, monitr="x")
    with pytest.raises(ValueError, match="unknown mode"): make_schedule("plateau", .1, 90, mode="least")
    with pytest.raises(ValueError, match="whether less or more of 'valid_loss' is better; give mode"): make_schedule("plateau", .1, 90)

def test_none_is_the_default():
    assert np.array_equal(lrs("multistep", 40, milestones=None, gamma=None), lrs("multistep", 40))

def test_scale_lr():
    assert scale_lr(5e-4, 1024, 512) == 1e-3 and scale_lr(3e-4, 64, 64) == 3e-4
    with pytest.raises(ValueError, match="base_batch=0"): scale_lr(.1, 64, 0)
