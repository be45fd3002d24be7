"SimCLR's augmentations: the recipe, the draws of each view, and images of any number of channels"
import numpy as np
import pytest
import torch
from companion_helpers import loaders, pairs
from contrastive_worker import image_set, make, photos, quiet_fit

from vitnb.data.augment import Draws, train_pipeline
from vitnb.data.simclr import IntensityJitter, RandomGrayscale, SpectralJitter
from vitnb.data.transform import make_pipeline


def recipe(**kw): return {o.pop("name"): o for o in train_pipeline("simclr", 32, [.5]*3, [.2]*3, **kw).config()}


def test_the_recipe_is_the_guides():
    "Checklist of the guide: crops of 0.2 to 1, flips, strong jitter on 80 %, grey, a blur whose sigma is 0.1 to 2, normalised at the end"
    steps = recipe()
    assert list(steps) == ["RandomResizedCrop", "Flip", "RGBJitter", "RandomGrayscale", "SpectralJitter", "GaussianBlur", "Normalize"]
    assert steps["RandomResizedCrop"]["scale"] == [.2, 1.] and steps["Flip"] == dict(p=.5)
    assert steps["RGBJitter"] == dict(brightness=.8, contrast=.8, saturation=.8, hue=.2, p=.8)
    assert steps["RandomGrayscale"] == dict(p=.2) and steps["GaussianBlur"] == dict(p=.5, sigma=[.1, 2.])
    assert steps["SpectralJitter"] == dict(brightness=.8, contrast=.8, p=.8), "not in the guide; nothing for photographs"


@pytest.mark.parametrize("option,step,name,value", [("scale", "RandomResizedCrop", "scale", [.5, .9]), ("flip", "Flip", "p", .1), ("jitter_p", "RGBJitter", "p", .3),
                                                    ("gray", "RandomGrayscale", "p", .6), ("blur", "GaussianBlur", "p", .1), ("sigma", "GaussianBlur", "sigma", [.2, .3])])
def test_every_option_of_the_recipe_acts(option, step, name, value): assert recipe(**{option: value})[step][name] == value


def test_strength_scales_all_of_the_jitter():
    assert recipe(jitter=.5)["RGBJitter"] == dict(brightness=.4, contrast=.4, saturation=.4, hue=.1, p=.8)


def test_every_sample_and_every_view_has_draws_of_its_own():
    "What the guide's code gets wrong: eight copies of one image come out identical"
    data = image_set(n=72)
    data.splits["train"].items[:] = data.splits["train"].items[0]
    learn = make(data=data)
    batch = learn.dls.train.make_batch(np.arange(8), 0)["image"]
    assert batch.shape == (8, 2, 3, 16, 16)
    views = batch.flatten(0, 1).flatten(1)
    assert (torch.cdist(views, views) + torch.eye(16)).min() > .1
    assert not torch.equal(batch, learn.dls.train.make_batch(np.arange(8), 1)["image"]), "and another in the next epoch"
    assert torch.equal(batch, learn.dls.train.make_batch(np.arange(8), 0)["image"])


def test_a_pipeline_is_made_again_from_its_configuration():
    pipeline = train_pipeline("simclr", 16, [.5]*3, [.2]*3)
    again,draws = make_pipeline(pipeline.config()),Draws(1, 0, np.arange(5))
    x = torch.from_numpy(photos(5)).permute(0, 3, 1, 2)
    assert torch.equal(pipeline(x, draws), again(x, draws))


def test_grey_is_that_of_the_eye_and_spares_other_channels():
    x = torch.from_numpy(photos(400, channels=5)).permute(0, 3, 1, 2)
    grey = RandomGrayscale(.2)(x, Draws(1, 0, np.arange(400)))
    hit = (grey[:,0] == grey[:,1]).flatten(1).all(1)
    assert abs(hit.float().mean() - .2) < .06 and torch.equal(grey[:,3:], x[:,3:]) and torch.equal(grey[~hit], x[~hit])
    eye = x[hit,0]*.2989 + x[hit,1]*.587 + x[hit,2]*.114
    assert all((grey[hit,c].float() - eye).abs().max() <= 1 for c in range(3))


