"Several sensors in turn: whose batch it is, noise that the target has not, and nothing random in validation"
from types import SimpleNamespace

import pytest
import torch

from vitnb.callback.sensors import MaskedSensors, add_band_noise
from vitnb.data.cube import cube_loaders, load_cube_set
from vitnb.losses.reflectance import ReflectanceLoss
from vitnb.models.protocol import create_model


@pytest.fixture(scope="module")
def sensors(): return [cube_loaders(load_cube_set(n=12, size=16, bands=b), bs=2, normalize="zscore", device="cpu", workers=0, seed=1) for b in (10, 15)]


def model_of(sensors):
    torch.manual_seed(0)
    return create_model("spectral_mae_micro", patch_size=(4, 5), wavelengths=sensors[0].wavelengths.tolist(), img_size=16)


def prepared(sensors, training=True, at=1, seed=1, **kw):
    pretext = MaskedSensors(sensors, ReflectanceLoss(), **kw)
    model = model_of(sensors)
    pretext.setup(sensors[0], model)
    sensor = sensors[at % len(sensors)]
    learn = SimpleNamespace(model=model, dl=sensor.train, seed=seed, epochs_done=0, training=training, iter=at)
    return pretext, model, pretext.prepare(learn, sensor.train.make_batch(range(2), 0))


def test_noise_keeps_the_spread_and_the_clean_cube_is_the_noisy_one_without_it():
    x = torch.randn(3, 8, 40, 40)
    noisy,clean = add_band_noise(x, 2., torch.Generator().manual_seed(0))
    assert torch.allclose(noisy.std((2, 3)), torch.ones(3, 8), atol=.1)
    ratio = clean/x
    assert torch.allclose(ratio, ratio[:,:,:1,:1].expand_as(ratio), atol=1e-5) and (ratio <= 1).all()
    again,_ = add_band_noise(x, 2., torch.Generator().manual_seed(0))
    assert torch.equal(noisy, again)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_model_and_loss_are_told_whose_batch_it_is(sensors, at):
    pretext,model,batch = prepared(sensors, at=at, move=False)
    sensor = sensors[at % 2]
    assert pretext.loss.normalizer is sensor.normalizer and torch.allclose(torch.tensor(model.wavelengths), sensor.wavelengths)
    assert batch["image"].shape[1] == sensor.bands and batch.get("clean") is None


def test_wavelengths_move_in_training_only_and_where_there_are_several(sensors):
    def told(**kw): return torch.tensor(prepared(**{**dict(sensors=sensors), **kw})[1].wavelengths)
    nm = sensors[1].wavelengths
    moved = told()
    stretch = (moved[-1] - moved[0])/(nm[-1] - nm[0])
    assert .75 <= stretch <= 1.25 and not torch.allclose(moved, nm) and torch.equal(moved, told()) and not torch.equal(moved, told(seed=2))
    assert torch.allclose(told(training=False), nm) and torch.allclose(told(sensors=sensors[1:]), nm) and torch.allclose(told(move=False), nm)


def test_noise_is_in_what_is_seen_and_not_in_the_target(sensors):
    pretext,model,batch = prepared(sensors, noise=3.)
    assert not torch.allclose(batch["image"], batch["clean"])
    out = model.train()(batch["image"], batch["order"])
    expected = pretext.loss.terms(out, batch["clean"], batch["mask"])
    assert all(torch.equal(v[0], expected[k][0]) for k,v in pretext.terms(out, batch).items())
    assert prepared(sensors, noise=3., training=False)[2].get("clean") is None
