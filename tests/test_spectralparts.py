"Positions and blocks of spectral transformers"
import math

import torch
from torch import nn

from vitnb.callback.memory import MemoryMeter
from vitnb.models.spectralparts import SpectralBlock, encode_wavelengths


def cubes(*shape, seed=1): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_lean_blocks_have_the_same_gradients():
    a,b = SpectralBlock(16, 2),SpectralBlock(16, 2, lean=True)
    b.load_state_dict(a.state_dict())
    x = cubes(2, 9, 16)
    def kept(m):
        with MemoryMeter((*m.parameters(), x)) as meter: y = m(x)
        size = meter.live
        y.square().sum().backward()
        return size
    assert kept(b) < kept(a)
    for p,q in zip(a.parameters(), b.parameters()): assert torch.equal(p.grad, q.grad)


def test_wavelength_positions_know_distances():
    nm = torch.arange(400., 1000, 5)[:,None]
    code = nn.functional.normalize(encode_wavelengths(nm, 128), dim=-1)
    near,far = (code[:-1]*code[1:]).sum(1),(code[:-40]*code[40:]).sum(1)
    assert near.min() > .7 and far.max() < .5 and (near.max() - near.min()) < .01 # the same distance, the same similarity, wherever


def test_missing_bands_move_a_token_and_irregular_ones_are_what_they_are():
    even,odd = torch.tensor([[700., 710, 720, 730, 740]]),torch.tensor([[700., 710, 720, 730, 850]])
    a,b,c = (encode_wavelengths(o, 64) for o in (even, odd, torch.tensor([[700., 710, 720, 730, math.nan]])))
    assert not torch.allclose(a, b, atol=.05) and torch.allclose(c, encode_wavelengths(even[:,:4], 64)) and torch.isfinite(c).all()
