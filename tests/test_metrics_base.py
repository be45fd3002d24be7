"Metrics of each kind of task against scikit-learn and slow references, and what they leave out"
import math
import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import AvgMetric, Learner
from fastai.metrics import accuracy as fastai_accuracy
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch.nn.functional import one_hot

from vitnb.metrics.base import EpochMetric, make_task_metrics, metric_columns, metrics
from vitnb.metrics.classify import bootstrap_interval
from vitnb.metrics.scores import Score, answers, drawn_weights, n_classes, right_answers, sum_ratio
from vitnb.task import ClassMap, MultiLabel, OneClass, Ordinal, Task, Tasks, Value

ZONES = tuple(f"zone {i}" for i in range(6))
KINDS = dict(
    oneclass=OneClass(tuple("abcdefg"), unknown=-1),
    labels=MultiLabel(tuple("abcde"), unknown=-1, metrics=("average_precision", "f1_macro", "accuracy")),
    level=Ordinal(levels=5, unknown=9),
    zones=Ordinal(ZONES, levels=4, unknown=4, metrics=("accuracy", "mae", "kappa", "f1_macro")),
    cumulative=Ordinal(ZONES, levels=4, unknown=-1, cumulative=True),
    abstain=Ordinal(ZONES, levels=4, unknown=4, abstain=True, metrics=("accuracy", "mae", "kappa", "f1_macro")),
    map=ClassMap(tuple("abcd"), unknown=255),
    value=Value(unit="mm", unknown=0),
    values=Value(("length", "width"), unit="mm", unknown=0),
)


def sample(task, n, seed=0, unknown=.2, skill=1.5):
    "A prediction with some skill and targets of which some are unknown"
    g = torch.Generator().manual_seed(seed)
    size = dict(map=(6, 4)).get(task.kind, (len(task.names),) if isinstance(task, (MultiLabel, Ordinal)) and task.names else ())
    if isinstance(task, Value):
        true = 3*torch.randn(n, task.outputs, generator=g) + 20
        pred = true + torch.randn(true.shape, generator=g)
        return pred, torch.where(torch.rand(true.shape, generator=g) < unknown, math.nan, true)
    true = torch.randint(n_classes(task), (n, *size), generator=g)
    if isinstance(task, MultiLabel): pred = skill*(true - .5) + torch.randn(true.shape, generator=g)
    elif getattr(task, "cumulative", False):
        pred = skill*(true[...,None] - torch.arange(task.levels - 1) - .5) + torch.randn(*true.shape, task.levels - 1, generator=g)
    else: pred = torch.randn(*true.shape, task.n, generator=g) + skill*one_hot(true, task.n)
    if isinstance(task, ClassMap): pred = pred.movedim(-1, 1)
    return pred, torch.where(torch.rand(true.shape, generator=g) < unknown, task.unknown, true)


def feed(task, pred, target, sizes=None, taskname=""):
    "Values of the task's metrics after batches of these sizes"
    mets,a = make_task_metrics(Tasks.of({taskname:task})),0
    for m in mets: m.reset()
    for n in sizes or [len(target)]:
        for m in mets: m.accumulate(SimpleNamespace(pred=pred[a:a+n], yb=(target[a:a+n],)))
        a += n
    return {m.name:m.value for m in mets}


def kappa_by_hand(true, said, n):
    "Cohen's weighted kappa as it is defined, from the confusion and its margins"
    observed = np.zeros((n, n))
    for t,p in zip(true, said): observed[t, p] += 1
    expected = np.outer(observed.sum(1), observed.sum(0))/observed.sum()
    weight = np.array([[(i - j)**2 for j in range(n)] for i in range(n)])
    return 1 - (weight*observed).sum()/(weight*expected).sum()


