"Mean and standard deviation, published and from pieces"
import numpy as np
import pytest
from contrastive_worker import image_set
from data_helpers import own_folders

from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.data.stats import BandStats, STATS

def test_published_stats():
    s = load_set()
    assert s.stats("cifar10_legacy") == ([.4914,.4822,.4465], [.2023,.1994,.2010]) == STATS["cifar10_legacy"]
    s.stats("imagenet")[0][0] = 9
    assert STATS["imagenet"][0] == [.485,.456,.406]
    with pytest.raises(ValueError, match="did you mean 'cifar10_legacy'"): s.stats("cifar_legacy")

def test_pieces_add_up():
    parts = [np.random.default_rng(0).random((4,n)) for n in (3, 0, 7)]
    s = BandStats(4)
    for p in parts: s.add(p)
    x = np.concatenate(parts, 1)
    assert np.allclose(s.mean, x.mean(1)) and np.allclose(s.std, x.std(1))

def test_three_means_of_six_channels_are_an_error_before_any_batch():
    six = image_set(channels=6)
    with pytest.raises(ValueError, match="are of 3 channels and the images have 6; use stats='train'"): image_loaders(six, bs=8, stats=([.5]*3, [.2]*3))
    dls = image_loaders(six, bs=8, stats=([.5]*6, [.2]*6), augment="none", workers=0, device="cpu")
    assert dls.model_kw["in_chans"] == dls.valid.one_batch()["image"].shape[1] == 6
