"Schedules in a fit: each step has the rate of the steps before it, also after a resume"
import math
import pickle
import warnings

import numpy as np
import pytest
from fastai.callback.core import Callback, CancelStepException
from fastai.callback.schedule import ParamScheduler
from tiny_optim import PURE, Micro, MidTraining, fit, learner, run

from vitnb.callback.rate import ScheduleLR, steps_per_epoch
from vitnb.learner.optim import GradClip, make_optimizer
from vitnb.task import Column


@pytest.mark.parametrize("kind", PURE)
def test_each_batch_is_trained_with_its_rate(kind):
    cb,spy = ScheduleLR(kind, .1, warmup_steps=3),MidTraining()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(cb, extra=[spy])
    assert [s[0][2] for s in spy.seen] == cb.plan.curve()[:12].tolist()
    assert all(a[2] == b[2] for a,b in spy.seen) and cb.done == 12

def test_one_cycle_moves_the_momentum_of_sgd_and_adam():
    for name,read in (("sgd", lambda g: g["momentum"]), ("adamw", lambda g: g["betas"][0])):
        learn = learner(); learn.opt_func = make_optimizer(learn.model, name); seen = []
        class Spy(Callback):
            order = 100
            def before_step(self): seen.append([read(g) for g in self.opt.opt.param_groups])
        cb = ScheduleLR("one_cycle", 1e-3)
        fit(learn, 2, cbs=[cb, Spy()])
        np.testing.assert_allclose(seen, [[cb.plan.hypers(i)["mom"]]*2 for i in range(12)])

def test_the_peak_comes_from_fit_unless_given():
    cb = ScheduleLR("constant")
    learn = learner(); learn.opt_func = make_optimizer(learn.model)
    fit(learn, 1, lr=.02, cbs=cb)
    assert cb.plan.lr == .02
    fit(learn, 1, lr=.03, cbs=cb) # a second fit is a new schedule
    assert cb.plan.lr == .03 and cb.done == 6

def test_accumulation_counts_steps_not_batches():
    cb,spy = ScheduleLR("cosine", .1),MidTraining()
    learn = run(cb, epochs=3, n=7, extra=[Micro(3), spy])
    assert steps_per_epoch(learn) == 7 and cb.plan.span == (9, 0, 3) and cb.done == 9 # ceil(7/3) steps an epoch
    assert [s[0][2] for s in spy.seen] == cb.plan.curve()[:9].tolist()

def test_a_skipped_step_does_not_count():
    class Overflow(Callback):
        order = 10
        def before_step(self):
            if self.train_iter == 2: raise CancelStepException()
    cb = ScheduleLR("cosine", .1)
    run(cb, extra=[Overflow()])
    assert cb.done == 11

def test_plateau_listens_to_the_recorder():
    learn = learner(); learn.opt_func = make_optimizer(learn.model, "sgd", lr=.5)
    spy,cb = MidTraining(),ScheduleLR("plateau", .5, mode="min", patience=0, threshold=.99, factor=.1) # the loss never falls by 99 %
    fit(learn, 4, cbs=[cb, spy])
    np.testing.assert_allclose([s[0][2] for s in spy.seen], np.repeat([.5, .5, .05, .005], 6))
    state = cb.state_dict()["schedule"]
    learn.add_cb(cb); learn.validate(); learn.get_preds()
    assert cb.state_dict() == {} or cb.state_dict()["schedule"] == state # a validation is no epoch of training
    with pytest.raises(ValueError, match="unknown metric to monitor 'accuracyy'"): run(ScheduleLR("plateau", .1, monitor="accuracyy"))

@pytest.mark.parametrize("name,better", [("mse_masked", "min"), ("valid_loss_ema", "min"), ("sam_degrees", "min"), ("accuracy", "max"), ("valid_loss", "min")])
def test_a_plateau_goes_by_what_the_column_declares(name, better):
    "An error that grows is no improvement, whatever it is called; one that falls is"
    def drops(values):
        learn = learner(); learn.opt_func = make_optimizer(learn.model, "sgd", lr=.5)
        learn.columns = {name:Column(name, better)}
        class Write(Callback):
            order = ScheduleLR.order-1
            def after_epoch(self): self.learn.recorder.metric_names = ["epoch", name]; self.learn.final_record = [values[self.epoch]]
        spy = MidTraining()
        fit(learn, 4, cbs=[ScheduleLR("plateau", .5, monitor=name, patience=0, factor=.1), Write(), spy])
        return len({s[0][2] for s in spy.seen}) > 1
    rising,falling = [1., 2., 3., 4.],[4., 3., 2., 1.]
    assert drops(rising) == (better == "min") and drops(falling) == (better == "max")

