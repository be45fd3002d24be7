"What can be counted is counted before anything is loaded, as the rooms count that find it later"
import pytest

from vitnb.data.sets import load_set
from vitnb.experiment.names import FACTS
from vitnb.experiment.sizes import check_blocks, check_fills, check_windows
from vitnb.models.densenet import choose_stem
from vitnb.models.swin import LARGEST_WINDOW, fitting_windows, token_maps


def refused(call, *args):
    try: call(*args)
    except ValueError: return True
    return False


@pytest.mark.parametrize("blocks", [2, 3, 4])
@pytest.mark.parametrize("stem", ["auto", "cifar", "imagenet"])
def test_just_the_images_that_a_densenet_refuses_are_refused(blocks, stem):
    options = dict(stem=stem, block_config=[1]*blocks)
    for side in range(1, 70): assert refused(check_blocks, "mine", side, options) == refused(choose_stem, stem, side, blocks), side
    assert not refused(check_blocks, "swin_micro", 1, {}) and FACTS["blocks"]["densenet_micro"] == 3


@pytest.mark.parametrize("stages", [3, 4])
@pytest.mark.parametrize("patch", [2, 4, 5])
def test_just_the_images_that_a_swin_refuses_are_refused(stages, patch):
    options = dict(depths=[1]*stages, patch_size=patch)
    for side in range(patch, 300, patch):
        fits = fitting_windows(token_maps(side, patch, stages))
        assert refused(check_windows, "swin_tiny", side, options) == (fits[0] > LARGEST_WINDOW), side
    assert refused(check_windows, "swin_tiny", [256, 508], {}) and not refused(check_windows, "swin_tiny", 508, dict(window_size=127))
    assert not refused(check_windows, "densenet121", 508, {}) and not refused(check_windows, "swin_micro", None, {})


def test_the_numbers_of_the_digits_are_those_of_the_set():
    digits = load_set("digits")
    images = len(digits.splits["train"]) + len(digits.splits["valid"])
    check_fills(dict(data="digits", bs=images), dict(weight=[1.]*digits.n_classes))
    with pytest.raises(ValueError, match="no batch would be full"): check_fills(dict(data="digits", bs=images + 1), {})
    with pytest.raises(ValueError, match="alpha of 9 numbers"): check_fills(dict(data="digits"), dict(alpha=[1.]*9))
    check_fills(dict(data="digits", data_root="mine", bs=10**6), dict(weight=[1.]))
