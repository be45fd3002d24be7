"Early stopping: where a fit ends, which weights are left, and the same after a kill"
import copy
import math

import pytest
from fastai.callback.core import Callback
from test_resume import Die, DieAt, cut_and_resume, state

from vitnb.callback.ema import EMACallback
from vitnb.callback.stop import EarlyStop
from vitnb.testing import differences, tiny_fit, tiny_learner


class Script(Callback):
    "Write the values to monitor"
    order = 52 # after the average's columns
    def __init__(self, values, name="valid_loss"): self.values,self.column = values,name
    def after_epoch(self):
        self.learn.recorder.rows[-1][self.column] = self.values[self.epoch]
    def state_dict(self): return {}
    def load_state_dict(self, s): pass


class KeepWeights(Callback):
    "Weights after each epoch, and those of the average"
    order = 53
    def before_fit(self): self.kept = []
    def after_epoch(self):
        parts = [self.model, *(cb.module for cb in self.learn.cbs if isinstance(cb, EMACallback))]
        self.kept.append([copy.deepcopy(dict(m.state_dict())) for m in parts])
    def state_dict(self): return {}
    def load_state_dict(self, s): pass


@pytest.mark.parametrize("values,patience,min_delta,best,ran", [
    ([3, 2, 1, .5, .4], 1, 0, 5, 5), ([3, 1, 2, 2, 2], 1, 0, 2, 4), ([3, 1, 2, 2, 2], 0, 0, 2, 3), ([3, 2.9, 2.8, 2.7, 2.6], 1, .5, 1, 3),
    ([3, 2.9, 2.4, 2.7, 2.6], 1, .5, 3, 5), ([math.nan, 2, math.nan, 3, 1], 1, 0, 2, 4), ([1, 1, 1, 1, 1], 3, 0, 1, 5)])
def test_stops_where_it_should(values, patience, min_delta, best, ran):
    stop,kept,learn = EarlyStop(patience=patience, min_delta=min_delta),KeepWeights(),tiny_learner()
    learn.fit(5, cbs=[Script(values), kept, stop])
    assert (stop.best_epoch, len(kept.kept)) == (best, ran)
    assert not differences(kept.kept[best-1][0], dict(learn.model.state_dict()))


def test_mode_acts():
    stop = EarlyStop("accuracy", patience=0, restore_best=False)
    tiny_learner().fit(5, cbs=[Script([.5, .6, .4, .4, .4], "accuracy"), stop])
    assert stop.best_epoch == 2
    stop = EarlyStop("accuracy", patience=0, mode="min")
    tiny_learner().fit(5, cbs=[Script([.5, .6, .4, .4, .4], "accuracy"), stop])
    assert stop.best_epoch == 1


def test_the_average_is_put_back_too():
    stop,kept,learn = EarlyStop("accuracy_ema", patience=1),KeepWeights(),tiny_learner(engine=dict(ema_decay=.5))
    learn.fit(5, cbs=[Script([.1, .3, .2, .2, .2], "accuracy_ema"), kept, stop])
    assert stop.best_epoch == 2
    assert not differences(kept.kept[1], [dict(learn.model.state_dict()), dict(learn.ema.module.state_dict())])


@pytest.mark.parametrize("step", [5, 9, 14, 21])
def test_early_stop_is_exact_on_resume(tmp_path, step):
    "Also where the best epoch was before the kill"
    kw = dict(epochs=6, patience=1, engine=dict(ema_decay=.9))
    values = [3, 1, 2, 2, 2, 2]
    whole = tiny_fit(tmp_path/"a", cbs=[Script(values)], **kw)
    again = cut_and_resume(tmp_path/"b", step, cbs=lambda: [Script(values)], **kw)
    assert len(again.recorder.rows) == 4
    assert not differences(state(whole), state(again)) and not differences(whole.recorder.rows, again.recorder.rows, ["seconds"])


def test_validate_and_an_error_leave_the_weights():
    stop,learn = EarlyStop(patience=0),tiny_learner()
    learn.add_cb(stop)
    learn.fit(2)
    before,best = copy.deepcopy(learn.model.state_dict()),stop.best
    learn.validate()
    assert not differences(before, learn.model.state_dict()) and stop.best == best
    with pytest.raises(Die): learn.fit(3, cbs=[DieAt(learn.opt_steps + 9)])
    assert stop.weights is None
    learn.fit(1)


def test_lr_find_is_not_an_epoch(tmp_path):
    learn = tiny_learner(cbs=[EarlyStop()], path=tmp_path)
    learn.lr_find(num_it=8, show_plot=False)
    assert learn.early_stop.best is None
