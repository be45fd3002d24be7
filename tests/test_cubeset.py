"Sets of cubes: wavelengths, windows and what is valid in them"
import numpy as np
import pytest
import torch
from cube_files import fields, own_cache

from vitnb.data.cube import CubeArray, cube_loaders, load_cube_set, rgb_bands, scene_set


def test_no_value_of_another_split_reaches_a_window():
    "A scene whose pixel values say which split they belong to"
    s = scene_set("s", CubeArray(np.ones((3,50,50), np.float32)), block=12, guard=2)
    g = s.records[0].split_map
    s.records[0].source = CubeArray(np.broadcast_to(g + 2, (3,50,50)).astype(np.float32)) # train 2, valid 3, test 4, nobody 1
    for augment in ("none", "basic"):
        dls = cube_loaders(s, bs=4, window=10, stride=4, jitter=3, augment=augment, aug_kw=dict(gain=0., offset=0., noise=0.) if augment == "basic" else None, normalize="none", device="cpu")
        for k,dl in enumerate(dls.loaders):
            for x,valid in map(fields, dl): assert torch.allclose(x[valid.expand_as(x)], torch.tensor(2. + k), atol=1e-4) and (x[~valid.expand_as(x)] == 0).all()


def test_missing_bands():
    s = load_cube_set(n=12, size=16)
    few = s.keep_bands([0, 5, 29])
    assert few.bands == 3 and few.wavelengths.tolist() == [450, 500, 850] and few.fingerprint != s.fingerprint
    assert np.array_equal(few.records[2].source.read(), s.records[2].source.read()[[0,5,29]])
    assert few.scan()["mean"] == pytest.approx([s.scan()["mean"][i] for i in (0, 5, 29)])
    with pytest.raises(ValueError, match="each once"): s.keep_bands([1,1])
    with pytest.raises(ValueError, match="band 0 decides"): s.keep_bands([3,4])


def test_rgb_bands_are_the_nearest():
    assert rgb_bands([*range(450, 731, 10), 850], 30) == [12,8,1]
    assert rgb_bands(None, 30) == [12,8,1] and len(set(rgb_bands(None, 5))) >= 2
    assert rgb_bands([850, 460, 570, 530], 4) == [2,3,1], "wavelengths need no order"
