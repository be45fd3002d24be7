"NetCDF's classic format"
import numpy as np
import pytest
from cube_files import CUBE, NM, own_cache
from scipy.io import netcdf_file

from vitnb.data.cube import CubeFile, valid_pixels


def write_nc(path, order="yxc", version=1, kind="f4", cube=CUBE, names=dict(c="wavelength", y="y", x="x"), **attrs):
    with netcdf_file(path, "w", version=version) as f:
        for o in order: f.createDimension(names[o], cube.shape["cyx".index(o)])
        v = f.createVariable("refl", kind, tuple(names[o] for o in order))
        v[:] = cube.transpose(["cyx".index(o) for o in order])
        for name,value in attrs.items(): setattr(v, name, value)
        w = f.createVariable("wavelength", "f8", (names["c"],))
        w[:] = NM/1000
        w.units = "um"
    return path


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["yxc", "cyx", "xyc"])
def test_dimensions_say_the_axes(tmp_path, version, order):
    cube = CubeFile(write_nc(tmp_path/"a.nc", order, version))
    assert np.array_equal(cube.read(), CUBE) and np.allclose(cube.wavelengths, NM)


def test_without_names_the_wavelengths_choose(tmp_path):
    assert np.array_equal(CubeFile(write_nc(tmp_path/"a.nc", names=dict(c="d0", y="d1", x="d2"))).read(), CUBE)


def test_fill_and_scale(tmp_path):
    raw = np.round(CUBE*1e4)
    raw[:,:5] = -9999
    cube = CubeFile(write_nc(tmp_path/"a.nc", kind="i2", cube=raw, _FillValue=np.int16(-9999), scale_factor=1e-4, add_offset=.5))
    assert (~valid_pixels(cube.read())).sum() == 80 and np.allclose(cube.read()[:,5:], raw[:,5:]*1e-4 + .5, atol=1e-6)
    (tmp_path/"b.nc").write_bytes(b"CDF\1" + bytes(5))
    with pytest.raises(ValueError, match="b.nc.*no readable NetCDF"): CubeFile(tmp_path/"b.nc")
