"Runs side by side, killed and begun again, on processes of this machine and on a cluster"
import json
import os
import signal
import time
from concurrent.futures import Future
from statistics import median

import psutil
import pytest
from search_helpers import wait_for, workspace # noqa: F401, a fixture
from sweep_helpers import Pretend, began, kill_family, plan_of, start_sweep

from vitnb.experiment.sweep import Sweep, read_journal
from vitnb.experiment.sweeper import GivenExecutor, Sweeper, run_sweep


def test_killed_at_any_moment_every_configuration_is_done_exactly_once(workspace):
    "The sweep and a worker are killed in the middle of runs; epochs that were done are not done again"
    args = ["train_demo.ipynb", "--space", json.dumps(dict(x=[0., 1., 2., 9.])), "--score", "near", "--better", "max", "--workers", 2, "-p", "nap", ".3"]
    first = start_sweep(workspace, *args)
    wait_for(lambda: any(path.stat().st_size > 40 for path in (workspace/"out/train_demo").glob("*/history.json")), 60)
    kill_family(first)
    second = start_sweep(workspace, *args)
    out,_ = second.communicate(timeout=120)
    assert second.returncode == 0, out
    rows = read_journal(workspace/"out/sweeps/train_demo/runs.jsonl")
    assert [rows[n].state for n in range(4)] == ["finished", "finished", "finished", "failed"] and "x2.0" in out
    found = began(workspace)
    assert sorted(found) == ["x0.0", "x1.0", "x2.0"] and all(starts == sorted(set(starts)) for starts in found.values()), found
    for path in (workspace/"out/train_demo").glob("*/history.json"): assert [row["epoch"] for row in json.loads(path.read_text())] == [1, 2, 3, 4]
    assert len(list((workspace/"out/train_demo").iterdir())) == 4, "no configuration has two folders"


def test_a_worker_that_is_killed_costs_only_its_own_run_a_new_try(workspace):
    plan = plan_of(workspace, dict(x=[0., 1.]), params=dict(nap=.4))
    lines,killed = [],[]
    def kill_one():
        for child in psutil.Process().children():
            busy = [path for path in (workspace/"out/train_demo").glob("*/history.json")]
            if busy and any("spawn_main" in part for part in child.cmdline()) and not killed:
                killed.append(child.pid)
                child.kill()
    import threading
    done = threading.Event()
    def watch():
        while not done.is_set() and not killed:
            kill_one()
            time.sleep(.05)
    threading.Thread(target=watch, daemon=True).start()
    sweep = run_sweep(plan, workers=1, say=lines.append)
    done.set()
    assert killed and sweep.counts() == dict(finished=2) and [line.split(":")[1].split()[0] for line in lines].count("killed") == 1
    assert all(starts == sorted(set(starts)) for starts in began(workspace).values())


def test_a_signal_stops_in_order_and_the_same_command_goes_on(workspace):
    args = ["train_demo.ipynb", "--space", json.dumps(dict(x=[0., 1.])), "--score", "near", "--better", "max", "-p", "nap", ".3"]
    first = start_sweep(workspace, *args)
    wait_for(lambda: list((workspace/"out/train_demo").glob("*/history.json")), 60)
    first.send_signal(signal.SIGTERM)
    out,_ = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM and "waiting" in out
    second = start_sweep(workspace, *args[:-1], ".3")
    out,_ = second.communicate(timeout=120)
    assert second.returncode == 0 and "2 finished" in out


def test_a_signal_before_the_kernel_is_there_reaches_it_then(workspace):
    "The run ends in order once its kernel can be asked, and not after its hour"
    args = ["train_demo.ipynb", "--space", json.dumps(dict(x=[0., 1.])), "--score", "near", "--better", "max", "-p", "nap", "3600"]
    sweep = start_sweep(workspace, *args)
    wait_for(lambda: list((workspace/"out/sweeps/train_demo").glob("runs.jsonl")), 60)
    sweep.send_signal(signal.SIGTERM)
    out,_ = sweep.communicate(timeout=120)
    assert sweep.returncode == 128 + signal.SIGTERM and "is asked to save" in out and "waiting" in out, out


def test_what_runs_elsewhere_is_cancelled(workspace):
    "By its executor: a job that waits or runs on another machine has no process here"
    class Elsewhere(Pretend):
        def submit(self, *given):
            self.future = Future()
            return self.future
    executor = Elsewhere()
    with Sweep(plan_of(workspace)) as sweep:
        sweeper = Sweeper(sweep, executor, say=lambda line: None)
        sweeper._fill()
        sweeper.stop()
        sweeper.work()
        assert executor.future.cancelled() and sweep.counts() == dict(waiting=3)


