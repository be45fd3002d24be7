"The table of fastai's names beside the fastai that is installed; each name that works is called, each refusal names ours"
import ast
import copy
import importlib
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import cloudpickle
import fastai
import fastai.callback.all # noqa: F401, patches methods into Learner
import fastai.interpret as interpret
import fastai.vision.all # noqa: F401, the same
import numpy as np
import pytest
import torch
from fastai.callback import core, data, hook, mixup, preds, progress, schedule, tracker, training
from fastai.data.core import DataLoaders
from fastai.learner import CastToTensor, Learner, Recorder, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.test_utils import VerboseCallback
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.metrics import confusion_matrix
from tiny_tasks import fit, weights
from torch import nn

import vitnb.all
import vitnb.learner.distribute as distribute
import vitnb.learner.resume as resume
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import load_model, run_callbacks, vit_learner
from vitnb.learner.fastai import (
    callback_names, check_callback, fastai_names, interpretation_names, learner_arguments, learner_names,
    load_arguments, loaders_names)
from vitnb.learner.loop import VitLearner
from vitnb.learner.optim import GradClip
from vitnb.losses.objective import make_objective
from vitnb.models.protocol import create_model

DIGITS = load_set("digits", limit=8)


def loaders(**kw): return image_loaders(DIGITS, **{**dict(bs=16, augment="shift", seed=1, device="cpu", workers=0), **kw})
def make(**kw): return vit_learner(loaders(), "densenet_micro", **{**dict(lr=.01, schedule="constant", device="cpu", precision="fp32", seed=1), **kw})


def rates(learn): return [h["lr"] for h in learn.opt.hypers]
def names(table, status): return {k for k,v in table.items() if v.status == status}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Not changed by a test"
    return fit(make(path=tmp_path_factory.mktemp("trained")), 3)


@pytest.fixture(autouse=True)
def no_figures():
    yield
    plt.close("all")


# the table and the library

def own(cls): return {k for k,v in vars(cls).items() if not k.startswith("__") or isinstance(v, FunctionType)}


def callbacks_of_fastai():
    "Names of classes that extend `Callback`, read from the files, for some need packages that are not here"
    bases = {}
    for path in Path(fastai.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef): bases.setdefault(node.name, set()).update(getattr(b, "id", getattr(b, "attr", "")) for b in node.bases)
    found = {"Callback"}
    while True:
        more = {k for k,v in bases.items() if v & found} - found
        if not more: return found - {"Callback"}
        found |= more


def importable():
    "Modules of fastai's callbacks whose packages are here"
    for o in pkgutil.iter_modules(fastai.callback.__path__):
        try: importlib.import_module(f"fastai.callback.{o.name}")
        except ModuleNotFoundError as e: assert not e.name.startswith(("fastai", "vitnb")), e
    importlib.import_module("fastai.distributed")


def test_every_name_of_fastai_is_in_the_table_and_no_other():
    importable()
    assert own(Learner) == set(learner_names)
    assert own(DataLoaders) == set(loaders_names)
    classes = [interpret.Interpretation, interpret.ClassificationInterpretation, interpret.SegmentationInterpretation]
    assert set().union(*map(own, classes)) == set(interpretation_names)
    assert callbacks_of_fastai() == set(callback_names)
    assert set(learner_arguments) <= set(inspect.signature(Learner.__init__).parameters)


def test_the_files_show_each_callback_that_python_knows():
    importable()
    def below(cls): return {o for s in cls.__subclasses__() for o in {s} | below(s)}
    assert {o.__name__ for o in below(core.Callback) if o.__module__.startswith("fastai.")} <= callbacks_of_fastai()


def test_a_refusal_names_what_there_is():
    "What stands before a bracket, and each capitalised word in one piece with another, exists"
    known = {*vars(vitnb.all), *dir(VitLearner), *dir(create_model("densenet_micro", num_classes=2, img_size=8))}
    for row in fastai_names():
        if row["status"] == "refused":
            assert row["use"] and row["why"], row
            named = re.findall(r"\b(\w+)\(", row["use"]) + re.findall(r"\b([A-Z][a-z]+[A-Z]\w*)", row["use"]) + re.findall(r"model\.(\w+)", row["use"])
            unknown = set(named) - known - {"loaders", "load_set"}
            assert named and not unknown, (row["name"], unknown)
        else: assert bool(row["why"]) == (row["status"] == "not relevant"), row


# refusals

