"Learners of milliseconds on tensors, for tests of callbacks: any tasks, any model, loaders that can begin later"
import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from torch import nn
from torch.utils.data import TensorDataset

from vitnb.callback.base import TrainCallback
from vitnb.data.sets import load_set
from vitnb.learner.core import VitLearner
from vitnb.losses.objective import make_objective
from vitnb.task import OneClass, Tasks


class From(DataLoader):
    "A loader that can begin later, as vitnb's own"
    start = 0
    def __iter__(self):
        skip,self.start = self.start,0
        for i,b in enumerate(super().__iter__()):
            if i >= skip: yield b


class Rows:
    "A dataset of tensors and of targets by the name of their task"
    def __init__(self, x, targets): self.x,self.targets = x,targets
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], {k:v[i] for k,v in self.targets.items()}


def classes(n, **kw): return OneClass([f"c{i}" for i in range(n)], **kw)


def loaders(x, y, bs, n_inp=1, loader=From):
    "Training and validation on the same samples, in order; `y` is a tensor, several, or a dict by task"
    dataset = Rows(x, y) if isinstance(y, dict) else TensorDataset(x, *(y if isinstance(y, tuple) else (y,)))
    dls = DataLoaders(*(loader(dataset, bs=bs) for _ in range(2)))
    dls.n_inp = n_inp
    return dls


def task_learner(x, y, tasks, model, *cbs, bs=8, n_inp=1, loader=From, loss=None, loss_kw=None, task_weights=None, label_smoothing=None, lr=.01, seed=7, **kw):
    "A Learner of some tasks; `loss` a name, or a function of torch in place of the tasks' own losses"
    if callable(loss): objective = loss
    else: objective = make_objective(Tasks.of(tasks), loss, task_weights, label_smoothing, loss_kw)
    learn = VitLearner(loaders(x, y, bs, n_inp, loader), model, objective, tasks, lr=lr, precision="fp32", seed=seed, cbs=cbs, **kw)
    learn.progress.plot = False
    return learn


def fit(learn, n=1, **kw):
    "Train without output"
    with learn.no_bar(), learn.no_logging(): learn.fit(n, **kw)
    return learn


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


class TwoHeads(nn.Module):
    "One linear layer a task"
    def __init__(self, inputs, **outputs):
        super().__init__()
        self.heads = nn.ModuleDict({k:nn.Linear(inputs, n) for k,n in outputs.items()})
    def forward(self, x): return {k:head(x.flatten(1)) for k,head in self.heads.items()}


class Die(Exception): pass


class DieAt(TrainCallback):
    "Die at the end of the batch that makes a step"
    order = 190
    def __init__(self, step): self.step = step
    def after_batch(self):
        if self.training and self.opt_steps == self.step and self.learn.report is not None: raise Die


class StopAt(Callback):
    "Raise in the middle of training"
    order = 190
    def __init__(self, step, error=RuntimeError): self.step,self.error = step,error
    def after_batch(self):
        if self.training and self.opt_steps == self.step: raise self.error("here")


def skewed(counts=(60, 20, 6)):
    "Three digits, some more often than others"
    s = load_set("digits")
    for k,sp in s.splits.items():
        rows = np.concatenate([np.flatnonzero(sp.labels == c)[:n] for c,n in enumerate(counts)])
        s.splits[k] = type(sp)(sp.items[rows], sp.labels[rows])
    return s