@pytest.mark.parametrize("wrong", [0, True, 1.5])
def test_workers_are_a_number(workspace, wrong):
    with pytest.raises(ValueError, match="workers="): run_sweep(plan_of(workspace), workers=wrong)


def test_a_client_is_asked_for_its_executor():
    class Client:
        def get_executor(self, pure): return ("executor", pure)
    assert GivenExecutor(Client()).executor == ("executor", False) and GivenExecutor("own").executor == "own"


def test_a_cluster_that_loses_a_worker_runs_its_configuration_once_more(workspace, monkeypatch):
    "A real scheduler of dask and two workers, one of them killed in the middle of a run"
    monkeypatch.setenv("OMP_NUM_THREADS", "1") # dask sets it where it is not, for the whole process
    distributed = pytest.importorskip("dask.distributed")
    plan = plan_of(workspace, dict(x=[0., 1., 2.]), params=dict(nap=.4))
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, distributed.Client(cluster) as client:
        pids = list(client.run(os.getpid).values())
        killed = []
        def kill():
            busy = wait_for(lambda: list((workspace/"out/train_demo").glob("*/history.json")), 60)
            killed.append(busy)
            os.kill(pids[0], signal.SIGKILL)
        import threading
        thread = threading.Thread(target=kill)
        thread.start()
        sweep = run_sweep(plan, workers=2, executor=client, say=lambda line: None)
        thread.join()
    assert killed and sweep.counts() == dict(finished=3)
    starts = sorted(began(workspace).values())
    assert sum(len(one) for one in starts) <= 4 and all(one == sorted(set(one)) for one in starts), starts


def test_a_cluster_prunes_what_the_median_says(workspace, monkeypatch):
    "The rule by hand, over the histories; the worker is told of no study and no storage"
    monkeypatch.setenv("OMP_NUM_THREADS", "1") # as above
    distributed = pytest.importorskip("dask.distributed")
    pruner = dict(name="median", n_startup_trials=1, n_warmup_steps=1)
    plan = plan_of(workspace, dict(x=dict(low=0., high=4.)), method="tpe", runs=5, pruner=pruner)
    lines = []
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, distributed.Client(cluster) as client:
        sweep = run_sweep(plan, executor=client, say=lines.append)
    assert [line.rpartition("; ")[2] for line in lines] == [f"{left} left" for left in (4, 3, 2, 1, 0)]
    assert all(one.why.startswith("pruned after epoch") and ";" not in one.why for one in sweep.rows.values() if one.state == "pruned")
    assert "storage" not in sweep.ticket(sweep.rows[0])["VITNB_TRIAL"]
    ended = [] # values of the epochs of those that were complete before
    for one in sweep.rows.values():
        values = [row["near"] for row in json.loads((sweep.run_dir(one)/"history.json").read_text())]
        behind = [n for n in range(1, 5) if ended and max(values[:n]) < median(other[n - 1] for other in ended)]
        assert one.state == ("pruned" if behind else "finished") and len(values) == (behind[0] if behind else 4), one
        if not behind: ended.append(values)
    assert {one.state for one in sweep.rows.values()} == {"finished", "pruned"}, "the test shows both"


@pytest.mark.slow # starts two jobs, one of them twice, each with a kernel
def test_submitit_carries_a_sweep_out(workspace):
    """Its own local executor, by the command: jobs of this machine, as those of Slurm would be. What the queue tells to end waits
    for another turn, and goes on"""
    pytest.importorskip("submitit")
    args = ["train_demo.ipynb", "--space", json.dumps(dict(x=[0., 1.])), "--score", "near", "--better", "max", "--submitit", "local", "--minutes", "3", "-p", "nap", ".5"]
    sweep = start_sweep(workspace, *args)
    wait_for(lambda: list((workspace/"out/train_demo").glob("*/history.json")), "no run began")
    family = psutil.Process(sweep.pid).children(recursive=True)
    for process in family: process.send_signal(signal.SIGUSR2)
    out,_ = sweep.communicate(timeout=200)
    assert sweep.returncode == 0 and "2 finished" in out and ": stopped (" in out, out
    first,second = began(workspace).values()
    assert len(list((workspace/"out/sweeps/train_demo/jobs").glob("*_result.pkl"))) == 3 and sorted(map(len, (first, second))) == [1, 2]
    for starts in (first, second): assert starts[0] == 0 and starts == sorted(set(starts)), "no epoch was done twice"
