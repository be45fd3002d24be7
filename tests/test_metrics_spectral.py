"Scores of filled-in cubes: which voxels, which units, torchmetrics and slow references, labels, bands"
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.image import peak_signal_noise_ratio, spectral_angle_mapper, structural_similarity_index_measure

from vitnb.data.cube import make_normalizer
from vitnb.losses.spectral import patchify, reconstruct, voxel_mask
from vitnb.metrics.classify import bootstrap_interval
from vitnb.metrics.spectral import (WHERE, SpectralScores, compare_cubes, cube_scores, make_spectral_metrics, scored_cube, summarise, to_reflectance)

PATCH = (4, 3)
LOG = make_normalizer("log")


def gen(seed): return torch.Generator().manual_seed(seed)

def answer(cube, seed=0, share=.75, off=.1):
    "Noisy predictions of every token, as a model in evaluation mode returns them"
    tokens = patchify(cube, PATCH)
    order = torch.rand(tokens.shape[:2], generator=gen(seed)).argsort(1)
    n = round(order.shape[1]*(1-share))
    mask = torch.ones(order.shape, dtype=torch.bool).scatter(1, order[:,:n], False)
    pred = torch.stack([t[i] for t,i in zip(tokens, order)])
    return dict(pred=pred + off*torch.randn(pred.shape, generator=gen(seed+1)), index=order, mask=mask, n_visible=n, patch=PATCH)

def cubes(n=2, seed=0, bands=6, side=16): return torch.rand(n, bands, side, side, generator=gen(seed))*.8 + .1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), partial=st.booleans())
def test_scores_equal_loops_over_voxels(seed, partial):
    cube = cubes(seed=seed)
    valid = torch.rand(2, 1, 16, 16, generator=gen(seed+7)) > .3 if partial else None
    out = answer(cube, seed)
    scores,gone,raw = cube_scores(out, cube, valid, ssim=False),voxel_mask(out, cube.shape[1:]),reconstruct(out, cube, raw=True)
    ok = torch.ones_like(gone) if valid is None else valid.expand_as(gone)
    for b in range(2):
        sets = dict(masked=(gone[b] & ok[b], raw[b]), visible=(~gone[b] & ok[b], raw[b]), all=(ok[b], torch.where(gone[b], raw[b], cube[b])))
        for k,(w,made) in sets.items():
            mse = (made[w] - cube[b][w]).square().mean()
            assert float(scores[f"mse_{k}"][b]) == pytest.approx(float(mse), rel=1e-5)
            assert float(scores[f"psnr_{k}"][b]) == pytest.approx(10*math.log10(1/float(mse)), abs=1e-3)
            put = torch.where(w, made, cube[b])
            angles = [math.acos(min(1, float(torch.nn.functional.cosine_similarity(put[:,i,j].double(), cube[b,:,i,j].double(), dim=0))))
                      for i,j in w.any(0).nonzero().tolist()]
            assert float(scores[f"sam_{k}"][b]) == pytest.approx(math.degrees(np.mean(angles)), rel=1e-4)

def test_whole_cubes_score_as_torchmetrics_says():
    cube = cubes(3)
    made = cube + .05*torch.randn(cube.shape, generator=gen(1))
    got = compare_cubes(made, cube, torch.ones_like(cube).bool(), data_range=2.)
    assert torch.allclose(got["psnr"], torch.stack([peak_signal_noise_ratio(a, b, data_range=2.) for a,b in zip(made, cube)]), atol=1e-4)
    assert torch.allclose(got["ssim"], structural_similarity_index_measure(made, cube, data_range=2., reduction="none"), atol=1e-5)
    assert torch.allclose(got["sam"].deg2rad(), spectral_angle_mapper(made, cube, reduction="none").flatten(1).mean(1), atol=1e-4)

def test_psnr_is_per_cube_and_not_of_the_pooled_error():
    cube = cubes(2)
    made = cube + torch.tensor([.01, .1])[:,None,None,None]
    got = compare_cubes(made, cube, torch.ones_like(cube).bool(), ssim=False)["psnr"]
    assert torch.allclose(got, torch.tensor([40., 20.]), atol=1e-3) and abs(float(got.mean()) - 10*math.log10(1/((1e-4 + 1e-2)/2))) > 5

