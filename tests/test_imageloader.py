"The same bits whatever the batch or the starting place"
import random

import numpy as np
import pytest
import torch
from data_helpers import digits, film_set, own_folders, passes, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_tasks import skewed

from vitnb.data.loader import image_loaders

quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

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

def test_weights_decide_how_often_a_sample_comes():
    s = film_set(240)
    dl = s.loaders(bs=6, device="cpu").train # a set with weights is drawn by them
    counts = sum(np.bincount(dl.order(e) % 240, minlength=240) for e in range(60))
    share = np.array([counts[np.arange(240) % 3 == k].sum() for k in range(3)])/counts.sum()
    assert np.allclose(share, [1/6, 2/6, 3/6], atol=.02)
    assert (np.sort(s.loaders(bs=6, sampling="uniform", device="cpu").train.order(0)) == np.arange(240)).all()

def test_new_keeps_and_changes(digits):
    dl = image_loaders(digits, bs=64, augment="shift", device="cpu", workers=0).train
    dl.set_epoch(4)
    twin = dl.new()
    assert twin.epoch == 4 and same(passes(dl), passes(twin))
    plain = dl.new(shuffle=False, drop_last=False, num_workers=2)
    assert plain.workers == 2 and len(plain) == len(dl)+1 and plain.get_idxs() == list(range(len(dl.dataset)))
    back = list(range(len(dl.dataset)))[::-1] # as fastai's `get_preds` gives an order
    assert torch.cat([y for _,y in dl.new(get_idxs=lambda: back, drop_last=False)]).tolist() == digits.splits["train"].labels[::-1].tolist()

@pytest.mark.parametrize("bs", [0, -1, 2.5, True, "64"])
def test_a_batch_size_is_a_whole_number(digits, bs):
    with pytest.raises(ValueError, match="whole number from 1"): image_loaders(digits, bs=bs)

@pytest.mark.parametrize("w,says", [([1.], "one finite number"), ("neg", "one finite number"), ("zero", "not all 0")])
def test_wrong_sample_weights(w, says):
    dl = image_loaders(skewed(), bs=8, device="cpu").train
    n = len(dl.dataset)
    with pytest.raises(ValueError, match=says): dl.new(sample_weights=dict(neg=[-1.]*n, zero=[0.]*n).get(w, w) if isinstance(w, str) else w)
    with pytest.raises(ValueError, match="shuffle=True"): dl.new(sample_weights=[1.]*n, shuffle=False)
