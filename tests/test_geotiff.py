"GeoTIFF through rasterio"
import sys
import warnings

import numpy as np
import pytest
from cube_files import CUBE, NM, own_cache

from vitnb.data.cube import CubeFile, close_cubes, load_cube_set, valid_pixels

RAW = np.round(CUBE*9000 + 100).astype("u2")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Dataset has no geotransform")
        yield


def write_tif(path, raw=RAW, tags=None, **kw):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(path, "w", driver="GTiff", width=raw.shape[2], height=raw.shape[1], count=len(raw), dtype=raw.dtype, **kw) as f:
        f.write(raw)
        if tags: tags(f)
    return path


@pytest.mark.parametrize("kw", [{}, dict(compress="deflate"), dict(compress="lzw", predictor=2), dict(tiled=True, blockxsize=16, blockysize=16), dict(interleave="pixel"), dict(BIGTIFF="YES")], ids=str)
def test_every_storage(tmp_path, kw):
    cube = CubeFile(write_tif(tmp_path/"a.tif", **kw))
    assert np.array_equal(cube.read(), RAW) and np.array_equal(cube.read(3, 4, 5, 6), RAW[:,3:8,4:10])
    close_cubes()


def describe(f):
    for k,v in enumerate(NM, 1): f.set_band_description(k, f"Band {k} ({v:.1f} nm)")


def by_tag(f):
    for k,v in enumerate(NM, 1): f.update_tags(k, wavelength=f"{v/1000:.4f}", wavelength_units="Micrometers")


def imagery(f):
    for k,v in enumerate(NM, 1): f.update_tags(k, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=f"{v/1000:.4f}")


def mixed(f):
    for k,v in enumerate(NM, 1): f.set_band_description(k, f"{v:.1f} nm" if v < 700 else f"{v/1000:.4f} um")


def whole(f): f.update_tags(wavelengths=",".join(map(str, NM)))


@pytest.mark.parametrize("tags", [describe, by_tag, imagery, mixed, whole])
def test_wavelengths(tmp_path, tags):
    s = load_cube_set(write_tif(tmp_path/"a.tif", tags=tags), block=6)
    assert np.allclose(s.wavelengths, NM) and s.bands == 6


def test_no_data_scale_and_opacity(tmp_path):
    raw = RAW.copy()
    raw[:,:5] = 65535
    def scaled(f): f.scales,f.offsets = [1e-4]*6,[.5]*6
    cube = CubeFile(write_tif(tmp_path/"a.tif", raw, scaled, nodata=65535))
    assert (~valid_pixels(cube.read())).sum() == 80 and np.allclose(cube.read()[:,5:], RAW[:,5:]*1e-4 + .5, atol=1e-5)
    assert CubeFile(write_tif(tmp_path/"b.tif", alpha="YES")).shape == (5,20,16)


def test_a_broken_file_and_a_missing_library_are_named(tmp_path, monkeypatch):
    (tmp_path/"a.tif").write_bytes(b"II*\0" + bytes(200))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ImportError, match=r'pip install "vitnb\[geo\]"'): CubeFile(tmp_path/"a.tif")
    monkeypatch.undo()
    pytest.importorskip("rasterio")
    with pytest.raises(ValueError, match="a.tif.*rasterio cannot read it"): CubeFile(tmp_path/"a.tif")
