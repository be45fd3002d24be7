"Reports of each kind of task: plain values, intervals, tables, and the flat form of result.json"
import json

import numpy as np
import pytest
import torch
from fastai.learner import Metric
from sklearn import metrics as sk
from test_metrics_base import KINDS, expected_scores, feed, only, sample
from torch.nn.functional import one_hot

from vitnb.metrics.base import metrics
from vitnb.metrics.classify import classification_report
from vitnb.metrics.report import as_prediction, flat_scores, score_directions, task_report
from vitnb.task import ClassMap, MultiLabel, OneClass, Ordinal, Tasks, Value

FEW = dict(draws=50) # resampled sets where the interval is not looked at


def report(kind, n=60, seed=0, **kw):
    task = KINDS[kind]
    pred,target = sample(task, n, seed)
    return task, pred, target, task_report(task, pred, target, raw=True, **FEW | kw)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_metrics(kind):
    task,pred,target,r = report(kind)
    assert {k:v["value"] for k,v in r["scores"].items()} == pytest.approx(only(task, expected_scores(task, pred, target)), abs=1e-5)
    assert r["n"] == 60 and r["known"] == int(task.known(target).sum()) < target.numel()
    for row in r["scores"].values():
        assert row["lo"] <= row["value"] <= row["hi"] and row["lo"] < row["hi"]
        assert row["better"] in ("min", "max")
    for metric,row in r["scores"].items(): # on what it rests: known entries, of distances those with a level on both sides
        both = task.known(target) & (task.decode(pred) < task.levels) if kind == "abstain" and metric in ("kappa", "mae") else task.known(target)
        assert row["n"] == int(both.sum()), metric

@pytest.mark.parametrize("kind", KINDS)
def test_a_report_is_plain_and_survives_json(kind):
    *_,r = report(kind)
    assert json.loads(json.dumps(r, allow_nan=False)) == r

@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_give_the_report_of_what_the_model_said(kind):
    task,pred,target,r = report(kind)
    if kind == "cumulative": pred = pred.sort(-1, descending=True).values # probabilities of levels can only tell falling outputs
    want = task_report(task, pred, target, raw=True, **FEW)
    got = task_report(task, task.activation(pred), target, **FEW)
    assert {k:v["value"] for k,v in got["scores"].items()} == pytest.approx({k:v["value"] for k,v in want["scores"].items()}, abs=1e-6)
    assert got.get("confusion") == want.get("confusion")

@pytest.mark.parametrize("kind", KINDS)
def test_arrays_tensors_and_half_precision_are_all_the_same(kind):
    task,pred,target,_ = report(kind)
    pred = pred.bfloat16()
    want = task_report(task, pred.float(), target, raw=True, **FEW)
    assert task_report(task, pred, target, raw=True, **FEW) == want
    assert task_report(task, pred.float().numpy(), target.numpy(), raw=True, **FEW) == want

def test_certain_probabilities_are_numbers_too():
    task = MultiLabel("ab")
    r = task_report(task, torch.tensor([[1., 0.], [0., 1.], [.5, .5]]), torch.tensor([[1, 0], [0, 1], [0, 0]]), **FEW)
    assert r["scores"]["f1_macro"]["value"] == 1 and r["scores"]["average_precision"]["value"] == 1

@pytest.mark.parametrize("kind", ["cumulative"])
def test_levels_are_decoded_from_probabilities_as_from_outputs(kind):
    task = KINDS[kind]
    pred = torch.randn(500, 6, 3, generator=torch.Generator().manual_seed(0)).sort(-1, descending=True).values
    assert torch.equal(task.decode(as_prediction(task, task.activation(pred))), task.decode(pred))


# ---------------------------------------------------------------- tables

def test_one_class_agrees_with_the_classification_report():
    task = OneClass("abcdefg")
    pred,target = sample(KINDS["oneclass"], 90, unknown=0)
    r,old = task_report(task, pred, target),classification_report(pred, target, task.names)
    assert r["per_class"].keys() == old["per_class"].keys() and r["confusion"] == old["confusion"]
    for name,row in old["per_class"].items(): assert r["per_class"][name] == pytest.approx(row)
    for k in ("accuracy", "f1_macro", "top5"): assert r["scores"][k]["value"] == pytest.approx(old[k])
    assert (r["scores"]["accuracy"]["lo"], r["scores"]["accuracy"]["hi"]) == pytest.approx(old["ci"], abs=.03)

