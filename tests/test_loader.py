"Loading: the same bits whatever the batch, the workers or the starting place; a cache that is whole or absent"
from pathlib import Path

import fastai.callback.progress # gives Learner its `no_bar`
import fastai.callback.schedule # gives Learner its `lr_find`
import numpy as np
import pytest
import torch
from data_helpers import digits, film_set, own_folders, paint, passes, same
from fastai.learner import Learner
from matplotlib import pyplot as plt
from tiny_tasks import skewed
from torch import nn

from vitnb.data.holdout import Split
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.data.stats import STATS
from vitnb.data.table import ImageSet
from vitnb.learner.core import vit_learner

DATA = Path(__file__).resolve().parents[2]/"shared"/"data"

def net(n=192, c=10): return nn.Sequential(nn.Flatten(), nn.Linear(n, c))

def test_batches_are_plain(digits):
    dls = image_loaders(digits, bs=32, augment="shift", device="cpu")
    for dl in (dls.train, dls.valid, dls.test):
        for x,y in dl: assert type(x) is type(y) is torch.Tensor and x.dtype == torch.float32 and y.dtype == torch.int64 and x.shape[1:] == (3,8,8) and x.is_contiguous()
    assert [len(dl) for dl in dls.loaders] == [len(digits.splits["train"])//32, *(-(-len(digits.splits[k])//32) for k in ("valid", "test"))]
    assert dls.n_inp == 1 and dls.c == 10 and dls.vocab == digits.classes and dls.image_set is digits and (dls.mean, dls.std) == tuple(digits.stats()) and dls.img_size == 8

def test_a_batch_has_all_that_its_samples_have():
    s = film_set()
    dls = s.loaders(bs=6, augment="crop_flip", device="cpu", seed=1)
    assert dls.model_kw == dict(img_size=12, in_chans=5, num_classes=dict(zones=(2,4), field=2, age=1)) and dls.tasks == s.tasks
    for b in dls.train:
        i = b["index"]
        assert b["image"].shape == (6,5,12,12) and b["image"].dtype == torch.float32 and b["group"].tolist() == s.splits["train"].groups[i].tolist() and b["weight"].tolist() == (1 + i % 3).tolist()
        seen = dls.train.normalizer.undo(b["image"])[:,0] > 2000.5
        known = b["target"]["field"] != 255
        assert torch.equal(seen[known].long(), b["target"]["field"][known]) and (~known).any() # the map moved as its image did
        zones = torch.from_numpy(s.splits["train"].targets["zones"][i])
        flipped = torch.tensor([not torch.equal(z, y) for z,y in zip(zones, b["target"]["zones"])])
        assert torch.equal(torch.where(flipped[:,None], zones.flip(1), zones), b["target"]["zones"])
    x = torch.cat([b["image"] for b in s.loaders(bs=6, augment="none", device="cpu", sampling="uniform").train])
    assert x.mean((0,2,3)).abs().max() < 1e-3 and (x.std((0,2,3)) - 1).abs().max() < 1e-2 # statistics in units of the stored values

def test_views_are_for_training_only(digits):
    dls = digits.loaders(views=2, bs=32, device="cpu")
    assert dls.valid.one_batch()["image"].ndim == 4 and dls.train.new(views=1).one_batch()["image"].ndim == 4
    for bad in (0, True, 1.5):
        with pytest.raises(ValueError, match="views="): digits.loaders(views=bad, bs=32)

def test_moving_targets_have_the_views_of_their_images():
    b = film_set().loaders(bs=6, augment="crop_flip", device="cpu", seed=1, views=2).train.one_batch()
    assert b["target"]["zones"].shape == (6,2,2) and b["target"]["field"].shape == (6,2,12,12) and b["target"]["age"].shape == (6,)

def test_sampling_that_cannot_be(digits):
    with pytest.raises(ValueError, match="balances the classes of one task"): film_set().loaders(bs=6, sampling="balanced")
    with pytest.raises(ValueError, match="needs a weight for each sample"): digits.loaders(bs=6, sampling="weighted")
    with pytest.raises(ValueError, match="did you mean 'balanced'"): digits.loaders(bs=6, sampling="balancd")

def test_without_a_target_a_batch_is_an_image(digits):
    s = ImageSet("plain", None, {k:Split(v.items) for k,v in digits.splits.items()})
    (x,) = s.loaders(bs=32, device="cpu").one_batch()
    assert x.shape == (32,3,8,8) and "num_classes" not in s.loaders(bs=32, device="cpu").model_kw

def test_other_channels_are_named(digits):
    for kw,says in ((dict(stats="imagenet"), "of 3 channels and the images have 5"), (dict(augment="imagenet", aug_kw=dict(jitter=.4)), "3 channels, and these have 5 of int32")):
        with pytest.raises(ValueError, match=says): film_set().loaders(bs=6, device="cpu", **kw).one_batch()

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

def test_a_batch_larger_than_the_set(digits):
    for drop_last in (True, False):
        with pytest.raises(ValueError, match="larger than the set: it has"): image_loaders(digits, bs=5000, drop_last=drop_last)
    image_loaders(digits, bs=len(digits.splits["train"]), valid_bs=5000, device="cpu")

def test_other_mistakes(digits, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'imagenet'"): image_loaders(digits, stats="imagenett")
    with pytest.raises(ValueError, match="no option 'paddin'"): image_loaders(digits, augment="shift", aug_kw=dict(paddin=1))
    with pytest.raises(ValueError, match="give img_size"): image_loaders(load_set(paint(tmp_path/"noise", ((8,8), (9,9)))), bs=4)
    with pytest.raises(ValueError, match="give img_size"): image_loaders(load_set(paint(tmp_path/"wide", ((8,9),))), bs=4)

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
