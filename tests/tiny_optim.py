"A Learner of a few plain batches, and spies of what its optimiser is told"
import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn

from vitnb.learner.optim import make_optimizer


PURE = ["constant", "cosine", "warmup_cosine", "step", "multistep", "one_cycle"]
PLATEAU_MODE = dict(plateau=dict(mode="min")) # outside a fit nobody has declared the column


class Net(nn.Module):
    "One of each kind of parameter"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.narrow = nn.Conv2d(4, 1, 3, padding=1) # weight (1,4,3,3): a matrix, not a table
        self.norm = nn.BatchNorm2d(1)
        self.pos_embed = nn.Parameter(torch.randn(1, 16, 8))
        self.spectral = nn.Parameter(torch.randn(1, 6, 8))
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.scale = nn.Parameter(torch.randn(3, 1, 1))
        self.relative_position_bias_table = nn.Parameter(torch.randn(9, 2))
        self.emb = nn.Embedding(5, 8)
        self.attn = nn.MultiheadAttention(8, 2)
        self.experts = nn.Parameter(torch.randn(2, 8, 8))
        self.cpb = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        self.head = nn.Linear(16, 3)
    def no_weight_decay(self): return {"cpb", "not_here"}
    def forward(self, x): return self.head(self.norm(self.narrow(self.conv(x).relu())).flatten(1))


def batches(n=6, bs=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(bs, 1, 4, 4, generator=g), torch.randint(3, (bs,), generator=g)) for _ in range(n)]

class Loader(DataLoader):
    "Ready batches, as a fastai loader"
    def __init__(self, dataset, **kw): super().__init__(dataset, **{**kw, "bs":None, "num_workers":0})

def learner(model=None, n=6, **kw):
    torch.manual_seed(0)
    model = model or Net()
    dls = DataLoaders(Loader(batches(n)), Loader(batches(2, seed=1)))
    dls.n_inp = 1
    return Learner(dls, model, nn.CrossEntropyLoss(), **kw)

def fit(learn, *a, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(*a, **kw)

import fastai.callback.progress  # noqa: E402,F401 (patches no_bar)


class MidTraining(Callback):
    "What torch's groups hold before each step"
    order = 100
    def __init__(self): self.seen = []
    def before_step(self): self.seen.append([(g["name"], g["weight_decay"], g["lr"]) for g in self.opt.opt.param_groups])


def run(cb, epochs=2, n=6, extra=(), **kw):
    learn = learner(n=n, **kw)
    learn.opt_func = make_optimizer(learn.model, "sgd")
    fit(learn, epochs, cbs=[cb, *extra])
    return learn


class Micro(Callback):
    "Gradient accumulation as vitnb does it: no step on micro-batches"
    order = MixedPrecision.order-4
    def __init__(self, n_batches): self.n_batches = n_batches
    def before_step(self):
        if (self.iter+1)%self.n_batches and self.iter+1 < self.n_iter: raise CancelBatchException()
