"MixUp and CutMix: against timm, against a slow reference, and for each form of target"
import pickle
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from hypothesis import given, settings, strategies as st
from scipy import stats
from timm.data import Mixup
from torch import nn
from torch.utils.data import TensorDataset

from vitnb.callback.mix import MixCallback, pair_loss
from vitnb.data.mix import (MODES, Head, MixPlan, beta_from, cut_boxes, draw_plan, draw_plans, encode, mix_images, mix_targets, partner,
                            with_weights)

NO_BOX = np.zeros((1,4), int)


def slow_mix(x, plan):
    out = x.clone()
    for i in range(len(x)):
        k = i if len(plan.lam) > 1 else 0
        y0,y1,x0,x1 = plan.box[k]
        if (y1-y0)*(x1-x0): out[i,...,y0:y1,x0:x1] = x[-1-i,...,y0:y1,x0:x1]
        else: out[i] = x[i]*plan.lam[k] + x[-1-i]*(1-plan.lam[k])
    return out


# the functions

@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 9), h=st.integers(1, 12), w=st.integers(1, 12), mode=st.sampled_from(MODES), step=st.integers(0, 10**9),
       mixup=st.sampled_from([None,.2,1.]), cutmix=st.sampled_from([.3,1.]), p=st.sampled_from([.5,1.]))
def test_same_as_a_loop(n, h, w, mode, step, mixup, cutmix, p):
    x = torch.randn(n, 2, h, w, generator=torch.Generator().manual_seed(step))
    keep = x.clone()
    plan = draw_plan(n, (h,w), 1, 0, step, mixup=mixup, cutmix=cutmix, p=p, mode=mode)
    assert torch.allclose(mix_images(x, plan), slow_mix(x, plan), atol=1e-6)
    assert torch.equal(x, keep)
    assert ((plan.lam >= 0) & (plan.lam <= 1)).all() and len(plan.lam) == (1 if mode == "batch" else n)


@pytest.mark.parametrize("shape", [(4,3,8,8), (5,1,7,9), (3,2,6,4,5), (1,3,4,4), (2,6,6)])
def test_shapes(shape):
    x = torch.randn(shape)
    plan = draw_plan(shape[0], shape[-2:], 0, 0, 3, mode="elem")
    assert torch.allclose(mix_images(x, plan), slow_mix(x, plan), atol=1e-6)


def test_the_share_is_the_share_of_pixels():
    x = torch.cat([torch.zeros(4,1,16,16), torch.ones(4,1,16,16)])
    for step in range(20):
        plan = draw_plan(8, (16,16), 0, 0, step, mixup=None, mode="elem")
        own = mix_images(x, plan).mean((1,2,3)).sub(x[:,0,0,0]).abs()
        assert torch.allclose(1-own, torch.tensor(plan.lam, dtype=torch.float32), atol=1e-6)


def test_box_is_exact_and_clipped():
    x = torch.randn(2,3,32,32)
    for step in range(50):
        plan = draw_plan(2, (32,32), 0, 0, step, mixup=None)
        y0,y1,x0,x1 = plan.box[0]
        assert 0 <= y0 <= y1 <= 32 and 0 <= x0 <= x1 <= 32
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[y0:y1,x0:x1] = True
        assert torch.equal(mix_images(x, plan), torch.where(mask, x.flip(0), x)) # bits, not an average


def test_channels_last_and_half_stay():
    x = torch.randn(4,3,8,8).contiguous(memory_format=torch.channels_last)
    for mode in MODES: assert mix_images(x, draw_plan(4, (8,8), 0, 0, 1, mode=mode)).is_contiguous(memory_format=torch.channels_last)
    assert mix_images(x.bfloat16(), draw_plan(4, (8,8), 0, 0, 1)).dtype == torch.bfloat16


