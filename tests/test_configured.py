"One configuration: run once, ended in time, and its end is told apart"
import json
import os
import platform
import signal
import subprocess
import sys
import time

import pytest
from search_helpers import wait_for, workspace # noqa: F401, a fixture

from vitnb.experiment import configured
from vitnb.experiment.configured import run_configuration, slot_variables, time_limit
from vitnb.experiment.sweep import ENDED
from vitnb.runfolder import ask_to_stop, hold, mark_status, release, running_pid, write_json


def folder_of(workspace, name="r"):
    (workspace/"out/train_demo"/name).mkdir(parents=True)
    return workspace/"out/train_demo"/name


def carry_out(workspace, folder, minutes=None, variables=None, **params):
    return run_configuration(str(workspace/"train_demo.ipynb"), params, str(folder), minutes, variables)


def test_it_is_run_once_and_its_environment_is_its_own(workspace):
    nb = json.loads((workspace/"train_demo.ipynb").read_text())
    nb["cells"][1]["source"] += "\n(folder/'env.txt').write_text(os.environ['CUDA_VISIBLE_DEVICES'] + os.environ['OMP_NUM_THREADS'])"
    (workspace/"train_demo.ipynb").write_text(json.dumps(nb))
    folder = folder_of(workspace)
    variables = dict(CUDA_VISIBLE_DEVICES="1", OMP_NUM_THREADS="3")
    assert carry_out(workspace, folder, None, variables, x=1.) == dict(state="finished", why="")
    assert (folder/"env.txt").read_text() == "13" and "CUDA_VISIBLE_DEVICES" not in os.environ
    assert carry_out(workspace, folder, None, variables, x=1.)["state"] == "finished" and (folder/"began.txt").read_text() == "0\n"


def test_an_error_is_the_runs_and_a_limit_ends_it(workspace):
    "The notebook has no training to ask, so it is ended"
    found = carry_out(workspace, folder_of(workspace, "a"), x=9.)
    assert found["state"] == "failed" and "x=9.0 is too far" in found["why"]
    found = carry_out(workspace, folder_of(workspace, "b"), .08, nap=30.)
    assert found["state"] == "timeout" and "0.08 minutes" in found["why"]


def test_a_limit_asks_first(tmp_path, monkeypatch):
    "What has a pid gets a SIGTERM; no limit is no thread"
    asked = []
    monkeypatch.setattr(os, "kill", lambda pid, signum: asked.append((pid, signum)))
    mark_status(tmp_path, "running", pid=os.getpid(), host=platform.node())
    hold(tmp_path)
    with time_limit(tmp_path, .001) as over:
        while not asked: time.sleep(.01)
    assert over and asked[0] == (os.getpid(), signal.SIGTERM)
    with time_limit(tmp_path, None) as over: pass
    assert not over
    release(tmp_path)


@pytest.mark.parametrize("facts", [dict(host="node17"), dict(status="finished"), dict(pid=None), dict(pid="4"), dict(host=None)])
def test_a_number_that_belongs_to_another_process_gets_no_signal(tmp_path, monkeypatch, facts):
    "Of another machine, of a run that is over, or of nobody: a process here may have that number"
    monkeypatch.setattr(os, "kill", lambda pid, signum: pytest.fail(f"{pid} got {signum}"))
    whole = dict(status="running", pid=os.getpid(), host=platform.node())
    write_json(tmp_path/"status.json", whole)
    hold(tmp_path)
    assert running_pid(tmp_path) == os.getpid()
    write_json(tmp_path/"status.json", whole | facts)
    assert running_pid(tmp_path) is None and not ask_to_stop(tmp_path)
    release(tmp_path)
    write_json(tmp_path/"status.json", whole)
    assert not ask_to_stop(tmp_path), "nobody holds the folder"


@pytest.mark.parametrize("workers,devices,wanted", [(2, None, [None, None]), (3, ["0", "1"], ["0", "1", "0"]), (1, [3], ["3"])])
def test_slots_take_turns_with_devices_and_share_the_threads(monkeypatch, workers, devices, wanted):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = slot_variables(workers, devices)
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in found] == wanted
    assert {one["OMP_NUM_THREADS"] for one in found} == {str(max(1, os.cpu_count()//workers))}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "OMP_NUM_THREADS" not in slot_variables(workers, devices)[0], "what a person has set stays"


@pytest.mark.parametrize("said,state", [
    ("SIGUSR2 received; saved to x.pth (exit code 75)", "stopped"), ("SIGTERM received; saved to x.pth (exit code 143)", "stopped"),
    ("time limit of 1 h reached after 1:00:00; saved to x.pth (exit code 75)", "timeout"), ("pruned after epoch 2; saved (exit code 76)", "pruned")])
def test_an_orderly_stop_has_its_reason(workspace, monkeypatch, said, state):
    "What ran into its own limit would, begun again, end at once: it does not wait for another turn"
    class TrainingStopped(Exception): pass
    def stop(*given): raise TrainingStopped(said)
    monkeypatch.setattr(configured, "run_notebook", stop)
    found = carry_out(workspace, folder_of(workspace))
    assert found["state"] == state and found["why"] and (found["state"] in ENDED) == (state != "stopped")


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_job_that_will_be_ended_is_another_turns(workspace, number):
    "In a process of its own, as a queue has it: its signal ends the notebook in order, and the answer says so"
    folder = folder_of(workspace)
    call = ("import json, sys\nfrom vitnb.experiment.configured import run_configuration\n"
            f"print(json.dumps(run_configuration('train_demo.ipynb', dict(nap=float(sys.argv[1])), {str(folder)!r})))")
    job = subprocess.Popen([sys.executable, "-c", call, "1e3"], stdout=subprocess.PIPE, text=True)
    wait_for(lambda: (folder/"began.txt").is_file(), "the notebook did not begin")
    job.send_signal(number)
    assert json.loads(job.communicate(timeout=120)[0]) == dict(state="stopped", why="KeyboardInterrupt: ")
    again = subprocess.run([sys.executable, "-c", call, "0"], stdout=subprocess.PIPE, text=True, timeout=120)
    assert json.loads(again.stdout)["state"] == "finished"
