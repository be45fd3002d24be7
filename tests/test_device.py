"On an accelerator: every restored tensor is where the Learner computes, and a resumed run ends with the same bits"
import inspect
import io
import json
from functools import partial

import pytest
import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import vitnb.callback.record as record
import vitnb.learner.loop as loop
from contrastive_worker import make as contrastive_learner
from device_walk import assert_devices, device_walk
from simulated_device import DEVICE, SimulatedTensor, host, on_device, reads, simulated
from tiny_heads import TinyHeads
from tiny_spectral import masked_learner
from tiny_tasks import From, task_learner
from vitnb.callback.base import TrainCallback
from vitnb.callback.checkpoint import snapshot
from vitnb.callback.live import MaskedLive
from vitnb.callback.masked import masked_view
from vitnb.callback.panel import HealthLive
from vitnb.callback.pretext import Prepare
from vitnb.callback.runlog import StepNorm
from vitnb.callback.track import make_tracker
from vitnb.callback.tracker import track_figure
from vitnb.device import fetch
from vitnb.learner.core import train_callbacks
from vitnb.learner.ranks import Distribute
from vitnb.gather import gather_rows, gather_with_grad
from vitnb.learner.predict import predict_split
from vitnb.learner.tta import predict_tta, view_scores
from vitnb.task import OneClass
from vitnb.testing import differences, tiny_learner

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GIVEN = dict(norms=StepNorm(), n_batches=2, max_hours=10., max_norm=1., n_epochs=1, epochs=1, params={}) # arguments that a callback must have, by name
ELSEWHERE = { # callbacks that no plain fit can have, and where they are looked at
    "Resume": "in every test of this file", "Distribute": "with a group of one process, below", "Prepare": "with a masked pretext",
    "MaskedLive": "with a masked pretext, below", "_Timer": "in dry_run", "MLflow": "with its store, below", "WandB": "with its store, below",
    "Tracker": "abstract",
    "GradCache": "with a contrastive loss, in test_gradcache", "ZoneMix": "with zones, in test_zonemix", "ZoneHistory": "with zones, in test_zonehistory", "TrialReport": "with a study, in test_trial",
    **dict.fromkeys(("CollapseAlarm", "MomentumTeacher", "HealthLive"), "with a contrastive pretext, below")}


def through_a_file(state):
    "The state as it comes from a checkpoint: on the host"
    f = io.BytesIO()
    torch.save(snapshot(state), f)
    f.seek(0)
    return torch.load(f, weights_only=True)


class TakeState(TrainCallback):
    "Take the training state after some steps"
    order = 900
    def __init__(self, step): self.step,self.taken = step,None
    def after_batch(self):
        if self.learn.training and self.learn.opt_steps == self.step and self.learn.report is not None:
            self.taken = through_a_file(self.learn.training_state())


class Walk(TrainCallback):
    "Look at each tensor after the restore and after each batch"
    order = 1000
    def __init__(self): self.looked = 0
    def before_train(self): self.looked += assert_devices(self.learn)
    def after_batch(self): self.looked += assert_devices(self.learn)
    def after_epoch(self): self.looked += assert_devices(self.learn)


def quiet_fit(learn, n, *cbs, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, cbs=list(cbs), **kw)
    return learn


def resumed(make, callbacks, step=4, epochs=2):
    "Two Learners: one that trained through, one that went on from the first one's state, walked; weights must be the same bits"
    with simulated():
        take,walk = TakeState(step),Walk()
        whole = quiet_fit(on_device(make()), epochs, *callbacks(), take)
        assert take.taken is not None
        again = quiet_fit(on_device(make()), epochs, *callbacks(), walk, resume=take.taken)
    assert walk.looked
    assert not differences(host(whole.model.state_dict()), host(again.model.state_dict()))
    assert not differences(host(whole.opt.opt.state_dict()), host(again.opt.opt.state_dict()))
    return whole,again


def subclasses(cls):
    for o in cls.__subclasses__():
        yield o
        yield from subclasses(o)


