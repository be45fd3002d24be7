"What each of two ranks does in `test_distribute.py`: everything in one launch, because starting Python costs more than training"
import atexit
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from fastai.callback.core import Callback, CancelBatchException
from tiny_spectral import masked_learner, pixel_learner
from torch import nn
from zone_films import zone_fit

from vitnb.callback.checkpoint import Checkpoints
from vitnb.callback.limit import StopOnSignal, TrainingStopped
from vitnb.core import is_main, my_rank
from vitnb.learner.core import run_callbacks
from vitnb.learner.ranks import Distribute, distribute
from vitnb.gather import gather_with_grad
from vitnb.learner.freeze import FreezeEpochs
from vitnb.learner.loop import SingleProcess
from vitnb.testing import tiny_learner

DENSE = dict(arch="densenet_micro", model_kw=dict(growth_rate=4, block_config=(2, 2)), optimizer="sgd", lr=.05) # Adam makes 1e-5 of a gradient that is nothing but rounding
DROP = dict(embed_dim=16, depths=(1, 1), num_heads=(2, 2), proj_drop_rate=.2, attn_drop_rate=.2, drop_path_rate=.3)
CUBES = dict(kind=masked_learner, n=24, metrics=None, optimizer="sgd", lr=.05)
CASES = dict(
    swin       = dict(),
    mix        = dict(engine=dict(mixup=.8, cutmix=1., ema_decay=.9)),
    pairs      = dict(engine=dict(mixup=.8, cutmix=1., mix_mode="pair"), loss="focal", clip=.5),
    elements   = dict(engine=dict(mixup=.8, cutmix=1., mix_mode="elem"), optimizer="sgd", lr=.05),
    accumulate = dict(bs=8, engine=dict(mixup=.8, ema_decay=.9, accumulate=3)),
    dropout    = dict(model_kw=DROP),
    weighted   = dict(loss_kw=dict(weight=[.1, 2., 1., 1., 1., 3., 1., 1., .2, 1.])),
    workers    = dict(workers=1),
    checkpoint = dict(model_kw=DROP, checkpointing=True),
    densenet   = DENSE,
    densenet_drop = dict(DENSE, model_kw=dict(growth_rate=4, block_config=(2, 2), drop_rate=.2), engine=dict(ema_decay=.9)),
    last       = dict(bs=16, drop_last=False), # 100 pictures: the last batch has 4
    masked     = dict(CUBES, bs=4, model_kw=dict(drop_path_rate=.3), engine=dict(ema_decay=.9)),
    masked_sum = dict(CUBES, bs=2, engine=dict(accumulate=2), normalize="zscore", clip=1., pretext=dict(name="masked", norm_target=True, group_weight=.5)),
    masked_new = dict(CUBES, bs=4, model_kw=dict(mask_mode="tube"), data_kw=dict(augment="guide"), checkpointing=True),
    pixels     = dict(kind=pixel_learner, bs=4, n=24))


class Die(Exception): pass


class DieAt(Callback):
    order = 190
    def __init__(self, step): self.step = step
    def after_batch(self):
        if self.training and self.opt_steps == self.step: raise Die


def make(bs=16, checkpointing=False, drop_last=True, kind=tiny_learner, **kw):
    learn = kind(bs=bs, **kw)
    learn.logger = lambda *a: None
    learn.dls.train.drop_last = drop_last
    learn.model.set_grad_checkpointing(checkpointing)
    return learn


def result(learn):
    cbs = {type(cb).__name__: cb for cb in learn.cbs}
    ema = dict(cbs["EMACallback"].module.state_dict()) if "EMACallback" in cbs else {}
    return dict(model=dict(learn.model.state_dict()), opt=learn.opt.opt.state_dict(), ema=ema, rows=learn.recorder.rows, losses=[o["loss"] for o in learn.recorder.steps])


KEPT = [] # as the variables of a notebook keep a Learner until the process ends


def train(epochs=2, **kw):
    learn = distribute(make(**kw), timeout=120)
    learn.fit(epochs)
    KEPT.append(learn)
    return result(learn)


