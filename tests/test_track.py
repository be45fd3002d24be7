"Trackers: what is read back with each tool's own client after a run, a resume, a kill and a failure"
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import pytest
import torch
from fastai.callback.core import Callback
from process_state import Refusing
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vitnb.callback.wandb as wandb_tracker
from vitnb.callback.checkpoint import Checkpoints, newest_state
from vitnb.callback.ema import EMACallback
from vitnb.callback.history import EventLog, History
from vitnb.callback.mlflow import MLflow
from vitnb.callback.tensorboard import TensorBoard
from vitnb.callback.track import make_tracker, track_results
from vitnb.callback.tracker import scalars, track_figure, trackers
from vitnb.callback.wandb import WandB, log_records, wandb_history
from vitnb.core import set_seed
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import run_callbacks, vit_learner

STORES = ["tensorboard", "mlflow", "wandb"]
EACH_STEP,EACH_EPOCH = {"train/loss", "train/lr", "train/accuracy"},{"val/loss", "val/accuracy", "val/f1_macro", "val/top5", "time/epoch_seconds"}


def make(cbs=()):
    "A Learner that trains four batches an epoch, its recorder read every two"
    set_seed(3)
    dls = image_loaders(load_set("digits", limit=10), bs=24, augment="shift", seed=3, device="cpu")
    learn = vit_learner(dls, "swin_micro", device="cpu", precision="fp32", seed=3, cbs=cbs)
    learn.recorder.every_n_steps = 2
    return learn


@pytest.fixture(scope="session")
def empty_db(tmp_path_factory):
    "MLflow takes seconds to make its tables: they are made once"
    mlflow = pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("db")/"mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def store(request, tmp_path, monkeypatch):
    "`store(name)` gives a folder for a run, the tracker's URI and a function that reads the record back: {scalar: [(step, value)]}"
    def give(name):
        folder = tmp_path/"train_digits"/"20250101-000000"
        folder.mkdir(parents=True, exist_ok=True)
        if name == "wandb":
            pytest.importorskip("wandb")
            monkeypatch.setenv("WANDB_MODE", "offline")
        if name == "mlflow" and not (tmp_path/"mlflow.db").exists(): (tmp_path/"mlflow.db").write_bytes(request.getfixturevalue("empty_db"))
        uri = f"sqlite:///{tmp_path}/mlflow.db" if name == "mlflow" else ""
        return folder, uri, lambda: dict(tensorboard=read_tensorboard, mlflow=read_mlflow, wandb=read_wandb)[name](folder, uri)
    return give


def read_tensorboard(folder, uri):
    acc = EventAccumulator(str(folder/"tensorboard"), size_guidance=dict(scalars=0)).Reload()
    return {k:[(e.step, e.value) for e in acc.Scalars(k)] for k in acc.Tags()["scalars"]}


def mlflow_run(folder, uri):
    import mlflow
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(folder.parent.name).experiment_id])
    return client, run


def read_mlflow(folder, uri):
    client,run = mlflow_run(folder, uri)
    return {k:[(m.step, m.value) for m in client.get_metric_history(run.info.run_id, k)] for k in run.data.metrics}


def read_wandb(folder, uri):
    out = {}
    ids = {p.stem for p in folder.glob("wandb/*run-*_*/run-*.wandb")}
    assert len(ids) == 1, "all resumes are one run"
    n,end = json.loads((folder/"tracker.json").read_text())["wandb"].get("n", 0),time.monotonic() + 200
    while sum(1 for _ in wandb_history(folder, min(ids).removeprefix("run-"))) < n: # W&B writes its file for a while after the run was closed
        assert time.monotonic() < end, "W&B's file stays behind"
        time.sleep(.05)
    for h in wandb_history(folder, ids.pop().removeprefix("run-")):
        for k,v in h.items():
            if not k.startswith("_") and k != "global_step": out.setdefault(k, []).append((h["global_step"], v))
    return out


def check(read, learn, epochs):
    "The record has every step and every epoch once, with the history's numbers"
    got = read()
    assert EACH_STEP | EACH_EPOCH <= got.keys(), f"missing {(EACH_STEP | EACH_EPOCH) - got.keys()}"
    for k in EACH_STEP: assert [n for n,_ in got[k]] == list(range(1, 4*epochs+1)), k
    for k in EACH_EPOCH: assert [n for n,_ in got[k]] == [4*(i+1) for i in range(epochs)], k
    assert [v for _,v in got["train/loss"]] == pytest.approx([s["loss"] for s in learn.recorder.steps], rel=1e-5)
    for k in ("val/loss", "val/accuracy", "val/f1_macro", "train/accuracy"):
        want = [scalars(r)[k] for r in learn.recorder.rows]
        assert [v for n,v in got[k] if n%4 == 0] == pytest.approx(want, rel=1e-5), k # accuracy in training: over the epoch so far
    return got