def test_visible_and_masked_do_not_mix():
    "An error that is large where the model was given the truth shows in `visible` alone"
    cube = cubes()
    out = answer(cube, off=0.)
    out["pred"][:,:out["n_visible"]] += 5.
    scores = cube_scores(out, cube)
    for k in ("masked", "all"): assert float(scores[f"mse_{k}"].max()) < 1e-10 and float(scores[f"ssim_{k}"].min()) > 1 - 1e-4
    assert torch.allclose(scores["mse_visible"], torch.full((2,), 25.), rtol=1e-4)
    out = answer(cube, off=0.)
    out["pred"][:,out["n_visible"]:] += 1.
    scores = cube_scores(out, cube)
    assert float(scores["mse_visible"].max()) < 1e-10 and torch.allclose(scores["mse_all"], .75*scores["mse_masked"], rtol=1e-4)

def test_invalid_pixels_have_no_say():
    cube = cubes()
    valid = torch.rand(2, 1, 16, 16, generator=gen(3)) > .4
    out = answer(cube)
    a = cube_scores(out, cube, valid, ssim=False)
    pixels = patchify(valid.expand_as(cube), PATCH)
    inside = torch.stack([t[i] for t,i in zip(pixels, out["index"])])
    b = cube_scores({**out, "pred":torch.where(inside, out["pred"], 1e4)}, cube, valid, ssim=False)
    assert all(torch.allclose(v, b[k]) for k,v in a.items())

def test_reflectance_is_the_normalisers_inverse():
    light = cubes(seed=4)*.5 + .01
    cube,out = LOG.normalize(light),answer(LOG.normalize(light), off=.05)
    scores = cube_scores(out, cube, normalizer=LOG)
    gone,made = voxel_mask(out, cube.shape[1:]),LOG.denormalize(reconstruct(out, cube))
    for b in range(2):
        want = (made[b][gone[b]] - light[b][gone[b]]).square().mean()
        assert float(scores["mse_masked_reflectance"][b]) == pytest.approx(float(want), rel=1e-3)
    assert not torch.allclose(scores["sam_masked"], scores["sam_masked_reflectance"], rtol=.1) # the angle of logarithms is another angle
    assert set(cube_scores(out, cube)) == {k for k in scores if "reflectance" not in k}

def test_a_wild_prediction_stays_finite_in_reflectance():
    cube = LOG.normalize(cubes())
    out = answer(cube)
    out["pred"] = out["pred"] + 1e3
    assert all(v.isfinite().all() for v in cube_scores(out, cube, normalizer=LOG).values())
    x = torch.tensor([[[[-.5, 0, 1, 1.9, 30]]]])
    assert torch.allclose(to_reflectance(x, LOG), LOG.denormalize(x.clamp(-1, 2)))
    z = make_normalizer("zscore", mean=[.2], std=[.1])
    assert torch.allclose(to_reflectance(x, z), z.denormalize(x.clamp(-12, 18)))

def test_small_cubes_have_no_ssim():
    cube = torch.rand(1, 6, 4, 4, generator=gen(0))
    scores = cube_scores(answer(cube, share=.5), cube)
    assert "mse_masked" in scores and not [k for k in scores if k.startswith("ssim")]

@pytest.mark.parametrize("kw,message", [(dict(data_range=0.), "data_range=0"), (dict(where=("hidden",)), "unknown set of voxels")])
def test_bad_settings(kw, message):
    cube = cubes()
    with pytest.raises(ValueError, match=message): cube_scores(answer(cube), cube, **kw)

def test_training_output_has_no_visible_score():
    cube = cubes()
    out = answer(cube)
    n = out["n_visible"]
    out = {**out, "pred":out["pred"][:,n:], "index":out["index"][:,n:]}
    assert "mse_masked" in cube_scores(out, cube, where=("masked",))
    with pytest.raises(ValueError, match="model.eval"): cube_scores(out, cube, where=("visible",))

