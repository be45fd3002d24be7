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
import numpy as np
import psutil
import pytest
import torch
from process_state import quiet_port
from zone_films import zone_fit

from vitnb.callback.checkpoint import load_checkpoint
from vitnb.data.shard import shard
from vitnb.experiment import cli
from vitnb.experiment.run import read_json
from vitnb.launch import Ranks
from vitnb.runfolder import run_status
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


def launched(out, what, n):
    "What each of `n` ranks found"
    old = {k: os.environ.get(k) for k in environment()}
    os.environ.update(environment())
    try:
        with open(out/"log", "w") as log, Ranks([sys.executable, str(HERE/"distribute_worker.py"), str(out), what], n, logs=dict.fromkeys(range(n), log)) as ranks: codes = ranks.wait()
    finally:
        for k,v in old.items(): os.environ.pop(k) if v is None else os.environ.update({k: v})
    assert codes == [0]*n, (out/"log").read_text()[-4000:]
    return [torch.load(out/f"rank{r}.pth", weights_only=True) for r in range(n)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "All that two ranks find, by rank, and the folder they worked in"
    out = tmp_path_factory.mktemp("ranks")
    worker.resume(out/"one", 8)
    zone_fit(out/"zones_from_one", 8)
    return launched(out, "main", 2), out


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
    """The same columns; a sample that is missing or counted twice shows in the losses

    Weights agree to rounding, and the two likeliest classes of the least certain answer are 3e-6 to 2e-4 apart here, so
    that the kernels of a CPU may decide one answer of 100, or of thousands of pixels. With the same weights all are the
    same: `test_validation_is_equal_in_every_bit`.
    """
    one_answer = 1e-3 if case == "pixels" else .011
    for a,b in zip(one(case)["rows"], two[0][0][f"case {case}"]["rows"]):
        assert a.keys() == b.keys()
        for k in a.keys() - {"seconds"}:
            if k in ("epoch", "step", "lr"): assert a[k] == pytest.approx(b[k], abs=1e-12), k
            elif "accuracy" in k or "top5" in k or "f1" in k: assert a[k] == pytest.approx(b[k], abs=one_answer), k
            else: assert a[k] == pytest.approx(b[k], rel=2e-5), k


@pytest.mark.parametrize("case", ["swin", "densenet", "masked_sum", "pixels"])
def test_validation_is_equal_in_every_bit(two, case):
    "With the same weights one process finds the same numbers, also where the last turn has a batch for one rank only"
    got = two[0][0][f"case {case}"]
    learn = worker.make(**worker.CASES[case])
    learn.model.load_state_dict(got["model"])
    assert len(learn.dls.valid) % 2, "the last turn should be padded"
    scores = dict(zip(("valid_loss", *(m.name for m in learn.metrics)), learn.validate()))
    assert {k: float(v) for k,v in scores.items()} == {k: got["rows"][-1][k] for k in scores}


def test_three_ranks(tmp_path):
    "More than two: another way through `DistributedDataParallel`, turns of three, and parts of 5 and 6"
    found = launched(tmp_path, "three", 3)
    for case,kw in worker.THREE.items():
        a,(b,*others) = worker.make(**kw),[o[case] for o in found]
        a.fit(2)
        a = worker.result(a)
        assert all(not differences(b["model"], o["model"]) for o in others), case
        assert distance(a["model"], b["model"]) < 2e-5 and (not a["ema"] or distance(a["ema"], b["ema"]) < 2e-5), case
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-4), case


@pytest.mark.parametrize("what,cases,epochs", [("frozen", worker.FROZEN, 3),
    pytest.param("cancelled", worker.CANCELLED, 2, marks=pytest.mark.slow)]) # each starts two ranks
def test_two_ranks_are_one_where_what_is_trained_changes(tmp_path, what, cases, epochs):
    "Layers that wait for some epochs, and batches that are cancelled inside a step: weights, average, losses, and runs that were killed on the way"
    found = launched(tmp_path, what, 2)
    for case,kw in cases.items():
        learn,(b,other) = worker.make(**kw()),[o[case] for o in found]
        learn.fit(epochs)
        a = worker.result(learn)
        assert not differences(b["model"], other["model"]), case
        assert distance(a["model"], b["model"]) < 2e-5 and (not a["ema"] or distance(a["ema"], b["ema"]) < 2e-5), case
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-4) and a["rows"][-1]["step"] == b["rows"][-1]["step"], case
    whole = found[0][next(iter(cases))]
    for k in (o for o in found[0] if "resumed" in o):
        assert not differences({o: whole[o] for o in ("model", "opt", "ema", "losses")}, {o: found[0][k][o] for o in ("model", "opt", "ema", "losses")}), k
        assert not differences(whole["rows"], found[0][k]["rows"], ["seconds"]), k


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

