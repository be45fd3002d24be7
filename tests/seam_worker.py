"What each of two ranks does in `test_seams.py`: every invented system in one launch, and one with a share left out, which must be seen"
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from seam_systems import SETS, make
from tiny_tasks import Die, DieAt

from vitnb.callback.checkpoint import Checkpoints
from vitnb.callback.ema import EMACallback
from vitnb.core import my_rank
from vitnb.learner.core import run_callbacks
from vitnb.learner.ranks import distribute
from vitnb.learner.together import Together

STEP = dict(optimizer="sgd", lr=.05, opt_kw=dict(momentum=.9)) # Adam makes 1e-5 of a gradient that is nothing but rounding


def outcome(learn):
    ema = next(cb for cb in learn.cbs if isinstance(cb, EMACallback))
    return dict(model=dict(learn.model.state_dict()), ema=dict(ema.module.state_dict()), rows=learn.recorder.rows, losses=[o["loss"] for o in learn.recorder.steps])


def train(name, out, epochs=2, cbs=(), **kw):
    learn = distribute(make(name, out/"files", **{**STEP, **kw}), timeout=120)
    learn.fit(epochs, cbs=cbs)
    return outcome(learn)


def killed(out):
    "A run of two ranks that is killed inside an epoch and goes on"
    learn = distribute(make("wards", out/"files", **STEP), timeout=120)
    cbs = run_callbacks(out/"run", every_n_steps=1, tracker="none")
    with pytest.raises(Die): learn.fit(2, cbs=[*cbs, DieAt(2)], resume="auto")
    next(cb for cb in cbs if isinstance(cb, Checkpoints)).writer.join()
    dist.barrier() # a new launch would find the file whole
    learn = distribute(make("wards", out/"files", **STEP), timeout=120)
    learn.fit(2, cbs=run_callbacks(out/"run", every_n_steps=1, tracker="none"), resume="auto")
    return outcome(learn)


def dropped(out):
    "The share of the other rank is dropped from what is divided by"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Together, "total", lambda self, *named: named)
        return train("wards", out, 1)


def main(out):
    own = out/f"rank{my_rank()}"
    done = {name: train(name, own) for name in SETS}
    done["killed"] = killed(out)
    done["dropped"] = dropped(own)
    torch.save(done, out/f"rank{my_rank()}.pth")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for r in range(2): (Path(sys.argv[1])/f"rank{r}").mkdir(exist_ok=True)
    main(Path(sys.argv[1]))