def test_distribution():
    for a in (.2, .8, 1., 3.):
        lam = np.array([draw_plan(2, (8,8), 5, 0, s, mixup=a, cutmix=None).lam[0] for s in range(800)])
        assert stats.kstest(lam, stats.beta(a, a).cdf).pvalue > 1e-3
    assert stats.kstest(beta_from(np.linspace(0, 1, 2001)[1:-1], .4), stats.beta(.4, .4).cdf).statistic < 2e-3
    box = np.array([draw_plan(2, (8,8), 0, 0, s, mixup=None).box[0] for s in range(400)])
    assert len(np.unique(box, axis=0)) > 100


def test_probabilities():
    lam = np.concatenate([draw_plan(64, (32,32), 0, 0, s, p=.3, cutmix=None, mode="elem").lam for s in range(40)])
    assert abs((lam < 1).mean() - .3) < .03
    box = np.concatenate([draw_plan(64, (32,32), 0, 0, s, switch_p=.8, mode="elem").box for s in range(40)])
    assert abs((box[:,1] > box[:,0]).mean() - .8) < .05
    assert draw_plan(8, (8,8), 0, 0, 0, p=0, mode="elem").idle


def test_modes():
    plans = {m:draw_plan(7, (32,32), 3, 1, 4, mode=m) for m in MODES}
    assert len(plans["batch"].lam) == 1
    assert (plans["pair"].lam == plans["pair"].lam[::-1]).all() and (plans["pair"].box == plans["pair"].box[::-1]).all()
    assert len(np.unique(plans["elem"].lam)) > 4


def test_every_key_acts():
    base = dict(n=4, size=(16,16), seed=0, epoch=0, step=0, mode="elem")
    a = draw_plan(**base)
    for change in (dict(seed=1), dict(epoch=1), dict(step=1), dict(mixup=.1), dict(cutmix=.1), dict(switch_p=0.), dict(switch_p=1.), dict(p=0.), dict(mode="pair"), dict(size=(17,16))):
        b = draw_plan(**{**base, **change})
        assert not (np.array_equal(a.lam, b.lam) and np.array_equal(a.box, b.box)), change
    torch.manual_seed(1)
    np.random.seed(1)
    assert np.array_equal(a.lam, draw_plan(**base).lam) # no generator has a say


@pytest.mark.parametrize("kw,say", [(dict(mixup=0), "above 0"), (dict(cutmix=-.5), "above 0"), (dict(mixup=float("inf")), "above 0"), (dict(mixup=float("nan")), "above 0"),
                                    (dict(mixup=None, cutmix=None), "nothing would be mixed"), (dict(p=1.5), "p=1.5"), (dict(switch_p=-1), "switch_p=-1"), (dict(mode="batc"), "did you mean")])
def test_bad_input(kw, say):
    with pytest.raises(ValueError, match=say): draw_plan(4, (8,8), 0, 0, 0, **kw)
    with pytest.raises(ValueError, match=say): MixCallback(**kw)


# against timm, with the numbers that timm drew

def timm_plan(n, mode, timm_mix, x, y):
    "Run timm's Mixup and rebuild its plan from what it drew"
    import timm.data.mixup as module
    real,log,params = module.cutmix_bbox_and_lam,[],[]
    def box_spy(*a, **kw):
        log.append(real(*a, **kw))
        return log[-1]
    def keep(f):
        def g(*a):
            lam,cut = f(*a)
            params.append((np.array(lam, dtype=np.float64, ndmin=1), np.array(cut, ndmin=1)))
            return lam,cut
        return g
    timm_mix._params_per_elem,timm_mix._params_per_batch = keep(timm_mix._params_per_elem),keep(timm_mix._params_per_batch)
    with mock.patch.object(module, "cutmix_bbox_and_lam", box_spy): out = timm_mix(x.clone(), y)
    lam,cut = params[0]
    box,it = np.zeros((len(lam),4), int),iter(log)
    for i in range(len(lam)):
        if cut[i] and lam[i] != 1: (y0,y1,x0,x1),lam[i] = next(it); box[i] = y0,y1,x0,x1
    if mode == "pair": lam,box = np.concatenate([lam, lam[::-1]]),np.concatenate([box, box[::-1]])
    return MixPlan(lam, box), out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alphas", [(1.,0.), (0.,1.), (.8,1.)])