@pytest.mark.parametrize("what", ["", " cubes"])
def test_resume_is_exact(two, what):
    a,b = two[0][0]["whole" + what],two[0][0]["resumed" + what]
    assert not differences({k: a[k] for k in ("model", "opt", "ema", "losses")}, {k: b[k] for k in ("model", "opt", "ema", "losses")})
    assert not differences(a["rows"], b["rows"], ["seconds"])


def test_resume_on_another_number_of_processes(two, tmp_path):
    "One goes on from two and two go on from one: what a state holds is that of the whole batch"
    from_one,from_two = two[0][0]["from one"],worker.resume(two[1]/"two")
    for got in (from_one, from_two):
        assert distance(two[0][0]["whole"]["model"], got["model"]) < 2e-5 and distance(two[0][0]["whole"]["ema"], got["ema"]) < 2e-5
        assert len(got["rows"]) == 2


def test_scores_of_training_are_those_of_all_ranks(two, tmp_path):
    "Also where two go on from one process in the middle of an epoch, and one from two"
    zone_fit(tmp_path)
    zone_fit(two[1]/"zones_from_two")
    for name in ("training_history.json", "validation_history.json"):
        wanted = json.loads((tmp_path/name).read_text())
        for folder in ("zones", "zones_from_one", "zones_from_two"):
            got = json.loads((two[1]/folder/name).read_text())
            for key in wanted: assert np.allclose(got[key], wanted[key], atol=1e-5 if key.endswith("losses") else 1e-12), (folder, key)


def test_only_rank_0_writes(two):
    "One event stream, one history, one tracker file"
    files = sorted(str(p.relative_to(two[1]/"whole")) for p in (two[1]/"whole").rglob("*") if p.is_file() and "events.out" not in p.name)
    assert files == sorted(["checkpoints/best_model.pth", "checkpoints/last_model.pth", "columns.json", "events.jsonl", "history.csv", "history.json", "run.log", "tracker.json",
                            *[f for f in files if f.endswith(".lock")]])
    assert len(list((two[1]/"whole").rglob("events.out*"))) == 1
    events = [json.loads(line)["event"] for line in (two[1]/"whole/events.jsonl").read_text().splitlines()]
    assert events.count("epoch") == 2 and events.count("start") == 1


# ---------------------------------------------------------------------------------------------- errors in training

def test_all_stop_where_one_is_told_to(two):
    a,b = (o["stop"] for o in two[0])
    assert a == b and a["steps"] == 3 and "SIGTERM received" in a["said"] and "checkpoint_time_limit.pth" in a["said"]
    assert load_checkpoint(two[1]/"stop/checkpoints/checkpoint_time_limit.pth")["training_state"]["opt_steps"] == 3
    whole,without = a["late"] # a signal behind the last step, to one of them: what follows the fit was not to begin
    assert whole.startswith(f"TrainingStopped: SIGTERM received; saved to {two[1]/'stop_late'}") and "last_model.pth" in whole and "(exit code 143)" in whole
    assert without.startswith("TrainingStopped: SIGTERM received; no file was saved")


@pytest.mark.parametrize("what,says", [("alone", "one of 2 processes, but this Learner would train by itself"), ("seed", "seed is 4 in rank 1, but 3 in rank 0"), ("lr", "training.lr is 0.02 in rank 1, but 0.01 in rank 0"),
    ("weights", "the tensor patch_embed.proj.weight is"), ("later", "the processes are not alike: the tensor"),
    ("batch", "bs=15 cannot be divided among 2 processes; use bs=14 or bs=16"), ("mixing", "bs=14 cannot be divided among 2 processes, partners of MixUp")])
def test_ranks_that_differ_are_named(two, what, says):
    for o in two[0]: assert says in o["alike"][what], o["alike"][what]


def test_the_learner_is_as_before(two):
    a,b = (o["clean"] for o in two[0])
    assert a["left"] == b["left"] == [] and len(a["alone"]) == 4 and a["steps"] == b["steps"] > 2


# ---------------------------------------------------------------------------------------------- from a live process

class Trip(worker.Callback):
    def after_batch(self):
        if os.environ.get("RANK") == "1" and self.opt_steps == 2: raise RuntimeError("tripped over a leaf")
        time.sleep(.1)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed by Linux")
