"What surrounds a pass: events in order, phases within one another, and a clean end"
import pickle

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.metrics import accuracy
from loop_helpers import everything, spy, tiny
from tiny_tasks import fit, weights

from vitnb.callback.base import TrainCallback
from vitnb.callback.checkpoint import Checkpoints
from vitnb.callback.ema import EMACallback
from vitnb.callback.stop import EarlyStop
from vitnb.learner.loop import VitLearner
from vitnb.testing import Spy, differences, tiny_learner


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
