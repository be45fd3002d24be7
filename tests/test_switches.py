"Switches of the engine: each one that is accepted acts, and leaves nothing behind"
import copy
import pickle

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from torch import nn

import vitnb.learner.core as core
from vitnb.callback.base import TrainCallback
from vitnb.callback.checkpoint import BackgroundWriter, Checkpoints, load_checkpoint, save_checkpoint, snapshot
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.experiment.recipes import callback_args, learner_args, loader_args, resolve
from vitnb.learner.core import run_callbacks
from vitnb.losses.classify import class_weights
from vitnb.testing import Spy, differences, tiny_fit, tiny_learner


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


class StopAt(Callback):
    "Raise in the middle of training"
    order = 190
    def __init__(self, step, error=RuntimeError): self.step,self.error = step,error
    def after_batch(self):
        if self.training and self.opt_steps == self.step: raise self.error("here")


# ---------------------------------------------------------------------------------------------- the model

def test_compiled_in_place(tmp_path):
    "The compiled forward pass is used, and no name shows it"
    plain,learn = tiny_learner(),tiny_learner(compile=dict(backend="eager"))
    assert learn.model._compiled_call_impl is not None and plain.model._compiled_call_impl is None
    learn.fit(1, cbs=run_callbacks(tmp_path, tracker="none"))
    plain.fit(1)
    assert torch.allclose(weights(plain), weights(learn), atol=1e-5)
    for name in ("best_model", "last_model"):
        ck = load_checkpoint(tmp_path/f"checkpoints/{name}.pth")
        assert list(ck["model_state_dict"]) == list(plain.model.state_dict())
    tiny_learner().model.load_state_dict(ck["training_state"]["model"])
    with pytest.raises(ValueError, match="compile"): tiny_learner().fit(2, resume=ck["training_state"], cbs=[])


def test_gradient_checkpointing_acts():
    plain,saved = tiny_learner(),tiny_learner(grad_checkpointing=True)
    def kept(learn):
        size = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (size.append(t.numel()), t)[1], lambda t: t):
            learn.model.train()(learn.dls.one_batch()[0])
        return sum(size)
    assert kept(saved) < .7*kept(plain)
    plain.fit(1)
    saved.fit(1)
    assert torch.allclose(weights(plain), weights(saved), atol=1e-6)


# ---------------------------------------------------------------------------------------------- data

def skewed(counts=(60, 20, 6)):
    s = load_set("digits")
    for k,sp in s.splits.items():
        rows = np.concatenate([np.flatnonzero(sp.labels == c)[:n] for c,n in enumerate(counts)])
        s.splits[k] = type(sp)(sp.items[rows], sp.labels[rows])
    return s


def test_class_weights_reach_the_loss():
    dls = image_loaders(skewed(), bs=8, device="cpu", workers=0)
    learn = core.vit_learner(dls, "swin_micro", device="cpu", precision="fp32", class_weights=True, model_kw=dict(num_classes=3)) if dls.c == 3 else None
    if learn is None: learn = core.vit_learner(full := image_loaders(load_set("digits"), bs=8, device="cpu"), "swin_micro", device="cpu", precision="fp32", class_weights=True)
    counts = np.bincount(learn.dls.train.dataset.labels)
    assert torch.equal(learn.objective.loss_of("").weight, class_weights(counts)) and learn.config["training"]["class_weights"]
    with pytest.raises(ValueError, match="twice"): tiny_learner(class_weights=True, loss_kw=dict(weight=[1.]*10))


def test_balanced_sampling_is_balanced_and_a_function_of_the_epoch():
    s = skewed()
    make = lambda **kw: image_loaders(s, bs=8, augment="shift", sampling="balanced", seed=4, device="cpu", **kw).train
    dl,n = make(),len(s.splits["train"].labels)
    for _ in range(3): list(dl) # what ran before does not matter
    assert (dl.order(5) == make().order(5)).all() and (dl.order(5) != dl.order(6)).any()
    drawn = np.concatenate([dl.dataset.labels[dl.order(e) % n] for e in range(60)])
    assert np.abs(np.bincount(drawn)/len(drawn) - 1/3).max() < .03
    assert all(len(set(dl.order(e))) == n for e in range(5)), "each repetition is a sample of its own"
    a,b = (torch.cat([x for x,_ in make(workers=w)]) for w in (0, 2))
    assert torch.equal(a, b)


