"A training that is one trial: what it reports, and when it stops"
import json
import os
from functools import partial
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
from search_helpers import workspace # noqa: F401, a fixture

from vitnb.callback.limit import TrainingStopped
from vitnb.callback.trial import TrialReport
from vitnb.experiment.run import read_json
from vitnb.experiment.search import search, study_rows
from vitnb.experiment.study import make_plan, open_study
from vitnb.storage import PRUNED, VERDICT

optuna = pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def no_speaker():
    TrialReport.speaker = None
    yield
    TrialReport.speaker = None


def told_by(rows, answer=lambda epoch, value: None, better="max", column="max", monkeypatch=None):
    "What a TrialReport reports of rows, and how the fit ends"
    said = []
    def report(epoch, value):
        said.append((epoch, value))
        return answer(epoch, value)
    cb = TrialReport(report, "f1", better)
    learn = SimpleNamespace(columns=dict(f1=SimpleNamespace(better=column)), cbs=[], recorder=SimpleNamespace(rows=[]), n_epoch=len(rows))
    cb.learn,cb.recorder,cb.n_epoch = learn,learn.recorder,len(rows)
    cb.before_fit()
    for i,row in enumerate(rows):
        learn.recorder.rows.append(dict(epoch=i+1, **row))
        cb.epoch = i
        try: cb.after_epoch()
        except TrainingStopped as e: return said, str(e)
    return said, None


def test_each_validated_epoch_is_reported_once():
    assert told_by([dict(f1=.1), {}, dict(f1=.3)]) == ([(1, .1), (3, .3)], None)


def test_a_verdict_stops_the_fit_but_not_a_fit_that_is_over():
    said,error = told_by([dict(f1=.1), dict(f1=.2), dict(f1=.3)], lambda epoch, value: "pruned: enough" if epoch == 2 else None)
    assert said == [(1, .1), (2, .2)] and "pruned: enough" in error and "(exit code 76)" in error
    TrialReport.speaker = None
    assert told_by([dict(f1=.1)], lambda *a: "pruned: enough") == ([(1, .1)], None)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_pruned_with_its_reason(value):
    said,error = told_by([dict(f1=value), dict(f1=1.)])
    assert said == [] and "f1 is no number" in error


def test_a_score_in_the_other_direction_is_an_error():
    with pytest.raises(ValueError, match="wants the min of 'f1', but of this column the max"): told_by([], better="min")


TRAINING = ["lr     = 1e-3  # peak\nepochs = 3     # passes\ntag    = ''    # added to the run folder",
"""from vitnb.experiment.run import Run
run = Run("train_demo", globals(), tag)""",
"""from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import run_callbacks, vit_learner
dls = image_loaders(load_set("digits", limit=6), bs=16, device="cpu", seed=1)
learn = vit_learner(dls, "swin_micro", lr=lr, schedule="constant", device="cpu", seed=1)
learn.fit(epochs, cbs=run_callbacks(run.dir, tracker="none"), resume="auto" if run.resumed else "never")
run.finish(epochs=len(learn.recorder.rows))"""]


def test_a_training_that_is_behind_is_pruned(workspace):
    "Of two, the one that does not learn ends before its last epoch, in order: saved, and marked as stopped"
    nb = json.loads((workspace/"train_demo.ipynb").read_text())
    cell = nb["cells"][0]
    nb["cells"] = [dict(cell, id=f"c{i}", source=s, metadata=dict(tags=["parameters"] if i == 0 else [])) for i,s in enumerate(TRAINING)]
    (workspace/"train_demo.ipynb").write_text(json.dumps(nb))
    plan = make_plan(workspace/"train_demo.ipynb", dict(lr=dict(low=1e-9, high=1e-2, log=True)), "train_loss", "min",
                     pruner=dict(name="median", n_startup_trials=1, n_warmup_steps=1))
    study = open_study("s", plan, root=workspace)
    for lr in (3e-3, 1e-9): study.enqueue_trial(dict(lr=lr))
    found = search(study, 2, root=workspace, say=lambda line: None)
    good,bad = study_rows(study)
    assert (good["state"], good["epochs"], bad["state"]) == ("complete", 3, "pruned") and bad["epochs"] < 3
    assert bad["why"].startswith(f"pruned after epoch {bad['epochs']}: train_loss") and found["best_params"] == dict(lr=3e-3)
    run = workspace/"out"/bad["run"]
    rows = json.loads((run/"history.json").read_text())
    assert len(rows) == bad["epochs"] and rows[-1]["train_loss"] == bad["value"] and read_json(run/"status.json")["status"] == "stopped"
    assert (run/"checkpoints/last_model.pth").is_file() and read_json(run/"params.json")["lr"] == 1e-9
    assert bad["why"] in json.loads((run/VERDICT).read_text())["why"]
    rows = json.loads((workspace/"out"/good["run"]/"history.json").read_text())
    assert [row["train_loss"] for row in rows] == list(study.trials[0].intermediate_values.values()) and good["value"] == min(row["train_loss"] for row in rows)


def one_rank(rank, folder, answers):
    "A process of two: rank 0 reports and is told to stop after epoch 2"
    import torch.distributed as dist

    from vitnb.learner.ranks import Distribute
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    told = []
    def report(epoch, value):
        told.append(epoch)
        return "pruned after epoch 2: enough" if epoch == 2 else None
    TrialReport.speaker = None
    cb = TrialReport(report, "f1", "max")
    learn = SimpleNamespace(columns=dict(f1=SimpleNamespace(better="max")), cbs=[cb], recorder=SimpleNamespace(rows=[]), n_epoch=5)
    cb.learn,cb.recorder,cb.n_epoch = learn,learn.recorder,5
    together = SimpleNamespace(world=2, learn=learn, control=dist.group.WORLD)
    together.sync_stop = partial(Distribute.sync_stop, together)
    Distribute.stop_together(together)
    cb.before_fit()
    try:
        for epoch in range(5):
            learn.recorder.rows.append(dict(epoch=epoch + 1, f1=.5))
            cb.epoch = epoch
            cb.after_epoch()
    except TrainingStopped as e: answers.put((rank, told, epoch + 1, e.code))
    dist.destroy_process_group()


def test_of_two_processes_rank_0_reports_and_both_leave_at_the_same_epoch(tmp_path):
    context = get_context("fork")
    answers = context.Queue()
    ranks = [context.Process(target=one_rank, args=(rank, tmp_path, answers)) for rank in range(2)]
    for rank in ranks: rank.start()
    for rank in ranks: rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert sorted(answers.get(timeout=120) for _ in ranks) == [(0, [1, 2], 2, PRUNED), (1, [], 2, PRUNED)]
