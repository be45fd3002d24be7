"Processes of one command: their port, their number, their environment, and their end"
import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch

import vitnb.launch as launch
from vitnb.launch import Ranks, check_processes, end_tree, free_port

CPU = torch.device("cpu")
SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


def test_a_port_in_use_is_refused_and_a_free_one_can_be_had():
    with socket.socket() as held:
        held.bind(("", 0))
        held.listen()
        with pytest.raises(ValueError, match="is in use on this machine.*choose another"): free_port(held.getsockname()[1])
    port = free_port()
    assert free_port(port) == port


@pytest.mark.parametrize("n", [0, -1, True, 1.5, "2", None])
def test_a_number_of_processes_is_whole(n):
    with pytest.raises(ValueError, match="whole number from 1"): check_processes(n, CPU)


@pytest.mark.parametrize("cores,most", [(4, 4), (1, 2), (None, 2)])
def test_there_are_no_more_processes_than_cores(monkeypatch, cores, most):
    "Two can always be tried"
    monkeypatch.setattr(launch.os, "cpu_count", lambda: cores)
    assert check_processes(most, CPU) == most
    with pytest.raises(ValueError, match=f"this machine has {most} cores; use at most {most}"): check_processes(most + 1, CPU)


def test_each_knows_its_rank_and_all_the_same_address(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "of another launch")
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT COLOUR TORCHELASTIC_RUN_ID".split()
    code = f"import os; print(*(os.environ.get(name) for name in {names}))"
    logs = [open(tmp_path/f"{rank}", "w") for rank in range(2)]
    with Ranks([sys.executable, "-S", "-c", code], 2, logs=dict(enumerate(logs)), COLOUR="red") as ranks: assert ranks.wait() == [0, 0]
    for log in logs: log.close()
    first,second = ((tmp_path/f"{rank}").read_text().split() for rank in range(2))
    assert first[:4] == ["0", "0", "2", "2"] and second[:4] == ["1", "1", "2", "2"]
    assert first[4:] == second[4:] == ["127.0.0.1", first[5], "red", "None"]


def test_the_failure_of_one_ends_the_others():
    code = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(600)"
    with Ranks([sys.executable, "-S", "-c", code], 2, grace=0) as ranks: assert ranks.wait() == [-9, 3]
    assert ranks.ended == {1:3}, "who failed by itself is known"


def test_leaving_the_block_leaves_nobody():
    with Ranks(SLEEP, 2) as ranks: assert ranks.codes() == [None, None]
    assert ranks.codes() == [-9, -9]


@pytest.mark.parametrize("itself", [True, False])
def test_a_process_is_ended_with_what_it_started(itself):
    code = f"import subprocess, time; subprocess.Popen({SLEEP}); time.sleep(600)"
    parent = psutil.Popen([sys.executable, "-S", "-c", code])
    while not parent.children(): time.sleep(.01)
    (child,) = parent.children()
    end_tree(parent.pid, itself)
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE: time.sleep(.01) # nobody waits for it
    assert parent.wait() == -9 if itself else parent.poll() is None
    end_tree(parent.pid)
    assert parent.wait() == -9
    end_tree(parent.pid) # who is gone already is no error


def test_a_rank_takes_its_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch.os, "cpu_count", lambda: 12)
    with Ranks([sys.executable, "-S", "-c", "import os, sys; sys.exit(int(os.environ['OMP_NUM_THREADS']))"], 3) as ranks:
        assert ranks.wait(calm=lambda code: True) == [4, 4, 4]
    assert "OMP_NUM_THREADS" not in os.environ


