"Cubes in files: every format gives the same numbers, and what cannot be read is named"
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from cube_files import CUBE, V73, h5_set, own_cache, rows, write_h5, write_mat, write_npy

from vitnb.data.cube import (CubeArray, CubeFile, CubeRecord, CubeSet, UnreadableImage, absorbers, close_cubes,
    cube_loaders, load_cube_set, make_normalizer)

h5py = pytest.importorskip("h5py")

FORMATS = dict( # every layout that is promised, written by another library's hand
    hdf5        = lambda d: CubeFile(write_h5(d/"a.h5", chunks=(6,8,8), compression="gzip")),
    hdf5_hwc    = lambda d: CubeFile(write_h5(d/"a.h5", CUBE.transpose(1,2,0), "data"), "data", "hwc"),
    hdf5_guess  = lambda d: CubeFile(write_h5(d/"a.h5", CUBE.transpose(1,2,0)), bands=6),
    matlab_73   = lambda d: CubeFile(write_h5(d/"a.mat", CUBE.transpose(0,2,1), "cube", V73), "cube"), # MATLAB's (20,16,6) is stored reversed
    matlab_73_largest = lambda d: CubeFile(write_h5(d/"a.mat", CUBE.transpose(0,2,1), "cube", V73)),
    mat         = lambda d: CubeFile(write_mat(d/"a.mat", cube=CUBE.transpose(1,2,0), gt=np.ones((20,16)))),
    mat_table   = lambda d: CubeFile(write_mat(d/"a.mat", Y=CUBE.transpose(0,2,1).reshape(6,-1)), "Y", "c(wh)", (20,16)),
    mat_rows    = lambda d: CubeFile(write_mat(d/"a.mat", Y=CUBE.reshape(6,-1).T), "Y", "(hw)c", (20,16)),
    hdf5_table  = lambda d: CubeFile(write_h5(d/"a.h5", CUBE.reshape(6,-1)), axes="c(hw)", size=(20,16)),
    npy         = lambda d: CubeFile(write_npy(d/"a.npy")),
    npy_hwc     = lambda d: CubeFile(write_npy(d/"a.npy", CUBE.transpose(1,2,0)), axes="hwc"),
    npy_fortran = lambda d: CubeFile(write_npy(d/"a.npy", np.asfortranarray(CUBE))),
    array       = lambda d: CubeArray(CUBE))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_windows(name, tmp_path):
    cube = FORMATS[name](tmp_path)
    assert cube.shape == (6,20,16)
    whole = cube.read()
    assert whole.dtype == np.float32 and np.array_equal(whole, CUBE)
    for t,l,h,w in [(0,0,1,1), (3,5,8,4), (12,0,8,16)]: assert np.array_equal(cube.read(t, l, h, w), CUBE[:,t:t+h,l:l+w])
    again = pickle.loads(pickle.dumps(cube)) # what a spawned worker gets
    assert np.array_equal(again.read(3, 5, 8, 4), CUBE[:,3:11,5:9])


def test_integers_become_reflectance(tmp_path):
    raw = (CUBE*10_000).astype(np.uint16)
    assert np.allclose(CubeFile(write_npy(tmp_path/"a.npy", raw), scale=1e-4).read(), raw/1e4, atol=1e-6)


def test_an_unpacked_copy_is_made_anew_when_the_file_changes(tmp_path):
    import os
    f = write_mat(tmp_path/"a.mat", cube=CUBE.transpose(1,2,0))
    assert np.array_equal(CubeFile(f).read(), CUBE)
    write_mat(f, cube=2*CUBE.transpose(1,2,0))
    os.utime(f, ns=(1, 1))
    assert np.array_equal(CubeFile(f).read(), 2*CUBE)


def test_a_window_reads_only_its_chunks(tmp_path):
    "A file whose other chunks are destroyed still gives the window that does not need them"
    f = write_h5(tmp_path/"a.h5", chunks=(6,10,8), compression="gzip")
    with h5py.File(f, "r") as h: info = h["Cube/Images"].id.get_chunk_info(3) # rows 10 to 20, columns 8 to 16
    cube = CubeFile(f)
    close_cubes()
    with open(f, "r+b") as o:
        o.seek(info.byte_offset)
        o.write(b"\xff"*info.size)
    assert np.array_equal(cube.read(0, 0, 10, 8), CUBE[:,:10,:8])
    with pytest.raises(UnreadableImage, match="cannot be read"): cube.read(10, 8, 4, 4)


