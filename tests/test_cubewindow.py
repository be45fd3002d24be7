"Where windows of cubes lie"
import numpy as np
import pytest
from cube_files import CUBE, own_cache

from vitnb.data.cube import CubeArray, CubeRecord, CubeSet, cube_loaders, lay_windows, load_cube_set, pixel_windows


def test_windows_cover_every_pixel():
    s = CubeSet("s", [CubeRecord(CubeArray(CUBE), f"c{i}") for i in range(3)], dict(train=[0], valid=[1], test=[2]))
    seen = np.zeros((20,16), bool)
    for _,t,l in lay_windows(s, "train", (8,8), 6): seen[t:t+8,l:l+8] = True
    assert seen.all()


def test_pixels_are_labelled_by_their_middle():
    s = load_cube_set(n=12, size=32)
    places = {k:pixel_windows(s, k, 9, per_class=5, seed=1) for k in ("train","valid","test")}
    dls = cube_loaders(s, bs=4, window=9, windows=places, label_of="center", label="class", device="cpu")
    assert dls.vocab == ["tissue","artery","vein","disc"] and np.bincount(dls.train.dataset.labels).tolist() == [5]*4
    for (k,t,l),y in zip(places["test"], dls.test.dataset.labels): assert s.records[k].label_map[t+4,l+4] == y
    assert not np.array_equal(pixel_windows(s, "train", 9, 5, 1), pixel_windows(s, "train", 9, 5, 2)) and len(pixel_windows(s, "train", 9)) > 1000
    assert cube_loaders(s, bs=4, label_of="window", label="class", window=8, device="cpu").c == 4
    with pytest.raises(ValueError, match="needs a label map"): cube_loaders(CubeSet("s", [CubeRecord(CubeArray(CUBE), f"c{i}") for i in range(3)], dict(train=[0], valid=[1], test=[2])), bs=1, label="class", label_of="center", device="cpu")
