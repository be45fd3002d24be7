"Scores of zones: closed forms of perfect, silent and constant answers; against scikit-learn; ids and bands"
import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score, mean_absolute_error, precision_score, recall_score

from vitnb.metrics.base import make_task_metrics
from vitnb.metrics.chest import (band_confusion, compute_ahf_classification_metrics, compute_csi_average_metrics, compute_f1_metrics,
    compute_ordinal_metrics, compute_precision_recall, csi_band, csi_mean, expected_csi, one_hot_answers as one_hot, zone_confusion)
from vitnb.metrics.report import task_report
from vitnb.task import OneClass, Ordinal

ZONES = ("right_sup", "left_sup", "right_mid", "left_mid", "right_inf", "left_inf")
ALL = (compute_f1_metrics, compute_precision_recall, compute_csi_average_metrics, compute_ahf_classification_metrics, compute_ordinal_metrics)


def films(seed, n=30, low=0):
    rng = np.random.default_rng(seed)
    true = torch.tensor(rng.choice(np.arange(low, 5), (n, 6)))
    said = torch.tensor(np.where(rng.random((n, 6)) < .5, true.clamp(min=0), rng.choice(5, (n, 6))))
    return said, true


def test_a_perfect_answer_is_one_everywhere():
    "The guide's own code gave 0.8, and 0.6 where no zone is severe"
    for classes in (4, 3):
        true = (torch.arange(8)[:,None] + torch.arange(6)) % classes # each zone has each grade
        true[0, 0] = 4
        answer = one_hot(true)
        f1, pr, csi, ahf, order = (f(answer*9 - 3, true) for f in ALL)
        for name in ("f1_macro", "f1_weighted", "f1_overall", "f1_weighted_overall", "accuracy"): assert f1[name] == 1, name
        assert f1["f1_macro_seed5"] == pytest.approx(classes/5) and f1["n_classes"] == classes
        for name in ("precision_macro", "recall_macro", "precision_overall", "recall_overall", "ungradable_f1"): assert pr[name] == 1, name
        assert csi["mae"] == csi["rmse"] == csi["bias"] == 0 and csi["coverage"] == 1
        assert ahf["accuracy"] == ahf["f1_macro"] == 1 and order["mae"] == 0 and order["kappa"] == 1


def test_films_of_unknown_zones_have_no_score_and_no_band():
    true = torch.full((3, 6), 4)
    f1, pr, csi, ahf, order = (f(one_hot(true), true) for f in ALL)
    for value in (f1["f1_macro"], pr["precision_macro"], csi["mae"], csi["target_mean"], ahf["accuracy"], ahf["f1_macro"], order["kappa"], order["mae"]):
        assert math.isnan(value)
    assert f1["n"] == csi["n"] == ahf["n"] == 0 and csi["coverage"] == ahf["coverage"] == 0
    assert (csi_band(csi_mean(true)) == -1).all()


@pytest.mark.parametrize("constant", range(5))
def test_a_constant_answer_has_its_closed_form(constant):
    "Six of each grade: F1 of the constant one is 2*(1/4)/(1/4 + 1) = 0.4, of the others 0"
    true = torch.stack([torch.arange(4)]*6, 1) # each zone has each grade once
    said = one_hot(torch.full((4, 6), constant))
    f1, pr, order = compute_f1_metrics(said, true), compute_precision_recall(said, true), compute_ordinal_metrics(said, true)
    graded = constant < 4
    assert f1["f1_macro"] == pytest.approx(.1*graded) and f1["accuracy"] == .25*graded
    assert pr["precision_macro"] == pytest.approx(.25/4*graded) and pr["recall_macro"] == .25*graded
    assert f1["abstention_rate"] == 1 - graded
    if graded: assert order["mae"] == np.abs(np.arange(4) - constant).mean() and order["kappa"] == 0
    else: assert math.isnan(order["mae"])


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 40))
def test_grades_are_those_of_scikit_learn(seed, n):
    said, true = films(seed, n)
    f1, pr = compute_f1_metrics(one_hot(said), true), compute_precision_recall(one_hot(said), true)
    def both(score, average):
        found = []
        for t, p in [(true[:,z], said[:,z]) for z in range(6)] + [(true.ravel(), said.ravel())]:
            t, p = t[t < 4].numpy(), p[t < 4].numpy()
            labels = np.unique(t)
            found.append(score(t, p, labels=labels, average=average, zero_division=0) if len(labels) else np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.nanmean(found[:6]), found[6]
    for name, score, of in (("f1", f1_score, f1), ("precision", precision_score, pr), ("recall", recall_score, pr)):
        for average, middle in (("macro", ""), ("weighted", "_weighted")):
            zones, pooled = both(score, average)
            assert of[f"{name}{middle}_macro" if not middle else f"{name}_weighted"] == pytest.approx(zones, nan_ok=True)
            assert of[f"{name}{middle}_overall"] == pytest.approx(pooled, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999))
