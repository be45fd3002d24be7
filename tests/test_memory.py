"Counting memory, and what an out-of-memory error says: what cells of the notebook do not show"
import copy
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from vitnb.callback.accumulate import Accumulate
from vitnb.callback.memory import ExplainOOM, MemoryMeter, explain_oom, is_oom, memory_switches, step_memory
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import vit_learner
from vitnb.models.protocol import create_model
from vitnb.seeding import set_seed


def make(cbs=(), **kw):
    set_seed(1)
    dls = image_loaders(load_set("digits", limit=10), bs=24, augment="none", seed=1, device="cpu")
    return vit_learner(dls, "swin_micro", device="cpu", **{**dict(precision="fp32", seed=1, cbs=[ExplainOOM(), *cbs]), **kw})


class Fail(Callback):
    "Let the model raise in batch `at` of training, or of validation"
    def __init__(self, error, training=True, at=0): self.error,self.when,self.at = error,training,at
    def before_fit(self): self.hook = self.model.register_forward_pre_hook(self.fail)
    def after_fit(self): self.hook.remove()
    def fail(self, *_):
        if self.training == self.when and self.iter == self.at: raise self.error


def test_a_chain_of_layers_in_closed_form():
    "n linear layers of width d on a batch b: each keeps its input; weights n(d*d + d)"
    n,d,b = 6,64,512
    model = nn.Sequential(*(nn.Linear(d, d) for _ in range(n)))
    m = step_memory(model, (b, d), states=0)
    assert m["weights"] == m["gradients"] == 4*n*(d*d + d)
    kept = 4*b*d*n # the inputs of n layers
    assert kept <= m["total"] - m["weights"] <= kept + m["gradients"] + 4*4*b*d


def test_states_weights_and_sum():
    model = nn.Linear(10, 10)
    none,adam = step_memory(model, (1, 10), states=0),step_memory(model, (1, 10), states=2)
    assert adam["states"] == 2*4*110 and none["states"] == 0
    assert adam["total"] - none["total"] == adam["states"]
    assert adam["total"] == adam["weights"] + adam["gradients"] + adam["states"] + adam["activations"]


def test_frozen_weights_have_no_gradient():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 2))
    model[0].requires_grad_(False)
    m = step_memory(model, (4, 10))
    assert m["gradients"] == 4*22 and m["states"] == 2*4*22 and m["weights"] == 4*132


@pytest.mark.parametrize("name,kw", [("swin_micro", {}), ("densenet121", dict(growth_rate=8, block_config=(2, 3, 2)))])
def test_the_count_is_that_of_a_real_step(name, kw):
    model = create_model(name, img_size=32, num_classes=10, **kw).train()
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        with MemoryMeter((*model.parameters(), *model.buffers())) as meter: model(torch.randn(8, 3, 32, 32)).sum().backward()
        model.zero_grad(set_to_none=True)
        assert step_memory(model, (8, 3, 32, 32), states=0)["total"] == pytest.approx(meter.peak, rel=.03)


PEAK = """
def peak(): return 1024*int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
RISE = PEAK + """
import torch
from vitnb.callback.memory import step_memory
from vitnb.models.protocol import create_model
model = create_model("densenet121", img_size=32, num_classes=10).train()
def step(bs):
    model(torch.randn(bs, 3, 32, 32)).sum().backward()
    model.zero_grad(set_to_none=True)