@pytest.mark.parametrize("name", sorted(names(learner_names, "refused")))
def test_a_refused_method_of_a_learner(trained, name):
    before = dict(vars(trained))
    with pytest.raises(ValueError, match=re.escape(f"learn.{name}: {learner_names[name].why}; use {learner_names[name].use}")):
        getattr(trained, name)()
    assert vars(trained) == before


@pytest.mark.parametrize("name", sorted(names(loaders_names, "refused")))
def test_a_refused_method_of_loaders(name):
    with pytest.raises(ValueError, match=re.escape(loaders_names[name].use)): getattr(loaders(), name)(None)


@pytest.mark.parametrize("name", sorted(learner_arguments))
@pytest.mark.parametrize("value", [.1, None, True])
def test_a_refused_argument(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}: ") + ".*" + re.escape(learner_arguments[name].use)): make(**{name:value})


@pytest.mark.parametrize("name", sorted(names(callback_names, "refused") | names(callback_names, "not relevant")))
def test_a_refused_callback(trained, name):
    cb = type(name, (core.Callback,), {"__module__":"fastai.callback.some"})() # some need packages that are not here
    mine = type("Mine", (type(cb),), {"__module__":"__main__"})()
    before = list(trained.cbs)
    for bad in (cb, mine):
        with pytest.raises(ValueError, match=re.escape(callback_names[name].use or callback_names[name].why)): trained.add_cb(bad)
    assert list(trained.cbs) == before and vars(trained).get(cb.name) is not bad


REAL = [core.TrainEvalCallback(), training.GradientAccumulation(8), tracker.ReduceLROnPlateau(), progress.CSVLogger(), progress.ShowGraphCallback(), progress.ProgressCallback(),
        Recorder(), mixup.MixUp(), mixup.CutMix(), core.GatherPredsCallback()]


@pytest.mark.parametrize("cb", REAL, ids=lambda o: type(o).__name__)
def test_a_fit_with_a_refused_callback_changes_nothing(cb):
    learn = fit(make())
    cbs,before,optimiser,rows = list(learn.cbs),weights(learn),learn.opt,list(learn.recorder.rows)
    with pytest.raises(ValueError, match="; use |; use learn.get_preds"): learn.fit(1, lr=.5, cbs=[training.BnFreeze(), cb], reset_opt=type(cb) is not core.GatherPredsCallback)
    assert list(learn.cbs) == cbs and torch.equal(weights(learn), before) and learn.opt is optimiser and learn.recorder.rows == rows
    fit(learn)


def test_the_constructor_refuses_before_it_builds():
    with pytest.raises(ValueError, match="train_callbacks"): make(cbs=[mixup.MixUp()])
    with pytest.raises(ValueError, match="StepRecorder"): make(cbs=[Recorder()])


def test_what_is_ours_extends_what_is_refused():
    check_callback(make().recorder, None) # a StepRecorder is a Recorder
    check_callback(core.Callback(), None)


def test_what_is_named_in_place_of_export_works(tmp_path):
    learn = fit(make(), cbs=run_callbacks(tmp_path, tracker="none"))
    model = load_model(tmp_path/"checkpoints/last_model.pth")
    x = learn.dls.valid.one_batch()[0]
    assert torch.equal(model(x), learn.model.eval()(x))


# methods of a Learner that work

def _fits(learn, call, steps):
    with learn.no_bar(), learn.no_logging(): call()
    assert learn.opt_steps == steps and len(learn.recorder.rows) == steps//len(learn.dls.train)


def test_fit(): _fits(learn := make(), lambda: learn.fit(2), 10)
def test_fit_flat_cos():
    _fits(learn := make(), lambda: learn.fit_flat_cos(4, .02), 20)
    assert learn.recorder.lrs[:15] == [.02]*15 and learn.recorder.lrs[-1] == pytest.approx(.01*(1 + np.cos(.8*np.pi)), rel=1e-3)


def test_fit_one_cycle():
    "A slice of rates goes by depth, each rate up and down in proportion"
    _fits(learn := make(), lambda: learn.fit_one_cycle(4, slice(1e-4, 1e-2)), 20)
    depths = [h["lr"] for h in learn.opt.hypers]
    assert max(learn.recorder.lrs) == pytest.approx(.01, rel=.02) and depths[-1]/depths[0] == pytest.approx(100)
    assert set(learn.recorder.hps) == {"lr", "mom"} and min(learn.recorder.hps["mom"]) == pytest.approx(.85, abs=.01)


def test_fit_sgdr():
    _fits(learn := make(), lambda: learn.fit_sgdr(2, 1, .01), 15)
    assert learn.recorder.lrs[0] == learn.recorder.lrs[5] == .01 > learn.recorder.lrs[4]