class Stop(Callback):
    "Interrupt after `n` optimiser steps"
    order = 200
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.training and self.opt_steps == self.n:
            self.recorder.flush() # so that steps behind the checkpoint reach the store
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", STORES)
def test_read_back(name, store):
    folder,uri,read = store(name)
    learn = make()
    learn.fit(2, cbs=[make_tracker(name, folder, uri)])
    got = check(read, learn, 2)
    assert dict(got["train/lr"])[4] == pytest.approx(learn.recorder.steps[3]["lr"])
    assert learn.recorder.listeners == [] and json.loads((folder/"tracker.json").read_text())[name]["lost"] == 0


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("at", [6, 8], ids=["inside_an_epoch", "between_epochs"])
def test_resume_continues_the_record(name, at, store):
    "Steps 5 and 6 are in the store but not in the checkpoint of the first epoch: they come once"
    folder,uri,read = store(name)
    def cbs(): return [make_tracker(name, folder, uri), Checkpoints(folder/"checkpoints")]
    with pytest.raises(KeyboardInterrupt): make().fit(3, cbs=[*cbs(), Stop(at)])
    assert max(n for n,_ in read()["train/loss"]) == at
    learn = make()
    learn.fit(3, cbs=cbs(), resume="auto")
    check(read, learn, 3)


@pytest.mark.parametrize("name", STORES)
def test_resume_from_a_state_within_an_epoch(name, store):
    folder,uri,read = store(name)
    def cbs(): return [make_tracker(name, folder, uri), Checkpoints(folder/"checkpoints", every_n_steps=3)]
    with pytest.raises(KeyboardInterrupt): make().fit(3, cbs=[*cbs(), Stop(7)])
    assert newest_state(folder/"checkpoints")["opt_steps"] == 6
    learn = make()
    learn.fit(3, cbs=cbs(), resume="auto")
    check(read, learn, 3)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_track import *
class Kill(Stop):
    def after_batch(self):
        if self.training and self.opt_steps == self.n:
            self.recorder.flush()
            os.kill(os.getpid(), signal.SIGKILL)
