"HDF5 as NetCDF-4, HDF-EOS5, NEON, EMIT and MATLAB write it"
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from cube_files import CUBE, V73, own_cache, write_h5

from vitnb.data.cube import CubeFile, close_cubes, load_cube_set, valid_pixels
h5py = pytest.importorskip("h5py")
NM = np.linspace(400, 1000, 6)
HWC = CUBE.transpose(1,2,0)


def made(path, **arrays):
    with h5py.File(path, "w") as f:
        for name,array in arrays.items(): f[name.replace("__", "/")] = array
    return path


@pytest.mark.parametrize("order", [(0,1,2), (1,2,0), (1,0,2)])
@pytest.mark.parametrize("place", ["beside", "attribute", "group", "file", "text", "sidecar"])
def test_wavelengths_anywhere_choose_the_axis(tmp_path, place, order):
    path = made(tmp_path/"a.h5", Cube__Images=CUBE.transpose(order))
    with h5py.File(path, "a") as f:
        if place == "beside": f["Cube/Wavelength"] = NM
        if place == "attribute": f["Cube/Images"].attrs["wavelengths"] = NM
        if place == "group": f["Cube"].attrs["band_centers"] = NM
        if place == "file": f.attrs["List_Cw"] = NM
        if place == "text": f["Cube/Images"].attrs["wavelength"] = ",".join(map(str, NM))
    if place == "sidecar": np.savetxt(tmp_path/"a_wavelengths.txt", NM)
    cube = CubeFile(path)
    assert np.array_equal(cube.read(), CUBE) and np.allclose(cube.wavelengths, NM)


def test_similar_names_are_no_wavelengths_and_are_told(tmp_path, capsys):
    path = made(tmp_path/"a.h5", Cube__Images=CUBE, Cube__wavelength=NM, Cube__wavelength_fwhm=np.full(6, 5.), Cube__good_wavelengths=np.ones(6), Other__wavelength=NM[:3])
    assert np.array_equal(CubeFile(path).wavelengths, NM)
    assert "/Other/wavelength (3 entries" in capsys.readouterr().out
    close_cubes()
    with h5py.File(path, "a") as f: f["Cube/wavelengths"] = NM + 2
    with pytest.raises(ValueError, match="may both be the wavelengths"): CubeFile(path)
    assert np.array_equal(CubeFile(path, wavelengths="/Cube/wavelengths").wavelengths, NM + 2), "the remedy"


@pytest.mark.parametrize("values,attrs,nm", [(NM/1000, {}, NM), (NM*10, dict(units="Angstrom"), NM), (1e7/NM, dict(units=b"cm-1"), NM), (NM/1e9, dict(unit="m"), NM)])
def test_units(tmp_path, values, attrs, nm, capsys):
    path = made(tmp_path/"a.h5", Cube__Images=CUBE, Cube__wl=values)
    with h5py.File(path, "a") as f: f["Cube/wl"].attrs.update(attrs)
    assert np.allclose(CubeFile(path).wavelengths, nm) and "converted to nm" in capsys.readouterr().out


def test_a_unit_that_nobody_says_is_asked_and_can_be_given(tmp_path):
    path = made(tmp_path/"a.h5", Cube__Images=CUBE, Cube__wl=NM*10)
    with pytest.raises(ValueError, match=r"a\.h5.*4000 to 10000 come without a unit.*wavelength_unit="): CubeFile(path)
    assert np.allclose(CubeFile(path, wavelength_unit="angstrom").wavelengths, NM)


@pytest.mark.parametrize("order", ["cyx", "ycx", "yxc", "xyc"])
def test_dimension_scales_of_netcdf_say_the_axes(tmp_path, order):
    "Also where all axes are of one length"
    cube = np.random.default_rng(0).random((6,6,6), dtype=np.float32)
    names = dict(c="wavelength", y="lat", x="lon")
    with h5py.File(tmp_path/"a.nc", "w") as f:
        f["refl"] = cube.transpose(["cyx".index(o) for o in order])
        for axis,o in enumerate(order):
            f[names[o]] = NM if o == "c" else np.arange(6.)
            f[names[o]].make_scale(names[o])
            f["refl"].dims[axis].attach_scale(f[names[o]])
    got = CubeFile(tmp_path/"a.nc")
    assert np.array_equal(got.read(), cube) and np.array_equal(got.wavelengths, NM)


