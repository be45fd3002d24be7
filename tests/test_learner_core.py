"VitLearner and vit_learner: what cells of the notebook do not show"
import copy
import errno
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.losses import CrossEntropyLossFlat
from tiny_tasks import skewed

from vitnb.callback import checkpoint
from vitnb.callback.checkpoint import Checkpoints, load_checkpoint
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import load_model, run_callbacks, vit_learner
from vitnb.learner.predict import predict_split
from vitnb.losses.classify import class_weights
from vitnb.seeding import set_seed
from vitnb.testing import tiny_learner


def make(seed=3, cbs=(), dls_kw=None, **kw):
    "A Learner that trains four batches an epoch"
    set_seed(seed)
    dls = image_loaders(load_set("digits", limit=10), bs=24, augment="shift", seed=seed, device="cpu", **(dls_kw or {}))
    return vit_learner(dls, "swin_micro", **{**dict(device="cpu", precision="fp32", seed=seed, cbs=cbs), **kw})


def weights(learn): return torch.cat([v.detach().float().flatten() for v in learn.model.state_dict().values()])


class Snapshot(Callback):
    "A copy of the state after `n` optimiser steps"
    order = 150
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.training and self.opt_steps == self.n: self.state = copy.deepcopy(self.learn.training_state())


def test_same_parameters_same_bits():
    a,b = make(model_kw=dict(drop_path_rate=.3)),make(model_kw=dict(drop_path_rate=.3))
    a.fit(2)
    b.fit(2)
    assert torch.equal(weights(a), weights(b))


def test_other_seed_other_bits():
    a,b = make(seed=3),make(seed=4)
    a.fit(1)
    b.fit(1)
    assert not torch.equal(weights(a), weights(b))


def test_workers_change_nothing():
    a,b = make(),make(dls_kw=dict(workers=2))
    a.fit(1)
    b.fit(1)
    assert torch.equal(weights(a), weights(b))


@pytest.mark.parametrize("n", [1, 3, 4, 6, 8])
def test_resume_in_the_middle_and_at_the_end_of_an_epoch(n):
    snap = Snapshot(n)
    a,b = make(schedule="plateau", optimizer="sgd", lr=.05, schedule_kw=dict(patience=0)),make(schedule="plateau", optimizer="sgd", lr=.05, schedule_kw=dict(patience=0))
    a.fit(3, cbs=snap)
    b.fit(3, resume=snap.state)
    assert torch.equal(weights(a), weights(b))
    assert [r["valid_loss"] for r in a.recorder.rows] == [r["valid_loss"] for r in b.recorder.rows]
    assert [r["train_loss"] for r in a.recorder.rows] == [r["train_loss"] for r in b.recorder.rows]


def test_fastai_trackers_go_on(tmp_path):
    "fastai's own `start_epoch` ends in an IndexError with each of these"
    def trackers(d): return [SaveModelCallback(monitor="accuracy", fname=str(tmp_path/d)), EarlyStoppingCallback(monitor="valid_loss", patience=1)]
    seen = []
    class Count(Callback):
        def after_epoch(self): seen.append(self.epoch)
    snap = Snapshot(6)
    a,b = make(schedule="constant"),make(schedule="constant")
    a.fit(3, cbs=[snap, *trackers("a")])
    b.fit(3, cbs=[Count(), *trackers("b")], resume=snap.state)
    assert torch.equal(weights(a), weights(b))
    assert seen == [1, 2] or seen == [1]


def test_start_epoch_fires_no_event_for_what_it_skips():
    seen = []
    class Count(Callback):
        def before_epoch(self): seen.append(self.epoch)
    learn = make(schedule_kw=dict(warmup_epochs=1))
    learn.fit(3, cbs=Count(), start_epoch=2)
    whole = make(schedule_kw=dict(warmup_epochs=1))
    whole.fit(3)
    assert seen == [2] and learn.recorder.lrs == whole.recorder.lrs[8:]


