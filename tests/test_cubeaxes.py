"Which axis holds the bands: known, guessed and said, or asked"
from itertools import permutations

import numpy as np
import pytest

from vitnb.data.cubeaxes import AXES, Known, axis_of_name, explained, find_axes, table_shape

SPECTRUM = 1 + np.sin(np.linspace(0, 6, 30))
SCENE = (SPECTRUM[:,None,None] + .2*np.random.default_rng(0).random((30,24,20))).astype(np.float32)


@pytest.mark.parametrize("order", ["chw", "hcw", "hwc"])
def test_the_number_of_bands_chooses_the_axis(order):
    shape = tuple(dict(c=30, h=24, w=20)[axis] for axis in order)
    assert find_axes(shape, Known(bands=30)) == (order, "")
    assert find_axes(shape[::-1], Known(bands=30, reversed=True)) == (order[::-1], "")
    assert find_axes(shape, Known(pixels=(24, 20))) == (order, "")


def test_names_of_dimensions_say_all():
    for dims in permutations("chw"): assert find_axes((9, 9, 9), Known(dims="".join(dims))) == ("".join(dims), "")
    assert find_axes((9, 9, 9), Known(dims="??c"))[0] == "hwc"
    assert [axis_of_name(n) for n in ("wavelength", "/g/bands", "y", "crosstrack", "Lines", "phony_dim_1", None)] == ["c", "c", "h", "w", "h", "", ""]


@pytest.mark.parametrize("shape,bands", [((30,24,30), 30), ((30,30,24), 30), ((24,30,30), 30), ((30,30,30), 30), ((30,30,30), None), ((24,24,30), None), ((30,20,30), None)])
def test_several_axes_that_fit_are_asked(shape, bands):
    with pytest.raises(ValueError, match="axes='chw'.*bands=.*wavelengths="): find_axes(shape, Known(bands=bands))


def test_the_size_of_a_class_map_decides_between_axes_of_one_length():
    assert find_axes((30,24,30), Known(bands=30, pixels=(30, 24)))[0] == "hwc" and find_axes((30,24,30), Known(bands=30, pixels=(24, 30)))[0] == "chw"
    assert find_axes((24,20,30), Known(bands=30, pixels=(9, 9)))[0] == "hwc", "a map of another scene decides nothing"


def test_a_guess_is_said_and_evidence_against_it_asks():
    order,note = find_axes((30,24,20), Known(), lambda: SCENE)
    assert order == "chw" and "guessed as chw, 30 bands" in note
    for turned in ((1,2,0), (1,0,2)):
        a = SCENE.transpose(turned)
        with pytest.raises(ValueError, match="values change most along axis"): find_axes(a.shape, Known(), lambda: a)
    assert find_axes((24,20,30), Known(habit="hwc"), lambda: SCENE.transpose(1,2,0))[0] == "hwc"
    noise = np.random.default_rng(1).random((24,20,30))
    with pytest.raises(ValueError, match="is longer"): find_axes(noise.shape, Known(), lambda: noise)


def test_gaps_are_no_evidence():
    for fill in (65535, -9999, 0):
        a = np.random.default_rng(0).integers(1000, 5000, (30,24,20)).astype(np.float32)
        a[:,:6] = fill
        assert find_axes(a.shape, Known(), lambda: a)[0] == "chw"
    assert explained(np.full((3,4,5), np.nan)) == explained(np.ones((3,4,5))) == [0., 0., 0.]


def slow_explained(a):
    "Between-slice sum of squares over the total, slice by slice"
    total = ((a - a.mean())**2).sum()
    return [sum(s.size*(s.mean() - a.mean())**2 for s in np.moveaxis(a, axis, 0))/total for axis in range(3)]


def test_the_evidence_is_the_share_of_variance_between_slices():
    a = np.random.default_rng(3).random((5,6,7)) + np.arange(6)[:,None]
    assert np.allclose(explained(a), slow_explained(a))


@pytest.mark.parametrize("axes", [a for a in AXES if "(" in a])
def test_a_table_unfolds_into_what_was_folded(axes):
    cube = np.arange(3*4*5).reshape(3,4,5)
    order = axes.replace("(", "").replace(")", "")
    turned = cube.transpose(["chw".index(axis) for axis in order])
    sizes = [len(part) for part in axes.replace("(", " ").replace(")", " ").split()]
    shape = (turned.shape[0], -1) if sizes[0] == 1 else (-1, turned.shape[2])
    table = turned.reshape(shape)
    got,full = table_shape(table.shape, axes, (4, 5))
    assert got == order and np.array_equal(table.reshape(full).transpose([got.index(axis) for axis in "chw"]), cube)
    with pytest.raises(ValueError, match="give size="): table_shape(table.shape, axes, (4, 7))
    with pytest.raises(ValueError, match="give size="): table_shape(table.shape, axes, None)
