"The scores of a masked autoencoder, and of baselines under the same masks"
import json

import numpy as np
import pytest
import torch
from tiny_spectral import masked_learner as tiny

from vitnb.callback.checkpoint import load_checkpoint
from vitnb.callback.masked import VALID_EPOCH
from vitnb.data.cube import cube_loaders
from vitnb.learner.core import load_model, run_callbacks
from vitnb.learner.spectral import Baseline, evaluate_model, rival_differences, rules_for
from vitnb.runweights import find_checkpoint
from vitnb.losses.spectral import reconstruct, voxel_mask


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    learn = tiny(lr=3e-3, n=24, bs=4, metrics=None)
    learn.fit(6, cbs=run_callbacks(folder, monitor="mse_masked", tracker="none"))
    return folder,learn


def test_evaluation_agrees_with_the_history(trained):
    folder,learn = trained
    best = load_checkpoint(folder/"checkpoints"/"best_model.pth")
    got = evaluate_model(folder, learn.dls.valid, device="cpu")
    assert got["scores"]["mse_masked"]["mean"] == pytest.approx(best["metrics"]["mse_masked"], rel=1e-5)
    assert got["scores"]["sam_masked_reflectance"]["mean"] == pytest.approx(best["metrics"]["sam_degrees"], rel=1e-4)
    assert got["checkpoint"] == "best_model.pth" and got["n"] == len(learn.dls.valid.dataset) == len(got["cubes"])


def test_evaluation_does_not_depend_on_the_batch(trained, tmp_path):
    folder,learn = trained
    dls = cube_loaders(learn.dls.image_set, bs=3, normalize="log", workers=0, device="cpu")
    a,b = (evaluate_model(folder, d.test, device="cpu", folder=tmp_path) for d in (learn.dls, dls))
    for k,v in a["scores"].items(): assert v["mean"] == pytest.approx(b["scores"][k]["mean"], rel=1e-4), k
    assert json.loads((tmp_path/"evaluation.json").read_text())["n"] == b["n"]


def test_rules_fill_in_what_they_say_and_are_scored_like_the_model(trained):
    folder,learn = trained
    model,x = load_model(find_checkpoint(folder)),next(iter(learn.dls.test))[0]
    order = model.seeded_order(1, VALID_EPOCH, range(len(x)))
    out = Baseline(model, "mean")(x, order)
    gone,made = voxel_mask(out, x.shape[1:]),reconstruct(out, x)
    for b,c in np.ndindex(*x.shape[:2]):
        if gone[b,c].any(): assert torch.allclose(made[b,c][gone[b,c]], x[b,c][~gone[b,c]].mean() if (~gone[b,c]).any() else torch.tensor(0.), atol=1e-5)
    assert torch.equal(out["mask"], model(x, order)["mask"])
    scores = [evaluate_model(Baseline(model, how), learn.dls.test, where=("masked",), ssim=False, device="cpu")["scores"]["mse_masked"] for how in rules_for(model)]
    assert scores[0]["n"] == len(learn.dls.test.dataset) and len({score["mean"] for score in scores}) == 3
    with pytest.raises(ValueError, match="did you mean 'linear'"): Baseline(model, "lineal")


def test_a_faded_line_is_the_line_near_visible_bands_and_the_mean_far_from_them(trained):
    folder,learn = trained
    model,x = load_model(find_checkpoint(folder)),next(iter(learn.dls.test))[0]
    order = model.seeded_order(1, VALID_EPOCH, range(len(x)))
    made = {how:reconstruct(Baseline(model, how, 40.)(x, order), x) for how in rules_for(model)}
    nm = np.array(model.config["model_kw"]["wavelengths"])
    gone = voxel_mask(Baseline(model)(x, order), x.shape[1:])
    for b,c,i,j in zip(*np.nonzero(gone[:,:,::5,::5].numpy())):
        i,j = 5*i,5*j
        visible = nm[~gone[b,:,i,j].numpy()]
        share = np.exp(-np.abs(visible - nm[c]).min()/40) if len(visible) else 0.
        want = share*made["linear"][b,c,i,j] + (1 - share)*made["mean"][b,c,i,j]
        assert float(made["faded"][b,c,i,j]) == pytest.approx(float(want), abs=1e-5)
    model.config["model_kw"]["wavelengths"] = None
    assert rules_for(model) == ("mean", "linear")
    with pytest.raises(ValueError, match="take 'linear'"): Baseline(model, "faded")


def test_differences_to_rules_are_paired_by_cube():
    errors = dict(model=[.1, .2, .3], mean=[.2, .3, .4], faded=[.1, .1, .1])
    results = {name:dict(cubes=[dict(mse_masked=value) for value in values]) for name,values in errors.items()}
    found = rival_differences(results)
    assert set(found) == {("model", "mean", "mse_masked"), ("model", "faded", "mse_masked")}
    assert found["model", "mean", "mse_masked"] == pytest.approx((-.1, -.1, -.1))
    assert found["model", "faded", "mse_masked"][0] == pytest.approx(.1)


def test_evaluation_refuses_other_units_and_shuffled_loaders(trained):
    folder,learn = trained
    with pytest.raises(ValueError, match="another normaliser"):
        evaluate_model(folder, cube_loaders(learn.dls.image_set, bs=2, normalize="none", workers=0, device="cpu").test, device="cpu")
    with pytest.raises(ValueError, match="shuffles"): evaluate_model(folder, learn.dls.train, device="cpu")
    with pytest.raises(FileNotFoundError, match="holds no checkpoints"): evaluate_model(folder/"checkpoints", learn.dls.test, device="cpu")
