"Parts held out: stratified, disjoint, groups whole"
import numpy as np
import pytest
from data_helpers import folder, own_folders, picture
from hypothesis import given, settings
from hypothesis import settings as hyp
from hypothesis import strategies as st

from vitnb.data.holdout import hold_out, limit_split, one_fold, Split, strata
from vitnb.data.sets import load_set
from vitnb.data.split import shared_groups
from vitnb.data.table import hold_out_missing, ImageSet
from vitnb.task import MultiLabel, OneClass, Ordinal, Tasks, Value

@hyp(max_examples=40, deadline=None)
@given(st.lists(st.integers(4, 40), min_size=2, max_size=6), st.floats(.1, .6), st.integers(0, 9))
def test_hold_out_is_disjoint_complete_and_stratified(ns, share, seed):
    labels = np.repeat(np.arange(len(ns)), ns)
    n,k = len(labels),round(len(labels)*share)
    split = Split(np.arange(n)[:,None,None], labels)
    if min(k, n-k) < len(ns): return
    rest,part = hold_out(split, share, seed, [str(i) for i in range(len(ns))])
    ids = [s.items[:,0,0] for s in (rest, part)]
    assert sorted(np.concatenate(ids)) == list(range(n)) and len(part) == k
    assert all((np.diff(i) > 0).all() for i in ids)
    assert (np.abs(np.bincount(part.labels, minlength=len(ns)) - np.array(ns)*k/n) <= 1).all()

@hyp(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 9), st.booleans())
def test_folds_test_each_image_once(folds, each, seed, grouped):
    "Groups stay whole, no image is on both sides, and without groups each fold has its share of each class, to one"
    labels = np.repeat([0, 1, 2], [7*each, 9*each, 12*each])
    n = len(labels)
    groups = np.arange(n)//each if grouped else None
    split = Split(np.arange(n)[:, None, None], labels, groups=groups)
    tests = []
    for fold in range(folds):
        parts = one_fold(split, folds, fold, ["a", "b", "c"], seed)
        train,test = (parts[name].items[:, 0, 0] for name in ("train", "test"))
        assert sorted([*train, *test]) == list(range(n))
        if grouped: assert not set(groups[train]) & set(groups[test])
        else: assert (np.abs(np.bincount(labels[test], minlength=3) - np.bincount(labels)/folds) <= 1).all()
        tests += list(test)
    assert sorted(tests) == list(range(n))

@pytest.mark.parametrize("folds,fold,said", [(1, 0, "folds=1 must be a whole number from 2 to 5"), (6, 0, "folds=6"), (2.5, 0, "folds=2.5"),
                                             (3, 3, "fold=3 must be a whole number from 0 to 2"), (3, -1, "fold=-1"), (3, .5, "fold=0.5")])
def test_a_fold_that_is_not_there(folds, fold, said):
    split = Split(np.zeros((10, 1, 1)), [0, 1]*5, groups=np.arange(10)//2)
    with pytest.raises(ValueError, match=said): one_fold(split, folds, fold, ["a", "b"])

def test_class_too_small_to_split(tmp_path):
    folder(tmp_path/"s", n=10); picture(tmp_path/"s"/"rare"/"0.png")
    with pytest.raises(ValueError, match="'rare' has 1 training images"): load_set(tmp_path/"s")

def test_labels_and_items_agree():
    with pytest.raises(ValueError, match="2 images but 1 labels"): Split(["a", "b"], [0])

@settings(max_examples=40, deadline=None)
@given(st.integers(8, 40), st.integers(1, 4), st.integers(0, 99), st.sampled_from(["none", "class", "zones", "value"]))
def test_groups_never_straddle_and_nothing_is_lost(n_groups, each, seed, kind):
    n = n_groups*each
    local = np.random.default_rng(seed)
    task,y = dict(none=(None, None), zones=(Ordinal(("a", "b"), levels=4, unknown=9), local.integers(0, 4, (n,2))), value=(Value(), local.random(n)))\
        .get(kind, (OneClass(("x", "y")), np.arange(n) % 2))
    table = Split(np.arange(n).reshape(n,1,1), y, groups=np.repeat(np.arange(n_groups), each))
    s = ImageSet("s", task, dict(train=table))
    hold_out_missing(s, None, seed)
    where = {k:v.items.ravel() for k,v in s.splits.items()}
    assert sorted(np.concatenate(list(where.values()))) == list(range(n)) and not shared_groups(where, table.groups) and all(len(v) for v in where.values())

@pytest.mark.parametrize("task, y", [(Ordinal(("a", "b"), levels=4, unknown=9), np.random.default_rng(0).integers(0, 4, (200,2))), (MultiLabel(("a", "b", "c")), np.random.default_rng(0).integers(0, 2, (200,3))),
    (Value(), np.random.default_rng(0).random(200)), (OneClass(("a", "b", "c"), unknown=-1), np.random.default_rng(0).integers(-1, 3, 200))])
def test_parts_share_out_strata_alike(task, y):
    table = Split(np.arange(200).reshape(-1,1,1), y)
    by = strata(table, Tasks.of(task))
    rest,part = hold_out(table, .25, 3, task)
    for c in np.unique(by):
        n = (by == c).sum()
        assert abs((by[part.items.ravel()] == c).sum() - n/4) <= 1 + .1*n, c

def test_a_limit_goes_by_stratum():
    table = Split(np.arange(60).reshape(-1,1,1), np.repeat([[0,0],[3,3]], 30, axis=0))
    few,more = (limit_split(table, k, 1, Tasks.of(Ordinal(("a", "b"), levels=4))) for k in (4, 9))
    assert len(few) == 8 and set(few.items.ravel()) <= set(more.items.ravel())