def test_repetitions_have_their_own_augmentation():
    dl = image_loaders(skewed(), bs=8, augment="shift", sampling="balanced", seed=4, device="cpu").train
    n = len(dl.dataset)
    x,y = dl.make_batch(np.array([3, 3+n, 3+2*n, 3+3*n]), 0)
    assert len(set(y.tolist())) == 1 and len({tuple(o.flatten().tolist()) for o in x}) > 1


@pytest.mark.parametrize("w,says", [([1.], "one finite number"), ("neg", "one finite number"), ("zero", "not all 0")])
def test_wrong_sample_weights(w, says):
    dl = image_loaders(skewed(), bs=8, device="cpu").train
    n = len(dl.dataset)
    with pytest.raises(ValueError, match=says): dl.new(sample_weights=dict(neg=[-1.]*n, zero=[0.]*n).get(w, w) if isinstance(w, str) else w)
    with pytest.raises(ValueError, match="shuffle=True"): dl.new(sample_weights=[1.]*n, shuffle=False)


def test_two_batches_are_learnt_by_heart():
    dls = image_loaders(load_set("digits"), bs=16, augment="shift", overfit_batches=2, seed=1, device="cpu")
    (a,ya),(b,yb) = (map(torch.cat, zip(*dl)) for dl in (dls.train, dls.valid))
    assert len(a) == 32 and sorted(ya.tolist()) == sorted(yb.tolist())
    key = lambda x: sorted(tuple(o.flatten().tolist()) for o in x)
    assert key(a) == key(b), "the same pictures, not augmented"
    learn = core.vit_learner(dls, "densenet_micro", dict(growth_rate=8, block_config=(2, 2)), device="cpu", precision="fp32", lr=.01, seed=1)
    learn.progress.plot = False
    learn.fit(60)
    assert learn.recorder.rows[-1]["accuracy"] == 1.


# ---------------------------------------------------------------------------------------------- files

class Scores(TrainCallback):
    "Write accuracies into the row"
    order = 55
    def __init__(self, values): self.values = values
    def after_epoch(self): self.recorder.rows[-1]["accuracy"] = self.values[self.epoch]


def tops(d): return sorted(p.name for p in (d/"checkpoints").glob("top_epoch_*.pth"))


@pytest.mark.parametrize("values,keep,want", [([.1, .5, .3, .4], 2, [2, 4]), ([.5, .5, .5, .5], 2, [1, 2]), ([.1, float("nan"), .3, .2], 3, [1, 3, 4]),
                                              ([.1, .2, .3, .4], 1, [4]), ([.1, .2, .3, .4], 0, [])])
def test_the_best_few_are_kept(tmp_path, values, keep, want):
    tiny_fit(tmp_path, epochs=4, cbs=[Scores(values)], run_kw=dict(keep_top_k=keep))
    assert tops(tmp_path) == [f"top_epoch_{e}.pth" for e in want]
    for e in want:
        ck = load_checkpoint(tmp_path/f"checkpoints/top_epoch_{e}.pth")
        assert ck["epoch"] == e and "training_state" not in ck


def test_the_best_few_after_a_resume(tmp_path):
    kw = dict(epochs=4, run_kw=dict(keep_top_k=2))
    n = len(tiny_learner().dls.train)
    with pytest.raises(RuntimeError): tiny_fit(tmp_path, cbs=[Scores([.9, .1, .5, .2]), StopAt(2*n+3)], **kw)
    (tmp_path/"checkpoints/top_epoch_99.pth").write_bytes(b"left by a kill")
    tiny_fit(tmp_path, cbs=[Scores([.9, .1, .5, .2])], **kw)
    assert tops(tmp_path) == ["top_epoch_1.pth", "top_epoch_3.pth"]


@pytest.mark.parametrize("kw", [dict(keep_top_k=-1), dict(every_n_epochs=1.5), dict(every_n_steps=True)], ids=str)
def test_counts_are_whole_numbers(tmp_path, kw):
    with pytest.raises(ValueError, match="whole number from 0"): Checkpoints(tmp_path, **kw)


