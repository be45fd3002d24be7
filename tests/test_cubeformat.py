"Formats are known by the first bytes, and stored values become reflectance"
import numpy as np
import pytest
from cube_files import CUBE, V73, own_cache, write_envi, write_h5, write_mat, write_npy
from scipy.io import netcdf_file, savemat

from vitnb.data.beside import load_beside
from vitnb.data.cube import CubeFile
from vitnb.data.cubeformat import CubeFormat, as_measured, choose_cube, cube_formats, find_format, format_of, pick_dataset


def write_classic(path):
    with netcdf_file(path, "w") as f: f.createDimension("x", 2)
    return path


MADE = dict(npy=lambda d: write_npy(d/"x.npy"), hdf5=lambda d: write_h5(d/"x"), mat=lambda d: write_mat(d/"x.mat", cube=CUBE).rename(d/"x"), envi=lambda d: write_envi(d),
    geotiff=lambda d: (d/"x").write_bytes(b"MM\0*" + bytes(60)) and d/"x", netcdf=lambda d: write_classic(d/"x"))


@pytest.mark.parametrize("name", MADE)
def test_the_ending_does_not_matter(name, tmp_path):
    path = MADE[name](tmp_path)
    assert format_of(path if path.suffix == ".hdr" else path.rename(tmp_path/"x.anything")) == name


def test_matlabs_versions(tmp_path):
    savemat(tmp_path/"4.mat", {"a":CUBE[0]}, format="4")
    write_mat(tmp_path/"5.mat", a=CUBE)
    write_h5(tmp_path/"7.mat", head=V73)
    assert [format_of(tmp_path/f"{v}.mat") for v in (4, 5, 7)] == ["mat", "mat", "hdf5"]


@pytest.mark.parametrize("head,says", [(b"\x0e\x03\x13\x01", "HDF4.*h4toh5"), (b"PK\x03\x04", "zip archive"), (b"\x89PNG\r\n", "a PNG image"), (b"\xff\xd8\xff\xe0", "JPEG"), (b"\x1f\x8b", "gzip"), (b"some text", "neither HDF5 nor.*ENVI header")])
def test_what_is_not_read_is_named(tmp_path, head, says):
    (tmp_path/"x.h5").write_bytes(head + bytes(100))
    with pytest.raises(ValueError, match=rf"x\.h5.*{says}"): find_format(tmp_path/"x.h5")


def test_a_reader_of_ones_own_is_one_entry(tmp_path, monkeypatch):
    from vitnb.data.cube import CubeFile
    from vitnb.data.cubeformat import CubeFacts
    monkeypatch.setitem(cube_formats, "mine", CubeFormat("mine", (".mine",), lambda path, head: head[:4] == b"MINE", lambda path, inner: CubeFacts((6,20,16), CUBE.dtype, axes="chw"), lambda path, inner: CUBE, None))
    (tmp_path/"a.mine").write_bytes(b"MINE")
    assert np.array_equal(CubeFile(tmp_path/"a.mine").read(), CUBE)


def test_the_largest_cube_is_taken_and_the_others_are_told():
    found = {"a":(4,4,4), "table":(900,900), "b":(9,9,9)}
    assert pick_dataset("f", found, None) == "b"
    name,notes = choose_cube("f", found | {"table":(900,90)})
    assert name == "b" and "not read: a (4, 4, 4)" in notes[0]
    assert pick_dataset("f", {"/g/a":(2,2)}, "g.a") == "/g/a"
    with pytest.raises(ValueError, match="it has a .4, 4, 4."): pick_dataset("f", found, "c")


PIXELS = 20*16
MANY = dict(Y=(30,PIXELS), GT=(3,30))

@pytest.mark.parametrize("found,name", [
    (dict(S_GT=(20,16,3), **MANY), "Y"), (dict(abundanceMaps=(20,16,3), endmembers=(30,3), Y=(PIXELS,30)), "Y"), (dict(RGB=(20,16,3), Y=(30,PIXELS)), "Y"), (dict(A=(20,16,40), cube=(20,16,30)), "cube"),
    (dict(gt_onehot=(20,16,40), x=(20,16,30)), "x"), (dict(mask=(20,16,200), hsi=(20,16,30), labels=(20,16)), "hsi"), (dict(S_GT=(20,16,3)), "S_GT"), (dict(cube=(20,16,30), gram=(PIXELS,PIXELS), Y=(40,PIXELS)), "cube"), (dict(map=(20,16,3), small=(4,4,3)), "small"),
    ({"scene(1).gt":(20,16), "scene(1).data":(20,16,30), "scene(1).groundTruth":(20,16,40)}, "scene(1).data")])
