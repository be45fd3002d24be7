"Tokens of cubes, and which of them are masked"
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.models.protocol import create_model
from vitnb.models.tokens import MaskMode, mask_modes, mask_order, n_visible, seeded_noise, take_tokens, token_grid


def cubes(*shape, seed=1): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(T=st.integers(1, 4), h=st.integers(1, 4), w=st.integers(1, 4), s=st.integers(1, 4), p=st.integers(1, 4), seed=st.integers(0, 99))
def test_tokens_are_boxes_in_order(T, h, w, s, p, seed):
    x = cubes(2, T*s, h*p, w*p, seed=seed)
    order = torch.stack([torch.randperm(T*h*w) for _ in range(2)])
    got = take_tokens(x, (p, s), order)
    for b in range(2):
        for k,i in enumerate(order[b].tolist()):
            t,r,c = i//(h*w),i//w % h,i % w
            assert torch.equal(got[b,k], x[b, t*s:(t+1)*s, r*p:(r+1)*p, c*p:(c+1)*p].flatten())


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 60), bands=st.integers(1, 40), p=st.integers(1, 12), s=st.integers(1, 8))
def test_grids_divide_or_say_what_does(size, bands, p, s):
    if size % p == 0 and bands % s == 0 and size >= p: assert token_grid(size, bands, (p, s)) == (bands//s, size//p, size//p)
    else:
        with pytest.raises(ValueError, match="use"): token_grid(size, bands, (p, s))


@settings(max_examples=200, deadline=None)
@given(T=st.integers(1, 8), side=st.integers(1, 8), ratio=st.floats(.01, .99), mode=st.sampled_from(["random", "tube", "spectral"]))
def test_counts_are_the_nearest_whole_number(T, side, ratio, mode):
    n,each = dict(random=(T*side*side, 1), tube=(side*side, T), spectral=(T, side*side))[mode]
    nearest = {k for k in range(n+1) if abs(k - n*(1-ratio)) <= min(abs(j - n*(1-ratio)) for j in range(n+1)) + 1e-9}
    if nearest <= {0, n}:
        with pytest.raises(ValueError, match="keeps"): n_visible((T, side, side), ratio, mode)
    elif not nearest & {0, n}: assert n_visible((T, side, side), ratio, mode)/each in nearest


@pytest.mark.parametrize("mode", ["random", "tube", "spectral"])
def test_masks_are_what_they_are_called(mode):
    grid = (6, 5, 4)
    n = dict(random=120, tube=20, spectral=6)[mode]
    order = mask_order(seeded_noise(0, 0, np.arange(50), n), grid, mode)
    keep = n_visible(grid, .8, mode)
    assert torch.equal(order.sort(1).values, torch.arange(120).expand(50, -1))
    seen = torch.zeros(50, 120).scatter(1, order[:,:keep], 1.).view(50, 6, 20)
    if mode == "tube": assert (seen == seen[:,:1]).all() and (seen[:,0].sum(1) == 4).all()
    if mode == "spectral": assert (seen == seen[:,:,:1]).all() and (seen[:,:,0].sum(1) == 1).all()
    if mode == "random": assert abs(float((seen.sum(1) == 0).float().mean()) - .8**6) < .03 # places of which nothing is seen: a quarter
    assert len({tuple(o[:keep].sort().values.tolist()) for o in order}) > 5


def test_a_new_way_to_mask_is_one_class():
    "Rows of an image, all bands of them: registered, and every function and the model know it"
    class MaskRows(MaskMode):
        things = "rows"
        def count(self, grid): return grid[1]
        def tokens(self, order, grid):
            groups,rows,columns = grid
            whole = torch.arange(groups)[:,None]*rows*columns + torch.arange(columns)
            return (order[:,:,None,None]*columns + whole).flatten(1)
    mask_modes["rows"] = MaskRows
    try:
        model = create_model("spectral_mae_micro", img_size=8, in_chans=6, patch_size=(2, 3), mask_mode="rows", mask_ratio=.5).eval()
        mask = model(torch.zeros(2, 6, 8, 8))["mask"].view(2, 2, 4, 4)
        assert model.n_visible == 16 and (mask == mask[:,:1,:,:1]).all() and (mask[:,0,:,0].sum(1) == 2).all()
        with pytest.raises(ValueError, match="keeps 4 of 4 rows"): n_visible((2, 4, 4), .01, "rows")
    finally: del mask_modes["rows"]