def test_no_thread_of_gloo_sees_the_end_of_the_interpreter(two):
    "One that drops a tensor then ends the process with 'terminate called without an active exception', now and then"
    for rank in range(2):
        threads = json.loads((two[1]/f"threads{rank}.json").read_text())
        assert threads and not [name for name in threads if "gloo" in name], threads


def test_fit_distributed_is_fit(two, tmp_path, monkeypatch, capsys):
    "Weights, average, optimiser and history come back; callbacks of the call too; the next fit goes on"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    learn,whole = worker.make(**worker.CASES["mix"]),two[0][0]["case mix"]
    stop = worker.Checkpoints(tmp_path/"checkpoints")
    learn.logger = print
    learn.fit_distributed(2, processes=2, cbs=[*(cb for cb in worker.run_callbacks(tmp_path, tracker="tensorboard") if not isinstance(cb, worker.Checkpoints)), stop])
    got = worker.result(learn)
    assert not differences({k: whole[k] for k in ("model", "opt", "ema", "losses")}, {k: got[k] for k in ("model", "opt", "ema", "losses")})
    assert not differences(whole["rows"], got["rows"], ["seconds"])
    assert stop.best is not None and (tmp_path/"checkpoints/last_model.pth").is_file() and list(tmp_path.rglob("events.out*")) and (tmp_path/"history.csv").is_file()
    out = capsys.readouterr().out
    assert "epoch 1/2" in out and "epoch 2/2" in out
    assert (learn.opt_steps, learn.epochs_done) == (whole["rows"][-1]["step"], 2) and learn.n_epoch == 2
    learn.fit(1)
    assert len(learn.recorder.rows) == 3 and learn.recorder.rows[-1]["epoch"] == 3


def test_fit_distributed_that_fails(monkeypatch):
    "The error of the rank that failed is shown, soon; the Learner is as before; no process is left"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MARK", mark := uuid.uuid4().hex)
    learn = worker.make()
    before = copy.deepcopy(dict(learn.model.state_dict()))
    with pytest.raises(RuntimeError, match="(?s)rank1 of 2 failed.*tripped over a leaf"): learn.fit_distributed(50, processes=2, cbs=Trip())
    assert not differences(before, dict(learn.model.state_dict())) and learn.opt_steps == 0
    assert_nobody_left(mark)


@pytest.mark.parametrize("kw,says", [(dict(processes=4000), "4000 processes, but this machine has"), (dict(processes=0), "whole number from 1"),
    (dict(processes=2, port="taken"), "is in use")])
def test_fit_distributed_refuses(kw, says):
    with socket.socket() as s:
        s.bind(("", 0))
        s.listen()
        if "port" in kw: kw = {**kw, "port": s.getsockname()[1]}
        with pytest.raises(ValueError, match=says): worker.make().fit_distributed(1, **kw)
    with pytest.raises(ValueError, match="bs=15 cannot be divided"): worker.make(bs=15).fit_distributed(1)


# ---------------------------------------------------------------------------------------------- notebooks

PARAMS = "epochs = 2     # passes\npause  = 0.    # seconds between batches\nresume = 'auto' # go on\ntag    = ''     # added to the run folder"
OPEN = "from vitnb.experiment.run import Run\nrun = Run('train_demo', globals(), tag, resume)"
TRAIN = """import os, time
from fastai.callback.core import Callback
from vitnb.learner.core import run_callbacks
from vitnb.learner.distribute import distribute
from vitnb.testing import tiny_learner
class Slow(Callback):
    def after_batch(self): time.sleep(pause)
    def state_dict(self): return {}
learn = distribute(tiny_learner(engine=dict(mixup=.8, cutmix=1., ema_decay=.9)))
print("this is rank", os.environ["RANK"])
learn.fit(epochs, cbs=[*run_callbacks(run.dir, every_n_steps=2, tracker="none"), Slow()], resume="auto" if run.resumed else "never")
run.finish(accuracy=learn.recorder.rows[-1]["accuracy"], epochs=len(learn.recorder.rows))"""
SUM = """import torch
import torch.distributed as dist
dist.init_process_group("gloo")
t = torch.tensor(dist.get_rank() + 1.)
dist.all_reduce(t)
run.finish(total=t.item())"""


@pytest.fixture
def workspace(tmp_path):
    (tmp_path/"settings.ini").write_text("[vitnb]\noutputs_path = out\ndevice = cpu\n")
    return tmp_path


