"Learners on synthetic retinas, of milliseconds a step, for several test files"
from vitnb.data.cube import cube_loaders, load_cube_set
from vitnb.learner.core import train_callbacks, vit_learner
from vitnb.seeding import set_seed

TINY = dict(patch_size=(4, 5), embed_dim=16, depth=2, num_heads=2, decoder_depth=1)
SIZE = 16


def loaders(n, bs, seed, **kw):
    set_seed(seed)
    return cube_loaders(load_cube_set("retina_synthetic", n=n, bands=10, size=SIZE), bs=bs, seed=seed, device="cpu", **{**dict(augment="flip", workers=0), **kw})


def quiet(learn):
    learn.progress.plot,learn.logger = False,lambda *a, **k: None
    return learn


def masked_learner(bs=2, cbs=(), engine=None, normalize="log", n=12, seed=1, workers=0, metrics=(), model_kw=None, data_kw=None, pretext="masked", **kw):
    "One that pre-trains"
    kw = {**dict(precision="fp32", schedule="constant"), **kw}
    dls = loaders(n, bs, seed, normalize=normalize, workers=workers, **(data_kw or {}))
    return quiet(vit_learner(dls, "spectral_mae_micro", {**TINY, **(model_kw or {})}, pretext=pretext, seed=seed, device="cpu", metrics=metrics,
                             cbs=[*train_callbacks(**(engine or {})), *cbs], **kw))


def pixel_learner(bs=2, n=24, seed=1, head="pixel", **kw):
    "One that gives every pixel its class"
    dls = loaders(n, bs, seed, label="pixels")
    return quiet(vit_learner(dls, "spectral_mae_micro", {**TINY, "head": head}, seed=seed, device="cpu", precision="fp32", schedule="constant", **kw))
