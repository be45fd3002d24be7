"New images and cubes are read as validation reads, from plain values alone"
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vitnb.data.cube import CubeArray, CubeRecord, CubeSet, cube_loaders, load_cube_set
from vitnb.data.evaluate import eval_reader
from vitnb.data.sets import load_set
from vitnb.data.holdout import Split
from vitnb.data.table import ImageSet
from vitnb.task import OneClass

@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))
    monkeypatch.setenv("VITNB_HEADLESS", "1")

def kept(dls): return json.loads(json.dumps(dls.config())) # as a run folder keeps it
def images(dl): return torch.cat([b["image"] for b in dl])

def folder(root, modes=("RGB", "L", "RGBA"), n=12):
    rng = np.random.default_rng(0)
    for c in "ab":
        (root/c).mkdir(parents=True)
        for i in range(n):
            h,w = ((20,26), (24,24), (31,18))[i % 3]
            Image.fromarray(rng.integers(0, 256, (h,w,3), dtype=np.uint8)).convert(modes[i % len(modes)]).save(root/c/f"{i}.png")
    return root

@pytest.mark.parametrize("augment", ["basic", "advanced", "imagenet"])
@pytest.mark.parametrize("reader", [None, "grey"])
def test_files_are_read_as_validation_reads_them(tmp_path, augment, reader):
    s = load_set(folder(tmp_path/"s"), reader=reader)
    aug_kw = dict(num_ops=0) if augment == "advanced" else None
    dls = s.loaders(16, bs=4, augment=augment, aug_kw=aug_kw, device="cpu")
    paths = [s.path("test", i) for i in range(len(s.splits["test"]))]
    r = eval_reader(kept(dls))
    assert torch.equal(r.read(paths)["image"], images(dls.test)) and images(dls.test).shape[1] == (1 if reader else 3)
    for k in (1, 3): assert torch.equal(torch.cat([b["image"] for b in r.batches(paths, bs=k)]), images(dls.test))
    assert np.concatenate([b["index"] for b in r.batches(paths, bs=2)]).tolist() == list(range(len(paths)))

def test_deep_files_of_many_channels(tmp_path):
    rng = np.random.default_rng(0)
    parts = {}
    for k in ("train", "valid", "test"):
        for i in range(6): np.save(tmp_path/f"{k}{i}.npy", rng.integers(0, 60_000, (9,9,5), dtype=np.uint16))
        parts[k] = Split([f"{k}{i}.npy" for i in range(6)], np.arange(6) % 2)
    dls = ImageSet("deep", OneClass(("a", "b")), parts, tmp_path, reader="native").loaders(8, bs=3, device="cpu")
    r = eval_reader(kept(dls))
    assert torch.equal(r.read([tmp_path/f"test{i}.npy" for i in range(6)])["image"], images(dls.test))
    assert torch.equal(r.read([np.load(tmp_path/f"test{i}.npy") for i in range(6)])["image"], images(dls.test))

@pytest.mark.parametrize("normalize", ["none", "log", "zscore"])
def test_cubes_with_their_valid_pixels(normalize):
    s = load_cube_set("retina_synthetic", n=12, bands=6, size=16)
    for cubes in (s, s.keep_bands([0, 4, 2])):
        dls = cube_loaders(cubes, bs=2, normalize=normalize, background=.5, device="cpu", label="class")
        b = eval_reader(kept(dls)).read([s.records[i].source.array for i in s.splits["test"]])
        assert torch.equal(b["image"], images(dls.test)) and torch.equal(b["mask"], torch.cat([o["mask"] for o in dls.test])) and not b["mask"].all()

def test_cube_files_of_unusual_layout(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["ID,label,hs_file"]
    for i in range(8):
        np.save(tmp_path/f"c{i}.npy", (rng.random((6,5,4))*1e4).astype(np.uint16)) # rows, columns, bands
        lines.append(f"p{i},{'ab'[i % 2]},c{i}.npy")
    (tmp_path/"set.csv").write_text("\n".join(lines))
    s = load_cube_set(tmp_path/"set.csv", axes="hwc", scale=1e-4)
    dls = cube_loaders(s, bs=1, device="cpu")
    paths = [s.records[i].source.path for i in s.splits["test"]]
    assert torch.equal(eval_reader(kept(dls)).read(paths)["image"], images(dls.test)) and dls.config()["reader"]["axes"] == "hwc"

def test_a_fresh_process_needs_nothing_else(tmp_path):
    s = load_set(folder(tmp_path/"s"))
    dls = s.loaders(16, bs=4, device="cpu")
    (tmp_path/"config.json").write_text(json.dumps(dls.config()))
    torch.save(images(dls.test), tmp_path/"want.pt")
    code = ("import json, sys, torch; from vitnb.data.evaluate import eval_reader; r = eval_reader(json.load(open(sys.argv[1])));"
            "assert torch.equal(r.read(sys.argv[3:])['image'], torch.load(sys.argv[2])); print('same')")
    paths = [str(s.path("test", i)) for i in range(len(s.splits["test"]))]
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path/"config.json"), str(tmp_path/"want.pt"), *paths], capture_output=True, text=True)
    assert out.stdout.strip() == "same", out.stderr

@pytest.mark.parametrize("change, says", [
    (dict(reader=dict(name="rbg")), "did you mean 'rgb'.*import the module"),
    (dict(normalize=dict(name="Normalise", mean=[0], std=[1])), "did you mean 'Normalize'.*import the module"),
    (dict(transform=[]), "did you mean 'transforms'"),
])
def test_a_configuration_that_names_nothing(change, says):
    config = load_set("digits", limit=10).loaders(bs=8, device="cpu").config()
    with pytest.raises(ValueError, match=says): eval_reader(config | change)

def test_bad_items():
    r = eval_reader(load_set("digits", limit=10).loaders(bs=8, device="cpu").config())
    with pytest.raises(ValueError, match="nothing to read"): r.read([])
    with pytest.raises(ValueError, match="No such file"): r.read(["nowhere.png"])
    with pytest.raises(ValueError, match="use reader='native'"): r.read([np.zeros((4,4,7))])
    c = CubeSet("s", [CubeRecord(CubeArray(np.ones((3,4,4), np.float32)), f"c{i}") for i in range(3)], dict(train=[0], valid=[1], test=[2]))
    with pytest.raises(ValueError, match="no cube"): eval_reader(cube_loaders(c, bs=1, device="cpu").config()).read([np.zeros((4,4))])
