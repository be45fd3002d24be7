"A run of every kind of task, with what a process that never saw its Learner predicts"
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_heads
import torch
from PIL import Image

from vitnb.callback.checkpoint import load_checkpoint
from vitnb.data.cube import cube_loaders, load_cube_set
from vitnb.data.holdout import Split
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.data.table import ImageSet
from vitnb.learner.core import run_callbacks, vit_learner
from vitnb.runweights import find_checkpoint
from vitnb.task import ClassMap, MultiLabel, Ordinal, Tasks, Value

HERE = Path(__file__).resolve().parent
LUNG = ("upper right", "upper left")
TASKS = dict(
    labels=MultiLabel(("red", "bright")),
    zones=Ordinal(LUNG, levels=3, unknown=-1, flips=dict(hflip=[1, 0])),
    abstain=Ordinal(LUNG, levels=3, unknown=9, abstain=True, flips=dict(hflip=[1, 0])),
    grade=Ordinal(levels=4, cumulative=True),
    map=ClassMap(("dark", "light"), unknown=-100),
    value=Value(unit="mm"),
    values=Value(("mean", "spread")),
    several=Tasks.of(dict(zones=Ordinal(LUNG, levels=3, unknown=-1, flips=dict(hflip=[1, 0])), pixels=ClassMap(("dark", "light"), unknown=-100), size=Value())))
IMAGE_KINDS = ["class", *TASKS]
CUBE_KINDS = ["cubes", "pixels", "patches"]


def targets_of(x, rng):
    "Targets of each kind for images (N,H,W,C)"
    sides = np.stack([x[:,:,h:h+4].mean((1, 2, 3)) for h in (4, 0)], 1)
    levels = np.digitize(sides, np.quantile(sides, [.33, .67]))
    unknown = rng.random(levels.shape) < .2
    mean = x.mean((1, 2, 3))
    zones = np.where(unknown, -1, levels)
    pixels = np.where(rng.random(x.shape[:3]) < .1, -100, x.mean(3) > .5)
    return dict(labels=np.stack([x[...,0].mean((1, 2)) > .5, mean > .5], 1).astype(int), zones=zones, abstain=np.where(unknown, 9, levels),
                grade=np.digitize(mean, np.quantile(mean, [.25, .5, .75])), map=pixels, value=mean[:,None].astype(np.float32),
                values=np.stack([mean, x.std((1, 2, 3))], 1).astype(np.float32), several=dict(zones=zones, pixels=pixels, size=mean[:,None].astype(np.float32)))


def image_set(kind):
    "24 and 8 float images of four channels, with targets of a kind"
    rng = np.random.default_rng(0)
    splits = {}
    for name,n in dict(train=24, valid=8, test=8).items():
        x = (rng.random((n, 8, 8, 4))*.5 + rng.random((n, 1, 2, 1)).repeat(4, 2)*.5).astype(np.float32)
        splits[name] = Split(x, targets_of(x, rng)[kind])
    return ImageSet(f"tiny_{kind}", TASKS[kind], splits)


def fit(folder, learn, **kw):
    learn.progress.plot = False
    learn.fit(1, cbs=run_callbacks(folder, tracker="none", **kw))
    return learn


def image_run(kind, folder):
    "A run, its Learner, and its test images as files"
    data = load_set("digits", limit=4) if kind == "class" else image_set(kind)
    dls = image_loaders(data, bs=8, augment="none", seed=1, device="cpu", workers=0)
    dense = [k for k,t in data.tasks.items() if isinstance(t, ClassMap)]
    learn = vit_learner(dls, "tiny_heads", dict(dense=dense), seed=1, device="cpu", precision="fp32", lr=1e-2)
    images = data.splits["test"].items
    for i,x in enumerate(images):
        if kind == "class": Image.fromarray(x).save(folder/f"new_{i:03}.png")
        else: np.save(folder/f"new_{i:03}.npy", x)
    return fit(folder, learn)


def cube_run(kind, folder):
    "The same of cubes: masked, or with a class for each pixel or patch"
    cubes = load_cube_set("retina_synthetic", n=40, bands=10, size=16)
    dls = cube_loaders(cubes, bs=3, normalize="zscore", label=None if kind == "cubes" else "pixels", seed=1, workers=0, device="cpu")
    kw = dict(patch_size=(4, 5), **({} if kind == "cubes" else dict(head=dict(pixels="pixel", patches="patch")[kind])))
    learn = vit_learner(dls, "spectral_mae_micro", kw, pretext="masked" if kind == "cubes" else None, seed=1, device="cpu", precision="fp32")
    for i,k in enumerate(cubes.splits["test"]): np.save(folder/f"new_{i:03}.npy", cubes.records[k].source.read())
    return fit(folder, learn)


SCRIPT = """
import pickle, sys
from pathlib import Path
import tiny_heads
from vitnb.learner.predict import predict
tiny_heads.register()
root = Path(sys.argv[1])
said = {p.name:predict(p, f"{p}/new_*", bs=3, device="cpu") for p in sorted(root.iterdir()) if p.is_dir()}
(root/"said.pkl").write_bytes(pickle.dumps({k:list(v) for k,v in said.items()}))
"""


@pytest.fixture(scope="module", autouse=True)
def registered():
    "The model is known while a file that imports this is tested"
    with tiny_heads.known(): yield


def make_runs(root):
    "Folder, Learner, and what a process that never saw the Learner predicts, for each kind"
    learners = {}
    with tiny_heads.known():
        for kind in IMAGE_KINDS + CUBE_KINDS:
            (root/kind).mkdir()
            learners[kind] = (cube_run if kind in CUBE_KINDS else image_run)(kind, root/kind)
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", SCRIPT, str(root)], check=True, env={**os.environ, "PYTHONPATH":path}, cwd=root)
    said = pickle.loads((root/"said.pkl").read_bytes())
    return {k:(root/k, learn, said[k]) for k,learn in learners.items()}


def changed(folder, to, change):
    "The run with another configuration"
    (to/"checkpoints").mkdir()
    ck = load_checkpoint(find_checkpoint(folder))
    change(ck["config"])
    torch.save(ck, to/"checkpoints"/"best_model.pth")
    return to