def made(path, **arrays):
    with h5py.File(path, "w") as f:
        for name,array in arrays.items(): f[name] = array
    return path


def _read(source, idx): return source.read(np.array(idx)).numpy()


def test_forked_and_spawned_processes_open_their_own_handles(tmp_path):
    s = h5_set(tmp_path)
    kw = dict(bs=2, window=8, jitter=2, augment="flip", device="cpu", seed=1)
    here = list(cube_loaders(s, **kw).train) # the parent holds handles open
    there = list(cube_loaders(s, workers=2, **kw).train)
    assert len(here) == len(there) and all(torch.equal(a[k], b[k]) for a,b in zip(here, there) for k in ("image", "mask"))
    source = cube_loaders(s, **kw).train.dataset.source
    with multiprocessing.get_context("spawn").Pool(1) as pool: assert np.array_equal(pool.apply(_read, (source, [0,3])), _read(source, [0,3]))


def test_few_files_are_open_at_a_time(tmp_path):
    from vitnb.data import cubefile
    for i in range(40): CubeFile(write_h5(tmp_path/f"c{i}.h5")).read(0, 0, 2, 2)
    assert len(cubefile._handles) <= cubefile._MOST_OPEN


@pytest.mark.parametrize("make,says", [
    (lambda d: CubeFile(write_h5(d/"a.h5"), dataset="/Cube/Image"), r"no dataset '/Cube/Image' in it; it has /Cube/Images \(6, 20, 16\)"),
    (lambda d: CubeFile(made(d/"a.h5", one=CUBE, other=CUBE)), "no dataset '/Cube/Images' in it; it has /one .*, /other"),
    (lambda d: CubeFile(write_mat(d/"a.mat", x=CUBE), "y"), "no dataset 'y' in it; it has x"),
    (lambda d: CubeFile(d/"none.h5"), "the file is missing"),
    (lambda d: CubeFile((d/"e.npy").write_bytes(b"") and d/"e.npy" or d/"e.npy"), "the file is empty"),
    (lambda d: CubeFile((d/"e.png").write_bytes(b"\x89PNG") and d/"e.png"), "neither HDF5 nor"),
    (lambda d: CubeFile((d/"e.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"x"*99) and d/"e.h5"), "HDF5 cannot open it"),
    (lambda d: CubeFile((d/"e.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b"x"*99) and d/"e.mat"), "scipy cannot read it"),
    (lambda d: CubeFile(write_npy(d/"a.npy", np.array(["x"]*8).reshape(2,2,2))), "not numbers"),
    (lambda d: CubeFile(write_npy(d/"a.npy", CUBE[0])), "has 2 axes; for bands times pixels"),
    (lambda d: CubeFile(write_npy(d/"a.npy", CUBE.reshape(6,-1)), axes="c(hw)", size=(20,15)), r"does not make chw \(6, 20, 15\)"),
    (lambda d: CubeFile(write_npy(d/"a.npy"), axes="c(hw)", size=(20,16)), "does not fit axes='c.hw.'"),
    (lambda d: CubeFile(write_npy(d/"a.npy"), axes="hwcc"), "unknown order of axes"),
    (lambda d: CubeFile(write_npy(d/"a.npy"), scale=0), "scale=0 must be above 0"),
    (lambda d: CubeFile(write_npy(d/"a.npy")).read(18, 0, 4, 4), "leaves the cube of 20×16"),
    (lambda d: load_cube_set(rows(d, "p,a,x.npy,").with_name("no.csv")), "unknown set of cubes"),
    (lambda d: load_cube_set((d/"c.csv").write_text("ID,label,cube\n1,a,x\n") and d/"c.csv"), "no column 'hs_file'"),
    (lambda d: load_cube_set(n=12, size=16, root="x"), "lies nowhere"),
    (lambda d: load_cube_set("indian_pines", root=d), "indian_pines is not at"),
    (lambda d: cube_loaders(load_cube_set(n=12, size=16), window=32, device="cpu"), "does not fit eye0000 of 16×16"),
    (lambda d: cube_loaders(load_cube_set(n=12, size=16), patch_size=(5,5), device="cpu"), "no whole number of patches of 5"),
    (lambda d: cube_loaders(load_cube_set(n=12, size=16, bands=7), patch_size=(4,5), device="cpu"), "7 bands are no whole number of 5"),
    (lambda d: cube_loaders(load_cube_set(n=12, size=16), augment="flipp", device="cpu"), "did you mean 'flip'"),
    (lambda d: cube_loaders(load_cube_set(n=12, size=16), augment="basic", aug_kw=dict(rotat=3), device="cpu"), "did you mean 'rotate'"),
    (lambda d: cube_loaders(load_cube_set(n=12, size=16), label="pixel", device="cpu"), "did you mean 'pixels'"),
    (lambda d: make_normalizer("zscore", mean=[0,0], std=[1,0]), r"bands \[1\] do not vary"),
    (lambda d: make_normalizer("zscore", mean=[0], std=[1]).normalize(torch.zeros(1,2,3,3)), "a cube of 2 bands met the statistics of 1"),
    (lambda d: absorbers([400.]), "leave the tables of haemoglobin"),
    (lambda d: CubeSet("s", [CubeRecord(CubeArray(CUBE), "a"), CubeRecord(CubeArray(CUBE[:3]), "b")], dict(train=[0])), "b has 3 bands, a has 6"),
], ids=lambda o: o[:30] if isinstance(o, str) else "")
def test_bad_input_is_said(make, says, tmp_path):
    with pytest.raises(ValueError, match=says): make(tmp_path)


# ---------- values that lie in other files

def sent(path, external=None, virtual=None):
    "An HDF5 file that takes its cube from elsewhere"
    with h5py.File(path, "w") as file:
        if external: file.create_dataset("/Cube/Images", (2, 3, 4), "u1", external=[(str(external), 0, 24)])
        else:
            layout = h5py.VirtualLayout((2, 3, 4), "u1")
            layout[:] = h5py.VirtualSource(str(virtual), "/a", (2, 3, 4))
            file.create_virtual_dataset("/Cube/Images", layout)
    return path


def source_h5(path, values=None):
    with h5py.File(path, "w") as file: file["/a"] = np.arange(24, dtype="u1").reshape(2, 3, 4) if values is None else values
    return path


def elsewhere(tmp_path):
    folder = tmp_path/"elsewhere"
    folder.mkdir()
    (folder/"secret").write_bytes(bytes(range(24)))
    source_h5(folder/"secret.h5")
    return folder


@pytest.mark.parametrize("name", ["/etc/passwd", "{}/secret", "../elsewhere/secret", "secret", "link"])
def test_raw_values_from_elsewhere_are_refused(tmp_path, monkeypatch, name):
    folder = elsewhere(tmp_path)
    monkeypatch.chdir(folder) # HDF5 itself looks there for `secret`
    (tmp_path/"cubes").mkdir()
    (tmp_path/"cubes"/"link").symlink_to(folder/"secret")
    path = sent(tmp_path/"cubes"/"a.h5", external=name.format(folder))
    with pytest.raises(UnreadableImage, match=r"a\.h5.*lie in"): CubeFile(path, axes="chw")
    close_cubes()


@pytest.mark.parametrize("name", ["{}/secret.h5", "../elsewhere/secret.h5", "link.h5", "missing.h5", "chain.h5", "linked.h5"])
def test_virtual_values_from_elsewhere_are_refused(tmp_path, name):
    "Also by a file beside the cube that leads on"
    folder = elsewhere(tmp_path)
    (tmp_path/"cubes").mkdir()
    (tmp_path/"cubes"/"link.h5").symlink_to(folder/"secret.h5")
    sent(tmp_path/"cubes"/"chain.h5", virtual=folder/"secret.h5")
    with h5py.File(tmp_path/"cubes"/"linked.h5", "w") as file: file["/a"] = h5py.ExternalLink(str(folder/"secret.h5"), "/a")
    path = sent(tmp_path/"cubes"/"a.h5", virtual=name.format(folder))
    with pytest.raises(UnreadableImage, match=r"a\.h5.*lie in"): CubeFile(path, axes="chw")
    close_cubes()


@pytest.mark.parametrize("kind", ["external", "virtual"])
def test_values_from_a_file_beside_the_cube_are_read_and_named(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir("/")
    (tmp_path/"raw").write_bytes(bytes(range(24)))
    source_h5(tmp_path/"raw.h5")
    path = sent(tmp_path/"a.h5", **{kind:"raw" if kind == "external" else "raw.h5"})
    for _ in range(2): assert np.array_equal(CubeFile(path, axes="chw").read().ravel(), np.arange(24))
    said = capsys.readouterr().out
    assert said.count("come from raw") == 1 and "a.h5" in said
    close_cubes()


def aside(file, what, folder):
    "Lead a file out of its folder in a way that is not the cube's own; its cube is whole"
    secret = [(str(folder/"secret"), 0, 4)]
    if what == "own_virtual": # a dataset of its own file, which lies elsewhere
        file.create_dataset("/raw", (2, 3, 4), "u1", external=[(str(folder/"secret"), 0, 24)])
        layout = h5py.VirtualLayout((2, 3, 4), "u1")
        layout[:] = h5py.VirtualSource(".", "/raw", (2, 3, 4))
        del file["/Cube/Images"]
        file.create_virtual_dataset("/Cube/Images", layout)
    if what == "scale":
        scale = file.create_dataset("/wl", (2,), "<u2", external=secret)
        scale.attrs["units"] = "nm"
        scale.make_scale("wavelength")
        file["/Cube/Images"].dims[0].attach_scale(scale)
    if what == "list": file.create_dataset("/wavelengths", (2,), "<u2", external=secret)
    if what == "pattern":
        space = h5py.h5s.create_simple((2, 3, 4), (h5py.h5s.UNLIMITED, 3, 4))
        space.select_hyperslab((0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), (1, 3, 4), (1, 3, 4))
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_virtual(space, b"part-%b.h5", b"/a", h5py.h5s.create_simple((1, 3, 4))) # one file for each band
        source_h5(folder.parent/"cubes"/"part-%b.h5")
        (folder.parent/"cubes"/"part-0.h5").symlink_to(folder/"secret.h5")
        del file["/Cube/Images"]
        h5py.h5d.create(file["/Cube"].id, b"Images", h5py.h5t.STD_U8LE, space, made)


@pytest.mark.parametrize("what", ["own_virtual", "scale", "list", "pattern"])
def test_no_way_leads_out_of_the_folder(tmp_path, what):
    "A virtual dataset of raw values elsewhere, wavelengths that lie elsewhere, names that HDF5 completes"
    folder = elsewhere(tmp_path)
    path = source_h5(tmp_path/"a.h5")
    (tmp_path/"cubes").mkdir()
    path = tmp_path/"cubes"/"a.h5"
    with h5py.File(path, "w") as file:
        file["/Cube/Images"] = np.zeros((2, 3, 4), "u1")
        aside(file, what, folder)
    with pytest.raises(UnreadableImage, match=r"a\.h5.*the values of"): CubeFile(path, axes="chw")
    close_cubes()


@pytest.mark.parametrize("name", ["/away", "/group/a", "/near"])
def test_links_are_not_followed_out_of_a_file(tmp_path, name):
    folder = elsewhere(tmp_path)
    path = tmp_path/"a.h5"
    with h5py.File(path, "w") as file:
        file["/Cube/Images"] = np.zeros((2, 3, 4), "u1")
        file["/away"] = h5py.ExternalLink(str(folder/"secret.h5"), "/a")
        file["/group"] = h5py.ExternalLink(str(folder/"secret.h5"), "/")
        file["/near"] = h5py.SoftLink("/away")
    with pytest.raises(ValueError, match=r"a\.h5"): CubeFile(path, dataset=name, axes="chw")
    assert CubeFile(path, axes="chw").read().sum() == 0
    close_cubes()


def test_a_list_beside_the_cube_is_read_there(tmp_path, monkeypatch):
    "HDF5 by itself looks in the working directory, where another file may be called so"
    (tmp_path/"here").mkdir()
    np.array([900, 910], "<u2").tofile(tmp_path/"here"/"raw")
    np.array([500, 510], "<u2").tofile(tmp_path/"raw")
    with h5py.File(tmp_path/"a.h5", "w") as file:
        file["/Cube/Images"] = np.zeros((2, 3, 4), "u1")
        file.create_dataset("/wavelengths", (2,), "<u2", external=[("raw", 0, 4)])
    monkeypatch.chdir(tmp_path/"here")
    cube = CubeFile(tmp_path/"a.h5", axes="chw")
    assert list(cube.wavelengths) == [500, 510]
    close_cubes()
