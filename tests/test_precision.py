"Precision: what is measured decides once, and a resumed run keeps what it had"
import json

import pytest
import torch
from tiny_tasks import StopAt, weights

import vitnb.learner.precision as precision
from vitnb.testing import tiny_fit, tiny_learner


@pytest.fixture
def measured(monkeypatch, tmp_path):
    "Say what the measurement finds; counts how often it is asked"
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))
    said,asked = dict(fp32=10., bf16=10.),[]
    def measure(device):
        asked.append(device)
        return dict(said)
    monkeypatch.setattr(precision, "measure_precision", measure)
    precision._best_precision.cache_clear()
    yield said, asked, tmp_path/"cache"/"precision.json"
    precision._best_precision.cache_clear()


def test_auto_takes_what_was_faster_and_asks_once(measured):
    said,asked,file = measured
    said["bf16"] = 4.
    assert precision.pick_precision("auto", "cpu") == torch.bfloat16 and tiny_learner(precision="auto").dtype == torch.bfloat16 and len(asked) == 1
    (kept,) = (value for name,value in json.loads(file.read_text()).items() if name != "crc32")
    assert kept["precision"] == "bf16" and kept["milliseconds"]["bf16"] == 4.
    said["bf16"] = 40.
    precision._best_precision.cache_clear() # as another process
    assert precision.pick_precision("auto", "cpu") == torch.bfloat16 and len(asked) == 1, "this machine has decided"


@pytest.mark.parametrize("ms,want", [(dict(fp32=9, bf16=7.3), "fp32"), (dict(fp32=9, bf16=7), "bf16"), (dict(fp32=9, bf16=5, fp16=4), "bf16"),
                                     (dict(fp32=9, bf16=30, fp16=4), "fp16"), (dict(fp32=9, bf16=30, fp16=8), "fp32")])
def test_what_is_worth_it(ms, want): assert precision.choose_precision(ms) == want


def test_measuring_draws_nothing():
    before = torch.get_rng_state()
    ms = precision.measure_precision("cpu", 1)
    assert set(ms) == {"fp32", "bf16"} and min(ms.values()) > 0 and torch.equal(before, torch.get_rng_state())


def test_a_resumed_run_keeps_its_precision(measured, tmp_path):
    "A new measurement is no reason for other bits, and none to refuse"
    said,*_ = measured
    whole = tiny_fit(tmp_path/"a", precision="auto")
    with pytest.raises(RuntimeError, match="here"): tiny_fit(tmp_path/"b", precision="auto", cbs=[StopAt(8)])
    said["bf16"] = 1.
    measured[2].unlink()
    precision._best_precision.cache_clear()
    assert tiny_learner(precision="auto").dtype == torch.bfloat16
    again = tiny_fit(tmp_path/"b", precision="auto")
    assert again.dtype == torch.float32 and torch.equal(weights(whole), weights(again))


def test_a_resumed_run_keeps_its_scaler(measured, tmp_path):
    "fp16, resumed where the measurement says float32"
    with pytest.raises(RuntimeError, match="here"): tiny_fit(tmp_path/"b", precision="fp16", cbs=[StopAt(8)])
    again = tiny_fit(tmp_path/"b", precision="auto")
    whole = tiny_fit(tmp_path/"a", precision="fp16")
    assert again.dtype == torch.float16 and again.scaler.get_scale() == whole.scaler.get_scale() and torch.equal(weights(whole), weights(again))


def test_half_precision_becomes_single_wherever_it_lies():
    "Shapes of containers stay, and so does what is no number of half precision"
    half,whole = torch.ones(2).bfloat16(),torch.arange(2)
    found = precision.as_float(dict(a=[half, (half, whole)], b=None, c="text"))
    assert found["a"][0].dtype == found["a"][1][0].dtype == torch.float32 and isinstance(found["a"][1], tuple)
    assert found["a"][1][1] is whole and found["b"] is None and found["c"] == "text"
    assert precision.as_float(half).dtype == torch.float32 and precision.as_float(whole) is whole
