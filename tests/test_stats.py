"Mean and standard deviation, published and from pieces"
import numpy as np
import pytest
from data_helpers import own_folders

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
