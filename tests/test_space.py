"What a space may say, and what is drawn of it"
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.experiment.space import active_params, check_space, decode, spaces, suggest

optuna = pytest.importorskip("optuna")


@pytest.mark.parametrize("space,message", [
    ({}, "must be a dictionary"), (dict(lr=3), "must be a list of values"), (dict(lr=[]), "at least one value"),
    (dict(lr=[.1, .1]), "twice"), (dict(lr=dict(low=1)), "numbers low and high"), (dict(lr=dict(low=2, high=1)), "lesser"),
    (dict(lr=dict(low=0, high=1, log=True)), "no logarithm"), (dict(lr=dict(low=1, high=2, log=True, step=1)), "log and step"),
    (dict(lr=dict(low=1, high=2, step=0)), "step above 0"), (dict(lr=dict(low=1, hihg=2)), "did you mean 'high'"),
    (dict(lr=dict(values=[1], low=1)), "values and low"), (dict(lr=dict(low=1, high=2, when=dict(opt="a"))), "further up"),
    (dict(bs=dict(low=1, high=2), lr=dict(low=1, high=2, when=dict(bs=1))), "range and no choice"),
    (dict(opt=["a"], lr=dict(low=1, high=2, when=dict(opt=["a", "b"]))), "none of"),
    (dict(lrr=[1.]), "did you mean 'lr'"), (dict(lr=["high"]), "lr='high' is a str"), (dict(bs=dict(low=.5, high=2.)), "bs=0.5 is a float")])
def test_a_space_that_cannot_be_meant_is_refused(space, message):
    with pytest.raises(ValueError, match=message): check_space(space, dict(lr=.1, bs=8, opt="a"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(spaces)))
def test_whatever_is_drawn_is_inside_the_space_and_acts(seed, name):
    "The second implementation: each condition read on its own"
    space = check_space(spaces[name])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    params = suggest(trial, space)
    assert decode(space, trial.params) == params == active_params(space, params)
    for k,v in params.items():
        entry = space[k]
        assert v in entry["values"] if "values" in entry else entry["low"] <= v <= entry["high"]
    for k,entry in space.items():
        acts = all(params.get(o) in (w if isinstance(w, list) else [w]) for o,w in entry.get("when", {}).items())
        assert (k in params) == acts
    if name in ("basic", "chest"):
        assert ("momentum" in params) == (params["optimizer"] == "sgd")
        assert ("weight_decay" in params) == (params["optimizer"] in ("adamw", "sgd"))


def test_the_guides_space_is_the_guides():
    space = check_space(spaces["chest"])
    assert space["optimizer"]["values"] == ["adamw", "adam", "sgd"] and space["bs"]["values"] == [16, 32, 64, 128]
    ends = {k:(v["low"], v["high"], v.get("log", False)) for k,v in space.items() if "low" in v}
    assert ends == dict(lr=(1e-5, 1e-1, True), unknown_weight=(.1, 1., False), early_stop=(5, 20, False),
                        weight_decay=(1e-6, 1e-2, True), momentum=(.5, .99, False))
    assert isinstance(ends["early_stop"][0], int)


def test_lists_and_dictionaries_can_be_chosen():
    space = check_space(dict(milestones=[[.5], [.5, .75]], kw=[None, dict(depth=2)], flag=[True, False]))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [suggest(study.ask(), space) for _ in range(30)]
    assert {json.dumps(f["milestones"]) for f in found} == {"[0.5]", "[0.5, 0.75]"}
    assert {json.dumps(f["kw"]) for f in found} == {"null", '{"depth": 2}'}
    assert {f["flag"] for f in found} == {True, False}


def test_whole_numbers_that_come_back_as_real_ones_are_whole():
    found = active_params(check_space(dict(n=dict(low=5, high=20))), dict(n=7.))
    assert found == dict(n=7) and isinstance(found["n"], int)
