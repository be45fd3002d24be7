"Cubes: every format gives the same numbers, nothing invalid leaks, statistics and normalisers are exact, and bad files are named"
import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from vitnb.data.augment import Draws
from vitnb.data.cube import (IGNORE, BandDropout, BandModulation, BandStats, CubeAffine, CubeArray, CubeFile, CubeFlip, CubeGain, CubeNoise, CubeNormalize, CubeRecord, CubeSet, LogScale,
                             UnreadableImage, absorbers, close_cubes, cube_augments, cube_loaders, cube_pipeline, interpolate_bands, lay_windows, load_cube_set, make_normalizer, valid_pixels,
                             pixel_windows, rgb_bands, scene_set, synthetic_retina)
from vitnb.data.split import shared_groups
from vitnb.learner.core import vit_learner
from vitnb.task import ClassMap, Tasks

h5py = pytest.importorskip("h5py")
CUBE = np.random.default_rng(0).random((6,20,16), dtype=np.float32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))
    yield
    close_cubes()


def write_h5(path, a=CUBE, name="Cube/Images", head=b"", **kw):
    "An HDF5 file, with MATLAB's heading if `head` is given"
    with h5py.File(path, "w", userblock_size=512 if head else 0) as f: f.create_dataset(name, data=a, **kw)
    if head:
        with open(path, "r+b") as f: f.write(head)
    return path


def write_npy(path, a=CUBE):
    np.save(path, a)
    return path


def write_mat(path, **arrays):
    savemat(path, arrays, do_compression=True)
    return path


V73 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64"
FORMATS = dict( # every layout that is promised, written by another library's hand
    hdf5        = lambda d: CubeFile(write_h5(d/"a.h5", chunks=(6,8,8), compression="gzip")),
    hdf5_hwc    = lambda d: CubeFile(write_h5(d/"a.h5", CUBE.transpose(1,2,0), "data"), "data", "hwc"),
    hdf5_guess  = lambda d: CubeFile(write_h5(d/"a.h5", CUBE.transpose(1,2,0)), bands=6),
    matlab_73   = lambda d: CubeFile(write_h5(d/"a.mat", CUBE.transpose(0,2,1), "cube", V73), "cube"), # MATLAB's (20,16,6) is stored reversed
    matlab_73_largest = lambda d: CubeFile(write_h5(d/"a.mat", CUBE.transpose(0,2,1), "cube", V73)),
    mat         = lambda d: CubeFile(write_mat(d/"a.mat", cube=CUBE.transpose(1,2,0), gt=np.ones((20,16)))),
    mat_table   = lambda d: CubeFile(write_mat(d/"a.mat", Y=CUBE.transpose(0,2,1).reshape(6,-1)), "Y", "c(wh)", (20,16)),
    mat_rows    = lambda d: CubeFile(write_mat(d/"a.mat", Y=CUBE.reshape(6,-1).T), "Y", "(hw)c", (20,16)),
    hdf5_table  = lambda d: CubeFile(write_h5(d/"a.h5", CUBE.reshape(6,-1)), axes="c(hw)", size=(20,16)),
    npy         = lambda d: CubeFile(write_npy(d/"a.npy")),
    npy_hwc     = lambda d: CubeFile(write_npy(d/"a.npy", CUBE.transpose(1,2,0)), axes="hwc"),
    npy_fortran = lambda d: CubeFile(write_npy(d/"a.npy", np.asfortranarray(CUBE))),
    array       = lambda d: CubeArray(CUBE))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_windows(name, tmp_path):
    cube = FORMATS[name](tmp_path)
    assert cube.shape == (6,20,16)
    whole = cube.read()
    assert whole.dtype == np.float32 and np.array_equal(whole, CUBE)
    for t,l,h,w in [(0,0,1,1), (3,5,8,4), (12,0,8,16)]: assert np.array_equal(cube.read(t, l, h, w), CUBE[:,t:t+h,l:l+w])
    again = pickle.loads(pickle.dumps(cube)) # what a spawned worker gets
    assert np.array_equal(again.read(3, 5, 8, 4), CUBE[:,3:11,5:9])


def test_integers_become_reflectance(tmp_path):
    raw = (CUBE*10_000).astype(np.uint16)
    assert np.allclose(CubeFile(write_npy(tmp_path/"a.npy", raw), scale=1e-4).read(), raw/1e4, atol=1e-6)


