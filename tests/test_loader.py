"Loading: the same bits whatever the batch, the workers or the starting place; a cache that is whole or absent"
import gc
import json
import multiprocessing
import os
import pickle
import random
import time
from pathlib import Path

import fastai.callback.progress # gives Learner its `no_bar`
import fastai.callback.schedule # gives Learner its `lr_find`
import numpy as np
import pytest
import torch
from fastai.learner import Learner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from PIL import Image
from tiny_tasks import skewed
from torch import nn

from vitnb.data import loader as loader_module
from vitnb.data import source as source_module
from vitnb.data.augment import Transform
from vitnb.data.loader import image_loaders
from vitnb.data.source import ArraySource, CacheSource, FileSource, build_cache
from vitnb.data.sets import STATS, load_set
from vitnb.data.table import ImageSet, Split
from vitnb.learner.core import vit_learner
from vitnb.task import ClassMap, Ordinal, Value

DATA = Path(__file__).resolve().parents[2]/"shared"/"data"
quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path/"outputs"))
    monkeypatch.setenv("VITNB_DATA_PATH", str(tmp_path/"data"))
    monkeypatch.setenv("VITNB_HEADLESS", "1")

@pytest.fixture(scope="module")
def digits(): return load_set("digits")

def paint(folder, sizes=((12,12),), n=20, mode="RGB"):
    "PNG noise in two class folders, the sizes in turn"
    rng = np.random.default_rng(0)
    for c in ("cat", "dog"):
        (folder/c).mkdir(parents=True)
        for i in range(n):
            h,w = sizes[i%len(sizes)]
            Image.fromarray(rng.integers(0, 256, (h,w,3), dtype=np.uint8)).convert(mode).save(folder/c/f"{i:03}.png")
    return folder

def passes(dl, n=1): return [b for _ in range(n) for b in dl]
def same(a, b): return len(a) == len(b) and all(torch.equal(p, q) and torch.equal(r, s) for (p,r),(q,s) in zip(a, b))

# ---- exactness

def test_batches_are_plain(digits):
    dls = image_loaders(digits, bs=32, augment="shift", device="cpu")
    for dl in (dls.train, dls.valid, dls.test):
        for x,y in dl: assert type(x) is type(y) is torch.Tensor and x.dtype == torch.float32 and y.dtype == torch.int64 and x.shape[1:] == (3,8,8) and x.is_contiguous()
    assert [len(dl) for dl in dls.loaders] == [len(digits.splits["train"])//32, *(-(-len(digits.splits[k])//32) for k in ("valid", "test"))]
    assert dls.n_inp == 1 and dls.c == 10 and dls.vocab == digits.classes and dls.image_set is digits and (dls.mean, dls.std) == tuple(digits.stats()) and dls.img_size == 8

@quick
@given(st.integers(0, 2**31), st.integers(0, 500), st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.sampled_from(["shift", "crop_flip", "advanced"]))
def test_a_sample_needs_seed_epoch_and_index(digits, seed, epoch, idx, augment):
    dl = image_loaders(digits, bs=16, augment=augment, seed=seed, device="cpu").train
    x,y = dl.make_batch(idx, epoch)
    for k in {0, len(idx)//2, len(idx)-1}:
        one,label = dl.make_batch([idx[k]], epoch)
        assert torch.equal(one[0], x[k]) and label[0] == y[k] == digits.splits["train"].labels[idx[k]]

def test_order_is_a_permutation_of_seed_and_epoch(digits):
    dl = image_loaders(digits, augment="none", seed=1, device="cpu").train
    n,orders = len(dl.dataset),[dl.order(e) for e in range(5)]
    for o in orders: assert (np.sort(o) == np.arange(n)).all()
    assert len({o.tobytes() for o in orders}) == 5 and (dl.order(3) == orders[3]).all()
    assert abs(np.mean([np.corrcoef(np.arange(n), o)[0,1] for o in orders])) < .05
    assert not (dl.new(seed=2).order(0) == orders[0]).all()
    assert (dl.new(shuffle=False).order(7) == np.arange(n)).all()

@pytest.mark.parametrize("augment", ["shift", "advanced"])
def test_workers_change_nothing(digits, augment):
    one,two = (image_loaders(digits, bs=100, augment=augment, workers=w, device="cpu").train for w in (0, 2))
    assert same(passes(one, 2), passes(two, 2)) and one.epoch == two.epoch == 2

class Whole(Transform):
    "A transform of one's own that looks at the batch as a whole"
    def __init__(self): self.sizes = []
    def batch(self, x, draws): self.sizes.append(len(x)); return x - x.mean()

@pytest.mark.parametrize("augment", ["none", "shift", "crop_flip", "basic", "advanced", "imagenet"])
@pytest.mark.parametrize("bs", [32, 7, 1])
def test_several_batches_at_a_time_are_each_by_itself(digits, augment, bs, monkeypatch):
    made = []
    monkeypatch.setattr(loader_module._Work, "_several", lambda self, keys, f=loader_module._Work._several: made.append(len(keys)) or f(self, keys))
    dl = image_loaders(load_set("digits", limit=120), 9, bs, augment, seed=3, device="cpu", drop_last=False).train
    assert isinstance(dl, loader_module.ImageLoader) and made == []
    for start in (0, 2):
        dl.set_epoch(2); dl.start = start
        got = passes(dl)
        assert same(got, [dl.make_batch(b, 2) for b in dl.batches(dl.order(2))[start:]])
        assert all(o.untyped_storage().nbytes() == o.nbytes for b in got for o in b) # a batch that is kept keeps no other
    assert made and max(made)*bs*3*81*4 <= loader_module._ROOM

def test_what_may_see_the_whole_batch_sees_one_batch(digits):
    dl = image_loaders(digits, 8, 20, "none", seed=3, device="cpu").train
    dl.pipeline.transforms.append(Whole())
    passes(dl)
    assert set(dl.pipeline.transforms[-1].sizes) == {20}

@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 5, 12])
def test_position_is_restored(digits, workers, start):
    dl = image_loaders(digits, bs=100, augment="shift", workers=workers, device="cpu").train
    whole = passes(dl, 2)
    assert len(dl) == 12 and len(whole) == 24
    dl.set_epoch(0)
    dl.start = start
    assert same(passes(dl, 2), whole[start:]) and dl.start == 0

