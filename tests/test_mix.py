"MixUp and CutMix: against timm, against a slow reference, and for each kind of task"
import pickle
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.optimizer import OptimWrapper
from hypothesis import given, settings, strategies as st
from scipy import stats
from timm.data import Mixup
from torch import nn

from tiny_tasks import TwoHeads, classes, fit, task_learner, weights
from vitnb.callback.accumulate import Accumulate
from vitnb.callback.mix import MixCallback
from vitnb.callback.pretext import Pretext, fold_views, unfold_views
from vitnb.data.mix import MODES, MixPlan, beta_from, cut_boxes, draw_plan, mix_images
from vitnb.data.sample import Batch
from vitnb.data.shard import shard
from vitnb.learner.loop import SingleProcess
from vitnb.losses.base import add_terms, make_loss, weigh
from vitnb.losses.objective import make_objective
from vitnb.task import ClassMap, MultiLabel, Ordinal, Tasks, Value, make_task

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


# targets

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


# pasted and averaged targets in one step

W = [.2,1.,5.]
PASTE,AVERAGE,NOTHING = MixPlan(np.array([.75]), np.array([[0,2,0,2]])),MixPlan(np.array([.6]), NO_BOX),MixPlan(np.array([1.]), NO_BOX)
STEPS = dict( # a task, its targets of images of 4×4 pixels, the shape of a prediction, and how its classes are weighed
    class_=(classes(3, unknown=-1), lambda g: torch.randint(-1, 3, (8,), generator=g), (3,), dict(weight=W)),
    focal=(classes(3, unknown=-1), lambda g: torch.randint(-1, 3, (8,), generator=g), (3,), dict(loss="focal", weight=W)),
    combined=(classes(3, unknown=-1), lambda g: torch.randint(-1, 3, (8,), generator=g), (3,), dict(loss="combined", weight=W)),
    levels=(Ordinal("lr", levels=3, unknown=-1), lambda g: torch.randint(-1, 3, (8,2), generator=g), (2,3), dict(weight=W)),
    cumulative=(Ordinal("lr", levels=3, unknown=-1, cumulative=True), lambda g: torch.randint(-1, 3, (8,2), generator=g), (2,2), dict(weight=W)),
    abstain=(Ordinal("lr", levels=2, unknown=-1, abstain=True), lambda g: torch.randint(-1, 2, (8,2), generator=g), (2,3), dict(weight=W)),
    map=(ClassMap("abc", unknown=-1), lambda g: torch.randint(-1, 3, (8,4,4), generator=g), (3,4,4), dict(weight=W)),
    labels=(MultiLabel("abc", unknown=-1), lambda g: torch.randint(-1, 2, (8,3), generator=g), (3,), dict(pos_weight=W)),
    value=(Value(), lambda g: torch.rand(8, generator=g), (1,), {}))


def parts_of_a_step(case):
    "Three batches of a step, mixed by a pasting, an averaging and an idle plan: predictions, targets, and all that in one batch"
    task,draw,shape,kw = STEPS[case]
    g = torch.Generator().manual_seed(3)
    batches = [(torch.randn(8, *shape, generator=g), task.mix(draw(g), plan)) for plan in (PASTE, AVERAGE, NOTHING)]
    objective = make_objective(Tasks.of(task), kw.get("loss"), label_smoothing=None, loss_kw={k:v for k,v in kw.items() if k != "loss"})
    whole = torch.cat([p for p,_ in batches]),torch.cat([task.encode(y) for _,y in batches])
    return objective,batches,whole


def joined(objective, batches):
    "The loss of a step of several batches, divided once"
    terms = {}
    for pred,y in batches: terms = add_terms(terms, objective.terms(pred, dict(target=y)))
    return weigh(terms, objective.weights)