@pytest.mark.parametrize("smoothing", [0., .1])
@pytest.mark.parametrize("multi_label", [False, True])
def test_same_as_timm(mode, alphas, smoothing, multi_label):
    for seed in range(4):
        np.random.seed(seed)
        torch.manual_seed(seed)
        x,k = torch.randn(6,3,16,12),5
        y = torch.randint(0, 2, (6,k)) if multi_label else torch.randint(0, k, (6,))
        m = Mixup(*alphas, mode=mode, num_classes=k, label_smoothing=smoothing, prob=.8, multi_label=multi_label)
        plan,(tx,ty) = timm_plan(6, mode, m, x, y)
        assert torch.allclose(mix_images(x, plan), tx, atol=1e-6)
        soft = mix_targets(y, plan, Head("dense") if multi_label else Head("class", k))
        soft = soft*(1-smoothing) + smoothing*(.5 if multi_label else 1/k) # smoothing is linear: it may follow the mixing, and is the loss's task
        assert torch.allclose(soft, ty, atol=1e-6)


def test_boxes_same_as_timm():
    from timm.data import mixup as module
    for seed in range(200):
        np.random.seed(seed)
        h,w,lam = np.random.randint(1, 40),np.random.randint(1, 40),np.random.rand()
        cy,cx = np.random.randint(h),np.random.randint(w)
        with mock.patch.object(module.np.random, "randint", side_effect=[cy, cx]): want,kept = module.cutmix_bbox_and_lam((3,h,w), lam)
        box,got = cut_boxes(np.array([lam]), np.array([cy]), np.array([cx]), (h,w))
        assert tuple(box[0]) == tuple(int(o) for o in want) and abs(got[0]-kept) < 1e-12


# targets

PLAN = MixPlan(np.array([.7,.2,.5,.2,.7]), np.repeat(NO_BOX, 5, 0))


def test_targets_of_every_form():
    y = torch.tensor([0,1,2,1,0])
    got = mix_targets(y, PLAN, Head("class", 3))
    hot = F.one_hot(y, 3).float()
    lam = torch.tensor(PLAN.lam, dtype=torch.float32)[:,None]
    want = lam*hot + (1-lam)*hot.flip(0)
    assert torch.allclose(got, want, atol=1e-6)
    assert torch.allclose(mix_targets(hot, PLAN, Head("dense")), want, atol=1e-6)
    assert mix_targets(torch.rand(5), PLAN, Head("dense")).shape == (5,)
    zones = mix_targets(torch.randint(0, 4, (5,6)), PLAN, Head("class", 4))
    assert zones.shape == (5,6,4) and torch.allclose(zones.sum(-1), torch.ones(5,6))
    pair = mix_targets((y, [hot]), PLAN, (Head("class", 3), [Head("dense")]))
    assert isinstance(pair, tuple) and isinstance(pair[1], list) and torch.allclose(pair[1][0], want, atol=1e-6)
    assert torch.equal(hot, F.one_hot(y, 3).float())


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6))
@settings(max_examples=30, deadline=None)
def test_ordinal_mean_is_the_mean_level(levels):
    y,plan = torch.tensor(levels),MixPlan(np.array([.3]), NO_BOX)
    got = mix_targets(y, plan, Head("ordinal", 5))
    assert torch.allclose(got.sum(-1), .3*y + .7*y.flip(0), atol=1e-5) # the sum of "above level j" is the level
    assert (got.diff(dim=-1) <= 1e-6).all() # "above 2" never exceeds "above 1"


