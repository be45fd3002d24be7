"Files of cubes that several tests write, and a cache of their own"
import numpy as np
import pytest
import torch
from scipy.io import savemat

from vitnb.data.cube import IGNORE, close_cubes, cube_loaders, load_cube_set
from vitnb.task import ClassMap, Tasks

h5py = pytest.importorskip("h5py")

CUBE = np.random.default_rng(0).random((6,20,16), dtype=np.float32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))
    yield
    close_cubes()


def write_h5(path, a=CUBE, name="Cube/Images", head=b"", **kw):
    "An HDF5 file, with MATLAB's heading if `head` is given"
    with h5py.File(path, "w", userblock_size=512 if head else 0) as f: f.create_dataset(name, data=a, **kw)
    if head:
        with open(path, "r+b") as f: f.write(head)
    return path


def write_npy(path, a=CUBE):
    np.save(path, a)
    return path


def write_mat(path, **arrays):
    savemat(path, arrays, do_compression=True)
    return path


V73 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64"


def h5_set(tmp_path, n=6, **kw):
    for i in range(n): write_h5(tmp_path/f"c{i}.h5", CUBE + i, chunks=(6,8,8), compression="gzip")
    (tmp_path/"set.csv").write_text("ID,label,hs_file,rgb_file\n" + "".join(f"p{i},{'ab'[i%2]},c{i}.h5,\n" for i in range(n)))
    return load_cube_set(tmp_path/"set.csv", **kw)


@pytest.fixture
def pair():
    "The same loader without and with workers"
    s = load_cube_set("retina_synthetic", n=10, bands=6, size=32)
    kw = dict(bs=2, window=16, augment="basic", label="pixels", rgb=True, seed=1, device="cpu")
    return [cube_loaders(s, workers=w, **kw).train for w in (0, 2)]


FIELDS = "image", "mask", "rgb", "target"


def same_batches(a, b): return len(a) == len(b) and all(torch.equal(u[k], v[k]) for u,v in zip(a, b) for k in FIELDS)


def fields(b): return b["image"], b["mask"]


def batch(seed, B=3, C=4, H=12, W=10, filled=.7):
    "Random windows with holes, companion images and classes"
    rng = np.random.default_rng(seed)
    valid = torch.from_numpy(rng.random((B,1,H,W)) < filled)
    cube = torch.from_numpy(rng.uniform(1e-4, 1.2, (B,C,H,W)).astype(np.float32))
    truth = torch.where(valid[:,0], torch.from_numpy(rng.integers(0, 5, (B,H,W))), IGNORE)
    return dict(image=torch.where(valid, cube, 0.), mask=valid, rgb=torch.rand(B,3,H,W), target=truth, tasks=PARTS)


PARTS = Tasks.of(ClassMap(tuple("abcde"), unknown=IGNORE))


def rows(tmp_path, *lines): (tmp_path/"set.csv").write_text("ID,label,hs_file,rgb_file\n" + "\n".join(lines) + "\n"); return tmp_path/"set.csv"


def four(tmp_path):
    for i in range(4): write_npy(tmp_path/f"c{i}.npy")
    return [f"p{i},a,c{i}.npy," for i in range(4)]


NM = np.linspace(400, 1000, 6)
ENVI_TYPES = dict(u1=1, i2=2, i4=3, f4=4, f8=5, u2=12, u4=13)


def write_envi(folder, cube=CUBE, kind="f4", order="<", interleave="bsq", offset=0, name="scene", ending=".dat", head="", nm=NM/1000, unit="Micrometers"):
    "An ENVI pair as cameras write it; cube is (bands, rows, columns)"
    bands,lines,samples = cube.shape
    axes = dict(bsq=(0,1,2), bil=(1,0,2), bip=(1,2,0))[interleave.lower()]
    (folder/f"{name}{ending}").write_bytes(bytes(offset) + cube.transpose(axes).astype(order + kind).tobytes())
    waves = "" if nm is None else f"wavelength units = {unit}\nwavelength = {{\n{', '.join(f'{v:.6f}' for v in nm)} }}\n"
    (folder/f"{name}.hdr").write_text(f"ENVI\ndescription = {{ made\n by = a test }}\nsamples = {samples}\nlines   = {lines}\nbands   = {bands}\n"
        f"header offset = {offset}\nfile type = ENVI Standard\ndata type = {ENVI_TYPES[kind]}\ninterleave = {interleave}\nbyte order = {int(order == '>')}\n{waves}{head}")
    return folder/f"{name}.hdr"