MEET = """
import json, os, sys, time
from datetime import timedelta
import psutil, torch, torch.distributed as dist
from vitnb.launch import meet_on_loopback
meet_on_loopback(60)
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
one = torch.ones(1)
dist.all_reduce(one)
heard = [c.laddr.ip for c in psutil.Process().net_connections(kind="inet") if c.status == "LISTEN"]
open(sys.argv[1] + os.environ["RANK"], "w").write(json.dumps([one.item(), heard]))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("launcher", ["ours", "another"])
def test_ranks_of_one_machine_listen_on_its_loopback_alone(tmp_path, launcher):
    def listening(): return [c.laddr.ip for c in psutil.Process().net_connections(kind="inet") if c.status == "LISTEN"]
    before = len(listening())
    command = [sys.executable, "-c", MEET, str(tmp_path/"said")]
    if launcher == "ours":
        with Ranks(command, 2) as ranks:
            seen = listening()
            codes = ranks.wait()
        assert len(seen) == before + 1 and len(listening()) == before, "the meeting is here, and ends with the ranks"
        assert set(seen) <= {"127.0.0.1"}
    else:
        port = str(free_port())
        def env(rank): return {**os.environ, "RANK":str(rank), "WORLD_SIZE":"2", "MASTER_ADDR":"127.0.0.1", "MASTER_PORT":port}
        codes = [p.wait() for p in [subprocess.Popen(command, env=env(rank)) for rank in range(2)]]
    said = [json.loads((tmp_path/f"said{rank}").read_text()) for rank in range(2)]
    assert codes == [0, 0] and [one for one,_ in said] == [2., 2.]
    assert {address for _,heard in said for address in heard} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


class Cuda:
    "A machine that shows `n` CUDA devices, of those that the environment leaves"
    def __init__(self, monkeypatch, n, hidden=None):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n)))).split(",")) if n else 0)
        if hidden is None: monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else: monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)


GPU = torch.device("cuda")


@pytest.mark.parametrize("text,hidden,want", [("0,2", None, "0,2"), ("2, 0", None, "2,0"), ("1", "4,7", "7"), ("1,0", "GPU-aa,GPU-bb", "GPU-bb,GPU-aa")])
def test_chosen_devices_are_all_that_the_run_sees(monkeypatch, text, hidden, want):
    Cuda(monkeypatch, 4, hidden)
    assert launch.device_environment(text) == dict(CUDA_VISIBLE_DEVICES=want) and launch.device_environment(None) == {}


@pytest.mark.parametrize("text,says", [("0,0", "each once"), ("a", "such as 0,1,2"), ("", "such as"), ("0,4", "device 4 is not on this machine, which shows 4"), ("-1", "such as")])
def test_devices_that_cannot_be_are_refused(monkeypatch, text, says):
    Cuda(monkeypatch, 4)
    with pytest.raises(ValueError, match=says): launch.device_environment(text)


@pytest.mark.parametrize("asked,devices,device,want", [(None, None, GPU, 1), ("auto", None, GPU, 4), ("auto", None, CPU, 1), ("auto", "0,2", GPU, 2), (None, "0,2", GPU, 2), (None, "3", GPU, 1),
                                                       ("2", None, CPU, 2), (2, "0,2", GPU, 2)])
def test_how_many_processes_there_shall_be(monkeypatch, asked, devices, device, want):
    Cuda(monkeypatch, 4)
    assert launch.count_processes(asked, devices, device) == want


@pytest.mark.parametrize("asked,devices,device,says", [("3", "0,2", GPU, "3 processes on 2 devices"), ("5", None, GPU, "this machine has 4 CUDA devices"), ("many", None, GPU, "or auto"), ("0", None, CPU, "from 1"),
                                                       (None, "0,1", CPU, "trains on cpu")])
def test_processes_that_cannot_be_are_refused(monkeypatch, asked, devices, device, says):
    Cuda(monkeypatch, 4)
    with pytest.raises(ValueError, match=says): launch.count_processes(asked, devices, device)


def test_idle_devices_are_said(monkeypatch):
    Cuda(monkeypatch, 4)
    assert "1 of 4 CUDA devices train" in launch.idle_devices(1, GPU) and launch.idle_devices(4, GPU) == launch.idle_devices(1, CPU) == ""
    Cuda(monkeypatch, 4, "2")
    assert launch.idle_devices(1, GPU) == "", "what is hidden from the run is not idle"


CHILD = "import sys, time; from vitnb.launch import follow_parent; print('there', flush=True); follow_parent(lambda: open(sys.argv[1], 'w').write('gone'), {}, .02).join(60)"
PARENT = "import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1].format(os.getpid()), sys.argv[2]]); time.sleep(600)"


@pytest.mark.parametrize("at_once", [True, False])
def test_a_child_hears_of_the_sudden_death_of_its_parent(tmp_path, at_once):
    "SIGKILL of the parent, before the child has looked for the first time or after"
    file = tmp_path/"said"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(file)], stdout=subprocess.PIPE, text=True)
    while not (children := psutil.Process(parent.pid).children()): time.sleep(.01)
    if not at_once:
        assert parent.stdout.readline() == "there\n"
        time.sleep(.1)
        assert not file.exists(), "its parent lives"
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(children, timeout=60)[1] and file.read_text() == "gone"
    parent.stdout.close()


def test_a_rank_knows_that_its_launcher_is_gone(monkeypatch):
    done = subprocess.Popen([sys.executable, "-S", "-c", ""])
    done.wait()
    for pid,gone in ((os.getpid(), False), (done.pid, True)):
        monkeypatch.setenv(launch.LAUNCHER, str(pid))
        assert launch.is_orphan() == gone
    monkeypatch.delenv(launch.LAUNCHER)
    assert not launch.is_orphan(), "a launcher of others does not say who it is"