def test_intensity_is_one_gain_and_one_contrast_for_all_channels():
    x = torch.rand(300, 6, 8, 8) + .2
    draws = lambda: Draws(1, 0, np.arange(300))
    y = IntensityJitter(.8, .5, p=.8)(x, draws())
    hit = (y != x).flatten(1).any(1)
    assert abs(hit.float().mean() - .8) < .07
    gain,contrast = IntensityJitter(.8, .5, p=.8).draw((8, 8), draws())
    assert .2 <= gain.min() < .3 and 1.7 < gain.max() <= 1.8 and contrast[hit].min() < .6 and contrast.max() > 1.4
    for i in (0, 7, 33):
        for c in range(6):
            mean = x[i,c].mean()
            assert torch.allclose(y[i,c], gain[i]*(mean + contrast[i]*(x[i,c] - mean)), atol=1e-5)
    bytes_ = IntensityJitter(.8, .5, p=1.)((100*x).byte(), draws())
    assert bytes_.dtype == torch.uint8 and bytes_.max() > 150


def test_what_is_not_colour_is_jittered_on_its_own_and_a_photograph_not_at_all():
    draws = lambda: Draws(1, 0, np.arange(300))
    both = dict(image=torch.rand(300, 3, 8, 8), spectral=torch.rand(300, 2, 8, 8) + .2)
    alone = IntensityJitter(.8, .5, p=.8)
    out,want = SpectralJitter(.8, .5, p=.8).samples(both, draws()),alone.act(both["spectral"], alone.draw((8, 8), draws()))
    assert torch.equal(out["image"], both["image"]) and torch.equal(out["spectral"], want) and not torch.equal(want, both["spectral"])
    five = torch.cat([both["image"], both["spectral"]], 1)
    assert torch.equal(SpectralJitter(.8, .5, p=.8)(five, draws()), torch.cat([both["image"], want], 1))
    a,b = draws(),draws()
    assert torch.equal(SpectralJitter()(both["image"], a), both["image"]) and torch.equal(a.uniform(), b.uniform()), "nothing is drawn"


def test_the_two_views_of_a_spectral_image_differ_in_brightness(tmp_path):
    "An infrared image alike in both views tells the partner by its mean alone"
    dls = loaders(pairs(tmp_path), augment="simclr", aug_kw=dict(scale=(1., 1.), blur=0.)).with_views(2)
    spectral = dls.train.one_batch()["spectral"]
    means = spectral.mean((3, 4))
    assert spectral.shape[1] == 2 and ((means[:,0] - means[:,1]).abs().amax(1) > 1e-3).sum() >= 3


@pytest.mark.parametrize("transform", [lambda: RandomGrayscale(1.5), lambda: IntensityJitter(p=-1), lambda: IntensityJitter(-.1)])
def test_a_transform_refuses_what_means_nothing(transform):
    with pytest.raises(ValueError, match="must (lie|be)"): transform()


def test_more_than_three_channels_train():
    "8-bit images may have further channels; cubes of decimal numbers leave colours out"
    data = image_set(channels=5)
    learn = quiet_fit(make(data=data), 1)
    assert learn.model.in_chans == 5 and np.isfinite(learn.recorder.rows[0]["train_loss"])
    cubes = image_set(channels=5)
    for split in cubes.splits.values(): split.items = (split.items/255).astype(np.float32)
    with pytest.raises(ValueError, match="aug_kw=dict\\(color=False\\)"): make(data=cubes, loader_kw=dict(aug_kw={})).dls.train.one_batch()
    learn = quiet_fit(make(data=cubes, loader_kw=dict(aug_kw=dict(color=False))), 1)
    assert np.isfinite(learn.recorder.rows[0]["valid_loss"])
