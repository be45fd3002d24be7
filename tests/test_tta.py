"Test-time augmentation: what cells of the notebook do not show"
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitnb.core import set_seed
from vitnb.data.loader import image_loaders
from vitnb.data.sample import Batch
from vitnb.data.sets import load_set
from vitnb.learner.core import vit_learner
from vitnb.learner.predict import predict_split
from vitnb.learner.tta import mean_nll, predict_tta, tta_mode, view_scores
from vitnb.learner.views import TTA, apply_view, pick_views, view_sets, views
from vitnb.losses.objective import make_objective
from vitnb.metrics.base import make_task_metrics
from vitnb.task import MOVES, ClassMap, MultiLabel, OneClass, Ordinal, Tasks, Value

SWAP = [1, 0, 3, 2, 5, 4]
CLASSES = OneClass(("a", "b"))
LABELS = MultiLabel(("a", "b"))
COLOURS = OneClass(("red", "green", "blue"))


def zones(n=6, unknown=None, **flips): return Ordinal([f"zone {i}" for i in range(n)], levels=3, unknown=unknown, flips=flips)


@pytest.fixture(scope="module")
def learn():
    set_seed(1)
    dls = image_loaders(load_set("digits", limit=12), bs=32, augment="none", seed=1, device="cpu")
    learn = vit_learner(dls, "swin_micro", device="cpu", precision="fp32", seed=1)
    learn.fit(1)
    return learn


class Zones(nn.Module):
    "Mean colours of three rows of two zones, (B,6,3)"
    def forward(self, x): return F.adaptive_avg_pool2d(x, (3, 2)).flatten(2).transpose(1, 2)


class Table(nn.Module):
    "Given logits, whatever the image, one set for each call in turn"
    def __init__(self, *logits):
        super().__init__()
        self.logits,self.n = logits,-1
    def forward(self, x):
        self.n += 1
        return self.logits[self.n % len(self.logits)]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_identity_alone_is_predict_split(learn, split):
    for a,b in zip(predict_tta(learn, split, "none"), predict_split(learn, split)): assert a.dtype == b.dtype and torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", view_sets)
def test_a_learner_whose_model_is_the_mean_agrees_with_predict_tta(learn, name):
    probs,y = predict_tta(learn, "valid", name)
    model = learn.model
    with tta_mode(learn, name):
        assert torch.allclose(predict_split(learn, "valid")[0], probs, atol=1e-6)
        loss,acc,*_ = learn.validate()
    assert learn.model is model
    assert loss == pytest.approx(mean_nll(probs, y), abs=1e-5) and acc == pytest.approx((probs.argmax(1) == y).float().mean().item(), abs=1e-6)


def test_the_mean_is_that_of_the_views_probabilities(learn):
    each = [predict_tta(learn, "test", [o])[0] for o in pick_views("d4")]
    assert torch.allclose(torch.stack(each).mean(0), predict_tta(learn, "test", "d4")[0], atol=1e-6)


def test_probabilities_are_averaged_and_not_logits():
    "softmax(ln 9, 0) = (.9, .1), softmax(0, 0) = (.5, .5): mean .7; the mean of logits would give softmax(ln 3, 0) = .75"
    a,b = torch.tensor([[9., 1.]]).log(),torch.zeros(1, 2)
    p = TTA(Table(a, b), ["identity", "hflip"], CLASSES)(torch.zeros(1, 3, 4, 4)).softmax(-1)
    assert torch.allclose(p, torch.tensor([[.7, .3]]), atol=1e-6)
    q = TTA(Table(a, b), ["identity", "hflip"], LABELS)(torch.zeros(1, 3, 4, 4)).sigmoid()
    assert torch.allclose(q, torch.tensor([[.7, .5]]), atol=1e-6)


def test_the_log_of_the_mean_does_not_underflow():
    z = TTA(nn.Identity(), "flip", CLASSES).mean([torch.tensor([[200., 0.]]), torch.tensor([[220., 0.]])])
    assert z[0,1].item() == pytest.approx(-200 + torch.tensor(.5).log().item(), abs=1e-4)
    s = TTA(nn.Identity(), "flip", MultiLabel(("a",))).mean([torch.tensor([[90.]]), torch.tensor([[90.]])])
    assert s.isfinite().all() and s.item() == pytest.approx(90, abs=1e-3)


def test_one_class_is_averaged_to_the_bit_as_it_always_was():
    "logsumexp over the views' log-softmax, less the logarithm of their number"
    views = [torch.randn(5, 7, generator=torch.Generator().manual_seed(i))*4 for i in range(5)]
    want = torch.stack([o.log_softmax(-1) for o in views]).logsumexp(0) - math.log(5)
    assert torch.equal(TTA(nn.Identity(), "shifts", OneClass(tuple("abcdefg"))).mean(views), want)