def test_unknown_entries_vanish():
    y = torch.tensor([0,1,-1,2,-1])
    pred = torch.randn(5,3, requires_grad=True)
    per_sample = -(mix_targets(y, PLAN, Head("class", 3, ignore=-1))*pred.log_softmax(-1)).sum(-1)
    ce = lambda t: F.cross_entropy(pred, t, ignore_index=-1, reduction="none")
    lam = torch.tensor(PLAN.lam, dtype=torch.float32)
    want = lam*ce(y) + (1-lam)*ce(y.flip(0))
    assert torch.allclose(per_sample, want, atol=1e-6)
    both = torch.tensor([0,-1,1,-1,2])
    soft = mix_targets(both, PLAN, Head("class", 3, ignore=-1))
    assert (soft[1] == 0).all() and (soft[3] == 0).all() # partners, both unknown
    grad, = torch.autograd.grad(-(soft*pred.log_softmax(-1)).sum(), pred)
    assert (grad[[1,3]] == 0).all()
    assert (encode(torch.tensor([0,1]), Head("class", 3, ignore=0)) == torch.tensor([[0.,0,0],[0,1,0]])).all() # a class may be the unknown one
    with pytest.raises(ValueError, match="how='pair'"): mix_targets(y, PLAN, Head("ordinal", 3, ignore=-1))


@pytest.mark.parametrize("y,heads,say", [
    (torch.tensor([0,3]), Head("class", 3), "target 3 is not in 0..2"), (torch.tensor([.5,1.]), Head("class", 3), "Head\\('dense'\\)"),
    (dict(a=torch.zeros(2)), dict(b=Head("dense")), "names must agree"), ((torch.zeros(2),), (Head("dense"),)*2, "2 heads for 1"),
    (torch.zeros(2), (Head("dense"),), "single target")])
def test_bad_targets(y, heads, say):
    with pytest.raises(ValueError, match=say): mix_targets(y, MixPlan(np.array([.5]), NO_BOX), heads)
    with pytest.raises(ValueError, match="needs n"): Head("class")
    with pytest.raises(ValueError, match="did you mean"): Head("ordinl", 3)


# the callback

class Seen(Callback):
    order = 30
    def before_fit(self): self.log = []
    def before_batch(self): self.log.append((self.training, self.xb, self.yb))
    def after_backward(self): self.log[-1] += (self.learn.loss.item(),)


def tiny(*cbs, y=None, loss=None, n=22, bs=6, c=3, x=None, model=None):
    torch.manual_seed(0)
    x = torch.randn(n,1,6,6) if x is None else x
    y = torch.arange(n)%3 if y is None else y
    ds = list(zip(x, y)) if isinstance(y, list) else TensorDataset(x, *(y if isinstance(y, tuple) else (y,)))
    dls = DataLoaders(*(DataLoader(ds, bs=bs) for _ in range(2)))
    dls.n_inp = 1
    if c: dls.c = c
    return Learner(dls, model() if model else nn.Sequential(nn.Flatten(), nn.Linear(36,3)), loss_func=loss or nn.CrossEntropyLoss(), lr=.01, cbs=[*cbs, Seen()])


def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn


@pytest.mark.parametrize("mode", MODES)
def test_soft_and_pair_are_one_loss(mode):
    soft,pair = (fit(tiny(MixCallback(mode=mode, how=how, seed=4)), 2) for how in ("soft","pair"))
    assert np.allclose([o[3] for o in soft.seen.log if o[0]], [o[3] for o in pair.seen.log if o[0]], atol=1e-6)
    for a,b in zip(soft.model.parameters(), pair.model.parameters()): assert torch.allclose(a, b, atol=1e-6)


def test_loss_is_the_average_of_two_losses():
    learn = fit(tiny(MixCallback(mode="elem", seed=9), loss=CrossEntropyLossFlat()))
    _,xb,yb,loss = learn.seen.log[0]
    assert not yb[0].is_floating_point() # fastai's loss wants whole numbers: pairs, unasked
    torch.manual_seed(0)
    x = torch.randn(22,1,6,6)[:6]
    plan = draw_plan(6, (6,6), 9, 0, 0, mode="elem")
    assert torch.allclose(xb[0], mix_images(x, plan))


@pytest.mark.parametrize("mode", MODES)
def test_masked_pair_loss_divides_by_known(mode):
    ce = nn.CrossEntropyLoss(ignore_index=-1)
    pred,y = torch.randn(5,3),torch.tensor([0,-1,2,-1,1])
    plan = draw_plan(5, (8,8), 0, 0, 2, mode=mode)
    got = pair_loss(ce, pred, (y,), (partner(y),), plan, (y != -1).sum())
    lam = torch.tensor(plan.lam if mode != "batch" else plan.lam.repeat(5), dtype=torch.float32)
    each = lambda t: F.cross_entropy(pred, t, ignore_index=-1, reduction="none")
    assert torch.allclose(got.float(), (lam*each(y) + (1-lam)*each(y.flip(0))).sum()/3, atol=1e-6)
    assert ce.reduction == "mean"


