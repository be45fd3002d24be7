"Batches are each by itself, however they are made"
import numpy as np
import pytest
import torch
from data_helpers import digits, equal, film_set, own_folders, passes, same

from vitnb.data import imageloader, work
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.data.transform import Transform

class Whole(Transform):
    "A transform of one's own that looks at the batch as a whole"
    def __init__(self): self.sizes = []
    def batch(self, x, draws): self.sizes.append(len(x)); return x - x.mean()

@pytest.mark.parametrize("augment", ["none", "shift", "crop_flip", "basic", "advanced", "imagenet"])
@pytest.mark.parametrize("bs", [32, 7, 1])
def test_several_batches_at_a_time_are_each_by_itself(digits, augment, bs, monkeypatch):
    made = []
    monkeypatch.setattr(work.BatchWork, "_make_several", lambda self, keys, f=work.BatchWork._make_several: made.append(len(keys)) or f(self, keys))
    dl = image_loaders(load_set("digits", limit=120), 9, bs, augment, seed=3, device="cpu", drop_last=False).train
    assert isinstance(dl, imageloader.ImageLoader) and made == []
    for start in (0, 2):
        dl.set_epoch(2); dl.start = start
        got = passes(dl)
        assert same(got, [dl.make_batch(b, 2) for b in dl.batches(dl.order(2))[start:]])
        assert all(o.untyped_storage().nbytes() == o.nbytes for b in got for o in b) # a batch that is kept keeps no other
    assert made and max(made)*bs*3*81*4 <= work._ROOM

def test_what_may_see_the_whole_batch_sees_one_batch(digits):
    dl = image_loaders(digits, 8, 20, "none", seed=3, device="cpu").train
    dl.pipeline.transforms.append(Whole())
    passes(dl)
    assert set(dl.pipeline.transforms[-1].sizes) == {20}

def test_the_rest_on_the_device_gives_the_same(digits):
    host,device = (image_loaders(digits, bs=200, augment="advanced", on_device=o, device="cpu").train for o in (False, True))
    assert same(passes(host), passes(device))
    split = image_loaders(digits, bs=200, augment="imagenet", on_device=True, device="cpu").train
    made,done = split._work[split._keys(0, [np.arange(4)])[0]]
    assert done == 1 and made[0]["image"].dtype == torch.uint8 # RandomResizedCrop ran beside the disk, one sample at a time; the rest waits
    assert device._work[device._keys(0, [np.arange(4)])[0]][1] == 0

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

def test_many_small_batches_keep_their_own_rows():
    dl = film_set(60).loaders(bs=2, augment="crop_flip", device="cpu", seed=1).train
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