def test_what_another_library_writes_as_netcdf(tmp_path):
    h5netcdf = pytest.importorskip("h5netcdf")
    packed = np.round(CUBE*1e4).astype("i2")
    packed[:,0,0] = -9999
    with h5netcdf.File(tmp_path/"a.nc", "w") as f:
        f.dimensions = dict(time=1, y=20, x=16, band=6)
        v = f.create_variable("rrs", ("time", "y", "x", "band"), "i2", fillvalue=np.int16(-9999), data=packed.transpose(1,2,0)[None])
        v.attrs.update(scale_factor=1e-4, add_offset=.5)
        f.create_variable("band", ("band",), "f8", data=NM).attrs["units"] = "nm"
    cube = CubeFile(tmp_path/"a.nc")
    want = np.where(packed == -9999, np.nan, packed*1e-4 + .5)
    assert cube.shape == (6,20,16) and np.allclose(cube.read(), want, atol=1e-6, equal_nan=True) and np.allclose(cube.wavelengths, NM)
    assert np.allclose(cube.read(3, 4, 5, 6), want[:,3:8,4:10], atol=1e-6, equal_nan=True)


def test_neons_scale_is_a_divisor_and_emits_flags_are_no_wavelengths(tmp_path):
    raw = np.round(HWC*1e4).astype("i2")
    raw[0,0] = -9999
    path = made(tmp_path/"neon.h5", S__Reflectance__Reflectance_Data=raw, S__Reflectance__Metadata__Spectral_Data__Wavelength=NM, S__Reflectance__Metadata__Spectral_Data__FWHM=np.full(6, 5.))
    with h5py.File(path, "a") as f: f["S/Reflectance/Reflectance_Data"].attrs.update(Scale_Factor=1e4, Data_Ignore_Value=-9999.)
    cube = CubeFile(path)
    assert np.isnan(cube.read()[:,0,0]).all() and np.allclose(cube.read()[:,1], CUBE[:,1], atol=1e-4) and np.allclose(cube.wavelengths, NM)
    path = made(tmp_path/"emit.nc", reflectance=HWC, sensor_band_parameters__wavelengths=NM, sensor_band_parameters__good_wavelengths=np.ones(6), sensor_band_parameters__fwhm=NM/100)
    assert np.array_equal(CubeFile(path).read(), CUBE)


def test_several_cubes_ask_for_a_name(tmp_path):
    path = made(tmp_path/"prisma.he5", D__VNIR_Cube=CUBE.transpose(1,0,2), D__SWIR_Cube=CUBE.transpose(1,0,2))
    with h5py.File(path, "a") as f: f.attrs.update(List_Cw_Vnir=NM[::-1], List_Fwhm_Vnir=NM/100, List_Cw_Vnir_Flags=np.ones(6))
    with pytest.raises(ValueError, match="it has /D/SWIR_Cube .*name one with dataset="): CubeFile(path)
    cube = CubeFile(path, "D/VNIR_Cube")
    assert np.array_equal(cube.read(), CUBE) and np.array_equal(cube.wavelengths, NM[::-1])


