"Selective answers: risk against coverage by hand, ties without an order, and curves of scikit-learn"
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from vitnb.metrics.selective import class_curves, coverage_at, film_confidence, risk_at, risk_coverage

GRADES = ("normal", "mild", "moderate", "severe")


def test_risk_against_coverage_by_hand():
    curve = risk_coverage([.9, .8, .7, .6], [0, 0, 1, 1])
    assert curve["risk"].tolist() == pytest.approx([0, 0, 1/3, .5]) and curve["area"] == pytest.approx((1/3 + .5)/4)
    assert risk_at(curve, .75) == pytest.approx(1/3) and coverage_at(curve, 0) == .5 and coverage_at(curve, -1) == 0
    assert risk_coverage([1, 2], [0, 0])["area"] == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_equal_confidence_is_no_order(pairs, random):
    other = list(pairs)
    random.shuffle(other)
    a, b = (risk_coverage(*map(np.array, zip(*o))) for o in (pairs, other))
    assert np.allclose(a["risk"], b["risk"]) and np.allclose(a["coverage"], b["coverage"])
    assert a["risk"][-1] == pytest.approx(np.mean([e for _, e in pairs])) and a["coverage"][-1] == 1


def test_film_confidence(): assert film_confidence(torch.tensor([[[.5, .5], [0, 1.]]]))[0] == .75


def test_the_micro_average_pools_decisions():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 5, 300)
    probs = rng.dirichlet([1]*5, 300)*.8 + np.eye(5)[true]*.2
    curves = class_curves(probs, true, GRADES)
    graded = true < 4
    for i, name in enumerate(GRADES): assert curves[name]["auroc"] == pytest.approx(roc_auc_score(true[graded] == i, probs[graded, i]))
    flat = np.eye(4)[true[graded]].ravel(), probs[graded, :4].ravel()
    assert curves["micro"]["auroc"] == pytest.approx(roc_auc_score(*flat)) and curves["micro"]["auroc"] != curves["auroc_macro"]
    assert class_curves(probs, np.zeros(300), GRADES)["mild"] is None
