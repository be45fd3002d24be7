"Runs at a glance, from what they append to their event streams"
import json
import os
import platform
import time

import pytest
from command_helpers import workspace
from hypothesis import given, strategies as st

from vitnb.experiment import cli
from vitnb.experiment.watch import RunView, RunViews, run_line, runs_html, sparkline
from vitnb.runfolder import write_json

def write(folder, *events, tail=""):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder/"events.jsonl").open("a") as file: file.write("".join(json.dumps(e) + "\n" for e in events) + tail)
    return folder


def start(t, epochs=4, done=0): return dict(t=time.time() + t, event="start", epochs=epochs, done=done)
def epoch(t, n, loss=1., **more): return dict(t=time.time() + t, event="epoch", epoch=n, step=n*10, train_loss=loss, valid_loss=loss, lr=.1, **more)


def test_a_run_that_grows_is_read_to_its_end(tmp_path):
    folder = write(tmp_path/"train"/"1", start(-20), epoch(-10, 1, 2., accuracy=.5), tail='{"t": 1, "event": "ep')
    view = RunView(folder).read()
    assert view.epochs() == (1, 4) and view.metric() == ("accuracy", .5) and view.damaged == 0
    with (folder/"events.jsonl").open("a") as file: file.write('och", "epoch": 2, "train_loss": 1.5}\n')
    assert view.read().epochs() == (2, 4) and view.losses_so_far() == []
    write(folder, epoch(-5, 3), dict(t=time.time(), event="end", epochs=3, complete=False))
    view.read()
    assert view.is_over and view.state() == "stopped" and view.losses_so_far() == [2., 1.5, 1.] and view.left() is None


def test_how_long_it_will_take(tmp_path):
    view = RunView(write(tmp_path/"r", start(-20), epoch(-10, 1), epoch(0, 2))).read()
    assert view.left() == pytest.approx(20, abs=2)
    said = RunView(write(tmp_path/"s", start(-20), dict(t=time.time(), event="left", text="1:17", seconds=77.))).read()
    assert said.left() == pytest.approx(77, abs=2), "what the run itself says"
    resumed = RunView(write(tmp_path/"t", start(-900), epoch(-890, 1), epoch(-880, 2), start(-10, 6, 1), epoch(0, 2))).read()
    assert resumed.epochs() == (2, 6) and resumed.left() == pytest.approx(40, abs=2)


@pytest.mark.parametrize("raw", [b"", b"\n\n", b"null\n[1]\n3\n", b'{"t": "x"}\n', b"\xff\xfe\n", b'{"t": 1, "event": "start", "epochs": "many", "done": null}\n{"t": 2, "event": "epoch", "epoch": null}\n'])
def test_a_stream_that_somebody_has_edited(tmp_path, raw):
    (tmp_path/"events.jsonl").write_bytes(raw)
    view = RunView(tmp_path).read()
    assert len(run_line(view)) == 8 and runs_html([view])


def test_a_stream_that_was_begun_anew(tmp_path):
    view = RunView(write(tmp_path, start(-9), epoch(-8, 1), epoch(-7, 2))).read()
    (tmp_path/"events.jsonl").unlink()
    write(tmp_path, start(-1, 7))
    assert view.read().epochs() == (0, 7)


@pytest.mark.parametrize("pid,state", [(os.getpid(), "running"), (2**22 + 1, "killed")], ids=["lives", "gone"])
def test_a_status_that_is_no_longer_true(tmp_path, pid, state):
    folder = write(tmp_path, start(0))
    (folder/"status.json").write_text(json.dumps(dict(status="running", pid=pid, host=platform.node())))
    before = sorted(p.name for p in folder.iterdir())
    assert RunView(folder).read().state() == state and sorted(p.name for p in folder.iterdir()) == before, "looking leaves no trace"


@pytest.mark.parametrize("name,said", [("status.json", "status.json: damaged"), ("events.jsonl", "events.jsonl: Is a directory")])
def test_what_cannot_be_read_is_named(tmp_path, name, said):
    folder = write(tmp_path, start(0))
    (folder/"status.json").write_text("{")
    if name == "events.jsonl":
        (folder/"status.json").unlink()
        (folder/name).unlink()
        (folder/name).mkdir()
    assert run_line(RunView(folder).read())[1].endswith(said)


def half(path): path.write_bytes(path.read_bytes()[:-9])
def without_end(path): path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:-1]))
def piped(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name,spoil,said", [
    ("status.json", os.unlink, "status.json: damaged"), ("status.json", piped, "status.json: damaged"), ("events.jsonl", half, "events.jsonl: ends within a line"),
    ("events.jsonl", without_end, "events.jsonl: the end is missing"), ("events.jsonl", os.unlink, "events.jsonl: holds no event"), ("events.jsonl", piped, "events.jsonl: is a pipe")])
def test_what_a_run_wrote_and_is_gone_is_named(tmp_path, name, spoil, said):
    folder = write(tmp_path/"r", start(0), epoch(0, 1), dict(t=time.time(), event="end", complete=True))
    (folder/".lock").touch()
    write_json(folder/"status.json", dict(status="finished"))
    write_json(folder/"history.json", [dict(epoch=1)])
    assert run_line(RunView(folder).read())[1] == "finished"
    spoil(folder/name)
    assert run_line(RunView(folder).read())[1].endswith(said)


def test_the_newest_picture(tmp_path):
    folder = write(tmp_path/"pretrain"/"1", start(0))
    assert RunView(folder).read().picture_file() is None
    (folder/"figures").mkdir()
    (folder/"figures"/"masked.png").write_bytes(b"old")
    (folder/"figures"/"new.png").write_bytes(b"new")
    write(folder, dict(t=time.time(), event="picture", path="figures/new.png"))
    view = RunView(folder).read()
    assert view.picture_file().read_bytes() == b"new" and "data:image/png;base64,bmV3" in runs_html([view])


def test_the_command(workspace, capfd):
    for n in range(5): write(workspace/"out"/"train_demo"/f"2025010{n}", start(-10), epoch(-1, 1, 2., accuracy=n/10))
    assert cli.main(["watch", "--once", "--last", "3"]) == 0
    said = capfd.readouterr().out
    assert "accuracy 0.4000" in said and "accuracy 0.2000" in said and "accuracy 0.1000" not in said and said.index("0.4000") < said.index("0.2000")
    assert cli.main(["watch", "--once"]) == 0
    said = capfd.readouterr().out # a pipe: whole names and all columns, whatever its width would be
    assert all(f"train_demo/2025010{n}" in said for n in range(5)) and "last event" in said and "…" not in said
    assert cli.main(["watch", "nowhere"]) == 2 and "not a folder of runs" in capfd.readouterr().err


def test_runs_are_found_at_any_depth_of_a_workspace(tmp_path):
    write(tmp_path/"a"/"1", start(0))
    assert [len(RunViews(root).read()) for root in (tmp_path, tmp_path/"a", tmp_path/"a"/"1")] == [1, 1, 1]


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True), st.integers(), st.text(max_size=2))))
def test_a_line_of_values(values): assert len(sparkline(values, 9)) <= 9