def test_an_unpacked_copy_is_made_anew_when_the_file_changes(tmp_path):
    import os
    f = write_mat(tmp_path/"a.mat", cube=CUBE.transpose(1,2,0))
    assert np.array_equal(CubeFile(f).read(), CUBE)
    write_mat(f, cube=2*CUBE.transpose(1,2,0))
    os.utime(f, ns=(1, 1))
    assert np.array_equal(CubeFile(f).read(), 2*CUBE)


def test_a_window_reads_only_its_chunks(tmp_path):
    "A file whose other chunks are destroyed still gives the window that does not need them"
    f = write_h5(tmp_path/"a.h5", chunks=(6,10,8), compression="gzip")
    with h5py.File(f, "r") as h: info = h["Cube/Images"].id.get_chunk_info(3) # rows 10 to 20, columns 8 to 16
    cube = CubeFile(f)
    close_cubes()
    with open(f, "r+b") as o:
        o.seek(info.byte_offset)
        o.write(b"\xff"*info.size)
    assert np.array_equal(cube.read(0, 0, 10, 8), CUBE[:,:10,:8])
    with pytest.raises(UnreadableImage, match="cannot be read"): cube.read(10, 8, 4, 4)


def _read(source, idx): return source.read(np.array(idx)).numpy()


def h5_set(tmp_path, n=6, **kw):
    for i in range(n): write_h5(tmp_path/f"c{i}.h5", CUBE + i, chunks=(6,8,8), compression="gzip")
    (tmp_path/"set.csv").write_text("ID,label,hs_file,rgb_file\n" + "".join(f"p{i},{'ab'[i%2]},c{i}.h5,\n" for i in range(n)))
    return load_cube_set(tmp_path/"set.csv", **kw)


@pytest.fixture
def pair():
    "The same loader without and with workers"
    s = load_cube_set("retina_synthetic", n=10, bands=6, size=32)
    kw = dict(bs=2, window=16, augment="basic", label="pixels", rgb=True, seed=1, device="cpu")
    return [cube_loaders(s, workers=w, **kw).train for w in (0, 2)]

FIELDS = "image", "mask", "rgb", "target"
def same_batches(a, b): return len(a) == len(b) and all(torch.equal(u[k], v[k]) for u,v in zip(a, b) for k in FIELDS)

def test_batches_of_workers_keep_their_values_while_somebody_holds_them(pair):
    here,there = pair
    kept = list(there) # more than there are places
    assert len(kept) > len(there._passes.slots.memory)
    first = there._passes.slots.memory.numpy()
    assert sum(np.shares_memory(x.numpy(), first) for x,_ in kept) == len(first) # the rest is in memory of its own
    part = kept[0][0][1:,:2] # a view holds its place as well
    before,kept = part.clone(),kept[:2]
    for _ in range(2): assert sum(1 for _ in there) == len(here)
    assert torch.equal(part, before) and same_batches(kept, list(here)[:2])

def test_the_places_of_batches_are_readn_again(pair):
    here,there = pair
    where = [x.data_ptr() for x,_ in there]
    places = len(there._passes.slots.memory)
    assert len(set(where)) <= places < len(where)
    for epoch in (3, 4): # a pass that somebody leaves costs no place
        next(iter(there))
        for dl in pair: dl.set_epoch(epoch)
        assert same_batches(list(here), [b.map(torch.clone) for b in there])
    assert len(there._passes.slots.free) == places and not there._passes.slots.lent

def test_a_batch_too_large_for_its_place_goes_another_way(pair, monkeypatch):
    here,there = pair
    monkeypatch.setattr(type(there.dataset), "room", lambda self, n: 64)
    assert same_batches(list(here), list(there))
    slots = there._passes.slots
    assert slots.memory.shape[1] == 64 and len(slots.free) == len(slots.memory)

def test_every_target_of_windows_fits_its_place():
    s = load_cube_set("retina_synthetic", n=6, bands=6, size=32)
    for kw in (dict(), dict(label="class"), dict(label="pixels"), dict(rgb=True), dict(label=("class", "pixels"), rgb=True)):
        dl = cube_loaders(s, workers=1, bs=3, window=16, augment="guide", seed=1, device="cpu", **kw).train
        assert all(np.shares_memory(b["image"].numpy(), dl._passes.slots.memory.numpy()) for b in dl), kw

