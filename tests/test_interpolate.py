"Interpolation between bands"
import numpy as np
import torch
from cube_files import own_cache
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.data.interpolate import band_nearness, interpolate_bands


@given(st.integers(0, 10**6), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_interpolation_across_bands_is_numpys(seed, bands):
    g = torch.Generator().manual_seed(seed)
    x,gone,nm = torch.rand(2,bands,2,3, generator=g),torch.rand(2,bands,2,3, generator=g) < .6,torch.rand(bands, generator=g)*1000 + 400
    y,order = interpolate_bands(x, gone, nm, otherwise=7.),nm.argsort()
    for b,r,k in np.ndindex(2,2,3):
        see = ~gone[b,order,r,k]
        want = np.interp(nm[order], nm[order][see], x[b,order,r,k][see]) if see.any() else np.full(bands, 7.)
        assert np.allclose(y[b,order,r,k], want, atol=1e-4)


def test_interpolation_between_bands_by_numpy():
    g = torch.Generator().manual_seed(0)
    x,nm = torch.rand(2, 7, 3, 4, generator=g),[400., 410, 450, 500, 520, 700, 900]
    seen = torch.rand(2, 7, 3, 4, generator=g) > .5
    got = interpolate_bands(x, ~seen, nm, torch.full_like(x, -1.))
    for b,i,j in np.ndindex(2, 3, 4):
        w = seen[b,:,i,j].numpy()
        want = np.interp(nm, np.array(nm)[w], x[b,:,i,j].numpy()[w]) if w.any() else np.full(7, -1.)
        assert np.allclose(got[b,:,i,j], want, atol=1e-5)


def test_missing_wavelengths_and_tensors_otherwise():
    "A band without a wavelength is never an end of a line, and a pixel without a band gets what it is given"
    x = torch.rand(1, 5, 2, 2)
    nm = [400., 500., float("nan"), 600., 450.] # in no order
    missing = torch.zeros_like(x).bool()
    missing[:,1:4] = True
    got = interpolate_bands(x, missing, nm)
    assert torch.allclose(got[:,1], x[:,4]) and torch.allclose(got[:,3], x[:,4]) and got.isfinite().all() # beyond the last one
    nothing = interpolate_bands(x, torch.ones_like(x).bool(), nm, torch.full_like(x, 7.))
    assert (nothing == 7).all()


def test_nearness_is_the_distance_to_the_nearest_known_band():
    nm = torch.tensor([400., 410, 430, 480, 600])
    missing = torch.rand(2, 5, 3, 3, generator=torch.Generator().manual_seed(0)) > .4
    got = band_nearness(missing, nm, 50.)
    for b,i,j in np.ndindex(2, 3, 3):
        known = nm[~missing[b,:,i,j]]
        far = [min((abs(float(o) - float(k)) for k in known), default=np.inf) for o in nm]
        assert np.allclose(got[b,:,i,j], np.exp(-np.array(far)/50), atol=1e-6)


def test_nearness_knows_no_order_of_bands():
    g = torch.Generator().manual_seed(0)
    missing,nm = torch.rand(2, 9, 3, 4, generator=g) < .6,torch.linspace(400, 800, 9)
    for order in (torch.arange(8, -1, -1), torch.randperm(9, generator=g)):
        assert torch.equal(band_nearness(missing[:,order], nm[order], 40.), band_nearness(missing, nm, 40.)[:,order])
