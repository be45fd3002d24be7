"Scores from answers, and their intervals from drawn weights"
import math

import numpy as np
import pytest

from vitnb.metrics.scores import intervals


def test_options_of_an_interval_act():
    of = dict(a=lambda w: (w*np.arange(50)).sum()/50)
    base = intervals(of, 50, draws=200)
    assert base == intervals(of, 50, draws=200) != intervals(of, 50, draws=200, seed=1)
    wide = intervals(of, 50, draws=200, level=.99)
    assert wide["a"][0] < base["a"][0] and wide["a"][1] > base["a"][1]
    for kw in (dict(draws=0), dict(level=1.), dict(level=0)):
        with pytest.raises(ValueError, match="level="): intervals(of, 50, **kw)

def test_sets_in_which_a_score_is_undefined_are_left_out():
    of = dict(never=lambda w: math.nan, seldom=lambda w: w[0] if w[0] else math.nan)
    got = intervals(of, 5, draws=300)
    assert all(map(math.isnan, got["never"])) and got["seldom"][0] >= 1
