"Ways to reconstruct, side by side"
import numpy as np
import pytest
import torch

from vitnb.data.cube import cube_loaders, load_cube_set
from vitnb.learner.reconstruct import reconstructions, rivals_say, score_windows, window_errors
from vitnb.models.protocol import create_model


@pytest.fixture(scope="module")
def case():
    dls = cube_loaders(load_cube_set(n=12, size=16, bands=10), bs=2, normalize="zscore", device="cpu", workers=0)
    torch.manual_seed(0)
    return dls, create_model("spectral_mae_micro", patch_size=(4, 5), wavelengths=dls.wavelengths.tolist(), img_size=16).eval()


def test_visible_voxels_stay_and_methods_do_what_they_are_called(case):
    dls,model = case
    x = dls.test.one_batch()["image"]
    order = model.seeded_order(0, -1, np.arange(len(x)))
    found,masked = reconstructions(model, x, order, dls.normalizer, dls.wavelengths, 50.)
    for name,cubes in found.items():
        if name != "interpolated reflectance": assert torch.allclose(cubes[~masked], x[~masked], atol=1e-6), name
    assert (found["band mean"][masked] == 0).all()
    both,line,own = (found[k][masked] for k in ("model and line", "interpolated", "model"))
    assert ((both - torch.minimum(line, own)) > -1e-5).all() and ((both - torch.maximum(line, own)) < 1e-5).all() # between the two
    assert (found["faded line"][masked].abs() <= line.abs() + 1e-6).all()


def test_errors_are_over_masked_and_valid_voxels():
    g = torch.Generator().manual_seed(0)
    made,true = torch.rand(2, 3, 4, 5, generator=g),torch.rand(2, 3, 4, 5, generator=g)
    masked,valid = torch.rand(2, 3, 4, 5, generator=g) > .5,torch.rand(2, 1, 4, 5, generator=g) > .3
    got = window_errors(made, true, masked, valid)
    for b in range(2):
        errors,angles = [],[]
        for r,c in np.ndindex(4, 5):
            if not valid[b,0,r,c]: continue
            u,v = made[b,:,r,c].double(),true[b,:,r,c].double()
            angles.append(np.degrees(np.arccos(float(u @ v/u.norm()/v.norm()))))
            errors += [float((u[k] - v[k])**2) for k in range(3) if masked[b,k,r,c]]
        assert float(got["mse"][b]) == pytest.approx(np.mean(errors), rel=1e-4) and float(got["sam"][b]) == pytest.approx(np.mean(angles), rel=1e-4)


def test_scores_do_not_depend_on_the_batch(case):
    dls,model = case
    rows = [score_windows(model, dls.test.new(bs=bs), dls.normalizer, dls.wavelengths, 50., 3, 16) for bs in (1, 2)]
    by = [sorted((r["method"], r["block"], round(r["mse"], 6), round(r["sam"], 3)) for r in o) for o in rows]
    assert by[0] == by[1] and len({r["block"] for r in rows[0]}) == len(dls.test.dataset)


def test_it_is_said_when_a_simple_rival_wins():
    known = {("model", "line", "mse"):(2., 1., 3.), ("model", "mean", "mse"):(-2., -3., -1.), ("model", "line", "sam"):(0., -1., 1.), ("both", "line", "mse"):(-1., -2., -.5)}
    said = rivals_say(known).splitlines()
    assert said[:3] == ["model, mse: BEHIND line; ahead of mean", "model, sam: level with line", "both, mse: ahead of line"]
    assert "fill in by line, which needs no training" in said[3]
    assert len(rivals_say({key:interval for key,interval in known.items() if key[:2] != ("model", "line")}).splitlines()) == 2
