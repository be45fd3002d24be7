"The guide's two histories: what the network said of training films while it learnt, against slow loops"
import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from fastai.callback.core import CancelBatchException
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support
from tiny_tasks import Die, DieAt
from zone_films import zone_learner

from vitnb.callback.base import TrainCallback
from vitnb.callback.zonehistory import ZoneHistory, count_answers, zone_scores
from vitnb.learner.core import run_callbacks, train_callbacks
from vitnb.metrics.chest import band_confusion, one_hot_answers

KEYS = {f"{part}_{name}" for part in ("train", "val") for name in ("losses", "accuracies", "precisions", "f1_scores", "ahf_confusion_matrix")} | {"epochs"}


class Spy(TrainCallback):
    "Answers and truth of each batch that the network met, in order; of films that are mixed the larger part is true"
    order = 20
    def __init__(self): self.met = {}
    def after_loss(self):
        if self.recorder.suffix: return # the averaged weights
        epoch,part = self.learn.epochs_done + 1, "train" if self.training else "val"
        target = self.learn.batch["target"]
        if target.is_floating_point(): target = target.argmax(-1)
        self.met.setdefault((epoch, part), []).append((self.learn.pred.detach().argmax(-1), target))


class Cancel(TrainCallback):
    "Leave a batch out"
    def __init__(self, event, at): self.event,self.at = event,at
    def __call__(self, event):
        if event == self.event and self.training and self.learn.iter == self.at: raise CancelBatchException()


def slow(said, true):
    "Accuracy, mean precision and mean F1 of five classes, zone by zone with sklearn"
    of_zones = []
    for zone in range(true.shape[1]):
        precision,_,f1,cases = precision_recall_fscore_support(true[:,zone], said[:,zone], labels=range(5), zero_division=0)
        if cases.any(): of_zones.append((precision[cases > 0].mean(), f1[cases > 0].mean()))
    graded = [(t, s) for t,s in zip(true.ravel(), said.ravel()) if t < 4]
    return np.mean([t == s for t,s in graded]), *np.mean(of_zones, 0)


def read(folder): return [json.loads((folder/f"{part}_history.json").read_text()) for part in ("training", "validation")]


@pytest.mark.parametrize("kw", [{}, dict(mixup=.8, mix_mode="elem"), dict(accumulate=2, ema_decay=.5)], ids=["plain", "mixed", "averaged"])
def test_both_histories_are_what_a_loop_finds(tmp_path, kw):
    learn,spy = zone_learner(*train_callbacks(**kw)),Spy()
    learn.fit(3, cbs=[spy, *run_callbacks(tmp_path, tracker="none"), ZoneHistory(tmp_path)])
    training,validation = read(tmp_path)
    assert training.keys() == KEYS and training["epochs"] == [1, 2, 3]
    assert validation == {name: values for name,values in training.items() if not name.startswith("train")}
    rows = json.loads((tmp_path/"history.json").read_text())
    for part,loss in (("train", "train_loss"), ("val", "valid_loss")):
        assert training[f"{part}_losses"] == [row[loss] for row in rows]
        for epoch in (1, 2, 3):
            said,true = (torch.cat(parts).numpy() for parts in zip(*spy.met[epoch, part]))
            got = [training[f"{part}_{name}"][epoch - 1] for name in ("accuracies", "precisions", "f1_scores")]
            assert np.allclose(got, slow(said, true)), (part, epoch)
        assert training[f"{part}_ahf_confusion_matrix"] == band_confusion(one_hot_answers(said), true)
    assert training["train_f1_scores"] != training["val_f1_scores"], "never a copy"


@pytest.mark.parametrize("event", ["after_pred", "after_loss", "after_backward"])
def test_a_batch_that_is_left_out_counts_for_nothing_and_one_that_is_run_again_once(tmp_path, event):
    history = ZoneHistory(tmp_path)
    learn = zone_learner(Cancel(event, 3), *train_callbacks(accumulate=3))
    counted = []
    class Look(TrainCallback):
        order = history.order + 1
        def after_train(self): counted.append(history.counts[0].sum().item())
    learn.fit(1, cbs=[history, Look()])
    assert counted == [6*(len(learn.dls.train.dataset) - 8)]


@pytest.mark.parametrize("step", [3, 6, 9], ids=["inside", "end", "second"])
def test_a_run_that_was_killed_has_the_history_of_one_that_was_not(tmp_path, step):
    def learner(): return zone_learner(*train_callbacks(mixup=.8, accumulate=2))
    for folder,cbs in ((tmp_path/"whole", ()), (tmp_path/"cut", (DieAt(step),)), (tmp_path/"cut", ())):
        with suppress(Die): learner().fit(2, cbs=[*run_callbacks(folder, every_n_steps=1, tracker="none"), ZoneHistory(folder), *cbs], resume="auto")
    assert read(tmp_path/"cut") == read(tmp_path/"whole")


def test_an_epoch_without_validation_has_no_values_of_it(tmp_path):
    zone_learner(valid_every=2).fit(3, cbs=ZoneHistory(tmp_path))
    training,_ = read(tmp_path)
    for name,values in training.items():
        if name.endswith("matrix") or name == "epochs": continue
        assert [value is None for value in values] == [name.startswith("val"), False, False], name


def test_the_history_of_another_fit_is_kept(tmp_path):
    for lr in (.01, .02): zone_learner(lr=lr).fit(1, cbs=[*run_callbacks(tmp_path, tracker="none"), ZoneHistory(tmp_path)])
    first,second = read(tmp_path/"earlier-1"),read(tmp_path)
    assert first != second and first[0].keys() == second[0].keys() == KEYS


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 4)]*12), min_size=1, max_size=20))
def test_counts_are_those_of_loops(rows):
    said,true = torch.tensor(rows)[:,:6],torch.tensor(rows)[:,6:]
    zones,bands = count_answers(said, true, 4)
    wanted = np.zeros((6, 5, 5), int)
    for s,t in zip(said.tolist(), true.tolist()):
        for zone in range(6): wanted[zone, t[zone], s[zone]] += 1
    assert np.array_equal(zones, wanted) and bands.tolist() == band_confusion(one_hot_answers(said), true)
    scores = zone_scores(zones.numpy())
    if (true < 4).any(): assert np.allclose([scores[name] for name in ("accuracy", "precision", "f1")], slow(said.numpy(), true.numpy()))


def test_a_perfect_answer_has_1_and_where_nothing_can_be_graded_there_is_no_accuracy():
    perfect = np.stack([np.diag([3, 0, 2, 1, 1])]*6)
    assert zone_scores(perfect) == dict(accuracy=1., precision=1., f1=1.)
    unknown = np.zeros((6, 5, 5), int)
    unknown[:,4,0] = 2
    assert zone_scores(unknown) == dict(accuracy=None, precision=0., f1=0.)
    assert zone_scores(np.zeros((6, 5, 5), int)) == dict(accuracy=None, precision=None, f1=None)


def test_11_of_five_zones_is_the_last_index_of_the_middle_band():
    levels = torch.tensor([[2, 2, 2, 2, 3, 4], [3, 3, 2, 2, 3, 3], [1, 1, 1, 1, 1, 2], [0, 0, 0, 1, 1, 1]])
    _,bands = count_answers(levels, levels, 4)
    assert bands.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 1]]
