"Several processes together load what one would load: the same samples with their own targets, images and cubes alike"
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.data.cube import cube_loaders, load_cube_set
from vitnb.data.sets import load_set
from vitnb.data.shard import shard, shard_loader

@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch): monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))

def digits(**kw): return load_set("digits", limit=21).loaders(**dict(bs=12, augment="crop_flip", device="cpu", seed=2) | kw)
def cubes(**kw): return cube_loaders(load_cube_set("retina_synthetic", n=24, bands=4, size=16), **dict(bs=4, window=8, jitter=2, augment="basic", label=("class", "pixels"), device="cpu", seed=2) | kw)

def parts(o, rows):
    "Some rows of a field"
    return {k:parts(v, rows) for k,v in o.items()} if isinstance(o, dict) else o[rows]

def equal(a, b): return a.keys() == b.keys() and all(equal(a[k], b[k]) if isinstance(a[k], dict) else np.array_equal(a[k], b[k]) for k in a) if isinstance(a, dict) else np.array_equal(a, b)

@given(st.integers(1, 60), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_parts_make_the_whole(n, world):
    if n < world: return
    found = [shard(n, r, world) for r in range(world)]
    assert sorted(np.concatenate(found)) == list(range(n)) and all((np.diff(o) > 0).all() for o in found) and max(map(len, found)) - min(map(len, found)) <= 2
    if n % (2*world) == 0: assert all(set(n-1-o) == set(o) and len(o) == n//world for o in found) # partners of MixUp stay together

@pytest.mark.parametrize("make", [digits, cubes])
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("start", [0, 2])
def test_each_process_has_the_fields_of_its_own_samples(make, world, start):
    dls = make()
    dls.train.set_epoch(1)
    dls.train.start = start
    mine = [shard_loader(dls.train, rank=r, world=world) for r in range(world)]
    for o in mine: o.start = start
    whole = list(dls.train)
    assert len(whole) > 1
    for r,dl in enumerate(mine):
        got = list(dl)
        assert len(got) == len(whole) and len(dl) == len(dls.train) and dl.epoch == 2
        for b,w in zip(got, whole):
            rows = shard(len(w["image"]), r, world)
            assert equal(b.fields, parts(w.fields, rows)) and len(b["target"]["class"] if isinstance(b["target"], dict) else b["target"]) == len(rows) == len(b["image"])

@pytest.mark.parametrize("make", [digits, cubes])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_validation_goes_by_turns_and_every_batch_is_run_once(make, world):
    dls = make()
    whole = list(dls.valid)
    done = {}
    for r in range(world):
        dl = shard_loader(dls.valid, round_robin=True, rank=r, world=world)
        got = list(dl)
        assert dl.round_robin and len(got) == len(dl) == -(-len(whole)//world) and dl.n_batches == len(whole)
        for i,b in enumerate(got):
            k = dl.batch_number(i)
            assert equal(b.fields, whole[k].fields) and dl.samples(k) == len(b["image"])
            if not dl.is_extra(i): assert done.setdefault(k, r) == r
    assert sorted(done) == list(range(len(whole))) and sum(dl.samples(i) for i in range(len(whole))) == len(dls.valid.dataset)

def test_places_in_the_order_of_the_epoch():
    dls = digits(drop_last=False)
    order = dls.train.order(0)
    for r in range(2):
        dl = shard_loader(dls.train, rank=r, world=2)
        for i,b in enumerate(dl): assert (order[dl.positions(i, len(b["image"]))] == b["index"]).all()
        dl = shard_loader(dls.valid, round_robin=True, rank=r, world=2)
        for i,b in enumerate(dl): assert (dl.positions(i, len(b["image"])) == b["index"]).all()

def test_views_and_weights_are_shared_out_too():
    dls = digits(views=2, sampling="balanced")
    for w,a,b in zip(dls.train, *(shard_loader(dls.train.new(), rank=r, world=2) for r in range(2))):
        for r,o in enumerate((a, b)): assert torch.equal(o["image"], w["image"][shard(12, r, 2)])

def test_what_cannot_be_shared_is_said():
    with pytest.raises(ValueError, match="cannot be divided among 4"): shard(3, 0, 4)
    with pytest.raises(ValueError, match="cannot be shared by processes"): shard_loader(torch.utils.data.DataLoader([1,2]))