@pytest.mark.parametrize("case", STEPS)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_of_pasted_and_averaged_batches_is_one_batch(case, world):
    "On any number of positions: pairs of partners stay together, sums and counts add up to those of all masses at once"
    objective,batches,whole = parts_of_a_step(case)
    shares = [(p[shard(8, r, world)], y[shard(8, r, world)]) for p,y in batches for r in range(world)]
    want = joined(objective, [whole])
    torch.testing.assert_close(joined(objective, shares), want)
    counts = {}
    for _,y in shares: counts = add_terms(counts, {k:(0, n) for k,n in objective.counts(dict(target=y)).items()})
    for k,n in objective.counts(dict(target=whole[1])).items(): assert float(counts[k][1]) == pytest.approx(float(n), rel=1e-5)


def test_the_weighted_mass_is_what_a_map_is_divided_by():
    "Pixel by pixel: class weights times masses, whether pasted or averaged"
    objective,batches,(pred,masses) = parts_of_a_step("map")
    assert not batches[0][1].is_floating_point() and batches[1][1].is_floating_point() # both kinds are there
    total = count = 0.
    for logits,m in zip(pred.movedim(1, -1).reshape(-1, 3).double(), masses.reshape(-1, 3).double()):
        total += -sum(w*share*logits.log_softmax(0)[c] for c,(w,share) in enumerate(zip(W, m)))
        count += sum(w*share for w,share in zip(W, m))
    assert joined(objective, batches).item() == pytest.approx((total/count).item(), rel=1e-5)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_accumulated_batches_of_both_kinds_make_the_update_of_one(k):
    "By the plans that the callback draws for a map with class weights: the gradient of all masses, divided once"
    y = torch.randint(-1, 3, (24,6,6), generator=torch.Generator().manual_seed(2))
    kw = dict(y=y, tasks=ClassMap("abc", unknown=-1), n=24, model=lambda: nn.Conv2d(1, 3, 1), loss_kw=dict(weight=W), opt_func=sgd)
    learn,twin = tiny(MixCallback(seed=1), Accumulate(k), **kw),tiny(**kw)
    opt,task,step,kinds = twin.opt_func(twin.model, lr=.01),ClassMap("abc", unknown=-1),[],set()
    for i,(x,t) in enumerate(twin.dls.train):
        plan = draw_plan(6, (6,6), 1, 0, i)
        kinds.add(plan.pastes)
        step.append((mix_images(x, plan), task.encode(task.mix(t, plan))))
        if len(step) < k and i < 3: continue
        logp,m = twin.model(torch.cat([a for a,_ in step])).log_softmax(1).movedim(1, -1),torch.cat([b for _,b in step])
        w = torch.tensor(W)
        (-(w*m*logp).sum()/(w*m).sum()).backward()
        opt.step()
        opt.zero_grad()
        step = []
    fit(learn)
    assert kinds == {True, False} and torch.allclose(weights(learn), weights(twin), atol=1e-6)


@pytest.mark.parametrize("tasks,y,say", [
    (classes(3), torch.tensor([0,3]), "target 3 is not in 0..2"), (classes(3), torch.tensor([.5,1.]), "is no index"),
    (classes(3), torch.zeros(2, 3), "not one class a sample"), (dict(a=Value(), b=Value()), dict(c=torch.zeros(2)), "no task for the target 'c'"),
    (Ordinal("ab", levels=3), torch.zeros(2, 3).long(), "one level for each of 2 zones"), (ClassMap("ab"), torch.zeros(2).long(), "a class for each pixel")])
def test_bad_targets(tasks, y, say):
    with pytest.raises(ValueError, match=say): Tasks.of(tasks).check(y)
    with pytest.raises(ValueError, match="at least two"): classes(1)
    with pytest.raises(ValueError, match="did you mean 'ordinal'"): make_task(dict(kind="ordinl", levels=3))


# the callback

class Seen(Callback):
    order = 30
    def before_fit(self): self.log = []
    def before_batch(self): self.log.append((self.training, self.xb, self.yb))
    def after_backward(self): self.log[-1] += (self.learn.loss.item(),)


def sgd(model, lr, **kw): return OptimWrapper(list(model.parameters()), opt=torch.optim.SGD, lr=lr)


