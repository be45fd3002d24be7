"MixUp and CutMix of images and targets: against a loop, against timm, and for each kind of task"
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_callback_mix import NO_BOX, slow_mix
from timm.data import Mixup
from tiny_tasks import classes

from vitnb.data.mix import MODES, MixPlan, beta_from, cut_boxes, draw_plan, mix_images
from vitnb.losses.base import make_loss
from vitnb.task import ClassMap, MultiLabel, Ordinal, Tasks, Value, make_task


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
    assert draw_plan(8, (8,8), 0, 0, 0, p=0, mode="elem").is_identity


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
        x,k,names = torch.randn(6,3,16,12),5,"abcde"
        y = torch.randint(0, 2, (6,k)) if multi_label else torch.randint(0, k, (6,))
        m = Mixup(*alphas, mode=mode, num_classes=k, label_smoothing=smoothing, prob=.8, multi_label=multi_label)
        plan,(tx,ty) = timm_plan(6, mode, m, x, y)
        assert torch.allclose(mix_images(x, plan), tx, atol=1e-6)
        soft = MultiLabel(names).mix(y, plan)[...,1] if multi_label else classes(k).mix(y, plan)
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


PLAN = MixPlan(np.array([.7,.2,.5,.2,.7]), np.repeat(NO_BOX, 5, 0))
SHARE = torch.tensor(PLAN.lam, dtype=torch.float32)


def test_targets_of_every_kind():
    y = torch.tensor([0,1,2,1,0])
    got = classes(3).mix(y, PLAN)
    hot,lam = F.one_hot(y, 3).float(),SHARE[:,None]
    want = lam*hot + (1-lam)*hot.flip(0)
    assert torch.allclose(got, want, atol=1e-6)
    assert torch.allclose(classes(3).mix(hot, PLAN), want, atol=1e-6) # soft labels stay soft labels
    values = torch.rand(5)
    assert torch.allclose(Value().mix(values, PLAN), SHARE*values + (1-SHARE)*values.flip(0), atol=1e-6)
    zones = Ordinal("abcdef", levels=4).mix(torch.randint(0, 4, (5,6)), PLAN)
    assert zones.shape == (5,6,4) and torch.allclose(zones.sum(-1), torch.ones(5,6))
    both = Tasks(a=classes(3), b=Value()).map(lambda task,t: task.mix(t, PLAN), dict(a=y, b=values))
    assert list(both) == ["a", "b"] and torch.allclose(both["a"], want, atol=1e-6)
    assert torch.equal(hot, F.one_hot(y, 3).float())


def test_a_map_is_pasted_where_images_are_pasted():
    "Pixel by pixel the class of the image it came from, and never an average"
    y = torch.randint(0, 4, (6,8,8))
    for step in range(20):
        plan = draw_plan(6, (8,8), 0, 0, step, mixup=None, mode="elem")
        got = ClassMap("abcd").mix(y, plan)
        assert got.dtype == y.dtype and torch.equal(got, mix_images(y[:,None].float(), plan)[:,0].long())
    plan = draw_plan(6, (8,8), 0, 0, 1, cutmix=None, mode="elem")
    masses = ClassMap("abcd").mix(y, plan)
    lam = torch.tensor(plan.lam, dtype=torch.float32)[:,None,None,None]
    hot = F.one_hot(y, 4).float()
    assert torch.allclose(masses, lam*hot + (1-lam)*hot.flip(0), atol=1e-6)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6))
@settings(max_examples=30, deadline=None)
def test_ordinal_mean_is_the_mean_level(levels):
    y,plan = torch.tensor(levels),MixPlan(np.array([.3]), NO_BOX)
    masses = Ordinal(levels=5).mix(y, plan)
    above = 1 - masses.cumsum(-1)[:,:-1] # "above level j"
    assert torch.allclose(above.sum(-1), .3*y + .7*y.flip(0), atol=1e-5) # their sum is the level
    assert (above.diff(dim=-1) <= 1e-6).all() # "above 2" never exceeds "above 1"
    assert torch.allclose((masses*torch.arange(5)).sum(-1), .3*y + .7*y.flip(0), atol=1e-5)


def each(loss, task, pred, target): return loss.each(task.rows(pred, target), *task.entries(target))


LINEAR = dict(class_=(classes(3), "cross_entropy", {}, 3), weighted=(classes(3), "cross_entropy", dict(weight=[.5,1.,3.]), 3), unknown=(classes(3, unknown=-1), "cross_entropy", {}, 3),
              focal=(classes(3, unknown=-1), "focal", dict(gamma=2.), 3), cumulative=(Ordinal(levels=3, cumulative=True, unknown=-1), "cumulative", {}, 2),
              labels=(MultiLabel("ab"), "binary_cross_entropy", dict(pos_weight=[2.,.5]), 2), unknown_labels=(MultiLabel("ab", unknown=-1), "binary_cross_entropy", {}, 2))