def test_only_what_is_asked_for():
    cube = LOG.normalize(cubes())
    scores = cube_scores(answer(cube), cube, normalizer=LOG, only=["mse_masked", "ssim_all_reflectance"])
    assert set(scores) == {"mse_masked", "ssim_all_reflectance"}
    whole = cube_scores(answer(cube), cube, normalizer=LOG)
    assert all(torch.equal(v, whole[k]) for k,v in scores.items())


# a split

def test_split_scores_weigh_cubes_alike_and_keep_labels():
    scores,batches = SpectralScores(LOG, [500 + 10*i for i in range(6)]),[cubes(3, 1), cubes(2, 2)]
    for i,x in enumerate(batches): scores.add(answer(LOG.normalize(x), i, off=.02*(i+1)), LOG.normalize(x), labels=["a", "b", "a"][:len(x)])
    rows = torch.tensor([r["mse_masked"] for r in scores.rows])
    summary = scores.summary()
    assert summary["mse_masked"]["n"] == 5 and summary["mse_masked"]["mean"] == pytest.approx(float(rows.mean()))
    assert (summary["mse_masked"]["lo"], summary["mse_masked"]["hi"]) == pytest.approx(bootstrap_interval(rows)[1:])
    labels = scores.by_label()
    assert {k:v["mse_masked"]["n"] for k,v in labels.items()} == dict(a=3, b=2)
    assert labels["b"]["mse_masked"]["mean"] == pytest.approx(np.mean([r["mse_masked"] for r in scores.rows if r["label"] == "b"]))

def test_bands_are_pooled_over_voxels():
    x = LOG.normalize(cubes(3, 5))
    scores = SpectralScores(LOG, [500 + 10*i for i in range(6)])
    outs = [answer(o, i) for i,o in enumerate((x[:2], x[2:]))]
    for out,o in zip(outs, (x[:2], x[2:])): scores.add(out, o)
    gone = torch.cat([voxel_mask(o, x.shape[1:]) for o in outs])
    error = torch.cat([(reconstruct(o, y) - y).square() for o,y in zip(outs, (x[:2], x[2:]))])
    for i,row in enumerate(scores.by_band()):
        assert row["nm"] == 500 + 10*i and row["voxels"] == int(gone[:,i].sum()) and row["mse"] == pytest.approx(float(error[:,i][gone[:,i]].mean()), rel=1e-5)

def test_a_perfect_cube_has_no_psnr_and_an_empty_split_no_score():
    x = cubes()
    scores = SpectralScores()
    scores.add(answer(x, off=0.), x)
    assert "psnr_masked" not in scores.summary() and scores.summary()["mse_masked"]["mean"] == 0
    with pytest.raises(ValueError, match="no cubes were scored"): summarise([])

def test_history_columns_are_means_over_cubes_and_scored_once(monkeypatch):
    import vitnb.metrics.spectral as module
    calls,real = [],module.cube_scores
    monkeypatch.setattr(module, "cube_scores", lambda *a, **kw: calls.append(1) or real(*a, **kw))
    metrics,x = make_spectral_metrics(LOG),LOG.normalize(cubes(3))
    for m in metrics: m.reset()
    for part in (x[:2], x[2:]):
        learn = SimpleNamespace(pred=answer(part), batch=dict(image=part, mask=torch.ones(len(part), 1, 16, 16).bool()))
        for m in metrics: m.accumulate(learn)
    assert [m.name for m in metrics] == ["mse_masked", "sam_degrees", "psnr", "ssim"] and len(calls) == 2
    each = [real(answer(p), p, normalizer=LOG) for p in (x[:2], x[2:])]
    for m,k in zip(metrics, ("mse_masked", "sam_masked_reflectance", "psnr_all_reflectance", "ssim_all_reflectance")):
        assert m.value == pytest.approx(float(torch.cat([e[k] for e in each]).mean()), rel=1e-5)
    for m in metrics: m.reset()
    assert metrics[0].value is None

def test_the_scored_cube_holds_the_truth_where_the_score_does_not_look():
    cube = cubes()
    out = answer(cube)
    for w in WHERE:
        made,count = scored_cube(out, cube, w)
        assert torch.equal(made[~count], cube[~count])
