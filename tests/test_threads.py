"How many threads of the CPU a step takes: measured, pinned, left to the user, and kept in a checkpoint"
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from vitnb.callback import threads as T
from vitnb.testing import tiny_learner


@pytest.fixture
def two_threads(monkeypatch):
    "A process that torch gave two threads, of which nobody has spoken"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(T, "_DEFAULT", 2)
    monkeypatch.setattr(T.Threads, "chosen", None)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))
    return tmp_path/"cache"/"threads.json"


def steps_take(monkeypatch, one, two, busy=False):
    "In place of a measurement, which no test may depend on"
    calls = []
    def measured(*args, **kw): calls.append(1); return {1:one, 2:two}
    monkeypatch.setattr(T, "measure_threads", measured)
    monkeypatch.setattr(T, "_is_busy", lambda *args: busy)
    return calls


@pytest.mark.parametrize("times,chosen", [({1:1.}, 1), ({1:1., 2:.76}, 1), ({1:1., 2:.75}, 2), ({1:8., 2:4., 4:2., 8:1.9}, 4),
                                          ({1:1., 2:.9, 4:.1}, 1)])
def test_twice_the_threads_must_take_a_quarter_off(times, chosen): assert T.choose_threads(times) == chosen


def test_measuring_changes_nothing_but_the_clock():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(.5))
    before = {name:value.clone() for name,value in model.state_dict().items()}
    generator,threads = torch.get_rng_state(),torch.get_num_threads()
    times = T.measure_threads(model, (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),), 4, repetitions=1)
    assert list(times) == [1, 2, 4] and min(times.values()) > 0
    assert all(torch.equal(value, before[name]) for name,value in model.state_dict().items())
    assert model[0].weight.grad is None and torch.equal(torch.get_rng_state(), generator) and torch.get_num_threads() == threads


def test_hooks_are_not_called_and_not_copied():
    "One of a Learner's may hold a lock, which no copy has"
    class Holder:
        def __init__(self): self.lock,self.calls = threading.Lock(),0
        def see(self, module, args, out): self.calls += 1
    model,holder = nn.Linear(4, 4),Holder()
    model.register_forward_hook(holder.see)
    T.measure_threads(model, (torch.ones(2, 4),), 2, repetitions=1)
    assert holder.calls == 0 and len(model._forward_hooks) == 1


def test_a_model_that_gains_little_trains_with_one_thread_and_says_so(two_threads, own_cache, monkeypatch, capsys):
    steps_take(monkeypatch, 1e-3, .9e-3)
    learn = tiny_learner()
    learn.logger = print
    learn.fit(1)
    assert torch.get_num_threads() == 1 and "threads: 1 of 2 (a step takes 1.0 ms with 1, 0.9 ms with 2" in capsys.readouterr().out
    assert next(iter(json.loads(own_cache.read_text()).values()))["threads"] == 1


def test_one_that_gains_keeps_two_and_is_measured_once(two_threads, own_cache, monkeypatch):
    calls = steps_take(monkeypatch, 1e-3, .6e-3)
    for _ in range(2): tiny_learner().fit(1)
    assert torch.get_num_threads() == 2 and len(calls) == 1


def test_what_was_measured_beside_other_programs_is_not_kept(two_threads, own_cache, monkeypatch):
    steps_take(monkeypatch, 1e-3, .9e-3, busy=True)
    tiny_learner().fit(1)
    assert torch.get_num_threads() == 1 and not own_cache.exists()


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_users_variable_wins(two_threads, own_cache, monkeypatch, variable):
    calls = steps_take(monkeypatch, 1e-3, .9e-3)
    monkeypatch.setenv(variable, "2")
    tiny_learner().fit(1)
    assert torch.get_num_threads() == 2 and not calls


def test_a_users_call_wins(two_threads, own_cache, monkeypatch):
    calls = steps_take(monkeypatch, 1e-3, .9e-3)
    torch.set_num_threads(3)
    tiny_learner().fit(1)
    assert torch.get_num_threads() == 3 and not calls


def test_the_setting_wins_over_the_measurement(two_threads, own_cache, monkeypatch):
    calls = steps_take(monkeypatch, 1e-3, .9e-3)
    monkeypatch.setenv("VITNB_THREADS", "2")
    tiny_learner().fit(1)
    assert torch.get_num_threads() == 2 and not calls


@pytest.mark.parametrize("text,rule", [("0", "a whole number from 1"), *((text, "not a whole number") for text in ("-1", "two", "1.5"))])
def test_a_wrong_setting_is_refused_with_the_rule(monkeypatch, text, rule):
    monkeypatch.setenv("VITNB_THREADS", text)
    with pytest.raises(ValueError, match=rule): T.wanted_threads()


def test_a_resumed_run_keeps_its_number(two_threads, own_cache, monkeypatch):
    "With another number sums are taken in another order"
    steps_take(monkeypatch, 1e-3, .9e-3)
    first = tiny_learner()
    first.fit(1)
    state = first.training_state()
    torch.set_num_threads(2)
    T.Threads.chosen = None
    calls = steps_take(monkeypatch, 1e-3, .5e-3)
    tiny_learner().fit(2, resume=state, allow_changes=True)
    assert torch.get_num_threads() == 1 and not calls


WHERE = "import os, {}; print(os.environ.get('GOMP_SPINCOUNT'))"

@pytest.mark.parametrize("first,variables,spins", [
    ("vitnb", {}, "1000"), ("torch, vitnb", {}, "None"), ("vitnb", {"GOMP_SPINCOUNT":"7"}, "7"),
    ("vitnb", {"OMP_WAIT_POLICY":"active"}, "None")])
def test_waiting_threads_sleep_early_unless_somebody_says_otherwise(first, variables, spins):
    clean = {name:value for name,value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", WHERE.format(first)], env={**clean, **variables}, capture_output=True, text=True)
    assert done.stdout.strip() == spins, done.stderr


BUSY = "while True: pass"
EPOCHS = """
import time
from vitnb.all import image_loaders, load_set, vit_learner
learn = vit_learner(image_loaders(load_set("digits"), bs=64, augment="shift"), "swin_micro", device="cpu", precision="fp32")
with learn.no_bar(), learn.no_logging():
    learn.fit(1)
    start = time.perf_counter()
    learn.fit(2)
    print(time.perf_counter() - start)
"""

@pytest.mark.slow # it keeps all cores busy, and judges by the clock
@pytest.mark.skipif((os.cpu_count() or 1) != 2, reason="the fair share is computed for two cores")
def test_beside_two_busy_programs_a_fit_gets_its_fair_share(tmp_path):
    "Three programs on two cores have two thirds of a core each: a fit takes one and a half times as long as alone"
    clean = {name:value for name,value in os.environ.items() if "OMP" not in name and "MKL" not in name}
    def fit():
        env = {**clean, "VITNB_CACHE_PATH":str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", EPOCHS], env=env, capture_output=True, text=True, timeout=300)
        return float(done.stdout.split()[-1])
    alone = fit()
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2)]
    try: beside = min(fit() for _ in range(2))
    finally:
        for other in others: other.kill()
    assert beside <= 1.5*1.5*alone