def test_a_plateau_needs_a_declared_column_or_a_mode():
    with pytest.raises(ValueError, match="this Learner declares no columns; give mode='min' or 'max'"): run(ScheduleLR("plateau", .1))
    for columns,message in (({"lr":Column("lr")}, "does not say whether less or more is better"), ({"valid_los":Column("valid_los", "min")}, "it is no column of this history")):
        learn = learner(); learn.opt_func = make_optimizer(learn.model, "sgd"); learn.columns = columns
        with pytest.raises(ValueError, match=message): fit(learn, 1, cbs=ScheduleLR("plateau", .1, monitor="lr" if "lr" in columns else "valid_loss"))
    learn = learner(); learn.opt_func = make_optimizer(learn.model, "sgd"); learn.columns = {"valid_loss":Column("valid_loss", "min")}
    cb = ScheduleLR("plateau", .1, mode="max")
    fit(learn, 1, cbs=cb)
    assert cb.plan.rule.rule.mode == "max" # what is asked for wins

@pytest.mark.parametrize("kind,kw", [("warmup_cosine", dict(warmup_steps=5)), ("one_cycle", {}), ("plateau", dict(mode="min", patience=0, threshold=.99))])
@pytest.mark.parametrize("when", ["before_fit", "late"])
def test_resume_goes_on_from_the_state(kind, kw, when):
    whole,first = MidTraining(),MidTraining()
    cb = ScheduleLR(kind, .1, **kw); run(cb, 4, extra=[whole])
    class Stop(Callback):
        order = 70
        def after_epoch(self):
            if self.epoch == 1: self.learn.kept = (a.state_dict(), self.opt.state_dict()); self.learn.model.kept = True
    a = ScheduleLR(kind, .1, **kw); learn = run(a, 4, extra=[Stop(), first])
    state,_ = learn.kept
    assert pickle.loads(pickle.dumps(state)) == state
    b,rest = ScheduleLR(kind, .1, **kw),MidTraining() # peak and length are those of the call, the state says how many steps are done
    class Restore(Callback):
        order = 70
        def before_fit(self):
            if when == "before_fit": b.load_state_dict(state)
        def before_train(self):
            if when == "late" and self.epoch == 0: b.load_state_dict(state)
    fit(learn, 4, lr=7., cbs=[b, Restore(), rest]) # a plain Learner does not skip the two epochs that are done
    if kind != "plateau": assert [s[0][2] for s in rest.seen[:12]] == [s[0][2] for s in whole.seen[12:]]
    assert rest.seen[0] == whole.seen[12] and b.done == 36 and b.restored is None

@pytest.mark.parametrize("peak,lr", [(.2, 7.), (None, .2)])
def test_the_peak_that_is_asked_for_wins(peak, lr):
    "Of the callback, or where it has none of the fit, whatever rate the restored optimiser stands at"
    learn = learner()
    learn.opt_func = make_optimizer(learn.model, "sgd")
    cb,seen = ScheduleLR("cosine", peak),[]
    class Restore(Callback):
        order = 70
        def before_fit(self):
            self.learn.opt.set_hyper("lr", 1e-5)
            cb.load_state_dict(dict(done=6, begun=0, total=12, schedule={}, peak=.1))
        def before_batch(self): seen.append(self.opt.hypers[-1]["lr"])
    fit(learn, 2, lr=lr, cbs=[cb, Restore()])
    total = 2*cb.plan.span.per_epoch
    assert math.isclose(seen[0], .2*(1 + math.cos(math.pi*6/total))/2)

def test_lr_find_has_the_last_word(tmp_path):
    learn = learner(n=20, path=tmp_path)
    learn.opt_func = make_optimizer(learn.model)
    learn.add_cb(ScheduleLR("constant", .123))
    with learn.no_bar(): learn.lr_find(num_it=30, show_plot=False)
    assert .123 not in learn.recorder.lrs and ScheduleLR.order < ParamScheduler.order

def test_callbacks_pickle_and_check_early():
    for cb in (ScheduleLR("plateau", .1), ScheduleLR("step", step_size=3), GradClip(2.)): pickle.loads(pickle.dumps(cb))
    cb = ScheduleLR("plateau", .1, mode="min"); run(cb); pickle.loads(pickle.dumps(cb.plan))
    with pytest.raises(ValueError, match="unknown schedule"): ScheduleLR("cosinus")
    with pytest.raises(ValueError, match="no option 'min_lrr'"): ScheduleLR("cosine", min_lrr=1)