def test_a_class_that_never_occurs_has_no_scores():
    r = task_report(OneClass("abc"), torch.eye(3)[[0, 0, 1]], torch.tensor([0, 1, 1]), **FEW)
    assert r["per_class"]["c"] == dict(precision=None, recall=None, f1=None, n=0)

@pytest.mark.parametrize("kind", ["zones", "cumulative", "abstain"])
def test_each_zone_has_its_scores_and_its_confusion(kind):
    task,pred,target,r = report(kind)
    said = task.decode(pred)
    for i,name in enumerate(task.names):
        known = target[:,i] != task.unknown
        t,p = target[known, i].numpy(),said[known, i].numpy()
        level = (p >= 0) & (p < 4)
        row = r["per_zone"][name]
        assert row["n"] == known.sum() and row.get("kappa_n", row["n"]) == row.get("mae_n", row["n"]) == level.sum() and "accuracy_n" not in row
        assert row["accuracy"] == pytest.approx((t == p).mean())
        assert row["mae"] == pytest.approx(np.abs(t - p)[level].mean())
        assert row["kappa"] == pytest.approx(sk.cohen_kappa_score(t[level], p[level], weights="quadratic", labels=range(4)))
        wide = np.array(r["confusion"][name])
        assert wide[:,:4].tolist() == sk.confusion_matrix(t[level], p[level], labels=range(4)).tolist()
        assert wide.sum() == len(t) and wide.shape == (4, 5 if kind == "abstain" else 4)

def test_abstention_is_counted_where_the_truth_is_known_and_where_it_is_not():
    task = Ordinal(("left", "right"), levels=2, unknown=9, abstain=True)
    said = torch.tensor([[0, 2], [2, 2], [1, 0], [2, 1]]) # 2 is "unknown"
    r = task_report(task, one_hot(said, 3).float(), torch.tensor([[0, 1], [9, 1], [1, 9], [1, 0]]), **FEW)
    assert r["abstained"] == 3/6 and r["abstained_where_unknown"] == 1/2
    assert r["per_zone"]["right"]["abstained"] == 2/3 and r["per_zone"]["right"]["abstained_where_unknown"] == 0
    assert r["confusion"]["right"] == [[0, 1, 0], [0, 0, 2]] # the last column is "unknown"
    assert r["scores"]["accuracy"]["value"] == 2/6 and r["scores"]["mae"]["value"] == 1/3

def test_a_level_of_the_sample_has_one_confusion():
    task,pred,target,r = report("level")
    known = target != task.unknown
    assert r["confusion"] == sk.confusion_matrix(target[known], pred.argmax(1)[known], labels=range(5)).tolist()
    assert "per_zone" not in r and "abstained" not in r

def test_each_label_has_its_scores():
    task,pred,target,r = report("labels")
    for i,name in enumerate(task.names):
        known = target[:,i] != -1
        t,p = target[known, i],pred[known, i]
        row = r["per_label"][name]
        want = dict(n=int(known.sum()), positives=int(t.sum()), average_precision=sk.average_precision_score(t, p), accuracy=sk.accuracy_score(t, p > 0),
            precision=sk.precision_score(t, p > 0), recall=sk.recall_score(t, p > 0), f1=sk.f1_score(t, p > 0))
        assert row == pytest.approx(want)
        assert r["confusion"][name] == sk.confusion_matrix(t, p > 0).tolist()

def test_a_map_is_counted_in_pixels():
    task,pred,target,r = report("map")
    known = target != 255
    t,p = target[known],pred.argmax(1)[known]
    assert r["confusion"] == sk.confusion_matrix(t, p).tolist()
    iou = sk.jaccard_score(t, p, average=None)
    assert [row["iou"] for row in r["per_class"].values()] == pytest.approx(iou)
    assert sum(row["n"] for row in r["per_class"].values()) == known.sum()