def test_masked_targets_in_training():
    y = torch.arange(22)%3
    y[::4] = -1
    learn = fit(tiny(MixCallback(mode="elem", heads=Head("class", 3, ignore=-1)), y=y, loss=nn.CrossEntropyLoss(ignore_index=-1)))
    assert all(np.isfinite(o[3]) for o in learn.seen.log if o[0])
    with pytest.raises(ValueError, match="label smoothing"):
        fit(tiny(MixCallback(how="soft", heads=Head("class", 3, ignore=-1)), y=y, loss=nn.CrossEntropyLoss(ignore_index=-1, label_smoothing=.1)))


class Focal(nn.Module):
    "A loss that is not linear in its target"
    def __init__(self):
        super().__init__()
        self.reduction = "mean"
    def forward(self, pred, y):
        ce = F.cross_entropy(pred, y, reduction="none")
        loss = (1-torch.exp(-ce))**2*ce
        return loss if self.reduction == "none" else loss.mean()


def test_focal_by_pairs():
    loss = Focal()
    learn = fit(tiny(MixCallback(mode="elem", how="pair", seed=1), loss=loss))
    assert loss.reduction == "mean"
    w0 = tiny(loss=loss).model
    plan = draw_plan(6, (6,6), 1, 0, 0, mode="elem")
    torch.manual_seed(0)
    x,y = torch.randn(22,1,6,6)[:6],torch.arange(6)%3
    pred = w0(mix_images(x, plan))
    loss.reduction = "none"
    lam = torch.tensor(plan.lam, dtype=torch.float32)
    want = (lam*loss(pred, y) + (1-lam)*loss(pred, y.flip(0))).mean()
    assert abs(learn.seen.log[0][3] - want.item()) < 1e-6


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(36,3),nn.Linear(36,2)
    def forward(self, x): return self.a(x.flatten(1)),self.b(x.flatten(1))


def two_loss(pred, a, b): return F.cross_entropy(pred[0], a) + F.binary_cross_entropy_with_logits(pred[1], b)
def dict_loss(pred, y): return two_loss(pred, y["a"], y["b"])


def test_several_heads():
    ya,yb = torch.arange(22)%3,torch.randint(0, 2, (22,2))
    heads = (Head("class", 3), Head("dense"))
    soft = tiny(MixCallback(mode="elem", heads=heads), y=(ya,yb), loss=lambda p,a,b: two_loss(p, a, b.float()), model=TwoHeads)
    fit(soft)
    assert soft.seen.log[0][2][0].shape == (6,3) and soft.seen.log[0][2][1].dtype == torch.float32
    y = [dict(a=a, b=b.float()) for a,b in zip(ya, yb)]
    named = fit(tiny(MixCallback(mode="elem", heads=dict(a=heads[0], b=heads[1])), y=y, loss=dict_loss, model=TwoHeads))
    assert np.allclose([o[3] for o in soft.seen.log if o[0]], [o[3] for o in named.seen.log if o[0]], atol=1e-6)
    pair = fit(tiny(MixCallback(mode="batch", how="pair", heads=dict(a=heads[0], b=heads[1])), y=y, loss=dict_loss, model=TwoHeads))
    again = fit(tiny(MixCallback(mode="batch", how="soft", heads=dict(a=heads[0], b=heads[1])), y=y, loss=dict_loss, model=TwoHeads))
    assert np.allclose([o[3] for o in pair.seen.log if o[0]], [o[3] for o in again.seen.log if o[0]], atol=1e-6)


