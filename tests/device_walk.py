"""Where tensors are: a walker over every tensor that a Learner holds

A state comes from a file, so its tensors lie on the host. Whoever forgets to move one of them crashes on an accelerator
only, and a number (a tensor of no dimension) may pass through some operations there and fail in others. `HOST_TENSORS`
declares the few that belong to the host.
"""
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastcore.foundation import L
from torch import Tensor

from vitnb.learner.resume import callback_state

HOST_TENSORS = ( # paths as `device_walk` writes them; `*` stands for anything
    "loss", # fastai's zero, before the first batch
    "opt.opt.state.*.step", # torch counts steps on the host, unless the optimiser is fused
    "cbs.StepRecorder.losses*", # numbers that were read
    "cbs.StepRecorder.smooth_loss*",
    "states.StepRecorder.*", # what goes into a file
    "cbs.EMACallback._loaded*", # a restored state, until it is copied into the average
    "cbs.EarlyStop.weights*", # of the best epoch: copied back at the end
    "states.EarlyStop.weights*",
    "cbs.Checkpoints.writer.*", # copies that are being written
    "cbs.Resume.state*", # the state itself
    "cbs.MaskedLive.*", # cubes that are drawn
)

PARTS = ("model", "opt", "scaler", "loss_func", "pretext", "companions", "parallel", "batch", "pred", "loss", "loss_grad",
         "sums", "scores", "report") # of a Learner
LEAVES = (str, bytes, int, float, bool, type, ModuleType, FunctionType, BuiltinFunctionType, Path, Learner, DataLoaders,
          DataLoader) # what holds no tensor of the Learner, or is walked elsewhere


def children(thing):
    "Parts of an object, with their names"
    if isinstance(thing, Tensor): return [("grad", thing.grad)] if thing.is_leaf else []
    if thing is None or isinstance(thing, LEAVES): return []
    if isinstance(thing, MethodType): return [("self", thing.__self__)]
    if isinstance(thing, partial): return [("args", thing.args), ("keywords", thing.keywords)]
    own = list(getattr(thing, "__dict__", {}).items())
    if isinstance(thing, Mapping): own += [(k if isinstance(k, (str, int)) else n, v) for n,(k,v) in enumerate(thing.items())]
    if isinstance(thing, (list, tuple, set, L)): own += list(enumerate(thing))
    return [(name, part) for name,part in own if name not in ("learn", "dls")]


def device_walk(learn):
    "Find every tensor that a Learner and its callbacks hold: path -> device"
    todo = [(f"states.{type(cb).__name__}", callback_state(cb)) for cb in learn.cbs]
    todo += [(f"cbs.{type(cb).__name__}", cb) for cb in learn.cbs] # looked at before the states, which share their tensors
    todo += [(name, vars(learn).get(name)) for name in PARTS]
    found,seen = {},{}
    while todo:
        path,thing = todo.pop()
        if id(thing) in seen: continue
        seen[id(thing)] = thing # kept, so that no other object gets its number
        if isinstance(thing, Tensor): found[path] = thing.device
        todo += [(f"{path}.{name}", part) for name,part in children(thing)]
    return dict(sorted(found.items()))


def assert_devices(learn, host=HOST_TENSORS):
    "Check that each tensor is where the Learner computes, and count them"
    def right(path, device):
        if device.type == learn.device.type and (device.index or 0) == (learn.device.index or 0): return True
        return device.type == "cpu" and any(fnmatchcase(path, pattern) for pattern in host)
    walk = device_walk(learn)
    wrong = [f"{path} on {device}" for path,device in walk.items() if not right(path, device)]
    if wrong: raise AssertionError(f"the Learner computes on {learn.device}, but has {'; '.join(wrong[:12])}; move them where they are restored")
    return len(walk)