def test_fine_tune():
    learn = make()
    first = {k:v.clone() for k,v in learn.model.named_parameters()}
    frozen = []
    class Look(core.Callback):
        def after_epoch(self): frozen.append([k for k,p in self.model.named_parameters() if not torch.equal(p, first[k])])
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, .01, cbs=Look())
    assert all(k.startswith("classifier") for k in frozen[0]) and len(frozen[1]) == len(first)


def test_lr_find():
    learn = make()
    before = weights(learn)
    with learn.no_bar(): found = learn.lr_find(num_it=20, show_plot=False)
    assert 1e-7 < found.valley < 10 and torch.equal(weights(learn), before) and len(learn.recorder.lrs) == 20


def test_freeze_and_create_opt():
    learn = make()
    def free(): return {k.split(".")[0] for k,p in learn.model.named_parameters() if p.requires_grad}
    learn.freeze()
    assert free() == {"classifier"}
    learn.freeze_to(-2)
    assert "classifier" in free() and "features" in free()
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())
    learn.opt = None
    learn.create_opt()
    assert {id(p) for g in learn.opt.opt.param_groups for p in g["params"]} == {id(p) for p in learn.model.parameters()}


def test_validate(trained):
    n = len(trained.recorder.rows)
    loss,accuracy,*_ = trained.validate()
    last = trained.recorder.rows[-1]
    assert (loss, accuracy) == (pytest.approx(last["valid_loss"], rel=1e-5), pytest.approx(last["accuracy"]))
    with trained.validation_context(): trained._do_epoch_validate(1)
    assert list(trained.final_record)[:2] == [loss, accuracy] and len(trained.recorder.rows) == n and trained.phase == "fit"


def test_with_a_learner_leaves_no_row(trained):
    n,seen = len(trained.recorder.rows),[]
    with trained.added_cbs(VerboseCallback()), trained as learn:
        with learn: seen.append(learn.phase)
    assert seen == ["validate"] and trained.phase == "fit" and len(trained.recorder.rows) == n
    with pytest.raises(KeyError), trained: raise KeyError("x")
    assert trained.phase == "fit" and trained._entered == []


def test_get_preds(trained):
    "Of a shuffled loader in the order of the set; losses one a sample"
    images,probs,targets,decoded,losses = trained.get_preds(with_input=True, with_decoded=True, with_loss=True)
    direct = trained.model.eval()(images)
    assert torch.equal(targets, torch.as_tensor(DIGITS.split("valid").labels).long())
    assert torch.allclose(probs, direct.softmax(-1), atol=1e-6) and torch.equal(decoded, direct.argmax(-1))
    assert torch.allclose(losses, nn.functional.cross_entropy(direct, targets, reduction="none"), atol=1e-5)
    shuffled = trained.dls.valid.new(shuffle=True, drop_last=False)
    assert torch.allclose(trained.get_preds(dl=shuffled)[0], probs, atol=1e-6)
    assert len(trained.get_preds(ds_idx=0)[0]) == len(trained.dls.train.dataset), "also what drop_last leaves out"
    raw,_ = trained.get_preds(act=lambda o: o)
    assert torch.allclose(raw, direct, atol=1e-5) and trained.phase == "fit"


def test_losses_of_samples_under_a_plain_loss():
    dls = loaders()
    learn = VitLearner(dls, create_model("densenet_micro", num_classes=10, img_size=8), nn.CrossEntropyLoss(), precision="fp32")
    probs,targets,losses = learn.get_preds(with_loss=True)
    assert torch.allclose(losses, nn.functional.cross_entropy(probs, targets, reduction="none"), atol=1e-5) and learn.loss_func.reduction == "mean"
    with learn.loss_not_reduced(): assert learn.objective.reduction == "none"
    assert learn.objective.reduction == "mean"


def test_summary(trained):
    text,n = str(trained.summary()), sum(p.numel() for p in trained.model.parameters())
    assert f"Total params: {n:,}" in text and "Conv2d" in text and len(trained.recorder.rows) == 3


def test_save_and_load(tmp_path):
    learn,other = fit(make(path=tmp_path)),make(path=tmp_path, seed=2)
    assert learn.save("m").exists()
    other.load("m")
    assert torch.equal(weights(learn), weights(other)) and other.opt.opt.state_dict()["state"]