def test_multi_label_masked_by_pairs():
    "Single unknown labels of a multi-label target: the loss masks them, for both partners"
    class Masked(nn.Module):
        reduction = "mean"
        def forward(self, pred, y):
            known = y >= 0
            each = F.binary_cross_entropy_with_logits(pred, y.clamp(min=0).float(), reduction="none")*known
            return each if self.reduction == "none" else each.sum()/known.sum()
    y = torch.randint(-1, 2, (22,3))
    learn = fit(tiny(MixCallback(mode="elem", heads=Head("dense", ignore=-1), seed=2), y=y, loss=Masked()))
    plan = draw_plan(6, (6,6), 2, 0, 0, mode="elem")
    pred = tiny(loss=Masked()).model(mix_images(_first(), plan))
    lam,loss,t = torch.tensor(plan.lam, dtype=torch.float32)[:,None],Masked(),y[:6]
    loss.reduction = "none"
    want = (lam*loss(pred, t) + (1-lam)*loss(pred, t.flip(0))).sum()/(t >= 0).sum()
    assert abs(learn.seen.log[0][3] - want.item()) < 1e-6


def _first():
    torch.manual_seed(0)
    return torch.randn(22,1,6,6)[:6]


def test_validation_untouched_and_inputs_never_in_place():
    x = torch.randn(22,1,6,6)
    keep = x.clone()
    learn = fit(tiny(MixCallback(), x=x), 2)
    assert torch.equal(x, keep)
    valid = [o for o in learn.seen.log if not o[0]]
    assert torch.equal(torch.cat([o[1][0] for o in valid[:4]]), keep) and not valid[0][2][0].is_floating_point()


def test_guesses_and_refusals():
    soft = fit(tiny(MixCallback(), y=torch.rand(22,3).softmax(-1), c=None))
    assert soft.seen.log[0][2][0].shape == (6,3)
    with pytest.raises(ValueError, match="needs heads"): fit(tiny(MixCallback(), c=None))
    with pytest.raises(ValueError, match="needs heads"): fit(tiny(MixCallback(), y=torch.randint(0, 2, (22,3))))
    with pytest.raises(ValueError, match="mode='batch'"): fit(tiny(MixCallback(mode="elem", how="pair"), loss=lambda p,y,reduction="mean": F.cross_entropy(p, y)))


def test_second_input():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(36,3)
        def forward(self, x, z): return self.l((x+z).flatten(1)) if z.ndim == 4 else self.l(x.flatten(1))
    def learner(z):
        learn = tiny(MixCallback(), y=(z, torch.arange(22)%3), model=Two)
        learn.dls.n_inp = 2
        return learn
    same = torch.randn(22,1,6,6)
    learn = fit(learner(same))
    assert torch.allclose(learn.seen.log[0][1][1], mix_images(same[:6], draw_plan(6, (6,6), 42, 0, 0)))
    with pytest.raises(ValueError, match="cannot be mixed in the same way"): fit(learner(torch.randn(22,4)))


def test_no_fastai_subclass_reaches_the_model():
    from fastai.torch_core import TensorBase
    class Kind(Callback):
        order = 40
        def before_batch(self): self.kinds = [type(o) for o in (*self.xb, *self.yb)]
    learn = tiny(MixCallback(mode="elem"), Kind(), x=TensorBase(torch.randn(22,1,6,6)), y=TensorBase(torch.arange(22)%3))
    assert fit(learn).kind.kinds == [torch.Tensor, torch.Tensor]


class Stop(Callback):
    order = 20
    def __init__(self, ex, event): self.ex,self.event = ex,event
    def __call__(self, name):
        if name == self.event and self.training and self.train_iter == 2: raise self.ex
        return super().__call__(name)


@pytest.mark.parametrize("ex", [KeyboardInterrupt, RuntimeError, CancelFitException])
@pytest.mark.parametrize("event", ["before_batch","after_loss","before_step"])
def test_no_trace_after_an_interruption(ex, event):
    "Also on a plain Learner, which cleans nothing up after an ordinary exception"
    loss = CrossEntropyLossFlat()
    learn = tiny(MixCallback(mode="elem"), Stop(ex("stop"), event), loss=loss)
    if ex is CancelFitException: fit(learn)
    else:
        with pytest.raises(ex): fit(learn)
    assert learn.loss_func is loss and loss.reduction == "mean"
    learn.remove_cbs([learn.mix, learn.stop])
    fit(learn)
    assert not learn.seen.log[0][2][0].is_floating_point()


