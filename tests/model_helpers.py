"Small models that depend on a seed alone, what a change of options does to them, and files of their weights"
from functools import cache

import pytest
import torch

from vitnb.models.protocol import create_model, list_models
from vitnb.models.swin import swin_micro

NAMES = list_models()
SMALL = dict(embed_dim=8, depths=(2, 2), num_heads=(1, 2), patch_size=2, img_size=16, num_classes=5)

@cache
def meta(name, **kw):
    "A model without storage, shared by the tests that do not change it"
    with torch.device("meta"): return create_model(name, **kw)

def n_params(model): return sum(p.numel() for p in model.parameters())

def seeded(build, seed=0, **kw):
    "A model whose weights depend on `seed` alone"
    torch.manual_seed(seed)
    return build(**kw)

def images(*shape, seed=1): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


OWN = {n: dict(in_chans=3, patch_size=(8, 1)) for n in NAMES if n.startswith("spectral")} # cubes of three bands are images
OWN |= {n: dict(patch_size=4) for n in NAMES if n.startswith("hvit")} # 32 pixels are four patches of 8, too few for three mergings
OWN |= dict(csi_raddino=dict(backbone_kw=dict(patch_size=16)), csi_micro=dict(pool="global")) # 32 pixels are no patches of 14; one class a film

def small(name): return dict(name=name, img_size=32, num_classes=10, **OWN.get(name, {}))


def trace(build, **kw):
    "What can be seen of a model from outside: shapes of weights and maps, windows, a training pass"
    model = seeded(build, **kw).train()
    channels,size = kw.get("in_chans", 3),kw["img_size"]
    x = images(4, channels, *((size, size) if isinstance(size, int) else size))
    torch.manual_seed(2)
    return [tuple(p.shape) for p in model.parameters()],[tuple(o.shape) for o in model.forward_intermediates(x)[1]],model(x).detach()

def differs(a, b): return a[0] != b[0] or a[1] != b[1] or a[2].shape != b[2].shape or not torch.equal(a[2], b[2])

SWIN_OPTIONS = dict(img_size=(16, 32), num_classes=3, window_size=2, patch_size=4, in_chans=1, embed_dim=16, depths=(1, 2), num_heads=(2, 4),
                    drop_path_rate=.5, drop_rate=.5, proj_drop_rate=.5, attn_drop_rate=.5, mlp_ratio=2., window_near=2, stem="conv")


def drop_rates(model): return [[getattr(p, "drop_prob", 0.) for p in (b.drop_path1, b.drop_path2)] for s in model.layers for b in s.blocks]


@pytest.fixture
def saved(tmp_path):
    "A trained-elsewhere `swin_micro`, ten classes, as a file"
    model = seeded(swin_micro, img_size=16, num_classes=10)
    torch.save(model.state_dict(), tmp_path/"micro.pth")
    return model,tmp_path/"micro.pth"


DENSE = dict(growth_rate=4, block_config=(2, 2), img_size=16, num_classes=5)
DENSE_OPTIONS = dict(img_size=80, num_classes=3, stem="imagenet", in_chans=1, growth_rate=8, block_config=(1, 2), bn_size=2, drop_rate=.5, proj_drop_rate=.5)


def step(model, x, seed=3):
    "Gradients and state after one training pass"
    torch.manual_seed(seed)
    y = model.train()(x)
    y.square().sum().backward()
    return y.detach(),[p.grad for p in model.parameters()],{k: v.clone() for k,v in model.state_dict().items()}

def same(a, b):
    return torch.equal(a[0], b[0]) and all(torch.allclose(p, q, atol=1e-6) for p,q in zip(a[1], b[1])) and all(torch.equal(v, b[2][k]) for k,v in a[2].items())