def tiny(*cbs, y=None, tasks=None, n=22, bs=6, x=None, model=None, **kw):
    torch.manual_seed(0)
    x = torch.randn(n,1,6,6) if x is None else x
    y = torch.arange(n)%3 if y is None else y
    return task_learner(x, y, tasks or classes(3), model() if model else nn.Sequential(nn.Flatten(), nn.Linear(36,3)), *cbs, Seen(), bs=bs, **kw)


def losses(learn): return [o[3] for o in learn.seen.log if o[0]]
def first_images():
    torch.manual_seed(0)
    return torch.randn(22,1,6,6)[:6]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_training_is_that_of_a_loop_written_by_hand(mode, loss):
    "Two epochs, in each step the average of the losses with both targets"
    learn = tiny(MixCallback(mode=mode, seed=4), loss=loss)
    twin = tiny()
    opt = twin.opt_func(twin.model, lr=.01)
    criterion,seen = make_loss(loss, reduction="none"),[]
    for epoch in range(2):
        for step,(x,y) in enumerate(twin.dls.train):
            plan = draw_plan(len(x), (6,6), 4, epoch, step, mode=mode)
            lam = torch.tensor(plan.lam, dtype=torch.float32)
            pred = twin.model(mix_images(x, plan))
            value = (lam*criterion(pred, y) + (1-lam)*criterion(pred, y.flip(0))).mean()
            value.backward()
            opt.step()
            opt.zero_grad()
            seen.append(value.item())
    fit(learn, 2)
    assert np.allclose(losses(learn), seen, atol=1e-6)
    assert torch.allclose(weights(learn), weights(twin), atol=1e-6)


def test_the_images_are_those_of_the_plan_and_the_targets_masses():
    learn = fit(tiny(MixCallback(mode="elem", seed=9)))
    _,xb,yb,loss = learn.seen.log[0]
    plan = draw_plan(6, (6,6), 9, 0, 0, mode="elem")
    assert torch.allclose(xb[0], mix_images(first_images(), plan))
    assert torch.allclose(yb[0], classes(3).mix(torch.arange(6)%3, plan))


def test_a_loss_of_torch_takes_the_masses():
    mine,torchs = (fit(tiny(MixCallback(mode="elem", seed=1), loss=loss), 2) for loss in (None, nn.CrossEntropyLoss()))
    assert np.allclose(losses(mine), losses(torchs), atol=1e-6)


def test_masked_targets_in_training():
    y = torch.arange(22)%3
    y[::4] = -1
    for smoothing in (None, .1):
        learn = fit(tiny(MixCallback(mode="elem"), y=y, tasks=classes(3, unknown=-1), label_smoothing=smoothing))
        assert all(np.isfinite(o) for o in losses(learn))
    nothing = fit(tiny(MixCallback(mode="elem"), y=torch.full((22,), -1), tasks=classes(3, unknown=-1)))
    assert losses(nothing) == [0.]*4


def test_several_tasks():
    "Each is mixed by its own rule with one plan, and their losses add up"
    y = dict(a=torch.arange(22)%3, b=torch.randint(0, 2, (22,2)))
    tasks = dict(a=classes(3), b=MultiLabel("xy"))
    learn = fit(tiny(MixCallback(mode="elem", seed=3), y=y, tasks=tasks, model=lambda: TwoHeads(36, a=3, b=2), task_weights=dict(b=.5)))
    seen = learn.seen.log[0][2][0]
    assert seen["a"].shape == (6,3) and seen["b"].shape == (6,2,2)
    plan = draw_plan(6, (6,6), 3, 0, 0, mode="elem")
    pred = tiny(y=y, tasks=tasks, model=lambda: TwoHeads(36, a=3, b=2)).model(mix_images(first_images(), plan))
    soft = tasks["b"].mix(y["b"][:6], plan)[...,1]
    want = F.cross_entropy(pred["a"], tasks["a"].mix(y["a"][:6], plan)) + .5*F.binary_cross_entropy_with_logits(pred["b"], soft)
    assert losses(learn)[0] == pytest.approx(want.item(), abs=1e-6)


