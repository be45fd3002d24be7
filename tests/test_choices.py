"A field that was given acts, or is an error; an early end by its fields"
import json
from pathlib import Path

import pytest

import vitnb.experiment.chest # noqa: F401, registers a family with a field of a loss
from vitnb.experiment.choices import CHOICES, TOGETHER, check_used, used_options
from vitnb.experiment.cli import read_notebook
from vitnb.experiment.recipes import FIELDS, callback_args, families, learner_args, recipe, recipes, resolve, run_args
from vitnb.experiment.stored import stored_recipe
from vitnb.learner.core import train_callbacks
from vitnb.testing import tiny_learner

ROOT = Path(__file__).resolve().parents[1]
UNUSED = [(dict(gamma=2., loss="focal"), "the focal loss has focal_gamma"), (dict(patience=3), "it is for plateau"), (dict(factor=.3), "plateau, reduce_lr_on_plateau"),
          (dict(momentum=.8), "it is for sgd"), (dict(nesterov=True), "it is for sgd"), (dict(optimizer="sgd", betas=(.8, .9)), "it is for adam, adamw"),
          (dict(step_size=3.), "it is for step"), (dict(milestones=[3]), "it is for multistep"), (dict(schedule="one_cycle", min_lr=1e-6), "'one_cycle', which does not use it"),
          (dict(schedule="one_cycle", warmup_epochs=1.), "which does not use it"), (dict(schedule="constant", min_lr=1e-6), "which does not use it"),
          (dict(focal_gamma=2.), "none \\(the task's own\\)"), (dict(loss="cross_entropy", focal_gamma=2.), "combined, focal"),
          (dict(loss=dict(leaf="cross_entropy", plant=None), focal_gamma=2.), "combined, focal"), (dict(mix_mode="elem"), "goes with mixup or cutmix"),
          (dict(early_stop_min_delta=.1), "goes with early_stop"), (dict(restore_best=False), "goes with early_stop"), (dict(early_stop_monitor="accuracy"), "goes with early_stop"),
          (dict(warmup_epochs=0., warmup_lr=1e-5), "goes with warmup_epochs")]
USED = [dict(gamma=.5, schedule="step"), dict(patience=3, factor=.3, schedule="plateau"), dict(patience=3, schedule="reduce_lr_on_plateau"), dict(momentum=.8, nesterov=True, optimizer="sgd"),
        dict(betas=(.8, .9)), dict(min_lr=1e-6, schedule="step"), dict(focal_gamma=1., loss="focal"), dict(focal_gamma=1., loss=dict(leaf="combined", plant=None)),
        dict(mix_mode="elem", cutmix=1.), dict(early_stop=3, early_stop_min_delta=.1, early_stop_monitor="accuracy", restore_best=False)]


@pytest.mark.parametrize("given,says", UNUSED, ids=lambda o: str(o)[:40])
def test_a_field_that_would_not_act_is_refused(given, says):
    for more in (given, dict(more=given)): # as parameters, and in `more`
        with pytest.raises(ValueError, match=says): resolve("swin", "digits", more)
    with pytest.raises(ValueError, match=says): recipe(**{"warmup_epochs":3., **given})


@pytest.mark.parametrize("given", USED, ids=lambda o: str(o)[:40])
def test_a_field_that_acts_reaches_its_place(given):
    base,r = (resolve("swin", "digits", {k:v for k,v in given.items() if k in which}) for which in (("schedule", "optimizer", "loss", "early_stop", "cutmix"), given))
    assert repr([learner_args(r), callback_args(r)]) != repr([learner_args(base), callback_args(base)])


@pytest.mark.parametrize("field,value,says", [("schedule", "cosin", "did you mean 'cosine'"), ("optimizer", "adamv", "did you mean 'adam"), ("loss", "focall", "did you mean 'focal'"),
                                              ("loss", dict(leaf="focall"), "did you mean 'focal'")])
def test_unknown_names_are_refused_when_a_recipe_is_resolved(field, value, says):
    with pytest.raises(ValueError, match=says): resolve("swin", "digits", {field:value})


def test_the_recipes_themselves_set_nothing_that_does_not_act():
    for family,named in recipes.items():
        for name,r in named.items(): check_used(r, {k:v for k,v in r.items() if v != families[family].fields[k]})


def test_every_field_of_a_choice_is_a_field(): assert {*TOGETHER, *(field for fields in CHOICES.values() for field in fields)} <= {field for f in families.values() for field in f.fields}


def test_each_field_of_a_choice_acts_somewhere():
    from vitnb.learner.options import takers
    for kind,fields in CHOICES.items():
        for field,option in fields.items():
            for name in takers(kind, option): assert field in used_options({**recipe(), field:None, kind:name}, kind)


