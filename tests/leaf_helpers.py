"A small HierarchicalViT and images of one's own"
import numpy as np
from PIL import Image


TINY = dict(img_size=16, patch_size=2, depths=(1, 1), num_heads=(2, 2), embed_dim=16)
OPTIONS = dict(seed=0, device="cpu", precision="fp32")


def picture(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(shade).integers(0, 256, (12, 12, 3), np.uint8)).save(path)
