"Loaders of cubes: what a batch holds, workers, options, and a pass that goes on"
import pickle

import numpy as np
import pytest
import torch
from cube_files import fields, own_cache, pair, same_batches

from vitnb.data.cube import IGNORE, cube_loaders, load_cube_set
from vitnb.learner.core import vit_learner


def test_batches_of_workers_keep_their_values_while_somebody_holds_them(pair):
    here,there = pair
    kept = list(there) # more than there are places
    assert len(kept) > len(there._passes.slots.memory)
    first = there._passes.slots.memory.numpy()
    assert sum(np.shares_memory(x.numpy(), first) for x,_ in kept) == len(first) # the rest is in memory of its own
    part = kept[0][0][1:,:2] # a view holds its place as well
    before,kept = part.clone(),kept[:2]
    for _ in range(2): assert sum(1 for _ in there) == len(here)
    assert torch.equal(part, before) and same_batches(kept, list(here)[:2])


def test_the_places_of_batches_are_readn_again(pair):
    here,there = pair
    where = [x.data_ptr() for x,_ in there]
    places = len(there._passes.slots.memory)
    assert len(set(where)) <= places < len(where)
    for epoch in (3, 4): # a pass that somebody leaves costs no place
        next(iter(there))
        for dl in pair: dl.set_epoch(epoch)
        assert same_batches(list(here), [b.map(torch.clone) for b in there])
    assert len(there._passes.slots.free) == places and not there._passes.slots.lent


def test_a_batch_too_large_for_its_place_goes_another_way(pair, monkeypatch):
    here,there = pair
    monkeypatch.setattr(type(there.dataset), "room", lambda self, n: 64)
    assert same_batches(list(here), list(there))
    slots = there._passes.slots
    assert slots.memory.shape[1] == 64 and len(slots.free) == len(slots.memory)


def test_every_target_of_windows_fits_its_place():
    s = load_cube_set("retina_synthetic", n=6, bands=6, size=32)
    for kw in (dict(), dict(label="class"), dict(label="pixels"), dict(rgb=True), dict(label=("class", "pixels"), rgb=True)):
        dl = cube_loaders(s, workers=1, bs=3, window=16, augment="guide", seed=1, device="cpu", **kw).train
        assert all(np.shares_memory(b["image"].numpy(), dl._passes.slots.memory.numpy()) for b in dl), kw


def test_batches_are_as_promised():
    s = load_cube_set(n=12, size=32)
    dls = cube_loaders(s, bs=4, device="cpu")
    b = dls.one_batch()
    x,valid = fields(b)
    assert type(x) is torch.Tensor and (x.shape, x.dtype, valid.shape, valid.dtype) == ((4,30,32,32), torch.float32, (4,1,32,32), torch.bool)
    assert len(b) == 1 and b.get("target") is None and dls.tasks == {} and set(b["group"]) <= {r.group for r in s.records}
    assert dls.wavelengths.tolist() == [*range(450, 731, 10), 850] and dls.rgb_bands == [12,8,1] and (dls.c, dls.img_size) == (30, 32)
    assert dls.model_kw == dict(img_size=32, in_chans=30) and dls.model_hints == dict(wavelengths=[*range(450, 731, 10), 850])
    assert dls.fingerprint == s.fingerprint == load_cube_set(n=12, size=32).fingerprint != load_cube_set(n=12, size=32, seed=1).fingerprint
    assert cube_loaders(s, bs=4, label="class", device="cpu").one_batch()[1].dtype == torch.int64
    assert cube_loaders(s, bs=4, rgb=True, device="cpu").one_batch()["rgb"].shape == (4,3,32,32)
    assert cube_loaders(s, bs=4, label="class", device="cpu").c == 6


def test_a_window_has_a_class_and_its_pixels_have_some():
    s = load_cube_set(n=12, size=32)
    one,two,both = (cube_loaders(s, bs=4, label=k, augment="flip", seed=3, device="cpu") for k in ("class", "pixels", ("class", "pixels")))
    assert list(both.tasks) == ["class", "pixels"] and both.model_kw["num_classes"] == {"class":6, "pixels":4}
    for a,b,c in zip(one.train, two.train, both.train): assert torch.equal(a[1], c["target"]["class"]) and torch.equal(b[1], c["target"]["pixels"]) and torch.equal(a["image"], c["image"])


def test_views_of_a_window_lie_apart_and_keep_their_masks():
    s = load_cube_set(n=12, size=32)
    dls = cube_loaders(s, bs=3, window=16, jitter=4, views=2, seed=1, label="pixels", device="cpu")
    b = dls.one_batch()
    assert (b["image"].shape, b["mask"].shape, b["target"].shape) == ((3,2,30,16,16), (3,2,1,16,16), (3,2,16,16))
    assert not torch.equal(b["image"][:,0], b["image"][:,1])
    assert (b["target"][~b["mask"][:,:,0]] == IGNORE).all() and (b["target"][b["mask"][:,:,0]] >= 0).all()
    assert dls.valid.one_batch()["image"].ndim == 4


def test_each_option_of_the_loaders_acts():
    s = load_cube_set(n=12, size=32)
    def first(**kw): return cube_loaders(s, device="cpu", **{**dict(bs=4, seed=1), **kw}).train
    base = first().one_batch()[0]
    for kw in (dict(seed=2), dict(normalize="zscore"), dict(background=.5), dict(window=16), dict(augment="basic")): assert not torch.equal(base, first(**kw).one_batch()[0]), kw
    assert len(first(window=16, stride=4).dataset) > len(first(window=16).dataset)
    a,b = (first(window=16, jitter=j).one_batch()[0] for j in (0, 5))
    assert not torch.equal(a, b)
    some = cube_loaders(s, bs=1, device="cpu", windows=dict(train=[[0,3,4]]), window=8)
    assert len(some.train.dataset) == 1 and np.allclose(some.normalizer.denormalize(some.train.one_batch()[0])[0], s.records[0].source.read(3, 4, 8, 8), atol=1e-2)
    assert len(cube_loaders(s, bs=5, device="cpu", drop_last=False).train) == len(cube_loaders(s, bs=5, device="cpu").train) + 1


def test_training_goes_on_exactly_where_it_was(tmp_path):
    "The engine's own resume, on cubes"
    s = load_cube_set(n=12, size=16, bands=4)
    def learner(workers=0):
        dls = cube_loaders(s, bs=2, window=8, stride=8, jitter=2, augment="basic", label="class", device="cpu", seed=4, workers=workers)
        return vit_learner(dls, "swin_micro", dict(in_chans=4, embed_dim=16, depths=(1,1), num_heads=(2,2), patch_size=1), seed=4, path=tmp_path, precision="fp32")
    whole,first,second = learner(),learner(),learner(2)
    whole.fit(2)
    class Stop(Exception): pass
    from fastai.callback.core import Callback
    class At(Callback):
        def after_batch(self):
            if self.training and self.learn.opt_steps == 7: self.learn.kept = pickle.loads(pickle.dumps(self.learn.training_state())); raise Stop
    with pytest.raises(Stop): first.fit(2, cbs=At())
    second.fit(2, resume=first.kept)
    for a,b in zip(whole.model.state_dict().values(), second.model.state_dict().values()): assert torch.equal(a, b)
