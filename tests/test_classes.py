"One class a sample, or several labels: strata, balance, means of views, and targets that do not fit"
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.kinds.classes import MultiLabel, OneClass


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_every_class_that_occurs_is_drawn_as_often_as_any_other(targets):
    shares = OneClass("abcd").balance(np.array(targets))
    of_class = [sum(share for share,target in zip(shares, targets) if target == k) for k in set(targets)]
    assert np.allclose(of_class, 1)


@given(st.lists(st.tuples(*[st.integers(0, 1)]*3), min_size=1, max_size=20))
def test_samples_share_a_stratum_when_they_have_the_same_labels(rows):
    strata = MultiLabel("abc").strata(np.array(rows))
    for a,first in zip(rows, strata):
        for b,second in zip(rows, strata): assert (a == b) == (first == second)


@settings(max_examples=30, deadline=None)
@given(views=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_mean_of_views_is_that_of_their_probabilities(views, seed):
    preds = list(torch.randn(views, 5, 3, generator=torch.Generator().manual_seed(seed))*4)
    for task in (OneClass("abc"), MultiLabel("abc")):
        want = torch.stack([task.activation(pred.double()) for pred in preds]).mean(0)
        assert torch.allclose(task.activation(task.average(preds)), want.float(), atol=1e-5)


def test_decisions_are_the_most_probable_ones():
    pred = torch.randn(20, 3)
    assert torch.equal(OneClass("abc").decode(pred), pred.softmax(1).argmax(1))
    assert torch.equal(MultiLabel("abc").decode(pred), (pred.sigmoid() > .5).long())


def test_a_decision_is_said_in_names():
    assert OneClass(("cat", "dog")).says(torch.tensor(1)) == "dog"
    assert MultiLabel(("cat", "dog", "cow")).says(torch.tensor([1, 0, 1])) == ["cat", "cow"]


@pytest.mark.parametrize("task,target,message", [
    (OneClass("abc"), torch.zeros(4, 2, dtype=int), "not one class a sample"), (OneClass("abc"), torch.tensor([0, 3]), "target 3 is not in 0..2"),
    (OneClass("abc"), torch.tensor([0, -1]), "unknown=-1"), (OneClass("abc"), torch.tensor([0.5]), "is no index"),
    (MultiLabel("abc"), torch.zeros(4, 2, dtype=int), "a 0 or 1 for each of 3 labels"), (MultiLabel("ab"), torch.tensor([[0, 2]]), "target 2 is not in 0..1")])
def test_targets_that_do_not_fit_are_refused(task, target, message):
    with pytest.raises(ValueError, match=message): task.check(target)


def test_targets_that_fit_pass():
    OneClass("abc", unknown=-1).check(torch.tensor([0, -1, 2]))
    MultiLabel("abc", unknown=-1).check(torch.tensor([[0, 1, -1]]))


@pytest.mark.parametrize("make,message", [(lambda: OneClass(("only",)), "at least two"), (lambda: MultiLabel(), "names is empty")])
def test_too_few_names_are_refused(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_labels_are_neither_balanced_nor_weighed():
    with pytest.raises(ValueError, match="sampling='uniform'"): MultiLabel("ab").balance(np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="pos_weight"): MultiLabel("ab").counts(np.zeros((3, 2), int))