def test_each_value_has_its_errors():
    task,pred,target,r = report("values")
    for i,name in enumerate(task.names):
        known = ~target[:,i].isnan()
        t,p = target[known, i],pred[known, i]
        want = dict(n=int(known.sum()), mae=sk.mean_absolute_error(t, p), rmse=sk.root_mean_squared_error(t, p), r2=sk.r2_score(t, p))
        assert r["per_value"][name] == pytest.approx(want, abs=1e-5)
    assert {k:v["unit"] for k,v in r["scores"].items()} == dict(mae="mm", rmse="mm", r2="")


# ---------------------------------------------------------------- undefined, wrong, foreign

def test_undefined_scores_are_none_with_no_interval():
    task = Ordinal(("left", "right"), levels=3, unknown=-1)
    r = task_report(task, torch.randn(8, 2, 3), torch.full((8, 2), -1), **FEW)
    assert r["known"] == 0
    for row in r["scores"].values(): assert (row["value"], row["lo"], row["hi"], row["n"]) == (None, None, None, 0)
    assert r["per_zone"]["left"] == dict(n=0, accuracy=None, mae=None, kappa=None)
    assert {name:value for name,value in flat_scores(r).items() if value is not None} == {f"test_{name}_n":0 for name in r["scores"]}

@pytest.mark.parametrize("task,pred,target,match", [
    (OneClass("abc"), torch.rand(3, 2), [0, 1, 2], "3 outputs"), (OneClass("abc"), torch.rand(2, 3), [0], "2 predictions and 1 targets"),
    (OneClass("abc"), torch.rand(0, 3), [], "from 1"), (OneClass("abc"), torch.full((1, 3), np.nan), [0], "1 of 1 samples"),
    (OneClass("abc"), torch.rand(1, 3), [3], "not in 0..2"), (OneClass("abc"), torch.rand(1, 3), [[.2, .3, .5]], "not one class a sample"),
    (MultiLabel("ab"), torch.tensor([[3., -1.]]), [[1, 0]], "raw=True"), (Ordinal(levels=4, cumulative=True), torch.rand(1, 3), [1], "raw=True"),
    (Ordinal(("l", "r"), levels=4), torch.rand(1, 4), [[1, 2]], "outputs"), (ClassMap("ab"), torch.rand(1, 3, 4, 4), np.zeros((1, 4, 4), int), "2 outputs"),
    (Value(), torch.rand(2, 2), [1., 2.], "1 outputs")])
def test_bad_input_is_named(task, pred, target, match):
    with pytest.raises(ValueError, match=match): task_report(task, pred, np.array(target), **FEW)

def test_a_foreign_metric_has_a_value_and_no_interval():
    class Batches(Metric):
        def reset(self): self.n = 0
        def accumulate(self, learn): self.n += 1
        @property
        def value(self): return self.n
        @property
        def name(self): return "batches"

    metrics["batches"] = lambda task, taskname="": Batches()
    try: r = task_report(OneClass("ab", metrics=("accuracy", "batches")), torch.eye(2), torch.tensor([0, 1]), **FEW)
    finally: del metrics["batches"]
    assert r["scores"]["batches"] == dict(value=1., lo=None, hi=None, better="", unit="", n=None)


# ---------------------------------------------------------------- flat

def test_flat_scores_and_directions_have_the_same_names():
    task,pred,target,r = report("zones")
    flat,better = flat_scores(r),score_directions(r)
    assert list(better) == ["test_accuracy", "test_mae", "test_kappa", "test_f1_macro"]
    assert better["test_mae"] == "min" and better["test_kappa"] == "max"
    assert list(flat) == [k + end for k in better for end in ("", "_lo", "_hi", "_n")]
    assert flat["test_mae"] == pytest.approx(feed(task, pred, target)["mae"])
    assert flat["test_mae_lo"] == r["scores"]["mae"]["lo"]
    assert "valid_zones/mae_hi" in flat_scores(r, "valid_", "zones") and "valid_zones/mae" in score_directions(r, "valid_", "zones")

def test_several_tasks_make_several_reports():
    tasks = Tasks.of(dict(zones=KINDS["zones"], size=KINDS["value"]))
    parts = {k:sample(t, 30) for k,t in tasks.items()}
    pred,target = ({k:v[i] for k,v in parts.items()} for i in (0, 1))
    got = tasks.map(lambda *o: task_report(*o, raw=True, **FEW), pred, target)
    assert got["size"] == task_report(tasks["size"], *parts["size"], raw=True, **FEW) and list(got) == ["zones", "size"]