def test_what_is_called_like_a_map_is_passed_over(found, name):
    for order in (found, dict(reversed(found.items()))):
        chosen,notes = choose_cube("f.mat", order)
        least = min(3, len(found[name]))
        others = [other for other,shape in found.items() if other != name and len(shape) >= least]
        assert chosen == name and all(f"{other} {found[other]}" in notes[0] for other in others)


@pytest.mark.parametrize("found,asks", [
    (dict(A=(20,16,3), **MANY), "dataset='Y', axes='c.wh.'"), (dict(A=(3,16,20), Y=(PIXELS,30)), "more bands"), (dict(before=(20,16,30), after=(20,16,30)), "any may be meant"),
    (dict(one=(20,16,30), other=(30,20,16)), "any may be meant"), (dict(scene_gt=(20,16)), "truth='f.mat'"), ({}, "no array of numbers")])
def test_a_cube_that_is_not_sure_is_asked(found, asks):
    with pytest.raises(ValueError, match=f"f.mat.*{asks}"): choose_cube("f.mat", found)
    for name in found: assert choose_cube("f.mat", found, name) == (name, [])


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<u2", "<f4", ">f8", "u1"])
def test_values_are_compared_as_stored_and_scaled_after(kind):
    raw = np.array([[[7, 100], [50, 9]], [[7, 7], [30, 60]]]).astype(kind)
    got = as_measured(raw, 1e-2, .5, [7, 1e9, -9999, .5, np.nan])
    want = raw.astype(float)*1e-2 + .5
    want[raw == 7] = np.nan
    assert got.dtype == np.float32 and np.allclose(got, want, equal_nan=True)


def test_scales_of_bands_and_ranges_of_values():
    raw = np.arange(12, dtype=np.int16).reshape(3,2,2)
    got = as_measured(raw, [1, 2, 3], [0, 10, 20], valid=(1, 10))
    want = raw*np.array([1, 2, 3])[:,None,None] + np.array([0, 10, 20])[:,None,None].astype(float)
    want[(raw < 1) | (raw > 10)] = np.nan
    assert np.allclose(got, want, equal_nan=True)
    assert np.isnan(as_measured(np.float32([[[-1.23e34]]]), ignore=[-1.23e34])).all(), "a fill that float32 rounds"


def test_the_stored_array_is_never_written_to(tmp_path):
    path = write_npy(tmp_path/"a.npy")
    as_measured(np.load(path, mmap_mode="r+"), 1., ignore=[float(CUBE[0,0,0])])
    assert np.array_equal(np.load(path), CUBE)


def test_a_npz_is_read_by_name(tmp_path, capsys):
    nm = np.linspace(400, 900, 6)
    np.savez(tmp_path/"a.npz", cube=CUBE.transpose(1,2,0), dark=CUBE[0], wavelengths_um=nm/1000, names=np.array(["x"]))
    cube = CubeFile(tmp_path/"a.npz")
    assert cube.axes == "hwc" and np.array_equal(cube.read(), CUBE) and np.allclose(cube.wavelengths, nm)
    assert np.array_equal(load_beside(tmp_path/"a.npz", "dark")[0], CUBE[0])
    np.savez_compressed(tmp_path/"b.npz", small=CUBE[:3], large=CUBE)
    assert np.array_equal(CubeFile(tmp_path/"b.npz", "small", axes="chw").read(), CUBE[:3])
    assert CubeFile(tmp_path/"b.npz", axes="chw").shape == CUBE.shape and "not read: small" in capsys.readouterr().out
    np.savez(tmp_path/"c.npz", cube=np.array([{}]))
    with pytest.raises(ValueError, match="no readable .npz"): CubeFile(tmp_path/"c.npz")