def test_forked_and_spawned_processes_open_their_own_handles(tmp_path):
    s = h5_set(tmp_path)
    kw = dict(bs=2, window=8, jitter=2, augment="flip", device="cpu", seed=1)
    here = list(cube_loaders(s, **kw).train) # the parent holds handles open
    there = list(cube_loaders(s, workers=2, **kw).train)
    assert len(here) == len(there) and all(torch.equal(a[k], b[k]) for a,b in zip(here, there) for k in ("image", "mask"))
    source = cube_loaders(s, **kw).train.dataset.source
    with multiprocessing.get_context("spawn").Pool(1) as pool: assert np.array_equal(pool.apply(_read, (source, [0,3])), _read(source, [0,3]))


def test_few_files_are_open_at_a_time(tmp_path):
    from vitnb.data import cubefile
    for i in range(40): CubeFile(write_h5(tmp_path/f"c{i}.h5")).read(0, 0, 2, 2)
    assert len(cubefile._handles) <= cubefile._MOST_OPEN


# ---- statistics and normalisers

@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 10**6), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_streaming_statistics_are_numpys(sizes, seed, mean, std):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(mean, std, (3,n)) for n in sizes]
    x,a,b = np.concatenate(parts, 1),BandStats(3),BandStats(3)
    for p in parts[::2]: a.add(p)
    for p in parts[1::2]: b.add(p)
    s = a.merge(b)
    assert s.n == x.shape[1]
    if s.n:
        size = abs(mean) + std
        assert np.allclose(s.mean, x.mean(1), atol=1e-10*size) and np.allclose(s.std, x.std(1), rtol=1e-6, atol=1e-8*size)
        assert np.array_equal(s.min, x.min(1)) and np.array_equal(s.max, x.max(1))


def test_statistics_are_those_of_the_valid_pixels_of_train(tmp_path):
    s = load_cube_set(n=12, size=16, bands=5)
    x = np.concatenate([c[:,valid_pixels(c, 1e-3)] for c in (s.records[i].source.array for i in s.splits["train"])], 1)
    got = s.scan()
    assert got["n"] == x.shape[1] and np.allclose(got["mean"], x.mean(1), atol=1e-6) and np.allclose(got["std"], x.std(1), atol=1e-6)
    dls = cube_loaders(s, bs=2, normalize="zscore", device="cpu")
    flat = torch.cat([c.permute(1,0,2,3)[:,v[:,0]] for c,v in ((b["image"], b["mask"]) for b in dls.train.new(shuffle=False, drop_last=False))], 1)
    assert flat.mean(1).abs().max() < 1e-4 and (flat.std(1) - 1).abs().max() < 1e-2


def test_other_ground_never_enters_the_statistics():
    land = np.random.default_rng(1).random((4,40,40), dtype=np.float32)
    s = scene_set("s", CubeArray(land), block=10, guard=2)
    g = s.records[0].split_map
    bright = land + 100*(g != 0)
    t = CubeSet("t", [CubeRecord(CubeArray(bright.astype(np.float32)), "s", split_map=g)], s.splits)
    assert np.allclose(s.scan()["mean"], t.scan()["mean"], atol=1e-5)


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


# ---- what is valid

def fields(b): return b["image"], b["mask"]

def test_nan_infinity_and_negative_values_are_no_measurements():
    a = CUBE.copy()
    a[2,0,0],a[0,1,1],a[5,2,2] = np.nan,-.1,np.inf
    assert np.argwhere(~valid_pixels(a)).tolist() == [[0,0], [1,1], [2,2]]
    s = CubeSet("s", [CubeRecord(CubeArray(a), f"c{i}") for i in range(3)], dict(train=[0], valid=[1], test=[2]))
    assert s.scan()["not_measured"] == 9
    for kind in ("none", "log", "zscore"):
        x,valid = fields(cube_loaders(s, bs=1, normalize=kind, device="cpu").one_batch())
        assert torch.isfinite(x).all() and not valid[0,0,0,0] and not valid[0,0,1,1] and (x[0,:,0,0] == 0).all()


def test_a_cube_without_any_measurement_is_left_out():
    a = [CUBE, CUBE, CUBE, np.full_like(CUBE, np.nan)]
    s = CubeSet("s", [CubeRecord(CubeArray(o), f"c{i}") for i,o in enumerate(a)], dict(train=[0,3], valid=[1], test=[2]))
    with pytest.raises(ValueError, match="c3 .every pixel has a NaN"): s.scan()
    s.scan(max_bad=.3)
    assert s.splits["train"].tolist() == [0] and list(s.unreadable) == ["c3"]


