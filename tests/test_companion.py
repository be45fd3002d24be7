"Spectral images beside images: what is read, what fits, and what is kept"
import numpy as np
import pytest
from PIL import Image
from companion_helpers import pairs

from vitnb.data import companion
from vitnb.data.companion import CompanionSplit, image_size, read_companion, survey_companions
from vitnb.data.holdout import Split
from vitnb.data.sets import load_set
from vitnb.data.table import ImageSet


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_DATA_PATH", str(tmp_path/"data"))
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))


@pytest.mark.parametrize("depth", [np.uint8, np.uint16, np.float64])
def test_one_channel_may_be_two_dimensional_and_keeps_its_depth(tmp_path, depth):
    np.save(tmp_path/"x_spectral.npy", np.full((4,6), 200, depth))
    a = read_companion(tmp_path/"x_spectral.npy")
    assert a.shape == (1,4,6) and a.dtype == np.float32 and (a == 200).all()


@pytest.mark.parametrize("turn,size", [(1, (8,12)), (3, (8,12)), (6, (12,8)), (8, (12,8))])
def test_the_size_is_that_of_the_image_as_it_is_shown(tmp_path, turn, size):
    img = Image.new("RGB", (12,8))
    exif = img.getexif()
    exif[274] = turn
    img.save(tmp_path/"x.jpg", exif=exif)
    assert image_size(tmp_path/"x.jpg") == size


def test_what_was_read_is_kept_until_a_file_changes(tmp_path, monkeypatch):
    root,seen = pairs(tmp_path),[]
    real = companion.read_companion
    monkeypatch.setattr(companion, "read_companion", lambda p: seen.append(p) or real(p))
    first = survey_companions(load_set(root))
    assert len(seen) == 36 and survey_companions(load_set(root)) == first and len(seen) == 36
    np.save(root/"train"/"a"/"0_spectral.npy", np.zeros((2,12,16)))
    assert survey_companions(load_set(root)).mean != first.mean and len(seen) == 72


def test_arrays_keep_their_rows(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (30,8,8,3)).astype(np.uint8)
    split = CompanionSplit(x, [0,1]*15, spectral=x[...,:1].transpose(0,3,1,2).astype(np.float32))
    few = split.take(np.array([7,3]))
    assert np.array_equal(few.spectral[:,0], few.items[...,0]) and np.array_equal(few.items, x[[7,3]])
    with pytest.raises(ValueError, match="do not fit"): CompanionSplit(x, [0,1]*15, spectral=np.zeros((30,1,8,9)))
    with pytest.raises(ValueError, match="do not fit"): CompanionSplit(x, [0,1]*15)


def test_arrays_without_spectral_images_are_an_error():
    x = np.zeros((4,8,8,3), np.uint8)
    s = ImageSet("plain", ["a","b"], {k:Split(x, [0,1,0,1]) for k in ("train", "valid", "test")})
    with pytest.raises(ValueError, match="no spectral images"): survey_companions(s)