@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_pass_leaves_no_trace(digits, workers):
    dl = image_loaders(digits, bs=100, augment="shift", workers=workers, device="cpu").train
    whole = passes(dl)
    dl.set_epoch(0)
    for i,_ in enumerate(dl):
        if i == 2: break
    assert dl.epoch == 0 and same(passes(dl), whole) and dl.epoch == 1

def test_a_pass_inside_a_pass(digits):
    dl = image_loaders(digits, bs=300, augment="shift", workers=2, device="cpu").train
    outer,inner = [],[]
    dl.set_epoch(3)
    for b in dl:
        outer.append(b)
        if not inner:
            dl.set_epoch(0)
            inner = passes(dl)
            dl.set_epoch(3)
    fresh = dl.new()
    fresh.set_epoch(0); assert same(inner, passes(fresh))
    fresh.set_epoch(3); assert same(outer, passes(fresh))

@pytest.mark.timeout(120) # each wait would last for days
def test_workers_end_with_their_loader(digits, monkeypatch):
    "torch alone waits for each worker in vain when its loader is collected inside a reference cycle"
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 1e6) # in place of five seconds
    dl = image_loaders(digits, bs=300, augment="shift", workers=2, device="cpu").train
    passes(dl)
    pids = [w.pid for w in dl._passes.loader._iterator._workers]
    del dl
    gc.collect()
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError): os.kill(pid, 0)

def test_set_epoch_and_counting(digits):
    dl = image_loaders(digits, bs=400, augment="shift", device="cpu").train
    first,second = passes(dl),passes(dl)
    assert dl.epoch == 2 and not same(first, second)
    dl.set_epoch(1)
    assert same(passes(dl), second)
    dl.one_batch(); len(dl); dl.order(9)
    assert dl.epoch == 2
    dl.set_epoch(0)
    assert torch.equal(dl.one_batch()[0], first[0][0]) and dl.epoch == 0