def test_callbacks_come_and_go(trained):
    class Mine(core.Callback): pass
    mine = Mine()
    assert trained.add_cb(mine) is trained and trained.mine is mine and mine.learn is trained
    assert trained.remove_cb(mine) is trained and not hasattr(trained, "mine")
    before = list(trained.cbs)
    with trained.added_cbs([training.BnFreeze, mine]): assert type(trained.bn_freeze) is training.BnFreeze
    with trained.removed_cbs([trained.progress]): assert len(trained.cbs) == len(before) - 1
    assert {id(o) for o in trained.cbs} == {id(o) for o in before}
    orders = [o.order for o in trained.ordered_cbs("after_batch")]
    assert orders == sorted(orders)
    trained.add_cbs([mine]).remove_cbs([mine])
    assert trained._grab_cbs(core.TrainEvalCallback)[0] in before


def test_quiet(trained, capsys):
    view = trained.progress
    with trained.no_bar(): assert not hasattr(trained, "progress") and view not in trained.cbs
    assert trained.progress is view
    with trained.no_logging(): trained.logger("hidden")
    with trained.no_mbar(): assert trained.create_mbar is False
    trained.show_training_loop()
    printed = capsys.readouterr().out
    assert "hidden" not in printed and "before_batch" in printed


def test_batches_by_hand():
    learn = fit(make())
    before = weights(learn)
    learn.one_batch(0, learn.dls.valid.one_batch()) # after a fit a Learner is in validation
    assert torch.equal(weights(learn), before) and learn.x.shape == (16, 3, 8, 8) and learn.y.shape == (16,)
    learn.dl = learn.dls.valid
    with torch.no_grad(): learn.all_batches()
    assert learn.iter == len(learn.dls.valid) - 1 and learn.to_detach(learn.loss).requires_grad is False
    learn("after_epoch")
    learn.metrics = []
    assert len(learn.metrics) == 0


def test_predict_takes_all_forms_of_an_image(trained, tmp_path):
    array = DIGITS.read("valid", 3)
    Image.fromarray(array).save(tmp_path/"x.png")
    probs,_ = trained.get_preds()
    for item in (array, tmp_path/"x.png", str(tmp_path/"x.png"), Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)):
        name,index,p = trained.predict(item)
        assert name == DIGITS.classes[index] and index.ndim == 0 and index == probs[3].argmax() and torch.allclose(p, probs[3], atol=1e-6)
    image,*triple = trained.predict(array, with_input=True)
    assert torch.equal(image, trained.dls.valid.one_batch()[0][3]) and triple[0] == name
    grey = trained.predict(array[...,0])
    assert grey[0] == name, "a grey image becomes three channels, as in the set"


def test_show_results(trained):
    trained.show_results(max_n=4, shuffle=False)
    _,_,_,said = trained.get_preds(with_input=True, with_decoded=True)
    shown = [a.get_title() for a in plt.gcf().axes if a.get_title()]
    assert shown == [f"{DIGITS.classes[t]} / {DIGITS.classes[p]}" for t,p in zip(DIGITS.split("valid").labels[:4], said)]


def test_curves_after_our_schedules(trained):
    learn = fit(make(schedule="one_cycle"), 2)
    assert learn.recorder.hps["lr"] == learn.recorder.lrs and len(learn.recorder.hps["mom"]) == 10
    learn.recorder.plot_sched()
    assert [a.get_ylabel() for a in plt.gcf().axes] == ["lr", "mom"] and plt.gcf().axes[0].lines[0].get_ydata().tolist() == learn.recorder.lrs
    plt.figure()
    assert trained.recorder.plot_loss(skip_start=0).lines[0].get_ydata() == pytest.approx([float(o) for o in trained.recorder.losses])


def test_a_slice_is_plain_in_the_configuration():
    learn = make(lr=slice(1e-5, 1e-3))
    assert learn.config["training"]["lr"] == [1e-5, 1e-3] and rates(fit(learn))[-1] == pytest.approx(1e-3) and rates(learn)[0] == pytest.approx(1e-5)
    assert make(lr=slice(1e-3)).config["training"]["lr"] == [None, 1e-3]


def test_a_learner_is_copied_in_this_process():
    learn = make() # after a fit its last loss is part of a graph, which torch copies for nobody
    before,twin = weights(learn),copy.deepcopy(learn)
    fit(twin)
    assert torch.equal(weights(learn), before) and not torch.equal(weights(twin), before) and twin.recorder.learn is twin
    again = pickle.loads(pickle.dumps(fit(learn)))
    assert torch.equal(weights(again), weights(learn)) and "pickled_by" not in vars(again)
    fit(again)


