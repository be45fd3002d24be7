"Windows of the standard, depth, percentiles, and that no two values become one"
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitnb.data.window import (FILM_WHITE, RawFilm, as_film, bit_range, depth_scale, inside_frame, percentile_window, sign_extend, squared, view_film,
    voi_window, without_frame)


def by_the_standard(x, c, w, function):
    "PS3.3 C.11.2.1.2 and C.11.2.1.3, one value at a time, to 0..255"
    if function == "LINEAR":
        if x <= c - .5 - (w - 1)/2: return 0
        if x > c - .5 + (w - 1)/2: return 255
        return ((x - (c - .5))/(w - 1) + .5)*255
    if function == "LINEAR_EXACT":
        if x <= c - w/2: return 0
        return 255 if x > c + w/2 else ((x - c)/w + .5)*255
    return 255/(1 + np.exp(-4*(x - c)/w))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("c,w", [(40, 400), (0, 1), (2048, 4096), (-100, 3)])
def test_windows_are_those_of_the_standard(function, c, w):
    x = np.unique(np.r_[np.linspace(c - 2*w, c + 2*w, 101), c, c - .5])
    assert np.allclose(255*voi_window(x, c, w, function), [by_the_standard(o, c, w, function) for o in x])


def test_windows_give_the_published_numbers():
    assert np.allclose(255*voi_window(np.array([-160, -159, 39.5, 40, 239.5]), 40, 400), [0, .639, 127.5, 127.820, 255], atol=1e-3)
    assert 255*voi_window(40, 40, 400, "LINEAR_EXACT") == 127.5 and abs(255*voi_window(140, 40, 400, "SIGMOID") - 186.42) < .01


def test_width_one_is_a_step_and_less_is_refused():
    assert voi_window(np.array([39, 39.5, 40]), 40, 1).tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="too narrow"): voi_window(1, 0, .5)


def test_low_white_films_are_turned_over_once():
    film,_ = view_film(RawFilm(np.array([[0, 2048, 4095]]), span=bit_range(12), invert=True), "full")
    shown = film/FILM_WHITE*255
    assert shown[0,0] == 255 and 127 < shown[0,1] < 128 and shown[0,2] == 0


def test_an_inverted_film_measures_its_percentiles_as_it_is_seen():
    values = np.random.default_rng(0).integers(0, 4096, (50,50))
    one,_ = view_film(RawFilm(values), "percentile", 2, 99)
    other,_ = view_film(RawFilm(4095 - values, invert=True), "percentile", 2, 99)
    assert np.abs(one.astype(int) - other).max() <= 1


def test_the_scale_comes_from_the_stored_bits_and_a_wrong_depth_warns():
    stored = np.array([0, 2048, 4095])
    assert np.allclose(depth_scale(stored, 12), [-1024, .25, 1024], atol=1e-3)
    assert abs(depth_scale(stored, 16)[2] + 896.03) < .01
    with pytest.warns(UserWarning, match="8 bits"): assert abs(depth_scale(stored, 8)[2] - 31864.5) < .1


@given(st.integers(2, 16), st.booleans(), st.data())
def test_values_survive_whatever_stands_in_unused_bits(bits, signed, data):
    low,high = bit_range(bits, signed)
    value = data.draw(st.integers(low, high))
    rest = data.draw(st.integers(0, 2**(16 - bits) - 1))
    word = np.array([(value & (2**bits - 1)) | rest << bits], np.uint16)
    assert sign_extend(word, bits, signed)[0] == value


def test_padding_does_not_move_the_window_and_becomes_black():
    rng = np.random.default_rng(0)
    inside = rng.integers(1000, 3001, (30,30))
    framed = np.full((50,50), -2000)
    framed[10:-10,10:-10] = inside
    film,_ = view_film(RawFilm(framed, framed != -2000))
    alone,_ = view_film(RawFilm(inside))
    assert (film[10:-10,10:-10] == alone).all() and film[:10].max() == 0
    dark = view_film(RawFilm(framed, framed != -2000, invert=True))[0]
    assert dark[:10].max() == 0 and (dark[10:-10,10:-10] > 0).any()
    with pytest.raises(ValueError, match="no valid pixel"): percentile_window(framed, valid=np.zeros_like(framed, bool))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_no_two_values_of_a_depth_become_one(bits):
    values = np.arange(2**bits).reshape(1,-1)
    assert len(np.unique(view_film(RawFilm(values, span=bit_range(bits)), "full")[0])) == 2**bits
    assert (as_film(values/(2**bits - 1))[0] == np.rint(values[0]*FILM_WHITE/(2**bits - 1))).all()


@given(st.integers(1, 9), st.integers(1, 9))
def test_squares_keep_the_pixels(h, w):
    a = np.arange(1, h*w + 1).reshape(h,w)
    boxed,cut = squared(a), squared(a, "crop")
    assert boxed.shape == (max(h,w),)*2 and cut.shape == (min(h,w),)*2
    assert sorted(boxed[boxed > 0]) == list(range(1, h*w + 1)) and set(cut.ravel()) <= set(a.ravel())
    assert squared(a, "none") is a


def inside_one_by_one(a):
    "The largest box that rows and columns of one value, taken off one at a time, leave"
    top,bottom,left,right = 0,a.shape[0],0,a.shape[1]
    while top < bottom and len(set(a[top].tolist())) == 1 and a[top,0] == a[0,0]: top += 1
    while bottom > top and len(set(a[bottom-1].tolist())) == 1 and a[bottom-1,0] == a[-1,-1]: bottom -= 1
    while left < right and len(set(a[:,left].tolist())) == 1 and a[0,left] == a[0,0]: left += 1
    while right > left and len(set(a[:,right-1].tolist())) == 1 and a[0,right-1] == a[-1,-1]: right -= 1
    box = np.zeros(a.shape, bool)
    box[top:bottom,left:right] = True
    return box


@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(0, 2), min_size=4, max_size=4), st.integers(0, 3), st.integers(0, 99))
def test_a_frame_is_what_rows_and_columns_taken_off_one_by_one_are(h, w, gaps, value, seed):
    film = np.pad(np.random.default_rng(seed).integers(0, 4, (h,w)), (gaps[:2], gaps[2:]), constant_values=value)
    found,wanted = inside_frame(film),inside_one_by_one(film)
    if found is None: assert wanted.all() or not wanted.any()
    else: assert (found == wanted).all()


def test_a_frame_that_no_header_declares_is_said_and_left_out():
    inside = np.random.default_rng(0).integers(1000, 3001, (30,30))
    raw = without_frame(RawFilm(np.pad(inside, 10)))
    assert (view_film(raw)[0][10:-10,10:-10] == view_film(RawFilm(inside))[0]).all() and "64% of the pixels, is padding" in raw.notes[0]
    both = without_frame(RawFilm(np.pad(inside, 10), np.pad(inside, 10) != inside[3,3])) # beside what the header declares
    assert not both.valid[13,13] and not both.valid[0].any() and both.valid.sum() == (inside != inside[3,3]).sum()
    assert without_frame(RawFilm(inside)) == RawFilm(inside) and without_frame(RawFilm(np.zeros((3,3)))).valid is None