def test_kappa_and_distance_are_those_of_scikit_learn(seed):
    said, true = films(seed)
    found = compute_ordinal_metrics(one_hot(said), true)
    t, p = true[:,2], said[:,2]
    both = (t < 4) & (p < 4)
    assert found["kappa_zone_3"] == pytest.approx(cohen_kappa_score(t[both], p[both], labels=range(4), weights="quadratic"))
    assert found["mae_zone_3"] == pytest.approx(mean_absolute_error(t[both], p[both]))
    assert found["n_zone_3"] == both.sum() and found["n"] == ((true < 4) & (said < 4)).sum()


def test_kappa_of_levels_that_do_not_occur():
    column = lambda values: torch.tensor(values)[:,None]
    true, said = column([0, 0, 2, 3]), column([0, 2, 3, 3])
    assert compute_ordinal_metrics(one_hot(said), true)["kappa"] == pytest.approx(.6667, abs=1e-4)
    alike,none = (compute_ordinal_metrics(one_hot(column([0, 0])), column(true)) for true in ([0, 0], [4, 4]))
    assert math.isnan(alike["kappa"]) and alike["n"] == 2 and math.isnan(none["kappa"]) and none["n"] == 0 # undefined, with its count, and not 0


def test_logits_and_one_hot_answers_are_alike_and_everything_is_plain():
    said, true = films(0)
    logits = one_hot(said)*5 + torch.rand(30, 6, 5)
    for f in ALL:
        a, b = f(logits, true), f(one_hot(said).numpy(), true.numpy())
        assert json.dumps(a) == json.dumps(b) and all(type(v) in (int, float) for v in a.values())


def test_silence_on_a_gradable_zone_is_a_miss_and_is_counted():
    true = torch.tensor([[0, 1, 2, 3, 0, 1]])
    said = true.clone()
    said[0, 0] = 4
    found = compute_f1_metrics(one_hot(said), true)
    assert found["accuracy"] == 5/6 and found["abstention_rate"] == 1/6 and found["f1_zone_1"] == 0 and found["f1_zone_2"] == 1
    pr = compute_precision_recall(one_hot(said), true)
    assert pr["recall_normal"] == .5 and pr["precision_normal"] == 1 and pr["ungradable_precision"] != pr["ungradable_precision"]


def test_zones_that_nobody_looked_at_are_no_part_of_any_score():
    said, true = films(1, low=-1)
    for f in ALL:
        moved = said.clone()
        moved[true < 0] = (moved[true < 0] + 1) % 5
        assert json.dumps(f(one_hot(said), true)) == json.dumps(f(one_hot(moved), true))


@pytest.mark.parametrize("pred,true,say", [
    (torch.zeros(2, 6, 4), torch.zeros(2, 6), "do not fit"), (torch.zeros(3, 6, 5), torch.zeros(2, 6), "do not fit"),
    (torch.zeros(2, 6, 5), torch.full((2, 6), 5), "target 5 is no grade"), (torch.full((2, 6, 5), torch.nan), torch.zeros(2, 6), "not finite")])
def test_bad_input(pred, true, say):
    for f in ALL:
        with pytest.raises(ValueError, match=say): f(pred, true)


# the index

def test_the_index_by_hand():
    assert csi_mean(torch.tensor([[0, 1, 2, 3, 4, 4]]))[0] == 1.5 and np.isnan(csi_mean(torch.full((1, 6), 4)))[0]
    true = torch.tensor([[0, 1, 2, 3, 4, 4], [3]*6, [4]*6, [0]*6])
    said = torch.tensor([[0, 1, 2, 3, 3, 3], [2]*6, [0]*6, [4]*6])
    found = compute_csi_average_metrics(one_hot(said), true)
    assert found["n"] == 2 and found["coverage"] == .5
    assert found["mae"] == pytest.approx((.5 + 1)/2) and found["bias"] == pytest.approx((.5 - 1)/2)
    assert found["rmse"] == pytest.approx(math.sqrt((.25 + 1)/2)) and found["mae_matched"] == pytest.approx(.5)
    assert found["target_mean"] == pytest.approx((1.5 + 3 + 0)/3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999))
