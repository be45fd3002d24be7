"What every room stands on: messages, settings, draws that are functions, and files that are whole"
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitnb.core as core
from vitnb.core import check_options, moved_names, nearest, repo_root, settings
from vitnb.seeding import hash_ints, hash_seed, uniform

BITS = 2**64 - 1


def splitmix64(seed):
    "The generator's next number, as Steele, Lea and Flood print it (2014, figure 16)"
    z = (seed + 0x9E3779B97F4A7C15) & BITS
    z = ((z ^ (z >> 30))*0xBF58476D1CE4E5B9) & BITS
    z = ((z ^ (z >> 27))*0x94D049BB133111EB) & BITS
    return z ^ (z >> 31)


def hashed(*keys):
    state = 0
    for key in keys: state = splitmix64((state + splitmix64(key & BITS)) & BITS)
    return state


KEYS = st.lists(st.integers(-2**63, 2**63 - 1), min_size=1, max_size=4)


def test_the_reference_is_splitmix64(): assert splitmix64(1234567) == 6457827717110365317


@given(KEYS)
def test_numbers_and_arrays_hash_as_the_reference(keys):
    assert int(hash_ints(*keys)) == hashed(*keys) and hash_seed(*keys) == hashed(*keys) >> 1
    for place in range(len(keys)): # one key as an array, at any place
        mixed = [np.array([key, 0]) if i == place else key for i,key in enumerate(keys)]
        assert int(hash_ints(*mixed)[0]) == hashed(*keys)
    assert int(hash_ints(*(np.array([key]) for key in keys))[0]) == hashed(*keys)


@given(st.integers(2**63, 2**70))
def test_numbers_beyond_64_bits_wrap(key):
    assert int(hash_ints(key)) == hashed(key) and int(hash_ints(np.arange(2), key)[1]) == hashed(1, key)


@given(KEYS)
def test_uniform_numbers_lie_in_their_interval(keys): assert 0 <= float(uniform(*keys)) < 1


def test_an_option_that_nobody_knows_names_the_nearest():
    check_options("adamw", {}, [])
    check_options("adamw", dict(lr=1), iter(["lr", "beta2"]))
    with pytest.raises(ValueError, match="adamw has no option 'rl': did you mean 'lr'"): check_options("adamw", dict(rl=1), ["lr"])
    assert nearest("a", []) == "choose from: (nothing is registered)"


@pytest.mark.parametrize("name,room", [("upgrade", "renamed"), ("progress", "progress"), ("Ranks", "launch"), ("check_params", "parameters")])
def test_a_name_that_has_moved_says_where_it_is(name, room):
    with pytest.warns(FutureWarning, match=f"from vitnb.{room} import {name}"): getattr(core, name)
    assert not hasattr(core, "never_there")


@pytest.mark.parametrize("old,name,new", [
    ("core", "flat", "parameters"), ("figures", "cube_rgb", "spectra"), ("figures", "drawings", "drawings"),
    ("experiment.run", "public_params", "parameters"), ("experiment.cli", "card", "experiment.notebook"),
    ("callback.track", "History", "callback.history"), ("callback.track", "StepRecorder", "callback.record"),
    ("data.augment", "make_pipeline", "data.transform"), ("data.loader", "ImageDataset", "data.dataset"),
    ("data.table", "strata", "data.holdout"), ("learner.distribute", "gather_with_grad", "gather"), ("learner.distribute", "WholeBatch", "learner.wholebatch"),
    ("learner.optim", "make_schedule", "callback.schedule"), ("learner.optim", "ScheduleLR", "callback.rate"),
    ("learner.predict", "find_checkpoint", "learner.trained"), ("testing", "assert_exact_resume", "exactness")])
def test_every_old_room_gives_what_has_moved(old, name, new):
    import importlib
    with pytest.warns(FutureWarning, match=f"from vitnb.{new} import {name}"): found = getattr(importlib.import_module(f"vitnb.{old}"), name)
    assert found is getattr(importlib.import_module(f"vitnb.{new}"), name)


def test_what_never_moved_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'a' has no attribute 'b'"): moved_names("a", {"c":"d e"})("b")


def test_the_environment_names_a_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_WORKSPACE", str(tmp_path))
    with pytest.raises(ValueError, match="has no settings.ini"): repo_root()
    (tmp_path/"settings.ini").write_text("[vitnb]\nworkers = 3\ntracker = tensorbord\n")
    assert repo_root() == tmp_path.resolve()
    with pytest.raises(ValueError, match="did you mean 'tensorboard'"): settings()
    (tmp_path/"settings.ini").write_text("[vitnb]\nworkers = -3\n")
    with pytest.raises(ValueError, match="whole number from 0"): settings()
    monkeypatch.setenv("VITNB_WORKERS", "5")
    (tmp_path/"settings.ini").write_text("[vitnb]\nworkers = 3\n")
    assert settings().workers == 5