@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_stay(digits, workers):
    state = random.getstate(),torch.get_rng_state(),np.random.get_state()[1].copy()
    dls = image_loaders(digits, bs=300, augment="advanced", workers=workers, device="cpu")
    passes(dls.train); passes(dls.valid); dls.one_batch()
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1]) and (np.random.get_state()[1] == state[2]).all()

def test_the_rest_on_the_device_gives_the_same(digits):
    host,device = (image_loaders(digits, bs=200, augment="advanced", on_device=o, device="cpu").train for o in (False, True))
    assert same(passes(host), passes(device))
    split = image_loaders(digits, bs=200, augment="imagenet", on_device=True, device="cpu").train
    made,done = split._work[split._key(0, np.arange(4))]
    assert done == 1 and made[0]["image"].dtype == torch.uint8 # RandomResizedCrop ran beside the disk, one sample at a time; the rest waits
    assert device._work[device._key(0, np.arange(4))][1] == 0

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augment", ["crop_flip", "advanced", "imagenet"])
def test_on_cuda(digits, augment):
    dl,cpu = (image_loaders(digits, bs=128, augment=augment, device=d).train for d in ("cuda", "cpu"))
    first = passes(dl)
    dl.set_epoch(0)
    assert same(first, passes(dl.new(workers=2))) and first[0][0].is_cuda
    cpu.set_epoch(0)
    close = [(a.cpu()-b).abs().gt(.1).float().mean() for (a,_),(b,_) in zip(first, cpu)]
    assert max(close) < .02 # a pixel on the edge of a rounding may differ between devices

# ---- any targets, channels and depth

def films(n=24, channels=5, files=None):
    "Images of 16 bits with two zones, a map that the image shows, an age, patients and weights"
    rng = np.random.default_rng(0)
    def split(n, first):
        image = rng.integers(0, 4000, (n,12,12,channels), dtype=np.uint16)
        targets = dict(zones=rng.integers(0, 5, (n,2)), field=(image[...,0] > 2000).astype(np.uint8), age=rng.random(n)*90)
        items = image
        if files is not None:
            items = [f"{first+i}.npy" for i in range(n)]
            targets["field"] = [f"{first+i}_map.npy" for i in range(n)]
            for p,q,x in zip(items, targets["field"], image): np.save(files/p, x); np.save(files/q, (x[...,0] > 2000).astype(np.uint8))
        return Split(items, targets, groups=[f"p{(first+i)//2}" for i in range(n)], weights=1 + np.arange(n) % 3)
    tasks = dict(zones=Ordinal(("left", "right"), levels=4, unknown=4, flips=dict(hflip=(1,0))), field=ClassMap(("dark", "bright"), unknown=255), age=Value())
    return ImageSet("films", tasks, dict(train=split(n, 0), valid=split(8, 100), test=split(8, 200)), files, reader="native")

def equal(a, b): return a.keys() == b.keys() and all(equal(a[k], b[k]) if isinstance(a[k], dict) else np.array_equal(a[k], b[k]) for k in a)

def test_a_batch_has_all_that_its_samples_have():
    s = films()
    dls = s.loaders(bs=6, augment="crop_flip", device="cpu", seed=1)
    assert dls.model_kw == dict(img_size=12, in_chans=5, num_classes=dict(zones=(2,4), field=2, age=1)) and dls.tasks == s.tasks
    for b in dls.train:
        i = b["index"]
        assert b["image"].shape == (6,5,12,12) and b["image"].dtype == torch.float32 and b["group"].tolist() == s.splits["train"].groups[i].tolist() and b["weight"].tolist() == (1 + i % 3).tolist()
        seen = dls.train._norm().undo(b["image"])[:,0] > 2000.5
        known = b["target"]["field"] != 255
        assert torch.equal(seen[known].long(), b["target"]["field"][known]) and (~known).any() # the map moved as its image did
        zones = torch.from_numpy(s.splits["train"].targets["zones"][i])
        flipped = torch.tensor([not torch.equal(z, y) for z,y in zip(zones, b["target"]["zones"])])
        assert torch.equal(torch.where(flipped[:,None], zones.flip(1), zones), b["target"]["zones"])
    x = torch.cat([b["image"] for b in s.loaders(bs=6, augment="none", device="cpu", sampling="uniform").train])
    assert x.mean((0,2,3)).abs().max() < 1e-3 and (x.std((0,2,3)) - 1).abs().max() < 1e-2 # statistics in units of the stored values

