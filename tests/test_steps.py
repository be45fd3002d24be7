"What is kept of each step reads as lists of dictionaries and numbers do, and stays small"
import math
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.callback.record import StepRecorder
from vitnb.callback.steps import Curve, Steps
from vitnb.testing import tiny_learner

NUMBERS = st.floats(allow_nan=False, width=32)
STEP = st.fixed_dictionaries(dict(lr=NUMBERS, loss=NUMBERS), optional=dict(train_accuracy=NUMBERS, train_score=NUMBERS))


@settings(max_examples=40, deadline=None)
@given(st.lists(STEP, max_size=8), st.integers(-9, 9), st.integers(-9, 9))
def test_steps_read_as_a_list_of_dictionaries(found, first, last):
    plain = [dict(step=number, **step) for number,step in enumerate(found, 1)]
    kept = Steps()
    for step in plain: kept.append(step)
    assert kept == plain and list(kept) == plain and len(kept) == len(plain) and bool(kept) == bool(plain)
    assert kept[first:last] == plain[first:last] and kept.until(last) == [step for step in plain if step["step"] <= last]
    if -len(plain) <= first < len(plain): assert kept[first] == plain[first]
    else:
        with pytest.raises(IndexError): kept[first]
    tensors = kept.tensors()
    assert tensors["step"].dtype == torch.int64 and tensors["loss"].dtype == torch.float64
    for copy in (Steps({name:values.tolist() for name,values in tensors.items()}), pickle.loads(pickle.dumps(kept))):
        assert copy == plain
        copy.append(dict(step=9, lr=.1, loss=math.inf))
        assert kept == plain


@settings(max_examples=30, deadline=None)
@given(st.lists(NUMBERS, max_size=9), st.sampled_from("df"))
def test_a_curve_reads_as_a_list_of_numbers(values, kind):
    curve = Curve(kind=kind)
    for value in values: curve.append(value)
    assert curve == values and [float(o) for o in curve] == values and np.array_equal(np.array(curve), values)
    assert curve[1:] == values[1:] and isinstance(curve[1:], list) and (curve == values + [1.]) is False
    if kind == "f": assert all(isinstance(o, torch.Tensor) and o.dtype == torch.float32 for o in curve)


def record(recorder, first, last):
    "What `flush` keeps of steps"
    for step in range(first, last):
        recorder.lrs.append(.1)
        recorder.losses.append(step/7)
        recorder.steps.append(dict(step=step, lr=.1, loss=step/7, train_accuracy=.5))


def test_a_step_takes_a_few_bytes():
    recorder = StepRecorder()
    record(recorder, 0, 1000)
    tracemalloc.start()
    record(recorder, 1000, 21_000)
    each = tracemalloc.get_traced_memory()[0]/20_000
    tracemalloc.stop()
    assert each < 60, f"{each:.0f} bytes a step; four numbers, a rate and a loss are 44, as dictionaries and tensors 1,100"


def test_a_fit_grows_by_its_history_alone():
    learn = tiny_learner()
    learn.recorder.every_n_steps = 5
    learn.fit(3)
    tracemalloc.start()
    before = len(learn.recorder.steps)
    learn.fit(2)
    first = tracemalloc.get_traced_memory()[0]
    learn.fit(10)
    grown = tracemalloc.get_traced_memory()[0] - first
    tracemalloc.stop()
    steps = 10*len(learn.dls.train)
    assert len(learn.recorder.steps) >= before and grown/steps < 769, f"{grown/steps:.0f} bytes a step, rows of epochs among them"
