"Arrays, files, and a cache that is whole or absent"
import json
import multiprocessing
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from data_helpers import folder, own_folders, paint, passes, same

from vitnb.data import source as source_module
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.data.source import ArraySource, build_cache, CacheSource, FileSource

FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None

needs_fork = pytest.mark.skipif(FORK is None, reason="this system cannot fork")

def build_slowly(root, written):
    "Build a cache and stay in the middle of it"
    real = source_module._write_split
    def slow(*a, **kw):
        real(*a, **kw)
        written.set()
        time.sleep(600) # until it is killed
    source_module._write_split = slow
    build_cache(load_set(root))

def build_and_time(root, out):
    folder = build_cache(load_set(root))
    out.put((str(folder), (folder/"train.bin").stat().st_mtime_ns))

@pytest.mark.parametrize("shape", [(30,6,6), (30,6,6,1), (30,6,6,3)])
def test_arrays_of_any_layout(shape):
    a = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    x = ArraySource(a).read(np.array([4, 2]))
    want = np.broadcast_to(a.reshape(30,6,6,-1), (30,6,6,3))[[4,2]]
    assert (x.permute(0,2,3,1).numpy() == want).all() and x.is_contiguous()

@pytest.mark.parametrize("sizes", [((12,12),), ((12,12), (9,20), (30,14))], ids=["uniform", "ragged"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_cache_is_live_decoding(tmp_path, sizes, mode):
    s = load_set(paint(tmp_path/"noise", sizes, mode=mode))
    folder = build_cache(s)
    for split in s.splits:
        a,b,idx = CacheSource(folder, split),FileSource(s, split),np.random.default_rng(0).permutation(len(s.splits[split]))
        assert len(a) == len(b) and (split != "train" or (a.size is None) == (len(sizes) > 1))
        for k in (1, 5): assert all(torch.equal(p, q) for p,q in zip(a.read(idx[:k]), b.read(idx[:k])))
    kw = dict(img_size=10, bs=8, augment="advanced", device="cpu")
    assert same(passes(image_loaders(s, **kw).train, 2), passes(image_loaders(s, cache=False, **kw).train, 2))

def test_cache_size_shrinks_and_never_enlarges(tmp_path):
    s = load_set(paint(tmp_path/"noise", ((12,12), (40,20), (20,50))))
    c = CacheSource(build_cache(s, size=16), "train")
    assert {tuple(o) for o in c.shapes} == {(12,12), (32,16), (16,40)}
    assert build_cache(s, size=16) != build_cache(s)
    dls = image_loaders(s, img_size=8, bs=8, cache_size=16, device="cpu")
    assert not torch.equal(dls.one_batch()[0], image_loaders(s, img_size=8, bs=8, device="cpu").one_batch()[0])

def test_cache_is_used_again_and_built_anew_when_a_file_changes(tmp_path):
    root = paint(tmp_path/"noise")
    s = load_set(root)
    folder = build_cache(s)
    def when(): return (folder/"train.bin").stat().st_mtime_ns
    built = when()
    assert build_cache(load_set(root)) == folder and when() == built
    file = s.path("train", 3)
    size = file.stat().st_size
    raw = np.asarray(Image.open(file)).copy()
    for shade in range(256): # another picture in a file of the same length: only its time tells
        Image.fromarray(np.roll(raw, shade+1, 0)).save(file)
        if file.stat().st_size == size and not (np.roll(raw, shade+1, 0) == raw).all(): break
    os.utime(file, ns=(1, 1))
    again = load_set(root)
    assert CacheSource(build_cache(again), "train").read(np.array([3])).equal(FileSource(again, "train").read(np.array([3])))
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()].count(folder.name) == 1

def test_other_images_are_another_cache(tmp_path):
    root = paint(tmp_path/"noise")
    one = build_cache(load_set(root))
    Image.fromarray(np.zeros((12,12,3), np.uint8)).save(root/"cat"/"new.png")
    assert build_cache(load_set(root)) != one

def test_a_cut_cache_file_is_noticed(tmp_path):
    s = load_set(paint(tmp_path/"noise"))
    folder = build_cache(s)
    whole = (folder/"train.bin").read_bytes()
    os.truncate(folder/"train.bin", 100)
    assert build_cache(s) == folder and (folder/"train.bin").read_bytes() == whole
    (folder/"valid.npy").unlink()
    assert build_cache(s) == folder and (folder/"valid.npy").is_file()
    (folder/"meta.json").write_text("{")
    assert build_cache(s) == folder and json.loads((folder/"meta.json").read_text())["size"] is None

def test_an_error_while_building_leaves_nothing(tmp_path, monkeypatch):
    s = load_set(paint(tmp_path/"noise"))
    real,calls = source_module._write_split,[]
    def full(*a, **kw):
        calls.append(1)
        if len(calls) == 2: raise OSError(28, "No space left on device")
        return real(*a, **kw)
    monkeypatch.setattr(source_module, "_write_split", full)
    with pytest.raises(OSError, match="No space left"): build_cache(s)
    assert [p for p in (tmp_path/"cache").iterdir() if "full" in p.name and p.is_dir()] == []
    monkeypatch.setattr(source_module, "_write_split", real)
    build_cache(s)

@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux says which file a descriptor is of")
def test_a_full_disk_names_the_file_of_the_cache(tmp_path, monkeypatch):
    s = load_set(paint(tmp_path/"noise"))
    real = os.fsync
    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("train.bin"): raise OSError(28, "No space left on device")
        return real(descriptor)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="make room there.*train.bin"): build_cache(s)

@needs_fork
def test_a_killed_build_leaves_nothing_half_built(tmp_path):
    root,written = paint(tmp_path/"noise", n=40),FORK.Event()
    p = FORK.Process(target=build_slowly, args=(root, written))
    p.start()
    assert written.wait(200)
    p.kill()
    p.join()
    s = load_set(root)
    name = f"noise-{s.fingerprint[:8]}-full"
    assert not (tmp_path/"cache"/name).exists() and (tmp_path/"cache"/f".{name}.new").exists()
    folder = build_cache(s)
    assert folder.name == name and not (tmp_path/"cache"/f".{name}.new").exists()
    assert CacheSource(folder, "test").read(np.arange(3)).equal(FileSource(s, "test").read(np.arange(3)))

@needs_fork
def test_two_processes_build_one_cache(tmp_path):
    root,out = paint(tmp_path/"noise", n=40),FORK.Queue()
    both = [FORK.Process(target=build_and_time, args=(root, out)) for _ in range(2)]
    for p in both: p.start()
    answers = [out.get(timeout=200) for _ in both]
    for p in both: p.join()
    assert answers[0] == answers[1] # the second one found what the first had built

def test_a_disk_that_is_too_small_is_said_before(tmp_path, monkeypatch):
    s = load_set(paint(tmp_path/"noise"))
    monkeypatch.setattr(source_module.shutil, "disk_usage", lambda p: type("U", (), dict(free=1000))())
    with pytest.raises(ValueError, match="cache=False"): build_cache(s)

def test_a_worker_reopens_the_map(tmp_path):
    s = load_set(paint(tmp_path/"noise", n=100))
    c = CacheSource(build_cache(s), "train")
    x = c.read(np.arange(4))
    sent = pickle.dumps(c)
    assert len(sent) < 5000 and pickle.loads(sent).read(np.arange(4)).equal(x)