def test_unknown_labels_of_several():
    "Single unknown labels of a sample: masked for both partners"
    y,task = torch.randint(-1, 2, (22,3)),MultiLabel("abc", unknown=-1)
    learn = fit(tiny(MixCallback(mode="elem", seed=2), y=y, tasks=task))
    plan = draw_plan(6, (6,6), 2, 0, 0, mode="elem")
    pred = tiny(y=y, tasks=task).model(mix_images(first_images(), plan))
    lam,t = torch.tensor(plan.lam, dtype=torch.float32)[:,None],y[:6]
    def masked(t): return F.binary_cross_entropy_with_logits(pred, t.clamp(min=0).float(), reduction="none")*(t >= 0)
    known = (lam*(t >= 0) + (1-lam)*(t >= 0).flip(0)).sum()
    want = (lam*masked(t) + (1-lam)*masked(t.flip(0))).sum()/known
    assert losses(learn)[0] == pytest.approx(want.item(), abs=1e-6)


def test_validation_untouched_and_inputs_never_in_place():
    x = torch.randn(22,1,6,6)
    keep = x.clone()
    learn = fit(tiny(MixCallback(), x=x), 2)
    assert torch.equal(x, keep)
    valid = [o for o in learn.seen.log if not o[0]]
    assert torch.equal(torch.cat([o[1][0] for o in valid[:4]]), keep) and not valid[0][2][0].is_floating_point()


def test_soft_labels_and_a_refusal():
    soft = fit(tiny(MixCallback(), y=torch.rand(22,3).softmax(-1)))
    assert soft.seen.log[0][2][0].shape == (6,3)
    without = tiny(MixCallback())
    without.tasks = Tasks()
    with pytest.raises(ValueError, match="must know what the targets mean"): fit(without)
    assert without.opt_steps == 0


def test_second_input():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(36,3)
        def forward(self, x, z): return self.l((x+z).flatten(1)) if z.ndim == 4 else self.l(x.flatten(1))
    def learner(z): return tiny(MixCallback(), y=(z, torch.arange(22)%3), model=Two, n_inp=2, seed=42)
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


# views, on one position or several

class Part(SingleProcess):
    "The answers of one of several processes, without any"
    def __init__(self, n, rank, world): self.n,self.rank,self.world = n,rank,world
    def whole(self, n): return self.n
    def positions(self, n): return shard(n, self.rank, self.world)


class Views(Pretext):
    "Tell nothing; give the model the views as they come, or folded into the batch"
    name = "views"
    def __init__(self, fold, odd=False):
        super().__init__()
        self.fold,self.odd = fold,odd
    def prepare(self, learn, batch):
        x = fold_views(batch["image"]) if self.fold else batch["image"]
        return Batch(dict(image=x[1:] if self.odd else x))