@pytest.mark.parametrize("case", LINEAR)
@pytest.mark.parametrize("smoothing", [0., .1])
def test_losses_are_linear_in_the_masses(case, smoothing):
    "The loss of a mixed target is the average of two losses, in which unknown entries are 0: also for losses that are no cross-entropy"
    task,name,kw,k = LINEAR[case]
    if smoothing and name == "cumulative": return
    loss = make_loss(name, smoothing or None, **kw)
    y = torch.randint(0, 2, (5,2)) if k == 2 and name.startswith("binary") else torch.tensor([0,1,2,1,2])
    if task.unknown is not None: y[2] = y[4] = -1
    pred = torch.randn(5, k, dtype=torch.float64)
    lam = torch.tensor(PLAN.lam).view(-1, *[1]*(y.ndim-1))
    want = lam*each(loss, task, pred, y) + (1-lam)*each(loss, task, pred, y.flip(0))
    assert torch.allclose(each(loss, task, pred, task.mix(y, PLAN)), want, atol=1e-6)


def test_unknown_entries_vanish():
    task,y = classes(3, unknown=-1),torch.tensor([0,1,-1,2,-1])
    pred = torch.randn(5,3, requires_grad=True)
    per_sample = -(task.mix(y, PLAN)*pred.log_softmax(-1)).sum(-1)
    ce = lambda t: F.cross_entropy(pred, t, ignore_index=-1, reduction="none")
    want = SHARE*ce(y) + (1-SHARE)*ce(y.flip(0))
    assert torch.allclose(per_sample, want, atol=1e-6)
    both = torch.tensor([0,-1,1,-1,2])
    soft = task.mix(both, PLAN)
    assert (soft[1] == 0).all() and (soft[3] == 0).all() # partners, both unknown
    loss = make_loss("cross_entropy", .1)(pred, soft)
    grad, = torch.autograd.grad(loss, pred)
    assert (grad[[1,3]] == 0).all() and (grad[[0,2,4]] != 0).any() # smoothing gives them nothing either
    assert (classes(3, unknown=0).encode(torch.tensor([0,1])) == torch.tensor([[0.,0,0],[0,1,0]])).all() # a class may be the unknown one
    values = Value(unknown=0).mix(torch.tensor([1.,float("nan"),3.,4.,float("nan")]), PLAN)
    assert values.isnan().tolist() == [True,True,False,True,True] # half of an unknown value is not known


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_of_mixed_targets_divides_by_what_is_known(mode):
    task,loss = classes(3, unknown=-1),make_loss("cross_entropy")
    pred,y = torch.randn(5,3),torch.tensor([0,-1,2,-1,1])
    plan = draw_plan(5, (8,8), 0, 0, 2, mode=mode)
    lam = torch.tensor(plan.lam if mode != "batch" else plan.lam.repeat(5), dtype=torch.float32)
    ce = lambda t: F.cross_entropy(pred, t, ignore_index=-1, reduction="none")
    known = (lam*(y != -1) + (1-lam)*(y != -1).flip(0)).sum() # the share of each sample that is known
    if mode != "elem": assert known.item() == pytest.approx(3)
    target,mask = task.entries(task.mix(y, plan))
    assert torch.allclose(loss(pred, target, mask), (lam*ce(y) + (1-lam)*ce(y.flip(0))).sum()/known, atol=1e-6)


@pytest.mark.parametrize("tasks,y,say", [
    (classes(3), torch.tensor([0,3]), "target 3 is not in 0..2"), (classes(3), torch.tensor([.5,1.]), "is no index"),
    (classes(3), torch.zeros(2, 3), "not one class a sample"), (dict(a=Value(), b=Value()), dict(c=torch.zeros(2)), "no task for the target 'c'"),
    (Ordinal("ab", levels=3), torch.zeros(2, 3).long(), "one level for each of 2 zones"), (ClassMap("ab"), torch.zeros(2).long(), "a class for each pixel")])
def test_bad_targets(tasks, y, say):
    with pytest.raises(ValueError, match=say): Tasks.of(tasks).check(y)
    with pytest.raises(ValueError, match="at least two"): classes(1)
    with pytest.raises(ValueError, match="did you mean 'ordinal'"): make_task(dict(kind="ordinl", levels=3))


def test_compiles_without_breaks():
    x = torch.randn(4,1,8,8)
    plan = draw_plan(4, (8,8), 0, 0, 1, mode="elem")
    net = torch.compile(lambda t: t*2, backend="eager", fullgraph=True)
    assert torch.allclose(net(mix_images(x, plan)), 2*mix_images(x, plan))