def test_nll_of_the_mean():
    p,y = torch.tensor([[.7, .3], [.2, .8]]),torch.tensor([0, 1])
    want = -(torch.tensor([.7, .8]).log().mean()).item()
    assert mean_nll(p, y) == pytest.approx(want) and mean_nll(p, F.one_hot(y).float()) == pytest.approx(want)
    assert mean_nll(p, torch.tensor([0, -100])) == pytest.approx(-torch.tensor(.7).log().item()), "an unknown target does not count"
    assert mean_nll(torch.tensor([[1., 0.]]), torch.tensor([1])) < 100, "a certain mistake is a large number, not infinity"
    assert mean_nll(p[None].expand(3, 2, 2), y.expand(3, 2)) == pytest.approx(want), "zones: every one counts"


@pytest.mark.parametrize("name", view_sets)
def test_a_model_that_sees_no_order_says_the_same_of_moved_pixels(name):
    "Flips and turns keep the set of pixels, so the mean colour does not change; shifts and crops do not"
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3, eps=1e-9)).train() # makes small differences large
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    same = torch.allclose(TTA(model, name, COLOURS)(x).softmax(-1), model(x).softmax(-1), atol=1e-4)
    assert same == (name in ("none", "flip", "flips", "d4"))


def test_views_of_a_known_image():
    x = torch.arange(4.).view(1, 1, 2, 2)
    want = dict(identity=[0,1,2,3], hflip=[1,0,3,2], vflip=[2,3,0,1], rot90=[1,3,0,2], rot180=[3,2,1,0], rot270=[2,0,3,1],
                up=[2,3,2,3], down=[0,1,0,1], left=[1,1,3,3], right=[0,0,2,2])
    for k,v in want.items(): assert apply_view(x, k).flatten().tolist() == v, k
    assert apply_view(x, "rot90+hflip").flatten().tolist() == apply_view(apply_view(x, "rot90"), "hflip").flatten().tolist()


def test_the_eight_views_of_a_square_are_different_and_all():
    x = torch.arange(9.).view(1, 1, 3, 3)
    assert len({tuple(apply_view(x, o).flatten().tolist()) for o in view_sets["d4"]}) == 8


@pytest.mark.parametrize("name", views)
def test_views_keep_shape_and_leave_the_image_alone(name):
    x = torch.rand(2, 3, 16, 16)
    before = x.clone()
    y = apply_view(x, name)
    assert y.shape == x.shape and torch.equal(x, before)
    assert torch.equal(y, x) == (name == "identity")


def test_crops_are_where_they_say():
    x = torch.zeros(1, 1, 16, 16)
    x[..., 0, 0] = 1
    assert [o for o in views if o.startswith("crop") and apply_view(x, o).sum() > 0] == ["crop_tl"]


def test_images_that_are_not_square():
    x = torch.rand(1, 3, 8, 16)
    for o in views:
        if o in ("rot90", "rot270"):
            with pytest.raises(ValueError, match="square"): apply_view(x, o)
        else: assert apply_view(x, o).shape == x.shape


def test_the_six_zones_exchange_as_they_should():
    x = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    plain = Zones()(x).softmax(-1)
    assert torch.allclose(TTA(Zones(), "flip", zones(hflip=SWAP))(x).softmax(-1), plain, atol=1e-6)
    assert not torch.allclose(TTA(Zones(), "flip", zones(hflip=None))(x).softmax(-1), plain, atol=1e-3)
    assert not torch.allclose(TTA(Zones(), "flip", zones(hflip=[5, 4, 3, 2, 1, 0]))(x).softmax(-1), plain, atol=1e-3)


def test_joined_views_are_undone_backwards():
    "Two exchanges that do not commute: a quarter turn of four zones, and a flip"
    class Quarters(nn.Module):
        def forward(self, x): return F.adaptive_avg_pool2d(x, (2, 2)).flatten(2).transpose(1, 2) # (B,4,3)
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(4.).view(1, 1, 2, 2)
    task = zones(4, **{o:apply_view(index, o).flatten().long().tolist() for o in MOVES}) # zone i of the view is that zone of the image
    for o in (*MOVES, "rot90+hflip", "hflip+rot90"):
        assert torch.allclose(TTA(Quarters(), [o], task)(x).softmax(-1), Quarters()(x).softmax(-1), atol=1e-6), o


def test_zones_that_move_are_refused_without_an_order_and_shifts_are_not():
    x = torch.rand(2, 3, 12, 12)
    with pytest.raises(ValueError, match=r"flips=dict\(hflip="): TTA(Zones(), "flip", zones())(x)
    assert TTA(Zones(), "shifts", zones())(x).shape == (2, 6, 3)
    assert TTA(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "flip", Ordinal(levels=3))(x).shape == (2, 3), "one level for the whole image stays"


