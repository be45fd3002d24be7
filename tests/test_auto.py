"A recipe made from the set: what it chooses, that it keeps what was given, and that no clock has a say"
import json

import numpy as np
import pytest
import torch

import vitnb.experiment.auto as auto
from vitnb.data.holdout import Split
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.data.table import ImageSet
from vitnb.experiment.auto import choose_augment, choose_epochs, choose_network, choose_size, expected_time, fit_recipe, own_side
from vitnb.experiment.choices import recipe_name
from vitnb.experiment.recipes import callback_args, check_recipe, learner_args, loader_args, recipes, resolve
from vitnb.learner.core import train_callbacks, vit_learner
from vitnb.task import Value

FAMILIES = ("swin", "densenet")


def photographs(side=100, n=24, classes=("rust", "mildew"), channels=3):
    rng = np.random.default_rng(0)
    def split(n): return Split(rng.integers(0, 256, (n, side, side, channels), np.uint8), np.arange(n)%len(classes))
    return ImageSet("leaves", list(classes), dict(train=split(n), valid=split(8), test=split(8)))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch): monkeypatch.setattr(auto, "published_weights", lambda name, seconds=4.: "")


@pytest.mark.parametrize("family", FAMILIES)
def test_data_of_ones_own_means_auto_and_no_data_the_demonstration(family):
    assert recipe_name(recipes[family], None, dict(data="leaves.zip")) == "auto"
    assert resolve(family, None, {}).data == "digits" == resolve(family, "digits", {}).data
    assert resolve(family, None, {}) == resolve(family, "digits", {})
    with pytest.raises(ValueError, match="needs data"): resolve(family, "auto", {})
    with pytest.raises(ValueError, match="is no set and not there"): check_recipe(family, dict(data="no/such/folder"))


@pytest.mark.parametrize("family", FAMILIES)
def test_photographs_get_64_pixels_the_right_stem_and_a_learner(family):
    asked = dict(data="leaves", minutes=.01)
    image_set = photographs()
    chosen = fit_recipe(family, None, image_set, asked)
    assert chosen["img_size"] == 64 and chosen["cache_size"] == 96 and chosen["epochs"] == 10 and chosen["augment"] == "imagenet"
    assert chosen["model_kw"]["stem"] == dict(swin="conv", densenet="imagenet")[family] # the other costs ten times as much
    assert set(chosen.why) == set(chosen) and all(chosen.why.values())
    r = resolve(family, None, asked)
    r.update(chosen, precision="fp32", epochs=1)
    dls = image_loaders(image_set, seed=1, workers=0, **loader_args(r))
    learn = vit_learner(dls, seed=1, cbs=train_callbacks(**callback_args(r)), **learner_args(r))
    before = [weight.clone() for weight in learn.model.parameters()]
    said = expected_time(learn, 7)
    assert f"7 epochs of {24//r.bs} steps take about" in said
    assert all(torch.equal(*pair) for pair in zip(before, learn.model.parameters())), "measuring leaves no trace"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_given_stays(family):
    given = dict(data="leaves", img_size=32, epochs=3, lr=.5, augment="basic", bs=4)
    chosen = fit_recipe(family, "auto", photographs(n=12), given)
    assert not chosen.keys() & given.keys() and "aug_kw" not in chosen
    assert chosen == fit_recipe(family, "auto", photographs(n=12), given), "the same set and parameters, the same choice"


def test_a_named_densenet_gets_the_stem_for_its_size():
    chosen = fit_recipe("densenet", None, photographs(n=12), dict(data="leaves", arch="densenet121", epochs=1))
    assert chosen["model_kw"] == dict(stem="imagenet") and "arch" not in chosen
    assert fit_recipe("densenet", None, photographs(n=12), dict(data="leaves", model_kw=dict(growth_rate=8), epochs=1)).get("model_kw") is None


