"Metrics against scikit-learn, intervals against closed forms"
import json
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from vitnb.metrics.classify import bootstrap_interval, classification_report, make_metrics, most_confused


def feed(pred, y, sizes, n_classes):
    "The metrics after batches of these sizes"
    mets,a = make_metrics(n_classes),0
    for m in mets: m.reset()
    for n in sizes:
        for m in mets: m.accumulate(SimpleNamespace(pred=pred[a:a+n], yb=(y[a:a+n],)))
        a += n
    assert a == len(y)
    return {m.name:m.value.item() for m in mets}

def data(N, K, seed=0, skill=2.):
    g = torch.Generator().manual_seed(seed)
    pred,y = torch.randn(N, K, generator=g),torch.randint(K, (N,), generator=g)
    pred[torch.arange(N), y] += skill*torch.rand(N, generator=g)
    return pred,y

def sklearn_scores(pred, y, K):
    p = pred.argmax(1)
    out = dict(accuracy=sk.accuracy_score(y, p), f1_macro=sk.f1_score(y, p, average="macro"))
    return out | (dict(top5=sk.top_k_accuracy_score(y, pred, k=5, labels=range(K))) if K > 5 else {})


# ---------------------------------------------------------------- metrics of a Learner

@settings(max_examples=40, deadline=None)
@given(K=st.integers(2, 30), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_uneven_batches_against_scikit_learn(K, sizes, seed):
    pred,y = data(sum(sizes), K, seed)
    assert feed(pred, y, sizes, K) == pytest.approx(sklearn_scores(pred, y, K), abs=1e-6)

def test_names_and_top5():
    assert [m.name for m in make_metrics(5)] == ["accuracy", "f1_macro"]
    assert [m.name for m in make_metrics(6)] == ["accuracy", "f1_macro", "top5"]
    with pytest.raises(ValueError, match="n_classes=1"): make_metrics(1)

def test_absent_classes_are_left_out_of_f1():
    pred,y = torch.eye(10)[[0, 1, 1, 2]],torch.tensor([0, 1, 0, 1]) # classes 3 to 9 nowhere; 2 only predicted, so its F1 is 0
    want = (2/3 + .5 + 0)/3
    assert feed(pred, y, [4], 10)["f1_macro"] == pytest.approx(want)
    assert sk.f1_score(y, pred.argmax(1), average="macro") == pytest.approx(want)
    assert classification_report(pred, y, list(range(10)))["f1_macro"] == pytest.approx(want)

def test_the_mean_of_batch_means_is_wrong_and_ours_is_not():
    pred,y = torch.eye(2)[torch.tensor([0]*64 + [1]*16)],torch.zeros(80, dtype=torch.long)
    assert feed(pred, y, [64, 16], 2)["accuracy"] == pytest.approx(.8) # batch means: .5

def test_soft_targets_count_as_their_larger_class():
    pred,y = data(20, 6)
    soft = .7*torch.nn.functional.one_hot(y, 6) + .3*torch.nn.functional.one_hot(y.flip(0), 6)
    assert feed(pred, soft, [20], 6) == feed(pred, soft.argmax(1), [20], 6)

def test_reset_forgets_and_nothing_is_none():
    pred,y = data(12, 3)
    for m in make_metrics(3):
        assert m.value is None
        m.accumulate(SimpleNamespace(pred=1-pred, yb=(y,)))
        m.reset()
        m.accumulate(SimpleNamespace(pred=pred, yb=(y,)))
        assert m.value.item() == pytest.approx(sklearn_scores(pred, y, 3)[m.name], abs=1e-6)

def test_half_precision_and_gradients():
    pred,y = data(12, 7)
    pred = pred.bfloat16().float()
    assert feed(pred.bfloat16(), y, [12], 7) == feed(pred, y, [12], 7)
    mets = make_metrics(7)
    for m in mets: m.accumulate(SimpleNamespace(pred=pred.requires_grad_(), yb=(y,)))
    assert not any(t.requires_grad for m in mets for kept in m.kept for t in kept)

def test_accumulating_never_asks_the_device():
    "On the meta device a tensor has no values: whatever needs one fails"
    pred,y = torch.empty(8, 10, device="meta"),torch.empty(8, dtype=torch.long, device="meta")
    for m in make_metrics(10): m.accumulate(SimpleNamespace(pred=pred, yb=(y,)))

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_no_synchronisation_on_cuda():
    pred,y = (o.cuda() for o in data(64, 10))
    mets = make_metrics(10)
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for m in mets: m.accumulate(SimpleNamespace(pred=pred, yb=(y,)))
        finally: torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------- intervals

def wilson(k, n, z=1.959964):
    "Wilson's interval of a proportion"
    p = k/n
    mid,half = (p + z*z/2/n)/(1+z*z/n),z/(1+z*z/n)*math.sqrt(p*(1-p)/n + z*z/4/n/n)
    return mid-half, mid+half

@pytest.mark.parametrize("n,p", [(2000, .9), (10_000, .5), (50_000, .97)])
def test_interval_of_a_proportion(n, p):
    k = int(n*p)
    mean,lo,hi = bootstrap_interval(np.arange(n) < k, n=20_000)
    se = math.sqrt(p*(1-p)/n)
    assert mean == p
    assert (lo, hi) == pytest.approx((p-1.96*se, p+1.96*se), abs=.05*1.96*se)
    assert (lo, hi) == pytest.approx(wilson(k, n), abs=.12*1.96*se)

@pytest.mark.parametrize("level,z", [(.95, 1.959964), (.8, 1.281552), (.5, .674490)])
def test_interval_of_a_mean(level, z):
    x = np.random.default_rng(1).normal(3, 2, size=1500)
    mean,lo,hi = bootstrap_interval(x, n=4000, level=level)
    se = x.std()/math.sqrt(len(x))
    assert mean == pytest.approx(x.mean()) and (lo, hi) == pytest.approx((mean-z*se, mean+z*se), abs=.1*se)

def test_interval_against_picking_samples():
    x,rng = np.random.default_rng(2).exponential(size=60),np.random.default_rng(3)
    means = x[rng.integers(60, size=(20_000, 60))].mean(1)
    assert bootstrap_interval(x, n=20_000)[1:] == pytest.approx(np.quantile(means, [.025, .975]), abs=.01)

def test_the_interval_covers_what_it_promises():
    "Of 300 test sets of 400 samples from a truth of .85, about 95 % have it inside"
    hits = np.random.default_rng(0).random((300, 400)) < .85
    inside = np.mean([lo <= .85 <= hi for _,lo,hi in (bootstrap_interval(h, n=1000) for h in hits)])
    assert .91 < inside <= .98

def test_interval_options_act():
    x = np.random.default_rng(0).random(50)
    base = bootstrap_interval(x)
    assert base == bootstrap_interval(torch.tensor(x)) == bootstrap_interval(list(x))
    assert len({base, bootstrap_interval(x, n=500), bootstrap_interval(x, level=.9), bootstrap_interval(x, seed=1)}) == 4
    assert bootstrap_interval([1]*9) == (1, 1, 1)
    for bad,match in (([], "0 values"), ([1, math.nan], "1 of them not finite")):
        with pytest.raises(ValueError, match=match): bootstrap_interval(bad)
    for kw in (dict(n=0), dict(level=1.), dict(level=0)):
        with pytest.raises(ValueError, match="level="): bootstrap_interval(x, **kw)

def test_chunks_change_nothing_but_memory():
    x = np.random.default_rng(0).random(5000) # 5,000 distinct values: three chunks
    m,lo,hi = bootstrap_interval(x)
    assert lo < m < hi and (hi-lo) == pytest.approx(2*1.96*x.std()/math.sqrt(5000), rel=.1)


# ---------------------------------------------------------------- report

@pytest.mark.parametrize("K", [2, 4, 9])
def test_report_against_scikit_learn(K):
    pred,y = data(300, K)
    names = [f"class {i}" for i in range(K)]
    r = classification_report(pred.softmax(1), y, names)
    assert {k:r[k] for k in sklearn_scores(pred, y, K)} == pytest.approx(sklearn_scores(pred, y, K))
    ref = sk.classification_report(y, pred.argmax(1), target_names=names, output_dict=True)
    for c in names:
        assert r["per_class"][c] == pytest.approx(dict(precision=ref[c]["precision"], recall=ref[c]["recall"], f1=ref[c]["f1-score"], n=ref[c]["support"]))
    assert r["n"] == 300 and r["confusion"] == sk.confusion_matrix(y, pred.argmax(1)).tolist()
    assert r["ci"] == list(bootstrap_interval(pred.argmax(1) == y)[1:])
    assert ("top5" in r) == (K > 5)
    assert json.loads(json.dumps(r, allow_nan=False)) == r # plain numbers, no NaN
    assert r == classification_report(pred.numpy(), y.numpy(), names) # logits rank as probabilities do
    wide = classification_report(pred, y, names, level=.99)["ci"]
    assert wide[0] < r["ci"][0] and wide[1] > r["ci"][1]

def test_report_with_a_class_that_never_occurs():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r = classification_report(np.eye(3)[[0, 0, 1]], [0, 1, 1], ["a", "b", "c"])
    assert r["per_class"]["c"] == dict(precision=None, recall=None, f1=None, n=0)
    assert r["f1_macro"] == pytest.approx(2/3)

@pytest.mark.parametrize("probs,y,match", [
    (np.zeros((3, 2)), [0, 1, 0], "for 3 classes"), (np.zeros((2, 3)), [0], "must be \\(N,3\\)"), (np.zeros((0, 3)), [], "N from 1"),
    (np.full((1, 3), np.nan), [0], "1 of 1 samples"), (np.zeros((1, 3)), [3], "must be from 0 to 2"), (np.zeros((1, 3)), [-1], "from -1")])
def test_report_bad_input(probs, y, match):
    with pytest.raises(ValueError, match=match): classification_report(probs, y, ["a", "b", "c"])

def test_most_confused():
    c = [[40, 2, 0], [7, 30, 1], [0, 2, 50]]
    assert most_confused(c, "abc") == [("b", "a", 7), ("a", "b", 2), ("c", "b", 2), ("b", "c", 1)]
    assert most_confused(np.array(c), "abc", min_n=3) == [("b", "a", 7)]
    assert c[0][0] == 40 # the matrix stays as it was
    assert most_confused(np.eye(3), "abc") == []
    with pytest.raises(ValueError, match="does not fit 2 classes"): most_confused(c, "ab")