def test_cumulative_levels_are_averaged_as_probabilities_of_each_threshold():
    a,b = torch.tensor([[2., -1.]]),torch.tensor([[-1., -3.]])
    mean = TTA(Table(a, b), "flip", Ordinal(levels=3, cumulative=True))(torch.zeros(1, 3, 4, 4))
    assert torch.allclose(mean.sigmoid(), (a.sigmoid() + b.sigmoid())/2, atol=1e-6)


@pytest.mark.parametrize("name", ["none", "flip", "flips", "d4", "hflip+rot90", "rot90+vflip"])
def test_a_map_comes_back_pixel_by_pixel(name):
    "The model says of each pixel what stands there, so that every view says the same once it is brought back"
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(TTA(nn.Identity(), name, ClassMap(COLOURS.names))(x).softmax(1), x.softmax(1), atol=1e-6)


def test_a_map_of_patches_comes_back_too():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(TTA(nn.AvgPool2d(4), "d4", ClassMap(COLOURS.names))(x).softmax(1), nn.AvgPool2d(4)(x).softmax(1), atol=1e-6)


@pytest.mark.parametrize("name", ["shifts", "five_crop", "crop_tl+hflip"])
def test_what_cannot_be_brought_back_is_refused_for_maps(name):
    with pytest.raises(ValueError, match="cannot be taken back from a map"): TTA(nn.Identity(), name, ClassMap(COLOURS.names))(torch.rand(1, 3, 16, 16))


def test_values_are_averaged_as_they_are():
    a,b = torch.tensor([[3.], [1.]]),torch.tensor([[5.], [0.]])
    assert torch.equal(TTA(Table(a, b), "flip", Value())(torch.zeros(2, 3, 4, 4)), torch.tensor([[4.], [.5]]))


class Heads(nn.Module):
    "Six zones, the mean colour as a class, a class of each pixel, and the mean brightness"
    def forward(self, x): return dict(zones=Zones()(x), whole=x.mean((2, 3)), pixels=x, light=x.mean((1, 2, 3))[:,None])


def test_several_tasks_each_by_its_own_rule():
    x = torch.rand(3, 3, 12, 12)
    tasks = dict(zones=zones(hflip=SWAP), whole=COLOURS, pixels=ClassMap(COLOURS.names), light=Value())
    out,plain = TTA(Heads(), "flip", tasks)(x),Heads()(x)
    assert list(out) == list(tasks)
    activation = {k:t.activation for k,t in tasks.items()}
    for k in tasks: assert torch.allclose(activation[k](out[k]), activation[k](plain[k]), atol=1e-6), k
    with pytest.raises(ValueError, match=r"flips=dict\(hflip="): TTA(Heads(), "flip", {**tasks, "zones":zones()})(x)


def test_several_tasks_over_a_whole_split(learn):
    class Two(nn.Module):
        def __init__(self, m):
            super().__init__()
            self.m = m
        def forward(self, x): return dict(a=self.m(x), b=-self.m(x))
    model,tasks,alone = learn.model,learn.tasks,predict_tta(learn, "valid", "shifts")[0]
    try:
        learn.model,learn.tasks = Two(model),Tasks.of(dict(a=tasks.only, b=tasks.only))
        probs,y = predict_tta(learn, "valid", "shifts")
    finally: learn.model,learn.tasks = model,tasks
    assert torch.allclose(probs["a"], alone, atol=1e-6) and probs["b"].shape == probs["a"].shape == (len(y), 10)


def test_a_model_without_tasks_is_refused():
    with pytest.raises(ValueError, match="no task"): TTA(nn.Identity(), "flip", Tasks())


@pytest.mark.parametrize("flips", [dict(hflip=[0, 0, 1, 2, 3, 4]), dict(hflip=[1, 0])])
def test_a_wrong_exchange_is_an_error_of_the_task(flips):
    with pytest.raises(ValueError, match="each of 0 to 5"): zones(**flips)


@pytest.mark.parametrize("which,says", [("hflp", "did you mean 'hflip'"), ("five_crops", "did you mean 'five_crop'"), (["identity", "rot9"], "did you mean 'rot90'"),
                                        ("rot90+hflop", "did you mean 'hflip'"), ([], "views is empty")])
def test_an_unknown_view_is_an_error_that_names_the_nearest(which, says):
    with pytest.raises(ValueError, match=says): pick_views(which)


def test_an_unknown_split(learn):
    with pytest.raises(ValueError, match="did you mean 'valid'"): predict_tta(learn, "valide")