@pytest.mark.parametrize("cache", [True, False])
def test_deep_files_are_the_arrays_they_hold(tmp_path, cache):
    arrays,files = films(),films(files=tmp_path)
    kw = dict(bs=6, augment="crop_flip", device="cpu", seed=1)
    a,b = arrays.loaders(12, **kw),files.loaders(12, cache=cache, **kw)
    for p,q in zip(a.loaders, b.loaders): assert all(equal(x.fields, y.fields) for x,y in zip(p, q)) and len(p) == len(q) > 0
    if cache: assert CacheSource(build_cache(files), "train").dtype == np.uint16 and json.loads((build_cache(files)/"meta.json").read_text())["channels"] == 5

@pytest.mark.parametrize("views", [1, 3])
def test_workers_change_no_field(views):
    one,two = (films().loaders(bs=6, augment="crop_flip", device="cpu", seed=1, workers=w, views=views).train for w in (0, 2))
    assert all(equal(a.fields, b.fields) for _ in range(2) for a,b in zip(passes(one), passes(two)))

def test_many_small_batches_keep_their_own_rows():
    dl = films(60).loaders(bs=2, augment="crop_flip", device="cpu", seed=1).train
    dl.set_epoch(3)
    assert all(equal(b.fields, dl.make_batch(i, 3).fields) for i,b in zip(dl.batches(dl.order(3)), passes(dl)))

@pytest.mark.parametrize("on_device", [False, True])
def test_views_are_functions_of_seed_epoch_index_and_view(digits, on_device):
    kw = dict(bs=32, augment="crop_flip", seed=3, device="cpu")
    dl = digits.loaders(views=3, on_device=on_device, **kw).train
    b = dl.one_batch()
    i,n = b["index"],len(dl.dataset)
    assert b["image"].shape == (32,3,3,8,8) and b["target"].shape == (32,)
    single = digits.loaders(**kw).train
    for v in range(3): assert torch.equal(b["image"][:,v], single.make_batch(i + v*n, 0)["image"]) # a repetition of a sample is looked up alike
    assert (b["image"][:,0] != b["image"][:,1]).flatten(1).any(1).float().mean() > .9
    few = dl.make_batch(i[[5]], 0)
    assert torch.equal(few["image"][0], b["image"][5]) and not torch.equal(dl.make_batch(i, 1)["image"], b["image"])
    again = dl.make_batch(i + n, 0)["image"] # the second time in an epoch
    assert not any(torch.equal(again[:,v], b["image"][:,w]) for v in range(3) for w in range(3))

def test_views_are_for_training_only(digits):
    dls = digits.loaders(views=2, bs=32, device="cpu")
    assert dls.valid.one_batch()["image"].ndim == 4 and dls.train.new(views=1).one_batch()["image"].ndim == 4
    for bad in (0, True, 1.5):
        with pytest.raises(ValueError, match="views="): digits.loaders(views=bad, bs=32)

def test_moving_targets_have_the_views_of_their_images():
    b = films().loaders(bs=6, augment="crop_flip", device="cpu", seed=1, views=2).train.one_batch()
    assert b["target"]["zones"].shape == (6,2,2) and b["target"]["field"].shape == (6,2,12,12) and b["target"]["age"].shape == (6,)

def test_weights_decide_how_often_a_sample_comes():
    s = films(240)
    dl = s.loaders(bs=6, device="cpu").train # a set with weights is drawn by them
    counts = sum(np.bincount(dl.order(e) % 240, minlength=240) for e in range(60))
    share = np.array([counts[np.arange(240) % 3 == k].sum() for k in range(3)])/counts.sum()
    assert np.allclose(share, [1/6, 2/6, 3/6], atol=.02)
    assert (np.sort(s.loaders(bs=6, sampling="uniform", device="cpu").train.order(0)) == np.arange(240)).all()

def test_sampling_that_cannot_be(digits):
    with pytest.raises(ValueError, match="balances the classes of one task"): films().loaders(bs=6, sampling="balanced")
    with pytest.raises(ValueError, match="needs a weight for each sample"): digits.loaders(bs=6, sampling="weighted")
    with pytest.raises(ValueError, match="did you mean 'balanced'"): digits.loaders(bs=6, sampling="balancd")

