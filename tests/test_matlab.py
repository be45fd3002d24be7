"Old .mat files: every version, structs, and the lists in them"
import numpy as np
import pytest
from cube_files import CUBE, own_cache, write_mat
from scipy.io import savemat

from vitnb.data.cube import CubeFile
from vitnb.data.matlab import leaves, read_mat

NM = np.linspace(400, 1000, 6)
HWC = CUBE.transpose(1,2,0)


@pytest.mark.parametrize("order", [(1,2,0), (0,1,2), (1,0,2)])
@pytest.mark.parametrize("name", ["wavelengths", "wl", "lambda", "bandCenters", "Wavelength_nm"])
def test_wavelengths_beside_the_cube_choose_its_axis(tmp_path, order, name):
    cube = CubeFile(write_mat(tmp_path/"a.mat", cube=CUBE.transpose(order), gt=np.ones((20,16)), fwhm=NM/100, wavelength_fwhm=NM/90, **{name:NM}))
    assert np.array_equal(cube.read(), CUBE) and np.allclose(cube.wavelengths, NM)


@pytest.mark.parametrize("made,name", [
    (dict(scene=dict(cube=HWC, wl=NM)), "scene.cube"), (dict(a=dict(b=dict(c=dict(cube=HWC, wl=NM)))), "a.b.c.cube"), (dict(scene=dict(hsi=HWC, gt=np.ones((20,16)), meta=dict(wavelength=NM/1000, sensor="x"))), "scene.hsi")])
def test_structs_by_field_at_any_depth(tmp_path, made, name):
    path = write_mat(tmp_path/"a.mat", **made)
    for dataset in (None, name):
        cube = CubeFile(path, dataset)
        assert np.array_equal(cube.read(), CUBE) and np.allclose(cube.wavelengths, NM)
    with pytest.raises(ValueError, match=f"it has .*{name}"): CubeFile(path, "scene.other")


def test_struct_arrays_and_cells(tmp_path):
    scenes = np.array([(HWC, NM), (HWC*2, NM + 1)], dtype=[("cube", object), ("wl", object)])
    cells = np.empty((1,2), object)
    cells[0,0],cells[0,1] = HWC,"text"
    path = write_mat(tmp_path/"a.mat", scene=scenes, cells=cells)
    second = CubeFile(path, "scene(2).cube")
    assert np.array_equal(second.read(), 2*CUBE)
    assert np.array_equal(read_mat(path, "cells{1}"), HWC)
    assert [n for n,_ in leaves("x", np.float32(3).reshape(1,1))] == ["x"]


@pytest.mark.parametrize("order", ["<", ">"])
def test_version_4_is_a_table_that_says_how_to_unfold_it(tmp_path, order):
    import struct
    table = np.asfortranarray(HWC.reshape(20, -1)).astype(order + "f8")
    head = struct.pack(f"{order}5i", 1000*(order == ">"), 20, 96, 0, 5) + b"cube\0"
    (tmp_path/"a.mat").write_bytes(head + table.tobytes("F"))
    with pytest.raises(ValueError, match=r"2 axes.*axes='h\(wc\)'"): CubeFile(tmp_path/"a.mat")
    assert np.allclose(CubeFile(tmp_path/"a.mat", axes="h(wc)", size=(20,16)).read(), CUBE)


def test_other_cubes_of_a_file_are_told(tmp_path, capsys):
    CubeFile(write_mat(tmp_path/"a.mat", big=HWC, small=HWC[:4], table=np.ones((99,99))))
    said = capsys.readouterr().out
    assert "the cube is big (20, 16, 6)" in said and "small (4, 16, 6)" in said and "guessed as hwc" in said


def test_a_field_is_named_by_any_of_its_names(tmp_path):
    path = write_mat(tmp_path/"a.mat", scene=dict(inner=dict(cube=CUBE), dark=CUBE*2))
    for name in ("scene.inner.cube", "scene/inner/cube", "cube"): assert np.array_equal(CubeFile(path, name, axes="chw").read(), CUBE)
    with pytest.raises(ValueError, match="holds no real numbers"): CubeFile(write_mat(tmp_path/"b.mat", waves=CUBE*1j))