folder = Path({folder!r})
make().fit(3, cbs=[make_tracker({name!r}, folder, {uri!r}), Checkpoints(folder/"checkpoints"), Kill(7)])
"""

@pytest.mark.slow
@pytest.mark.parametrize("name", STORES)
def test_a_killed_process_leaves_no_gap(name, store):
    folder,uri,read = store(name)
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder), name=name, uri=uri)
    env = {k:v for k,v in os.environ.items() if k != "WANDB_SERVICE"} # a process of its own, not a guest of this one's W&B service
    p = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert p.returncode == -signal.SIGKILL, p.stderr
    learn = make()
    learn.fit(3, cbs=[make_tracker(name, folder, uri), Checkpoints(folder/"checkpoints")], resume="auto")
    check(read, learn, 3)


@pytest.mark.parametrize("name", STORES)
def test_a_tracker_that_comes_late_gets_the_beginning(name, store):
    folder,uri,read = store(name)
    make().fit(2, cbs=[Checkpoints(folder/"checkpoints", every_n_epochs=1)])
    learn = make()
    learn.fit(2, cbs=[make_tracker(name, folder, uri), Checkpoints(folder/"checkpoints")], resume=folder/"checkpoints/checkpoint_epoch_1.pth")
    check(read, learn, 2)


@pytest.mark.parametrize("name", STORES)
def test_a_second_fit_goes_on_and_a_new_learner_begins_anew(name, store):
    folder,uri,read = store(name)
    learn = make()
    for _ in range(2): learn.fit(1, cbs=make_tracker(name, folder, uri))
    check(read, learn, 2)
    first = json.loads((folder/"tracker.json").read_text())[name]
    again = make()
    again.fit(1, cbs=make_tracker(name, folder, uri))
    second = json.loads((folder/"tracker.json").read_text())[name]
    if name == "tensorboard": check(read, again, 1) # the folder is the record: what was there is hidden
    else: assert first["run_id"] != second["run_id"]


def test_averaged_weights_have_the_same_names(tmp_path):
    learn = make([EMACallback(.9)])
    learn.fit(1, cbs=TensorBoard(tmp_path/"tensorboard"))
    assert {"val/loss_ema", "val/accuracy_ema", "val/f1_macro_ema"} <= read_tensorboard(tmp_path, "").keys()


def broken(name, monkeypatch, until):
    "Make the store fail from step 3 until `until`"
    cls = dict(tensorboard=TensorBoard, mlflow=MLflow, wandb=WandB)[name]
    real = cls.put
    def put(self, points):
        if 3 <= points[-1][0] < until: raise ConnectionError("the server is gone")
        real(self, points)
    monkeypatch.setattr(cls, "put", put)


@pytest.mark.parametrize("name", STORES)
def test_a_failure_in_the_middle_stops_nothing(name, store, monkeypatch, capsys):
    folder,uri,read = store(name)
    broken(name, monkeypatch, 1000)
    learn = make()
    learn.fit(3, cbs=[History(folder), make_tracker(name, folder, uri)])
    out = capsys.readouterr().out
    assert len(learn.recorder.rows) == 3 and len(json.loads((folder/"history.json").read_text())) == 3
    assert out.count("the server is gone). Training goes on") == 1, out
    assert "38 scalars and 1 files were not stored (last error: ConnectionError: the server is gone)" in out, out
    assert [n for n,_ in read()["train/loss"]] == [1, 2]
    assert json.loads((folder/"tracker.json").read_text())[name]["lost"] == 39 # 10 steps of 2, 3 epochs of 6, history.csv


@pytest.mark.parametrize("name", STORES)
def test_a_store_that_comes_back_gets_everything(name, store, monkeypatch, capsys):
    folder,uri,read = store(name)
    broken(name, monkeypatch, 8)
    learn = make()
    learn.fit(3, cbs=make_tracker(name, folder, uri))
    check(read, learn, 3)
    assert "0 scalars and 0 files were not stored" in capsys.readouterr().out


def test_an_answer_that_was_lost_repeats_nothing(store, monkeypatch):
    "The server stored the values and the connection broke before it could say so"
    folder,uri,read = store("mlflow")
    real,calls = MLflow.put,[]
    def put(self, points):
        real(self, points)
        calls.append(points)
        if len(calls) == 2: raise TimeoutError("no answer")
    monkeypatch.setattr(MLflow, "put", put)
    learn = make()
    learn.fit(2, cbs=make_tracker("mlflow", folder, uri))
    check(read, learn, 2)


def test_what_is_on_its_way_to_wandb_is_not_sent_again(store, monkeypatch, capsys):
    "The file lags behind what was handed over: within a process the latter counts"
    folder,uri,read = store("wandb")
    broken("wandb", monkeypatch, 8)
    monkeypatch.setattr(wandb_tracker, "wandb_history", lambda *a: iter(()))
    learn = make()
    learn.fit(3, cbs=make_tracker("wandb", folder, uri))
    check(read, learn, 3)


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="unknown tracker 'mlfow': did you mean 'mlflow'"): make_tracker("mlfow", tmp_path)
    assert sorted(trackers) == ["mlflow", "none", "tensorboard", "wandb"]
    learn = make()
    learn.fit(1, cbs=make_tracker("none", tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_says_the_pip_line(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'pip install "vitnb\[{name}\]"'): make_tracker(name, tmp_path, "")


def test_mlflow_that_cannot_start(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    learn = make()
    with Refusing() as port, pytest.raises(RuntimeError, match=r"the mlflow tracker could not start \(MlflowException.*127.0.0.1.*tracker = none"):
        learn.fit(1, cbs=make_tracker("mlflow", tmp_path, f"http://127.0.0.1:{port}"))
    assert learn.opt_steps == 0 and learn.recorder.listeners == []
    learn.fit(1, cbs=make_tracker("tensorboard", tmp_path, ""))


def test_wandb_that_cannot_start(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    def no_login(**kw): raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")
    monkeypatch.setattr(wandb, "init", no_login)
    with pytest.raises(RuntimeError, match="the wandb tracker could not start .*wandb login"): make().fit(1, cbs=make_tracker("wandb", tmp_path, ""))


def test_tensorboard_that_cannot_start(tmp_path):
    (tmp_path/"tensorboard").write_text("a file in the way")
    with pytest.raises(RuntimeError, match="the tensorboard tracker could not start"): make().fit(1, cbs=make_tracker("tensorboard", tmp_path, ""))


@pytest.mark.parametrize("name", STORES)
def test_two_trackers_in_one_folder(name, store):
    folder,uri,_ = store(name)
    with pytest.raises(RuntimeError, match=f"another {name} tracker is writing"): make().fit(1, cbs=[make_tracker(name, folder, uri), make_tracker(name, folder, uri)])
    make().fit(1, cbs=make_tracker(name, folder, uri)) # the lock was given back


@pytest.mark.parametrize("name", STORES)
def test_validate_opens_nothing_and_pickles_carry_nothing(name, store):
    folder,uri,read = store(name)
    learn = make([make_tracker(name, folder, uri), History(folder), EventLog(folder/"events.jsonl")])
    assert sum(1 for p in folder.rglob("*") if p.is_file()) == 0
    learn.validate()
    assert sum(1 for p in folder.rglob("*") if p.is_file()) == 0
    learn.fit(1)
    before = read(), (folder/"events.jsonl").read_text(), (folder/"history.csv").read_text()
    learn.validate()
    learn.lr_find(num_it=5, show_plot=False)
    assert (read(), (folder/"events.jsonl").read_text(), (folder/"history.csv").read_text()) == before
    cb = make_tracker(name, folder, uri)
    assert type(pickle.loads(pickle.dumps(cb))) is Callback and type(copy.deepcopy(cb)) is Callback


def test_a_learner_pickled_in_training_carries_no_listener(tmp_path):
    seen = []
    class Pickle(Callback):
        order = 300
        def after_batch(self):
            if self.training: seen.append((len(self.recorder.listeners), self.recorder.__getstate__()["listeners"]))
    make().fit(1, cbs=[TensorBoard(tmp_path), Pickle()])
    assert seen[0] == (1, [])


def test_steps_of_lr_find_do_not_count(tmp_path):
    learn = make()
    learn.lr_find(num_it=9, show_plot=False)
    learn.fit(1, cbs=[make_tracker("tensorboard", tmp_path, ""), History(tmp_path)])
    check(lambda: read_tensorboard(tmp_path, ""), learn, 1)
    assert [s["step"] for s in learn.recorder.steps] == [1, 2, 3, 4] and [r["epoch"] for r in learn.recorder.rows] == [1]


def test_mlflow_keeps_parameters_names_tags_and_files(store):
    folder,uri,read = store("mlflow")
    (folder/"params.json").write_text(json.dumps(dict(epochs=1, opt=dict(betas=[.9, .99]))))
    fig = matplotlib.figure.Figure()
    class Draw(Callback):
        def after_epoch(self): assert track_figure(self.learn, "val/curve", fig) == 1
    make().fit(1, cbs=[make_tracker("mlflow", folder, uri, tags=dict(version="v1.0")), History(folder), Checkpoints(folder/"checkpoints"), Draw()])
    client,run = mlflow_run(folder, uri)
    assert run.info.run_name == "20250101-000000" and run.info.status == "FINISHED"
    assert run.data.params["opt.betas"] == "[0.9, 0.99]" and run.data.params["arch"] == "swin_micro" and run.data.params["training.lr"] == "0.001"
    assert run.data.tags["version"] == "v1.0" and "classes" not in run.data.params
    def files(at=""): return [p for f in client.list_artifacts(run.info.run_id, at) for p in (files(f.path) if f.is_dir else [f.path])]
    assert set(files()) == {"params.json", "history.csv", "checkpoints/best_model.pth", "figures/val/curve_00000004.png"}
    back = client.download_artifacts(run.info.run_id, "checkpoints/best_model.pth", str(folder))
    assert "model_state_dict" in torch.load(back, weights_only=True)


def test_mlflow_says_how_a_run_ended_and_keeps_changed_parameters(store):
    folder,uri,_ = store("mlflow")
    def cbs(**kw): return [make_tracker("mlflow", folder, uri, **kw), Checkpoints(folder/"checkpoints")]
    with pytest.raises(KeyboardInterrupt): make().fit(2, cbs=[*cbs(params=dict(lr=.1)), Stop(6)])
    assert mlflow_run(folder, uri)[1].info.status == "KILLED"
    class Break(Callback):
        def after_step(self): raise ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError): make().fit(2, cbs=[*cbs(params=dict(lr=.2)), Break()], resume="auto")
    run = mlflow_run(folder, uri)[1]
    assert run.info.status == "FAILED" and run.data.params["lr"] == "0.1" and run.data.tags["changed.lr"] == "0.2"
    with pytest.raises(RuntimeError, match="the record of this run is in"): make().fit(2, cbs=[make_tracker("mlflow", folder, uri.replace(".db", "2.db"))], resume=newest_state(folder/"checkpoints"))


def test_mlflow_default_store_is_in_the_outputs_folder(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path/"outputs"))
    assert make_tracker("mlflow", tmp_path, "").uri == f"sqlite:///{tmp_path}/outputs/mlflow.db"


def test_wandb_keeps_config_names_and_files(store):
    folder,uri,read = store("wandb")
    from wandb.proto import wandb_internal_pb2 as pb
    (folder/"params.json").write_text(json.dumps(dict(epochs=1, opt=dict(lr=.1))))
    make().fit(1, cbs=[make_tracker("wandb", folder, uri, tags=dict(version="v1")), Checkpoints(folder/"checkpoints")])
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    records = [pb.Record.FromString(r) for r in log_records(path.read_bytes())]
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"][:1]
    assert (run.project, run.display_name, list(run.tags)) == ("train_digits", "20250101-000000", ["version=v1"])
    config = {u.key or ".".join(u.nested_key):u.value_json for r in records if r.WhichOneof("record_type") == "config" for u in r.config.update}
    assert config["opt.lr"] == "0.1" and config["arch"] == '"swin_micro"'
    assert (path.parent/"files/checkpoints/best_model.pth").exists()


def test_wandb_mode_is_respected(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    learn = make()
    learn.fit(1, cbs=make_tracker("wandb", tmp_path, ""))
    assert len(learn.recorder.rows) == 1 and not list(tmp_path.glob("**/*.wandb"))


def test_a_log_that_was_cut_off(store):
    "A killed process leaves half a record: all before it are read"
    folder,uri,read = store("wandb")
    learn = make()
    learn.fit(1, cbs=make_tracker("wandb", folder, uri))
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    whole = [bytes(r) for r in log_records(path.read_bytes())]
    for cut in range(8, len(path.read_bytes()), 97):
        part = [bytes(r) for r in log_records(path.read_bytes()[:cut])]
        assert part == whole[:len(part)]


@pytest.mark.parametrize("sizes", [[5], [32761], [32760, 3], [32755, 1, 1], [32768*3, 10], [20000]*9], ids=str)
def test_log_format_across_blocks(sizes):
    "Records written by the plain rule of LevelDB's format come back"
    data,records = b":W&B\xe1\xbe\x00",[os.urandom(n) for n in sizes]
    for r in records:
        first = True
        while True:
            room = 32768 - len(data) % 32768
            if room < 7:
                data += bytes(room)
                continue
            piece,r = r[:room-7],r[room-7:]
            kind = (1 if not r else 2) if first else (4 if not r else 3)
            data,first = data + bytes(4) + len(piece).to_bytes(2, "little") + bytes([kind]) + piece,False
            if not r: break
    assert list(log_records(data)) == records


@pytest.mark.parametrize("name", STORES)
def test_results_after_the_training(name, store):
    folder,uri,read = store(name)
    learn = make()
    learn.fit(1, cbs=make_tracker(name, folder, uri))
    (folder/"figures").mkdir()
    matplotlib.figure.Figure(figsize=(1, 1)).savefig(folder/"figures/confusion.png")
    (folder/"result.json").write_text("{}")
    assert track_results(folder, dict(test_accuracy=.75, test_n=100, note="text")) == [name]
    got = check(read, learn, 1)
    assert got["test/accuracy"] == [(4, .75)] and got["test/n"] == [(4, 100)]
    if name == "tensorboard": assert EventAccumulator(str(folder/"tensorboard")).Reload().Tags()["images"] == ["figures/confusion"]
    if name == "mlflow": assert "figures" in [a.path for a in mlflow_run(folder, uri)[0].list_artifacts(mlflow_run(folder, uri)[1].info.run_id)]
    if name == "wandb": assert list(folder.glob("wandb/*/files/figures/confusion.png"))


def test_no_record_no_results(tmp_path): assert track_results(tmp_path, dict(test_accuracy=.5)) == []


def test_tags_reach_the_tracker(tmp_path):
    cb = next(c for c in run_callbacks(tmp_path, tracker="tensorboard", tags=dict(study="leaf")) if hasattr(type(c), "put"))
    assert cb.tags == dict(study="leaf")
