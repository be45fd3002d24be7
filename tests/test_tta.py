"Test-time augmentation: what cells of the notebook do not show"
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from companion_helpers import loaders, pairs
from torch import nn
from view_helpers import SWAP, Heads, zones

from vitnb.data.loader import image_loaders
from vitnb.data.sample import Batch
from vitnb.data.sets import load_set
from vitnb.learner.core import vit_learner
from vitnb.learner.predict import predict_split
from vitnb.learner.tta import UnseenView, mean_nll, predict_tta, tta_mode, unseen_turns, view_scores
from vitnb.learner.views import pick_views, view_sets
from vitnb.losses.objective import make_objective
from vitnb.metrics.base import make_task_metrics
from vitnb.models.hvit import hvit
from vitnb.seeding import set_seed
from vitnb.task import Tasks, Value


@pytest.fixture(scope="module")
def learn():
    set_seed(1)
    dls = image_loaders(load_set("digits", limit=12), bs=32, augment="none", seed=1, device="cpu")
    learn = vit_learner(dls, "swin_micro", device="cpu", precision="fp32", seed=1)
    learn.fit(1)
    return learn


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


def test_a_shuffled_loader_that_drops_its_last_batch_loses_no_sample(learn):
    train = learn.dls.train
    labels = torch.as_tensor(learn.dls.image_set.split("train").labels)
    assert train.shuffle and train.drop_last and len(labels) % train.bs, "so that a plain pass would lose some, in another order"
    probs,y = predict_tta(learn, "train", "flip")
    assert len(probs) == len(labels) and torch.equal(y, labels)


def test_the_mean_is_that_of_the_views_probabilities(learn):
    each = [predict_tta(learn, "test", [o])[0] for o in pick_views("d4")]
    assert torch.allclose(torch.stack(each).mean(0), predict_tta(learn, "test", "d4")[0], atol=1e-6)

def test_nll_of_the_mean():
    p,y = torch.tensor([[.7, .3], [.2, .8]]),torch.tensor([0, 1])
    want = -(torch.tensor([.7, .8]).log().mean()).item()
    assert mean_nll(p, y) == pytest.approx(want) and mean_nll(p, F.one_hot(y).float()) == pytest.approx(want)
    assert mean_nll(p, torch.tensor([0, -100])) == pytest.approx(-torch.tensor(.7).log().item()), "an unknown target does not count"
    assert mean_nll(torch.tensor([[1., 0.]]), torch.tensor([1])) < 100, "a certain mistake is a large number, not infinity"
    assert mean_nll(p[None].expand(3, 2, 2), y.expand(3, 2)) == pytest.approx(want), "zones: every one counts"


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


def test_a_spectral_image_moves_with_its_photograph(tmp_path, monkeypatch):
    "Both inputs of a view are turned alike, and the mean is that of a loop"
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))
    dls = loaders(pairs(tmp_path/"set"))
    torch.manual_seed(0)
    model = hvit(img_size=8, patch_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 2), num_classes=2, spectral_channels=2)
    learn = SimpleNamespace(model=model.eval(), tasks=dls.tasks, dls=dls)
    image,spectral,_ = dls.test.one_batch()
    with torch.no_grad(), tta_mode(learn, "d4"): mean = learn.model(image, spectral)
    turned = [(image.rot90(k, (2, 3)), spectral.rot90(k, (2, 3))) for k in range(4)]
    turned += [(a.flip(3), b.flip(3)) for a,b in turned]
    with torch.no_grad():
        want = torch.stack([model(a, b).softmax(1) for a,b in turned]).mean(0)
        apart = torch.stack([model(a, spectral).softmax(1) for a,_ in turned]).mean(0)
    assert torch.allclose(mean.exp(), want, atol=1e-6) and not torch.allclose(mean.exp(), apart, atol=1e-5)


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


def test_views_that_training_never_showed_are_named(learn):
    "A23: turns that were not learnt lower the accuracy"
    assert unseen_turns(learn, "d4") == ["hflip", "rot90", "rot180", "rot270"] and not unseen_turns(learn, "shifts")
    with pytest.warns(UnseenView, match="training never showed hflip, vflip, rot180"): predict_tta(learn, "test", "flips")
    mirrored = SimpleNamespace(dls=image_loaders(load_set("digits", limit=12), bs=32, augment="crop_flip", device="cpu"))
    assert not unseen_turns(mirrored, "flip") and unseen_turns(mirrored, "flips") == ["vflip", "rot180"]
    never = SimpleNamespace(dls=image_loaders(load_set("digits", limit=12), bs=32, augment="crop_flip", aug_kw=dict(flip=0.), device="cpu"))
    assert unseen_turns(never, "flip") == ["hflip"], "a flip with probability 0 shows nothing"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnseenView)
        predict_tta(learn, "test", "none")