def test_a_snapshot_is_out_of_reach_and_keeps_sharing():
    lin = nn.Linear(3, 3)
    s = snapshot(dict(a=lin.state_dict(), b=[lin.state_dict()["weight"], (1, "x", None)], e=torch.empty(0)))
    before = lin.weight.detach().clone()
    with torch.no_grad(): lin.weight.zero_()
    assert torch.equal(s["a"]["weight"], before) and s["b"][0] is s["a"]["weight"] and s["b"][1] == (1, "x", None) and s["e"].numel() == 0


def test_an_error_of_the_thread_is_raised(tmp_path, monkeypatch):
    "At the next save, or at the end of the fit, when all others have cleaned up"
    class Late(Callback):
        order,cleaned = 500,False
        def after_fit(self): self.cleaned = True
    late,folder = Late(),tmp_path/"run"
    folder.mkdir()
    (folder/"checkpoints").write_text("a file where a folder should be")
    with pytest.raises((OSError, FileExistsError), match="checkpoint"): tiny_fit(folder, cbs=[late])
    assert late.cleaned


def test_the_last_file_is_there_when_fit_returns(tmp_path, monkeypatch):
    import vitnb.callback.checkpoint as module
    slow = lambda state, path: (__import__("time").sleep(.2), save_checkpoint(state, path))[1]
    monkeypatch.setattr(module, "save_checkpoint", slow)
    learn = tiny_learner()
    learn.fit(1, cbs=[Checkpoints(tmp_path, "accuracy")])
    assert load_checkpoint(tmp_path/"last_model.pth")["epoch"] == 1


def test_a_writer_travels_empty(tmp_path):
    w = BackgroundWriter()
    w.save({tmp_path/"a.pth":dict(a=1)})
    for other in (pickle.loads(pickle.dumps(w)), copy.deepcopy(w)): assert other.thread is None
    w.join()


def test_a_long_history_costs_a_checkpoint_few_tensors():
    learn = tiny_learner()
    learn.fit(1)
    learn.recorder.losses = [torch.tensor(1.)]*5000
    found = []
    def count(o):
        if isinstance(o, torch.Tensor): found.append(o)
        elif isinstance(o, dict): [count(v) for v in o.values()]
        elif isinstance(o, (list, tuple)): [count(v) for v in o]
    count(learn.recorder.state_dict())
    assert len(found) < 20


def test_tags_reach_the_tracker(tmp_path):
    cb = next(c for c in run_callbacks(tmp_path, tracker="tensorboard", tags=dict(study="leaf")) if hasattr(type(c), "put"))
    assert cb.tags == dict(study="leaf")


# ---------------------------------------------------------------------------------------------- dry run and events

@pytest.mark.parametrize("kw", [dict(), dict(engine=dict(mixup=.8, ema_decay=.9, accumulate=2)), dict(precision="fp16"), dict(schedule="plateau", optimizer="sgd", lr=.1)], ids=str)
def test_a_dry_run_changes_nothing(kw):
    one,two = tiny_learner(**kw),tiny_learner(**kw)
    said = two.dry_run()
    assert np.isfinite(said["train_loss"]) and said["step_seconds"] > 0
    assert two.opt_steps == two.epochs_done == 0 and not two.recorder.rows and not two.recorder.steps
    one.fit(2)
    two.fit(2)
    assert torch.equal(weights(one), weights(two)) and not differences(one.recorder.rows, two.recorder.rows, ["seconds"])


def test_a_dry_run_finds_what_is_wrong():
    class Broken(Callback):
        def after_validate(self): raise KeyError("a metric that fails")
    learn = tiny_learner(cbs=[Broken()])
    before = weights(learn)
    with pytest.raises(KeyError, match="a metric that fails"): learn.dry_run()
    assert torch.equal(before, weights(learn)) and learn.opt_steps == 0
    with pytest.raises(FloatingPointError, match="lower lr"): tiny_learner(cbs=[Callback(after_pred=_nan)]).dry_run()


def _nan(self): self.learn.pred = self.learn.pred*float("nan")


