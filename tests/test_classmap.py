"Class maps from files of their own, and what of them was measured"
import sys

import numpy as np
import pytest
from cube_files import CUBE, NM, V73, own_cache, write_envi, write_h5, write_mat, write_npy
from PIL import Image

from vitnb.data.classmap import IGNORE, check_class_map, class_numbers, drop_unmeasured, measured_map, name_classes
from vitnb.data.cube import CubeArray, load_cube_set, scene_set

TRUTH = (np.arange(20*16).reshape(20,16)//16//3 % 3).astype("u1") # three stripes, one of them without a class


def scene(d, **kw): return load_cube_set(write_npy(d/"scene.npy"), block=5, guard=1, **{**dict(axes="chw"), **kw})


MAPS = dict(
    mat=lambda d: write_mat(d/"gt.mat", gt=TRUTH), mat_float=lambda d: write_mat(d/"gt.mat", gt=TRUTH.astype(float)), key=lambda d: f"{write_mat(d/'gt.mat', gt=TRUTH, more=np.ones((99,99)))}:gt", struct=lambda d: f"{write_mat(d/'gt.mat', s=dict(gt=TRUTH, x=1.))}:s.gt",
    v73=lambda d: write_h5(d/"gt.mat", TRUTH.T, "gt", V73), npy=lambda d: write_npy(d/"gt.npy", TRUTH), h5=lambda d: f"{write_h5(d/'gt.h5', TRUTH, 'l/gt')}:/l/gt", relative=lambda d: write_npy(d/"gt.npy", TRUTH).name,
    png=lambda d: Image.fromarray(TRUTH).save(d/"gt.png") or d/"gt.png", tif=lambda d: Image.fromarray(TRUTH).save(d/"gt.tif") or d/"gt.tif", envi=lambda d: write_envi(d, TRUTH[None], "u1", name="gt", nm=None), extra_axis=lambda d: write_npy(d/"gt.npy", TRUTH[...,None]), array=lambda d: TRUTH,
    csv=lambda d: np.savetxt(d/"gt.csv", TRUTH, fmt="%d", delimiter=",") or d/"gt.csv", spaces=lambda d: np.savetxt(d/"gt.txt", TRUTH, fmt="%d") or d/"gt.txt")


@pytest.mark.parametrize("name", MAPS)
def test_a_map_from_any_file(tmp_path, name):
    s = scene(tmp_path, truth=MAPS[name](tmp_path))
    assert s.classes == ["class 1", "class 2"] and np.array_equal(s.records[0].label_map, np.where(TRUTH > 0, TRUTH.astype(int) - 1, IGNORE))


def test_a_map_as_an_image_needs_no_further_package(tmp_path, monkeypatch):
    "The header of a TIFF is a third of zeros, as UTF-16 is"
    monkeypatch.setitem(sys.modules, "rasterio", None)
    for name in ("tif", "png"): test_a_map_from_any_file(tmp_path, name)


def test_a_map_in_the_cubes_own_file(tmp_path):
    path = write_mat(tmp_path/"a.mat", cube=CUBE.transpose(1,2,0), gt=TRUTH)
    for truth in ("gt", "a.mat:gt"): assert (load_cube_set(path, truth=truth, block=5, guard=1).records[0].label_map >= 0).sum() == (TRUTH > 0).sum()


def test_the_map_tells_the_axes_of_its_cube(tmp_path):
    path = write_npy(tmp_path/"a.npy", CUBE.transpose(1,2,0))
    s = load_cube_set(path, truth=TRUTH, block=5, guard=1)
    assert s.bands == 6 and np.array_equal(s.records[0].source.read(), CUBE)


@pytest.mark.parametrize("truth,says", [(TRUTH.T, "transposed.*axes='whc'"), (TRUTH.ravel(), "list of its pixels.*reshape"), (TRUTH.reshape(-1,1), "list of its pixels"), (TRUTH[:10], "give the map of this scene"), (np.stack([TRUTH]*3, -1), "third axis"),
    (TRUTH + .5, "argmax"), (np.zeros_like(TRUTH), "no pixel of the class map has a class")])
def test_what_is_no_map_of_this_scene_is_refused_with_a_remedy(tmp_path, truth, says):
    with pytest.raises(ValueError, match=says): scene(tmp_path, truth=truth)


def test_the_remedy_for_a_transposed_map_works(tmp_path):
    s = scene(tmp_path, truth=TRUTH.T, axes="cwh")
    assert np.array_equal(s.records[0].source.read(), CUBE.transpose(0,2,1))
    with pytest.raises(ValueError, match="truth='none.mat' is not in"): scene(tmp_path, truth="none.mat")
    with pytest.raises(ValueError, match="two ways to give"): scene(tmp_path, truth=TRUTH, label_map=TRUTH)


def test_names(tmp_path):
    assert scene(tmp_path, truth=TRUTH, classes=["corn", "oats"]).classes == ["corn", "oats"]
    s = scene(tmp_path, truth=TRUTH, classes={"2":"oats"}) # as JSON writes keys
    assert s.classes == ["oats"] and set(np.unique(s.records[0].label_map)) == {IGNORE, 0}
    with pytest.raises(ValueError, match="too few for the value 2"): scene(tmp_path, truth=TRUTH, classes=["corn"])
    with pytest.raises(ValueError, match="no pixel has the value 7"): scene(tmp_path, truth=TRUTH, classes={7:"rye"})
    header = write_envi(tmp_path, TRUTH[None], "u1", name="gt", nm=None, head="file type = ENVI Classification\nclass names = {Unclassified, corn,\n winter oats}\n")
    assert scene(tmp_path, truth=header).classes == ["corn", "winter oats"]
    assert name_classes(np.array([3, 0, -1]), None, {3:"x"}) == {3:"x"}


def test_blank_pixels_are_never_samples_and_losses_are_printed(tmp_path, capsys):
    cube = CUBE.copy()
    cube[:,3:5,:4] = 0
    cube[2,6,0] = np.nan
    cube[1,7] -= 2 # negative in one band: measured
    write_npy(tmp_path/"scene.npy", cube)
    s = load_cube_set(tmp_path/"scene.npy", truth=TRUTH, axes="chw", block=5, guard=1, classes=["corn", "oats"])
    said = capsys.readouterr().out
    label_map = s.records[0].label_map
    lost = {k:int(((TRUTH == k) & (np.arange(20)[:,None] < 99) & (label_map == IGNORE)).sum()) for k in (1, 2)}
    assert lost == {1:8, 2:1} and f"corn 8 of {(TRUTH == 1).sum()}, oats 1 of {(TRUTH == 2).sum()}" in said
    assert (label_map[3:5,:4] == IGNORE).all() and (label_map[7] >= 0).all()


def test_measured_is_what_the_whole_cube_says(tmp_path):
    cube = CUBE.copy()
    cube[0,::3] = np.nan
    assert np.array_equal(measured_map(CubeArray(cube)), np.isfinite(cube).all(0))
    assert np.array_equal(measured_map(CubeArray(CUBE), .5, 2), CUBE[2] >= .5)
    numbers = class_numbers(TRUTH, {1:"a", 2:"b"})
    assert np.array_equal(drop_unmeasured("x", numbers, np.ones_like(TRUTH, bool), ["a", "b"]), numbers)
    assert check_class_map(np.where(TRUTH > 0, TRUTH, np.nan), (20,16)).max() == 2


# ---------- the split of a scene

def test_each_class_is_on_each_side_where_that_can_be():
    "A small field whose pixels a guard band would have taken: the blocks are dealt by what it leaves"
    truth = np.ones((48,48), int)
    for k,(top,left) in enumerate([(6,6), (22,30), (38,14), (30,38), (14,22)]): truth[top:top+4,left:left+4] = 2
    for seed in range(6):
        s = scene_set("s", CubeArray(np.ones((2,48,48), np.float32)), truth, guard=2, split_seed=seed)
        r = s.records[0]
        assert all(((r.label_map == k) & (r.split_map == side)).any() for k in range(2) for side in range(3)), seed


def test_a_class_that_lacks_on_a_side_is_a_warning_with_a_remedy_that_works():
    truth = np.ones((40,40), int)
    truth[:3,:3] = 2
    make = lambda **kw: scene_set("s", CubeArray(np.ones((2,40,40), np.float32)), truth, **kw)
    with pytest.warns(UserWarning, match=r"'class 2' has none in .*block=.*guard=.*split_seed.*classes="): make(block=10)
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(block=10, classes={1:"a"}).classes == ["a"]


@pytest.mark.parametrize("make,says", [(lambda d: write_mat(d/"gt.mat", a=TRUTH, b=TRUTH[::-1]), "it has a, b of shape .*any may be meant: name one, as 'gt.mat:a'"), (lambda d: write_npy(d/"gt.npy", TRUTH.T), "gt.npy.*transposed"),
    (lambda d: (d/"gt.csv").write_text("1,2\n3\n") and d/"gt.csv", "gt.csv: a class map as text has a row"), (lambda d: "gone.mat", "truth='gone.mat' is not in")])
def test_a_map_that_cannot_be_used_is_named_and_not_its_cube(tmp_path, make, says):
    with pytest.raises(ValueError, match=says) as refused: scene(tmp_path, truth=str(make(tmp_path)))
    assert "cannot be used" not in str(refused.value)
    if "any may" in says: assert len(scene(tmp_path, truth="gt.mat:b").pixel_classes) == 2


def test_a_class_of_the_number_zero_is_told_and_can_be_named(tmp_path, capsys):
    write_npy(tmp_path/"gt.npy", TRUTH.astype(int) - 1)
    assert scene(tmp_path, truth="gt.npy").pixel_classes == ["class 1"]
    assert "counts as no class too; if 0 is one, name all that count: classes={0: ..., 1: ...}" in capsys.readouterr().out
    assert scene(tmp_path, truth="gt.npy", classes={0: "soil", 1: "leaf"}).pixel_classes == ["soil", "leaf"]