def notebook(path, *cells):
    cells = [dict(cell_type="code", id=f"c{i}", execution_count=None, outputs=[], source=s, metadata=dict(tags=[] if i else ["parameters"])) for i,s in enumerate(cells)]
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=dict(name="python3", language="python", display_name="python3")), nbformat=4, nbformat_minor=5)))
    return path


def start(cmd, cwd, **env):
    "A command that is marked, so that all it starts can be found again"
    return subprocess.Popen([sys.executable, "-m", *map(str, cmd)], cwd=cwd, env=environment(**env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, start_new_session=True)


def marked(mark):
    "Living processes of one test"
    out = []
    for p in psutil.process_iter():
        try:
            if p.environ().get("MARK") == mark and p.status() != psutil.STATUS_ZOMBIE and p.pid != os.getpid(): out.append(p)
        except psutil.Error: continue
    return out


def until(what, seconds=200, why=""):
    end = time.monotonic() + seconds
    while not (got := what()):
        assert time.monotonic() < end, why
        time.sleep(.1)
    return got


def assert_nobody_left(mark): until(lambda: not marked(mark), 60, "processes were left behind")


def vitnb_run(workspace, nb, *args, **env):
    "`vitnb run`, its exit code and all it said"
    mark = uuid.uuid4().hex
    p = start(["vitnb.experiment.cli", "run", nb, *args], workspace, MARK=mark, **env)
    out,_ = p.communicate(timeout=400)
    assert_nobody_left(mark)
    return p.returncode,out


def only_run(workspace):
    (d,) = (workspace/"out"/"train_demo").iterdir()
    return d


def test_a_notebook_in_two_processes(workspace, two):
    "Every rank executes the cells; one folder, one executed notebook; the other's output beside it"
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, OPEN, TRAIN)
    code,out = vitnb_run(workspace, nb, "--processes", "2")
    assert code == 0, out
    d = only_run(workspace)
    text = (d/"train_demo.ipynb").read_text()
    assert "this is rank 0" in text and "rank 1" not in text and "this is rank 1" in (d/"rank1.log").read_text() and "this is rank 0" in out and "rank 1" not in out
    assert read_json(d/"status.json")["status"] == "finished" and read_json(d/"environment.json")["processes"] == 2 and not list(d.glob("*.error"))
    assert read_json(d/"result.json")["epochs"] == 2
    assert not differences(two[0][0]["case mix"]["model"], state(d)["model"]), "the same bits as without a notebook"


@pytest.mark.parametrize("cell,says", [
    ("import os, time\nif os.environ['RANK'] == '1': raise ValueError('no such leaf')\ntime.sleep(1000)", ["rank 1:", "ValueError: no such leaf", "rank 0 ended because of rank1"]),
    ("import os, time\nif os.environ['RANK'] == '0': input('which leaf? ')\ntime.sleep(1000)", ["rank 0:", "does not support input requests"])], ids=["error", "input"])
def test_the_error_of_one_rank_stops_all(workspace, cell, says):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, cell)
    code,out = vitnb_run(workspace, nb, "--processes", "2")
    assert code == 1 and all(s in out for s in says), out
    status = read_json(only_run(workspace)/"status.json")
    assert status["status"] == "failed" and says[1].split(": ")[-1] in status["error"]


def test_ranks_whose_launcher_dies_at_once_do_not_train(workspace):
    "Before any of them has looked who started it"
    nb,mark = notebook(workspace/"train_demo.ipynb", PARAMS, "import time\ntime.sleep(1000)"),uuid.uuid4().hex
    p = start(["vitnb.experiment.cli", "run", nb, "--processes", "2"], workspace, MARK=mark)
    until(lambda: len(psutil.Process(p.pid).children()) == 2, why="no ranks")
    p.kill()
    p.communicate(timeout=120)
    assert_nobody_left(mark)
    assert all(run_status(file.parent)["status"] == "killed" for file in workspace.glob("out/*/*/status.json"))


@pytest.mark.parametrize("who", ["launcher", "kernel of rank 1"])
def test_nobody_outlives_a_sudden_death(workspace, who):
    "SIGKILL, which nobody can heed"
    cell = "import os, time\nfrom pathlib import Path\nPath(os.environ['VITNB_RUN_DIR'], 'pid' + os.environ['RANK']).write_text(str(os.getpid()))\ntime.sleep(1000)"
    nb,mark = notebook(workspace/"train_demo.ipynb", PARAMS, cell),uuid.uuid4().hex
    p = start(["vitnb.experiment.cli", "run", nb, "--processes", "2"], workspace, MARK=mark)
    pids = until(lambda: len(found := [f for f in workspace.glob("out/*/*/pid?") if f.read_text()]) == 2 and found, why="the kernels did not start")
    if who == "launcher": p.kill()
    else: os.kill(int(next(f for f in pids if f.name == "pid1").read_text()), signal.SIGKILL)
    out,_ = p.communicate(timeout=200)
    assert_nobody_left(mark)
    if who != "launcher": assert p.returncode == 1 and "rank 1: " in out and "died" in out and read_json(only_run(workspace)/"status.json")["status"] == "failed", out


