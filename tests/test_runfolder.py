"The folder of a run: one process writes there, and its status is the truth whatever ended that process"
import json
import os
import signal
import subprocess
import threading
import time

import pytest

from vitnb import runfolder
from vitnb.core import atomic_write
from vitnb.files import BrokenFile
from vitnb.runfolder import (hand_on, hold, hold_when_free, in_use, is_held, is_nested, leave_outer_run, left_undone, mark_status, read_json, release, run_status, settle, sweep)


def fork(work):
    "Run `work` in a process of its own, which then waits to be killed; gives its number when `work` is done"
    ready,told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(told, b".")
            time.sleep(300)
        finally: os._exit(1)
    os.close(told)
    os.read(ready, 1)
    os.close(ready)
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    release(tmp_path)


def test_one_process_holds_a_folder_until_it_is_killed(folder):
    other = fork(lambda: hold(folder))
    assert not hold(folder) and not is_held(folder) and str(other) in in_use(folder)
    kill(other)
    assert hold(folder) and hold(folder) and is_held(folder)


def test_who_waits_for_a_folder_says_so_and_gets_it(folder):
    "A job of a cluster goes on though its sweep was killed: the next try waits, and is no failure"
    other = fork(lambda: hold(folder))
    lines = []
    def say(line):
        lines.append(line)
        kill(other)
    hold_when_free(folder, patience=.3, say=say)
    assert is_held(folder) and lines == [f"waiting, because {folder} is in use by process {other} on {os.uname().nodename}"]


def test_what_a_cell_leaves_in_the_background_holds_no_lock(folder):
    "As `os.system('... &')` does: it has all descriptors that may be inherited"
    hold(folder)
    background = subprocess.Popen(["sleep", "300"], close_fds=False)
    release(folder)
    other = fork(lambda: hold(folder))
    assert not hold(folder) and str(other) in in_use(folder)
    kill(other)
    background.kill()
    background.wait()


def test_the_lock_lives_on_in_what_its_owner_has_started(folder):
    "A launcher is killed: as long as its kernel is there, nobody else gets the folder; then who waits gets it"
    def launch():
        hold(folder)
        variables,descriptors = hand_on(folder)
        child = subprocess.Popen(["sleep", "300"], pass_fds=descriptors)
        (folder/"kernel").write_text(str(child.pid))
        assert variables["VITNB_RUN_DIR"] == str(folder)
    launcher = fork(launch)
    kernel = int((folder/"kernel").read_text())
    kill(launcher)
    assert run_status(folder) == {} # a look does not wait
    ended = threading.Event()
    def end():
        os.kill(kernel, signal.SIGKILL)
        ended.set()
    threading.Timer(.5, end).start()
    assert hold(folder) and ended.wait(300), "not before the kernel was gone"


def test_a_process_that_inherits_the_lock_holds_the_folder(folder, monkeypatch, tmp_path):
    "As a process that was just started, with the open lock, and with the number of another file in its place"
    assert hold(folder)
    variables,(descriptor,) = hand_on(folder)
    assert variables["VITNB_LOCK"] == str(descriptor)
    monkeypatch.setattr(runfolder, "_held", {})
    monkeypatch.setenv("VITNB_LOCK", str(descriptor))
    assert hold(folder)
    monkeypatch.setattr(runfolder, "_held", {})
    with (tmp_path/"another").open("w") as other:
        monkeypatch.setenv("VITNB_LOCK", str(other.fileno()))
        assert not hold(folder)
    monkeypatch.undo()


def test_nobody_marks_a_folder_that_another_holds(folder):
    def work():
        hold(folder)
        mark_status(folder, "running", name="first")
    other = fork(work)
    before = (folder/"status.json").read_bytes()
    with pytest.raises(ValueError, match=f"in use by process {other}"): mark_status(folder, "failed", error="mine")
    assert (folder/"status.json").read_bytes() == before and run_status(folder)["status"] == "running"
    kill(other)
    assert run_status(folder)["status"] == "killed" and read_json(folder/"status.json")["status"] == "running"
    assert settle(folder)["status"] == "killed" and read_json(folder/"status.json")["status"] == "killed"
    assert "killed" in read_json(folder/"status.json")["error"] and not is_held(folder)


def test_a_run_that_goes_on_forgets_how_it_had_ended(folder):
    mark_status(folder, "running", name="x")
    assert mark_status(folder, "failed", error="no such leaf")["ended"]
    again = mark_status(folder, "running")
    assert again["name"] == "x" and again.keys().isdisjoint({"error", "ended", "seconds"})


@pytest.mark.parametrize("state", ["finished", "failed", "stopped", "interrupted"])
def test_an_end_that_was_told_stays(folder, state):
    mark_status(folder, "running")
    mark_status(folder, state)
    assert run_status(folder)["status"] == settle(folder)["status"] == state


def test_files_of_killed_writers_go_when_the_folder_is_taken(folder):
    (folder/"checkpoints").mkdir()
    writers = [] # or the generator is collected, which ends it in order
    def write(path):
        writers.append(atomic_write(path))
        writers[-1].__enter__().write_text("half")
    dead = fork(lambda: write(folder/"checkpoints/last_model.pth"))
    alive = fork(lambda: write(folder/"history.csv"))
    kill(dead)
    assert len(list(folder.rglob(".*.tmp"))) == 2
    (folder/".notes.tmp").write_text("of a person")
    assert hold(folder)
    left = sorted(p.name for p in folder.rglob(".*.tmp"))
    assert len(left) == 2 and left[0].startswith(f".history.csv.{alive}.") and left[1] == ".notes.tmp"
    kill(alive)
    assert sweep(folder) == 1


def test_a_run_inside_a_run_is_not_the_outer_one(monkeypatch):
    for name in ("VITNB_RUN_DIR", "VITNB_RUN_FOR", "VITNB_LOCK", "VITNB_TRIAL", "WORLD_SIZE", "RANK"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VITNB_RUN_DIR", "given")
    assert not is_nested() # by a person, or a test
    for pid in (os.getpid(), os.getppid()):
        monkeypatch.setenv("VITNB_RUN_FOR", str(pid))
        assert not is_nested()
    monkeypatch.setenv("VITNB_RUN_FOR", str(2**22 + 1))
    monkeypatch.setenv("VITNB_TRIAL", json.dumps(dict(study="outer")))
    monkeypatch.setenv("WORLD_SIZE", "2")
    leave_outer_run()
    assert not {"VITNB_RUN_DIR", "VITNB_TRIAL", "WORLD_SIZE", "VITNB_RUN_FOR"} & os.environ.keys()


@pytest.mark.parametrize("text", ['{"event": "start", "epochs": 3', '{"event": "end"}\n[{"event": "start"}', '{"event": "end", "complete": false}\n', b"\xff\xfe\x00"])
def test_a_damaged_record_of_events_is_named(tmp_path, text):
    (tmp_path/"events.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BrokenFile, match="events.jsonl"): left_undone(tmp_path)


def test_a_lock_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="make room there.*[.]lock"): hold(tmp_path)


@pytest.mark.parametrize("content", ["", "{\"a\": 1", "[1]"], ids=["empty", "cut", "another kind"])
def test_a_damaged_file_of_a_run_is_named_with_what_to_do(tmp_path, content):
    (tmp_path/"history.json").write_text(content)
    with pytest.raises(ValueError, match="(?s)history.json.*remove it: what training goes on from"): read_json(tmp_path/"history.json")
