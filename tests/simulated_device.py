"An accelerator without hardware: tensors that say `cuda`, hold their values on the host, and refuse the company of tensors of the host"
from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
META = torch.device("meta") # what torch's own C++ is told: a device whose guards do nothing
MOVES = (aten._to_copy.default, aten.copy_.default)
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
ARITHMETIC = "add sub mul div where eq ne lt le gt ge".split() # CUDA takes a number of the host here, and nowhere else (`lerp` crashes)
_Generator = torch.Generator
_inside = [False] # a stack: whether torch's own code asks for the device


class SimulatedTensor(Tensor):
    "Says `cuda`, computes on the host"
    __torch_function__ = torch._C._disabled_torch_function_impl
    is_cuda,is_cpu,is_meta = True,False,False

    @staticmethod
    def __new__(cls, host):
        with no_dispatch(): shape = torch.empty_strided(host.shape, host.stride(), dtype=host.dtype, device="meta")
        return Tensor._make_subclass(cls, shape, False, dispatch_device=True, device_for_backend_keys=DEVICE)

    def __init__(self, host): self.host = host

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return run(func, args, kwargs or {})

    @property
    def device(self): return META if _inside[-1] else DEVICE
    @property
    def data(self): return self.detach()
    @data.setter
    def data(self, new): self.host = new.host

    def data_ptr(self): return self.host.data_ptr()
    def numpy(self, *a, **kw): raise TypeError("a tensor of the accelerator cannot become an array; fetch it first")
    def tolist(self):
        reads["tolist"] += 1
        return self.host.tolist()
    def __getitem__(self, k):
        with inside(): return super().__getitem__(k)
    def __setitem__(self, k, v):
        with inside(): super().__setitem__(k, v)
    def __deepcopy__(self, memo):
        if id(self) not in memo: memo[id(self)] = _like(self.host.clone(), self)
        return memo[id(self)]
    def __repr__(self, **kw): return f"Simulated({self.host!r})"


def _like(host, old):
    new = SimulatedTensor(host).requires_grad_(old.requires_grad)
    if getattr(old, "_is_param", False): new._is_param = True
    return new


class HostGenerator:
    "A generator of the host, whatever device is asked for; a class, for torch's annotations"
    def __new__(cls, device=None): return _Generator()


reads = Counter() # how often, and by what, the host waited for the device


@contextmanager
def inside():
    _inside.append(True)
    try: yield
    finally: _inside.pop()


def _check(func, tensors, there):
    "Refuse a mixture that a real accelerator refuses, and count what the host waits for"
    mixed = any(there) and not all(there)
    numbers = all(t.ndim == 0 for t,o in zip(tensors, there) if not o)
    if func in INDEXING and mixed and there[0]: reads[f"{func} by indices of the host"] += 1
    elif mixed and not (numbers and func.overloadpacket.__name__.rstrip("_") in ARITHMETIC):
        said = [(str(t.device), tuple(t.shape)) for t in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {said}")
    if func in READS and any(there): reads[str(func)] += 1


def run(func, args, kwargs):
    "One operation"
    if func is torch.ops.prim.device.default: return META
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    there = [isinstance(t, SimulatedTensor) for t in tensors]
    given = kwargs.get("device")
    goes = any(there) if given is None else torch.device(given).type in ("cuda", "meta")
    if func in MOVES:
        goes = there[0] if given is None else goes
        waits = not (kwargs.get("non_blocking") or len(args) > 2 and args[2])
        if there[-1] and not goes: reads["copy to the host"] += 1
        if goes and not there[-1] and waits: reads["copy to the device that waits for it"] += 1
    else: _check(func, tensors, there)
    host_args,host_kwargs = tree_map_only(SimulatedTensor, lambda t: t.host, (args, kwargs))
    if given is not None: host_kwargs = {**host_kwargs, "device":torch.device("cpu")}
    host_kwargs.pop("pin_memory", None)
    out = func(*host_args, **host_kwargs)
    if func is aten.copy_.default: return args[0]
    if not goes: return out
    out = tree_map_only(Tensor, SimulatedTensor, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if any(there) else out


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return run(func, args, kwargs or {})


@contextmanager
def simulated():
    "Inside this block `cuda` is there"
    reads.clear()
    put = mock.patch.object
    with ExitStack() as stack:
        for o in (put(Tensor, "pin_memory", lambda t, *a: t), put(torch, "Generator", HostGenerator),
                  put(torch.cuda, "default_generators", (_Generator(),)), put(torch.cuda, "_lazy_init", lambda: None),
                  put(torch.cuda, "synchronize", lambda *a: None), put(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
                  put(torch.cuda, "is_bf16_supported", lambda *a: True), torch.autograd.set_multithreading_enabled(False), _Mode()): stack.enter_context(o)
        yield


def move(module):
    "A module's tensors onto the simulated device"
    for m in module.modules():
        for k,p in m._parameters.items():
            if p is not None: m._parameters[k] = nn.Parameter(SimulatedTensor(p.detach().clone()), p.requires_grad)
        for k,b in m._buffers.items():
            if b is not None: m._buffers[k] = SimulatedTensor(b.detach().clone())
    return module


def on_device(learn):
    "A Learner of the host, on the simulated device, with a new optimiser"
    for m in (learn.model, learn.objective, *learn.companions.values()): move(m)
    learn.device = learn.dls.device = DEVICE
    for dl in learn.dls.loaders: dl.device = DEVICE if hasattr(dl, "make_batch") else None # fastai's loader waits for its copies, the Learner does not
    learn.run_in(learn.dtype)
    learn.create_opt()
    return learn


def host(tree):
    "Values of a nesting of simulated tensors"
    return tree_map_only(SimulatedTensor, lambda t: t.host.detach().clone(), tree)
