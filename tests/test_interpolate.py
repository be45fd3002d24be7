"Interpolation between bands"
import numpy as np
import torch
from cube_files import own_cache
from hypothesis import given, settings, strategies as st

from vitnb.data.cube import interpolate_bands


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
