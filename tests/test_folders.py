"Run folders are found and read, whatever state they are in; what is damaged is named"
import json
import os
import shutil
import stat

import pytest
from compare_helpers import outputs, scored, write_run # noqa: F401, a fixture
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vitnb.experiment.compare import Comparison
from vitnb.experiment.folders import direction, find_runs, interval, names_of, read_run, read_runs, score_value, shown_state
from vitnb.experiment.watch import RunViews, runs_html
from vitnb.experiment.watching import screen_of
from vitnb.written import note_written

FILES = ("params", "status", "result", "columns", "history", "environment", "recipe")


def test_a_run_is_found_once_and_nothing_below_it(outputs):
    "Phases and checkpoints of a run are its own; a place that is named twice counts once"
    write_run(outputs/"train_a/lr0.1_0/phase", params=dict(lr=9))
    (outputs/"train_a/.ipynb_checkpoints").mkdir()
    (outputs/"train_a/.ipynb_checkpoints/params.json").write_text("{}")
    found = find_runs(["train_a", outputs/"train_a", str(outputs/"train_*")], outputs)
    assert len(found) == 6 and not any(path.name == "phase" for path in found)
    assert [path.name for path in find_runs(outputs/"train_a/lr0.1_0/status.json", outputs)] == ["lr0.1_0"]


def test_a_place_without_runs_names_the_nearest(outputs):
    with pytest.raises(ValueError, match="did you mean 'train_a'"): find_runs("train_b", outputs)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), content=st.one_of(
    st.just(b""), st.just(b"\xff\xfe\x00"), st.just(b'{"a": '), st.just(b"[]"), st.just(b"{}"), st.just(b"null"), st.just(b'["x", 3, {}]'), st.just(b"[" * 50000),
    st.dictionaries(st.sampled_from(["status", "started", "seconds", "accuracy", "test_accuracy", "test_accuracy_lo", "lr", "name", "notebook", "tag", "pid"]),
                    st.one_of(st.none(), st.booleans(), st.text(max_size=5), st.lists(st.integers(), max_size=2), st.just({"b": [1]}), st.just(10**400), st.floats())).map(lambda o: json.dumps(o).encode())))
@example(name="status", content=json.dumps(dict(status="finished", name="1"*400, notebook="1"*400 + ".ipynb")).encode())
def test_no_file_breaks_the_reading_of_the_others(tmp_path, name, content):
    "Whatever a hand or a broken copy leaves in one file, the neighbour is read, and the table is made"
    shutil.rmtree(tmp_path/"out", ignore_errors=True)
    for run in ("one", "two"): scored(tmp_path/"out"/"a"/run, .9, lr=.1)
    (tmp_path/"out/a/one"/f"{name}.json").write_bytes(content)
    runs = read_runs(root=tmp_path/"out")
    table = Comparison(runs, score="test_accuracy")
    assert {run.name for run in runs} | {path.name for path in runs.ignored} == {"one", "two"}
    assert "two" in str(table) and len(table.frame()) == len(runs) and table.to_markdown() and table._repr_html_()
    views = RunViews(tmp_path/"out").read()
    assert len(views) == 2 and screen_of(views, 80, 20) and runs_html(views)


def test_what_is_damaged_is_named_and_the_rest_of_the_run_stays(outputs):
    (outputs/"train_a/lr0.1_0/result.json").write_text('{"test_accuracy": .')
    (outputs/"train_a/lr0.2_0/params.json").write_text("")
    (outputs/"train_a/lr0.2_0/status.json").write_text("")
    runs = read_runs(root=outputs)
    said = {path.name:why for path,why in runs.ignored.items()}
    assert len(runs) == 5 and "result.json: is not JSON" in said["lr0.1_0"] and "neither parameters nor a status" in said["lr0.2_0"]
    assert next(run for run in runs if run.name == "lr0.1_0").params == dict(lr=.1, seed=0, bs=8)


