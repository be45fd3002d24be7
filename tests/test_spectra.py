"Figures of cubes: brightness, what lies where, and the terms of a loss"
import numpy as np
import pytest
import torch

from vitnb.spectra import cube_rgb, plot_band_errors, plot_masked


def test_the_brightest_pixels_are_white_and_the_scale_can_be_anothers():
    cube = torch.rand(2, 5, 40, 40)*torch.tensor([.2, 3.])[:,None,None,None]
    image,scale = cube_rgb(cube, (4, 2, 0))
    want = np.quantile(cube[:,[4, 2, 0]].flatten(2).numpy(), .995, axis=-1)
    assert np.allclose(scale, want, rtol=1e-5) and image.shape == (2, 3, 40, 40) and float(image.max()) == 1
    assert torch.allclose(image[1,0], (cube[1,4]/scale[1,0]).clamp(0, 1)**.6)
    half,same = cube_rgb(cube/2, (4, 2, 0), scale)
    assert same is scale and torch.allclose(half, (image**(1/.6)).clamp(max=2)**.6*.5**.6, atol=.26) and float(half.mean()) < float(image.mean())


def test_a_black_cube_is_black(): assert not cube_rgb(torch.zeros(1, 3, 4, 4), (0, 1, 2))[0].any()


def test_errors_lie_over_their_wavelengths():
    nm = np.linspace(400, 700, 5)
    errors = dict(model=np.arange(5.), interpolation=np.ones(5))
    (ax,) = plot_band_errors(nm, errors, ylabel="MAE", unit="band").axes
    for line,(name,error) in zip(ax.lines, errors.items()):
        assert line.get_label() == name and np.array_equal(line.get_xdata(), nm) and np.array_equal(line.get_ydata(), error)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("band", "MAE") and ax.get_ylim()[0] == 0 and ax.get_legend() is not None
    own = plot_band_errors(nm, dict(model=errors["model"]), ax=ax)
    assert own is ax.figure and len(ax.lines) == 3, "on axes that are given"


@pytest.fixture
def view():
    images = {name:torch.rand(2, 3, 8, 8) for name in ("true", "masked", "reconstruction")}
    spectra = {name:np.random.default_rng(0).random((2, 3, 6)) for name in ("spectra", "spectra_reconstructed")}
    return dict(images, **spectra, points=[(1, 2), (5, 0), (7, 7)], nm=np.linspace(400, 900, 6), unit="nm", share=.75, band_mse=np.ones(6))


def test_a_sample_has_a_row_of_images_and_its_spectra(view):
    fig = plot_masked(view, title="two cubes")
    axes = [ax for ax in fig.axes if ax.images]
    assert len(axes) == 6 and axes[1].get_title() == "masked, 75%" and fig.get_suptitle() == "two cubes"
    for row,name in ((0, "true"), (0, "masked"), (1, "reconstruction")):
        ax = axes[3*row + ("true", "masked", "reconstruction").index(name)]
        assert np.allclose(ax.images[0].get_array(), view[name][row].permute(1, 2, 0), atol=1/255)
    marks = [(line.get_ydata()[0], line.get_xdata()[0]) for line in axes[0].lines]
    assert marks == view["points"] and not axes[1].lines, "pixels are marked where something can be seen"
    spectra = next(ax for ax in fig.axes if len(ax.lines) == 6)
    assert np.array_equal(spectra.lines[2].get_ydata(), view["spectra"][0,1])
    assert np.array_equal(spectra.lines[3].get_ydata(), view["spectra_reconstructed"][0,1])


def test_terms_of_the_loss_are_drawn_where_they_are_positive(view):
    rows = [dict(epoch=1, train_mse=.5, valid_mse=.6, train_sam=0.), dict(epoch=2, train_mse=.2, valid_mse=None, train_sam=0.)]
    without,fig = plot_masked(view, rows), plot_masked(view, rows, ("mse", "sam"))
    assert len(fig.axes) == len(without.axes) + 1
    ax = fig.axes[-1]
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.lines] == [([1, 2], [.5, .2]), ([1], [.6])]
    assert ax.get_yscale() == "log"


def test_a_band_in_which_nothing_is_masked_is_a_gap_and_no_error_of_zero(view):
    nm = np.linspace(400, 700, 5)
    (ax,) = plot_band_errors(nm, dict(model=[1., None, 2., float("nan"), 3.])).axes
    assert np.isnan(ax.lines[0].get_ydata()[[1, 3]]).all() and ax.lines[0].get_marker() == "o"
    (ax,) = plot_band_errors(nm, dict(model=[None]*5)).axes
    assert [t.get_text() for t in ax.texts] == ["no band was masked"]


def test_one_epoch_of_terms_is_seen_and_validation_told_from_training(view):
    rows = [dict(epoch=1, train_mse=.5, valid_mse=.6)]
    ax = plot_masked(view, rows, ("mse",)).axes[-1]
    train,valid = ax.lines
    assert train.get_markersize() >= 6 and valid.get_mfc() == "white" != train.get_mfc() and "log scale" in ax.get_ylabel()
