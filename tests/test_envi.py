"ENVI: every interleave, order and type, against SPy and against numpy"
import numpy as np
import pytest
from cube_files import CUBE, NM, own_cache, write_envi

from vitnb.data.cube import CubeFile, load_cube_set, valid_pixels
from vitnb.data.envi import data_of, header_of, read_header

RAW = np.round(CUBE*9000 + 100)


@pytest.mark.parametrize("interleave", ["bsq", "bil", "BIP"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind,offset", [("u1", 0), ("i2", 7), ("u2", 512), ("i4", 0), ("f4", 1), ("f8", 0)])
def test_every_layout(tmp_path, interleave, order, kind, offset):
    raw = RAW % 200 if kind == "u1" else RAW
    header = write_envi(tmp_path, raw, kind, order, interleave, offset)
    cube = CubeFile(header)
    assert np.array_equal(cube.read(), raw) and np.array_equal(cube.read(3, 4, 5, 6), raw[:,3:8,4:10]) and np.allclose(cube.wavelengths, NM)
    assert np.array_equal(CubeFile(tmp_path/"scene.dat").read(), raw), "the numbers may be named as well"


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_spy_reads_the_same(tmp_path, interleave, order):
    spy = pytest.importorskip("spectral")
    header = write_envi(tmp_path, RAW, "i2", order, interleave, 20, head="reflectance scale factor = 10000\n")
    image = spy.open_image(str(header))
    assert np.allclose(CubeFile(header).read(), np.asarray(image.load()).transpose(2,0,1), atol=1e-6)
    assert np.allclose(CubeFile(header).wavelengths, np.array(image.bands.centers)*1000)


def test_what_spy_writes_is_read(tmp_path):
    spy = pytest.importorskip("spectral")
    spy.envi.save_image(str(tmp_path/"a.hdr"), CUBE.transpose(1,2,0), interleave="bil", metadata=dict(wavelength=NM, **{"wavelength units":"Nanometers"}))
    cube = CubeFile(tmp_path/"a.hdr")
    assert np.array_equal(cube.read(), CUBE) and np.allclose(cube.wavelengths, NM)


@pytest.mark.parametrize("ending", ["", ".img", ".raw", ".bil", ".DAT", ".bsq"])
def test_the_numbers_may_have_any_usual_ending(tmp_path, ending):
    header = write_envi(tmp_path, ending=ending)
    assert data_of(header).name == f"scene{ending}" and header_of(tmp_path/f"scene{ending}") == header and np.array_equal(CubeFile(header).read(), CUBE)


@pytest.mark.parametrize("ending", [".lan", ".float", ".001"])
def test_a_header_finds_the_only_other_file_of_its_name(tmp_path, ending):
    header = write_envi(tmp_path, ending=ending)
    (tmp_path/"scene.txt").write_text("notes")
    assert np.array_equal(CubeFile(header).read(), CUBE)
    (tmp_path/"scene.second").write_bytes(b"1")
    with pytest.raises(ValueError, match="may both hold its numbers"): CubeFile(header)


@pytest.mark.parametrize("change", [lambda text: text.replace("ENVI\n", "", 1).encode(), lambda text: text.replace("ENVI", "envi", 1).encode(), lambda text: text.encode("utf-16"),
                                    lambda text: text.replace("\n", "\r\n").encode("utf-8-sig")])
def test_headers_as_editors_leave_them(tmp_path, change):
    header = write_envi(tmp_path)
    header.write_bytes(change(header.read_text()))
    for name in ("scene.hdr", "scene.dat"): assert np.array_equal(CubeFile(tmp_path/name).read(), CUBE)


@pytest.mark.parametrize("head, gain, offset", [("data gain values = {0.5}\n", .5, 0), ("data gain values = 0.5\ndata offset values = {2}\n", .5, 2), ("data gain values = {1, 2, 3, 4, 5, 6}\n", np.arange(1, 7), 0)])
def test_gains_are_one_for_all_or_one_for_each(tmp_path, head, gain, offset):
    assert np.allclose(CubeFile(write_envi(tmp_path, head=head)).read(), CUBE*np.reshape(gain, (-1,1,1)) + offset, atol=1e-6)


def test_gains_of_other_bands_are_told(tmp_path, capsys):
    assert np.array_equal(CubeFile(write_envi(tmp_path, head="data gain values = {1, 2}\n")).read(), CUBE)
    assert "data gain values are ignored: there are 2 for 6 bands" in capsys.readouterr().out
    with pytest.raises(ValueError, match="calls all bands bad"): CubeFile(write_envi(tmp_path, head="bbl = {0, 0, 0, 0, 0, 0}\n"))


def test_the_header_may_keep_the_ending(tmp_path):
    write_envi(tmp_path, ending=".img").rename(tmp_path/"scene.img.hdr")
    for name in ("scene.img", "scene.img.hdr"): assert np.array_equal(CubeFile(tmp_path/name).read(), CUBE)


def test_bad_bands_are_left_out_and_said(tmp_path, capsys):
    cube = CubeFile(write_envi(tmp_path, head="bbl = {1, 0, 1, 1, 0, 0}\n"))
    assert cube.shape == (3,20,16) and np.array_equal(cube.read(), CUBE[[0,2,3]]) and np.allclose(cube.wavelengths, NM[[0,2,3]])
    assert "3 bands that the file calls bad (bbl) are left out: 1, 4-5" in capsys.readouterr().out
    assert CubeFile(tmp_path/"scene.hdr", bands=6).shape == CubeFile(tmp_path/"scene.hdr", bands=3).shape == (3,20,16)
    assert load_cube_set(tmp_path/"scene.hdr", block=6).bands == 3
    (tmp_path/"b").mkdir()
    assert CubeFile(write_envi(tmp_path/"b", head="bbl = {1, 0}\n")).shape[0] == 6 and "bbl is ignored" in capsys.readouterr().out


def test_ignore_value_and_scale(tmp_path):
    raw = RAW.copy()
    raw[:,:5] = -9999
    cube = CubeFile(write_envi(tmp_path, raw, "i2", head="data ignore value = -9.999e3\nreflectance scale factor = 10000.0\n"))
    assert (~valid_pixels(cube.read())).sum() == 80 and np.allclose(cube.read()[:,5:], RAW[:,5:]/1e4)
    gains = "data gain values = {" + ",".join(f"{k+1}" for k in range(6)) + "}\ndata offset values = {1,1,1,1,1,2}\n"
    cube = CubeFile(write_envi(tmp_path, CUBE, head=gains))
    assert np.allclose(cube.read(), CUBE*np.arange(1, 7)[:,None,None] + np.array([1,1,1,1,1,2])[:,None,None])


@pytest.mark.parametrize("unit,nm", [("Nanometers", NM), ("Micrometers", NM/1000), ("um", NM/1000), ("Unknown", NM), ("Index", NM/1000), ("Angstroms", NM*10), ("Wavenumber", 1e7/NM)])
def test_units_of_headers(tmp_path, unit, nm): assert np.allclose(CubeFile(write_envi(tmp_path, nm=nm, unit=unit)).wavelengths, NM, atol=1e-2)


def test_axes_of_one_length_are_no_question(tmp_path):
    cube = np.random.default_rng(0).random((6,6,6), dtype=np.float32)
    for interleave in ("bsq", "bil", "bip"): assert np.array_equal(CubeFile(write_envi(tmp_path, cube, interleave=interleave)).read(), cube)


@pytest.mark.parametrize("change,says", [(("data type = 4", "data type = 6"), "complex"), (("data type = 4", "data type = x"), "no number"), (("byte order = 0", "byte order = 2"), "little endian"), (("interleave = bsq", "interleave = xyz"), "one of bsq"),
    (("bands   = 6", "bands   = 5"), "correct samples, lines, bands"), (("lines   = 20", ""), "does not say 'lines'"), (("header offset = 0", "header offset = 8"), "correct samples"), (("byte order", "file compression = 1\nbyte order"), "file compression")])
def test_headers_that_lie_are_refused(tmp_path, change, says):
    header = write_envi(tmp_path)
    header.write_text(header.read_text().replace(*change))
    with pytest.raises(ValueError, match=rf"scene\.hdr.*{says}"): CubeFile(header)


def test_numbers_that_are_not_there_or_are_two(tmp_path):
    header = write_envi(tmp_path)
    (tmp_path/"scene.img").write_bytes(b"x")
    with pytest.raises(ValueError, match="may both hold its numbers; name the one"): CubeFile(header)
    (tmp_path/"scene.img").unlink()
    (tmp_path/"scene.dat").unlink()
    with pytest.raises(ValueError, match="is not beside it; it would be called scene"): CubeFile(header)


def test_headers_as_people_write_them(tmp_path):
    (tmp_path/"a.hdr").write_bytes("ENVI\r\n; noise = 3\r\nSamples=4\r\nwave\tlength = {1,\r\n 2}\r\ndescription = {größe}\r\n".encode("latin-1"))
    fields = read_header(tmp_path/"a.hdr")
    assert fields["samples"] == "4" and fields["wave length"] == ["1", "2"] and "noise" not in fields and "größe" in fields["description"]