small,large = 2,8
for _ in range(2): step(small)
before = peak()
step(large)
small,large = (step_memory(model, (bs, 3, 32, 32), states=0)["total"] for bs in (small, large))
print(large - small, peak() - before)
"""
has_peak = Path("/proc/self/status").is_file() and "VmHWM" in Path("/proc/self/status").read_text()
needs_peak = pytest.mark.skipif(not has_peak, reason="there is no VmHWM in /proc/self/status to read the peak from")


def printed(code, **env):
    "The numbers that a fresh interpreter prints"
    env = {**os.environ, "OMP_NUM_THREADS":"1", **env}
    p = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500, env=env)
    assert p.returncode == 0, p.stderr[-2000:]
    return list(map(int, p.stdout.split()))


@pytest.mark.slow # a process of its own for each batch, of 16 s in all
@needs_peak
def test_the_operating_system_counts_no_less_and_little_more():
    "From a small to a large batch: libraries, weights and what the convolutions set up once are in both peaks"
    counted,rise = printed(RISE, MALLOC_MMAP_THRESHOLD_="65536") # give back what is freed
    assert .95*counted < rise < 1.15*counted # it is within 1 % with kernels for SSE4.1, AVX2 and AVX-512


@needs_peak
def test_the_peak_of_a_child_is_its_own_and_not_its_parents():
    "What `ru_maxrss` is not: on Linux it begins with the parent's resident memory, so it grows with the suite"
    held = torch.ones(2**27) # 512 MiB, resident
    (peak,) = printed(PEAK + "print(peak())")
    assert peak < held.nbytes//4


def test_the_model_is_neither_run_nor_changed():
    model = create_model("densenet121", img_size=32, num_classes=10).eval()
    before,rng = copy.deepcopy(model.state_dict()),torch.get_rng_state()
    step_memory(model, (4, 3, 32, 32), checkpointing=True)
    assert not model.training and all(torch.equal(v, before[k]) for k,v in model.state_dict().items()) and torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters()) and not any(getattr(m, "memory_efficient", False) for m in model.modules())


def test_each_option_acts():
    model = create_model("swin_micro", img_size=32, num_classes=10)
    def total(shape=(16, 3, 32, 32), **kw): return step_memory(model, shape, **kw)["total"]
    for kw in (dict(dtype=torch.bfloat16), dict(checkpointing=True), dict(states=1), dict(train=False), dict(shape=(8, 3, 32, 32))): assert total(**kw) < total(), kw


def test_a_large_model_is_counted_in_little_memory():
    with torch.device("meta"): model = create_model("swin_base", img_size=224, num_classes=1000)
    m = step_memory(model, (64, 3, 224, 224))
    assert m["weights"] > 4*87_768_224 and 10*2**30 < m["total"] < 40*2**30


def test_switches_that_are_on_are_not_offered():
    model = create_model("swin_micro", img_size=32, num_classes=10)
    def offers(**kw): return " | ".join(how for _,how,_ in memory_switches(model, **{**dict(shape=(8, 3, 32, 32)), **kw})[1])
    assert all(w in offers() for w in ("checkpointing", "bs=4 with accumulate=2", "img_size=24", "bf16"))
    assert "bf16" not in offers(dtype=torch.bfloat16) and "half the batch" not in offers(shape=(1, 3, 32, 32))
    assert "accumulate=6" in offers(accumulate=3)
    assert "valid_bs=4" in offers(train=False) and "checkpointing" not in offers(train=False)
    model.set_grad_checkpointing(True)
    assert "checkpointing" not in offers()


@pytest.mark.parametrize("bs", [8, 64])
def test_switches_are_in_order_and_true(bs):
    model = create_model("swin_micro", img_size=32, num_classes=10)
    now,ways = memory_switches(model, (bs, 3, 32, 32))
    left = [b for b,*_ in ways]
    assert left == sorted(left) and max(left) < now == step_memory(model, (bs, 3, 32, 32))["total"]
    assert next(b for b,how,_ in ways if "half the batch" in how) == step_memory(model, (bs//2, 3, 32, 32))["total"]


def test_checkpointing_changes_no_gradient():
    "What the advice promises of its first switch"
    for name,kw in (("swin_micro", {}), ("densenet121", dict(growth_rate=8, block_config=(2, 3, 2)))):
        set_seed(0)
        model,x = create_model(name, img_size=32, num_classes=10, **kw).train(),torch.randn(4, 3, 32, 32)
        grads = []
        for on in (False, True):
            model.set_grad_checkpointing(on)
            model.zero_grad()
            torch.manual_seed(1) # of drop path
            model(x).square().sum().backward()
            grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert torch.allclose(*grads, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
                                   RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")], ids=["cuda", "cpu"])
@pytest.mark.parametrize("at", [0, 1])
def test_the_error_stays_the_same_with_more_to_say(error, at):
    error = type(error)(str(error)) # a fresh one for each run
    text = str(error)
    with pytest.raises(type(error)) as e: make().fit(1, cbs=Fail(error, at=at))
    assert e.value is error and str(error).startswith(text) and str(error).count("What helps") == 1
    assert "training step on (24, 3, 8, 8) in float32" in str(error)
    assert str(error).index("checkpointing") < str(error).index("bf16")


def test_other_errors_are_left_alone():
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError) as e: make().fit(1, cbs=Fail(error, at=1))
    assert str(e.value) == "mat1 and mat2 shapes cannot be multiplied"
    assert not is_oom(MemoryError()) and not is_oom(KeyboardInterrupt()) and explain_oom(ValueError("out of memory"), None) == ""


def test_in_validation_the_advice_is_another():
    with pytest.raises(torch.OutOfMemoryError) as e: make().fit(1, cbs=Fail(torch.OutOfMemoryError("CUDA out of memory."), training=False))
    assert "validation step" in str(e.value) and "valid_bs=" in str(e.value) and "checkpointing" not in str(e.value)


def test_what_is_on_already_is_counted_in():
    with pytest.raises(torch.OutOfMemoryError) as e: make([Accumulate(2)], precision="bf16").fit(1, cbs=Fail(torch.OutOfMemoryError("out of memory")))
    assert "in bfloat16" in str(e.value) and "accumulate=4" in str(e.value) and 'precision="bf16"' not in str(e.value)
    sgd = make(optimizer="sgd")
    with pytest.raises(torch.OutOfMemoryError) as f: sgd.fit(1, cbs=Fail(torch.OutOfMemoryError("out of memory")))
    adamw = make()
    with pytest.raises(torch.OutOfMemoryError) as g: adamw.fit(1, cbs=Fail(torch.OutOfMemoryError("out of memory")))
    assert str(f.value) != str(g.value), "SGD keeps one state less"


def test_a_model_that_cannot_be_counted_still_gets_advice():
    class Odd(nn.Module):
        def __init__(self, m):
            super().__init__()
            self.m = m
        def __deepcopy__(self, memo): raise TypeError("no copies")
        def forward(self, x): return self.m(x)
    learn = make()
    learn.model = Odd(learn.model)
    with pytest.raises(torch.OutOfMemoryError, match="could not be counted: TypeError"): learn.fit(1, cbs=Fail(torch.OutOfMemoryError("out of memory")))


def test_after_the_error_the_learner_trains_on():
    learn = make()
    with pytest.raises(torch.OutOfMemoryError): learn.fit(1, cbs=Fail(torch.OutOfMemoryError("out of memory")))
    learn.fit(1)
    assert len(learn.recorder.rows) == 1


def test_the_memory_of_the_failed_step_is_let_go():
    "Although the error, and with it the traceback, is kept"
    seen = []
    class Full(nn.Module):
        def forward(self, x):
            seen.append(weakref.ref(x))
            raise torch.OutOfMemoryError("out of memory")
    learn = make()
    learn.model.head = Full()
    with pytest.raises(torch.OutOfMemoryError) as e: learn.fit(1)
    assert e.value.__traceback__ is not None and seen[0]() is None


REAL = """
import resource, torch
from vitnb.callback.memory import ExplainOOM
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import vit_learner
torch.set_num_threads(1)
dls = image_loaders(load_set("digits"), img_size=32, bs=1000, augment="none", seed=1, device="cpu")
learn = vit_learner(dls, "swin_micro", device="cpu", precision="fp32", seed=1, cbs=[ExplainOOM()])
torch.ones(1, requires_grad=True).sum().backward() # autograd's threads need address space of their own
used = int(open("/proc/self/statm").read().split()[0])*resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300*2**20,)*2)
try: learn.fit(1)
except RuntimeError as e: print("refused:", type(e).__name__, e) # after what a slow machine says of its progress
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS and /proc are Linux's")
def test_a_real_lack_of_memory():
    env = {**os.environ, "OMP_NUM_THREADS":"1", "MALLOC_ARENA_MAX":"1"} # a thread's arena takes address space, which is what is limited here
    p = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, timeout=500, env=env)
    assert p.returncode == 0, p.stderr[-2000:]
    assert "refused: RuntimeError" in p.stdout and "can't allocate memory" in p.stdout and "training step on (1000, 3, 32, 32)" in p.stdout
    assert "1. gradient checkpointing" in p.stdout, p.stdout