def test_no_value_of_another_split_reaches_a_window():
    "A scene whose pixel values say which split they belong to"
    s = scene_set("s", CubeArray(np.ones((3,50,50), np.float32)), block=12, guard=2)
    g = s.records[0].split_map
    s.records[0].source = CubeArray(np.broadcast_to(g + 2, (3,50,50)).astype(np.float32)) # train 2, valid 3, test 4, nobody 1
    for augment in ("none", "basic"):
        dls = cube_loaders(s, bs=4, window=10, stride=4, jitter=3, augment=augment, aug_kw=dict(gain=0., offset=0., noise=0.) if augment == "basic" else None, normalize="none", device="cpu")
        for k,dl in enumerate(dls.loaders):
            for x,valid in map(fields, dl): assert torch.allclose(x[valid.expand_as(x)], torch.tensor(2. + k), atol=1e-4) and (x[~valid.expand_as(x)] == 0).all()


def test_windows_cover_every_pixel():
    s = CubeSet("s", [CubeRecord(CubeArray(CUBE), f"c{i}") for i in range(3)], dict(train=[0], valid=[1], test=[2]))
    seen = np.zeros((20,16), bool)
    for _,t,l in lay_windows(s, "train", (8,8), 6): seen[t:t+8,l:l+8] = True
    assert seen.all()


# ---- augmentation

def batch(seed, B=3, C=4, H=12, W=10, filled=.7):
    "Random windows with holes, companion images and classes"
    rng = np.random.default_rng(seed)
    valid = torch.from_numpy(rng.random((B,1,H,W)) < filled)
    cube = torch.from_numpy(rng.uniform(1e-4, 1.2, (B,C,H,W)).astype(np.float32))
    truth = torch.where(valid[:,0], torch.from_numpy(rng.integers(0, 5, (B,H,W))), IGNORE)
    return dict(image=torch.where(valid, cube, 0.), mask=valid, rgb=torch.rand(B,3,H,W), target=truth, tasks=PARTS)

PARTS = Tasks.of(ClassMap(tuple("abcde"), unknown=IGNORE))


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


