"What the loop offers: phases, declared columns with directions, sizes by epoch, companions, side passes, freezing by epoch"
import copy
import json
import pickle

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Metric, Recorder
from loop_helpers import Save, everything, net, tiny
from tiny_tasks import classes, fit, weights
from torch import nn

from vitnb.callback.base import PHASES, TrainCallback
from vitnb.callback.checkpoint import Checkpoints, load_checkpoint
from vitnb.callback.ema import EMACallback
from vitnb.callback.history import History
from vitnb.callback.stop import EarlyStop
from vitnb.data.sample import Batch
from vitnb.learner.core import run_callbacks
from vitnb.learner.loop import resize_batch
from vitnb.losses.objective import TaskObjective, make_objective
from vitnb.task import Column, Tasks
from vitnb.testing import differences, tiny_learner


# ---- columns and their directions

class WithTerms(TaskObjective):
    "Losses of tasks, and one more error that is only reported"
    def terms(self, pred, batch):
        total,count = super().terms(pred, batch)["loss"]
        return dict(loss=(total, count), mse_masked=(total.detach(), count))
    def counts(self, batch): return dict.fromkeys(("loss", "mse_masked"), super().counts(batch)["loss"])
    @property
    def weights(self): return dict(loss=1, mse_masked=0)
    def columns(self): return [Column("mse_masked", "min")]


class Angle(Metric):
    "An error in degrees, and a number without a direction"
    def __init__(self, name="sam_degrees", better="min", unit="degrees"): self._name,self.better,self.unit = name,better,unit
    name = property(lambda self: self._name)
    def reset(self): pass
    def accumulate(self, learn): pass
    value = 1.


class Script(TrainCallback):
    "Put these values into a column when its row is there"
    order = Recorder.order+1
    def __init__(self, column, values): self.column,self.values = column,values
    def after_epoch(self): self.recorder.rows[-1][self.column] = self.values[self.epoch]


MINIMISED = ["valid_mse_masked", "train_mse_masked", "valid_loss_ema", "sam_degrees", "sam_degrees_ema", "valid_loss", "train_loss"]

def following(column, values, *cbs, **kw):
    "A Learner whose epochs have these values"
    learn = tiny(EMACallback(.5), Script(column, values), *cbs, metrics=[Angle(), Angle("nothing", "")], **kw)
    loss = make_objective(Tasks.of(classes(3)))
    learn.loss_func = WithTerms(loss.tasks, {"":loss.loss_of("")})
    return learn


@pytest.mark.parametrize("column", [*MINIMISED, "train_accuracy"])
def test_direction_comes_from_who_writes_the_column(column, tmp_path):
    "Less is better, then more again; an accuracy the other way round"
    values = [3., 2., 1., 2., 3., 4.]
    if column == "train_accuracy": values = [-v for v in values]
    stop,files = EarlyStop(column, patience=1),Checkpoints(tmp_path, column, keep_top_k=2)
    learn = following(column, values, stop, schedule=dict(name="plateau", monitor=column, patience=0, factor=.5))
    fit(learn, 6, cbs=[files, History(tmp_path)])
    assert len(learn.recorder.rows) == 5 and stop.best_epoch == 3
    assert files.best_epoch == 3 and load_checkpoint(tmp_path/"best_model.pth")["epoch"] == 3
    assert load_checkpoint(tmp_path/"best_model.pth")["better"] == ("max" if column == "train_accuracy" else "min")
    assert {p.name for p in tmp_path.glob("top_*")} == {"top_epoch_3.pth", "top_epoch_2.pth"}
    rates = [r["lr"] for r in learn.recorder.rows]
    assert rates[:4] == [rates[0]]*4 and rates[4] == rates[0]/2, "the first worse epoch is the fourth"


FOLLOWERS = dict(stop=lambda column, folder, **kw: dict(cbs=[EarlyStop(column, **kw)]), files=lambda column, folder, **kw: dict(cbs=[Checkpoints(folder, column, **kw)]),
                 plateau=lambda column, folder, **kw: dict(schedule=dict(name="plateau", monitor=column, **kw)))