def test_a_missing_filter_is_named_with_its_plugin(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with h5py.File(tmp_path/"a.h5", "w") as f:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((6,20,16))
        plan.set_filter(333, h5py.h5z.FLAG_OPTIONAL, (2,))
        h5py.h5d.create(f.id, b"cube", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((6,20,16)), plan)
    with pytest.raises(ValueError, match=r"a\.h5.*compressed with an unknown filter \(number 333\).*pip install hdf5plugin.*gzip"): CubeFile(tmp_path/"a.h5", "cube", "chw")


def test_an_installed_plugin_is_used(tmp_path):
    plugin = pytest.importorskip("hdf5plugin")
    with h5py.File(tmp_path/"a.h5", "w") as f: f.create_dataset("Cube/Images", data=CUBE, chunks=(6,10,8), **plugin.Blosc())
    code = f"from vitnb.data.hdf import check_filters, open_hdf5; d=open_hdf5({str(tmp_path/'a.h5')!r})['Cube/Images']; check_filters('a', d); print(d[()].sum())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout # which has not imported it
    assert abs(float(out.split()[-1]) - CUBE.sum()) < .5


def test_a_locked_file_is_named_with_its_remedy(tmp_path):
    path = write_h5(tmp_path/"a.h5")
    code = f"import h5py,sys; f=h5py.File({str(path)!r},'a'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(ValueError, match=r"a\.h5.*lock.*close that.*HDF5_USE_FILE_LOCKING=FALSE"): CubeFile(path, axes="chw")
        writer.stdin.close()
    assert np.array_equal(CubeFile(path, axes="chw").read(), CUBE)


def test_fill_values_never_written_are_not_measured(tmp_path):
    with h5py.File(tmp_path/"a.h5", "w") as f:
        d = f.create_dataset("Cube/Images", (6,20,16), "f4", chunks=(6,10,8), fillvalue=-1.)
        d[:,:10] = CUBE[:,:10]
    assert (~valid_pixels(CubeFile(tmp_path/"a.h5", axes="chw").read())).sum() == 160


def test_valid_ranges_and_the_users_scale(tmp_path, capsys):
    path = made(tmp_path/"a.h5", Cube__Images=np.arange(6*20*16, dtype="i2").reshape(6,20,16))
    with h5py.File(path, "a") as f: f["Cube/Images"].attrs.update(valid_range=np.int16([10, 1000]), scale_factor=.1)
    assert np.isnan(CubeFile(path, axes="chw").read().ravel()[[0, 9, 1001]]).all()
    assert CubeFile(path, axes="chw", scale=2.).read().ravel()[20] == 40 and "the file's own (scale 0.1" in capsys.readouterr().out


def test_matlabs_structs_and_reversed_axes(tmp_path):
    path = write_h5(tmp_path/"a.mat", CUBE.transpose(0,2,1), "scene/cube", V73)
    with h5py.File(path, "a") as f: f["scene/wl"] = NM[:,None]
    for dataset in (None, "scene.cube", "scene/cube"):
        cube = CubeFile(path, dataset)
        assert np.array_equal(cube.read(), CUBE) and np.array_equal(cube.wavelengths, NM)


def test_numbers_that_attributes_hold_as_text_act(tmp_path):
    raw = np.where(np.arange(16) < 4, -999, CUBE*1e4).astype("i2")
    with h5py.File(tmp_path/"a.h5", "w") as file:
        file["only"] = raw # its name is not the usual one, and it is the only cube
        file["only"].attrs.update(_FillValue="-999", scale_factor="1e-4", add_offset=b"0.5")
    cube = CubeFile(tmp_path/"a.h5", axes="chw").read()
    assert np.isnan(cube[...,:4]).all() and np.allclose(cube[...,4:], raw[...,4:]*1e-4 + .5)


@pytest.mark.parametrize("write,unit", [("{:.1f} nm", "nm"), ("{:.1f}", None), ("{:.0f} Nanometers", "nm")])
@pytest.mark.parametrize("place", ["dataset", "attribute"])
def test_wavelengths_that_are_written_as_text(tmp_path, capsys, write, unit, place):
    texts = np.array([write.format(value) for value in NM], dtype=h5py.string_dtype())
    path = made(tmp_path/"a.h5", Cube__Images=HWC, **({"Cube__wavelength":texts} if place == "dataset" else {}))
    if place == "attribute":
        with h5py.File(path, "a") as f: f["Cube/Images"].attrs["wavelength"] = texts
    cube = CubeFile(path)
    assert np.allclose(cube.wavelengths, NM, atol=.5) and cube.shape == CUBE.shape


def test_names_of_bands_are_no_wavelengths_and_are_told(tmp_path, capsys):
    path = made(tmp_path/"a.h5", Cube__Images=CUBE, Cube__wavelength=np.array(list("abcdef"), dtype=h5py.string_dtype()))
    assert CubeFile(path, axes="chw").wavelengths is None and "not taken for wavelengths: /Cube/wavelength" in capsys.readouterr().out