def test_events_come_as_in_fastai():
    "The same events in the same order as fastai's own dispatch"
    from fastai.learner import Learner
    seen = []
    for plain in (False, True):
        learn,spy = tiny_learner(),Spy()
        if plain: learn.__class__ = type("Plain", (core.VitLearner,), dict(_call_one=Learner._call_one, __call__=Learner.__call__))
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


def test_a_learner_pickles_during_its_life(tmp_path):
    learn = tiny_learner(engine=dict(mixup=.8, ema_decay=.9, accumulate=2, early_stop=3))
    learn.fit(1, cbs=run_callbacks(tmp_path, tracker="none"))
    again = pickle.loads(pickle.dumps(learn))
    assert torch.equal(weights(learn), weights(again))
    again.logger = lambda *_: None
    again.fit(1)


# ---------------------------------------------------------------------------------------------- recipes

@pytest.mark.parametrize("field,where,name", [("class_weights", learner_args, "class_weights"), ("grad_checkpointing", learner_args, "grad_checkpointing"),
    ("compile", learner_args, "compile"), ("overfit_batches", loader_args, "overfit_batches"), ("anomaly", callback_args, "anomaly")])
def test_fields_reach_their_place(field, where, name):
    r = resolve("swin", "digits", dict(more={field:3 if field == "overfit_batches" else True}))
    assert where(r)[name] == (3 if field == "overfit_batches" else True) and where(resolve("swin", "digits", {}))[name] in (False, 0)


# ---------------------------------------------------------------------------------------------- no trace

def everything(folder):
    "All callbacks of the engine at once"
    return [*run_callbacks(folder, every_n_steps=2, every_n_epochs=1, keep_top_k=2, max_hours=1, tracker="none"), *train_all()]


def train_all(): return core.train_callbacks(mixup=.8, cutmix=1., ema_decay=.9, accumulate=2, early_stop=3, anomaly=True)


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


# ---------------------------------------------------------------------------------------------- defects of peers

def test_the_tenth_epoch_is_after_the_ninth(tmp_path):
    "A search by name takes checkpoint_epoch_9 for the newest of ten"
    from vitnb.callback.checkpoint import newest_state
    for e in (9, 10, 2): save_checkpoint(dict(training_state=dict(epochs_done=e, opt_steps=e*5)), tmp_path/f"checkpoint_epoch_{e}.pth")
    assert newest_state(tmp_path)["epochs_done"] == 10


def test_counters_come_back(tmp_path):
    "fastai begins train_iter and the scaler anew in each fit"
    with pytest.raises(RuntimeError): tiny_fit(tmp_path, precision="fp16", cbs=[StopAt(8)])
    ck = load_checkpoint(tmp_path/"checkpoints/last_model.pth")["training_state"]
    at = []
    class First(Callback):
        order = 201
        def before_batch(self): at.append((self.learn.train_iter, self.learn.scaler.state_dict()["_growth_tracker"]))
    tiny_fit(tmp_path, precision="fp16", cbs=[First()])
    assert at[0] == (ck["train_iter"], ck["scaler"]["_growth_tracker"]) and at[0][0] > 0


def test_another_architecture_is_refused(tmp_path):
    with pytest.raises(RuntimeError): tiny_fit(tmp_path, cbs=[StopAt(4)])
    with pytest.raises(ValueError, match="arch"): tiny_fit(tmp_path, arch="densenet_micro", model_kw=dict(growth_rate=4, block_config=(1, 1)))
    with pytest.raises(ValueError, match="tensors match"):
        from vitnb.callback.checkpoint import restore_weights
        restore_weights(tiny_learner(arch="densenet_micro").model, load_checkpoint(tmp_path/"checkpoints/last_model.pth"))


def test_a_folder_that_cannot_be_written_loses_nothing(tmp_path, monkeypatch):
    "The earlier file stays, the error says where"
    tiny_fit(tmp_path, epochs=1)
    before = (tmp_path/"checkpoints/last_model.pth").read_bytes()
    def no(*args, **kw): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(torch, "save", no)
    with pytest.raises(OSError, match="(?s)could not write checkpoint.*Permission denied.*intact"): tiny_fit(tmp_path, epochs=1, resume="never")
    assert (tmp_path/"checkpoints/last_model.pth").read_bytes() == before