METHODS = dict(fit=test_fit, fit_flat_cos=test_fit_flat_cos, fit_one_cycle=test_fit_one_cycle, fit_sgdr=test_fit_sgdr, fine_tune=test_fine_tune, lr_find=test_lr_find,
    validate=test_validate, validation_context=test_validate, _do_epoch_validate=test_validate, get_preds=test_get_preds, predict=test_predict_takes_all_forms_of_an_image,
    show_results=test_show_results, summary=test_summary, save=test_save_and_load, load=test_save_and_load, loss_not_reduced=test_losses_of_samples_under_a_plain_loss,
    **dict.fromkeys("freeze freeze_to unfreeze create_opt".split(), test_freeze_and_create_opt),
    **dict.fromkeys("add_cb add_cbs remove_cb remove_cbs added_cbs removed_cbs ordered_cbs _grab_cbs".split(), test_callbacks_come_and_go),
    **dict.fromkeys("no_bar no_logging no_mbar show_training_loop".split(), test_quiet),
    **dict.fromkeys("__getstate__ __setstate__".split(), test_a_learner_is_copied_in_this_process),
    **dict.fromkeys("one_batch all_batches to_detach metrics x y __call__".split(), test_batches_by_hand),
    **dict.fromkeys("__init__ _with_events _backward _step _end_cleanup _default".split(), test_fit), # no fit without them
    __enter__=test_with_a_learner_leaves_no_row, __exit__=test_with_a_learner_leaves_no_row)


def test_each_method_that_works_has_its_test(): assert set(METHODS) == names(learner_names, "works")


# callbacks that work

def added(cb, n=1, **kw):
    learn = make(**kw)
    return fit(learn, n, cbs=cb), cb


def test_fetch_preds():
    learn,cb = added(core.FetchPredsCallback(with_decoded=True))
    assert len(cb.preds) == 3 and torch.allclose(cb.preds[0], learn.get_preds()[0], atol=1e-6) and len(learn.recorder.rows) == 1


def test_gather_preds(trained):
    cb = core.GatherPredsCallback()
    with trained.validation_context(cbs=[cb]): trained._do_epoch_validate(1)
    assert torch.equal(cb.targets, trained.get_preds()[1])


def test_collect_data():
    learn,cb = added(data.CollectDataCallback())
    assert len(cb.data) == len(learn.dls.train) + len(learn.dls.valid) and cb.data[0][0][0].shape == (16, 3, 8, 8)


def test_verbose(capsys):
    added(VerboseCallback())
    assert capsys.readouterr().out.split()[:6] == "before_fit before_epoch before_train before_batch after_pred after_loss".split()


def test_a_cast_changes_nothing(): assert torch.equal(weights(added(CastToTensor())[0]), weights(fit(make())))


def test_dropout_at_prediction():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(.5), nn.Linear(192, 10))
    learn = VitLearner(loaders(), model, make_objective(loaders().tasks), precision="fp32")
    torch.manual_seed(0)
    drawn = [learn.get_preds(cbs=[preds.MCDropoutCallback()])[0] for _ in range(2)]
    assert not torch.equal(*drawn) and torch.equal(learn.get_preds()[0], learn.get_preds()[0])


def test_hooks():
    seen = []
    learn,cb = added(hook.HookCallback(hook=lambda m, i, o: seen.append(type(m).__name__)))
    assert "Conv2d" in seen and not any(m._forward_hooks for m in learn.model.modules())
    learn,cb = added(hook.ActivationStats())
    assert len(cb.stats) == len(learn.dls.train) and 0 < cb.stats[0][0]["std"] < 10


def test_frozen_norms_by_fastai():
    learn = make()
    learn.freeze()
    before = {k:v.clone() for k,v in learn.model.state_dict().items() if "running" in k}
    fit(learn, cbs=training.BnFreeze())
    assert all(torch.equal(learn.model.state_dict()[k], v) for k,v in before.items())


def test_clipping_by_fastai_is_ours(): assert torch.equal(weights(added(training.GradientClip(.1))[0]), weights(added(GradClip(.1))[0]))


def test_a_short_epoch():
    learn,_ = added(training.ShortEpochCallback(.5, short_valid=False), 2)
    assert learn.opt_steps == 2*4 and learn.recorder.rows[-1]["accuracy"] > 0, "4 of 5: it stops behind the batch that passes the half"


def test_nan_ends_a_fit():
    class Spoil(core.Callback):
        order = -20
        def after_batch(self):
            if self.training and self.train_iter == 2: self.learn.loss = torch.tensor(float("nan"))
    learn,_ = added([Spoil(), tracker.TerminateOnNaNCallback()], 3)
    assert learn.opt_steps < 5 and learn.recorder.rows == []


def test_param_scheduler():
    learn,_ = added(schedule.ParamScheduler({"lr":schedule.SchedLin(.01, 0)}))
    assert learn.recorder.lrs == pytest.approx(np.linspace(.01, 0, 6)[:5], rel=1e-5) == learn.recorder.hps["lr"]


