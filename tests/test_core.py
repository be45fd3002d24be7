"What every room stands on: messages, settings, draws that are functions, and files that are whole"
import errno

import pytest

import vitnb.core as core
from vitnb.core import check_options, moved_names, nearest, repo_root, settings, writing


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
    ("learner.predict", "find_checkpoint", "runweights"), ("learner.trained", "nearest_runs", "runweights"), ("testing", "assert_exact_resume", "exactness")])
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


@pytest.mark.parametrize("error,says", [(OSError(errno.ENOSPC, "No space left on device"), "make room there"), (OSError(errno.EDQUOT, "Disk quota exceeded"), "make room there"),
    (OSError(errno.EROFS, "Read-only file system"), "allow this user"), (PermissionError(errno.EACCES, "Permission denied", "note.txt"), "allow this user"), (OSError("encoder error -2"), "encoder error -2")])
def test_an_error_of_a_write_names_the_file_and_what_helps_once(tmp_path, error, says):
    with pytest.raises(OSError, match="note.txt") as said:
        with writing("note.txt"), writing("note.txt"): raise error
    assert str(said.value).count(says) == 1 and said.value.errno == (error.errno or errno.EIO) and said.type is type(OSError(said.value.errno, ""))


@pytest.mark.parametrize("error", [ConnectionResetError("peer"), BrokenPipeError(errno.EPIPE, "Broken pipe"), ValueError("no"), FileNotFoundError(errno.ENOENT, "none", "other.txt")])
def test_what_is_no_error_of_the_write_stays_what_it_is(error):
    with pytest.raises(type(error)) as said:
        with writing("note.txt"): raise error
    assert said.value is error
