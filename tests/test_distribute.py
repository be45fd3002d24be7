"Two processes are one with twice the batch: weights, scores, resume, errors, and nothing left behind"
import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import distribute_worker as worker
import psutil
import pytest
import torch

from vitnb.callback.checkpoint import load_checkpoint
from vitnb.core import Ranks, free_port
from vitnb.experiment import cli
from vitnb.experiment.run import read_json
from vitnb.learner.distribute import WholeBatch, shard
from vitnb.testing import differences

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BATCHNORM = "densenet", "densenet_drop"


def environment(**kw):
    "Of a process that finds this checkout, with one thread; what a launcher may have left is taken out"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {k: v for k,v in os.environ.items() if not k.startswith(("VITNB_", "ACCELERATE_")) and k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**own, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "VITNB_RANK_TIMEOUT": "240", "PYTHONWARNINGS": "ignore", **kw}


def state(folder): return load_checkpoint(folder/"checkpoints/last_model.pth")["training_state"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "All that two ranks find, by rank, and the folder they worked in"
    out = tmp_path_factory.mktemp("ranks")
    worker.resume(out/"one", 8)
    old = {k: os.environ.get(k) for k in environment()}
    os.environ.update(environment())
    try:
        with open(out/"log", "w") as log, Ranks([sys.executable, str(HERE/"distribute_worker.py"), str(out)], 2, logs={0: log, 1: log}) as ranks: codes = ranks.wait()
    finally:
        for k,v in old.items(): os.environ.pop(k) if v is None else os.environ.update({k: v})
    assert codes == [0, 0], (out/"log").read_text()[-4000:]
    return [torch.load(out/f"rank{r}.pth", weights_only=True) for r in range(2)], out


@pytest.fixture(scope="module")
def one():
    "The same in one process, when asked for"
    done = {}
    def get(case):
        if case not in done:
            learn = worker.make(**worker.CASES[case])
            learn.fit(2)
            done[case] = worker.result(learn)
        return done[case]
    return get


def distance(a, b): return max((a[k].double() - b[k].double()).abs().max().item()/max(1., a[k].double().abs().max().item()) for k in a)


# ---------------------------------------------------------------------------------------------- equality

@pytest.mark.parametrize("case", worker.CASES)
def test_weights_of_one_process(two, one, case):
    "To the rounding of sums in another order; a different draw or a missing sample is 1e-3 and more here"
    a,b,other = one(case),two[0][0][f"case {case}"],two[0][1][f"case {case}"]
    assert a["model"].keys() == b["model"].keys() and not differences(b["model"], other["model"])
    assert distance(a["model"], b["model"]) < 2e-5
    assert a["ema"].keys() == b["ema"].keys() and (not a["ema"] or distance(a["ema"], b["ema"]) < 2e-5)
    assert a["losses"] == pytest.approx(b["losses"], rel=1e-4)


@pytest.mark.parametrize("case", worker.CASES)
def test_history_of_one_process(two, one, case):
    "The same columns; every sample counted once, so accuracies are equal as numbers"
    for a,b in zip(one(case)["rows"], two[0][0][f"case {case}"]["rows"]):
        assert a.keys() == b.keys()
        for k in a.keys() - {"seconds"}:
            if "accuracy" in k or "top5" in k or "f1" in k or k in ("epoch", "step", "lr"): assert a[k] == pytest.approx(b[k], abs=1e-12), k
            else: assert a[k] == pytest.approx(b[k], rel=2e-5), k


@pytest.mark.parametrize("case", ["swin", "densenet"])
def test_validation_is_equal_in_every_bit(two, case):
    "With the same weights one process finds the same numbers, also where the last turn has a batch for one rank only"
    got = two[0][0][f"case {case}"]
    learn = worker.make(**worker.CASES[case])
    learn.model.load_state_dict(got["model"])
    assert len(learn.dls.valid) % 2, "the last turn should be padded"
    scores = dict(zip(("valid_loss", *(m.name for m in learn.metrics)), learn.validate()))
    assert {k: float(v) for k,v in scores.items()} == {k: got["rows"][-1][k] for k in scores}


def test_draws_matter():
    "What the mode replaces is seen by the equality tests: without it another row of the mask is drawn"
    net = torch.nn.Dropout(.5)
    def draw(n, mode=None):
        torch.manual_seed(0)
        if mode is None: return net(torch.ones(n, 50))
        with mode: return net(torch.ones(n, 50))
    mine = shard(8, 1, 2)
    assert torch.equal(draw(8)[mine], draw(4, WholeBatch(8, mine))) and not torch.equal(draw(8)[mine], draw(4))


@pytest.mark.parametrize("n,world", [(8, 2), (16, 4), (5, 2), (7, 3), (12, 3), (10, 2)])
def test_every_sample_once(n, world):
    parts = [shard(n, r, world).tolist() for r in range(world)]
    assert sorted(sum(parts, [])) == list(range(n)) and max(map(len, parts)) - min(map(len, parts)) <= 1
    if n % (2*world) == 0: assert all({n-1-i for i in p} == set(p) for p in parts), "partners of MixUp stay together"


# ---------------------------------------------------------------------------------------------- gathered features

@pytest.mark.parametrize("how", ["same", "different"])
def test_gathered_gradient_is_that_of_one_process(two, how):
    torch.manual_seed(0)
    net,x = torch.nn.Linear(6, 4),torch.randn(2, 8, 6)
    loss = worker.info_nce(net(x[0]), net(x[1]))
    if how == "different": loss = loss*1.5 # the mean of the ranks' losses, 1 and 2 times it
    loss.backward()
    assert torch.allclose(net.weight.grad, two[0][0][how]["grad"], atol=1e-6)


def test_gathered_rows_may_differ_in_number(two):
    (a,b) = (o["uneven"] for o in two[0])
    assert torch.equal(a["y"], b["y"]) and a["y"].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    w = torch.arange(9.).view(3, 3)*2 # two ranks, each with this loss
    assert torch.equal(a["grad"], w[:1]) and torch.equal(b["grad"], w[1:])


# ---------------------------------------------------------------------------------------------- resume

def test_resume_is_exact(two):
    a,b = two[0][0]["whole"],two[0][0]["resumed"]
    assert not differences({k: a[k] for k in ("model", "opt", "ema", "losses")}, {k: b[k] for k in ("model", "opt", "ema", "losses")})
    assert not differences(a["rows"], b["rows"], ["seconds"])


def test_resume_on_another_number_of_processes(two, tmp_path):
    "One goes on from two and two go on from one: what a state holds is that of the whole batch"
    from_one,from_two = two[0][0]["from one"],worker.resume(two[1]/"two")
    for got in (from_one, from_two):
        assert distance(two[0][0]["whole"]["model"], got["model"]) < 2e-5 and distance(two[0][0]["whole"]["ema"], got["ema"]) < 2e-5
        assert len(got["rows"]) == 2


def test_only_rank_0_writes(two):
    "One event stream, one history, one tracker file"
    files = sorted(str(p.relative_to(two[1]/"whole")) for p in (two[1]/"whole").rglob("*") if p.is_file() and "events.out" not in p.name)
    assert files == sorted(["checkpoints/best_model.pth", "checkpoints/last_model.pth", "events.jsonl", "history.csv", "history.json", "tracker.json",
                            *[f for f in files if f.endswith(".lock")]])
    assert len(list((two[1]/"whole").rglob("events.out*"))) == 1
    events = [json.loads(line)["event"] for line in (two[1]/"whole/events.jsonl").read_text().splitlines()]
    assert events.count("epoch") == 2 and events.count("start") == 1


# ---------------------------------------------------------------------------------------------- errors in training

def test_all_stop_where_one_is_told_to(two):
    a,b = (o["stop"] for o in two[0])
    assert a == b and a["steps"] == 3 and "SIGTERM received" in a["said"] and "checkpoint_time_limit.pth" in a["said"]
    assert load_checkpoint(two[1]/"stop/checkpoints/checkpoint_time_limit.pth")["training_state"]["opt_steps"] == 3


@pytest.mark.parametrize("what,says", [("seed", "seed is 4 in rank 1, but 3 in rank 0"), ("lr", "training.lr is 0.02 in rank 1, but 0.01 in rank 0"),
    ("weights", "the tensor patch_embed.proj.weight is"), ("later", "the processes are not alike: the tensor"),
    ("batch", "bs=15 cannot be divided among 2 processes; use bs=14 or bs=16"), ("mixing", "bs=14 cannot be divided among 2 processes, partners of MixUp")])
def test_ranks_that_differ_are_named(two, what, says):
    for o in two[0]: assert says in o["alike"][what], o["alike"][what]


def test_the_learner_is_as_before(two):
    a,b = (o["clean"] for o in two[0])
    assert a["left"] == b["left"] == [] and len(a["alone"]) == 4 and a["steps"] == b["steps"] > 2
