"Lists and maps that lie in files of their own"
import numpy as np
import pytest
from cube_files import CUBE, NM, own_cache, write_envi, write_h5, write_mat, write_npy

from vitnb.data.beside import find_beside, given_list, load_beside, sidecars
from vitnb.data.cube import CubeFile


@pytest.mark.parametrize("name,text", [("a_wavelengths.txt", None), ("a.wl", None), ("wavelengths.csv", "wavelength\n" + "\n".join(map(str, NM))), ("a_wl_um.txt", "\n".join(map(str, NM/1000))), ("a.hdr", "ENVI\nwavelength = {%s}\nwavelength units = nm\n" % ",".join(map(str, NM)))])
def test_sidecars_choose_the_axis_and_are_told(tmp_path, capsys, name, text):
    path = write_npy(tmp_path/"a.npy", CUBE.transpose(1,2,0))
    (tmp_path/name).write_text(text or "\n".join(map(str, NM)))
    cube = CubeFile(path)
    assert np.array_equal(cube.read(), CUBE) and np.allclose(cube.wavelengths, NM) and f"wavelengths are those of {name}" in capsys.readouterr().out


def test_lists_of_other_cubes_and_other_things_are_none(tmp_path):
    path = write_npy(tmp_path/"a.npy")
    for name in ("b_wavelengths.txt", "a_fwhm.txt", "notes.txt", "a_good_wavelengths.csv"): (tmp_path/name).write_text("\n".join(map(str, NM)))
    assert sidecars(path) == []


def test_a_list_is_given_in_every_way(tmp_path):
    write_npy(tmp_path/"nm.npy", NM)
    write_mat(tmp_path/"nm.mat", wl=NM, cube=CUBE)
    write_h5(tmp_path/"nm.h5", NM, "g/centres")
    path = write_npy(tmp_path/"a.npy", CUBE.transpose(1,2,0))
    for given in (NM, NM.tolist(), tuple(NM), ",".join(map(str, NM)), "nm.npy", tmp_path/"nm.npy", "nm.mat:wl", f"{tmp_path}/nm.h5:/g/centres", "nm.h5:g/centres"):
        cube = CubeFile(path, wavelengths=given)
        assert np.array_equal(cube.read(), CUBE) and np.allclose(cube.wavelengths, NM)
    with pytest.raises(ValueError, match="nm.mat.*say which of its arrays"): CubeFile(path, wavelengths="nm.mat")
    with pytest.raises(ValueError, match="no file in .*no list of the cube's file"): CubeFile(path, wavelengths="nm.txt")
    with pytest.raises(ValueError, match="7 wavelengths .* do not fit"): CubeFile(path, wavelengths=np.linspace(400, 500, 7))


def test_files_and_keys(tmp_path):
    write_npy(tmp_path/"odd:name.npy", NM)
    assert find_beside("odd:name.npy", [tmp_path]) == (tmp_path/"odd:name.npy", None) and find_beside("odd:name.npy:x", [tmp_path])[1] == "x"
    assert find_beside("none.npy:x", [tmp_path]) == (None, None)
    assert np.array_equal(load_beside(write_h5(tmp_path/"a.h5", CUBE[0], "x"), "x")[0], CUBE[0])
    (tmp_path/"a.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="no parts"): load_beside(tmp_path/"a.png", "x")
    assert given_list("400 500", []).values.tolist() == [400, 500]
