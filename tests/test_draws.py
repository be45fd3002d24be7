"Draws are functions of seed, epoch, sample and transform"
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.data.draws import Draws

fast = settings(max_examples=25, deadline=None)

@fast
@given(st.integers(0, 2**40), st.integers(0, 10**4), st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.data())
def test_draws_need_no_neighbours(seed, epoch, index, data):
    rows = data.draw(st.lists(st.integers(0, len(index)-1), min_size=1, max_size=8))
    d,e = Draws(seed, epoch, index, 3),Draws(seed, epoch, np.array(index)[rows], 3)
    for _ in range(3): assert torch.equal(d.uniform()[rows], e.uniform())
    assert torch.equal(d.normal(2, 3)[rows], e.normal(2, 3))
    assert torch.equal(d[rows].uniform(), e.uniform())

def test_draws_differ_in_every_key():
    base = Draws(1, 2, range(50), 0).uniform()
    again = Draws(1, 2, range(50), 0)
    assert torch.equal(again.uniform(), base)
    others = [Draws(0, 2, range(50), 0), Draws(1, 3, range(50), 0), Draws(1, 2, range(50, 100), 0), Draws(1, 2, range(50), 1), again]
    for o in others: assert not (o.uniform() == base).any()

@fast
@given(st.integers(-5, 5), st.integers(1, 12), st.integers(0, 99))
def test_integers_stay_in_range_and_reach_both_ends(lo, n, seed):
    v = Draws(seed, 0, range(2000)).integers(lo, lo+n)
    assert v.min() == lo and v.max() == lo+n-1

def test_integers_are_even():
    counts = Draws(0, 0, range(70_000)).integers(0, 7).bincount()
    assert ((counts - 10_000)**2/10_000).sum() < 22.5 # chi-squared, 6 degrees of freedom, p = 0.001

def test_normal_draws_are_normal():
    z = Draws(0, 0, range(400)).normal(3, 10, 10).double()
    assert abs(z.mean()) < .01 and abs(z.std() - 1) < .01 and abs((z**4).mean() - 3) < .1 and torch.isfinite(z).all()
