"What stands inside the dictionaries of a recipe is checked before anything is loaded; what is legal passes"
import inspect

import pytest
import timm

from vitnb.experiment.keywords import OWN_LOSSES, check_keywords, check_timm, timm_names
from vitnb.experiment.names import NAMED_OPTIONS, NAMES
from vitnb.experiment.recipes import check_recipe, families, recipes
from vitnb.kinds import classes, map, ordinal, value
from vitnb.losses.base import losses, make_loss
from vitnb.models.protocol import list_models, models
from vitnb.testing import tiny_learner

REFUSED = [(dict(model_kw=dict(window_siz=2)), "did you mean 'window_size'"), (dict(more=dict(model_kw=dict(depth=[2]))), "did you mean 'depths'"), (dict(aug_kw=dict(pading=1)), "did you mean 'padding'"),
    (dict(aug_kw=dict(padding=-1)), "padding=-1, which must be a number from 0"), (dict(augment="imagenet", aug_kw=dict(scale=[-.1, 1.])), "scale=.* must be a number from 0"),
    (dict(task_weights=dict(leaf=2.)), "one task, which has no name"), (dict(label=dict(leaf="l", plant="p"), task_weights=dict(leav=2.)), "did you mean 'leaf'"),
    (dict(task_weights={"":-1.}), "must be a number from 0"), (dict(task_weights={"":0.}), "all 0"), (dict(loss=dict(leaf="focal")), "one task, which has no name"),
    (dict(loss_kw=dict(gamma=1.)), "without a loss.*name one that does: .*focal"), (dict(loss_kw=dict(nope=1.)), "no loss does"), (dict(loss="focal", loss_kw=dict(gama=1.)), "did you mean 'gamma'"),
    (dict(arch="timm/nothing_there"), "timm has no network 'nothing_there'"), (dict(arch="timm/resnet8"), "did you mean"), (dict(min_lr=.1), "min_lr=0.1 is above lr=0.002"), (dict(warmup_lr=.1), "warmup_lr=0.1 is above"),
    (dict(lr=1e-6, warmup_lr=0.), "min_lr=1e-05 is above lr=1e-06.*or a higher lr"), (dict(min_lr=1e-4, lr=2e-3, bs=8, lr_base_batch=256), "above lr=6.25e-05"),
    (dict(monitor="nope"), "no column that anything writes"), (dict(monitor="acuracy"), "did you mean 'accuracy'"), (dict(monitor="accuracy_ema"), "give ema_decay"),
    (dict(monitor="leaf/accuracy"), "one task, which has no name"), (dict(early_stop=3, early_stop_monitor="valid_los"), "did you mean 'valid_loss'"), (dict(stats="nope"), "unknown stats 'nope'"), (dict(augment="guide"), "is for cubes"), (dict(stats="arch"), "stats='arch'")]
LEGAL = [dict(model_kw=dict(window_size=2, stem="conv")), dict(arch="timm/resnet18", model_kw=dict(anything=1)), dict(arch="timm/resnet18.a1_in1k"), dict(aug_kw=dict(padding=2)), dict(augment="imagenet", aug_kw=dict(scale=[.5, 1.])),
    dict(label=dict(leaf="l", plant="p"), task_weights=dict(leaf=2.)), dict(task_weights={"":2.}), dict(loss_kw=dict(weight=[1.]*10)), dict(loss="focal", loss_kw=dict(alpha=.5)),
    dict(label=dict(leaf="l", plant="p"), loss=dict(leaf="focal", plant=None), loss_kw=dict(leaf=dict(gamma=1.))), dict(min_lr=2e-3), dict(schedule="plateau", min_lr=1e-6, warmup_lr=1e-6),
    dict(monitor="valid_loss"), dict(monitor="top5"), dict(monitor="accuracy_ema", ema_decay=.9), dict(monitor="valid_loss_ema", ema_half_life=1.), dict(label=dict(leaf="l"), monitor="leaf/accuracy"), dict(stats="imagenet"),
    dict(loss="combined", monitor="valid_focal"), dict(recipe="auto", data="digits", model_kw=dict(growth=1), aug_kw=dict(scale=[.5, 1.])), dict(recipe="auto", data="digits", monitor="accuracy_ema", min_lr=.01)]


@pytest.mark.parametrize("given,says", REFUSED, ids=lambda o: str(o)[:50])
def test_what_does_not_fit_is_refused(given, says):
    with pytest.raises(ValueError, match=says): check_recipe("swin", {"recipe":"digits", **given}, named=True)