def expected_scores(task, pred, target, weight=None):
    "The scores that scikit-learn gives, of known entries"
    if isinstance(task, Value): return value_scores(task, pred, target, weight)
    said,true = task.decode(pred),target
    n,entries = len(true),true[0].numel()
    w = np.repeat(np.ones(n) if weight is None else weight, entries)
    p,t = said.reshape(-1).numpy(),true.reshape(-1).numpy()
    known = t != task.unknown
    out = dict(accuracy=sk.accuracy_score(t[known], p[known], sample_weight=w[known]))
    if isinstance(task, MultiLabel): return out | label_scores(task, pred, target, w.reshape(n, -1))
    classes = range(n_classes(task))
    occurs = [c for c in classes if (w[known]*((t == c) | (p == c))[known]).sum() > 0]
    kw = dict(labels=occurs, average="macro", zero_division=0)
    out["f1_macro"] = sk.f1_score(t[known], p[known], sample_weight=w[known], **kw)
    if isinstance(task, ClassMap): out["iou"] = sk.jaccard_score(t[known], p[known], sample_weight=w[known], **kw)
    if isinstance(task, OneClass): out["top5"] = sk.top_k_accuracy_score(t[known], pred[known], k=5, labels=classes, sample_weight=w[known])
    if isinstance(task, Ordinal):
        both = known & (p >= 0) & (p < task.levels)
        out["mae"] = sk.mean_absolute_error(t[both], p[both], sample_weight=w[both])
        out["kappa"] = sk.cohen_kappa_score(t[both], p[both], weights="quadratic", labels=classes, sample_weight=w[both])
    return out


def label_scores(task, pred, target, w):
    ap,f1 = [],[]
    for i in range(len(task.names)):
        t,known = target[:,i].numpy(),(target[:,i] != task.unknown).numpy()
        args = dict(sample_weight=w[known, i])
        ap.append(sk.average_precision_score(t[known], pred[known, i], **args))
        f1.append(sk.f1_score(t[known], pred[known, i] > 0, **args))
    return dict(average_precision=np.mean(ap), f1_macro=np.mean(f1))


def value_scores(task, pred, target, weight):
    w = np.ones(len(target)) if weight is None else weight
    p,t,w = (np.asarray(o, dtype=float) for o in (pred, target, np.broadcast_to(w[:,None], target.shape)))
    known = ~np.isnan(t)
    r2 = [sk.r2_score(t[k, i], p[k, i], sample_weight=w[k, i]) for i,k in enumerate(known.T)]
    args = dict(sample_weight=w[known])
    return dict(mae=sk.mean_absolute_error(t[known], p[known], **args), rmse=sk.root_mean_squared_error(t[known], p[known], **args), r2=np.mean(r2))


def only(task, scores): return {k:v for k,v in scores.items() if k in task.metrics}


# ---------------------------------------------------------------- scores

@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_uneven_batches_against_scikit_learn(kind, sizes, seed):
    task = KINDS[kind]
    pred,target = sample(task, 60 + sum(sizes), seed)
    assert feed(task, pred, target, [60, *sizes]) == pytest.approx(only(task, expected_scores(task, pred, target)), abs=1e-5)

@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_a_repetition(kind):
    "What the interval rests on: a sample of weight 3 is three samples, one of weight 0 none"
    task = KINDS[kind]
    pred,target = sample(task, 50)
    weights = next(drawn_weights(50, 1, seed=3))
    again = torch.from_numpy(np.repeat(np.arange(50), weights))
    for m in make_task_metrics(task):
        m.accumulate(SimpleNamespace(pred=pred, yb=(target,)))
        assert m.score.at(m.arrays())(weights) == pytest.approx(feed(task, pred[again], target[again])[m.name], abs=1e-6), m.name
        assert m.score.at(m.arrays())(weights) == pytest.approx(expected_scores(task, pred, target, weights)[m.name], abs=1e-5), m.name

