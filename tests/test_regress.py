"Losses of values: closed forms, torch's own, and unknown values that are NaN"
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.losses.base import make_loss, weigh

NAMES = ["mse", "mae", "huber"]
TORCH = dict(mse=F.mse_loss, mae=F.l1_loss, huber=F.huber_loss)


@pytest.mark.parametrize("name", NAMES)
def test_without_unknown_values_it_is_torchs(name):
    pred,target = torch.randn(9)*2, torch.randn(9)*2
    assert torch.allclose(make_loss(name)(pred, target), TORCH[name](pred, target))


@settings(max_examples=50, deadline=None)
@given(error=st.floats(-20, 20), delta=st.floats(.1, 5))
def test_huber_is_squared_near_zero_and_a_line_beyond(error, delta):
    got = make_loss("huber", delta=delta)(torch.tensor([error]), torch.zeros(1)).item()
    want = .5*error**2 if abs(error) <= delta else delta*(abs(error) - .5*delta)
    assert got == pytest.approx(want, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_values_have_no_part_in_loss_and_gradient(name):
    pred,target = torch.randn(8, requires_grad=True), torch.randn(8)
    known = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1], dtype=bool)
    target[~known] = float("nan")
    loss = make_loss(name)
    value = weigh(loss.terms(pred, target, known), loss.weights)
    value.backward()
    kept = pred.detach()[known].requires_grad_()
    want = TORCH[name](kept, target[known])
    want.backward()
    assert torch.allclose(value, want) and torch.allclose(pred.grad[known], kept.grad) and not pred.grad[~known].any()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_measured_in_single(name):
    pred,target = torch.full((3,), 300.).half(), torch.full((3,), -300.).half()
    assert make_loss(name)(pred, target).isfinite(), "300 squared is beyond half precision"


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(4,\) do not fit values \(4, 1\)"): make_loss("mse")(torch.zeros(4), torch.zeros(4, 1))
    for delta in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="must be above 0"): make_loss("huber", delta=delta)