def test_loss_and_its_options_reach_the_loss():
    r = resolve("swin", "digits", dict(loss="combined", focal_gamma=3., loss_kw=dict(w_focal=.25, w_ce=.75), label_smoothing=.1))
    loss = tiny_learner(**{k:learner_args(r)[k] for k in ("loss", "loss_kw", "label_smoothing")}).objective.loss_of("")
    assert (loss.focal.gamma, loss.w_focal, loss.w_ce, loss.label_smoothing) == (3., .25, .75, .1)
    with pytest.raises(ValueError, match="twice"): resolve("swin", "digits", dict(loss="focal", focal_gamma=1., loss_kw=dict(gamma=2.)))


def test_other_options_of_the_loss_are_another_run():
    states = [tiny_learner(loss="focal", **kw) for kw in ({}, dict(loss_kw=dict(gamma=1.)))]
    for learn in states: learn.n_epoch = 1
    a,b = (learn.resume_config() for learn in states)
    assert {k for k in b if a.get(k) != b[k]} == {"training.loss_kw.gamma"}, "and a run without options is what it was"


def test_early_stopping_gets_what_the_recipe_says():
    r = resolve("swin", "digits", dict(early_stop=3, early_stop_min_delta=.01, early_stop_monitor="accuracy", restore_best=False))
    (stop,) = train_callbacks(**callback_args(r))
    assert (stop.patience, stop.min_delta, stop.monitor, stop.restore_best) == (3, .01, "accuracy", False)
    (stop,) = train_callbacks(early_stop=2)
    assert (stop.monitor, stop.min_delta, stop.restore_best) == ("valid_loss", 0., True)


def test_the_guides_plateau():
    "The chest guide: reduce_lr_on_plateau, patience 10, factor 0.5, as PyTorch's own"
    r = resolve("densenet", "digits", dict(schedule="reduce_lr_on_plateau", optimizer="adam"))
    assert learner_args(r)["schedule_kw"] | dict(warmup_epochs=0) == dict(patience=10, factor=.5, min_lr=0., warmup_epochs=0, warmup_lr=0.)


# ---------------------------------------------------------------------------------------------- values of the guides

GUIDE = [("swin", name) for name in ("tiny_imagenet", "tiny_imagenet_small", "tiny_imagenet_base", "tiny_imagenet_basic")]


@pytest.mark.parametrize("family,name", [*GUIDE, ("densenet", "cifar10"), ("densenet", "imagenet"), ("spectral", "retina")])
def test_guide_recipes_keep_a_checkpoint_every_ten_epochs(family, name):
    r = resolve(family, name, dict(data="x"))
    assert r.checkpoint_every_n_epochs == 10 and r.max_hours == (24 if (family, name) in GUIDE else None)
    assert resolve(family, name, dict(data="x", max_hours=2., checkpoint_every_n_epochs=0))["max_hours"] == 2.


@pytest.mark.parametrize("notebook", ["train_swin", "train_densenet", "pretrain_spectral"])
def test_the_notebooks_let_the_recipe_say_it(notebook):
    text = "\n".join(c["source"] for c in read_notebook(ROOT/"nbs"/f"{notebook}.ipynb")["cells"])
    r = resolve("swin", "digits", dict(max_hours=3., checkpoint_every_n_epochs=4, keep_top_k=2))
    assert "run_callbacks(run.dir, every_n_steps=50, **run_args(r))" in text
    assert run_args(r) == dict(max_hours=3., every_n_epochs=4, keep_top_k=2, monitor=None, scalar_names=None)


# ---------------------------------------------------------------------------------------------- the rate of another batch

def test_the_rate_follows_the_batch_where_a_field_says_so(capsys):
    "DenseNet's guide: batch times four, rate times four"
    plain = learner_args(resolve("densenet", "cifar10", dict(bs=256)))["lr"]
    assert plain == .1 and not capsys.readouterr().out
    args = learner_args(resolve("densenet", "cifar10", dict(bs=256, lr_base_batch=64)))
    assert args["lr"] == pytest.approx(.4) and "lr_base_batch" not in args
    assert "0.1 at a batch of 64 is 0.4 at 256" in capsys.readouterr().out
    assert learner_args(resolve("swin", "tiny_imagenet", dict(bs=16, accumulate=2, lr_base_batch=64)))["lr"] == pytest.approx(3e-4/2)
    with pytest.raises(ValueError, match="at least 1"): learner_args(resolve("swin", "digits", dict(lr_base_batch=-8)))


def test_a_stored_recipe_scales_once(tmp_path):
    r = resolve("swin", "digits", dict(bs=64, lr_base_batch=32))
    (tmp_path/"recipe.json").write_text(json.dumps(r))
    assert learner_args(stored_recipe(tmp_path))["lr"] == learner_args(r)["lr"] == pytest.approx(2*r.lr)