def test_kappa_against_its_definition():
    task = KINDS["zones"]
    pred,target = sample(task, 80, seed=5)
    known = target != task.unknown
    want = kappa_by_hand(target[known].tolist(), task.decode(pred)[known].tolist(), 4)
    assert feed(task, pred, target)["kappa"] == pytest.approx(want, abs=1e-12)

def test_kappa_pools_zones():
    "Where zones differ in level, the mean of their kappas is another number"
    task = KINDS["zones"]
    pred,target = sample(task, 80, seed=5)
    alone = [kappa_by_hand(t[t != 4].tolist(), p[t != 4].tolist(), 4) for t,p in zip(target.T, task.decode(pred).T)]
    assert abs(feed(task, pred, target)["kappa"] - np.mean(alone)) > 1e-4

def test_zones_are_no_soft_labels():
    "Targets (B,6) were once read as masses, and the worst zone as the class"
    task = Ordinal(ZONES, levels=6)
    target = torch.tensor([[0, 1, 2, 3, 4, 5], [5, 5, 0, 0, 1, 1]])
    said = target.clone()
    said[0, 0] = 5
    got = feed(task, 9.*one_hot(said, 6), target)
    assert got["accuracy"] == 11/12 and got["mae"] == pytest.approx(5/12)

def test_targets_may_be_of_any_whole_type():
    "255 is -1 in 8 bits: an unknown pixel must not become a known one, nor the other way round"
    task = KINDS["map"]
    pred,target = sample(task, 20)
    assert feed(task, pred, target.to(torch.uint8)) == feed(task, pred, target.to(torch.int16)) == feed(task, pred, target)
    labels = MultiLabel("abc")
    pred,target = sample(MultiLabel("abc", unknown=-1), 20, unknown=0)
    assert feed(labels, pred, target.bool()) == feed(labels, pred, target.to(torch.uint8)) == feed(labels, pred, target)

def test_a_rougher_map_is_compared_pixel_by_pixel():
    task = KINDS["map"]
    pred,target = sample(task, 8, seed=1)
    rough = pred[:,:,::2,::2]
    assert feed(task, rough, target) == feed(task, rough.repeat_interleave(2, 2).repeat_interleave(2, 3), target)

def test_errors_have_the_unit_and_ignore_an_offset():
    task = Value(unit="mm")
    true = torch.tensor([1., 2., 3., 4.], dtype=torch.float64) + 1e6
    got = feed(task, (true + torch.tensor([0, 0, 0, 1.]))[:,None], true)
    assert got == pytest.approx(dict(mae=.25, rmse=.5, r2=1 - 1/5), abs=1e-6)


# ---------------------------------------------------------------- unknown, abstained, mixed, undefined

@pytest.mark.parametrize("kind", KINDS)
def test_unknown_entries_count_nowhere(kind):
    "Whatever is predicted where the truth is unknown, no score moves"
    task = KINDS[kind]
    pred,target = sample(task, 60, unknown=.4)
    other,_ = sample(task, 60, seed=9)
    known = task.known(target)
    if isinstance(task, ClassMap): known = known[:,None]
    elif isinstance(task, (OneClass, Ordinal)): known = known[...,None]
    changed = torch.where(known, pred, other)
    assert not torch.equal(task.decode(changed), task.decode(pred))
    assert feed(task, changed, target) == feed(task, pred, target)

def test_abstaining_is_wrong_but_no_distance():
    task = Ordinal(levels=3, unknown=7, abstain=True, metrics=("accuracy", "mae", "kappa", "f1_macro"))
    said,true = torch.tensor([0, 1, 2, 3, 3, 1]),torch.tensor([0, 1, 1, 0, 7, 2]) # 3 is "unknown"; once with a known truth, once not
    got = feed(task, 9.*one_hot(said, 4), true)
    assert got["accuracy"] == 2/5 and got["mae"] == 2/4
    assert got["kappa"] == pytest.approx(kappa_by_hand([0, 1, 1, 2], [0, 1, 2, 1], 3))
    assert got["f1_macro"] == pytest.approx(np.mean([2/3, 1/2, 0]))

