"Time limits, signals, losses that are no numbers: a run ends in order, and goes on"
import os
import signal

import pytest
import torch
from fastai.callback.core import Callback
from test_learner_core import make, weights
from test_resume import state

from vitnb.callback.checkpoint import Checkpoints, load_checkpoint
from vitnb.callback.limit import NaNWatch, TimeLimit, TrainingStopped
from vitnb.testing import differences, tiny_fit, tiny_learner


def test_time_is_counted_over_resumes(tmp_path):
    t = [0.]
    def clock():
        t[0] += 1
        return t[0]
    with pytest.raises(TrainingStopped) as e: tiny_fit(tmp_path, cbs=[TimeLimit(40/3600, clock)])
    assert e.value.code == 75
    used = load_checkpoint(tmp_path/"checkpoints/checkpoint_time_limit.pth")["training_state"]["callbacks"]["TimeLimit"]["used"]
    assert 20 < used <= 40
    with pytest.raises(TrainingStopped): tiny_fit(tmp_path, cbs=[TimeLimit((used+15)/3600, clock)])
    assert load_checkpoint(tmp_path/"checkpoints/checkpoint_time_limit.pth")["training_state"]["callbacks"]["TimeLimit"]["used"] > used
    whole,again = tiny_fit(tmp_path/"whole"),tiny_fit(tmp_path, cbs=[TimeLimit(1, clock)])
    assert not differences(state(whole), state(again))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_rerun_goes_on(tmp_path, signum):
    class Send(Callback):
        def after_pred(self):
            if self.training and self.opt_steps == 10: os.kill(os.getpid(), signum)
    with pytest.raises(TrainingStopped) as e: tiny_fit(tmp_path/"b", cbs=[Send()])
    assert e.value.code == 128 + signum
    assert load_checkpoint(tmp_path/"b/checkpoints/checkpoint_time_limit.pth")["training_state"]["opt_steps"] == 11, "the batch was finished"
    whole,again = tiny_fit(tmp_path/"a"),tiny_fit(tmp_path/"b")
    assert not differences(state(whole), state(again))


def test_time_limit_stops_with_a_checkpoint_and_goes_on(tmp_path):
    t = [0.]
    def clock():
        t[0] += 10
        return t[0]
    learn = make()
    with pytest.raises(TrainingStopped, match="run the same command again") as e: learn.fit(3, cbs=[Checkpoints(tmp_path), TimeLimit(150/3600, clock)])
    assert e.value.code == 75
    state = load_checkpoint(tmp_path/"checkpoint_time_limit.pth")["training_state"]
    assert 0 < state["opt_steps"] < 12
    whole,rest = make(),make()
    whole.fit(3, cbs=Checkpoints(tmp_path/"w"))
    rest.fit(3, cbs=Checkpoints(tmp_path/"r"), resume=state)
    assert torch.equal(weights(whole), weights(rest))


def test_nan_is_found_and_named():
    class Poison(Callback):
        def after_step(self):
            if self.opt_steps == 2: dict(self.model.named_parameters())["head.fc.bias"].data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="epoch 1, batch 3; first not finite"): make().fit(2, cbs=[Poison(), NaNWatch(every_n_steps=2)])


def test_anomaly_mode_names_the_operation_and_goes():
    class Bad(Callback):
        def after_loss(self):
            if self.training: self.learn.loss_grad = self.loss_grad + (self.pred.sum()*0).sqrt()*0
    with pytest.raises(RuntimeError, match="SqrtBackward0"): tiny_learner(engine=dict(anomaly=True), cbs=[Bad()]).fit(1)
    assert not torch.is_anomaly_enabled()