def test_the_index_is_that_of_a_loop(seed):
    said, true = films(seed)
    def mean(row): return np.mean([v for v in row if v < 4]) if min(row) < 4 else np.nan
    p, t = (np.array([mean(row) for row in o.tolist()]) for o in (said, true))
    both = ~np.isnan(p + t)
    found = compute_csi_average_metrics(one_hot(said), true)
    assert found["mae"] == pytest.approx(np.abs(p - t)[both].mean()) and found["pearson"] == pytest.approx(np.corrcoef(p[both], t[both])[0, 1])
    (score,) = make_task_metrics(Ordinal(ZONES, levels=4, unknown=4, abstain=True, metrics=("csi_mae",), monitor="csi_mae"))
    kept = score.score.keep(score.task, one_hot(said), true)
    assert score.score.value(tuple(o.numpy() for o in kept)) == pytest.approx(found["mae"])


def test_a_table_is_matched_by_identifiers_as_text():
    said = torch.zeros(3, 6).long()
    table = pd.DataFrame(dict(FileID=[12., 7., 9.], csi=[1., np.nan, 3.]))
    found = compute_csi_average_metrics(one_hot(said), said, ["12", "7", "0009"], table)
    assert found["csi_csv_n"] == 1 and found["csi_csv_mae"] == 1
    with pytest.raises(ValueError, match="no column 'csi'"): compute_csi_average_metrics(one_hot(said), said, ["1"]*3, table[["FileID"]])
    with pytest.raises(ValueError, match="2 file_ids for 3 films"): compute_csi_average_metrics(one_hot(said), said, ["1"]*2, table)


def test_expected_grades():
    probs = torch.tensor([[[.5, .5, 0, 0, 0], [0, 0, 0, .4, .6]]])
    assert expected_csi(probs)[0] == .5 and expected_csi(probs, min_unknown=.7)[0] == pytest.approx((.5 + 3)/2)


def test_bands_are_stable_to_rounding():
    "All means of up to six grades, in both precisions, against whole numbers"
    for n in range(1, 7):
        for total in range(3*n + 1):
            want = (10*total > 13*n) + (10*total > 22*n)
            for dtype in (np.float32, np.float64): assert csi_band(np.array([total], dtype)/dtype(n))[0] == want, (total, n)
    assert csi_band(np.array([1.3, 2.2], np.float32)).tolist() == [0, 1]


def test_confusions_have_truth_in_rows():
    true = torch.tensor([[0, 1, 2, 3, 4, 4], [3]*6])
    said = torch.tensor([[0, 1, 2, 3, 0, 4], [0]*6])
    table = np.array(zone_confusion(one_hot(said), true)["overall"])
    assert table[3, 0] == 6 and table[4, 0] == 1 and table.sum() == 12
    assert band_confusion(one_hot(said), true) == [[0, 0, 0], [1, 0, 0], [1, 0, 0]] # means of 3/2 and 6/5, 3 and 0


def test_rows_of_training_are_the_guides_scores():
    names = ("zone_f1", "f1_weighted", "csi_mae", "csi_coverage", "abstention", "kappa", "mae", "accuracy")
    task = Ordinal(ZONES, levels=4, unknown=4, abstain=True, metrics=names, monitor="zone_f1")
    said, true = films(3)
    report = task_report(task, one_hot(said), true, raw=True, draws=20)["scores"]
    f1, order, csi = compute_f1_metrics(one_hot(said), true), compute_ordinal_metrics(one_hot(said), true), compute_csi_average_metrics(one_hot(said), true)
    want = dict(zone_f1=f1["f1_macro"], f1_weighted=f1["f1_weighted"], abstention=f1["abstention_rate"], accuracy=f1["accuracy"], kappa=order["kappa"], mae=order["mae"],
                csi_mae=csi["mae"], csi_coverage=csi["coverage"])
    for name, value in want.items(): assert report[name]["value"] == pytest.approx(value), name
    assert report["csi_mae"]["better"] == "min" and report["csi_mae"]["lo"] <= report["csi_mae"]["value"] <= report["csi_mae"]["hi"]
    with pytest.raises(ValueError, match="not defined for OneClass"): make_task_metrics(OneClass("ab", metrics=("csi_mae",), monitor="csi_mae"))