@pytest.mark.parametrize("kind", ["oneclass", "labels", "level", "zones", "abstain", "map"])
def test_masses_count_as_their_largest_class(kind):
    task = KINDS[kind]
    pred,target = sample(task, 40)
    other = target.roll(1, 0)
    keep = (target != task.unknown) | (other == task.unknown) # where both are unknown nothing is known; elsewhere the own one leads
    mixed = torch.where(keep[...,None], .7*task.encode(target) + .3*task.encode(other), task.encode(other)*.3)
    largest = torch.where(keep, target, other)
    assert feed(task, pred, mixed) == feed(task, pred, largest)

@pytest.mark.parametrize("kind", KINDS)
def test_undefined_scores_are_nan_and_never_zero(kind):
    task = KINDS[kind]
    pred,target = sample(task, 5)
    nothing = torch.full_like(target, math.nan if isinstance(task, Value) else task.unknown)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(math.isnan(v) for v in feed(task, pred, nothing).values())
    assert all(m.value is None for m in make_task_metrics(task))

def test_one_level_has_no_kappa_one_value_no_r2_no_positive_no_precision():
    task = Ordinal(levels=4)
    assert math.isnan(feed(task, torch.randn(20, 4), torch.full((20,), 2))["kappa"])
    assert feed(task, torch.eye(4)[[1]*8], torch.tensor([0, 1, 2, 3]*2))["kappa"] == 0 # one answer is as good as chance, which is a score
    assert math.isnan(feed(Value(), torch.randn(9, 1), torch.full((9,), .1))["r2"])
    labels = MultiLabel("ab")
    true = torch.tensor([[0, 1], [0, 0], [0, 1]])
    got = feed(labels, torch.tensor([[1., 2.], [-1., 3.], [-2., 1.]]), true)
    assert got["average_precision"] == pytest.approx(sk.average_precision_score([1, 0, 1], [2, 3, 1])) # of the second label alone
    assert math.isnan(feed(labels, torch.randn(3, 2), torch.zeros(3, 2, dtype=torch.long))["average_precision"])

def test_equal_ranks_do_not_depend_on_the_order_of_samples():
    labels,true = MultiLabel("a", metrics=("average_precision",)),torch.tensor([[1], [0], [0], [1], [0]])
    ties = torch.tensor([[1.], [1.], [1.], [0.], [0.]])
    got = {feed(labels, ties[p], true[p])["average_precision"] for p in (torch.arange(5), torch.arange(5).flip(0), torch.tensor([1, 4, 3, 0, 2]))}
    assert len(got) == 1 and got.pop() == pytest.approx(sk.average_precision_score(true[:,0], ties[:,0]))


# ---------------------------------------------------------------- in a Learner

def test_several_tasks_and_a_batch_that_lacks_one():
    film = dict(zones=KINDS["zones"], size=KINDS["value"])
    parts = {k:sample(t, 30, seed=i) for i,(k,t) in enumerate(film.items())}
    mets = make_task_metrics(Tasks.of(film))
    for a,b in ((0, 20), (20, 30)):
        target = {k:y[a:b] for k,(_,y) in parts.items() if k == "zones" or a == 0} # the second batch lacks sizes
        learn = SimpleNamespace(pred={k:p[a:b] for k,(p,_) in parts.items()}, batch=dict(target=target))
        for m in mets: m.accumulate(learn)
    want = {f"zones/{k}":v for k,v in feed(film["zones"], *parts["zones"]).items()}
    want |= {f"size/{k}":v for k,v in feed(film["size"], *(o[:20] for o in parts["size"])).items()}
    assert {m.name:m.value for m in mets} == want

def test_a_batch_without_targets_is_passed_over():
    for learn in (SimpleNamespace(pred=torch.zeros(2, 7), batch={}), SimpleNamespace(pred=torch.zeros(2, 7), yb=())):
        mets = make_task_metrics(KINDS["oneclass"])
        for m in mets: m.accumulate(learn)
        assert [m.value for m in mets] == [None]*len(mets)

