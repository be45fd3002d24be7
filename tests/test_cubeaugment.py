"Normalisers and augmentation of cubes: exact, and nothing invalid leaks"
import json

import numpy as np
import pytest
import torch
from cube_files import PARTS, batch, own_cache
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.data.augment import Draws
from vitnb.data.cube import (BandDropout, BandModulation, CubeAffine, CubeFlip, CubeGain, CubeNoise, CubeNormalize,
    IGNORE, LogScale, cube_augments, cube_pipeline, make_normalizer)


@given(st.sampled_from(["none", "log", "zscore"]), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_normalisers_are_undone_and_survive_json(kind, seed):
    rng = np.random.default_rng(seed)
    kw = dict(mean=rng.random(4), std=rng.random(4) + .01) if kind == "zscore" else {}
    norm = make_normalizer(kind, **kw)
    x = torch.from_numpy(rng.uniform(1e-5, 2, (2,4,3,3)).astype(np.float32))
    assert torch.allclose(norm.denormalize(norm.normalize(x)), x, rtol=2e-5, atol=2e-6)
    again = make_normalizer(**json.loads(json.dumps(norm.state_dict())))
    assert again == norm and torch.equal(again.normalize(x), norm.normalize(x))
    lo,hi = (torch.as_tensor(o, dtype=torch.float32) for o in (norm.lo, norm.hi))
    edge = norm.floor if kind == "log" else 0.
    assert torch.allclose(norm.normalize(torch.full((4,1,1), edge)), lo.expand(4,1,1), atol=1e-5) and torch.allclose(norm.normalize(torch.ones(4,1,1)), hi.expand(4,1,1), atol=1e-5)


def test_the_guides_log_scaling():
    y = LogScale().normalize(torch.tensor([1e-3, 1., 2., 0., -3.]))
    assert torch.allclose(y[:3], torch.tensor([0., 1., 1.1003]), atol=1e-4) and torch.isfinite(y).all()


@given(st.sampled_from(sorted(cube_augments)), st.sampled_from(["none", "log", "zscore"]), st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_no_augmentation_makes_a_nan(name, kind, seed, filled):
    norm = make_normalizer(kind, **(dict(mean=[.5]*4, std=[.2]*4) if kind == "zscore" else {}))
    x = batch(seed, filled=filled)
    y = cube_pipeline(name, norm, -1., PARTS, **(dict(wavelengths=[450,500,550,850]) if name == "modulated" else {}))(x, Draws(seed, 0, range(3)))
    assert torch.isfinite(y["image"]).all() and y["image"].shape == x["image"].shape and y["mask"].dtype == torch.bool
    assert (y["image"][~y["mask"].expand_as(y["image"])] == -1).all() or name == "missing_bands"
    assert (y["target"][~y["mask"][:,0]] == IGNORE).all() and set(y["target"].unique().tolist()) <= {IGNORE,0,1,2,3,4}
    if name not in ("basic", "missing_bands", "modulated") and kind == "none" and y["mask"].any():
        v = y["image"][y["mask"].expand_as(y["image"])]
        assert name == "guide" or (v.min() >= 1e-4 - 1e-6 and v.max() <= 1.2 + 1e-6)


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_cube_picture_mask_and_classes_share_one_geometry(seed):
    "Parts that say the same before a transform say the same after it"
    x = batch(seed, filled=1.)
    level = x["target"][:,None].float()
    x = {**x, "image":level.expand(-1,4,-1,-1).contiguous(), "rgb":level.expand(-1,3,-1,-1)/5}
    flipped = CubeFlip()(x, Draws(seed, 0, range(3)))
    assert torch.equal(flipped["image"][:,0].long(), flipped["target"]) and torch.allclose(flipped["rgb"][:,0]*5, flipped["image"][:,0])
    moved = CubeAffine(.2, 30, .3, p=1.)(x, Draws(seed, 0, range(3)))
    inside = (torch.nn.functional.avg_pool2d(moved["mask"].float(), 3, 1, 1) > .99)[:,0] # where the picture, too, is not mixed with what is outside
    assert torch.allclose((moved["rgb"][:,0]*5)[inside], moved["image"][:,0][inside], atol=1e-4)
    assert torch.allclose(moved["image"][:,0], moved["image"][:,3]) and torch.isfinite(moved["image"]).all()


def test_an_affine_move_is_the_one_that_was_asked_for():
    "A shift by whole pixels moves values; a quarter turn is numpy's"
    class Fixed(CubeAffine):
        def matrices(self, draws): return self.m[None].float(), torch.tensor([True])
    x = batch(0, B=1, H=10, W=10, filled=1.)
    t = Fixed(p=1.)
    t.m = torch.tensor([[1.,0,2*3/10], [0,1,0]])
    y = t(x, Draws(0, 0, [0]))
    assert torch.allclose(y["image"][...,:7], x["image"][...,3:], atol=1e-4) and not y["mask"][...,7:].any() and y["mask"][...,:7].all()
    t.m = torch.tensor([[0.,-1,0], [1,0,0]])
    assert torch.allclose(t(x, Draws(0, 0, [0]))["image"], torch.rot90(x["image"], 1, (2,3)), atol=1e-4)


def test_every_augmentation_acts_and_is_repeated_exactly():
    x,norm = batch(1, filled=1.),LogScale()
    for t in (CubeFlip(1.), CubeAffine(p=1.), CubeGain(), CubeNoise(), BandDropout(.5), CubeNormalize(norm)):
        a,b,c = t(x, Draws(0, 0, range(3))),t(x, Draws(0, 0, range(3))),t(x, Draws(0, 1, range(3)))
        assert not torch.equal(a["image"], x["image"]) and torch.equal(a["image"], b["image"]), t
        if not isinstance(t, (CubeFlip, CubeNormalize)): assert not torch.equal(a["image"], c["image"]), t
        one = t({k:v if k == "tasks" else v[1:2] for k,v in x.items()}, Draws(0, 0, [1]))
        assert torch.equal(one["image"], a["image"][1:2]), f"{t}: a window depends on its neighbours"


def test_band_dropout_keeps_a_band():
    x = dict(image=torch.ones(64,5,2,2), mask=torch.ones(64,1,2,2, dtype=torch.bool))
    left = (BandDropout(.95)(x, Draws(0, 0, range(64)))["image"].amax((2,3)) > 0).sum(1)
    assert left.min() >= 1
    many = dict(image=torch.ones(400,5,1,1), mask=torch.ones(400,1,1,1, dtype=torch.bool))
    assert abs((BandDropout(.3)(many, Draws(0, 0, range(400)))["image"] == 0).float().mean() - .3) < .03


@pytest.mark.parametrize("name,option,value", [("flip", "p", 0.), ("basic", "rotate", 0.), ("basic", "shift", 0.), ("basic", "scale", 0.), ("basic", "gain", 0.), ("basic", "noise", 0.), ("basic", "offset", .1),
    ("basic", "p", 1.), ("guide", "rotate", 0.), ("guide", "noise", 0.), ("missing_bands", "drop", .9), ("missing_bands", "flip", 0.)])
def test_every_option_of_a_recipe_acts(name, option, value):
    x,norm = batch(2, B=8, filled=1.),LogScale()
    a,b = (cube_pipeline(name, norm, tasks=PARTS, **kw)(x, Draws(5, 0, range(8)))["image"] for kw in ({}, {option: value}))
    assert not torch.equal(a, b)


def test_modulation_keeps_neighbours_together_and_parts_distant_bands():
    nm = np.arange(400., 2500, 10)
    c = BandModulation(nm).curves(Draws(0, 0, range(2000))).double().numpy()
    assert abs((c**2).mean() - 1) < .05
    def agree(k): return np.corrcoef(c[:,50], c[:,50+k])[0,1]
    assert agree(1) > .95 > .5 > agree(80)