@pytest.mark.parametrize("given", LEGAL, ids=lambda o: str(o)[:50])
def test_what_is_legal_passes(given): check_recipe("swin", {"recipe":"digits", **given}, named=True)


@pytest.mark.parametrize("given", [dict(arch="mine", model_kw=dict(x=1)), dict(augment="mine", aug_kw=dict(x=-1)), dict(loss="mine", loss_kw=dict(x=1)), dict(monitor="mine"), dict(data="mine", task_weights=dict(leaf=2.)), dict(data="mine", loss_kw=dict(leaf=dict(x=1))), dict(arch="timm/mine"), dict(stats="mine")])
def test_in_a_notebook_with_names_of_its_own_they_pass(given): check_recipe("swin", {"recipe":"digits", **given})


@pytest.mark.parametrize("family,params,says", [("spectral", dict(recipe="synthetic", augment="crop_flip"), "is for images"), ("spectral", dict(recipe="synthetic", augment="basic", aug_kw=dict(rotat=3)), "did you mean 'rotate'"),
    ("swin", dict(recipe="digits", augment="basic", aug_kw=dict(rotate=3)), "no option 'rotate'"), ("spectral", dict(recipe="synthetic", normalize="logg"), "did you mean 'log'"), ("spectral", dict(recipe="synthetic", monitor="sam_degrees"), ""),
    ("hvit_pretrain", dict(recipe="leaves", labels="x"), "labels='x' must be True or False"), ("hvit_pretrain", dict(recipe="leaves", labels=False), ""), ("hvit_pretrain", dict(recipe="leaves", objective_kw=dict(nope=1)), "no option 'nope'"),
    ("hvit_pretrain", dict(recipe="leaves", objective="vicreg", objective_kw=dict(variance=2.)), ""), ("hvit_pretrain", dict(recipe="leaves", monitor="knn_accuracy"), ""), ("chest", dict(recipe="synthetic", stats="arch", arch="csi_resnet50"), ""),
    ("search", dict(space="nope", trials=8), "space 'nope'|unknown search space"), ("search", dict(space="basic", trials=0), "trials=0 must be a whole number from 1"), ("search", dict(space='{"lr": [1e-3]}', better="up"), "better='up' must be"),
    ("search", dict(pruner="nope"), "pruner"), ("search", dict(pruner="hyperband", fixed={}, space="chest"), "")])
def test_other_families(family, params, says):
    if not says: return check_recipe(family, params, named=True)
    with pytest.raises(ValueError, match=says): check_recipe(family, params, named=True)


@pytest.mark.parametrize("family,name", [(family, name) for family in recipes for name in recipes[family]])
def test_each_recipe_passes(family, name): check_keywords(recipes[family][name], {}, name, True)


def test_the_networks_of_timm_are_known_without_loading_it():
    "Exactly those that timm itself says; a second implementation in the other direction"
    assert {name.partition(".")[0] for name in timm.list_models()} <= timm_names() and all(timm.is_model(name) for name in timm_names())
    check_timm("timm/" + timm.list_pretrained("resnet18*")[0])


@pytest.mark.parametrize("name", list_models())
def test_the_keywords_of_a_network_are_those_of_its_builder(name):
    known = NAMED_OPTIONS["arch"][name]
    assert set(inspect.signature(models[name].build).parameters) | set(models[name].preset) == set(known)


def test_every_task_of_ours_has_a_loss_that_is_known_to_be_its_own():
    kinds = [classes.OneClass, classes.MultiLabel, map.ClassMap, value.Value]
    assert {kind.defaults["loss"] for kind in kinds} <= set(OWN_LOSSES) <= set(losses)
    own = [ordinal.Ordinal(names=["a"], levels=4, **kw).loss for kw in ({}, dict(cumulative=True), dict(conditional=True), dict(conditional=True, unknown=4, abstain=True))]
    assert set(own) <= set(OWN_LOSSES)


def test_the_columns_of_a_history_are_known():
    for kw in ({}, dict(loss="combined"), dict(clip=1.)): assert set(tiny_learner(**kw).columns) <= set(NAMES["column"]), kw


def test_an_option_that_is_known_can_be_given():
    "The other direction for losses: what the table has, the loss takes"
    assert make_loss("focal", gamma=1., alpha=.5)
    with pytest.raises((TypeError, ValueError)): make_loss("focal", gama=1.)


def test_the_fields_that_are_checked_are_fields(): assert {"min_lr", "warmup_lr", "model_kw", "aug_kw", "loss_kw", "task_weights", "monitor", "early_stop_monitor", "stats"} <= families["swin"].fields.keys()