@pytest.mark.parametrize("who", FOLLOWERS)
@pytest.mark.parametrize("column,say", [("sam_degree", "did you mean 'sam_degrees'"), ("mse_masked", "cannot monitor 'mse_masked': did you mean '(train|valid)_mse_masked'"),
                                        ("nothing", "less or more is better; give mode='min' or 'max'"), ("lr", "less or more is better; give mode='min' or 'max'")])
def test_what_nobody_declared_is_an_error_with_its_remedy(who, column, say, tmp_path):
    kw = FOLLOWERS[who](column, tmp_path)
    learn = following("valid_loss", [1.]*9, *kw.pop("cbs", []), **kw)
    with pytest.raises(ValueError, match=say): fit(learn)
    assert learn.opt_steps == 0, "before the first step"


@pytest.mark.parametrize("who", FOLLOWERS)
def test_a_mode_says_the_direction_of_a_column_that_has_none(who, tmp_path):
    kw = FOLLOWERS[who]("nothing", tmp_path, mode="max")
    learn = fit(following("nothing", [1., 2., 3.], *kw.pop("cbs", []), **kw), 3)
    if who == "stop": assert learn.early_stop.best_epoch == 3
    if who == "files": assert learn.checkpoints.best_epoch == 3
    if who == "plateau": assert len({r["lr"] for r in learn.recorder.rows}) == 1


def test_the_columns_are_kept_with_the_run(tmp_path):
    "Name, direction, unit and task of everything that the history has"
    learn = following("valid_loss", [1., 2.])
    fit(learn, 2, cbs=run_callbacks(tmp_path, "valid_loss", tracker="none"))
    kept = json.loads((tmp_path/"columns.json").read_text())
    assert kept["sam_degrees"] == dict(better="min", unit="degrees", task="") == kept["sam_degrees_ema"]
    assert kept["valid_mse_masked"]["better"] == kept["train_mse_masked"]["better"] == kept["valid_loss_ema"]["better"] == "min"
    assert kept["train_accuracy"]["better"] == "max" and kept["nothing"]["better"] == kept["lr"]["better"] == ""
    rows = json.loads((tmp_path/"history.json").read_text())
    assert set(rows[-1]) - {"epoch", "step", "seconds"} == set(kept) == set(learn.columns)


# ---- a size for each epoch

def sizes(epoch): return (4, 6, 8)[epoch%3]


class Shapes(TrainCallback):
    order,phases = 30,PHASES
    def __init__(self): self.seen = []
    def before_batch(self): self.seen.append((self.training, tuple(self.learn.batch[0].shape[-2:])))


def sized(*cbs):
    learn = tiny(Shapes(), *cbs)
    learn.size_of_epoch = sizes
    return learn


def test_a_size_for_each_epoch():
    "In training; validation stays as it is, so that epochs can be compared"
    learn = fit(sized(), 3)
    assert [s for training,s in learn.shapes.seen if training] == [(4,4)]*6 + [(6,6)]*6 + [(8,8)]*6
    assert {s for training,s in learn.shapes.seen if not training} == {(8,8)}
    fit(learn, 1)
    assert learn.shapes.seen[-7][1] == (4,4), "a second fit goes on with the fourth epoch"
    assert not torch.equal(weights(fit(tiny(), 3)), weights(fit(sized(), 3)))