@pytest.mark.parametrize("kw", [dict(views="flip"), dict(views="shifts"), dict(views="ten_crop"), dict(split="test")], ids=str)
def test_each_option_acts(learn, kw):
    a,b = predict_tta(learn, **{**dict(split="valid", views="none"), **kw})[0],predict_tta(learn, "valid", "none")[0]
    assert a.shape != b.shape or not torch.allclose(a, b, atol=1e-4)


def test_it_is_deterministic_and_draws_nothing(learn):
    rng = torch.get_rng_state()
    a,b = predict_tta(learn, "test", "ten_crop")[0],predict_tta(learn, "test", "ten_crop")[0]
    assert torch.equal(a, b) and torch.equal(rng, torch.get_rng_state())


def test_the_batch_size_does_not_matter(learn):
    whole = predict_tta(learn, "valid", "d4")[0]
    dl,learn.dls.valid.bs = learn.dls.valid.bs,7
    try: assert torch.allclose(predict_tta(learn, "valid", "d4")[0], whole, atol=1e-5)
    finally: learn.dls.valid.bs = dl


def test_it_runs_in_the_learners_precision():
    set_seed(1)
    dls = image_loaders(load_set("digits", limit=4), bs=8, augment="none", seed=1, device="cpu")
    learn = vit_learner(dls, "swin_micro", device="cpu", precision="bf16", seed=1)
    seen = []
    learn.model.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    probs,_ = predict_tta(learn, "valid", "flip")
    assert set(seen) == {torch.bfloat16} and probs.dtype == torch.float32
    assert torch.allclose(probs.sum(-1), torch.ones(len(probs)), atol=1e-5)


def test_the_model_comes_back_after_an_error(learn):
    model = learn.model
    with pytest.raises(KeyboardInterrupt):
        with tta_mode(learn): raise KeyboardInterrupt
    assert learn.model is model


def test_scores_of_each_view(learn):
    rows = view_scores(learn, "valid", "shifts")
    assert [r["view"] for r in rows] == [*view_sets["shifts"], "mean"]
    assert [*rows[0]] == ["view", "loss", "accuracy", "f1_macro", "top5"], "the task's own metrics"
    probs,y = predict_tta(learn, "valid", "shifts")
    assert rows[-1]["loss"] == pytest.approx(mean_nll(probs, y), abs=1e-5)
    assert rows[-1]["loss"] <= sum(r["loss"] for r in rows[:-1])/5 + 1e-6, "by Jensen, the mean's NLL is at most the views' mean NLL"
    for row,name in zip(rows, view_sets["shifts"]):
        alone,_ = predict_tta(learn, "valid", [name])
        assert row["accuracy"] == pytest.approx((alone.argmax(1) == y).float().mean().item()) and row["loss"] == pytest.approx(mean_nll(alone, y), abs=1e-5)


def test_scores_of_the_mean_are_those_of_a_validation(learn):
    "Loss and metrics as the loop computes them, with smoothing left out"
    row = view_scores(learn, "test", "d4")[-1]
    with tta_mode(learn, "d4"): loss,*scores = learn.validate(ds_idx=2)
    assert row["loss"] == pytest.approx(loss, abs=1e-6) and [*row.values()][2:] == pytest.approx(scores)


def test_smoothing_acts_in_training_only():
    dls = image_loaders(load_set("digits", limit=4), bs=8, augment="none", seed=1, device="cpu")
    learn = vit_learner(dls, "swin_micro", label_smoothing=.3, device="cpu", precision="fp32", seed=1)
    learn.objective.train()
    assert view_scores(learn, "valid", "none")[0]["loss"] == pytest.approx(mean_nll(*predict_split(learn, "valid")), abs=1e-5)


def test_scores_come_from_the_metrics_of_each_task():
    "Zones and a value in a Learner's place: a task's own loss, metrics and names of columns"
    tasks = Tasks.of(dict(zones=zones(unknown=3, hflip=SWAP), light=Value()))
    x = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    target = dict(zones=torch.tensor([[0, 1, 2, 3, 0, 1]]*4), light=torch.rand(4, 1))
    dl = [Batch(dict(image=x, target=target))]
    model = Heads()
    learn = SimpleNamespace(model=model, tasks=tasks, objective=make_objective(tasks), autocast=nullcontext, dls=[None, dl])
    rows = view_scores(learn, "valid", ["identity", "hflip"])
    assert {"zones/mae", "zones/kappa", "light/rmse"} < rows[0].keys() and len(make_task_metrics(tasks)) + 2 == len(rows[0])
    said = model(x)["zones"].argmax(-1)
    known = target["zones"] != 3
    assert rows[0]["zones/accuracy"] == pytest.approx((said == target["zones"])[known].float().mean().item())
    assert [*rows[0].values()][1:] == pytest.approx([*rows[1].values()][1:], abs=1e-5), "brought back, a mirror image says the same"