def own_callbacks(): return sorted({o for o in subclasses(Callback) if o.__module__.startswith("vitnb.") and o is not TrainCallback}, key=lambda o: o.__name__)


def make_callback(cls, folder):
    "A callback with what its constructor must be told"
    needed = {k:p for k,p in inspect.signature(cls.__init__).parameters.items()
              if k != "self" and p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    paths = {k:folder/("events.jsonl" if k == "path" else "") for k in ("folder", "path", "run_dir")}
    known = {**GIVEN, **paths}
    unknown = [k for k in needed if k not in known]
    assert not unknown, f"{cls.__name__} must be given {unknown}: say in GIVEN with what it can be tried, or in ELSEWHERE where it is tested"
    return cls(**{k:known[k] for k in needed})


@pytest.mark.parametrize("cls", [o for o in own_callbacks() if o.__name__ not in ELSEWHERE], ids=lambda o: o.__name__)
def test_a_callback_goes_on_from_its_state_on_the_device(cls, tmp_path, capsys):
    own = cls.__name__ in {type(cb).__name__ for cb in tiny_learner().cbs} # the Learner brings it itself
    folders = iter((tmp_path/"a", tmp_path/"b"))
    def callbacks():
        (folder := next(folders)).mkdir()
        return [] if own else [make_callback(cls, folder)]
    resumed(tiny_learner, callbacks)


@pytest.mark.parametrize("engine", [dict(ema_decay=.9), dict(accumulate=2), dict(mixup=.8, cutmix=1.), dict(mixup=.8, cutmix=1., mix_mode="elem"),
                                    dict(mixup=.8, ema_half_life=1., accumulate=2, early_stop=3)], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_goes_on_with_the_same_bits(engine, precision, capsys):
    resumed(lambda: tiny_learner(engine=engine, precision=precision, class_weights=True, clip=1.), list)


def test_the_scaler_of_half_precision_is_on_the_device(capsys):
    _,again = resumed(lambda: tiny_learner(precision="fp16"), list)
    assert again.scaler.is_enabled() and isinstance(again.scaler._scale, SimulatedTensor)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_the_state_of_the_optimiser_is_on_the_device(optimizer, capsys): resumed(lambda: tiny_learner(optimizer=optimizer), list)


def test_a_companion_goes_on_on_the_device(capsys):
    def make():
        learn = tiny_learner()
        learn.companions["teacher"] = nn.Linear(2, 2)
        return learn
    _,again = resumed(make, list)
    assert again.companions["teacher"].weight.device == DEVICE


def test_masked_training_goes_on_on_the_device(capsys):
    whole,_ = resumed(masked_learner, list)
    assert any(isinstance(cb, Prepare) for cb in whole.cbs)


def test_the_live_view_of_masked_cubes_draws_from_the_device_and_goes_on(tmp_path, capsys):
    folders = iter((tmp_path/"a", tmp_path/"b"))
    def callbacks():
        (folder := next(folders)).mkdir()
        return [MaskedLive(folder, share=1.)]
    resumed(masked_learner, callbacks)
    assert all((tmp_path/o/"masked.png").stat().st_size > 5000 for o in "ab")


def test_the_live_view_of_masked_cubes_shows_what_the_host_would(tmp_path, capsys):
    views = []
    class Keep(MaskedLive):
        def draw(self):
            views.append(masked_view(self.model, self.cubes, self.valid, self.masks, self.dls.normalizer, self.dls.rgb_bands, self.dls.wavelengths))
            return super().draw()
    quiet_fit(masked_learner(), 1, Keep(share=1.))
    n = len(views)
    with simulated(): quiet_fit(on_device(masked_learner()), 1, Keep(share=1.))
    assert n and len(views) == 2*n
    assert {k for k,v in views[-1].items() if isinstance(v, SimulatedTensor)} == set(), "what is drawn was fetched"
    for k in ("true", "reconstruction", "spectra", "spectra_reconstructed", "band_mse"): torch.testing.assert_close(views[n][k], views[0][k])


@pytest.mark.parametrize("loss", ["ntxent", "byol"])
def test_a_contrastive_run_goes_on_from_its_state_on_the_device(loss, tmp_path, capsys):
    "Head, teacher, alarm and health panel"
    folders = iter((tmp_path/"a", tmp_path/"b"))
    def callbacks():
        (folder := next(folders)).mkdir()
        return [HealthLive(folder, share=1.)]
    whole,_ = resumed(lambda: contrastive_learner(pretext=dict(loss=loss)), callbacks)
    names = {type(cb).__name__ for cb in whole.cbs}
    assert names >= {"CollapseAlarm"} | ({"MomentumTeacher"} if loss == "byol" else set())
    assert all((tmp_path/o/"health.png").stat().st_size > 5000 for o in "ab")


# trackers with a store of their own

@pytest.fixture
def stores(tmp_path, monkeypatch):
    "What a tracker is made from, by name"
    monkeypatch.setenv("WANDB_MODE", "offline")
    return dict(mlflow=f"sqlite:///{tmp_path.as_posix()}/mlflow.db", wandb="", tensorboard="")


@pytest.mark.parametrize("name", ["mlflow", "wandb", "tensorboard"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_tracker_goes_on_from_its_state_on_the_device(name, stores, tmp_path, capsys):
    "Scalars, a figure and the state; and it waits for the device no more often than a fit without it"
    if name != "tensorboard": pytest.importorskip(name)
    folders = iter((tmp_path/"a", tmp_path/"b"))
    def callbacks():
        (folder := next(folders)).mkdir()
        return [make_tracker(name, folder, stores[name]), Draws()]
    whole,again = resumed(tiny_learner, callbacks)
    for folder in (tmp_path/"a", tmp_path/"b"):
        (kept,) = json.loads((folder/"tracker.json").read_text()).values()
        assert kept.get("lost", 0) == 0 and kept["step"] == whole.opt_steps == again.opt_steps


class Draws(TrainCallback):
    "Hand a figure of a tensor of the device to the trackers"
    order = 900
    def after_epoch(self):
        fig,ax = plt.subplots()
        ax.plot(fetch([self.learn.loss.detach()]))
        assert track_figure(self.learn, "loss", fig) == 1
        plt.close(fig)


# several processes: a group of one has all the pieces, and its collectives are those of the host

@pytest.fixture
def group(monkeypatch):
    "A group of one process"
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class OneOfOne:
    "What `join_ranks` gives, without a launcher"
    device,num_processes = DEVICE,1
    def __init__(self): self._models = []
    def prepare_model(self, model, evaluation_mode=False): return model


@pytest.mark.parametrize("engine", [dict(), dict(accumulate=2, ema_decay=.9), dict(mixup=.8, cutmix=1.)], ids=str)
def test_what_several_processes_do_goes_on_on_the_device(engine, group, capsys):
    "Sums, counts, turns in validation and facts that are compared, of a Learner whose tensors are elsewhere"
    whole,_ = resumed(lambda: tiny_learner(engine=engine), lambda: [Distribute(OneOfOne())])
    with simulated(): alone = quiet_fit(on_device(tiny_learner(engine=engine)), 2)
    assert not differences(host(whole.model.state_dict()), host(alone.model.state_dict()))


def test_rows_of_the_device_are_gathered_there(group):
    with simulated():
        rows = SimulatedTensor(torch.arange(6.).reshape(3, 2))
        (found,) = gather_rows(rows)
        assert found.device == DEVICE and torch.equal(host(found), host(rows))
        assert gather_with_grad(rows).device == DEVICE


def test_the_simulated_device_computes_what_the_host_computes():
    engine = dict(mixup=.8, cutmix=1., ema_decay=.9, accumulate=2)
    here = quiet_fit(tiny_learner(engine=engine), 2)
    with simulated(): there = quiet_fit(on_device(tiny_learner(engine=engine)), 2)
    assert not differences(dict(here.model.state_dict()), dict(host(there.model.state_dict())))


# what the walker and the simulated device see

class OldRecorder(TrainCallback):
    "A copy of a mistake: the restored mean stays where the file was read"
    order = 60
    def before_fit(self): self.mean = None
    def after_batch(self):
        if not self.learn.training: return
        loss = self.learn.loss.detach()
        self.mean = loss.clone() if self.mean is None else torch.lerp(self.mean, loss, .02)
    def state_dict(self): return dict(mean=self.mean)
    def load_state_dict(self, state): self.mean = state["mean"]


def test_the_walker_finds_a_restored_mean_that_stays_on_the_host(capsys):
    with pytest.raises(AssertionError, match=r"cbs\.OldRecorder\.mean on cpu"): resumed(tiny_learner, lambda: [OldRecorder()])


def test_the_step_after_that_restore_fails_on_the_device(capsys):
    with simulated():
        take = TakeState(4)
        quiet_fit(on_device(tiny_learner()), 2, OldRecorder(), take)
        with pytest.raises(RuntimeError, match="same device"): quiet_fit(on_device(tiny_learner()), 2, OldRecorder(), resume=take.taken)


def test_a_fake_tensor_alone_does_not_see_it():
    with FakeTensorMode(): assert torch.lerp(torch.zeros(()), torch.zeros((), device="cuda"), .02) is not None


class Deep(nn.Module):
    def __init__(self, t):
        super().__init__()
        self.register_buffer("kept", t)


@pytest.mark.parametrize("hide", [lambda t: t, lambda t: dict(a=[(t,)]), lambda t: {3:t}, Deep, lambda t: partial(max, t), lambda t: Deep(t).forward],
                         ids=["plain", "nested", "number", "module", "partial", "method"])
def test_the_walker_looks_into_everything_that_a_callback_holds(hide):
    class Holds(Callback): pass
    learn = tiny_learner(cbs=[Holds()])
    assert assert_devices(learn)
    learn.holds.kept = hide(torch.zeros((), device="meta"))
    with pytest.raises(AssertionError, match="cbs.Holds.kept"): assert_devices(learn)


def test_a_tensor_is_allowed_on_the_host_only_where_it_is_declared():
    learn = tiny_learner()
    with simulated():
        on_device(learn)
        assert assert_devices(learn)
        learn.recorder.losses.append(torch.zeros(()))
        assert assert_devices(learn)
        learn.recorder.other = torch.zeros(())
        with pytest.raises(AssertionError, match="StepRecorder.other on cpu"): assert_devices(learn)


def test_the_simulated_device_refuses_what_an_accelerator_refuses():
    with simulated():
        x,y = SimulatedTensor(torch.ones(3)),torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"): x + y
        with pytest.raises(RuntimeError, match="same device"): torch.lerp(torch.zeros(()), x.sum(), .5)
        with pytest.raises(TypeError, match="array"): x.numpy()
        assert (x*torch.tensor(2.)).tolist() == [2, 2, 2] # arithmetic takes a number of the host
        reads.clear()
        x.sum().item()
        x.cpu()
        assert sum(reads.values()) == 2


# what asks a trained Learner

def test_predictions_and_views_on_the_device_are_those_of_the_host():
    here = tiny_learner()
    want = predict_split(here, "valid"),predict_tta(here, "valid", "flip"),view_scores(here, "valid", "flip")
    with simulated():
        there = on_device(tiny_learner())
        got = predict_split(there, "valid"),predict_tta(there, "valid", "flip"),view_scores(there, "valid", "flip")
        assert all(o.device.type == "cpu" for o in got[0])
    for a,b in zip(want[0] + want[1], got[0] + got[1]): torch.testing.assert_close(a, b)
    assert [o["view"] for o in want[2]] == [o["view"] for o in got[2]]


def test_what_comes_back_from_other_processes_is_on_the_device(capsys):
    engine = dict(ema_decay=.9, mixup=.8)
    with simulated():
        learn = quiet_fit(on_device(tiny_learner(engine=engine, precision="fp16")), 1)
        state = {**through_a_file(learn.training_state()), "metric_names":list(learn.recorder.metric_names)}
        other = on_device(tiny_learner(engine=engine, precision="fp16"))
        other.bring_back(state)
        assert_devices(other)
        assert not differences(host(learn.model.state_dict()), host(other.model.state_dict()))
        quiet_fit(other, 1, Walk())


def test_a_trial_puts_everything_back_on_the_device(capsys):
    with simulated():
        learn = on_device(tiny_learner(engine=dict(ema_decay=.9)))
        learn.dry_run()
        assert_devices(learn)


# steps of fake tensors: nothing outside the adapter reads a value. They are of the host, for the backward pass of fake CUDA tensors needs a driver

class Ready(From):
    "Batches that are there before tensors are fake"
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.made = list(super().__iter__())
    def __iter__(self): yield from self.made


@pytest.mark.parametrize("engine", [dict(), dict(ema_decay=.9), dict(accumulate=2), dict(mixup=.8, cutmix=1.)], ids=str)
def test_steps_run_on_fake_tensors(engine, monkeypatch):
    "What reads values is one function of the adapter, and here it gives zeros"
    monkeypatch.setattr(record, "fetch", lambda values: [0. if isinstance(v, Tensor) else v for v in values])
    monkeypatch.setattr(loop, "seed_device", lambda seed, device: None)
    x,y = torch.randn(16, 3, 8, 8),torch.randint(0, 2, (16,))
    learn = task_learner(x, y, OneClass(["a", "b"]), TinyHeads(), *train_callbacks(**engine), bs=8, loader=Ready)
    learn.train_eval.before_fit = lambda: vars(learn).update(train_iter=0, pct_train=0.) # fastai's also moves the model, and fake tensors cannot be swapped
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for m in learn.model.modules():
            for k,p in m._parameters.items():
                if p is not None: m._parameters[k] = nn.Parameter(mode.from_tensor(p.detach()))
        learn.create_opt()
        with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert learn.opt_steps == 4//engine.get("accumulate", 1)
    assert all(isinstance(p, FakeTensor) for p in learn.model.parameters())


# for real, where a GPU is at hand

@cuda
@pytest.mark.parametrize("engine", [dict(), dict(ema_decay=.9), dict(mixup=.8, cutmix=1., accumulate=2, ema_decay=.9)], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_on_cuda_ends_with_the_same_bits(engine, precision, capsys):
    def make():
        learn = tiny_learner(engine=engine, device="cuda", precision=precision, augment="crop_flip")
        learn.dls.to(torch.device("cuda"))
        return learn
    take,walk = TakeState(4),Walk()
    whole = quiet_fit(make(), 2, take)
    again = quiet_fit(make(), 2, walk, resume=take.taken)
    assert walk.looked
    assert not differences(dict(whole.model.state_dict()), dict(again.model.state_dict()))


@cuda
@pytest.mark.parametrize("cls", [o for o in own_callbacks() if o.__name__ not in ELSEWHERE], ids=lambda o: o.__name__)
def test_a_callback_goes_on_from_its_state_on_cuda(cls, tmp_path, capsys):
    own = cls.__name__ in {type(cb).__name__ for cb in tiny_learner().cbs}
    folders = iter((tmp_path/"a", tmp_path/"b"))
    def callbacks():
        (folder := next(folders)).mkdir()
        return [] if own else [make_callback(cls, folder)]
    take,walk = TakeState(4),Walk()
    whole = quiet_fit(tiny_learner(device="cuda"), 2, *callbacks(), take)
    again = quiet_fit(tiny_learner(device="cuda"), 2, *callbacks(), walk, resume=take.taken)
    assert not differences(dict(whole.model.state_dict()), dict(again.model.state_dict()))
