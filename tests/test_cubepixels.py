"Labelled pixels: the network's window and its surroundings are of the same pixel, and splits stay apart"
import numpy as np
import pytest
from cube_files import own_cache # noqa: F401, keeps the cache apart

from vitnb.data.cube import load_cube_set, scene_set
from vitnb.data.cubefile import CubeArray
from vitnb.data.cubepixels import pixel_loaders, some_windows

rng = np.random.default_rng(0)
LABELS = np.kron(rng.integers(0, 4, (12,12)), np.ones((3,3), int))
LAND = (rng.random((10,36,36))*.5 + .1).astype("f4")


@pytest.fixture(scope="module")
def land(): return scene_set("land", CubeArray(LAND), LABELS, block=9, guard=1)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 6])
def test_the_window_is_around_the_labelled_pixel_and_so_is_the_wide_one(land, window):
    dls,wide = pixel_loaders(land, window, 4, 6, seed=3, patch_size=(1,5), normalize="none", bs=4, device="cpu", workers=0)
    area = max(window, 3)
    for one,around in zip(dls.loaders, wide.loaders):
        places = around.dataset.source.where[:,1:] + area//2
        assert np.array_equal(one.dataset.source.where[:,1:] + window//2, places)
        assert np.array_equal(one.dataset.labels, LABELS[tuple(places.T)] - 1) and np.array_equal(one.dataset.labels, around.dataset.labels)
    x,y = (loaders.test.make_batch(np.arange(5), 0)["image"] for loaders in (dls, wide))
    assert np.array_equal(x[:,:,window//2,window//2], y[:,:,area//2,area//2])
    assert np.array_equal(x[0,:,window//2,window//2], LAND[:,places[0,0],places[0,1]])
    assert max(np.bincount(wide.train.dataset.labels)) == 4 and max(np.bincount(wide.test.dataset.labels)) == 6


def test_of_many_windows_some_are_taken_by_seed(land):
    every,some,again,other = (some_windows(land, 1, most, seed) for most,seed in ((None,0), (20,0), (20,0), (20,1)))
    for split in every:
        assert len(some[split]) == 20 and np.array_equal(some[split], again[split]) and not np.array_equal(some[split], other[split])
        assert set(map(tuple, some[split])) <= set(map(tuple, every[split]))
    own = land.records[0].split_map
    assert all((own[tuple(found[:,1:].T)] == number).all() for number,found in enumerate(every.values()))


def test_a_prime_number_of_bands_is_fitted_for_both():
    s = load_cube_set(n=12, size=16, bands=11)
    for how,bands in (("drop", 10), ("pad", 15)):
        dls,wide = pixel_loaders(s, 1, 3, 3, patch_size=(1,5), fit_bands=how, bs=4, device="cpu", workers=0)
        assert dls.bands == wide.bands == bands and dls.fingerprint == wide.fingerprint != s.fingerprint
