"One reader for all formats: the same film from each, at its depth, and refusals that say why"
import dicom_files
import numpy as np
import pytest
from PIL import Image

from vitnb.data.film import film_end, film_options, read_film, show_film
from vitnb.data.image import UnreadableImage, readers
from vitnb.data.nifti import save_nifti
from vitnb.data.window import FILM_WHITE

PIXELS = np.random.default_rng(0).integers(0, 4096, (40,32)).astype(np.uint16)


def written(folder):
    Image.fromarray(PIXELS).save(folder/"a.png")
    Image.fromarray(PIXELS).save(folder/"a.tif")
    np.save(folder/"a.npy", PIXELS)
    return [folder/"a.png", folder/"a.tif", folder/"a.npy", save_nifti(folder/"a.nii.gz", PIXELS), dicom_files.write(folder/"a.dcm", PIXELS, 12),
            dicom_files.write(folder/"IM0001", PIXELS, 12)]


@pytest.mark.parametrize("kw", [{}, dict(window="full", bits=12), dict(fit="crop"), dict(low=0, high=100, fit="none")])
def test_every_format_gives_the_same_film(tmp_path, kw):
    films = [read_film(path, **kw) for path in written(tmp_path)]
    assert all((film == films[0]).all() and film.dtype == np.uint16 and film.shape[2] == 1 for film in films)


def test_eight_and_sixteen_bit_images_have_the_range_of_their_container(tmp_path):
    Image.fromarray((PIXELS >> 4).astype(np.uint8)).save(tmp_path/"8.png")
    Image.fromarray(PIXELS << 4).save(tmp_path/"16.png")
    one,two = [read_film(tmp_path/f"{n}.png", window="full", fit="none")[...,0] for n in (8, 16)]
    assert (one == (PIXELS >> 4)*257).all() and (two == PIXELS << 4).all()


def test_a_colour_jpeg_of_a_film_becomes_grey(tmp_path):
    Image.fromarray(np.repeat((PIXELS >> 4).astype(np.uint8)[...,None], 3, 2)).save(tmp_path/"a.jpeg", quality=100)
    assert np.abs(read_film(tmp_path/"a.jpeg", window="full", fit="none")[...,0].astype(int) - (PIXELS >> 4).astype(int)*257).mean() < 3*257


def test_a_wrong_depth_warns(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path/"a.png")
    with pytest.warns(UserWarning, match="8 bits"): read_film(tmp_path/"a.png", bits=8)


def test_the_report_says_which_window_was_used(tmp_path):
    path = dicom_files.write(tmp_path/"a.dcm", PIXELS, 12, WindowCenter=[40, 400], WindowWidth=[400, 2000])
    said = [show_film(path, film_options(window=w))[1][0] for w in ("percentile", "voi", "full")]
    assert said == ["percentiles 0.5 and 99.5", "LINEAR window 40/400 (view 1 of 2)", "full range 0 to 4095"]


def test_an_array_of_sixteen_bits_is_a_film_already():
    assert readers["film"] is read_film and (read_film(PIXELS[:32])[...,0] == PIXELS[:32]).all()
    with pytest.raises(ValueError, match="give uint16"): read_film(PIXELS.astype(np.uint8))


def test_what_cannot_be_shown_is_unreadable_with_the_reason(tmp_path):
    written(tmp_path)
    with pytest.raises(UnreadableImage, match="no window of interest"): read_film(tmp_path/"a.png", window="voi")
    with pytest.raises(UnreadableImage, match="give bits"): read_film(tmp_path/"a.nii.gz", window="full")
    (tmp_path/"a.txt").write_text("x")
    with pytest.raises(UnreadableImage, match="by its name"): read_film(tmp_path/"a.txt")
    np.save(tmp_path/"n.npy", np.full((4,4), np.nan, np.float32))
    with pytest.raises(UnreadableImage, match="not finite"): read_film(tmp_path/"n.npy")
    np.save(tmp_path/"c.npy", np.zeros((4,4,3), np.uint8))
    with pytest.raises(UnreadableImage, match="3 channels"): read_film(tmp_path/"c.npy")
    dicom_files.write(tmp_path/"p.dcm", np.full((4,4), 7, np.uint16), 12, PixelPaddingValue=7)
    with pytest.raises(UnreadableImage, match="no valid pixel"): read_film(tmp_path/"p.dcm")


@pytest.mark.parametrize("kw,text", [(dict(windw="full"), "did you mean 'window'"), (dict(window="auto"), "unknown window"), (dict(fit="stretch"), "unknown fit"), (dict(low=9, high=1), "ascend")])
def test_unknown_options_are_refused(kw, text):
    with pytest.raises(ValueError, match=text): film_options(**kw)


def test_the_end_of_a_name_says_the_format():
    assert [film_end(n) for n in ("a.nii.gz", "a.NII", "1.2.840.7", "IM1", "a.csv", "a.JPEG")] == [".nii.gz", ".nii", "", "", None, ".jpeg"]


def test_a_dark_and_a_bright_exposure_of_one_film_look_alike(tmp_path):
    np.save(tmp_path/"a.npy", PIXELS)
    np.save(tmp_path/"b.npy", (PIXELS*3 + 500).astype(np.uint16))
    one,two = [read_film(tmp_path/f"{n}.npy").astype(int) for n in "ab"]
    assert np.abs(one - two).max() <= 1 and two.max() == FILM_WHITE
