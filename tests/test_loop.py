"What the loop offers: phases, declared columns with directions, sizes by epoch, companions, side passes, freezing by epoch"
import copy
import json
import pickle

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Metric, Recorder
from fastai.metrics import accuracy
from torch import nn

from tiny_tasks import From, classes, fit, task_learner, weights
from vitnb.callback.base import PHASES, TrainCallback
from vitnb.callback.checkpoint import Checkpoints, load_checkpoint
from vitnb.callback.ema import EMACallback
from vitnb.callback.stop import EarlyStop
from vitnb.callback.history import History
from vitnb.data.sample import Batch
from vitnb.learner.core import run_callbacks, train_callbacks
from vitnb.learner.freeze import FreezeEpochs
from vitnb.learner.loop import VitLearner, resize_batch
from vitnb.losses.objective import TaskObjective, make_objective
from vitnb.task import Column, Tasks
from vitnb.testing import Spy, differences, tiny_learner


def net(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(.3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def tiny(*cbs, n=44, bs=8, model=net, **kw):
    torch.manual_seed(0)
    x,y = torch.randn(n, 1, 8, 8),torch.arange(n)%3
    return task_learner(x, y, classes(3), model(), *cbs, bs=bs, **kw)


class Save(TrainCallback):
    "The state after `n` optimiser steps"
    order = 150
    def __init__(self, n): self.n,self.state = n,None
    def after_batch(self):
        if self.training and self.opt_steps == self.n: self.state = copy.deepcopy(self.learn.training_state())


# ---- phases

def spy(**names):
    "A callback that writes down every event it is called for, and the phase"
    class Log(TrainCallback):
        seen = []
        def __call__(self, event): self.seen.append((event, self.learn.phase))
    for k,v in names.items(): setattr(Log, k, v)
    return Log()


ACTIONS = dict(validate=lambda learn: learn.validate(), predict=lambda learn: learn.get_preds(), lr_find=lambda learn: learn.lr_find(num_it=4, show_plot=False), fit=lambda learn: learn.fit(1))

@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("mine", [None, ("lr_find",), ("fit", "lr_find"), PHASES], ids=str)
def test_a_callback_is_called_in_its_phases_only(phase, mine, tmp_path):
    cb = spy(**(dict(phases=mine) if mine else {}))
    learn = tiny(cb, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): ACTIONS[phase](learn)
    assert bool(cb.seen) == (phase in (mine or ("fit",))) and {p for _,p in cb.seen} <= {phase}
    assert learn.phase == "fit" # what a Learner is for when it does nothing


def test_fastais_callbacks_are_called_in_every_phase(tmp_path):
    class Foreign(Callback):
        def before_fit(self): seen.append(self.learn.phase)
    seen,learn = [],tiny(Foreign(), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        for act in ACTIONS.values(): act(learn)
    assert seen == ["validate", "predict", "lr_find", "fit"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_phase_ends_with_an_error(error):
    class Break(Callback):
        def before_batch(self): raise error("stop")
    learn = tiny()
    for act in (ACTIONS["validate"], ACTIONS["predict"], ACTIONS["fit"]):
        with pytest.raises(error), learn.no_bar(), learn.no_logging(), learn.added_cbs([Break()]): act(learn)
        assert learn.phase == "fit"


def test_a_validation_inside_a_fit_is_a_validation(tmp_path):
    "It starts no callback of the fit anew, and the fit ends with the same bits and rows"
    class Probe(TrainCallback):
        order,values = 300,[]
        def after_batch(self):
            if self.training and self.iter == 2:
                with self.learn.side_pass(): self.values.append(list(self.learn.validate()))
    cbs = lambda: [EMACallback(.9), EarlyStop(patience=5), spy(seen=[])]
    plain,probed = tiny(*cbs()),tiny(*cbs(), Probe(), metrics=accuracy)
    fit(plain, 2)
    fit(probed, 2, cbs=Checkpoints(tmp_path, "valid_loss"))
    assert torch.equal(weights(plain), weights(probed)) and plain.log.seen == probed.log.seen
    assert len(Probe.values) == 2 and all(0 < v[0] and 0 <= v[1] <= 1 for v in Probe.values)
    for a,b in zip(plain.recorder.rows, probed.recorder.rows): assert all(a[k] == b[k] for k in a if k != "seconds")


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


# ---- a pass beside the training

class Look(TrainCallback):
    "Run the model in the middle of a fit, and leave a mess"
    order = 120
    def __init__(self, at, error=False): self.at,self.error,self.seen = at,error,[]
    def go(self):
        learn = self.learn
        kept = {k:getattr(learn, k) for k in ("dl", "batch", "pred", "loss", "report", "iter", "n_iter", "training", "position", "epoch", "epochs_done", "opt_steps")}
        modes,generator = [m.training for m in self.model.modules()],torch.get_rng_state()
        try:
            with learn.side_pass() as model:
                assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
                torch.rand(5)
                np.random.rand(5)
                learn.dl,learn.batch,learn.iter,learn.training = learn.dls.valid,None,99,False
                self.seen.append(float(model(torch.randn(4, 1, 8, 8)).sum()))
                if self.error: raise ZeroDivisionError
        except ZeroDivisionError: pass
        assert all(getattr(learn, k) is v for k,v in kept.items())
        assert [m.training for m in self.model.modules()] == modes and torch.equal(torch.get_rng_state(), generator)
    def after_batch(self):
        if self.at == "batch" and self.training: self.go()
    def after_pred(self):
        if self.at == "pred": self.go()
    def after_epoch(self):
        if self.at == "epoch": self.go()


@pytest.mark.parametrize("at,times", [("batch", 12), ("pred", 24), ("epoch", 2)])
@pytest.mark.parametrize("error", [False, True])
def test_a_side_pass_leaves_no_trace(at, times, error):
    "Dropout draws, the norms gather and a frozen one stands still: all as if nobody had looked"
    def learner(*cbs):
        learn = tiny(*cbs)
        learn.model[0].requires_grad_(False)
        learn.model[1].requires_grad_(False)
        return learn
    plain,looked = fit(learner(), 2),fit(learner(Look(at, error)), 2)
    assert len(looked.look.seen) == times
    assert not differences(plain.model.state_dict(), looked.model.state_dict())
    assert not differences(plain.recorder.rows, looked.recorder.rows, ["seconds"])


# ---- freezing by epoch

def moved(learn, before): return {n for n,p in learn.model.named_parameters() if not torch.equal(p, before[n])}
def copy_of(learn): return {n:p.detach().clone() for n,p in learn.model.named_parameters()}


class Watch(TrainCallback):
    "Which weights each epoch moved, and whether the statistics of norms did"
    order = 150
    def __init__(self): self.weights,self.buffers = [],[]
    def before_train(self): self.before,self.stats = copy_of(self.learn),{k:v.clone() for k,v in self.model.named_buffers()}
    def after_train(self):
        self.weights.append(moved(self.learn, self.before))
        self.buffers.append({k for k,v in self.model.named_buffers() if not torch.equal(v, self.stats[k])})


def frozen(*cbs, epochs=2, depth=-1, **kw): return tiny_learner(arch="densenet_micro", cbs=[FreezeEpochs(epochs, depth), Watch(), *cbs], **kw)


def test_the_head_is_trained_first_then_all():
    learn = frozen()
    names = {n for n,_ in learn.model.named_parameters()}
    fit(learn, 3)
    assert learn.watch.weights == [{"classifier.weight", "classifier.bias"}]*2 + [names]
    assert learn.watch.buffers[:2] == [set()]*2 and learn.watch.buffers[2], "the statistics of frozen norms stand still"
    assert all(p.requires_grad for p in learn.model.parameters())


def test_a_depth_and_what_is_frozen_by_hand():
    learn = frozen(epochs=1, depth=-2)
    learn.model.features.conv0.requires_grad_(False)
    fit(learn, 2)
    first,second = learn.watch.weights
    assert any("denseblock3" in n for n in first) and not any("denseblock2" in n for n in first)
    assert any("denseblock2" in n for n in second) and "features.conv0.weight" not in first | second
    assert [n for n,p in learn.model.named_parameters() if not p.requires_grad] == ["features.conv0.weight"]


@pytest.mark.parametrize("n", [3, 7, 10, 14, 17])
def test_freezing_goes_on_after_a_kill(n):
    save = Save(n)
    whole,rest = frozen(save, optimizer="adamw"),frozen(optimizer="adamw")
    fit(whole, 3)
    fit(rest, 3, resume=save.state)
    assert torch.equal(weights(whole), weights(rest)) and rest.watch.weights[-1] == whole.watch.weights[-1]
    with pytest.raises(ValueError, match="epochs: 2 -> 1"): fit(frozen(epochs=1), 3, resume=save.state)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_fit_leaves_nothing_frozen(error):
    class Break(TrainCallback):
        def after_pred(self):
            if self.training and self.iter == 2: raise error("stop")
    learn = frozen(Break())
    with pytest.raises(error): fit(learn, 3)
    assert all(p.requires_grad for p in learn.model.parameters())


def test_freezing_is_for_training_and_refuses_nonsense():
    learn = frozen()
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        learn.get_preds()
    assert all(p.requires_grad for p in learn.model.parameters())
    for epochs in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="whole number from 1"): FreezeEpochs(epochs)
    with pytest.raises(ValueError, match="freeze_to\\(9\\): there are"): fit(frozen(depth=9), 1)


@pytest.mark.parametrize("kw", [dict(), dict(engine=dict(mixup=.8, ema_decay=.9, accumulate=2)), dict(precision="fp16"), dict(schedule="plateau", optimizer="sgd", lr=.1)], ids=str)
def test_a_dry_run_changes_nothing(kw):
    one,two = tiny_learner(**kw),tiny_learner(**kw)
    said = two.dry_run()
    assert np.isfinite(said["train_loss"]) and said["step_seconds"] > 0
    assert two.opt_steps == two.epochs_done == 0 and not two.recorder.rows and not two.recorder.steps
    one.fit(2)
    two.fit(2)
    assert torch.equal(weights(one), weights(two)) and not differences(one.recorder.rows, two.recorder.rows, ["seconds"])


def _nan(self): self.learn.pred = self.learn.pred*float("nan")


def test_a_dry_run_finds_what_is_wrong():
    class Broken(Callback):
        def after_validate(self): raise KeyError("a metric that fails")
    learn = tiny_learner(cbs=[Broken()])
    before = weights(learn)
    with pytest.raises(KeyError, match="a metric that fails"): learn.dry_run()
    assert torch.equal(before, weights(learn)) and learn.opt_steps == 0
    with pytest.raises(FloatingPointError, match="lower lr"): tiny_learner(cbs=[Callback(after_pred=_nan)]).dry_run()


def test_events_come_as_in_fastai():
    "The same events in the same order as fastai's own dispatch"
    from fastai.learner import Learner
    seen = []
    for plain in (False, True):
        learn,spy = tiny_learner(),Spy()
        if plain: learn.__class__ = type("Plain", (VitLearner,), dict(_call_one=Learner._call_one, __call__=Learner.__call__))
        learn.fit(1, cbs=spy)
        learn.validate(cbs=spy)
        learn.get_preds(cbs=spy)
        seen.append(spy.seen)
    assert seen[0] == seen[1]


def test_callbacks_come_and_go_during_a_fit():
    heard = []
    class Late(Callback):
        def after_batch(self): heard.append(self.iter)
    class Brings(Callback):
        def before_batch(self):
            if self.training and self.iter == 2: self.learn.add_cb(late)
            if self.training and self.iter == 4: self.learn.remove_cb(late)
    late = Late()
    tiny_learner(cbs=[Brings()]).fit(1)
    assert heard == [2, 3]
    class Off(Callback):
        def before_train(self): self.run = False
        def after_batch(self): heard.append("never")
    off = Off()
    tiny_learner(cbs=[off]).fit(1)
    assert "never" not in heard and off.run


def train_all(): return train_callbacks(mixup=.8, cutmix=1., ema_decay=.9, accumulate=2, early_stop=3, anomaly=True)


def everything(folder):
    "All callbacks of the engine at once"
    return [*run_callbacks(folder, every_n_steps=2, every_n_epochs=1, keep_top_k=2, max_hours=1, tracker="none"), *train_all()]


def outside(learn):
    "What a callback could leave behind: on the Learner, on the model, in the process"
    import signal
    here = {k:id(v) for k,v in vars(learn).items() if k in ("loss_func", "model", "opt_func", "dls", "scaler", "logger", "metrics", "_metrics")}
    hooks = [len(v) for m in learn.model.modules() for k,v in vars(m).items() if "_hooks" in k and isinstance(v, dict)]
    return dict(names=sorted(k for k in vars(learn) if k not in seen_after_any_fit), here=here, cbs=[type(c).__name__ for c in learn.cbs], hooks=hooks,
                signals=[signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)], anomaly=torch.is_anomaly_enabled(), grad=torch.is_grad_enabled(),
                listeners=len(learn.recorder.listeners), threads=[t.name for t in __import__("threading").enumerate() if t.name == "checkpoint"],
                opt=[{k:v for k,v in g.items() if k != "params"}.keys() for g in learn.opt.opt.param_groups], lent=[p.requires_grad for p in learn.model.parameters()])


seen_after_any_fit = {"epoch", "iter", "n_iter", "n_epoch", "dl", "xb", "yb", "pred", "loss", "loss_grad", "training", "pct_train", "train_iter", "smooth_loss",
                      "final_record", "logger", "it"} # fastai's own, after a fit that nobody interrupted


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, CancelFitException], ids=lambda e: e.__name__)
@pytest.mark.parametrize("event", ["before_fit", "after_pred", "before_step", "after_batch", "before_validate", "after_epoch"])
def test_no_trace_of_any_callback(tmp_path, error, event):
    class Break(Callback):
        order = 250 if event == "before_fit" else 45
        def go(self):
            if event in ("before_fit", "after_epoch") or self.opt_steps == 2: raise error("stop")
    setattr(Break, event, Break.go)
    learn = tiny_learner()
    for p in learn.model.parameters(): p.grad = None
    before = outside(learn)
    try: learn.fit(2, cbs=[*everything(tmp_path), Break()])
    except (KeyboardInterrupt, RuntimeError): pass
    assert outside(learn) == before
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters()) or event in ("after_pred", "before_step")
    pickle.loads(pickle.dumps(learn))
    learn.fit(1) # and it goes on


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


@pytest.mark.parametrize("momentum", [0., .9])
def test_layers_that_wake_train_with_sgd(momentum):
    "In one epoch the head, then all: the weights of torch's own unfused optimiser, which takes parameters one by one"
    def run(**kw):
        learn = frozen(epochs=1, optimizer="sgd", lr=.05, opt_kw=dict(momentum=momentum))
        for group in learn.opt.opt.param_groups: group.update(kw)
        learn.fit(3)
        return learn
    ours,plain = run(),run(fused=False, foreach=False)
    assert ours.opt_steps == plain.opt_steps > 3
    for a,b in zip(ours.model.parameters(), plain.model.parameters()): assert torch.allclose(a, b, atol=1e-6)