def mixed_views(x, pretext, mode, step=3, parallel=None):
    "What the model would see of views (B,V,C,H,W)"
    mix,learn = MixCallback(mode=mode, seed=4),SimpleNamespace(pretext=pretext, tasks=Tasks(), seed=1, epochs_done=2, iter=step, parallel=parallel or SingleProcess())
    mix.learn,learn.batch = learn,Batch(dict(image=x))
    learn.batch = pretext.prepare(learn, learn.batch)
    mix.before_batch()
    return learn.batch["image"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_views_are_mixed_alike_on_any_number_of_positions(mode, fold, views, world):
    "Each position has whole pairs of samples, and its rows are those of the whole batch, bit for bit"
    x = torch.randn(8, views, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    by_sample = (lambda o: unfold_views(o, views)) if fold else (lambda o: o)
    for step in range(4):
        whole = by_sample(mixed_views(x, Views(fold), mode, step))
        for rank in range(world):
            mine = shard(8, rank, world)
            assert torch.equal(by_sample(mixed_views(x[mine], Views(fold), mode, step, Part(8, rank, world))), whole[mine])


@pytest.mark.parametrize("mode", MODES)
def test_a_folded_view_is_a_row_and_an_unfolded_one_goes_with_its_sample(mode):
    "Against one image after another"
    x = torch.randn(4, 3, 2, 6, 6, generator=torch.Generator().manual_seed(2))
    folded,plan = mixed_views(x, Views(True), mode),draw_plan(12, (6,6), 4, 2, 3, mode=mode)
    assert torch.allclose(folded, slow_mix(x.flatten(0, 1), plan), atol=1e-6)
    kept,plan = mixed_views(x, Views(False), mode),draw_plan(4, (6,6), 4, 2, 3, mode=mode)
    assert torch.allclose(kept, slow_mix(x, plan), atol=1e-6)


def test_rows_that_belong_to_no_sample_are_refused_across_positions():
    x = torch.randn(4, 2, 1, 6, 6)
    assert len(mixed_views(x, Views(True, odd=True), "elem")) == 7
    with pytest.raises(ValueError, match="7 images of 4 samples cannot be mixed in several processes"): mixed_views(x, Views(True, odd=True), "elem", parallel=Part(8, 0, 2))


class Stop(Callback):
    order = 20
    def __init__(self, ex, event): self.ex,self.event = ex,event
    def __call__(self, name):
        if name == self.event and self.training and self.train_iter == 2: raise self.ex
        return super().__call__(name)


@pytest.mark.parametrize("ex", [KeyboardInterrupt, RuntimeError, CancelFitException])
@pytest.mark.parametrize("event", ["before_batch","after_loss","before_step"])
def test_no_trace_after_an_interruption(ex, event):
    learn = tiny(MixCallback(mode="elem"), Stop(ex("stop"), event))
    loss = learn.loss_func
    if ex is CancelFitException: fit(learn)
    else:
        with pytest.raises(ex): fit(learn)
    assert learn.loss_func is loss and loss.reduction == "mean"
    learn.remove_cbs([learn.mix, learn.stop])
    fit(learn)
    assert not learn.seen.log[0][2][0].is_floating_point()


def test_deterministic_and_pickles():
    a,b,c = (fit(tiny(MixCallback(mode="elem", seed=s)), 2) for s in (5,5,6))
    assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(c))
    mix = a.mix
    a.remove_cb(mix) # a Learner is not read from a pickle
    again = pickle.loads(pickle.dumps(mix))
    assert again.kw == mix.kw and again.seed == 5


def test_the_learners_seed_and_epochs():
    a,b,c = (fit(tiny(MixCallback(mode="elem"), seed=s)) for s in (7,7,8))
    assert torch.equal(a.seen.log[0][2][0], b.seen.log[0][2][0]) and not torch.equal(a.seen.log[0][2][0], c.seen.log[0][2][0])
    assert torch.allclose(a.seen.log[0][2][0], classes(3).mix(torch.arange(6)%3, draw_plan(6, (6,6), 7, 0, 0, mode="elem")))
    first = a.seen.log[0][2][0]
    assert not torch.equal(first, fit(a).seen.log[0][2][0]) # a second fit goes on, it does not repeat the first


@pytest.mark.parametrize("at", [2,4,6])
def test_resume_in_the_middle(at, tmp_path):
    class Save(Callback):
        order = 100
        def after_batch(self):
            if self.training and self.train_iter == at: torch.save(self.learn.training_state(), tmp_path/"ck.pth")
    whole,rest = fit(tiny(MixCallback(mode="elem"), Save()), 2),tiny(MixCallback(mode="elem"))
    fit(rest, 2, resume=torch.load(tmp_path/"ck.pth", weights_only=True))
    assert torch.equal(weights(whole), weights(rest))
    with pytest.raises(ValueError, match="mixup"): fit(tiny(MixCallback(mixup=.3, mode="elem")), 2, resume=torch.load(tmp_path/"ck.pth", weights_only=True))


def test_compiles_without_breaks():
    x = torch.randn(4,1,8,8)
    plan = draw_plan(4, (8,8), 0, 0, 1, mode="elem")
    net = torch.compile(lambda t: t*2, backend="eager", fullgraph=True)
    assert torch.allclose(net(mix_images(x, plan)), 2*mix_images(x, plan))