def test_without_a_target_a_batch_is_an_image(digits):
    s = ImageSet("plain", None, {k:Split(v.items) for k,v in digits.splits.items()})
    (x,) = s.loaders(bs=32, device="cpu").one_batch()
    assert x.shape == (32,3,8,8) and "num_classes" not in s.loaders(bs=32, device="cpu").model_kw

def test_other_channels_are_named(digits):
    for kw,says in ((dict(stats="imagenet"), "of 3 channels and the images have 5"), (dict(augment="imagenet", aug_kw=dict(jitter=.4)), "3 channels, and these have 5 of int32")):
        with pytest.raises(ValueError, match=says): films().loaders(bs=6, device="cpu", **kw).one_batch()

@pytest.mark.parametrize("make", [films, lambda: load_set("digits", limit=20)])
def test_every_kind_of_target_is_shown(make, monkeypatch):
    dls = make().loaders(bs=6, device="cpu", views=2)
    for dl in (dls.train, dls.valid): dl.show_batch(max_n=4)
    plt.close("all")

# ---- every option acts

def test_loader_options_act(digits):
    base = image_loaders(digits, bs=64, augment="shift", device="cpu")
    b = base.train.one_batch()[0]
    def other(**kw): return image_loaders(digits, **dict(bs=64, augment="shift", device="cpu") | kw)
    assert other(img_size=16).one_batch()[0].shape[-1] == 16
    assert len(other(bs=32).one_batch()[1]) == 32
    assert not torch.equal(other(augment="none").one_batch()[0], b) and not torch.equal(other(aug_kw=dict(padding=3)).one_batch()[0], b)
    assert not torch.equal(other(seed=7).one_batch()[0], b)
    assert not torch.equal(other(eval_resize=10).valid.one_batch()[0], base.valid.one_batch()[0])
    assert len(other(valid_bs=10).valid.one_batch()[1]) == 10
    assert other(workers=2).train.workers == 2
    assert len(other(drop_last=False).train) == len(base.train)+1
    for s in ("imagenet", ([.1]*3, [.2]*3)): assert not torch.equal(other(stats=s).one_batch()[0], b)
    assert other(stats="imagenet").mean == STATS["imagenet"][0]
    assert str(other(device="cpu").device) == "cpu"

def test_evaluation_suits_the_recipe(digits):
    for augment,side in (("shift", 32), ("basic", 32), ("advanced", 37), ("imagenet", 37)):
        assert image_loaders(digits, img_size=32, augment=augment, device="cpu").valid.pipeline.transforms[0].size == side

def test_train_normalises_to_mean_0_and_std_1(digits):
    x = torch.cat([x for x,_ in image_loaders(digits, augment="none", drop_last=False, device="cpu").train])
    assert x.mean().abs() < 1e-3 and (x.std()-1).abs() < 1e-3

def test_settings_decide_what_is_not_said(digits, monkeypatch):
    monkeypatch.setenv("VITNB_SEED", "5")
    monkeypatch.setenv("VITNB_WORKERS", "1")
    monkeypatch.setenv("VITNB_DEVICE", "cpu")
    dl = image_loaders(digits).train
    assert dl.seed == 5 and dl.workers == 1 and str(dl.device) == "cpu"

@pytest.mark.parametrize("shape", [(30,6,6), (30,6,6,1), (30,6,6,3)])
def test_arrays_of_any_layout(shape):
    a = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    x = ArraySource(a).read(np.array([4, 2]))
    want = np.broadcast_to(a.reshape(30,6,6,-1), (30,6,6,3))[[4,2]]
    assert (x.permute(0,2,3,1).numpy() == want).all() and x.is_contiguous()

# ---- the cache

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

@pytest.mark.parametrize("cache", [True, False])
def test_workers_change_nothing_from_files(tmp_path, cache):
    s = load_set(paint(tmp_path/"noise", ((12,12), (9,20))))
    one,two = (image_loaders(s, img_size=10, bs=8, augment="imagenet", cache=cache, workers=w, device="cpu").train for w in (0, 2))
    assert same(passes(one), passes(two))

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

