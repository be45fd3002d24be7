"Companion images in the figures of masked autoencoders, and how many, how fine and in which format they are drawn"
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vitnb.callback.live import MaskedLive
from vitnb.callback.masked import fixed_batch, fixed_cubes, masked_view
from vitnb.data.cube import cube_loaders, load_cube_set
from vitnb.experiment.recipes import families, resolve
from vitnb.experiment.run import Run
from vitnb.figures import new_figure, png
from vitnb.learner.core import vit_learner
from vitnb.spectra import plot_masked

TINY = dict(embed_dim=16, depth=1, num_heads=2, decoder_depth=1, patch_size=(8, 5))


@pytest.fixture(scope="module")
def eyes(): return load_cube_set("retina_synthetic", n=12, size=16)


def learner(eyes, rgb):
    dls = cube_loaders(eyes, bs=4, rgb=rgb, device="cpu")
    return vit_learner(dls, "spectral_mae_micro", model_kw=TINY, pretext="masked", device="cpu", precision="fp32", seed=3)


def axes(fig): return [ax for part in fig.subfigs for ax in part.axes]
def titles(fig): return [ax.get_title() for ax in axes(fig)]


def test_the_companion_stands_beside_its_cube(eyes):
    learn = learner(eyes, True)
    few = fixed_batch(learn.dls.valid, 2)
    assert torch.equal(few["image"], fixed_cubes(learn.dls.valid, 2)[0]) and few["rgb"].shape == (2, 3, 16, 16)
    figures = [plot_masked(masked_view(learn.model, few["image"], few.get("mask"), companion=companion)) for companion in (None, few["rgb"])]
    assert "companion image" not in titles(figures[0]) and titles(figures[1])[0] == "companion image"
    shown = axes(figures[1])[0].images[0].get_array()
    assert np.allclose(np.asarray(shown), few["rgb"][0].permute(1, 2, 0).numpy()), "it is the file's image"


def test_where_nobody_decides_they_are_shown_if_each_cube_has_one(eyes, capsys):
    "So the guide's recipe shows them, and takes a catalogue that has none"
    assert resolve("spectral", "retina", dict(data="x"))["load_rgb"] is None
    def shown(have):
        some = copy.copy(eyes)
        some.records = [record if have(i) else replace(record, rgb=None) for i,record in enumerate(eyes.records)]
        return cube_loaders(some, bs=4, rgb=None, device="cpu").train.one_batch().get("rgb") is not None
    assert [shown(lambda i: True), shown(lambda i: False)] == [True, False]
    assert all("not measured" in line for line in capsys.readouterr().out.splitlines()), "of what is shown nothing is said"
    assert not shown(lambda i: i) and "1 of 12 cubes have none" in capsys.readouterr().out


def test_training_is_the_same_with_them(eyes):
    weights = []
    for rgb in (False, True):
        learn = learner(eyes, rgb)
        learn.fit(1)
        weights.append(torch.cat([p.detach().flatten() for p in learn.model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("dpi,file_format", [(40, "png"), (80, "png"), (40, "svg")])
def test_the_live_figure_shows_them_in_the_size_and_format_asked_for(eyes, tmp_path, dpi, file_format):
    learn = learner(eyes, True)
    live = MaskedLive(tmp_path, n=3, share=1., dpi=dpi, file_format=file_format)
    learn.fit(1, cbs=live)
    assert titles(live.figure).count("companion image") == 1 and sum(len(ax.images) for ax in axes(live.figure)) == 4*2, "a row for each of the two validation cubes"
    path = tmp_path/f"masked.{file_format}"
    assert path.is_file() and (tmp_path/f"masked_epoch_0001.{file_format}").is_file()
    if file_format == "png": assert abs(Image.open(path).width - 11*dpi) <= 1, "wider by the companion's column"
    else: assert b"<svg" in path.read_bytes()


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'png'"): MaskedLive(tmp_path, file_format="pgn")


def test_figures_of_a_run_have_the_format_and_the_size(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path))
    run = Run("try_figures", {})
    fig,_ = new_figure(1, 1, 2, 2)
    small,large = (Image.open(run.figure(fig, f"a{dpi}", dpi)).width for dpi in (50, 100))
    assert large == pytest.approx(2*small, abs=4)
    assert run.figure(fig, "b", file_format="pdf").read_bytes().startswith(b"%PDF") and png(fig, file_format="svg").lstrip().startswith(b"<?xml")
    with pytest.raises(ValueError, match="figure format"): run.figure(fig, "c", file_format="gif")


def test_the_guides_values():
    r = resolve("spectral", "retina", dict(data="x"))
    assert (r.n_show, r.dpi, r.figure_format) == (4, 150, "png") and set(families["spectral"].other) >= {"load_rgb", "n_show", "dpi", "figure_format"}