def test_small_images_keep_their_size_and_their_sides():
    chosen = fit_recipe("swin", "auto", load_set("digits", limit=20), dict(data="digits", epochs=1))
    assert (chosen["img_size"], chosen["augment"]) == (8, "shift")
    assert choose_augment(list("AB"), 64)[1]["flip"] == 0. and "flip" not in choose_augment(["A", "rust"], 64)[1]


def test_sides_are_those_of_the_images():
    assert own_side(photographs(40)) == 40
    for side in (9, 17, 33, 64, 500):
        size = choose_size(side)[0]
        assert size <= side and size <= 64 and (size == side or size%8 == 0)
    assert choose_size(500, "cuda")[0] == 224


@pytest.mark.parametrize("minutes,n,gmacs", [(10, 1000, .1), (2, 500, .05)])
def test_epochs_are_minutes_by_the_count_of_operations(minutes, n, gmacs):
    assert choose_epochs(n, gmacs, minutes, cores=2)[0] == int(minutes*60*2*6/gmacs/n)
    assert choose_epochs(n, gmacs, 1e9)[0] == 300 and choose_epochs(n, gmacs, 1e-9)[0] == 10


def test_published_weights_are_taken_where_they_can_be_had_and_that_is_said(monkeypatch):
    monkeypatch.setattr(auto, "published_weights", lambda name, seconds=4.: "the hub")
    chosen = fit_recipe("densenet", None, photographs(n=12), dict(data="leaves", epochs=1))
    assert (chosen["arch"], chosen["pretrained"]) == ("densenet121", True) and "from the hub" in str(chosen)
    fresh = fit_recipe("densenet", None, photographs(n=12), dict(data="leaves", epochs=1, pretrained=False))
    assert "pretrained" not in fresh and fresh["arch"] == "densenet_micro" and fresh["lr"] == pytest.approx(10*chosen["lr"])


def test_a_run_that_goes_on_keeps_what_it_chose(tmp_path, monkeypatch):
    asked = dict(data="leaves", epochs=1)
    began = fit_recipe("swin", None, photographs(n=12), asked)
    (tmp_path/"recipe.json").write_text(json.dumps(began))
    monkeypatch.setattr(auto, "published_weights", lambda name, seconds=4.: "the hub") # reachable by now
    again = fit_recipe("swin", None, photographs(n=12), asked, tmp_path)
    assert {k:again[k] for k in ("arch", "pretrained", "lr", "bs")} == {k:began[k] for k in ("arch", "pretrained", "lr", "bs")}


def test_other_recipes_and_other_targets_are_left_alone():
    assert fit_recipe("swin", "tiny_imagenet", photographs(n=12), dict(data="leaves")) == {}
    with pytest.raises(ValueError, match="leave it out"): fit_recipe("swin", "digits", photographs(n=12), dict(minutes=3.))
    values = ImageSet("values", Value(), {k:Split(np.zeros((8,20,20), np.uint8), np.arange(8.)) for k in ("train", "valid", "test")})
    with pytest.raises(ValueError, match="one class an image"): fit_recipe("swin", "auto", values, dict(data="values"))


def test_networks_go_by_device_size_and_weights():
    networks = dict(small=("s", dict(a=1)), large=("l", dict(a=2)), published=("p", {}))
    assert choose_network(networks, 64)[:2] == ("s", dict(a=1)) and choose_network(networks, 64, "cuda")[:2] == ("l", dict(a=2))
    assert choose_network(networks, 64, published=True)[:2] == ("p", {}) and choose_network(networks, 16, "cuda")[:2] == ("s", {})
    assert choose_network(networks, 64, arch="mine")[:2] == ("mine", dict(a=2))


@pytest.mark.parametrize("family", ["swin", "densenet"])
def test_the_reason_of_a_step_names_the_batch_that_is_chosen(family):
    made = fit_recipe(family, "auto", photographs(64, 400), dict(data="x", minutes=1))
    assert made["accumulate"] == 1 and f"of {made['bs']} images" in made.why["accumulate"]
