"Splits: every sample once, groups on one side, ground that does not touch, and a meter that sees a leak"
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.data.split import check_shares, disjoint_blocks, group_split, leak_meter, shared_groups, split_gap, stratified_split

SHARES = dict(train=.6, valid=.15, test=.25)


@given(st.lists(st.integers(20, 90), min_size=2, max_size=5), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_stratified_parts_are_all_samples_and_keep_the_shares(counts, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    parts = stratified_split(labels, SHARES, seed)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(labels)))
    for k,share in SHARES.items():
        have = np.bincount(labels[parts[k]], minlength=len(counts))
        assert (np.abs(have - share*np.array(counts)) <= 1).all()


def test_a_split_is_a_function_of_its_seed_and_a_growing_set_keeps_most_of_it():
    y = np.arange(400) % 4
    a,b,c = stratified_split(y, SHARES, 1),stratified_split(y, SHARES, 1),stratified_split(y, SHARES, 2)
    assert all((a[k] == b[k]).all() for k in a) and not np.array_equal(a["test"], c["test"])
    more = stratified_split(np.arange(440) % 4, SHARES, 1)
    assert len(set(a["train"]) & set(more["train"]))/len(a["train"]) > .9


@given(st.lists(st.integers(1, 12), min_size=3, max_size=40), st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_groups_stay_together_and_no_split_is_empty(sizes, seed, classes):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(seed).integers(0, classes, len(groups))
    parts = group_split(groups, SHARES, labels, seed)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(groups)))
    assert not shared_groups(parts, groups) and all(len(v) for v in parts.values())


def test_many_groups_meet_the_shares_in_every_class():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), rng.integers(1, 6, 300))
    labels = rng.integers(0, 3, 300)[groups]
    parts = group_split(groups, SHARES, labels)
    for k,share in SHARES.items():
        assert np.abs(np.bincount(labels[parts[k]])/np.bincount(labels) - share).max() < .03


@given(st.integers(20, 60), st.integers(20, 60), st.integers(0, 3), st.integers(8, 12), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_no_training_pixel_lies_within_the_guard_of_another_split(h, w, guard, block, seed):
    where = disjoint_blocks((h, w), SHARES, block, guard, seed=seed)
    for k in range(3):
        rows,cols = np.nonzero((where >= 0) & (where != k))
        mine = np.argwhere(where == k)
        assert len(mine)
        if len(rows): # the slow way: every pair of pixels
            gap = np.maximum(np.abs(mine[:,:1] - rows), np.abs(mine[:,1:] - cols)).min()
            assert gap > guard
    gap = split_gap(where)
    assert gap is None or gap > guard


def test_blocks_follow_the_classes():
    labels = np.ones((60,60), int)
    labels[:,30:] = 2
    where = disjoint_blocks((60,60), SHARES, 10, 2, labels)
    for c in (1, 2):
        assert all(((where == k) & (labels == c)).any() for k in range(3))


def test_another_seed_deals_labelled_ground_differently():
    labels = np.random.default_rng(0).integers(0, 4, (70,70))*(np.random.default_rng(1).random((70,70)) < .7) # blocks of unequal counts: no ties to break
    deals = [disjoint_blocks((70,70), SHARES, 14, 2, labels, seed) for seed in range(8)]
    assert np.array_equal(deals[0], disjoint_blocks((70,70), SHARES, 14, 2, labels, 0))
    tested = sum((d == 2).astype(int) for d in deals)
    assert len({d.tobytes() for d in deals}) == 8 and (tested > 0).mean() > .6


def test_the_meter_sees_a_leak_and_sees_none():
    rng = np.random.default_rng(0)
    groups,y = np.repeat(np.arange(30), 8),np.repeat(rng.permutation(np.arange(30) % 2), 8)
    own = rng.normal(size=(30,12))[groups] + .2*rng.normal(size=(240,12))
    leaky = leak_meter(own, y, groups)
    assert leaky["random"] > .95 and leaky["leak_lo"] > .1 and leaky["n"] == 240
    fair = leak_meter(rng.normal(size=(240,12)) + 3*y[:,None], y, groups, probe="linear", repeats=3)
    assert abs(fair["leak"]) < .03


@pytest.mark.parametrize("call,says", [
    (lambda: check_shares(dict(train=1.)), "two or more"), (lambda: check_shares(dict(a=.5, b=.6)), "add up to 1"), (lambda: check_shares(dict(a=1., b=0.)), "above 0"),
    (lambda: stratified_split([0,1,1], dict(a=.5, b=.5)), "class 0 has 1 samples"), (lambda: group_split([1,1], dict(a=.5, b=.5)), "1 groups cannot fill 2"),
    (lambda: disjoint_blocks((9,9), SHARES, 4, 2), "more than twice the guard"), (lambda: disjoint_blocks((30,30), SHARES, 10, 1, np.ones((3,3))), "do not fit a scene"),
    (lambda: leak_meter(np.zeros((4,2)), [0,1,0,1], [0,0,1,1], probe="linea"), "did you mean 'linear'")], ids=lambda o: str(o)[:20] if isinstance(o, str) else "")
def test_what_cannot_be_split_is_said(call, says):
    with pytest.raises(ValueError, match=says): call()


def test_blocks_are_dealt_by_the_labels_that_the_guard_leaves():
    "A class in small fields: whichever way the blocks lie, each side keeps some of it after the band is cut"
    for seed in range(8):
        labels = np.ones((60,60), int)
        for top,left in ((2,2), (26,30), (44,8), (12,46), (50,50)): labels[top:top+5,left:left+5] = 2
        split_map = disjoint_blocks((60,60), SHARES, 12, 3, labels, seed)
        assert split_gap(split_map) > 3
        assert all(((split_map == side) & (labels == k)).any() for side in range(3) for k in (1, 2)), seed
    assert np.array_equal(disjoint_blocks((60,60), SHARES, 12, 3, labels, 5), disjoint_blocks((60,60), SHARES, 12, 3, labels, 5))