def test_a_second_fit_sees_other_batches():
    learn = make()
    orders = []
    class Order(Callback):
        def before_train(self): orders.append(tuple(self.dls.train.order(self.dls.train.epoch)))
    learn.fit(1, cbs=Order())
    learn.fit(1, cbs=Order())
    assert orders[0] != orders[1]
    assert [r["epoch"] for r in learn.recorder.rows] == [1, 2]


@pytest.mark.parametrize("mix", [MixUp, CutMix])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_cleans_up_after_any_error(mix, error):
    class Break(Callback):
        def after_pred(self):
            if self.training and self.iter == 1: raise error("stop")
    learn = make()
    learn.loss_func = loss = CrossEntropyLossFlat() # on a loss of tasks fastai's mixing is refused
    learn.add_cb(mix())
    with pytest.raises(error): learn.fit(1, cbs=Break())
    assert learn.loss_func is loss
    assert learn.recorder.rows == [], "an epoch that was broken off has no row"
    assert [type(c).__name__ for c in learn.cbs if type(c).__name__ in ("Break", "ScheduleLR")] == []


def test_an_error_in_the_first_forward_pass_is_not_hidden():
    learn = make()
    def broken(module, args): raise MemoryError("the real error")
    learn.model.register_forward_pre_hook(broken)
    with pytest.raises(MemoryError, match="the real error"): learn.fit(1)


def test_lr_find_leaves_everything_as_it_was(tmp_path):
    learn = make(path=tmp_path)
    before = weights(learn)
    found = learn.lr_find(num_it=12, show_plot=False)
    assert 1e-7 < found.valley < 10
    assert torch.equal(before, weights(learn)) and learn.opt_steps == 0 and learn.epochs_done == 0
    fresh = make()
    fresh.fit(1)
    learn.fit(1)
    assert torch.equal(weights(learn), weights(fresh))


@pytest.mark.parametrize("way", ["fit_flat_cos", "fit_one_cycle"])
def test_fastais_schedules_leave_epochs_out(way):
    whole,rest = make(),make()
    getattr(whole, way)(4, 2e-3)
    getattr(rest, way)(4, 2e-3, start_epoch=2)
    assert len(whole.recorder.lrs) == 16 and rest.recorder.lrs == pytest.approx(whole.recorder.lrs[8:], rel=1e-6)
    if way == "fit_flat_cos": assert rest.recorder.lrs[:4] == pytest.approx([2e-3]*4) and rest.recorder.lrs[-1] < 4e-4


def test_fit_one_cycle_of_fastai_works():
    learn = make()
    learn.fit_one_cycle(2, 1e-3)
    assert len(set(learn.recorder.lrs)) > 3


def test_validation_loss_is_plain_cross_entropy():
    learn = make(label_smoothing=.3)
    learn.fit(1)
    p,y = predict_split(learn, "valid")
    plain = torch.nn.functional.nll_loss(p.log(), y).item()
    assert learn.recorder.rows[-1]["valid_loss"] == pytest.approx(plain, abs=1e-4)
    hard = make()
    hard.fit(1)
    assert hard.recorder.rows[-1]["train_loss"] != learn.recorder.rows[-1]["train_loss"]


@pytest.mark.parametrize("kw", [dict(lr=3e-3), dict(weight_decay=.5), dict(clip=.01), dict(label_smoothing=.2), dict(optimizer="sgd"), dict(precision="bf16"),
                                dict(schedule="constant"), dict(schedule_kw=dict(warmup_epochs=1)), dict(opt_kw=dict(betas=(.5, .9))), dict(loss="focal"),
                                dict(model_kw=dict(drop_path_rate=.5)), dict(dls_kw=dict(augment="none"))], ids=str)
def test_each_option_acts(kw):
    dls_kw = kw.pop("dls_kw", None)
    def run(**kw):
        set_seed(3)
        opts = dict(augment="shift", **{}) | (dls_kw or {}) if kw or dls_kw else dict(augment="shift")
        dls = image_loaders(load_set("digits", limit=10), bs=24, seed=3, device="cpu", **opts)
        learn = vit_learner(dls, "swin_micro", **{**dict(device="cpu", precision="fp32", seed=3), **kw})
        learn.fit(2)
        return weights(learn)
    base = make()
    base.fit(2)
    assert not torch.equal(weights(base), run(**kw))


