"What each of two ranks does in `test_callback_contrastive.py`, and the runs that all of its tests are made of"
import sys
from pathlib import Path

import numpy as np
import torch

from vitnb.callback.ema import EMACallback
from vitnb.core import my_rank
from vitnb.data.loader import image_loaders
from vitnb.data.table import ImageSet, Split
from vitnb.learner.core import train_callbacks, vit_learner
from vitnb.learner.distribute import distribute
from vitnb.learner.gradcache import GradCache
from vitnb.learner.transfer import size_schedule

ARCHS = dict(hvit_micro=dict(img_size=16, embed_dim=8, depths=(1, 1), num_heads=(1, 2)), densenet_micro=dict(growth_rate=4, block_config=(2, 2)),
             swin_micro=dict(embed_dim=16, depths=(1, 1), num_heads=(2, 2)))
STEP = dict(optimizer="sgd", lr=.05, opt_kw=dict(momentum=.9)) # Adam makes 1e-5 of a gradient that is nothing but rounding
TWO = dict(ARCHS["hvit_micro"], in_chans=5, spectral_channels=2, modality_dropout=.5)
CASES = dict(
    ntxent = dict(pretext=dict(temperature=.2)),
    groups = dict(pretext=dict(temperature=.2, use_groups=True), groups=True),
    byol = dict(arch="densenet_micro", pretext=dict(loss="byol")), # batch normalisation in model and head
    vicreg = dict(arch="swin_micro", pretext=dict(loss="vicreg", norm="batch")),
    cached = dict(pretext=dict(temperature=.2), chunk=3), # gradient caching, with drop path
    growing = dict(pretext=dict(temperature=.2), model_kw=dict(ARCHS["hvit_micro"], patch_size=4), sizes=[(.5, 8), (1., 16)]),
    missing = dict(pretext=dict(temperature=.2), model_kw=TWO), # colours alone: the spectral stream has no part
    dropped = dict(pretext=dict(temperature=.2), model_kw=TWO, channels=5), # some samples lose their spectral image
    pixels = dict(pretext=dict(name="masked_pixels", projection=None), model_kw=dict(ARCHS["hvit_micro"], patch_size=2))) # gaps are those of the whole batch


def photos(n=72, size=16, channels=3, seed=0):
    "Patches of random colours"
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 4, 4, channels)).astype(np.uint8).repeat(size//4, 1).repeat(size//4, 2)


def image_set(train=48, n=72, groups=False, **kw):
    x = photos(n, **kw)
    group = np.array([f"plant {i//3}" for i in range(n)]) if groups else None
    part = lambda a, b: Split(x[a:b], groups=None if group is None else group[a:b])
    return ImageSet("photos", None, dict(train=part(0, train), valid=part(train, n)))


def make(arch="hvit_micro", pretext=(), bs=16, valid_bs=12, groups=False, cbs=(), engine=None, data=None, loader_kw=None, chunk=None, channels=3, sizes=None, **kw):
    "A contrastive Learner that is small and quick"
    if chunk: cbs = [*cbs, GradCache(chunk)]
    own = dict(bs=bs, valid_bs=valid_bs, seed=5, workers=0, augment="simclr", aug_kw=dict(blur=0., jitter=.5))
    dls = image_loaders(image_set(groups=groups, channels=channels) if data is None else data, **{**own, **(loader_kw or {})})
    engine = dict(ema_decay=.8) if engine is None else engine
    kw = {**dict(model_kw=ARCHS[arch], seed=3, precision="fp32"), **STEP, **kw}
    pretext = {k:v for k,v in dict(dict(name="contrastive", projection=16), **dict(pretext)).items() if v is not None}
    learn = vit_learner(dls, arch, pretext=pretext, cbs=[*train_callbacks(**engine), *cbs], **kw)
    learn.logger = lambda *a: None
    if sizes: size_schedule(learn, sizes, 2)
    return learn


def outcome(learn):
    "All that a fit has made"
    ema = [dict(cb.module.state_dict()) for cb in learn.cbs if isinstance(cb, EMACallback)]
    teacher = {k: dict(o.state_dict()) for k,o in learn.companions.items()}
    return dict(model=dict(learn.model.state_dict()), opt=learn.opt.opt.state_dict(), ema=ema, teacher=teacher, rows=learn.recorder.rows,
                losses=[o["loss"] for o in learn.recorder.steps])


def train(epochs=2, **kw):
    learn = distribute(make(**kw), timeout=120)
    learn.fit(epochs)
    return outcome(learn)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save({k: train(**kw) for k,kw in CASES.items()}, Path(sys.argv[1])/f"rank{my_rank()}.pth")


def quiet_fit(learn, n, **kw):
    with learn.no_bar(): learn.fit(n, **kw)
    return learn
