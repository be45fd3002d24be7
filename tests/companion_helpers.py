"Pairs of images, written and loaded"
import numpy as np
from PIL import Image

from vitnb.data.companionloader import companion_loaders
from vitnb.data.sets import load_set


def pairs(root, n=6, size=(12,16), channels=2, depth=np.float32):
    "Two classes of n images in each of three splits; the first spectral channel is the red one of its image"
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        for name in ("a", "b"):
            (root/split/name).mkdir(parents=True)
            for i in range(n):
                a = rng.integers(0, 256, (*size,3), np.uint8)
                Image.fromarray(a).save(root/split/name/f"{i}.png")
                array = np.concatenate([a[None,...,0], *[rng.integers(0, 256, (channels-1,*size))]*(channels > 1)]).astype(depth)
                np.save(root/split/name/f"{i}_spectral.npy", array)
    return root


def loaders(root, size=8, **kw):
    opts = dict(bs=4, device="cpu", workers=0, cache=False, augment="none", stats=([0.]*3, [1/255]*3)) | kw
    return companion_loaders(load_set(root), size, **opts)
