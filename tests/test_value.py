"Values, of which some are unknown: errors, mixing, strata, and targets that do not fit"
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vitnb.kinds.value import Value

NAN = float("nan")
PAIR = Value(("age", "size"), unknown=0)


def test_the_error_is_that_of_a_loop_over_known_values():
    pred,target = torch.randn(6, 2), torch.randn(6, 2)
    target[0,1] = target[4,0] = NAN
    errors = [abs(p - t) for p,t in zip(pred.flatten().tolist(), target.flatten().tolist()) if t == t]
    total,count = PAIR.score(pred, target)
    assert float(total) == pytest.approx(sum(errors), rel=1e-5) and int(count) == len(errors) == 10


def test_one_value_may_stand_without_a_dimension():
    task = Value()
    total,count = task.score(torch.tensor([[1.], [2.]]), torch.tensor([3., 3.]))
    assert float(total) == 3 and count == 2 and task.outputs == 1
    task.check(torch.tensor([3., 3.]))


@pytest.mark.parametrize("share", [0., .25, 1.])
def test_values_are_averaged_in_the_proportion_of_the_images(share):
    target = torch.tensor([[1., 2.], [3., 4.], [5., 7.]])
    mixed = PAIR.mix(target, SimpleNamespace(share=lambda values: share))
    for i in range(3): assert torch.allclose(mixed[i], share*target[i] + (1 - share)*target[2-i])


def test_a_sample_that_keeps_all_is_not_touched_by_what_its_partner_lacks():
    target = torch.tensor([[1., 2.], [NAN, 4.]])
    shares = torch.tensor([[1.], [.5]])
    mixed = PAIR.mix(target, SimpleNamespace(share=lambda values: shares))
    assert mixed[0].tolist() == [1, 2] and mixed[1].isnan().tolist() == [True, False] and mixed[1,1] == 3
    assert PAIR.mix(target, SimpleNamespace(share=lambda values: 1.)) is target


def test_strata_are_tenths_and_unknown_values_are_apart():
    targets = np.random.default_rng(0).permutation(200).astype(float)[:,None]
    targets[:20] = NAN
    strata = Value(unknown=0).strata(targets)
    assert (strata[:20] == 10).all() and np.bincount(strata[20:]).tolist() == [18]*10
    order = np.argsort(targets[20:,0])
    assert (np.diff(strata[20:][order]) >= 0).all(), "a larger value is in no lower tenth"


@pytest.mark.parametrize("task,target,message", [
    (Value(), torch.tensor([1., NAN]), "unknown=0"), (PAIR, torch.tensor([[1., float("inf")]]), "not finite"), (PAIR, torch.zeros(3, 3), "are not 2 values a sample")])
def test_targets_that_do_not_fit_are_refused(task, target, message):
    with pytest.raises(ValueError, match=message): task.check(target)


def test_unknown_values_pass_where_they_may_be_there(): PAIR.check(torch.tensor([[1., NAN]]))


def test_values_have_no_classes():
    with pytest.raises(ValueError, match="sampling='uniform'"): PAIR.balance(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="leave it out"): PAIR.counts(np.zeros((3, 2)))