def test_a_plain_fastai_learner_takes_them():
    pred,target = sample(OneClass("abc", unknown=-1), 50)
    rows = list(zip(pred, target.clamp(min=0)))
    dls = DataLoaders(DataLoader(rows, bs=16), DataLoader(rows, bs=16))
    model = torch.nn.Linear(3, 3)
    learn = Learner(dls, model, torch.nn.CrossEntropyLoss(), metrics=make_task_metrics(OneClass("abc")))
    _,*scores = learn.validate()
    assert scores == pytest.approx(list(feed(OneClass("abc"), model(pred), target.clamp(min=0)).values()))

@pytest.mark.parametrize("kind", KINDS)
def test_accumulating_never_asks_the_device(kind):
    "On the meta device a tensor has no values: whatever needs one fails"
    task = KINDS[kind]
    pred,target = (o.to("meta") for o in sample(task, 8))
    mets = make_task_metrics(task)
    for m in mets: m.accumulate(SimpleNamespace(pred=pred, yb=(target,)))
    assert all(o.device.type == "meta" for m in mets for o in m.kept[0])

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_no_synchronisation_on_cuda(kind):
    task = KINDS[kind]
    pred,target = sample(task, 64)
    mets = make_task_metrics(task)
    learn = SimpleNamespace(pred=pred.cuda(), yb=(target.cuda(),))
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for m in mets: m.accumulate(learn)
        finally: torch.cuda.set_sync_debug_mode("default")
    want = feed(task, torch.cat([pred, pred]), torch.cat([target, target]))
    assert {m.name:m.value for m in mets} == pytest.approx(want, abs=1e-6)

@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_needs_no_gradient_and_half_precision_will_do(kind):
    task = KINDS[kind]
    pred,target = sample(task, 40)
    pred = pred.bfloat16().float()
    assert feed(task, pred.bfloat16(), target) == pytest.approx(feed(task, pred, target), abs=1e-6)
    mets = make_task_metrics(task)
    for m in mets: m.accumulate(SimpleNamespace(pred=pred.clone().requires_grad_(), yb=(target,)))
    assert not any(o.requires_grad for m in mets for kept in m.kept for o in kept)

def test_an_epoch_of_maps_keeps_counts_and_no_pixels():
    task = KINDS["map"]
    for m in make_task_metrics(task):
        m.accumulate(SimpleNamespace(pred=torch.randn(2, 4, 64, 64), yb=(torch.randint(4, (2, 64, 64)),)))
        assert sum(o.numel() for o in m.kept[0]) == 2*3*4


# ---------------------------------------------------------------- names, directions, registry

def test_every_default_metric_is_there_with_direction_and_unit():
    for kind,task in KINDS.items():
        found = {m.name:m for m in make_task_metrics(task)}
        assert list(found) == list(task.metrics), kind
        assert task.monitor in found
        assert {k:m.better for k,m in found.items()} == {k:"min" if k in ("mae", "rmse") else "max" for k in found}
    assert {m.name:m.unit for m in make_task_metrics(KINDS["value"])} == dict(mae="mm", rmse="mm", r2="")
    assert {m.name:m.unit for m in make_task_metrics(KINDS["level"])} == dict(accuracy="", mae="levels", kappa="")

def test_top5_applies_from_six_classes():
    assert metrics["top5"](OneClass("abcde")) is None
    assert metrics["top5"](OneClass("abcdef"), "plant").name == "plant/top5"

def test_columns_of_ours_and_of_foreign_metrics():
    mets = [*make_task_metrics(Tasks.of(dict(a=KINDS["zones"], b=KINDS["value"]))), AvgMetric(fastai_accuracy)]
    columns = metric_columns(mets)
    assert list(columns) == [m.name for m in mets]
    mae = columns["b/mae"]
    assert (mae.better, mae.unit, mae.task) == ("min", "mm", "b") and mae.improves(1., 2.)
    assert (columns["accuracy"].better, columns["accuracy"].task) == ("", "")

