"Squared error in the model's units and the angle in reflectance, pixel by pixel"
import math
from types import SimpleNamespace

import pytest
import torch

from vitnb.losses.reflectance import ReflectanceLoss
from vitnb.losses.spectral import SpectralMAELoss, patchify, reconstruct


def answer(x, n_visible=3, patch=(2, 2)):
    tokens = patchify(x, patch)
    order = torch.rand(tokens.shape[:2]).argsort(1)
    mask = torch.ones(order.shape).bool().scatter(1, order[:,:n_visible], False)
    index = order[:,n_visible:]
    pred = tokens.gather(1, index[...,None].expand(-1, -1, tokens.shape[-1])) + .3*torch.randn(index.shape[0], index.shape[1], tokens.shape[-1])
    return dict(pred=pred, index=index, mask=mask, n_visible=n_visible, patch=patch)


@pytest.fixture
def case():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 4, 6)
    valid = torch.rand(2, 1, 4, 6) > .2
    loss = ReflectanceLoss(2.)
    loss.normalizer = SimpleNamespace(denormalize=lambda z: .2*z + 1)
    return loss, answer(x), x, valid


def test_the_angle_is_that_of_whole_spectra_in_reflectance(case):
    loss,out,x,valid = case
    total,count = loss.terms(out, x, valid)["angle"]
    made,slow = reconstruct(out, x),0.
    for b,r,c in valid[:,0].nonzero().tolist():
        u,v = .2*made[b,:,r,c].double() + 1,.2*x[b,:,r,c].double() + 1
        slow += math.acos(min(1., float(u @ v/u.norm()/v.norm())))
    assert int(count) == int(valid.sum()) and float(total) == pytest.approx(slow, rel=1e-4)


def test_counts_need_no_answer_and_the_error_is_the_base_losss(case):
    loss,out,x,valid = case
    terms = loss.terms(out, x, valid)
    counts = loss.counts({k:v for k,v in out.items() if k != "pred"}, 4, valid)
    assert {k:int(n) for k,n in counts.items()} == {k:int(n) for k,(_,n) in terms.items()}
    assert torch.equal(terms["mse"][0], SpectralMAELoss(1., 0., 0., 0.).terms(out, x, valid)["mse"][0])


def test_without_a_weight_there_is_no_angle_and_no_normaliser_is_asked(case):
    _,out,x,valid = case
    loss = ReflectanceLoss(0.)
    assert "angle" not in loss.terms(out, x, valid) and "angle" not in loss.counts(out, 4, valid)
