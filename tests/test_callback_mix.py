"MixUp and CutMix: against timm, against a slow reference, and for each kind of task"
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.optimizer import OptimWrapper
from tiny_tasks import TwoHeads, classes, fit, task_learner, weights
from torch import nn

from vitnb.callback.accumulate import Accumulate
from vitnb.callback.mix import MixCallback
from vitnb.callback.pretext import Pretext, fold_views, unfold_views
from vitnb.data.mix import MODES, MixPlan, draw_plan, mix_images
from vitnb.data.sample import Batch
from vitnb.data.shard import shard
from vitnb.learner.loop import SingleProcess
from vitnb.losses.base import add_terms, make_loss, weigh
from vitnb.losses.objective import make_objective
from vitnb.task import ClassMap, MultiLabel, Ordinal, Tasks, Value

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

@pytest.mark.parametrize("kw,say", [(dict(mixup=0), "above 0"), (dict(cutmix=-.5), "above 0"), (dict(mixup=float("inf")), "above 0"), (dict(mixup=float("nan")), "above 0"),
                                    (dict(mixup=None, cutmix=None), "nothing would be mixed"), (dict(p=1.5), "p=1.5"), (dict(switch_p=-1), "switch_p=-1"), (dict(mode="batc"), "did you mean")])
def test_bad_input(kw, say):
    with pytest.raises(ValueError, match=say): draw_plan(4, (8,8), 0, 0, 0, **kw)
    with pytest.raises(ValueError, match=say): MixCallback(**kw)


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
