"What a run takes of its machine"
import torch
from scalar_helpers import fit

from vitnb.callback.system import SYSTEM_SCALARS, SystemWatch
from vitnb.testing import tiny_learner


def test_what_the_machine_tells_is_a_scalar_and_no_column(tmp_path):
    learn,got = fit(tmp_path)
    assert {"system/process_mib", "system/cpu_percent"} <= got.keys() and len(got["system/process_mib"]) == 2
    assert got["system/process_mib"][0][1] > 50 and got["system/cpu_percent"][-1][1] > 0
    assert "memory_mib" not in learn.recorder.rows[0], "the history of a run on a CPU is a function of its parameters"
    assert set(SYSTEM_SCALARS) >= {k for k in got if k.startswith("system/")}


def test_the_memory_of_an_accelerator_is_a_column(monkeypatch):
    "With a device that says it is one"
    learn = tiny_learner()
    watch = SystemWatch()
    watch.learn = type("Fake", (), dict(device=torch.device("cuda", 0), opt_steps=3, recorder=type("R", (), dict(row={}))()))()
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3*2**20)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 40)
    assert [c.name for c in watch.columns()] == ["memory_mib"]
    watch.after_epoch()
    assert watch.learn.recorder.row == dict(memory_mib=3.) and watch.points[0][1]["system/gpu_percent"] == 40.
