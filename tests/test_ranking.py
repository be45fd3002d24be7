"The area under the ROC curve, against scikit-learn, and intervals that draw patients"
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from vitnb.metrics.base import make_task_metrics
from vitnb.metrics.ranking import class_ranks, group_intervals, label_auroc
from vitnb.metrics.scores import intervals
from vitnb.task import MultiLabel, OneClass, Ordinal


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 3)), min_size=2, max_size=30))
def test_the_area_is_that_of_scikit_learn_whatever_the_weights(rows):
    "Equal scores, weights of 0, and sets in which all are alike"
    score,true,weights = np.array(rows).T
    area = label_auroc(score[:,None].astype(float), true[:,None])(weights)[0]
    if len(set(true[weights > 0])) < 2: assert np.isnan(area)
    else: assert abs(area - roc_auc_score(true, score, sample_weight=weights)) < 1e-9


def test_unknown_samples_do_not_count_and_a_label_without_cases_has_no_part_in_the_mean():
    task = MultiLabel(("sick", "rare"), unknown=-1, metrics=("auroc",), monitor="auroc")
    metric, = make_task_metrics(task)
    score,true = np.array([[.9, .1], [.2, .3], [.5, .2]]),np.array([[1, 0], [0, 0], [-1, 0]])
    assert metric.score.value((score, true)) == 1 and metric.better == "max"


def test_several_classes_are_each_held_against_the_rest():
    g = torch.Generator().manual_seed(0)
    pred,true = torch.randn(60, 3, generator=g),torch.randint(3, (60,), generator=g)
    task = OneClass("abc", unknown=-1, metrics=("auroc",), monitor="auroc")
    metric, = make_task_metrics(task)
    kept = tuple(part.numpy() for part in class_ranks(task, pred, torch.cat([true[:50], torch.full((10,), -1)])))
    want = roc_auc_score(true[:50], pred.softmax(1)[:50].double()/pred.softmax(1)[:50].double().sum(1, keepdim=True), multi_class="ovr")
    assert abs(metric.score.value(kept) - want) < 1e-6
    with pytest.raises(ValueError, match="'auroc' is not defined for Ordinal"): make_task_metrics(Ordinal(levels=3, metrics=("auroc",), monitor="auroc"))


def test_patients_are_drawn_with_all_their_films():
    "Films of a patient that are copies are worth one film: the interval is that of one film a patient"
    rng = np.random.default_rng(0)
    true,patients = rng.integers(0, 2, 40),np.arange(40)
    score = true + rng.normal(0, 1, 40)
    once,five = label_auroc(score[:,None], true[:,None]),label_auroc(np.repeat(score, 5)[:,None], np.repeat(true, 5)[:,None])
    of_one = intervals(dict(area=lambda w: once(w)[0]), 40)["area"]
    assert group_intervals(dict(area=lambda w: five(w)[0]), np.repeat(patients, 5))["area"] == pytest.approx(of_one)
    same = group_intervals(dict(a=lambda w: five(w)[0], difference=lambda w: five(w)[0] - five(w)[0]), np.repeat(patients, 5))
    assert same["difference"] == (0, 0), "one drawn set serves all scores"
