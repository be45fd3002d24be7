"Augmentation of films: exposure in the range of the film, one channel repeated, and mirror images only if asked"
import numpy as np
import pytest
import torch

from vitnb.data.chest import synthetic_chest_set
from vitnb.data.filmaugment import Exposure, Repeat
from vitnb.data.filmset import split_films
from vitnb.data.geometry import Flip
from vitnb.data.lungmask import FocusLungs, ZoneFlip

LOADING = dict(device="cpu", workers=0, bs=4)


def test_exposure_changes_brightness_and_nothing_leaves_the_range():
    x = torch.randint(0, 65536, (6,1,8,8), dtype=torch.int32)
    from vitnb.data.draws import Draws
    y = Exposure(.5, .4)(x, Draws(0, 0, np.arange(6)))
    assert y.dtype == torch.int32 and 0 <= y.min() and y.max() <= 65535 and not torch.equal(x, y)
    assert torch.equal(Exposure(0., 0.)(x, Draws(0, 0, np.arange(6))), x)
    with pytest.raises(ValueError, match="images have 3"): Repeat()(torch.zeros(1,3,4,4), None)
    assert FocusLungs().masking == "attention"


def test_the_recipe_of_films_mirrors_only_if_asked(tmp_path):
    films = split_films(synthetic_chest_set(20, 32))
    plain,asked = [films.loaders(32, augment="film", aug_kw=kw, **LOADING).train.pipeline.transforms for kw in ({}, dict(flip=.5))]
    assert not any(isinstance(s, Flip) for s in plain) and any(isinstance(s, ZoneFlip) for s in asked)


@pytest.mark.parametrize("option,value", [("scale", (.3,.4)), ("degrees", 45.), ("contrast", .6), ("brightness", .4)])
def test_options_of_the_recipe_act(option, value):
    "`flip` needs films with zones: above"
    films = split_films(synthetic_chest_set(20, 32))
    plain,other = [films.loaders(32, augment="film", aug_kw=kw, **LOADING).train.one_batch()["image"] for kw in ({}, {option:value})]
    assert plain.shape == other.shape and not torch.equal(plain, other)
