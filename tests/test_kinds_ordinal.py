"Ordered levels and zones: probabilities of levels, moves and their way back, strata, and abstention"
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.kinds.base import make_task
from vitnb.kinds.ordinal import Ordinal


def slow_levels(logits):
    "Probability of each level: a level is passed no more often than the one before"
    above,least = [1.], 1.
    for logit in logits:
        least = min(least, 1/(1 + np.exp(-logit)))
        above.append(least)
    above.append(0.)
    return [a - b for a,b in zip(above, above[1:])]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=6))
def test_cumulative_outputs_give_probabilities_of_levels_also_where_they_rise(logits):
    task = Ordinal(levels=len(logits) + 1, cumulative=True)
    got = task.activation(torch.tensor([logits]))[0]
    assert torch.allclose(got, torch.tensor(slow_levels(logits), dtype=torch.float32), atol=1e-5)
    assert bool((got >= 0).all()) and abs(float(got.sum()) - 1) < 1e-5


def test_the_mean_level_is_that_of_the_probabilities_without_abstention():
    task = Ordinal(levels=3, unknown=9, abstain=True)
    pred = torch.randn(5, 4)
    for row,got in zip(pred.double().softmax(1)[:,:3], task.expected(pred)):
        assert abs(float((row*torch.arange(3)).sum()/row.sum()) - float(got)) < 1e-5


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(5)), seed=st.integers(0, 99))
def test_a_prediction_for_the_moved_image_comes_back_to_its_zones(order, seed):
    task = Ordinal("abcde", levels=3, flips=dict(hflip=order))
    pred = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(seed))
    target = pred.argmax(-1)
    moved = task.move(target, "hflip")
    assert moved[0].tolist() == [target[0,k].item() for k in order]
    assert torch.equal(task.move_back(pred[:,list(order)], "hflip"), pred)


def test_a_view_without_an_order_is_refused_and_with_none_keeps_the_zones():
    task = Ordinal("ab", levels=3, flips=dict(hflip=None))
    target = torch.tensor([[0, 2]])
    assert torch.equal(task.move(target, "hflip"), target) and torch.equal(task.move(target, "shift"), target)
    with pytest.raises(ValueError, match=r"flips=dict\(vflip="): task.move(target, "vflip")
    assert torch.equal(Ordinal(levels=3).move(torch.tensor([1]), "vflip"), torch.tensor([1])), "a level of the sample lies nowhere"


def test_abstention_is_a_level_of_its_own_there_and_back():
    task = Ordinal(levels=3, unknown=9, abstain=True)
    target = torch.tensor([0, 9, 2, 1])
    masses = task.encode(target)
    assert masses.argmax(1).tolist() == [0, 3, 2, 1]
    level,known = task.hard(masses)
    assert torch.equal(level, target) and known.tolist() == [True, False, True, True]
    assert torch.equal(task.decode(masses), target) and task.counts(target.numpy()).tolist() == [1, 1, 1, 1]


def test_strata_are_the_rounded_mean_level_and_whether_all_is_known():
    task = Ordinal("abc", levels=4, unknown=-1)
    targets = np.random.default_rng(0).integers(-1, 4, (60, 3))
    def slow(row):
        known = [level for level in row if level != -1]
        if not known: return "nothing"
        return int(np.rint(np.mean(known))), len(known) == 3
    want = [slow(row) for row in targets]
    got = task.strata(targets)
    for a,first in zip(want, got):
        for b,second in zip(want, got): assert (a == b) == (first == second)
    shares = task.balance(targets)
    assert np.allclose([shares[got == stratum].sum() for stratum in set(got)], 1)


def test_rows_and_entries_of_zones_lie_side_by_side():
    task = Ordinal("ab", levels=3, unknown=-1)
    pred,target = torch.randn(4, 2, 3), torch.randint(-1, 3, (4, 2))
    rows,(entries,known) = task.rows(pred, target), task.entries(target)
    for i in range(4):
        for zone in range(2):
            assert torch.equal(rows[2*i + zone], pred[i,zone]) and entries[2*i + zone] == target[i,zone]
            assert bool(known[2*i + zone]) == (target[i,zone] != -1)


@pytest.mark.parametrize("kw,message", [
    (dict(levels=1), "at least 2"), (dict(levels=3, abstain=True), "abstain=True needs unknown"),
    (dict(levels=3, unknown=9, abstain=True, cumulative=True), "cumulative=False"),
    (dict(names="ab", levels=3, flips=dict(hflip=[0, 0])), "each of 0 to 1"), (dict(names="ab", levels=3, flips=dict(hfilp=None)), "did you mean 'hflip'")])
def test_settings_that_mean_nothing_are_refused(kw, message):
    with pytest.raises(ValueError, match=message): Ordinal(**kw)


@pytest.mark.parametrize("task,target,message", [
    (Ordinal("ab", levels=3), torch.zeros(4, dtype=int), "one level for each of 2 zones"), (Ordinal(levels=3), torch.tensor([3]), "target 3 is not in 0..2"),
    (Ordinal(levels=3, unknown=9, abstain=True), torch.tensor([0, 3, 9]), "target 3 is not in 0..2")])
def test_targets_that_do_not_fit_are_refused(task, target, message):
    with pytest.raises(ValueError, match=message): task.check(target)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.booleans())
def test_conditional_answers_become_probabilities_and_back(seed, abstain):
    "By the chain rule; what is decoded, averaged and read back from probabilities is the same"
    g = torch.Generator().manual_seed(seed)
    task = Ordinal("ab", levels=4, unknown=4, abstain=abstain, conditional=True)
    said = 2*torch.randn(5, 2, 3 + abstain, generator=g)
    p = task.activation(said)
    for row,probs in zip(said.reshape(-1, 3 + abstain).sigmoid(), p.reshape(-1, 4 + abstain)):
        chain, left = [], 1.
        for answer in row.tolist():
            chain.append(left*(1 - answer))
            left *= answer
        chain.append(left)
        if abstain: chain = chain[1:] + chain[:1] # the first question is whether there is a level
        assert torch.allclose(probs, torch.tensor(chain), atol=1e-5)
    assert task.outputs == (2, 3 + abstain) and torch.allclose(task.activation(task.said_of(p)), p, atol=1e-5)
    assert torch.equal(task.decode(said), task.decode(task.said_of(p.double())))
    assert torch.allclose(task.activation(task.average([said, -said])), (p + task.activation(-said))/2, atol=1e-5)
    if abstain: assert torch.equal(task.decode(said), p.argmax(-1)), "4, the last, is what stands for unknown"
    else: assert torch.equal(task.decode(said), (p.cumsum(-1)[...,:-1] < .5).sum(-1)), "the median"
    assert make_task(task.config()) == task


def test_outputs_are_cumulative_or_conditional():
    with pytest.raises(ValueError, match="give one"): Ordinal(levels=4, cumulative=True, conditional=True)
    assert Ordinal(levels=4, conditional=True).loss == "corn" and Ordinal(levels=4, conditional=True, unknown=4, abstain=True).loss == "corn_csi"