def test_channels_last_acts():
    set_seed(0)
    dls = image_loaders(load_set("digits", limit=10), bs=24, device="cpu")
    kw = dict(device="cpu", precision="fp32", model_kw=dict(growth_rate=4, block_config=(2, 2)), channels_last=True)
    learn = vit_learner(dls, "densenet121", **kw)
    conv = next(m for m in learn.model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) and m.in_channels > 3)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    learn.fit(1)


@pytest.mark.parametrize("precision,dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_precision_reaches_the_model_and_not_the_loss(precision, dtype):
    seen = {}
    learn = make(precision=precision)
    block = next(m for m in learn.model.modules() if isinstance(m, torch.nn.Linear))
    block.register_forward_hook(lambda m, i, o: seen.update(inside=o.dtype))
    class Spy(Callback):
        def after_loss(self): seen.setdefault("loss", self.loss.dtype)
    learn.fit(1, cbs=Spy())
    assert seen == dict(inside=dtype, loss=torch.float32)
    assert (learn.scaler is not None) == (precision == "fp16")
    assert learn.recorder.rows[-1]["train_loss"] == pytest.approx(make_loss32(), abs=.2)


def make_loss32():
    learn = make()
    learn.fit(1)
    return learn.recorder.rows[-1]["train_loss"]


@pytest.mark.parametrize("bad,says", [(dict(arch="swin_mikro"), "did you mean 'swin_micro'"), (dict(schedule="cosin"), "did you mean 'cosine'"),
                                      (dict(optimizer="adamv"), "did you mean 'adam"), (dict(loss="focl"), "did you mean 'focal'"),
                                      (dict(schedule_kw=dict(warmup_epoch=1)), "did you mean 'warmup_epochs'"), (dict(precision="fp8"), "choose from")])
def test_unknown_names_say_which_are_known(bad, says):
    dls = image_loaders(load_set("digits", limit=4), bs=8, device="cpu")
    with pytest.raises(ValueError, match=says): vit_learner(dls, **{"arch":"swin_micro", "device":"cpu", **bad})


def test_monitor_is_checked_before_the_first_batch(tmp_path):
    learn = make()
    with pytest.raises(ValueError, match="did you mean 'accuracy'"): learn.fit(1, cbs=Checkpoints(tmp_path, "acuracy"))
    assert learn.opt_steps == 0


def test_files_of_a_run(tmp_path):
    learn = make()
    learn.fit(3, cbs=run_callbacks(tmp_path, every_n_epochs=2))
    rows = json.loads((tmp_path/"history.json").read_text())
    assert [r["epoch"] for r in rows] == [1, 2, 3] and rows[-1]["step"] == 12
    assert {p.name for p in (tmp_path/"checkpoints").iterdir()} == {"best_model.pth", "last_model.pth", "checkpoint_epoch_2.pth"}
    last = load_checkpoint(tmp_path/"checkpoints/last_model.pth")
    best = load_checkpoint(tmp_path/"checkpoints/best_model.pth")
    assert best["best"] == max(r["accuracy"] for r in rows) and best["metrics"]["accuracy"] == best["best"]
    assert last["epoch"] == 3 and last["global_step"] == 12 and "training_state" in last and "training_state" not in best
    model = load_model(tmp_path/"checkpoints/last_model.pth")
    x = learn.dls.valid.one_batch()[0]
    learn.model.eval()
    assert torch.equal(model(x), learn.model(x))
    events = [json.loads(l)["event"] for l in (tmp_path/"events.jsonl").read_text().splitlines()]
    assert events[0] == "start" and events[-1] == "end" and events.count("epoch") == 3


def test_resume_from_a_file(tmp_path):
    whole = make()
    whole.fit(3, cbs=run_callbacks(tmp_path, every_n_epochs=2))
    state = load_checkpoint(tmp_path/"checkpoints/checkpoint_epoch_2.pth")["training_state"]
    again = make()
    again.fit(3, resume=state)
    assert torch.equal(weights(whole), weights(again))


def test_resume_refuses_another_fit():
    snap = Snapshot(4)
    a = make()
    a.fit(3, cbs=snap)
    with pytest.raises(ValueError, match="seed: 3 -> 4"): make(seed=4).fit(3, resume=snap.state)
    with pytest.raises(ValueError, match="training.clip: None -> 1.0"): make(clip=1.).fit(3, resume=snap.state)
    other = make(clip=1.)
    other.fit(3, resume=snap.state, allow_changes=True)
    assert other.opt_steps == a.opt_steps and not torch.equal(weights(a), weights(other))


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    learn = make()
    learn.fit(1, cbs=Checkpoints(tmp_path))
    before = (tmp_path/"last_model.pth").read_bytes()
    def full(state, f):
        Path(f).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="is intact.*make room"): learn.fit(1, cbs=Checkpoints(tmp_path))
    assert (tmp_path/"last_model.pth").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best_model.pth", "last_model.pth"]


