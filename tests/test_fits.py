"Which model fits which card: the count beside closed forms, and every family in the table"
import pytest
import torch

from vitnb.callback.memory import step_memory
from vitnb.learner.fits import CARDS, CASES, GIB, ModelCase, memory_row, memory_table, smallest_card
from vitnb.models.protocol import create_model


def test_a_row_is_the_count_of_the_model_that_is_there():
    "A model made without memory is counted like one that has it"
    case = ModelCase("spectral_mae_micro", (30, 24, 24), 4, model_kw=dict(img_size=24, patch_size=(8, 5)))
    row = memory_row(case, torch.float32)
    model = create_model(case.arch, **case.model_kw)
    real = [step_memory(model, (4, 30, 24, 24), checkpointing=on)["total"]/GIB for on in (False, True)]
    assert [row["plain_gib"], row["checkpointed_gib"]] == pytest.approx(real, abs=.01) and row["parameters"] == sum(p.numel() for p in model.parameters())


def test_weights_gradients_and_states_are_at_least_there():
    case = ModelCase("densenet_micro", (3, 8, 8), 8, states=1)
    model = create_model(case.arch)
    assert step_memory(model, (8, 3, 8, 8), states=1)["total"] >= 3*4*sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("gib,card", [(.1, 8), (7.2, 8), (7.21, 16), (14.4, 16), (14.41, 24), (21.6, 24), (21.61, None)])
def test_a_tenth_of_a_card_is_left_to_the_library(gib, card): assert smallest_card(gib*GIB) == card


def test_every_family_and_every_claim_of_the_guides_stands_in_the_table():
    assert CARDS == (8, 16, 24) and {case.arch.split("_")[0].rstrip("0123456789") for case in CASES} == {"swin", "densenet", "hvit", "spectral", "csi"}
    claims = {case.arch:case.claim for case in CASES if case.claim}
    assert claims == dict(densenet121=2, densenet169=3, densenet201=4, densenet264=6, spectral_mae_tiny=8, spectral_mae_small=8, spectral_mae_medium=16, spectral_mae_large=24, spectral_mae_huge=24)


def test_the_largest_model_is_its_weights_and_checkpointing_keeps_the_rest_small():
    "632 million weights with gradients and two states are 10 GiB: several cards are not needed. A few of its blocks show what a step keeps beside"
    with torch.device("meta"): whole = create_model("spectral_mae_huge")
    assert 9 < 16*sum(p.numel() for p in whole.parameters())/GIB < 11
    (row,) = memory_table([ModelCase("spectral_mae_huge", (30, 500, 500), 6, model_kw=dict(depth=3, decoder_depth=1))])
    own = 16*row["parameters"]/GIB
    assert 0 < row["checkpointed_gib"] - own < row["plain_gib"] - own + .01