def build_and_time(root, out):
    folder = build_cache(load_set(root))
    out.put((str(folder), (folder/"train.bin").stat().st_mtime_ns))

@needs_fork
def test_two_processes_build_one_cache(tmp_path):
    root,out = paint(tmp_path/"noise", n=40),FORK.Queue()
    both = [FORK.Process(target=build_and_time, args=(root, out)) for _ in range(2)]
    for p in both: p.start()
    answers = [out.get(timeout=200) for _ in both]
    for p in both: p.join()
    assert answers[0] == answers[1] # the second one found what the first had built

def test_unreadable_files_are_left_out_of_both(tmp_path, capsys):
    root = paint(tmp_path/"noise")
    bad = load_set(root).path("train", 5)
    bad.write_bytes(bad.read_bytes()[:60])
    for cache in (True, False):
        s = load_set(root, max_bad=.2)
        dls = image_loaders(s, bs=8, cache=cache, device="cpu")
        assert sum(len(dl.dataset) for dl in dls.loaders) == 39 and len(passes(dls.test)) > 0
    with pytest.raises(ValueError, match="max_bad"): image_loaders(load_set(root, max_bad=.01), bs=8, device="cpu")

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

# ---- fastai

def net(n=192, c=10): return nn.Sequential(nn.Flatten(), nn.Linear(n, c))

def test_fastai_learner(digits, tmp_path):
    dls = image_loaders(digits, bs=64, augment="shift", device="cpu")
    learn = Learner(dls, net(), nn.CrossEntropyLoss(), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-3)
        assert dls.train.epoch == 2
        loss = learn.validate()[0]
        for k,split in enumerate(("train", "valid", "test")):
            preds,labels = learn.get_preds(ds_idx=k)
            assert len(preds) == len(digits.splits[split]) and labels.tolist() == digits.splits[split].labels.tolist()
        preds,labels = learn.get_preds(ds_idx=1)
        assert abs(nn.functional.nll_loss(preds.log() if (preds.sum(1)-1).abs().max() < 1e-3 else preds.log_softmax(1), labels).item() - loss) < 1e-2
        learn.lr_find(num_it=30, show_plot=False)
        learn.fit(1, 1e-3)