def test_a_metric_of_another_kind_is_refused_when_it_is_made():
    with pytest.raises(ValueError, match="'kappa' is not defined for OneClass, only for Ordinal"):
        make_task_metrics(OneClass("ab", metrics=("accuracy", "kappa")))
    with pytest.raises(ValueError, match="unknown metric 'kapa'.*kappa"): make_task_metrics(OneClass("ab", metrics=("kapa",)))

def test_a_kind_of_ones_own_has_the_metrics_of_its_base_and_registers_others():
    @dataclass(frozen=True)
    class Grade(Ordinal):
        kind:ClassVar[str] = "grade"

    def within_one(task, pred, target):
        said,true = answers(task, pred, target)
        return torch.where((said - true).abs() <= 1, true, -2), true

    @metrics.register("within_one")
    def _(task, taskname=""): return EpochMetric(Score("within_one", within_one, right_answers, sum_ratio), task, taskname)

    try:
        task = Grade(levels=4, unknown=-1, metrics=("accuracy", "within_one"))
        got = feed(task, torch.eye(4)[[0, 1, 2, 3]], torch.tensor([1, 1, 0, -1]))
        assert got == pytest.approx(dict(accuracy=1/3, within_one=2/3))
    finally: del metrics["within_one"]

def test_a_kind_without_a_base_says_how_to_add_a_metric():
    class Odd(Task): defaults = dict(loss="none", metrics=("accuracy",), monitor="accuracy")
    with pytest.raises(ValueError, match=r"not defined for Odd.*metrics\['accuracy'\].register\(Odd\)"): make_task_metrics(Odd())


# ---------------------------------------------------------------- intervals

@pytest.mark.parametrize("kind", KINDS)
def test_the_interval_is_that_of_resampled_sets(kind):
    "Against the bootstrap as it is said: draw samples, score the set"
    task = KINDS[kind]
    pred,target = sample(task, 60)
    mets = make_task_metrics(task)
    for m in mets: m.accumulate(SimpleNamespace(pred=pred, yb=(target,)))
    rng = np.random.default_rng(1)
    drawn = [feed(task, pred[i], target[i]) for i in rng.integers(60, size=(300, 60))]
    for m in mets:
        want = np.nanquantile([d[m.name] for d in drawn], [.025, .975])
        low,high = m.interval()
        assert low < m.value < high
        assert (low, high) == pytest.approx(want, abs=.25*(want[1] - want[0])), m.name

def test_the_interval_of_an_accuracy_is_that_of_its_hits():
    task = OneClass("abc")
    pred,target = sample(OneClass("abc", unknown=-1), 400, unknown=0)
    (m,) = make_task_metrics(OneClass("abc", metrics=("accuracy",)))
    m.accumulate(SimpleNamespace(pred=pred, yb=(target,)))
    _,low,high = bootstrap_interval(task.decode(pred) == target, n=8000)
    assert m.interval(draws=8000) == pytest.approx((low, high), abs=.004)

def test_samples_are_drawn_and_not_zones():
    "Six zones that say the same six times are no more samples: the interval stays as wide"
    one,six = Ordinal(levels=4),Ordinal(ZONES, levels=4)
    pred,target = sample(Ordinal(levels=4, unknown=-1), 100, unknown=0)
    spans = []
    for task,p,y in ((one, pred, target), (six, pred[:,None].repeat(1, 6, 1), target[:,None].repeat(1, 6))):
        mets = make_task_metrics(task)
        for m in mets: m.accumulate(SimpleNamespace(pred=p, yb=(y,)))
        spans.append([m.interval(draws=500) for m in mets])
    assert np.array(spans[0]) == pytest.approx(np.array(spans[1]))