def note_threads(path):
    "Write the names of this process's threads, those of C++ too"
    names = [(task/"comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    path.write_text(json.dumps(names))


def resume(folder, step=None, epochs=2, monitor="accuracy", **kw):
    "A fit in a folder; with `step`, one that dies there"
    learn = distribute(make(**{**dict(engine=dict(mixup=.8, cutmix=1., ema_decay=.9)), **kw}), timeout=120)
    cbs = run_callbacks(folder, monitor, every_n_steps=2, tracker="tensorboard")
    if step is None: learn.fit(epochs, cbs=cbs, resume="auto")
    else:
        try: learn.fit(epochs, cbs=[*cbs, DieAt(step)], resume="auto")
        except Die:
            for writer in [cb.writer for cb in cbs if hasattr(cb, "writer")]: writer.wait()
            if torch.distributed.is_initialized(): torch.distributed.barrier() # whoever goes on at once would read what rank 0 has not written yet
            return None
    return result(learn)


def info_nce(a, b):
    "A contrastive loss whose value for a row depends on all rows"
    return nn.functional.cross_entropy(nn.functional.normalize(a) @ nn.functional.normalize(b).T/.1, torch.arange(len(a)))


def gathered(same):
    "The gradient of the weights of a projection under a loss of all features; with `same=False` each rank has a loss of its own"
    torch.manual_seed(0)
    net,x = nn.Linear(6, 4),torch.randn(2, 8, 6)
    mine = slice(my_rank()*4, my_rank()*4+4)
    z = [gather_with_grad(net(o[mine]), same=same) for o in x]
    loss = info_nce(*z) if same else info_nce(*z)*(1 + my_rank())
    loss.backward()
    g = net.weight.grad
    dist.all_reduce(g)
    return dict(grad=g/2) # as DistributedDataParallel does


def uneven():
    x = torch.arange(3.*(1 + my_rank())).view(-1, 3).requires_grad_()
    y = gather_with_grad(x, [1, 2])
    (y*torch.arange(9.).view(3, 3)).sum().backward()
    return dict(y=y.detach(), grad=x.grad)


def said(f, *kinds):
    "The error that `f` ends with"
    try: f()
    except kinds or (ValueError, RuntimeError) as e: return f"{type(e).__name__}: {e}"
    return "no error"


class SignalOne(Callback):
    "One rank alone is told to stop"
    def after_step(self):
        if my_rank() == 1 and self.opt_steps == 3: os.kill(os.getpid(), signal.SIGTERM)


class SignalLate(Callback):
    "One rank alone is told to stop, when all is trained"
    def after_fit(self):
        if my_rank() == 1: os.kill(os.getpid(), signal.SIGTERM)


class BreakOne(Callback):
    "The weights of one rank change where nobody expects it"
    def after_step(self):
        if my_rank() == 1 and self.opt_steps == 3:
            with torch.no_grad(): next(self.model.parameters()).add_(1e-3)


def stop_together(folder):
    learn = distribute(make(), timeout=120)
    first = dict(said=said(lambda: learn.fit(2, cbs=[*run_callbacks(folder, tracker="none"), SignalOne()]), TrainingStopped), steps=learn.opt_steps)
    def late(cbs): return said(lambda: distribute(make(), timeout=120).fit(1, cbs=[*cbs, SignalLate()]), TrainingStopped)
    return first | dict(late=[late(run_callbacks(folder.with_name("stop_late"), tracker="none")), late([StopOnSignal()])])


def not_alike():
    learn = lambda **kw: distribute(make(**kw), timeout=120)
    weights = learn()
    if my_rank(): next(weights.model.parameters()).data[0] += 1
    return dict(alone=said(lambda: make().fit(1)), seed=said(lambda: learn(seed=3 + my_rank()).fit(1)), weights=said(lambda: weights.fit(1)), lr=said(lambda: learn(lr=.01*(1 + my_rank())).fit(1)),
                later=said(lambda: learn().fit(1, cbs=BreakOne())), batch=said(lambda: learn(bs=15).fit(1)), mixing=said(lambda: learn(bs=14, engine=dict(mixup=.8)).fit(1)))


def clean():
    "Nothing of a distributed fit stays on the Learner, also after an error"
    learn = distribute(make(), timeout=120)
    said(lambda: learn.fit(1, cbs=DieAt(2)), Die)
    left = [] if type(learn.parallel) is SingleProcess else [type(learn.parallel).__name__]
    alone = learn.validate() if is_main() else None # by itself: needs no other process
    learn.fit(1)
    return dict(left=left, alone=list(alone or []), steps=learn.opt_steps)


def main(out):
    atexit.register(note_threads, out/f"threads{my_rank()}.json") # the first to be registered is the last to be called
    done = {f"case {k}": train(**kw) for k,kw in CASES.items()}
    resume(out/"cut", 8)
    done["resumed"] = resume(out/"cut")
    done["whole"] = resume(out/"whole")
    done["from one"] = resume(out/"one") # a single process left its state there
    resume(out/"two", 8) # one process will go on from there
    cubes = dict(CASES["masked"], monitor="valid_loss")
    resume(out/"cut_cubes", 5, 3, **cubes)
    done |= {"resumed cubes": resume(out/"cut_cubes", epochs=3, **cubes), "whole cubes": resume(out/"whole_cubes", epochs=3, **cubes)}
    for folder,step in (("zones", None), ("zones_from_one", None), ("zones_from_two", 8)): zone_fit(out/folder, step)
    done |= dict(same=gathered(True), different=gathered(False), uneven=uneven(), stop=stop_together(out/"stop"), alike=not_alike(), clean=clean())
    torch.save(done, out/f"rank{my_rank()}.pth")


class Cancel(Callback):
    "Cancel a batch of each epoch, in every rank alike"
    order = 40
    def __init__(self, event, at): self.event,self.at = event,at
    def __call__(self, name):
        if name == self.event and self.training and self.iter == self.at: raise CancelBatchException()
        return super().__call__(name)
    def state_dict(self): return {}
    def load_state_dict(self, state): pass


FROZEN = dict( # what is trained changes between epochs
    head = lambda: dict(cbs=[FreezeEpochs(1)], engine=dict(ema_decay=.9), optimizer="sgd", lr=.05),
    deep = lambda: dict(cbs=[FreezeEpochs(2, depth=1)], optimizer="sgd", lr=.05, model_kw=DROP, checkpointing=True),
    norms = lambda: dict(DENSE, cbs=[FreezeEpochs(1)], bs=8, engine=dict(accumulate=2)))
CANCELLED = dict(
    last = lambda: dict(bs=8, engine=dict(accumulate=3, ema_decay=.9), optimizer="sgd", lr=.05, cbs=[Cancel("after_pred", 5)]),
    middle = lambda: dict(bs=8, engine=dict(accumulate=3), optimizer="sgd", lr=.05, cbs=[Cancel("after_backward", 4)]),
    end = lambda: dict(bs=8, engine=dict(accumulate=3), optimizer="sgd", lr=.05, cbs=[Cancel("after_loss", 11)]))


def some(cases, epochs, cuts, out):
    "Cases of two ranks, the first of them also killed in each epoch and resumed"
    done = {k: train(epochs, **kw()) for k,kw in cases.items()}
    case = next(iter(cases))
    for step in cuts:
        resume(out/f"cut{step}", step, epochs, **cases[case]())
        done[f"resumed {step}"] = resume(out/f"cut{step}", epochs=epochs, **cases[case]())
    torch.save(done, out/f"rank{my_rank()}.pth")


THREE = dict(mix=dict(CASES["mix"], bs=18), last=dict(CASES["dropout"], bs=15, drop_last=False), masked=dict(CASES["masked"], bs=6))
def three(out): torch.save({k: train(**kw) for k,kw in THREE.items()}, out/f"rank{my_rank()}.pth")


if __name__ == "__main__": dict(main=main, three=three, frozen=partial(some, FROZEN, 3, (3, 9)), cancelled=partial(some, CANCELLED, 2, (3, 6)))[sys.argv[2]](Path(sys.argv[1]))
