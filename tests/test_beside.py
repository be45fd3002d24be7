"Lists and maps that lie in files of their own"
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from cube_files import CUBE, NM, own_cache, write_envi, write_h5, write_mat, write_npy
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.data.beside import find_beside, given_list, is_list_of, load_beside, sidecars
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


NAMES = [f"{stem}{own}{ending}" for stem in ("", "a", "a1", "A", "b") for own in ("", "_wavelengths", "wavelengths", "_wl", "_fwhm") for ending in (".npy", ".txt", ".hdr", ".wl")]


@settings(max_examples=60, deadline=None)
@given(names=st.sets(st.sampled_from(NAMES[1:]), max_size=8), cube=st.sampled_from(["a.npy", "a1.npy", "b.mat", "A.npy"]))
def test_no_name_is_passed_over_because_a_folder_is_read_once(names, cube):
    with TemporaryDirectory() as folder:
        for name in names: Path(folder, name).write_text("ENVI\nwavelength = {400, 500}" if name.endswith(".hdr") else "400\n500")
        for name in names:
            if name.endswith(".npy"): np.save(Path(folder, name), np.array([400., 500.]))
        found = [listed.where for listed in sidecars(Path(folder, cube))]
    stem = Path(cube).stem
    lists = [name for name in names - {cube} if not name.endswith(".hdr") and is_list_of(name, stem) is not None]
    headers = [name for name in names if name.lower() in (f"{stem}.hdr".lower(), f"{cube}.hdr".lower())]
    assert sorted(found) == sorted(lists + headers)


def test_a_folder_of_many_cubes_is_not_read_for_each(tmp_path, monkeypatch):
    "Looking at each name for each cube cost 20 s for a thousand cubes, and half an hour for ten thousand"
    for i in range(200): (tmp_path/f"c{i:03}.npy").touch()
    looked = []
    monkeypatch.setattr("vitnb.data.beside.is_list_of", lambda *names: looked.append(names))
    for i in range(200): assert sidecars(tmp_path/f"c{i:03}.npy") == []
    assert 200 <= len(looked) < 3*200 # once for the folder, and the few that begin with the name of a cube


def test_a_list_is_given_in_every_way(tmp_path):
    write_npy(tmp_path/"nm.npy", NM)
    write_mat(tmp_path/"nm.mat", wl=NM, cube=CUBE)
    write_h5(tmp_path/"nm.h5", NM, "g/centres")
    path = write_npy(tmp_path/"a.npy", CUBE.transpose(1,2,0))
    for wavelengths in (NM, NM.tolist(), tuple(NM), ",".join(map(str, NM)), "nm.npy", tmp_path/"nm.npy", "nm.mat:wl", f"{tmp_path}/nm.h5:/g/centres", "nm.h5:g/centres"):
        cube = CubeFile(path, wavelengths=wavelengths)
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