def test_a_real_file_size_limit(tmp_path):
    "The operating system refuses to write more, in the middle of a checkpoint"
    code = f"""
import resource, signal, torch
from vitnb.callback.checkpoint import save_checkpoint
path = {str(tmp_path/'last_model.pth')!r}
save_checkpoint(dict(w=torch.zeros(10)), path)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
save_checkpoint(dict(w=torch.zeros(100_000)), path)
"""
    p = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert p.returncode == 1 and "is intact" in p.stderr, p.stderr
    assert len(load_checkpoint(tmp_path/"last_model.pth")["w"]) == 10


def test_no_wait_for_the_device_in_a_step(monkeypatch):
    "A step must not read a value from the device: `.item()`, `.cpu()`, `.tolist()` and `float()` are counted"
    learn = make()
    learn.fit(1) # caches are warm
    calls = []
    for name in ("item", "cpu", "tolist", "__float__", "__bool__"):
        f = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, _f=f, _n=name, **k: (calls.append(_n), _f(self, *a, **k))[1])
    inside = []
    class Count(Callback):
        order = 300
        def before_batch(self): calls.clear()
        def after_batch(self):
            if self.training: inside.extend(calls)
    learn.fit(1, cbs=Count())
    assert inside == [], f"a training step reads from the device: {inside}"


def test_plain_tensors_reach_the_model():
    seen = []
    learn = make()
    learn.model.register_forward_pre_hook(lambda m, a: seen.append(type(a[0])))
    learn.fit(1)
    assert set(seen) == {torch.Tensor}


def test_class_weights_reach_the_loss():
    dls = image_loaders(skewed(), bs=8, device="cpu", workers=0)
    learn = vit_learner(dls, "swin_micro", device="cpu", precision="fp32", class_weights=True, model_kw=dict(num_classes=3)) if dls.c == 3 else None
    if learn is None: learn = vit_learner(image_loaders(load_set("digits"), bs=8, device="cpu"), "swin_micro", device="cpu", precision="fp32", class_weights=True)
    counts = np.bincount(learn.dls.train.dataset.labels)
    assert torch.equal(learn.objective.loss_of("").weight, class_weights(counts)) and learn.config["training"]["class_weights"]
    with pytest.raises(ValueError, match="twice"): tiny_learner(class_weights=True, loss_kw=dict(weight=[1.]*10))
    with pytest.raises(ValueError, match="sampling='balanced' draws all classes equally often.*twice"): vit_learner(image_loaders(load_set("digits"), bs=8, device="cpu", workers=0, sampling="balanced"), "swin_micro", device="cpu", class_weights=True)


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


def test_a_learner_pickles_during_its_life(tmp_path):
    learn = tiny_learner(engine=dict(mixup=.8, ema_decay=.9, accumulate=2, early_stop=3))
    learn.fit(1, cbs=run_callbacks(tmp_path, tracker="none"))
    again = pickle.loads(pickle.dumps(learn))
    assert torch.equal(weights(learn), weights(again))
    again.logger = lambda *_: None
    again.fit(1)