def test_fastai_shows_and_exports(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    dls = image_loaders(digits, bs=64, augment="shift", device="cpu")
    learn = Learner(dls, net(), nn.CrossEntropyLoss(), path=tmp_path)
    dls.show_batch(max_n=4)
    axes = plt.gcf().axes
    assert [a.get_title() for a in axes] == [digits.classes[int(i)] for i in dls.one_batch()[1][:4]]
    x,y = dls.valid.one_batch()
    dls.valid.show_results((x,y), y, max_n=2)
    assert plt.gcf().axes[0].get_title() == f"{digits.classes[y[0]]} / {digits.classes[y[0]]}"
    plt.close("all")
    learn.export("model.pkl")
    assert (tmp_path/"model.pkl").stat().st_size < 300_000 and len(learn.dls.train) > 0

def test_new_keeps_and_changes(digits):
    dl = image_loaders(digits, bs=64, augment="shift", device="cpu", workers=0).train
    dl.set_epoch(4)
    twin = dl.new()
    assert twin.epoch == 4 and same(passes(dl), passes(twin))
    plain = dl.new(shuffle=False, drop_last=False, num_workers=2)
    assert plain.workers == 2 and len(plain) == len(dl)+1 and plain.get_idxs() == list(range(len(dl.dataset)))
    back = list(range(len(dl.dataset)))[::-1] # as fastai's `get_preds` gives an order
    assert torch.cat([y for _,y in dl.new(get_idxs=lambda: back, drop_last=False)]).tolist() == digits.splits["train"].labels[::-1].tolist()

# ---- mistakes

def test_a_batch_larger_than_the_set(digits):
    for drop_last in (True, False):
        with pytest.raises(ValueError, match="larger than the set: it has"): image_loaders(digits, bs=5000, drop_last=drop_last)
    image_loaders(digits, bs=len(digits.splits["train"]), valid_bs=5000, device="cpu")

@pytest.mark.parametrize("bs", [0, -1, 2.5, True, "64"])
def test_a_batch_size_is_a_whole_number(digits, bs):
    with pytest.raises(ValueError, match="whole number from 1"): image_loaders(digits, bs=bs)

def test_other_mistakes(digits, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'imagenet'"): image_loaders(digits, stats="imagenett")
    with pytest.raises(ValueError, match="no option 'paddin'"): image_loaders(digits, augment="shift", aug_kw=dict(paddin=1))
    with pytest.raises(ValueError, match="give img_size"): image_loaders(load_set(paint(tmp_path/"noise", ((8,8), (9,9)))), bs=4)
    with pytest.raises(ValueError, match="give img_size"): image_loaders(load_set(paint(tmp_path/"wide", ((8,9),))), bs=4)

# ---- real pictures

@pytest.mark.skipif(not (DATA/"tiny-imagenet-20.zip").exists(), reason="the Tiny-ImageNet excerpt is not here")
def test_tiny_imagenet_from_the_cache(tmp_path):
    s = load_set("tiny_imagenet", root=DATA/"tiny-imagenet-20.zip", limit=8)
    dls = image_loaders(s, bs=32, augment="crop_flip", stats="tiny_imagenet", device="cpu")
    assert dls.img_size == 64 and dls.c == 20
    live = image_loaders(s, bs=32, augment="crop_flip", stats="tiny_imagenet", cache=False, device="cpu")
    assert same(passes(dls.valid), passes(live.valid)) and same(passes(dls.train), passes(live.train))


def test_balanced_sampling_is_balanced_and_a_function_of_the_epoch():
    s = skewed()
    make = lambda **kw: image_loaders(s, bs=8, augment="shift", sampling="balanced", seed=4, device="cpu", **kw).train
    dl,n = make(),len(s.splits["train"].labels)
    for _ in range(3): list(dl) # what ran before does not matter
    assert (dl.order(5) == make().order(5)).all() and (dl.order(5) != dl.order(6)).any()
    drawn = np.concatenate([dl.dataset.labels[dl.order(e) % n] for e in range(60)])
    assert np.abs(np.bincount(drawn)/len(drawn) - 1/3).max() < .03
    assert all(len(set(dl.order(e))) == n for e in range(5)), "each repetition is a sample of its own"
    a,b = (torch.cat([x for x,_ in make(workers=w)]) for w in (0, 2))
    assert torch.equal(a, b)


def test_repetitions_have_their_own_augmentation():
    dl = image_loaders(skewed(), bs=8, augment="shift", sampling="balanced", seed=4, device="cpu").train
    n = len(dl.dataset)
    x,y = dl.make_batch(np.array([3, 3+n, 3+2*n, 3+3*n]), 0)
    assert len(set(y.tolist())) == 1 and len({tuple(o.flatten().tolist()) for o in x}) > 1


@pytest.mark.parametrize("w,says", [([1.], "one finite number"), ("neg", "one finite number"), ("zero", "not all 0")])
def test_wrong_sample_weights(w, says):
    dl = image_loaders(skewed(), bs=8, device="cpu").train
    n = len(dl.dataset)
    with pytest.raises(ValueError, match=says): dl.new(sample_weights=dict(neg=[-1.]*n, zero=[0.]*n).get(w, w) if isinstance(w, str) else w)
    with pytest.raises(ValueError, match="shuffle=True"): dl.new(sample_weights=[1.]*n, shuffle=False)


def test_two_batches_are_learnt_by_heart():
    dls = image_loaders(load_set("digits"), bs=16, augment="shift", overfit_batches=2, seed=1, device="cpu")
    (a,ya),(b,yb) = (map(torch.cat, zip(*dl)) for dl in (dls.train, dls.valid))
    assert len(a) == 32 and sorted(ya.tolist()) == sorted(yb.tolist())
    key = lambda x: sorted(tuple(o.flatten().tolist()) for o in x)
    assert key(a) == key(b), "the same pictures, not augmented"
    learn = vit_learner(dls, "densenet_micro", dict(growth_rate=8, block_config=(2, 2)), device="cpu", precision="fp32", lr=.01, seed=1)
    learn.progress.plot = False
    learn.fit(60)
    assert learn.recorder.rows[-1]["accuracy"] == 1.
