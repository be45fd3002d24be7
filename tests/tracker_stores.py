"Runs that are tracked, and what each tool's own client reads of them"
import json
import time

import pytest
from fastai.callback.core import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitnb.callback.mlflow import MLflow
from vitnb.callback.tensorboard import TensorBoard
from vitnb.callback.tracker import scalars
from vitnb.callback.wandb import WandB, wandb_history
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import vit_learner
from vitnb.seeding import set_seed


def make(cbs=()):
    "A Learner that trains four batches an epoch, its recorder read every two"
    set_seed(3)
    dls = image_loaders(load_set("digits", limit=10), bs=24, augment="shift", seed=3, device="cpu")
    learn = vit_learner(dls, "swin_micro", device="cpu", precision="fp32", seed=3, cbs=cbs)
    learn.recorder.every_n_steps = 2
    return learn


def read_tensorboard(folder, uri):
    acc = EventAccumulator(str(folder/"tensorboard"), size_guidance=dict(scalars=0)).Reload()
    return {k:[(e.step, e.value) for e in acc.Scalars(k)] for k in acc.Tags()["scalars"]}
EACH_STEP,EACH_EPOCH = {"train/loss", "train/lr", "train/accuracy"},{"val/loss", "val/accuracy", "val/f1_macro", "val/top5", "time/epoch_seconds"}


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


def broken(name, monkeypatch, until):
    "Make the store fail from step 3 until `until`"
    cls = dict(tensorboard=TensorBoard, mlflow=MLflow, wandb=WandB)[name]
    real = cls.put
    def put(self, points):
        if 3 <= points[-1][0] < until: raise ConnectionError("the server is gone")
        real(self, points)
    monkeypatch.setattr(cls, "put", put)


STORES = ["tensorboard", "mlflow", "wandb"]
