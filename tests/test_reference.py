"The usual forms of a masked autoencoder predict what ours does"
import pytest
import torch

from vitnb.models.protocol import create_model
from vitnb.models.reference import EncodesAll, UsualMAE


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    ours = create_model("spectral_mae_micro", img_size=16, in_chans=10, patch_size=(4, 5), mask_ratio=.75)
    return ours, torch.rand(2, 10, 16, 16), torch.rand(2, 32).argsort(1)


def test_the_usual_form_predicts_the_same(case):
    ours,x,order = case
    with torch.no_grad(): pred,usual = ours.eval()(x, order)["pred"],UsualMAE(ours).eval()(x, order)
    assert torch.allclose(usual.gather(1, order[...,None].expand_as(usual)), pred, atol=1e-2) # norms add other small numbers


def test_an_encoder_of_all_tokens_predicts_the_masked_ones_from_other_features(case):
    ours,x,order = case
    with torch.no_grad(): out,own = EncodesAll(ours.train())(x, order),ours(x, order)
    assert torch.equal(out["index"], own["index"]) and out["pred"].shape == own["pred"].shape and not torch.allclose(out["pred"], own["pred"])
