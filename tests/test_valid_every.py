"Validation every so many epochs: which rows have it, who counts what, and the same bits after a kill"
import csv
import json

import pytest
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from test_resume import state

from vitnb.callback.checkpoint import load_checkpoint
from vitnb.callback.ema import EMACallback
from vitnb.callback.stop import EarlyStop
from vitnb.exactness import Warm, assert_exact_resume
from vitnb.experiment.advice import symptoms
from vitnb.experiment.recipes import learner_args, resolve
from vitnb.learner.core import run_callbacks
from vitnb.testing import Spy, differences, tiny_fit, tiny_learner


def validated(learn): return [row["epoch"] for row in learn.recorder.rows if row["valid_loss"] is not None]


@pytest.mark.parametrize("every,epochs,expect", [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (5, 3, [3]), (3, 6, [3, 6])])
def test_the_last_epoch_always_validates(every, epochs, expect):
    spy,learn = Spy(),tiny_learner(valid_every=every, cbs=[EMACallback(.9)])
    learn.fit(epochs, cbs=[spy])
    assert validated(learn) == expect and spy.count("before_validate") == 2*len(expect), "the average is validated with the weights"
    for row in learn.recorder.rows:
        there = row["epoch"] in expect
        assert all((row[name] is not None) == there for name in ("valid_loss", "accuracy", "valid_loss_ema", "accuracy_ema")), row
        assert row["train_loss"] is not None and set(row) == set(learn.recorder.rows[-1])


def test_it_trains_the_same_weights():
    learns = [tiny_learner(valid_every=every) for every in (1, 3)]
    for learn in learns: learn.fit(4)
    assert not differences(*(state(learn) for learn in learns))
    a,b = (learn.recorder.rows for learn in learns)
    assert not differences(a[2], b[2], ["seconds"]) and not differences(a[3], b[3], ["seconds"])


def test_the_files_have_every_column_in_every_row(tmp_path):
    tiny_fit(tmp_path, epochs=3, valid_every=2)
    with (tmp_path/"history.csv").open() as file: rows = list(csv.DictReader(file))
    assert [bool(row["accuracy"]) for row in rows] == [False, True, True] and all(row["train_loss"] for row in rows)
    assert [row["accuracy"] is None for row in json.loads((tmp_path/"history.json").read_text())] == [True, False, False]


class Values(EarlyStop):
    "Early stopping that writes what it is told to look at"
    def __init__(self, values, **kw):
        super().__init__(**kw)
        self.values = values
    def after_epoch(self):
        row = self.learn.recorder.rows[-1]
        if row["valid_loss"] is not None: row["valid_loss"] = self.values[self.epoch]
        super().after_epoch()


def test_early_stopping_counts_validated_epochs():
    "Of epochs 2, 4, 6 and 8 the second is the best, and one bad one is tolerated"
    values = [0, 3, 0, 1, 0, 2, 0, 2, 0, 2, 0, 2]
    stop,learn = Values(values, patience=1),tiny_learner(valid_every=2)
    learn.fit(12, cbs=[stop])
    assert stop.best_epoch == 4 and len(learn.recorder.rows) == 8
    watched = EarlyStop("train_loss", patience=99)
    tiny_learner(valid_every=2).fit(3, cbs=[watched])
    assert watched.bad + (watched.best_epoch or 0) >= 3, "a column of training has a value in each epoch, and each counts"


def test_the_plateau_counts_validated_epochs():
    kw = dict(schedule="plateau", schedule_kw=dict(patience=0, factor=.5, threshold=.99, warmup_epochs=0.), optimizer="sgd", lr=.01) # nothing improves by 99 %
    rates = {}
    for every in (1, 2):
        learn = tiny_learner(valid_every=every, **kw)
        learn.fit(6)
        rates[every] = [row["lr"]/.01 for row in learn.recorder.rows]
    assert rates[1] == [1, 1, .5, .25, .125, .0625] and rates[2] == [1, 1, 1, 1, .5, .5], "a rate falls after the second measurement that is no better"


def test_checkpoints_choose_among_validated_epochs(tmp_path):
    learn = tiny_fit(tmp_path, epochs=5, valid_every=2, run_kw=dict(keep_top_k=9, every_n_epochs=1))
    names = {path.name for path in (tmp_path/"checkpoints").glob("*.pth")}
    assert {name for name in names if name.startswith("top")} == {"top_epoch_2.pth", "top_epoch_4.pth", "top_epoch_5.pth"}
    assert {f"checkpoint_epoch_{n}.pth" for n in range(1, 6)} <= names and load_checkpoint(tmp_path/"checkpoints/best_model.pth")["epoch"] in validated(learn)


def test_a_dry_run_validates(): assert tiny_learner(valid_every=9).dry_run()["train_loss"] > 0


@pytest.mark.parametrize("cb", [SaveModelCallback, EarlyStoppingCallback])
def test_trackers_of_fastai_are_refused(cb):
    with pytest.raises(ValueError, match="count validated epochs"): tiny_learner(valid_every=2).fit(2, cbs=cb())


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_what_is_no_number_of_epochs_is_refused(value):
    with pytest.raises(ValueError, match="whole number of epochs"): tiny_learner(valid_every=value)


def test_another_interval_is_another_run(tmp_path):
    tiny_fit(tmp_path, epochs=2)
    with pytest.raises(ValueError, match="valid_every: None -> 2"): tiny_learner(valid_every=2).fit(2, cbs=run_callbacks(tmp_path, tracker="none"), resume="auto")


def test_the_guides_recipe_validates_every_five_epochs():
    assert learner_args(resolve("spectral", "retina", dict(data="x")))["valid_every"] == 5
    assert learner_args(resolve("swin", "digits", dict(valid_every=3)))["valid_every"] == 3


def test_symptoms_are_judged_by_validated_epochs():
    rows = [dict(epoch=n, train_loss=1 - .02*n, valid_loss=.5 + abs(n - 10)*.02) for n in range(1, 31)]
    thin = [row if row["epoch"]%5 == 0 else {**row, "valid_loss":None} for row in rows]
    assert symptoms(rows) == symptoms(thin) == ["overfitting"]
    thin[11]["train_loss"] = float("nan")
    assert symptoms(thin) == ["nan"]


CONFIGS = dict(ema_stop=dict(epochs=5, valid_every=2, patience=0, engine=dict(ema_decay=.9)),
               plateau=dict(epochs=5, valid_every=2, optimizer="sgd", lr=.2, schedule="reduce_lr_on_plateau", schedule_kw=dict(patience=0, factor=.3, warmup_epochs=0.)))


@pytest.mark.parametrize("config", ["ema_stop", pytest.param("plateau", marks=pytest.mark.slow)]) # each is three processes
def test_a_killed_run_ends_with_the_same_bits(config):
    "SIGKILL while the last file of an epoch that was not validated is written, and at other moments"
    with Warm() as warm:
        report = assert_exact_resume(tiny_fit, warm=warm, params=CONFIGS[config], at=[("renamed", 7), ("half", 5), ("written", 11)])
    assert report["identical"] == report["runs"] and report["kills"] >= 2 and report["corrupt"] == 0
