"""Systems that vitnb does not know, written with its public names only: what a user would bring, and nothing of the engine

`wards`: float images of five channels, levels of two zones with unknown entries and a label map, patients;
`twins`: two views of images without labels; `ages`: a value, at times unknown; `signs`: several labels;
`winds`: a direction on the circle, a kind of task, a reader of files, a loss, a metric and a drawing of its own.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from fastai.learner import Metric
from torch import nn

from vitnb.callback.pretext import Pretext, fold_views, pretexts, unfold_views
from vitnb.data.augment import augments
from vitnb.data.geometry import RandomCrop, Resize
from vitnb.data.holdout import Split
from vitnb.data.image import UnreadableImage, readers
from vitnb.data.loader import image_loaders
from vitnb.data.sample import Batch
from vitnb.data.sets import load_set
from vitnb.data.table import ImageSet, hold_out_missing
from vitnb.data.transform import Transform, transforms
from vitnb.drawings import drawings
from vitnb.figures import new_figure
from vitnb.learner.core import train_callbacks, vit_learner
from vitnb.learner.predict import pretext_columns
from vitnb.losses.base import Loss, RowLoss, losses
from vitnb.losses.regress import ValueLoss
from vitnb.metrics.base import EpochMetric, metrics, new_metric
from vitnb.metrics.scores import Score, answers, right_answers, sum_ratio, weighted_sums
from vitnb.models.protocol import models, register_model
from vitnb.task import ClassMap, Column, MultiLabel, Ordinal, Task, Tasks, Value, tasks

SIZE = 8
REGISTRIES = (augments, drawings, losses, metrics, models, pretexts, readers, tasks, transforms)
BEFORE = [dict(o) for o in REGISTRIES]

# ---------------------------------------------------------------------------------------------- models

class SeamNet(nn.Module):
    "Two convolutions and a head for each output: numbers, (zones, levels), or a class for each pixel where `maps` says so"
    def __init__(self, num_classes=2, in_chans=3, width=12, maps=()):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU())
        self.several = isinstance(num_classes, dict)
        outputs = num_classes if self.several else dict(only=num_classes)
        self.heads = nn.ModuleDict({k: self.head(width, n, k in maps) for k,n in outputs.items()})

    def head(self, width, n, is_map):
        if is_map: return nn.Conv2d(width, n, 1)
        shape = n if isinstance(n, tuple) else (n,)
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4*width, int(np.prod(shape))), nn.Unflatten(1, shape))

    def forward(self, x):
        x = self.trunk(x)
        out = {k: head(x) for k,head in self.heads.items()}
        return out if self.several else out["only"]


class TwinNet(nn.Module):
    "Features of an image, and a projection of them"
    def __init__(self, in_chans=3, width=16, dim=8):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.projection = nn.Linear(16*width, dim)

    def project(self, x): return F.normalize(self.projection(self.trunk(x)), dim=-1)
    def forward(self, x): return self.project(x)


register_model("seam_net", SeamNet)
register_model("seam_twins", TwinNet)

# ---------------------------------------------------------------------------------------------- wards

WARDS = Tasks.of(dict(zones=Ordinal(("left", "right"), levels=3, unknown=-1, metrics=("mae", "within_one", "accuracy"), flips=dict(hflip=[1, 0])),
                      tissue=ClassMap(("air", "bone", "water"), unknown=255)))
_within_one = new_metric("within_one")


def near(said, true):
    "Known levels that are missed by one at most"
    known = true >= 0
    return weighted_sums(np.stack([(known & (abs(said - true) < 2)).sum(1), known.sum(1)], 1))


@_within_one.register
def _(task: Ordinal, taskname=""): return EpochMetric(Score("within_one", answers, near, sum_ratio), task, taskname)


def wards(n=160, seed=0):
    "Each half is as bright in one channel as its zone's level says; the tissue of a pixel is in two others; four images a patient"
    rng = np.random.default_rng(seed)
    levels,tissue = rng.choice(3, (n, 2), p=[.6, .25, .15]),rng.choice(3, (n, 4, 4), p=[.6, .3, .1]).repeat(2, 1).repeat(2, 2)
    x = rng.normal(0, .5, (n, SIZE, SIZE, 5)).astype(np.float32)
    x[...,2] += np.repeat(levels, SIZE//2, 1)[:,None]
    for c in (1, 2): x[...,c+2] += 2*(tissue == c)
    zones,tissue = np.where(rng.random((n, 2)) < .25, -1, levels),np.where(rng.random(tissue.shape) < .2, 255, tissue)
    s = ImageSet("wards", WARDS, dict(train=Split(x, dict(zones=zones, tissue=tissue.astype(np.uint8)), np.repeat(np.arange(n//4), 4))))
    hold_out_missing(s, .25, 0)
    return s

# ---------------------------------------------------------------------------------------------- twins

@transforms.register()
class Dim(Transform):
    "Change the brightness of each image"
    def __init__(self, most=.5): self.most = most
    def batch(self, x, draws): return x*(1 + self.most*(2*draws.uniform() - 1)).view(-1, 1, 1, 1).to(x)


@augments.register("seam_views")
def _views(size, padding=1): return [Resize(size), RandomCrop(size, padding), Dim()]


class Found(Metric):
    "Share of views whose nearest neighbour is the other view of the same image"
    name,better,unit = "found","max",""
    def reset(self): self.hits = []
    def accumulate(self, learn): self.hits.append(found(learn.pred))
    @property
    def value(self): return torch.cat(self.hits).float().mean().item() if self.hits else None


def found(z):
    "Whether the nearest neighbour of each row is the row beside it"
    near = (z @ z.T).fill_diagonal_(-9).argmax(1).cpu()
    return near == torch.arange(len(z)) ^ 1


@pretexts.register("seam_twins")
class Twins(Pretext):
    "Tell the other view of an image from all other images"
    name,needs,views,whole_batch = "seam_twins",("project",),2,True
    monitor,title = "found","Loss (NT-Xent)"
    def __init__(self, temperature=.2):
        super().__init__()
        self.temperature = temperature

    def prepare(self, learn, batch): return Batch(dict(image=fold_views(batch["image"]), index=batch["index"]))
    def terms(self, pred, batch):
        z = unfold_views(pred, 2).flatten(0, 1)
        near = (z @ z.T/self.temperature).fill_diagonal_(-torch.inf)
        other = torch.arange(len(z), device=z.device) ^ 1
        return dict(contrast=(F.cross_entropy(near, other, reduction="sum"), len(z)))
    def counts(self, batch): return dict(contrast=len(batch["image"]))
    def columns(self): return [Column("contrast", "min")]
    def metrics(self): return [Found()]
    def config(self): return dict(name=self.name, temperature=self.temperature)


@pretext_columns.register
def _(pretext: Twins, run, batch): return dict(features=list(run.model.project(batch["image"]).cpu().numpy()))


def twins(n=120, seed=0):
    "Random patterns of four numbers a channel, without a label"
    x = np.random.default_rng(seed).random((n, 4, 4, 3)).astype(np.float32).repeat(2, 1).repeat(2, 2)
    return ImageSet("twins", None, dict(train=Split(x[:64]), valid=Split(x[64:96]), test=Split(x[96:])))

# ---------------------------------------------------------------------------------------------- ages

@losses.register("log_cosh")
class LogCosh(ValueLoss):
    "Squared near 0, absolute far away"
    def error(self, pred, target): return torch.log(torch.cosh((pred - target).clamp(-20, 20)))


def ages(n=160, seed=1):
    "Brightness says the age; one in five is unknown"
    rng = np.random.default_rng(seed)
    age = rng.normal(size=(n, 1)).astype(np.float32)
    x = (rng.normal(0, .5, (n, SIZE, SIZE, 2)) + age[:,None,None]).astype(np.float32)
    y = np.where(rng.random((n, 1)) < .2, np.nan, age).astype(np.float32)
    parts = dict(train=slice(0, 96), valid=slice(96, 128), test=slice(128, n))
    return ImageSet("ages", Value(("age",), unknown=0, unit="decades", loss="log_cosh"), {k: Split(x[s], y[s]) for k,s in parts.items()})

# ---------------------------------------------------------------------------------------------- signs

_exact = new_metric("exact")


def all_right(said, true):
    "Samples of which all known labels are right"
    return weighted_sums(np.stack([((said == true) | (true < 0)).all(1), np.ones(len(true))], 1))


@_exact.register
def _(task: MultiLabel, taskname=""): return EpochMetric(Score("exact", answers, all_right, sum_ratio), task, taskname)


def signs(n=160, seed=2):
    "8-bit images of three channels, each bright where its label is there; drawn by weight"
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 3)) < [.5, .3, .2]).astype(int)
    x = np.clip(rng.normal(100, 40, (n, SIZE, SIZE, 3)) + 60*y[:,None,None], 0, 255).astype(np.uint8)
    parts = dict(train=slice(0, 96), valid=slice(96, 128), test=slice(128, n))
    task = MultiLabel(("rale", "wheeze", "rub"), metrics=("average_precision", "exact"))
    return ImageSet("signs", task, {k: Split(x[s], y[s], weights=1. + y[s].sum(1)) for k,s in parts.items()})

# ---------------------------------------------------------------------------------------------- winds

@tasks.register("direction")
@dataclass(frozen=True)
class Direction(Task):
    "An angle in degrees, counted from the right against the clock: predictions (B,2), targets (B,); NaN is unknown"
    zero: str = "east" # What 0 degrees means
    kind: ClassVar[str] = "direction"
    score_name: ClassVar[str] = "degrees_off"
    score_better: ClassVar[str] = "min"
    decimal: ClassVar[bool] = True
    defaults: ClassVar[dict] = dict(loss="chord", metrics=("degrees_off",), monitor="degrees_off")
    outputs = 2

    def check(self, target):
        if len(target.shape) != 1 or target.isinf().any(): raise ValueError(f"targets of shape {tuple(target.shape)} are not an angle a sample, (B,)")
    def arrows(self, target): return torch.stack([torch.cos(target.deg2rad()), torch.sin(target.deg2rad())], -1) if target.ndim == 1 else target
    def known(self, target): return ~(target.isnan() if target.ndim == 1 else target.isnan().any(-1))
    def entries(self, target): return self.arrows(target), self.known(target)
    def activation(self, pred): return F.normalize(pred.float(), dim=-1)
    def decode(self, pred): return torch.atan2(pred[:,1], pred[:,0]).rad2deg() % 360
    def average(self, preds): return torch.stack([self.activation(o) for o in preds]).mean(0)
    def mix(self, target, plan):
        arrows = self.arrows(target)
        return torch.lerp(arrows.flip(0), arrows, plan.share(arrows))
    def move(self, target, view): return (180 - target) % 360 if view == "hflip" else target
    def move_back(self, pred, view): return pred*torch.tensor([-1., 1.], device=pred.device) if view == "hflip" else pred
    def score(self, pred, target):
        off,known = degrees_off(self.decode(pred), self.decode(self.arrows(target))),self.known(target)
        return torch.where(known, off, 0.).sum(), known.sum()


def degrees_off(a, b): return ((a - b + 180) % 360 - 180).abs()


@losses.register("chord")
class Chord(RowLoss):
    "Squared distance of the tips of two arrows, and how far the predicted one is from length 1"
    weights = dict(tips=1., length=.1)
    def terms(self, pred, target, known=None):
        tips,length = (pred - torch.where(known[:,None], target, 0.)).square().sum(-1),(pred.norm(dim=-1) - 1).square()
        return {k: ((o*known).sum(), known.sum()) for k,o in dict(tips=tips, length=length).items()}
    def counts(self, target, known=None): return dict.fromkeys(self.weights, known.sum())


def angles(task, pred, target): return task.decode(pred), task.decode(task.arrows(target)), task.known(target).float()
def misses(said, true, known): return weighted_sums(np.stack([np.where(known > 0, abs((said - true + 180) % 360 - 180), 0), known], 1))


@metrics.register("degrees_off")
def _degrees_off(task, taskname=""): return EpochMetric(Score("degrees_off", angles, misses, sum_ratio, "min", "degrees"), task, taskname)


@drawings.register("direction")
def draw_directions(task, images, pred, target, n=8):
    fig,axs = new_figure()
    axs[0,0].scatter(target, task.decode(pred))
    return fig


@readers.register("seam_raw")
def read_raw(path, gain=1.):
    "Numbers of float32, one after another: 8×8 pixels of two channels"
    a = np.fromfile(path, np.float32)
    if a.size != SIZE*SIZE*2: raise UnreadableImage(path, f"it has {a.size} numbers, not {SIZE*SIZE*2}")
    return gain*a.reshape(SIZE, SIZE, 2)


def winds(folder, n=160, seed=3):
    "Files and a table: a field of waves that runs into a direction, of which one in ten is not known"
    folder,rng = Path(folder),np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    angle = rng.random(n)*360
    y,x = np.mgrid[:SIZE,:SIZE] - (SIZE-1)/2
    rows = ["file,angle,split"]
    for i,a in enumerate(np.deg2rad(angle)):
        slope = (x*np.cos(a) - y*np.sin(a))/4 # y points down
        np.stack([slope, rng.normal(0, 1, slope.shape)], -1).astype(np.float32).tofile(folder/f"{i:03}.raw")
        said = "" if rng.random() < .1 else f"{angle[i]:.2f}"
        rows.append(f"{i:03}.raw,{said},{'train' if i < 96 else 'valid' if i < 128 else 'test'}")
    (folder/"winds.csv").write_text("\n".join(rows))
    return load_set(folder/"winds.csv", label="angle", task=Direction(unknown=0), split="split", reader="seam_raw")

# ---------------------------------------------------------------------------------------------- all of them

OWN = [(o, k, v) for o,before in zip(REGISTRIES, BEFORE) for k,v in o.items() if k not in before] # what these systems have registered

SETS = dict(wards=wards, twins=twins, ages=ages, signs=signs, winds=winds)
LOADERS = dict(wards=dict(augment="basic"), twins=dict(augment="seam_views"), ages=dict(augment="shift"), signs=dict(augment="basic"), winds=dict(augment="basic"))
LEARNERS = dict(
    wards=dict(model_kw=dict(maps=("tissue",)), class_weights=True, task_weights=dict(zones=2., tissue=1.)),
    twins=dict(arch="seam_twins", pretext="seam_twins"),
    ages=dict(), signs=dict(loss_kw=dict(pos_weight=[1., 2., 3.])), winds=dict())
ENGINE = dict(mixup=.4, cutmix=1., mix_mode="pair", ema_decay=.8, accumulate=2)
PLAIN = dict(augment="none", sampling="uniform")


def make(name, folder, bs=16, loader_kw=None, engine=None, cbs=(), **kw):
    "The Learner of a system; `folder` is for those that have files"
    image_set = winds(folder) if name == "winds" else SETS[name]()
    dls = image_loaders(image_set, bs=bs, valid_bs=16, seed=5, workers=0, **{**LOADERS[name], **(loader_kw or {})})
    engine = (ENGINE if name != "twins" else dict(ema_decay=.8)) if engine is None else engine
    kw = {**dict(arch="seam_net", lr=.01, weight_decay=.01, seed=3, precision="fp32"), **LEARNERS[name], **kw}
    learn = vit_learner(dls, cbs=[*train_callbacks(**engine), *cbs], **kw)
    learn.logger = lambda *a: None
    return learn
