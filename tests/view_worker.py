"One of several processes that share the rows of two views; run as `view_worker.py rank world folder`, it saves its loss and its averaged gradient"
import sys

import torch
import torch.distributed as dist
from torch import nn

import vitnb.losses.contrastive # noqa: F401, registers its losses
from vitnb.losses.base import make_loss

SIZES = [3, 1, 2] # rows of each process, not alike
CASES = dict(ntxent=dict(temperature=.5), infonce=dict(temperature=.2), vicreg={}, byol={}, dino={})
WIDTH = 6


def rows():
    "All rows of both views, groups and which are known"
    g = torch.Generator().manual_seed(0)
    n = sum(SIZES)
    known = torch.tensor([True]*(n - 1) + [False])
    return torch.randn(n, 4, generator=g), torch.randn(n, 4, generator=g), torch.tensor([0, 1, 1, 2, 0, 3])[:n], known


def net():
    torch.manual_seed(1)
    return nn.Linear(4, WIDTH)


def loss_and_gradient(name, x1, x2, **given):
    "The value of a loss and the gradient of a linear layer under it"
    model,loss = net(),make_loss(name, **CASES[name])
    value = loss(model(x1), model(x2), **given)
    value.backward()
    return value.detach(), model.weight.grad


def main(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    x1,x2,group,known = (o.split(SIZES[:world] if world == len(SIZES) else [4, 2])[rank] for o in rows())
    out = {}
    for name in CASES:
        given = dict(known=known, group=group) if name in ("ntxent", "infonce") else {}
        value,grad = loss_and_gradient(name, x1, x2, **given)
        dist.all_reduce(grad) # as DistributedDataParallel does
        out[name] = value, grad/world
    torch.save(out, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__": main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
