"Learners with every callback, and what tests of the loop look at"
import copy

import torch
from tiny_tasks import classes, task_learner
from torch import nn

from vitnb.callback.base import TrainCallback
from vitnb.learner.core import run_callbacks, train_callbacks


def net(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(.3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def tiny(*cbs, n=44, bs=8, model=net, **kw):
    torch.manual_seed(0)
    x,y = torch.randn(n, 1, 8, 8),torch.arange(n)%3
    return task_learner(x, y, classes(3), model(), *cbs, bs=bs, **kw)


def spy(**names):
    "A callback that writes down every event it is called for, and the phase"
    class Log(TrainCallback):
        seen = []
        def __call__(self, event): self.seen.append((event, self.learn.phase))
    for k,v in names.items(): setattr(Log, k, v)
    return Log()


def train_all(): return train_callbacks(mixup=.8, cutmix=1., ema_decay=.9, accumulate=2, early_stop=3, anomaly=True)


def everything(folder):
    "All callbacks of the engine at once"
    return [*run_callbacks(folder, every_n_steps=2, every_n_epochs=1, keep_top_k=2, max_hours=1, tracker="none"), *train_all()]


class Save(TrainCallback):
    "The state after `n` optimiser steps"
    order = 150
    def __init__(self, n): self.n,self.state = n,None
    def after_batch(self):
        if self.training and self.opt_steps == self.n: self.state = copy.deepcopy(self.learn.training_state())
