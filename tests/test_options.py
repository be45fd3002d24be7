"Options of schedules, optimisers and losses, as the registries know them"
import pytest

from vitnb.callback.schedule import Plateau, make_schedule, schedules
from vitnb.learner.options import options_of, takers
from vitnb.losses.base import losses


def test_a_schedule_of_a_users_own_is_known():
    def decay(step, lr, span, *, speed=1.): return dict(lr=lr)
    schedules["decay"] = decay
    try: assert options_of("schedule", "decay") == ["speed", "warmup_epochs", "warmup_lr"] and takers("schedule", "speed") == ["decay"]
    finally: schedules.pop("decay")


@pytest.mark.parametrize("name", ["constant", "cosine", "warmup_cosine", "step", "multistep", "plateau", "reduce_lr_on_plateau"])
def test_every_option_of_a_schedule_is_taken(name):
    values = dict(mode="min", monitor="valid_loss", milestones=(.5,), warmup_epochs=1, warmup_lr=1e-4, patience=2, cooldown=1, threshold=.1, step_size=2, gamma=.5, factor=.5, min_lr=1e-5)
    make_schedule(name, .1, 20, 4, **{option:values[option] for option in options_of("schedule", name)})


def test_one_cycle_has_a_rise_of_its_own(): assert "warmup_epochs" not in options_of("schedule", "one_cycle") and "div" in options_of("schedule", "one_cycle")


def test_the_plateau_has_the_name_of_the_guide_and_of_torch():
    assert schedules["reduce_lr_on_plateau"] is schedules["plateau"] is Plateau
    a,b = (make_schedule(name, .1, 20, mode="min", patience=0, factor=.5) for name in ("plateau", "reduce_lr_on_plateau"))
    for schedule in (a, b):
        for step in range(1, 4): schedule.listen(1., step)
    assert a.hypers(5) == b.hypers(5) == dict(lr=.025)


def test_unknown_names_are_refused():
    for kind,name,says in (("schedule", "cosin", "did you mean 'cosine'"), ("optimizer", "adam_w", "did you mean 'adamw'"), ("loss", "focul", "did you mean 'focal'"), ("model", "x", "unknown kind of choice")):
        with pytest.raises(ValueError, match=says): options_of(kind, name)


def test_options_are_those_of_the_constructor():
    for name in losses.names(): assert "self" not in options_of("loss", name)
    assert {"gamma", "alpha", "label_smoothing"} <= set(options_of("loss", "focal")) and options_of("optimizer", "sgd") == ["momentum", "nesterov"]
