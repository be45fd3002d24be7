"MLflow: parameters, names, tags, files, and how a run ended"
import json

import matplotlib
import pytest
import torch
from fastai.callback.core import Callback
from process_state import Refusing
from tracker_stores import Stop, check, make, mlflow_run, store

from vitnb.callback.checkpoint import Checkpoints, newest_state
from vitnb.callback.history import History
from vitnb.callback.mlflow import MLflow
from vitnb.callback.track import make_tracker
from vitnb.callback.tracker import track_figure


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


def test_mlflow_that_cannot_start(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    learn = make()
    with Refusing() as port, pytest.raises(RuntimeError, match=r"the mlflow tracker could not start \(MlflowException.*127.0.0.1.*tracker = none"):
        learn.fit(1, cbs=make_tracker("mlflow", tmp_path, f"http://127.0.0.1:{port}"))
    assert learn.opt_steps == 0 and learn.recorder.listeners == []
    learn.fit(1, cbs=make_tracker("tensorboard", tmp_path, ""))


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