@pytest.mark.parametrize("n", [3, 6, 9, 14])
def test_a_resumed_run_keeps_size_and_position(n):
    save = Save(n)
    whole,rest = fit(sized(save), 3),sized()
    fit(rest, 3, resume=save.state)
    assert tuple(save.state["position"]) == ((n//6, n%6) if n%6 else (n//6 - 1, 6))
    assert torch.equal(weights(whole), weights(rest))
    trained = [s for training,s in whole.shapes.seen if training]
    assert [s for training,s in rest.shapes.seen if training] == trained[n:]


def test_what_lies_on_the_pixels_changes_with_them():
    x,y = torch.rand(2, 3, 8, 8),torch.randint(0, 5, (2, 8, 8))
    mask = torch.rand(2, 1, 8, 8) > .5
    small = resize_batch(Batch(dict(image=x, target=dict(a=y, b=torch.arange(2)), mask=mask, index=np.arange(2))), 4)
    assert small["image"].shape == (2,3,4,4) and small["mask"].shape == (2,1,4,4) and small["mask"].dtype == torch.bool
    assert small["target"]["a"].shape == (2,4,4) and small["target"]["a"].dtype == y.dtype and set(small["target"]["a"].unique().tolist()) <= set(y.unique().tolist())
    assert torch.equal(small["target"]["b"], torch.arange(2)) and small["index"].tolist() == [0, 1]
    half = nn.functional.interpolate(y[:,None].float(), (4, 4), mode="nearest-exact")[:,0].long()
    assert torch.equal(small["target"]["a"], half)
    views = torch.rand(2, 4, 3, 8, 8)
    assert torch.allclose(resize_batch(Batch(dict(image=views)), (6, 4))["image"][1,2], resize_batch(Batch(dict(image=views[1,2:3])), (6, 4))["image"][0])
    whole = Batch(dict(image=x, target=y))
    assert resize_batch(whole, 8) is whole


# ---- a companion model

class Teacher(TrainCallback):
    "A momentum teacher whose answers are part of the loss"
    order = 20
    def before_fit(self): self.teacher = self.learn.companions["teacher"].eval()
    def after_loss(self):
        if not self.training: return
        with torch.no_grad(): wanted = self.teacher(*self.learn.xb)
        self.learn.loss_grad = self.learn.loss_grad + (self.learn.pred - wanted).square().mean()
    def after_step(self):
        with torch.no_grad():
            for a,b in zip(self.teacher.parameters(), self.model.parameters()): a.lerp_(b, .1)


def taught(*cbs, **kw):
    learn = tiny(Teacher(), *cbs, **kw)
    torch.manual_seed(5)
    learn.companions["teacher"] = net().requires_grad_(False)
    return learn


def states(learn): return dict(model=learn.model.state_dict(), teacher=learn.companions["teacher"].state_dict())


@pytest.mark.parametrize("n", [3, 6, 9])
def test_a_companion_is_saved_and_resumed_exactly(n, tmp_path):
    save = Save(n)
    whole = fit(taught(save), 2)
    torch.save(save.state, tmp_path/"ck.pth")
    state,rest = torch.load(tmp_path/"ck.pth", weights_only=True),taught()
    with torch.no_grad():
        for p in rest.companions["teacher"].parameters(): p.zero_() # what was there does not count
    fit(rest, 2, resume=state)
    assert not differences(states(whole), states(rest))
    lost = taught()
    state["companions"] = dict(teacher=taught().companions["teacher"].state_dict())
    fit(lost, 2, resume=state)
    assert differences(states(whole), states(lost)), "without it the run would be another"


def test_a_state_with_other_companions_is_refused():
    save = Save(3)
    fit(taught(save), 1)
    with pytest.raises(ValueError, match="companions"): fit(tiny(), 1, resume=save.state)
    alone = Save(3)
    fit(tiny(alone), 1)
    with pytest.raises(ValueError, match="companions"): fit(taught(), 1, resume=alone.state)


def test_a_dry_run_puts_a_companion_back():
    learn = taught()
    before = copy.deepcopy(states(learn))
    learn.dry_run()
    assert not differences(before, states(learn))


# ---- freezing by epoch

def test_every_callback_pickles(tmp_path):
    "Also in the middle of a fit; one that owns files comes back as a callback that does nothing"
    class Try(Callback):
        order,tried = 300,[]
        def after_batch(self):
            if self.training and self.iter == 3:
                for cb in self.learn.cbs:
                    learn,cb.learn = cb.learn,None
                    try: self.tried.append(type(pickle.loads(pickle.dumps(cb))).__name__ if cb is not self else "")
                    finally: cb.learn = learn
    tiny_learner().fit(1, cbs=[*everything(tmp_path), Try()])
    assert {"Checkpoints", "StopOnSignal", "TimeLimit", "NaNWatch", "EMACallback", "Accumulate", "EarlyStop", "History", "EventLog"} <= set(Try.tried)