def test_deterministic_and_pickles():
    a,b = (fit(tiny(MixCallback(mode="elem", seed=s)), 2) for s in (5,5))
    assert all(torch.equal(p, q) for p,q in zip(a.model.parameters(), b.model.parameters()))
    c = fit(tiny(MixCallback(mode="elem", seed=6)), 2)
    assert not torch.equal(a.model[1].weight, c.model[1].weight)
    again = pickle.loads(pickle.dumps(a.mix))
    assert again.plan is None and again.kw == a.mix.kw and again.seed == 5


class From(DataLoader):
    "A loader that can begin later, as vitnb's own"
    start = 0
    def __iter__(self):
        skip,self.start = self.start,0
        for i,b in enumerate(super().__iter__()):
            if i >= skip: yield b


def vit(*cbs, seed=7, **kw):
    core = pytest.importorskip("vitnb.learner.core")
    base = tiny()
    dls = DataLoaders(*(From(dl.dataset, bs=6) for dl in base.dls.loaders))
    dls.c = 3
    return core.VitLearner(dls, base.model, nn.CrossEntropyLoss(), lr=.01, precision="fp32", seed=seed, cbs=[*cbs, Seen()])


def test_vit_learner_seed_and_epochs():
    a,b,c = (fit(vit(MixCallback(mode="elem"), seed=s)) for s in (7,7,8))
    assert torch.equal(a.seen.log[0][2][0], b.seen.log[0][2][0]) and not torch.equal(a.seen.log[0][2][0], c.seen.log[0][2][0])
    assert torch.allclose(a.seen.log[0][2][0], mix_targets(torch.arange(6)%3, draw_plan(6, (6,6), 7, 0, 0, mode="elem"), Head("class", 3)))
    first = a.seen.log[0][2][0]
    assert not torch.equal(first, fit(a).seen.log[0][2][0]) # a second fit goes on, it does not repeat the first


@pytest.mark.parametrize("at", [2,4,6])
def test_resume_in_the_middle(at, tmp_path):
    class Save(Callback):
        order = 100
        def after_batch(self):
            if self.training and self.train_iter == at: torch.save(self.learn.training_state(), tmp_path/"ck.pth")
    whole,rest = fit(vit(MixCallback(mode="elem"), Save()), 2),vit(MixCallback(mode="elem"))
    with rest.no_bar(), rest.no_logging(): rest.fit(2, resume=torch.load(tmp_path/"ck.pth", weights_only=True))
    assert all(torch.equal(p, q) for p,q in zip(whole.model.parameters(), rest.model.parameters()))


def test_compiles_without_breaks():
    x = torch.randn(4,1,8,8)
    plan = draw_plan(4, (8,8), 0, 0, 1, mode="elem")
    net = torch.compile(lambda t: t*2, backend="eager", fullgraph=True)
    assert torch.allclose(net(mix_images(x, plan)), 2*mix_images(x, plan))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mixup,cutmix", [(.8, 1.), (None, 1.), (.4, None)])
def test_several_plans_at_once_are_those_of_each_step(mode, mixup, cutmix):
    kw = dict(mixup=mixup, cutmix=cutmix, p=.8, mode=mode)
    many,size = draw_plans(7, (9,5), 42, 3, range(4, 20), **kw),(9,5)
    x = torch.rand(7, 3, *size)
    for step,plan,weighed in zip(range(4, 20), many, with_weights(many, size)):
        one = draw_plan(7, size, 42, 3, step, **kw)
        assert (plan.lam == one.lam).all() and (plan.box == one.box).all() and plan.box.shape == one.box.shape and plan.idle == one.idle
        assert (weighed.weight is None) == (mode == "batch")
        assert torch.equal(mix_images(x, weighed), mix_images(x, one)) and weighed.rows(np.array([1])).weight is None
    assert with_weights(many, size, room=10) is many