@pytest.mark.parametrize("name", ["result.json", "history.json", "status.json", "environment.json"])
@pytest.mark.parametrize("is_noted,change", [(True, "gone"), (False, "folder"), (False, "link"), (False, "garbage")])
def test_no_file_of_a_run_is_lost_without_being_named(tmp_path, name, is_noted, change):
    "Neither one that the run wrote and that is gone, nor what stands in its place; that of the epochs is read late, and named all the same"
    for run in ("one", "two"): folder = scored(tmp_path/"a"/run, .9, lr=.1)
    (folder/"environment.json").write_text("{}")
    if is_noted: (folder/".lock").touch()
    if is_noted: note_written(folder/name, b"{}")
    (folder/name).unlink()
    if change == "folder": (folder/name).mkdir()
    if change == "link": (folder/name).symlink_to("nowhere")
    if change == "garbage": (folder/name).write_text("{")
    table = Comparison(read_runs(root=tmp_path))
    assert f"two: {name}: " in str(table) and "*" in table.rows()[1]["status"] and "*" not in table.rows()[0]["status"]
    assert list(table.ignored) == [folder]


@pytest.mark.parametrize("status,said", [(dict(status="stopped", error="TrainingStopped: pruned after epoch 2 (exit code 76)"), "pruned"), (dict(status="stopped", error=None), "stopped"),
    (dict(status="failed", error="(exit code 76)"), "failed"), ({}, "")])
def test_a_pruned_run_is_called_so(status, said): assert shown_state(status) == said


def test_a_copy_of_a_run_that_was_under_way_is_killed(tmp_path):
    "Its process is on another machine, and nobody holds the copy"
    folder = write_run(tmp_path/"a"/"b", params=dict(lr=1), status=dict(status="running", host="elsewhere", pid=1))
    assert read_run(folder).state == "killed"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_read(tmp_path):
    folder = write_run(tmp_path/"a"/"b", params=dict(lr=1), status=dict(status="running"))
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert read_run(folder).params == dict(lr=1)


def test_the_recipes_value_stands_where_the_notebook_was_given_none(tmp_path):
    run = read_run(write_run(tmp_path/"a"/"b", params=dict(lr=None, bs=8, note=None), recipe=dict(lr=.002, bs=32, loss_kw=dict(gamma=2))))
    assert run.params == {"lr":.002, "bs":8, "loss_kw.gamma":2, "note":None}


def test_directions_are_declared_and_never_guessed(tmp_path):
    run = read_run(write_run(tmp_path/"a"/"b", params=dict(lr=1), columns={"zones/f1":dict(better="max"), "valid_loss":dict(better="min"), "lr":dict(better="")},
                             result={"test_zones/f1":.9, "test_loss":.1, "accuracy":.9}))
    assert [direction(run, name) for name in ("test_zones/f1", "valid_loss", "lr", "test_loss", "accuracy")] == ["max", "min", "", "", ""]


def test_a_score_is_the_results_or_the_best_epoch(tmp_path):
    rows = [dict(epoch=1, loss=3., f=.5), dict(epoch=2, loss=1., f=.7), dict(epoch=2, loss=2., f=.6), dict(epoch=3, loss=None)]
    run = read_run(write_run(tmp_path/"a"/"b", params=dict(lr=1), columns=dict(loss=dict(better="min")), history=rows, result=dict(f1=.9, f1_lo=.8, f1_hi=.95)))
    assert [row["epoch"] for row in run.history] == [1, 2, 3], "one row an epoch, the later one"
    assert score_value(run, "loss") == 2 and score_value(run, "f") == .6 and score_value(run, "f", "min") == .5 and score_value(run, "none") is None
    assert score_value(run, "f1") == .9 and interval(run, "f1") == (.8, .95) and interval(run, "loss") == (None, None)


def test_names_are_as_short_as_tells_runs_apart(tmp_path):
    runs = [read_run(write_run(tmp_path/place/"one", params=dict(lr=1))) for place in ("a", "b")]
    assert names_of(runs) == ["a/one", "b/one"] and names_of(runs[:1]) == ["one"] and names_of([]) == []
