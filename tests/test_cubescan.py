"The scan of a set of cubes: statistics of what is valid, and what is left out"
import numpy as np
import pytest
import torch
from PIL import Image
from cube_files import CUBE, fields, four, h5_set, own_cache, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.data.cube import (BandStats, CubeArray, CubeRecord, CubeSet, close_cubes, cube_loaders, load_cube_set,
    scene_set, valid_pixels)

h5py = pytest.importorskip("h5py")


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


def test_nan_infinity_and_blank_pixels_are_no_measurements():
    a = CUBE.copy()
    a[2,0,0],a[5,2,2] = np.nan,np.inf
    a[:,1,1] = 0
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


def test_a_picture_of_another_size_is_named(tmp_path):
    lines = four(tmp_path)
    for i in range(4): Image.new("RGB", (16,20)).save(tmp_path/f"r{i}.png")
    Image.new("RGB", (15,20)).save(tmp_path/"r3.png")
    f = rows(tmp_path, *(f"{o}r{i}.png" for i,o in enumerate(lines)))
    s = load_cube_set(f, axes="chw")
    with pytest.raises(ValueError, match="image has 20×15 pixels and its cube 20×16"): s.scan()
    dls = cube_loaders(s, bs=1, rgb=True, device="cpu", max_bad=.3) if 3 in s.splits["train"] else None
    assert dls is None or dls.one_batch()["rgb"].shape == (1,3,20,16)


def sets_of(a, ignore=None, scale=None): return CubeSet("s", [CubeRecord(CubeArray(a, scale, ignore), f"c{i}") for i in range(3)], dict(train=[0], valid=[1], test=[2]))


def test_a_slightly_negative_band_voids_no_pixel_and_is_said(capsys):
    a = CUBE.copy()
    a[2] = np.random.default_rng(0).normal(0, .003, (20,16)) # where the air takes all light
    s = sets_of(a)
    found = s.scan()
    assert found["not_measured"] == 0 and found["n"] == 320 and found["min"][2] < 0
    assert f"{3*int((a[2] < 0).sum())} pixels have a band below 0" in capsys.readouterr().out
    for kind in ("none", "log", "zscore"):
        x,valid = fields(cube_loaders(s, bs=1, normalize=kind, device="cpu").one_batch())
        assert valid.all() and torch.isfinite(x).all()


@pytest.mark.parametrize("fill", [-9999, 65535, 0, -1])
def test_fill_values_are_said_and_blank_pixels_are_never_measured(fill, capsys):
    a = np.round(CUBE*1e4 + 1)
    a[:,:5] = fill
    without = sets_of(a, scale=1e-4).scan()
    said = capsys.readouterr().out
    assert without["not_measured"] == (0 if fill > 0 else 3*80)
    if fill > 0: assert f"ignore={fill}" in said and "hold 6.5535 in every band" in said
    told = sets_of(a, fill, 1e-4).scan()
    assert told["not_measured"] == 3*80 and told["max"][0] <= 1.001 and "240 of 960 pixels are not measured" in capsys.readouterr().out


def test_bands_without_a_number_are_named_with_a_remedy_that_works(tmp_path):
    a = CUBE.copy()
    a[[1, 4]] = np.nan
    np.save(tmp_path/"a.npy", a)
    with pytest.raises(ValueError, match=r"bands \[1, 4\] hold no number.*keep="): load_cube_set(tmp_path/"a.npy", axes="chw", block=6).scan()
    s = load_cube_set(tmp_path/"a.npy", axes="chw", block=6, keep="0,2-3,5")
    assert s.scan()["not_measured"] == 0 and np.array_equal(s.records[0].source.read(), CUBE[[0,2,3,5]])
    with pytest.raises(ValueError, match="keep='a-b' must be numbers"): load_cube_set(tmp_path/"a.npy", axes="chw", keep="a-b")