@given(st.integers(0, 10**6), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_interpolation_across_bands_is_numpys(seed, bands):
    g = torch.Generator().manual_seed(seed)
    x,gone,nm = torch.rand(2,bands,2,3, generator=g),torch.rand(2,bands,2,3, generator=g) < .6,torch.rand(bands, generator=g)*1000 + 400
    y,order = interpolate_bands(x, gone, nm, otherwise=7.),nm.argsort()
    for b,r,k in np.ndindex(2,2,3):
        see = ~gone[b,order,r,k]
        want = np.interp(nm[order], nm[order][see], x[b,order,r,k][see]) if see.any() else np.full(bands, 7.)
        assert np.allclose(y[b,order,r,k], want, atol=1e-4)


def test_pixels_are_labelled_by_their_middle():
    s = load_cube_set(n=12, size=32)
    places = {k:pixel_windows(s, k, 9, per_class=5, seed=1) for k in ("train","valid","test")}
    dls = cube_loaders(s, bs=4, window=9, windows=places, label_of="center", label="class", device="cpu")
    assert dls.vocab == ["tissue","artery","vein","disc"] and np.bincount(dls.train.dataset.labels).tolist() == [5]*4
    for (k,t,l),y in zip(places["test"], dls.test.dataset.labels): assert s.records[k].label_map[t+4,l+4] == y
    assert not np.array_equal(pixel_windows(s, "train", 9, 5, 1), pixel_windows(s, "train", 9, 5, 2)) and len(pixel_windows(s, "train", 9)) > 1000
    assert cube_loaders(s, bs=4, label_of="window", label="class", window=8, device="cpu").c == 4
    with pytest.raises(ValueError, match="needs a label map"): cube_loaders(CubeSet("s", [CubeRecord(CubeArray(CUBE), f"c{i}") for i in range(3)], dict(train=[0], valid=[1], test=[2])), bs=1, label="class", label_of="center", device="cpu")


# ---- loaders and the engine

def test_batches_are_as_promised():
    s = load_cube_set(n=12, size=32)
    dls = cube_loaders(s, bs=4, device="cpu")
    b = dls.one_batch()
    x,valid = fields(b)
    assert type(x) is torch.Tensor and (x.shape, x.dtype, valid.shape, valid.dtype) == ((4,30,32,32), torch.float32, (4,1,32,32), torch.bool)
    assert len(b) == 1 and b.get("target") is None and dls.tasks == {} and set(b["group"]) <= {r.group for r in s.records}
    assert dls.wavelengths.tolist() == [*range(450, 731, 10), 850] and dls.rgb_bands == [12,8,1] and (dls.c, dls.img_size) == (30, 32)
    assert dls.model_kw == dict(img_size=32, in_chans=30) and dls.model_hints == dict(wavelengths=[*range(450, 731, 10), 850])
    assert dls.fingerprint == s.fingerprint == load_cube_set(n=12, size=32).fingerprint != load_cube_set(n=12, size=32, seed=1).fingerprint
    assert cube_loaders(s, bs=4, label="class", device="cpu").one_batch()[1].dtype == torch.int64
    assert cube_loaders(s, bs=4, rgb=True, device="cpu").one_batch()["rgb"].shape == (4,3,32,32)
    assert cube_loaders(s, bs=4, label="class", device="cpu").c == 6


def test_a_window_has_a_class_and_its_pixels_have_some():
    s = load_cube_set(n=12, size=32)
    one,two,both = (cube_loaders(s, bs=4, label=k, augment="flip", seed=3, device="cpu") for k in ("class", "pixels", ("class", "pixels")))
    assert list(both.tasks) == ["class", "pixels"] and both.model_kw["num_classes"] == {"class":6, "pixels":4}
    for a,b,c in zip(one.train, two.train, both.train): assert torch.equal(a[1], c["target"]["class"]) and torch.equal(b[1], c["target"]["pixels"]) and torch.equal(a["image"], c["image"])


def test_views_of_a_window_lie_apart_and_keep_their_masks():
    s = load_cube_set(n=12, size=32)
    dls = cube_loaders(s, bs=3, window=16, jitter=4, views=2, seed=1, label="pixels", device="cpu")
    b = dls.one_batch()
    assert (b["image"].shape, b["mask"].shape, b["target"].shape) == ((3,2,30,16,16), (3,2,1,16,16), (3,2,16,16))
    assert not torch.equal(b["image"][:,0], b["image"][:,1])
    assert (b["target"][~b["mask"][:,:,0]] == IGNORE).all() and (b["target"][b["mask"][:,:,0]] >= 0).all()
    assert dls.valid.one_batch()["image"].ndim == 4


def test_each_option_of_the_loaders_acts():
    s = load_cube_set(n=12, size=32)
    def first(**kw): return cube_loaders(s, device="cpu", **{**dict(bs=4, seed=1), **kw}).train
    base = first().one_batch()[0]
    for kw in (dict(seed=2), dict(normalize="zscore"), dict(background=.5), dict(window=16), dict(augment="basic")): assert not torch.equal(base, first(**kw).one_batch()[0]), kw
    assert len(first(window=16, stride=4).dataset) > len(first(window=16).dataset)
    a,b = (first(window=16, jitter=j).one_batch()[0] for j in (0, 5))
    assert not torch.equal(a, b)
    some = cube_loaders(s, bs=1, device="cpu", windows=dict(train=[[0,3,4]]), window=8)
    assert len(some.train.dataset) == 1 and np.allclose(some.normalizer.denormalize(some.train.one_batch()[0])[0], s.records[0].source.read(3, 4, 8, 8), atol=1e-2)
    assert len(cube_loaders(s, bs=5, device="cpu", drop_last=False).train) == len(cube_loaders(s, bs=5, device="cpu").train) + 1


def test_training_goes_on_exactly_where_it_was(tmp_path):
    "The engine's own resume, on cubes"
    s = load_cube_set(n=12, size=16, bands=4)
    def learner(workers=0):
        dls = cube_loaders(s, bs=2, window=8, stride=8, jitter=2, augment="basic", label="class", device="cpu", seed=4, workers=workers)
        return vit_learner(dls, "swin_micro", dict(in_chans=4, embed_dim=16, depths=(1,1), num_heads=(2,2), patch_size=1), seed=4, path=tmp_path, precision="fp32")
    whole,first,second = learner(),learner(),learner(2)
    whole.fit(2)
    class Stop(Exception): pass
    from fastai.callback.core import Callback
    class At(Callback):
        def after_batch(self):
            if self.training and self.learn.opt_steps == 7: self.learn.kept = pickle.loads(pickle.dumps(self.learn.training_state())); raise Stop
    with pytest.raises(Stop): first.fit(2, cbs=At())
    second.fit(2, resume=first.kept)
    for a,b in zip(whole.model.state_dict().values(), second.model.state_dict().values()): assert torch.equal(a, b)


def test_missing_bands():
    s = load_cube_set(n=12, size=16)
    few = s.keep_bands([0, 5, 29])
    assert few.bands == 3 and few.wavelengths.tolist() == [450, 500, 850] and few.fingerprint != s.fingerprint
    assert np.array_equal(few.records[2].source.read(), s.records[2].source.read()[[0,5,29]])
    assert few.scan()["mean"] == pytest.approx([s.scan()["mean"][i] for i in (0, 5, 29)])
    with pytest.raises(ValueError, match="each once"): s.keep_bands([1,1])
    with pytest.raises(ValueError, match="band 0 decides"): s.keep_bands([3,4])


# ---- bad input

def test_a_corrupt_file_among_a_thousand_does_not_end_a_run_unless_asked(tmp_path):
    small = np.random.default_rng(1).random((3,4,4), dtype=np.float32)
    for i in range(1000): write_npy(tmp_path/f"c{i:03}.npy", small)
    (tmp_path/"c500.npy").write_bytes((tmp_path/"c500.npy").read_bytes()[:60])
    (tmp_path/"set.csv").write_text("ID,label,hs_file,rgb_file\n" + "".join(f"p{i//2},{'ab'[i//2%2]},c{i:03}.npy,\n" for i in range(1000)))
    s = load_cube_set(tmp_path/"set.csv", axes="chw")
    assert len(s.records) == 999 and list(s.unreadable) == ["c500.npy"] and len(list(cube_loaders(s, bs=100, normalize="none", device="cpu").train)) == 5
    with pytest.raises(ValueError, match=r"1 of 1000 cubes.*c500.npy.*max_bad=0"): load_cube_set(tmp_path/"set.csv", axes="chw", max_bad=0)


def test_a_cube_that_breaks_inside_is_found_by_the_survey(tmp_path):
    s = h5_set(tmp_path, 6, axes="chw")
    i = int(s.splits["train"][0])
    f = tmp_path/s.records[i].name
    with h5py.File(f, "r") as h: info = h["Cube/Images"].id.get_chunk_info(2)
    close_cubes()
    with open(f, "r+b") as o:
        o.seek(info.byte_offset)
        o.write(b"\xff"*info.size)
    with pytest.raises(ValueError, match="a part of it cannot be read"): cube_loaders(s, bs=1, device="cpu")
    dls = cube_loaders(s, bs=1, device="cpu", max_bad=.5)
    assert list(s.unreadable) == [f.name] and len(list(dls.train)) == len(s.splits["train"])


def rows(tmp_path, *lines): (tmp_path/"set.csv").write_text("ID,label,hs_file,rgb_file\n" + "\n".join(lines) + "\n"); return tmp_path/"set.csv"


def four(tmp_path):
    for i in range(4): write_npy(tmp_path/f"c{i}.npy")
    return [f"p{i},a,c{i}.npy," for i in range(4)]


def test_a_missing_file_is_named(tmp_path):
    f = rows(tmp_path, *four(tmp_path), "p9,b,gone.npy,")
    with pytest.raises(ValueError, match="gone.npy .the file is missing"): load_cube_set(f, axes="chw")
    assert list(load_cube_set(f, axes="chw", max_bad=.2).unreadable) == ["gone.npy"]


def test_a_wrong_band_count_is_named(tmp_path):
    lines = four(tmp_path)
    write_npy(tmp_path/"odd.npy", CUBE[:5])
    f = rows(tmp_path, *lines, "p9,a,odd.npy,")
    with pytest.raises(ValueError, match="odd.npy .it has 5 bands, the others 6"): load_cube_set(f, axes="chw")
    with pytest.raises(ValueError, match="it has 6 bands .* not 7"): load_cube_set(f, axes="chw", bands=7)
    with pytest.raises(ValueError, match="5 wavelengths .* do not fit 6 bands"): load_cube_set(f, axes="chw", wavelengths=range(400, 450, 10), max_bad=.2)


def test_a_picture_of_another_size_is_named(tmp_path):
    lines = four(tmp_path)
    for i in range(4): Image.new("RGB", (16,20)).save(tmp_path/f"r{i}.png")
    Image.new("RGB", (15,20)).save(tmp_path/"r3.png")
    f = rows(tmp_path, *(f"{o}r{i}.png" for i,o in enumerate(lines)))
    s = load_cube_set(f, axes="chw")
    with pytest.raises(ValueError, match="image has 20×15 pixels and its cube 20×16"): s.scan()
    dls = cube_loaders(s, bs=1, rgb=True, device="cpu", max_bad=.3) if 3 in s.splits["train"] else None
    assert dls is None or dls.one_batch()["rgb"].shape == (1,3,20,16)


@pytest.mark.parametrize("make,says", [
    (lambda d: CubeFile(write_h5(d/"a.h5"), dataset="/Cube/Image"), r"no dataset '/Cube/Image' in it; it has /Cube/Images \(6, 20, 16\)"),
    (lambda d: CubeFile(write_h5(d/"a.h5", name="other")), "no dataset '/Cube/Images' in it; it has /other"),
    (lambda d: CubeFile(write_mat(d/"a.mat", x=CUBE), "y"), "no dataset 'y' in it; it has x"),
    (lambda d: CubeFile(d/"none.h5"), "the file is missing"),
    (lambda d: CubeFile((d/"e.npy").write_bytes(b"") and d/"e.npy" or d/"e.npy"), "the file is empty"),
    (lambda d: CubeFile((d/"e.png").write_bytes(b"\x89PNG") and d/"e.png"), "neither HDF5 nor"),
    (lambda d: CubeFile((d/"e.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"x"*99) and d/"e.h5"), "HDF5 cannot open it"),
    (lambda d: CubeFile((d/"e.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b"x"*99) and d/"e.mat"), "scipy cannot read it"),
    (lambda d: CubeFile(write_npy(d/"a.npy", np.array(["x"]*8).reshape(2,2,2))), "not numbers"),
    (lambda d: CubeFile(write_npy(d/"a.npy", CUBE[0])), "has 2 axes; for bands times pixels"),
    (lambda d: CubeFile(write_npy(d/"a.npy", CUBE.reshape(6,-1)), axes="c(hw)", size=(20,15)), r"does not make chw \(6, 20, 15\)"),
    (lambda d: CubeFile(write_npy(d/"a.npy"), axes="c(hw)", size=(20,16)), "does not fit axes='c.hw.'"),
    (lambda d: CubeFile(write_npy(d/"a.npy"), axes="hwcc"), "unknown order of axes"),
    (lambda d: CubeFile(write_npy(d/"a.npy"), scale=0), "scale=0 must be above 0"),
    (lambda d: CubeFile(write_npy(d/"a.npy")).read(18, 0, 4, 4), "leaves the cube of 20×16"),
    (lambda d: load_cube_set(rows(d, "p,a,x.npy,").with_name("no.csv")), "unknown set of cubes"),
    (lambda d: load_cube_set((d/"c.csv").write_text("ID,label,cube\n1,a,x\n") and d/"c.csv"), "no column 'hs_file'"),
    (lambda d: load_cube_set(n=12, size=16, root="x"), "lies nowhere"),
    (lambda d: load_cube_set("indian_pines", root=d), "indian_pines is not at"),
    (lambda d: cube_loaders(load_cube_set(n=12, size=16), window=32, device="cpu"), "does not fit eye0000 of 16×16"),
    (lambda d: cube_loaders(load_cube_set(n=12, size=16), patch_size=(5,5), device="cpu"), "no whole number of patches of 5"),
    (lambda d: cube_loaders(load_cube_set(n=12, size=16, bands=7), patch_size=(4,5), device="cpu"), "7 bands are no whole number of 5"),
    (lambda d: cube_loaders(load_cube_set(n=12, size=16), augment="flipp", device="cpu"), "did you mean 'flip'"),
    (lambda d: cube_loaders(load_cube_set(n=12, size=16), augment="basic", aug_kw=dict(rotat=3), device="cpu"), "did you mean 'rotate'"),
    (lambda d: cube_loaders(load_cube_set(n=12, size=16), label="pixel", device="cpu"), "did you mean 'pixels'"),
    (lambda d: make_normalizer("zscore", mean=[0,0], std=[1,0]), r"bands \[1\] do not vary"),
    (lambda d: make_normalizer("zscore", mean=[0], std=[1]).normalize(torch.zeros(1,2,3,3)), "a cube of 2 bands met the statistics of 1"),
    (lambda d: absorbers([400.]), "leave the tables of haemoglobin"),
    (lambda d: CubeSet("s", [CubeRecord(CubeArray(CUBE), "a"), CubeRecord(CubeArray(CUBE[:3]), "b")], dict(train=[0])), "b has 3 bands, a has 6"),
], ids=lambda o: o[:30] if isinstance(o, str) else "")
def test_bad_input_is_said(make, says, tmp_path):
    with pytest.raises(ValueError, match=says): make(tmp_path)


def test_a_folder_and_its_wavelengths(tmp_path):
    for k in range(12):
        d = tmp_path/"set"/"ab"[k%2]/f"patient{k}"
        d.mkdir(parents=True)
        for eye in range(2):
            with h5py.File(d/f"{eye}.h5", "w") as f:
                f["Cube/Images"] = CUBE
                f["Cube/Wavelength"] = np.arange(450, 510, 10.)
    s = load_cube_set(tmp_path/"set")
    assert s.classes == ["a","b"] and len(s.records) == 24 and s.wavelengths.tolist() == [*range(450, 510, 10)]
    assert not shared_groups(s.splits, [r.group for r in s.records])


# ---- synthetic retinas

def test_retinas_obey_beer_and_lambert():
    nm = np.arange(450, 851, 5.)
    r = synthetic_retina(12, size=48, noise=0., wavelengths=nm)
    inside = r.cubes[:,:,24,24] > 0
    assert inside.all() and np.isfinite(r.cubes).all() and (r.cubes >= 0).all() and (r.cubes <= 1.2).all()
    assert (r.cubes[:,:,0,0] == 0).all(), "outside the field nothing is measured"
    eye = r.cubes[0][:,valid_pixels(r.cubes[0], 1e-3)].mean(1)
    assert eye[nm == 700] > 3*eye[nm == 550], "blood and melanin absorb green"
    near = (nm > 530) & (nm < 590)
    local = -np.log(eye[near])
    assert local[0] > 0 and eye[nm == 560][0] > eye[nm == 540][0] and eye[nm == 560][0] > eye[nm == 575][0], "the two bands of oxygenated blood with a window between"


def test_a_retina_depends_on_its_number_and_seed_alone():
    a,b,c = synthetic_retina(4, size=16),synthetic_retina(2, size=16),synthetic_retina(2, size=16, seed=1)
    assert np.array_equal(a.cubes[:2], b.cubes) and not np.array_equal(b.cubes, c.cubes)
    assert (a.patients == [0,0,1,1]).all() and (synthetic_retina(12, size=8).labels == np.repeat(range(6), 2)).all()


def test_diseases_change_what_they_should():
    r = synthetic_retina(12, size=48, noise=0.)
    field = valid_pixels(r.cubes[0], 1e-3)
    mean = r.cubes[::2][:,:,field].mean(-1) # (disease, band)
    red,green = list(r.wavelengths).index(660.),list(r.wavelengths).index(560.)
    names = ["control","amd","atrophy","glaucoma","naevus","ischaemia"]
    assert all(np.abs(np.log(mean[i]/mean[0])).max() > .05 for i in range(1, 6)), names
    from vitnb.data.retina import _anatomy
    grid = np.stack(np.meshgrid(*2*[np.linspace(-1, 1, 32)]), -1)
    sick = _anatomy(np.random.default_rng(0), grid, "ischaemia")
    assert sick["artery"] < .85 and _anatomy(np.random.default_rng(0), grid, "naevus")["melanin"].max() > _anatomy(np.random.default_rng(0), grid, "control")["melanin"].max() + .3
    assert red != green


def test_rgb_bands_are_the_nearest():
    assert rgb_bands([*range(450, 731, 10), 850], 30) == [12,8,1]
    assert rgb_bands(None, 30) == [12,8,1] and len(set(rgb_bands(None, 5))) >= 2
    assert rgb_bands([850, 460, 570, 530], 4) == [2,3,1], "wavelengths need no order"


# ---- real scenes, where they are

SHARED = Path(__file__).resolve().parents[2]/"shared"/"data" # whatever the settings of this workspace say


@pytest.mark.parametrize("name,folder,bands,classes", [("indian_pines", "hsi_indian_pines_subset", 200, 4), ("jasper_ridge", "hsi_jasper_ridge", 198, 4), ("samson", "hsi_samson", 156, 3)])
def test_published_scenes(name, folder, bands, classes):
    if not (SHARED/folder).is_dir(): pytest.skip(f"{folder} is not at hand")
    s = load_cube_set(name, root=SHARED/folder)
    r = s.records[0]
    assert s.bands == bands == len(s.wavelengths) and s.n_classes == classes and (np.diff(s.wavelengths) > 0).all()
    cube = r.source.read()
    means = np.stack([cube[:,r.label_map == c].mean(1) for c in range(classes)])
    flat,y = cube.reshape(bands, -1).T,r.label_map.ravel()
    cos = flat @ means.T/np.linalg.norm(flat, axis=1)[:,None]/np.linalg.norm(means, axis=1)
    assert (cos.argmax(1)[y >= 0] == y[y >= 0]).mean() > .5, "classes and spectra fit each other only if the order of the pixels is right"
