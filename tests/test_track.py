"Trackers: what is read back with each tool's own client after a run, a resume, a kill and a failure"
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from fastai.callback.core import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tracker_stores import STORES, Stop, check, make, mlflow_run, read_tensorboard, store

from vitnb.callback.checkpoint import Checkpoints, newest_state
from vitnb.callback.history import EventLog, History
from vitnb.callback.track import make_tracker, track_results
from vitnb.learner.core import run_callbacks


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


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_says_the_pip_line(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'pip install "vitnb\[{name}\]"'): make_tracker(name, tmp_path, "")


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


def test_steps_of_lr_find_do_not_count(tmp_path):
    learn = make()
    learn.lr_find(num_it=9, show_plot=False)
    learn.fit(1, cbs=[make_tracker("tensorboard", tmp_path, ""), History(tmp_path)])
    check(lambda: read_tensorboard(tmp_path, ""), learn, 1)
    assert [s["step"] for s in learn.recorder.steps] == [1, 2, 3, 4] and [r["epoch"] for r in learn.recorder.rows] == [1]


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