def test_lr_finder():
    learn,cb = added(schedule.LRFinder(num_it=6), 2)
    assert cb.hps["lr"][0] == pytest.approx(1e-7) and learn.opt_steps == 0


class Falls(core.Callback):
    "A column of which less is better, though fastai would guess otherwise, that rises from epoch to epoch"
    order = 55
    def columns(self): return [vitnb.all.Column("distance", "min")]
    def after_epoch(self):
        self.recorder.row["distance"] = self.recorder.rows[-1]["distance"] = 1. + self.epoch
        self.recorder.values[-1][-1] = 1. + self.epoch


def test_trackers_follow_the_declared_direction(tmp_path):
    "fastai guesses that more of 'distance' is better, and would keep the last epoch and never stop"
    keep,stop = tracker.SaveModelCallback(monitor="distance", fname="best"),tracker.EarlyStoppingCallback(monitor="distance", patience=2, min_delta=.1)
    learn = fit(make(path=tmp_path), 6, cbs=[Falls(), keep, stop])
    assert len(learn.recorder.rows) == 3 and keep.best == stop.best == 1. and stop.min_delta == -.1
    once = fit(make(path=tmp_path))
    assert torch.equal(weights(once), weights(learn)), "the weights of the first epoch are back"
    more = tracker.TrackerCallback(monitor="accuracy", comp=np.less)
    fit(make(), cbs=more)
    assert more.comp is np.greater


@pytest.mark.parametrize("monitor,say", [("acuracy", "did you mean 'accuracy'"), ("lr", "cannot monitor 'lr'"), ("plain", "give the metric better='min' or 'max'"), ("train_accuracy", "cannot monitor")])
def test_trackers_accept_declared_columns_only(monitor, say):
    def plain(pred, target): return pred.mean()
    learn = make(metrics=[*make().metrics, plain])
    before = weights(learn)
    with pytest.raises(ValueError, match=say): learn.fit(1, cbs=tracker.EarlyStoppingCallback(monitor=monitor))
    assert torch.equal(weights(learn), before) and not learn._grab_cbs(tracker.TrackerCallback)


@pytest.mark.parametrize("mix", [mixup.MixUp, mixup.CutMix])
def test_fastais_mixing_on_a_plain_loss(mix):
    "The loss of a step is the mixture of two losses of the mixed image"
    seen = []
    class Look(core.Callback):
        order = 90
        def after_loss(self):
            if not self.training: return
            cb = self.learn.mix_up if hasattr(self.learn, "mix_up") else self.learn.cut_mix
            each = [nn.functional.cross_entropy(self.pred, y, reduction="none") for y in (cb.yb1[0], self.y)]
            seen.append((torch.lerp(*each, cb.lam).mean().item(), self.loss.item()))
    dls = loaders()
    loss = CrossEntropyLossFlat()
    learn = VitLearner(dls, create_model("densenet_micro", num_classes=10, img_size=8), loss, lr=.01, precision="fp32")
    fit(learn, cbs=[mix(), Look()])
    assert len(seen) == 5 and all(a == pytest.approx(b, rel=1e-5) for a,b in seen) and learn.loss_func is loss


CALLBACKS = dict(CastToTensor=test_a_cast_changes_nothing, VerboseCallback=test_verbose,
    CollectDataCallback=test_collect_data, FetchPredsCallback=test_fetch_preds, GatherPredsCallback=test_gather_preds, MCDropoutCallback=test_dropout_at_prediction,
    HookCallback=test_hooks, ActivationStats=test_hooks, BnFreeze=test_frozen_norms_by_fastai, GradientClip=test_clipping_by_fastai_is_ours,
    ShortEpochCallback=test_a_short_epoch, TerminateOnNaNCallback=test_nan_ends_a_fit, ParamScheduler=test_param_scheduler, LRFinder=test_lr_finder,
    **dict.fromkeys("TrackerCallback SaveModelCallback EarlyStoppingCallback".split(), test_trackers_follow_the_declared_direction),
    **dict.fromkeys("MixHandler MixUp CutMix".split(), test_fastais_mixing_on_a_plain_loss))


def test_each_callback_that_works_has_its_test(): assert set(CALLBACKS) == names(callback_names, "works")


# loaders

