"Time limits, signals, losses that are no numbers: a run ends in order, and goes on"
import os
import signal

import pytest
import torch
from fastai.callback.core import Callback
from test_learner_core import make, weights
from test_resume import state

from vitnb.callback import limit
from vitnb.callback.checkpoint import Checkpoints, load_checkpoint
from vitnb.callback.limit import NaNWatch, StopOnSignal, TimeLimit, TrainingStopped
from vitnb.learner.core import run_callbacks
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


@pytest.mark.parametrize("signum,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75)])
def test_a_signal_saves_and_the_rerun_goes_on(tmp_path, signum, code, heard):
    class Send(Callback):
        def after_pred(self):
            if self.training and self.opt_steps == 10:
                for _ in range(2): os.kill(os.getpid(), signum) # a queue, and the launcher that the queue has told
    with pytest.raises(TrainingStopped) as e: tiny_fit(tmp_path/"b", cbs=[Send()])
    assert e.value.code == code
    assert load_checkpoint(tmp_path/"b/checkpoints/checkpoint_time_limit.pth")["training_state"]["opt_steps"] == 11, "the batch was finished"
    whole,again = tiny_fit(tmp_path/"a"),tiny_fit(tmp_path/"b")
    assert not differences(state(whole), state(again))


class Interrupt(Callback):
    "Send SIGINT after some steps of this process"
    order = 10
    def __init__(self, after): self.after = after
    def after_pred(self):
        if self.training and self.opt_steps == self.after: os.kill(os.getpid(), signal.SIGINT)
    def state_dict(self): return {}
    def load_state_dict(self, s): pass


@pytest.mark.parametrize("files", [True, False])
def test_an_interrupted_cell_that_is_run_again_goes_on(tmp_path, files):
    "The same call of the same Learner, with and without files: the bits of a fit that nobody touched"
    def cbs(folder): return run_callbacks(folder, tracker="none") if files else [StopOnSignal()]
    whole,learn = tiny_learner(),tiny_learner()
    whole.fit(3, cbs=cbs(tmp_path/"a"))
    with pytest.raises(TrainingStopped): learn.fit(3, cbs=[*cbs(tmp_path/"b"), Interrupt(6)])
    learn.fit(3, cbs=cbs(tmp_path/"b"))
    assert torch.equal(weights(whole), weights(learn)) and learn.epochs_done == 3
    assert not differences(whole.recorder.rows, learn.recorder.rows, ["seconds"])
    learn.fit(1, cbs=cbs(tmp_path/"b")) # it has come to its end: this is another fit
    assert learn.epochs_done == 4


def test_another_call_is_another_fit(capsys):
    learn = tiny_learner()
    with pytest.raises(TrainingStopped): learn.fit(3, cbs=[StopOnSignal(), Interrupt(6)])
    learn.fit(1, cbs=StopOnSignal())
    assert "could go on with fit(3)" in capsys.readouterr().out and learn.opt_steps == 7 + len(learn.dls.train)


@pytest.mark.parametrize("event", ["before_validate", "after_validate", "after_epoch", "after_fit"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_the_last_validation_or_behind_it_is_a_stop(tmp_path, event, signum):
    "What follows the fit does not begin; run again, it does, and nothing is trained anew"
    class Late(Callback):
        order = 70 # behind what writes and stops
    setattr(Late, event, lambda self: self.epoch + 1 == self.n_epoch and os.kill(os.getpid(), signum))
    if event == "after_fit": Late.order = 0 # while others save
    with pytest.raises(TrainingStopped) as e: tiny_fit(tmp_path, epochs=2, cbs=[Late()])
    assert e.value.code == 128 + signum and e.value.path.is_file()
    again = tiny_fit(tmp_path, epochs=2)
    assert len(again.recorder.rows) == 2 and again.opt_steps == 2*len(again.dls.train)


def test_a_stop_behind_the_last_step_without_files_is_one_too():
    class Late(Callback):
        def after_fit(self): os.kill(os.getpid(), signal.SIGINT)
    learn = tiny_learner()
    with pytest.raises(TrainingStopped): learn.fit(2, cbs=[StopOnSignal(), Late()])
    learn.fit(2, cbs=StopOnSignal())
    assert learn.opt_steps == 2*len(learn.dls.train)
    broken = tiny_learner()
    class Fails(Late):
        def after_epoch(self): raise ValueError("broken")
    with pytest.raises(ValueError, match="broken"): broken.fit(1, cbs=[StopOnSignal(), Fails()])


def test_the_second_signal_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(limit, "AT_ONCE", 0.)
    class Twice(Interrupt):
        def after_pred(self):
            super().after_pred()
            super().after_pred()
    with pytest.raises(limit.NotWaiting, match="second SIGINT"): tiny_fit(tmp_path, cbs=[Twice(3)])


def test_an_ignored_signal_stays_ignored():
    "`nohup` ignores SIGHUP, and the terminal may be closed"
    class Hang(Callback):
        def after_pred(self): os.kill(os.getpid(), signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try: tiny_learner().fit(1, cbs=[StopOnSignal(), Hang()])
    finally: signal.signal(signal.SIGHUP, before)


def test_a_notebook_shows_one_sentence(monkeypatch):
    import vitnb.callback.limit as module
    said = TrainingStopped("SIGINT received", 130, "x.pth")._render_traceback_()
    assert len(said) == 1 and "run the same command again" in said[0] and "\n" not in said[0]
    monkeypatch.setattr(module, "in_kernel", lambda: True)
    monkeypatch.setattr(module, "headless", lambda: False)
    assert "run this cell" in TrainingStopped("SIGINT received", 130, "x.pth")._render_traceback_()[0]


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
