"A field that was given acts, or is an error; an early end by its fields"
import pytest

from vitnb.experiment.choices import CHOICES, TOGETHER, check_used, used_options
from vitnb.experiment.recipes import FIELDS, callback_args, families, learner_args, recipe, recipes, resolve
from vitnb.learner.core import train_callbacks
from vitnb.testing import tiny_learner

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


def test_every_field_of_a_choice_is_a_field(): assert {*TOGETHER, *(field for fields in CHOICES.values() for field in fields)} <= FIELDS.keys()


def test_each_field_of_a_choice_acts_somewhere():
    from vitnb.learner.options import takers
    for kind,fields in CHOICES.items():
        for field,option in fields.items():
            for name in takers(kind, option): assert field in used_options({**recipe(), kind:name}, kind)


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