def test_loaders_work():
    dls = loaders()
    assert len(dls) == 3 and dls[0] is dls.train is dls.loaders[0] and dls.valid is dls[1] and dls.train_ds is dls.train.dataset and dls.valid_ds is dls.valid.dataset
    assert dls.device == torch.device("cpu") and dls.to("cpu") is dls and dls.cpu() is dls and dls.bs == 16
    assert [len(o.dataset) for o in dls.new_empty().loaders] == [0, 0, 0]
    if torch.cuda.is_available(): assert dls.cuda().device.type == "cuda"


def test_items_of_a_loader_keep_their_labels(trained):
    items = [trained.dls.valid.items[i] for i in (5, 1)]
    batch,plain = (trained.dls.test_dl(items, with_labels=k).one_batch() for k in (True, False))
    assert batch["target"].tolist() == DIGITS.split("valid").labels[[5, 1]].tolist() and batch["index"].tolist() == [5, 1] and plain.get("target") is None


def test_test_dl(trained, tmp_path):
    "New images in batches, in their order, without targets"
    arrays = [DIGITS.read("test", i) for i in range(20)]
    paths = [tmp_path/f"{i}.png" for i in range(20)]
    for a,p in zip(arrays, paths): Image.fromarray(a).save(p)
    whole = trained.get_preds(ds_idx=2)[0][:20]
    for items,kw in ((arrays, {}), (paths, dict(bs=7)), (paths, dict(workers=2)), (paths, dict(num_workers=0))):
        dl = trained.dls.test_dl(items, **kw)
        assert dl.one_batch().get("target") is None and len(dl.dataset) == 20
        assert torch.allclose(trained.get_preds(dl=dl)[0], whole, atol=1e-6)
    assert len(trained.dls.test_dl(paths[0]).dataset) == 1


# interpretation

def test_confusion(trained):
    found = interpret.ClassificationInterpretation.from_learner(trained)
    probs,targets = trained.get_preds()
    reference = confusion_matrix(targets, probs.argmax(-1), labels=range(10))
    assert found.confusion_matrix().shape == (10, 10) and (found.confusion_matrix() == reference).all()
    wrong = {(DIGITS.classes[i], DIGITS.classes[j], reference[i,j]) for i in range(10) for j in range(10) if i != j and reference[i,j]}
    assert set(found.most_confused()) == wrong and wrong
    found.plot_confusion_matrix()
    assert [o.get_text() for o in plt.gca().get_xticklabels()] == list(DIGITS.classes)


def test_classification_report(trained, capsys):
    interpret.ClassificationInterpretation.from_learner(trained, ds_idx=2).print_classification_report()
    rows = capsys.readouterr().out.strip().split("\n") + [""]
    labels = DIGITS.split("test").labels
    assert rows[2].split()[0] == DIGITS.classes[0] and int(rows[2].split()[-1]) == (labels == 0).sum() and rows[-2].split()[-1] == str(len(labels))


def test_top_losses(trained):
    found = interpret.Interpretation.from_learner(trained)
    probs,targets = trained.get_preds()
    losses = -probs[range(len(probs)),targets].log()
    top,at,items = found.top_losses(3, items=True)
    assert torch.allclose(top, losses.sort(descending=True).values[:3], atol=1e-4) and torch.equal(at, losses.argsort(descending=True)[:3])
    assert [o.index for o in items] == at.tolist()
    image,p,t,decoded,loss = found[at]
    assert torch.equal(t, targets[at]) and torch.allclose(p, probs[at], atol=1e-6) and torch.equal(decoded, probs[at].argmax(-1)) and torch.equal(loss, top)
    found.plot_top_losses(3)
    shown = [a.get_title() for a in plt.gcf().axes if a.get_title()]
    assert shown == [f"{DIGITS.classes[d]}/{DIGITS.classes[y]}\n{o:.2f}/{q.max():.2f}" for d,y,o,q in zip(decoded, t, top, p)]
    plt.figure()
    found.plot_top_losses([0, 2], largest=False)
    found.show_results(at)
    assert [a.get_title() for a in plt.gcf().axes if a.get_title()] == [f"{DIGITS.classes[y]} / {DIGITS.classes[d]}" for d,y in zip(decoded, t)]


INTERPRETATION = dict(__init__=test_confusion, from_learner=test_confusion, confusion_matrix=test_confusion, most_confused=test_confusion, plot_confusion_matrix=test_confusion,
    print_classification_report=test_classification_report, __getitem__=test_top_losses, top_losses=test_top_losses, plot_top_losses=test_top_losses, show_results=test_top_losses)


def test_each_interpretation_that_works_has_its_test(): assert set(INTERPRETATION) == names(interpretation_names, "works")


LOADERS = dict.fromkeys("__init__ __getitem__ __len__ _default train valid train_ds valid_ds device to cpu cuda new_empty".split(), test_loaders_work) | dict(test_dl=test_test_dl)


