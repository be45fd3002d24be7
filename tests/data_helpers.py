"Folders, images and sets that several test files use"
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vitnb.data.holdout import Split
from vitnb.data.sets import load_set
from vitnb.data.table import ImageSet
from vitnb.task import ClassMap, OneClass, Ordinal, Tasks, Value


LEVELS = 7


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path/"outputs"))
    monkeypatch.setenv("VITNB_DATA_PATH", str(tmp_path/"data"))
    monkeypatch.setenv("VITNB_HEADLESS", "1")


def picture(path, h=8, w=8, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    a = np.random.randint(0, 256, (h,w,3), dtype=np.uint8) # conftest seeds it for each test
    Image.fromarray(a).convert(mode).save(path)
    return path


def folder(root, classes=("a", "b"), n=10, parts=("",), **kw):
    for p in parts:
        for c in classes:
            for i in range(n): picture(root/p/c/f"{i}.png", **kw)
    return root


def film_table(folder, n=24, depth=8, name="films.csv", sep=",", **columns):
    "A csv beside grey images; two films a patient"
    for i in range(n):
        a = np.random.default_rng(0).integers(0, 2**depth, (6,6)).astype(np.uint8 if depth == 8 else np.uint16)
        Image.fromarray(a).save(folder/f"{i}.png")
        Image.fromarray(np.random.default_rng(0).integers(0, 3, (6,6), dtype=np.uint8)).save(folder/f"{i}_parts.png")
    table = dict(file=[f"{i}.png" for i in range(n)], patient=[f"{i//2:03}" for i in range(n)], kind=["cat" if i % 3 else "dog" for i in range(n)],
                 upper=[i % 4 for i in range(n)], lower=["" if i == 5 else i % 3 for i in range(n)], age=[f"{40 + i/2}" for i in range(n)], parts=[f"{i}_parts.png" for i in range(n)])
    frame = pd.DataFrame(table | columns)
    frame.to_csv(folder/name, index=False, sep=sep)
    return folder/name


def chart(n, h, w, seed, ragged=False):
    "Images whose pixels say their class, so that a map that moved otherwise shows"
    rng = np.random.default_rng(seed)
    sizes = [(h + i % 3*ragged, w + 2*(i % 2)*ragged) for i in range(n)]
    maps = [torch.from_numpy(rng.integers(0, LEVELS, s)) for s in sizes]
    images = [(m*30).to(torch.uint8).expand(3, -1, -1).contiguous() for m in maps]
    masks = [(m > 0)[None] for m in maps]
    tasks = Tasks(part=ClassMap(tuple(map(str, range(LEVELS))), unknown=255), zone=Ordinal(("left", "right"), levels=4, flips=dict(hflip=(1,0))), kind=OneClass(("a", "b")), age=Value())
    target = dict(part=maps, zone=torch.from_numpy(rng.integers(0, 4, (n,2))), kind=torch.from_numpy(rng.integers(0, 2, n)), age=torch.rand(n))
    sample = dict(image=images, mask=masks, target=target, tasks=tasks)
    if ragged: return sample
    return {**sample, "image":torch.stack(images), "mask":torch.stack(masks), "target":{**target, "part":torch.stack(maps)}}


def pictures(n=12, h=11, w=9, seed=0):
    "Noise on which most operations show; every third is grey, which is where rounding of colour operations shows"
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n,3,h,w), dtype=torch.uint8, generator=g)
    x[::3] = x[::3,:1]
    return x


@pytest.fixture(scope="module")
def digits(): return load_set("digits")


def paint(folder, sizes=((12,12),), n=20, mode="RGB"):
    "PNG noise in two class folders, the sizes in turn"
    rng = np.random.default_rng(0)
    for c in ("cat", "dog"):
        (folder/c).mkdir(parents=True)
        for i in range(n):
            h,w = sizes[i%len(sizes)]
            Image.fromarray(rng.integers(0, 256, (h,w,3), dtype=np.uint8)).convert(mode).save(folder/c/f"{i:03}.png")
    return folder


def passes(dl, n=1): return [b for _ in range(n) for b in dl]


def same(a, b): return len(a) == len(b) and all(torch.equal(p, q) and torch.equal(r, s) for (p,r),(q,s) in zip(a, b))


def film_set(n=24, channels=5, files=None):
    "Images of 16 bits with two zones, a map that the image shows, an age, patients and weights"
    rng = np.random.default_rng(0)
    def split(n, first):
        image = rng.integers(0, 4000, (n,12,12,channels), dtype=np.uint16)
        targets = dict(zones=rng.integers(0, 5, (n,2)), field=(image[...,0] > 2000).astype(np.uint8), age=rng.random(n)*90)
        items = image
        if files is not None:
            items = [f"{first+i}.npy" for i in range(n)]
            targets["field"] = [f"{first+i}_map.npy" for i in range(n)]
            for p,q,x in zip(items, targets["field"], image): np.save(files/p, x); np.save(files/q, (x[...,0] > 2000).astype(np.uint8))
        return Split(items, targets, groups=[f"p{(first+i)//2}" for i in range(n)], weights=1 + np.arange(n) % 3)
    tasks = dict(zones=Ordinal(("left", "right"), levels=4, unknown=4, flips=dict(hflip=(1,0))), field=ClassMap(("dark", "bright"), unknown=255), age=Value())
    return ImageSet("films", tasks, dict(train=split(n, 0), valid=split(8, 100), test=split(8, 200)), files, reader="native")


def equal(a, b): return a.keys() == b.keys() and all(equal(a[k], b[k]) if isinstance(a[k], dict) else np.array_equal(a[k], b[k]) for k in a)
