"Learners of small films with zones, for tests of what counts their answers"
from contextlib import suppress

import numpy as np
import torch
from tiny_tasks import Die, DieAt
from torch import nn

from vitnb.callback.checkpoint import Checkpoints
from vitnb.callback.zonehistory import ZoneHistory
from vitnb.data.holdout import Split
from vitnb.data.loader import image_loaders
from vitnb.data.table import ImageSet
from vitnb.data.zones import csi_task
from vitnb.learner.core import VitLearner, run_callbacks, train_callbacks
from vitnb.learner.ranks import distribute
from vitnb.losses.objective import make_objective
from vitnb.task import Tasks


def films(n, seed):
    "Zones as bright as their score says; an unknown one is dark"
    rng = np.random.default_rng(seed)
    scores = rng.choice(5, (n, 6), p=[.3, .2, .2, .1, .2])
    zones = np.where(scores == 4, -2, scores).reshape(n, 3, 2).repeat(2, 1).repeat(3, 2)
    return Split((zones + rng.normal(0, .7, zones.shape)).astype(np.float32)[...,None], scores)


def zone_learner(*cbs, lr=.01, **kw):
    "A Learner of 48 small films, six batches an epoch"
    torch.manual_seed(0)
    tasks = Tasks.of(csi_task())
    image_set = ImageSet("zones", tasks, dict(train=films(48, 0), valid=films(20, 1)))
    dls = image_loaders(image_set, bs=8, valid_bs=8, augment="none", seed=5, workers=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.GELU(), nn.Linear(24, 30), nn.Unflatten(1, (6, 5)))
    learn = VitLearner(dls, model, make_objective(tasks), tasks, lr=lr, precision="fp32", seed=7, cbs=cbs, **kw)
    learn.logger = lambda *_: None
    learn.progress.plot = False
    return learn


def zone_fit(folder, step=None):
    "Two epochs in a folder, by all processes together; with `step`, a fit that dies there"
    cbs = run_callbacks(folder, every_n_steps=1, tracker="none")
    further = [] if step is None else [DieAt(step)]
    with suppress(Die): distribute(zone_learner(*train_callbacks(mixup=.8)), timeout=120).fit(2, cbs=[*cbs, ZoneHistory(folder), *further], resume="auto")
    next(cb for cb in cbs if isinstance(cb, Checkpoints)).writer.join()