def test_each_name_of_loaders_that_works_has_its_test(): assert set(LOADERS) == names(loaders_names, "works")


PICKLED = [lambda f: load_learner(f), lambda f: load_learner(f, cpu=False), lambda f: load_learner(f, False), lambda f: load_learner(f, cpu=False, pickle_module=pickle),
           lambda f: load_learner(fname=str(f), cpu=0), lambda f: torch.load(f, weights_only=False), lambda f: torch.load(f, weights_only=False, map_location="cpu", pickle_module=pickle)]


@pytest.fixture
def somebodys(monkeypatch):
    "A Learner that another process has pickled, as far as this one can tell"
    with monkeypatch.context() as m:
        m.setattr(resume, "_THIS_PROCESS", "another")
        return cloudpickle.dumps(make())


@pytest.mark.parametrize("call", PICKLED, ids=range(len(PICKLED)))
@pytest.mark.filterwarnings("ignore:.*insecure")
def test_a_learner_is_not_read_from_a_file_in_any_form(call, monkeypatch, tmp_path):
    "Whatever fastai's arguments are; `export`, which writes such files, is refused, so somebody wrote this one by hand"
    with monkeypatch.context() as m:
        m.setattr(resume, "_THIS_PROCESS", "another")
        torch.save(make(), tmp_path/"old.pkl", pickle_module=cloudpickle)
    with pytest.raises(ValueError, match="load_run"): call(tmp_path/"old.pkl")


@pytest.mark.parametrize("how", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
def test_a_learner_is_not_read_from_bytes(how, somebodys):
    with pytest.raises(ValueError, match="load_run"): how.loads(somebodys)


def test_a_learner_of_another_process_is_refused_there(tmp_path):
    (tmp_path/"learner.pkl").write_bytes(cloudpickle.dumps(make()))
    code = f"import pickle, vitnb.all; pickle.loads(open({str(tmp_path/'learner.pkl')!r}, 'rb').read())"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert r.returncode == 1 and "ValueError: a Learner is not read from a file" in r.stderr


def test_a_learner_travels_to_processes_that_this_one_starts(tmp_path):
    learn = fit(make())
    distribute._pack(learn, dict(n=1), tmp_path)
    there,kw = distribute._unpack(tmp_path)
    assert kw == dict(n=1) and torch.equal(weights(there), weights(learn)) and there.opt_steps == learn.opt_steps
    fit(there)


class Harm:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return Path.touch, (self.mark,)


@pytest.mark.parametrize("kw", [{}, dict(weights_only=False), dict(weights_only=None), dict(weights_only=0), dict(pickle_module=pickle), dict(weights_only=False, pickle_module=cloudpickle),
                                dict(with_opt=False, weights_only=False), dict(device="cpu", strict=False, weights_only=False), dict(weights_only=True)], ids=str)
def test_load_runs_no_code_of_a_file(kw, tmp_path):
    "Not with any argument that reaches `torch.load`"
    learn = make(path=tmp_path)
    (tmp_path/"models").mkdir()
    torch.save(dict(model=learn.model.state_dict(), opt=Harm(tmp_path/"harmed")), tmp_path/"models"/"somebodys.pth")
    with pytest.raises(ValueError, match="only tensors and plain values"): learn.load("somebodys", **kw)
    assert not (tmp_path/"harmed").exists()


@pytest.mark.parametrize("name", sorted(load_arguments))
def test_a_refused_argument_of_load_is_one_that_torch_has(name):
    assert name in inspect.signature(torch.load).parameters and "load_kwargs" in str(inspect.signature(fastai.learner.load_model))


def test_load_takes_what_is_harmless(tmp_path):
    learn,other = fit(make(path=tmp_path)),make(path=tmp_path, seed=2)
    learn.save("m")
    assert other.load("m", device="cpu", with_opt=False, strict=True, weights_only=True, mmap=True) is other and torch.equal(weights(learn), weights(other))


def test_nothing_of_ours_opens_pickles():
    "No public name of vitnb is fastai's or Python's way to open one, and the source asks torch for weights only, but where a process reads what its parent wrote"
    assert not {"load_learner", "loads", "pickle", "cloudpickle"} & set(vars(vitnb.all))
    root = Path(vitnb.__file__).parent
    for path in root.rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
        for n in calls:
            said = {k.arg: ast.unparse(k.value) for k in n.keywords}
            assert said.get("weights_only") == "True" or path.relative_to(root).as_posix() == "learner/distribute.py", ast.unparse(n)