def test_a_rank_that_never_arrives_and_a_port_in_use(workspace):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, OPEN)
    lone = dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", VITNB_RANK_TIMEOUT="3")
    with socket.socket() as s:
        s.bind(("", 0))
        s.listen()
        taken = str(s.getsockname()[1])
        runs = [start(["vitnb.experiment.cli", "run", nb], workspace, MASTER_PORT=port, **lone) for port in (str(quiet_port()), taken)]
        alone,busy = (p.communicate(timeout=200)[0] for p in runs)
        assert cli.main(["run", str(nb), "--processes", "2", "--port", taken]) == 2
    assert [p.returncode for p in runs] == [2, 2]
    assert "rank 0 of 2 met nobody" in alone and "within 3 s" in alone, alone
    assert taken in busy and "free" in busy, busy
    assert not list(workspace.glob("out/*/*/params.json"))


def test_more_processes_than_devices(workspace, capfd):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, OPEN)
    assert cli.main(["run", str(nb), "--processes", "4000"]) == 2 and "4000 processes, but this machine has" in capfd.readouterr().err
    assert cli.main(["run", str(nb), "--processes", "0"]) == 2


def machines(workspace, nb, **env):
    "Two launchers of accelerate, as two machines would have one each, over the loopback device"
    port = quiet_port()
    def one(rank):
        options = ["--multi_gpu", "--num_machines", 2, "--num_processes", 2, "--machine_rank", rank, "--main_process_ip", "127.0.0.1", "--main_process_port", port,
                   "--mixed_precision", "no", "--dynamo_backend", "no"]
        return start(["accelerate.commands.launch", *options, "-m", "vitnb.experiment.cli", "run", nb], workspace, ACCELERATE_USE_CPU="true", NODE=str(rank), **env)
    return [one(r) for r in range(2)]


def test_two_machines(workspace):
    nb,mark = notebook(workspace/"train_demo.ipynb", PARAMS, OPEN, SUM),uuid.uuid4().hex
    nodes = machines(workspace, nb, MARK=mark)
    outs = [p.communicate(timeout=300)[0] for p in nodes]
    assert [p.returncode for p in nodes] == [0, 0], "\n".join(outs)
    d = only_run(workspace)
    assert read_json(d/"result.json")["total"] == 3 and (d/"rank1.log").exists() and (d/"train_demo.ipynb").exists()
    assert_nobody_left(mark)


@pytest.mark.slow # three launches of notebooks that train: minutes on a busy machine; `test_two_machines` and `test_resume_is_exact` check the parts
def test_a_machine_dies_and_the_rerun_ends_with_the_same_bits(workspace, two):
    source = TRAIN.replace("print(", "if not run.resumed: pause = .3\nprint(") # slow enough to be hit, the first time
    nb,mark = notebook(workspace/"train_demo.ipynb", PARAMS, OPEN, source),uuid.uuid4().hex
    nodes = machines(workspace, nb, MARK=mark, VITNB_RANK_TIMEOUT="60")
    until(lambda: [p for p in workspace.glob("out/*/*/checkpoints/last_model.pth") if state(p.parents[1])["opt_steps"] >= 4], why="it did not come to its fourth step")
    for p in marked(mark):
        if p.environ().get("NODE") == "1": p.kill()
    out,_ = nodes[0].communicate(timeout=200) # ends by itself
    nodes[1].communicate(timeout=200)
    assert nodes[0].returncode != 0 and read_json(only_run(workspace)/"status.json")["status"] == "failed", out
    assert_nobody_left(mark)
    cut = state(only_run(workspace))["opt_steps"]
    nodes = machines(workspace, nb, MARK=mark)
    outs = [p.communicate(timeout=300)[0] for p in nodes]
    assert [p.returncode for p in nodes] == [0, 0], "\n".join(outs)
    d = only_run(workspace)
    assert 4 <= cut < state(d)["opt_steps"] and read_json(d/"status.json")["resumed"]
    assert not differences(two[0][0]["case mix"]["model"], state(d)["model"]) and not differences(two[0][0]["case mix"]["opt"], state(d)["optimizer"])
