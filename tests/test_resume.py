"Exact resume: kills at random moments, what callbacks see of them, and the same through `vitnb run`"
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback, TerminateOnNaNCallback
from tiny_tasks import weights

from vitnb.callback.checkpoint import load_checkpoint, newest_state
from vitnb.exactness import MOMENTS, assert_exact_resume
from vitnb.experiment.run import read_json
from vitnb.learner.core import run_callbacks
from vitnb.testing import Spy, differences, tiny_fit, tiny_learner

CONFIGS = dict(
    adamw_ema_mix   = dict(engine=dict(mixup=.8, cutmix=1., ema_decay=.9)),
    sgd_plateau_stop= dict(epochs=8, patience=2, optimizer="sgd", lr=.2, schedule="plateau", schedule_kw=dict(patience=0, factor=.3)),
    accumulate_bf16 = dict(engine=dict(accumulate=2), precision="bf16", steps=2),
    workers         = dict(workers=2),
)


class Die(Exception): pass


class DieAt(Callback):
    "Raise in the middle of training; checkpoints are as a kill at this point would leave them"
    order = 190
    def __init__(self, step): self.step = step
    def after_batch(self):
        if self.training and self.opt_steps == self.step: raise Die("here")


def cut_and_resume(folder, step, **kw):
    "Train until `step`, then go on with a new learner"
    cbs = kw.pop("cbs", lambda: [])
    with pytest.raises(Die): tiny_fit(folder, cbs=[*cbs(), DieAt(step)], **kw)
    return tiny_fit(folder, cbs=cbs(), **kw)


def state(learn): return dict(model=learn.model.state_dict(), opt=learn.opt.opt.state_dict())


def _nan(self): self.learn.pred = self.learn.pred*float("nan")


# ---------------------------------------------------------------------------------------------- kills

@pytest.mark.parametrize("config", CONFIGS)
def test_two_kills(warm, config):
    report = assert_exact_resume(tiny_fit, kills=2, params=CONFIGS[config], seed=1, warm=warm)
    assert report["kills"] == 2 and report["identical"] == report["runs"] and report["corrupt"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_ten_runs_killed_once(warm, config):
    report = assert_exact_resume(tiny_fit, kills=10, params={"epochs":4, **CONFIGS[config]}, seed=7, warm=warm, once=True)
    print(f"\n{config}: {report}")
    assert report["kills"] == 10 and report["identical"] == report["runs"] >= 10 and report["corrupt"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_a_run_killed_again_and_again(warm, config):
    report = assert_exact_resume(tiny_fit, kills=10, params={"epochs":4, **CONFIGS[config]}, seed=8, warm=warm)
    print(f"\n{config}: {report}")
    assert report["kills"] == 10 and report["identical"] == report["runs"] and report["corrupt"] == 0


def test_batchnorm_and_its_average(warm):
    report = assert_exact_resume(tiny_fit, kills=2, params=dict(arch="densenet_micro", model_kw=dict(growth_rate=4, block_config=(1, 1)), epochs=2,
                                                                engine=dict(ema_decay=.9)), warm=warm)
    assert report["identical"] == report["runs"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("nth", [1, 4])
def test_killed_while_it_writes(warm, tmp_path, moment, nth):
    "Whole files only, and none but the unfinished one beside them"
    (d := tmp_path/"run").mkdir()
    status,_ = warm.run(tiny_fit, d, dict(epochs=2), moment=moment, nth=nth)
    assert status == -signal.SIGKILL
    for p in d.rglob("*.pth"): load_checkpoint(p)
    for p in d.rglob("*.json"): json.loads(p.read_text())
    status,_ = warm.run(tiny_fit, d, dict(epochs=2))
    assert status == 0 and len(json.loads((d/"history.json").read_text())) == 2


def test_the_proof_sees_a_difference(warm):
    "A callback whose state is kept from the checkpoint"
    def train(folder):
        class Noise(Callback):
            def __init__(self): self.steps = 0
            def before_batch(self): self.steps += self.training
            def after_step(self):
                if self.steps > 4: self.opt.set_hypers(lr=1e-2) # depends on steps since the process began
            def after_pred(self):
                if self.training and self.steps > 4: self.learn.pred = self.pred*.5
            def state_dict(self): return {}
            def load_state_dict(self, s): pass
        return tiny_fit(folder, cbs=[Noise()])
    says = "(?s)killed at .*ended differently.*values differ"
    with pytest.raises(AssertionError, match=says): assert_exact_resume(train, warm=warm, at=[("half", 3)]) # two states are whole by then: no clock decides whether there is one


def test_kills_at_given_files_are_checked(warm):
    "A name of a moment, a number, and a file that does not come"
    for at,says in (([("hald", 1)], "did you mean 'half'"), ([("half", 0)], "files are counted from 1"), ([("half", 1000)], "fewer files")):
        with pytest.raises(ValueError, match=says): assert_exact_resume(tiny_fit, warm=warm, params=dict(epochs=1), at=at)
    report = assert_exact_resume(tiny_fit, warm=warm, params=dict(epochs=2), at=[("half", 1), ("renamed", 4), ("half", 2)])
    assert report["kills"] == report["at_a_file"] == 3 and report["identical"] == report["runs"] == 1


# ---------------------------------------------------------------------------------------------- what callbacks see

def test_no_epoch_is_seen_twice(tmp_path):
    "A kill in the second epoch: the third is new, the first is not repeated, the second goes on in its middle"
    spy,n = Spy(),len(tiny_learner().dls.train)
    with pytest.raises(Die): tiny_fit(tmp_path, epochs=3, cbs=[DieAt(n+4)])
    tiny_fit(tmp_path, epochs=3, cbs=[spy])
    assert [o[1] for o in spy.seen if o[0] == "after_epoch"] == [1, 2]
    batches = [o[1:] for o in spy.seen if o[0] == "before_backward"]
    assert spy.count("before_step") == 3*n - (n+3), "steps after the last checkpoint are made again, no others"
    assert batches[0][0] == 1


TRACKERS = dict(save=lambda d: SaveModelCallback(monitor="accuracy", fname=str(d/"best")), stop=lambda d: EarlyStoppingCallback(monitor="valid_loss", patience=1),
                nan=lambda d: TerminateOnNaNCallback())


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("where", [4, "end of the first epoch"])
def test_trackers_of_fastai(tmp_path, name, where):
    n = len(tiny_learner().dls.train)
    kw = dict(epochs=4, optimizer="sgd", lr=.1, schedule="constant")
    whole = tiny_fit(tmp_path/"whole", cbs=[TRACKERS[name](tmp_path)], **kw)
    again = cut_and_resume(tmp_path/"cut", n + (4 if where == 4 else 1), cbs=lambda: [TRACKERS[name](tmp_path)], **kw)
    assert not differences(state(whole), state(again))
    assert not differences(whole.recorder.rows, again.recorder.rows, ["seconds"])


def test_the_average_keeps_its_count(tmp_path):
    kw = dict(engine=dict(ema_decay=.9))
    whole,again = tiny_fit(tmp_path/"a", **kw),cut_and_resume(tmp_path/"b", 8, **kw)
    assert whole.ema.n_updates == again.ema.n_updates == whole.opt_steps
    assert not differences(dict(whole.ema.module.state_dict()), dict(again.ema.module.state_dict()))


class Worse(Callback):
    "From the second epoch on the recorded accuracy is worse than before"
    order = 55
    def after_epoch(self): self.recorder.rows[-1]["accuracy"] = 1/(1 + self.epoch)


def test_the_best_is_remembered(tmp_path):
    "A resumed run must not take its first epoch for the best"
    again = cut_and_resume(tmp_path, 9, cbs=lambda: [Worse()])
    best = load_checkpoint(tmp_path/"checkpoints/best_model.pth")
    assert best["epoch"] == 1 and best["best"] == 1. and again.recorder.rows[-1]["epoch"] == 3


def test_the_history_goes_on(tmp_path):
    whole,again = tiny_fit(tmp_path/"a"),cut_and_resume(tmp_path/"b", 9)
    a,b = (json.loads((tmp_path/d/"history.json").read_text()) for d in "ab")
    assert [r["epoch"] for r in b] == [1, 2, 3] and not differences(a, b, ["seconds"])
    assert not differences(whole.recorder.steps, again.recorder.steps)
    lines = (tmp_path/"b/history.csv").read_text().splitlines()
    assert len(lines) == 4


@pytest.mark.parametrize("change,says", [(dict(lr=3e-3), r"training.lr: 0.001 -> 0.003"), (dict(seed=4), r"seed: 3 -> 4"), (dict(epochs=5, seed=4), r"parameters \(seed: 3 -> 4; training.seed"),
                                         (dict(bs=20), r"training.bs: 16 -> 20"), (dict(augment="none"), r"training.augment"),
                                         (dict(schedule="constant"), r"training.schedule: 'warmup_cosine' -> 'constant'"),
                                         (dict(limit=9), r"training.data")], ids=str)
def test_other_parameters_are_refused(tmp_path, change, says):
    with pytest.raises(Die): tiny_fit(tmp_path, cbs=[DieAt(4)])
    before = (tmp_path/"checkpoints/last_model.pth").read_bytes()
    with pytest.raises(ValueError, match=says) as e: tiny_fit(tmp_path, **change)
    assert "resume='never'" in str(e.value) and (tmp_path/"checkpoints/last_model.pth").read_bytes() == before


ENGINES = [(dict(), dict(mixup=.8), "mix"), (dict(mixup=.8), dict(mixup=.4), "mix"), (dict(), dict(accumulate=2), "accumulate"), (dict(), dict(ema_decay=.9), "ema")]


@pytest.mark.parametrize("old,new,says", ENGINES, ids=str)
def test_another_engine_is_refused(tmp_path, old, new, says):
    with pytest.raises(Die): tiny_fit(tmp_path, engine=old, cbs=[DieAt(4)], steps=2)
    with pytest.raises(ValueError, match=f"(?i){says}"): tiny_fit(tmp_path, engine=new, steps=2)


def test_precision_change_is_refused(tmp_path):
    with pytest.raises(Die): tiny_fit(tmp_path, cbs=[DieAt(4)])
    with pytest.raises(ValueError, match="precision"): tiny_fit(tmp_path, precision="bf16")


def test_a_change_can_be_accepted(tmp_path):
    with pytest.raises(Die): tiny_fit(tmp_path, cbs=[DieAt(4)])
    learn = tiny_learner(weight_decay=.5)
    learn.fit(3, cbs=run_callbacks(tmp_path, tracker="none"), resume="auto", allow_changes=True)
    assert len(learn.recorder.rows) == 3


# ---------------------------------------------------------------------------------------------- longer, shorter, otherwise

def rates(learn): return [step["lr"] for step in learn.recorder.steps]


SCHEDULES = dict(cosine={}, warmup_cosine=dict(schedule_kw=dict(warmup_epochs=.5)), one_cycle={}, multistep={}, constant={})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_finished_run_is_made_longer(tmp_path, capsys, schedule):
    "Two epochs that go on to four: the second half of the schedule of four"
    kw = dict(schedule=schedule, optimizer="sgd", lr=.1, **SCHEDULES[schedule])
    tiny_fit(tmp_path, epochs=2, **kw)
    longer,whole = tiny_fit(tmp_path, epochs=4, **kw),tiny_fit(tmp_path/"whole", epochs=4, **kw)
    n = len(rates(whole))//2
    assert rates(longer)[n:] == rates(whole)[n:] and max(rates(longer)[n:]) > 1e-4
    assert [row["epoch"] for row in longer.recorder.rows] == [1, 2, 3, 4]
    assert "goes on as if that had been its length" in capsys.readouterr().out
    if schedule == "constant": assert not differences(state(whole), state(longer)), "where the rate says nothing of the length, no bit does"


def test_a_warm_restart_begins_the_schedule_anew(tmp_path):
    "Also where the extension is killed: it goes on with its own cycle, and with the bits of one that was not"
    kw = dict(schedule="cosine", optimizer="sgd", lr=.1)
    for folder in "ab": tiny_fit(tmp_path/folder, epochs=2, **kw)
    kw["schedule_kw"] = dict(warm_restart=True)
    whole = tiny_fit(tmp_path/"a", epochs=4, **kw)
    n = len(rates(whole))//2
    np.testing.assert_allclose(rates(whole)[n:], [.1*(1 + np.cos(np.pi*i/n))/2 for i in range(n)])
    again = cut_and_resume(tmp_path/"b", n+4, epochs=4, **kw)
    assert rates(again) == rates(whole) and not differences(state(whole), state(again))
    third = tiny_fit(tmp_path/"b", epochs=6, **kw)
    assert rates(third)[2*n] == .1


def test_an_extension_that_is_killed_goes_on_exactly(tmp_path):
    kw = dict(engine=dict(mixup=.8, ema_decay=.9))
    for folder in "ab": tiny_fit(tmp_path/folder, epochs=2, **kw)
    whole,again = tiny_fit(tmp_path/"a", epochs=4, **kw),cut_and_resume(tmp_path/"b", 17, epochs=4, **kw)
    assert not differences(state(whole), state(again)) and not differences(whole.recorder.rows, again.recorder.rows, ["seconds"])


def test_a_run_is_not_made_shorter_than_it_is(tmp_path):
    tiny_fit(tmp_path, epochs=2)
    with pytest.raises(ValueError, match="in its epoch 2 already, and 1 epochs were asked for"): tiny_fit(tmp_path, epochs=1)


@pytest.mark.parametrize("change", [dict(lr=.03), dict(schedule="constant"), dict(weight_decay=.5), dict(opt_kw=dict(momentum=.5))], ids=str)
def test_what_is_asked_for_wins(tmp_path, change):
    "A state that is taken with other parameters: peak, schedule, decay and momentum are those of the call"
    kw = dict(schedule="cosine", optimizer="sgd", lr=.1, weight_decay=.05)
    with pytest.raises(Die): tiny_fit(tmp_path, cbs=[DieAt(10)], **kw)
    learn,plain = tiny_learner(**{**kw, **change}),tiny_learner(**{**kw, **change})
    learn.fit(3, cbs=run_callbacks(tmp_path, tracker="none"), resume="auto", allow_changes=True)
    plain.fit(3)
    done = learn.opt_steps - len(learn.recorder.steps[10:])
    assert rates(learn)[done:] == rates(plain)[done:]
    def numbers(a): return [(g["weight_decay"], g["momentum"]) for g in a.opt.opt.param_groups]
    assert numbers(learn) == numbers(plain)


def test_a_plateau_keeps_its_count_and_takes_patience_from_the_call(tmp_path):
    kw = dict(schedule="plateau", optimizer="sgd", lr=.1, schedule_kw=dict(patience=0, factor=.5))
    tiny_fit(tmp_path, epochs=2, **kw)
    learn = tiny_fit(tmp_path, epochs=3, **{**kw, "lr":.2, "schedule_kw":dict(patience=7, factor=.25)})
    saved = load_checkpoint(tmp_path/"checkpoints/last_model.pth")["training_state"]["callbacks"]["ScheduleLR"]["schedule"]
    assert len(learn.recorder.rows) == 3 and (saved["patience"], saved["factor"], saved["peak"]) == (7, .25, .2)


def test_a_run_that_stopped_early_trains_on_with_more_patience(tmp_path, capsys):
    kw = dict(optimizer="sgd", lr=1e-9, schedule="constant") # nothing improves
    stopped = tiny_fit(tmp_path, epochs=4, patience=0, **kw)
    assert len(stopped.recorder.rows) < 4
    assert len(tiny_fit(tmp_path, epochs=6, patience=0, **kw).recorder.rows) == len(stopped.recorder.rows)
    assert "early stopping has ended this run" in capsys.readouterr().out
    assert len(tiny_fit(tmp_path, epochs=6, patience=9, **kw).recorder.rows) == 6


def test_no_clock_and_no_display_is_in_a_state(tmp_path, monkeypatch):
    "Two runs at other times of the day leave the same states, but for how long things took"
    def callbacks(folder):
        tiny_fit(folder, epochs=2, engine=dict(mixup=.8, ema_decay=.9), patience=3, run_kw=dict(max_hours=1, keep_top_k=1))
        return load_checkpoint(folder/"checkpoints/last_model.pth")["training_state"]
    first = callbacks(tmp_path/"a")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 1e6)
    second = callbacks(tmp_path/"b")
    assert not differences(first, second, ["seconds", "TimeLimit"])
    assert first["callbacks"]["LiveView"] == first["callbacks"]["StopOnSignal"] == {}


def test_a_resumed_run_has_a_figure(tmp_path):
    n = len(tiny_learner().dls.train)
    figure = tmp_path/"curves.png"
    def fit(*cbs):
        learn = tiny_learner()
        learn.progress.plot = True
        learn.progress.file = figure
        learn.fit(3, cbs=[*run_callbacks(tmp_path, every_n_steps=3, tracker="none"), *cbs], resume="auto")
    with pytest.raises(Die): fit(DieAt(n+4))
    figure.unlink(missing_ok=True)
    fit()
    assert figure.is_file()


@pytest.mark.parametrize("how", ["half", "garbage", "empty"])
def test_a_broken_file_is_passed_over(tmp_path, capsys, how):
    "The newest readable state counts, here that of the first epoch"
    whole = tiny_fit(tmp_path/"a", run_kw=dict(every_n_epochs=1))
    with pytest.raises(Die): tiny_fit(tmp_path/"b", run_kw=dict(every_n_epochs=1), cbs=[DieAt(whole.opt_steps//3 + 4)])
    f = tmp_path/"b/checkpoints/last_model.pth"
    data = f.read_bytes()
    f.write_bytes(dict(half=data[:len(data)//2], garbage=b"no checkpoint "*99, empty=b"")[how])
    again = tiny_fit(tmp_path/"b", run_kw=dict(every_n_epochs=1))
    assert "passed over" in (out := capsys.readouterr().out) and "epoch 2, batch 1" in out
    assert not differences(state(whole), state(again))


def test_pickled_code_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self): return Path.touch, (tmp_path/"ran",)
    (tmp_path/"checkpoints").mkdir()
    torch.save(dict(training_state=Evil()), tmp_path/"checkpoints/last_model.pth")
    assert newest_state(tmp_path/"checkpoints") is None and not (tmp_path/"ran").exists()


def test_a_finished_run_called_again(tmp_path):
    "Nothing is trained again, and everything is as the end left it"
    kw = dict(engine=dict(ema_decay=.9), patience=5)
    whole = tiny_fit(tmp_path, **kw)
    spy = Spy()
    again = tiny_fit(tmp_path, cbs=[spy], **kw)
    assert spy.count("before_batch") == 0
    assert not differences(state(whole), state(again)) and not differences(whole.recorder.rows, again.recorder.rows)


# ---------------------------------------------------------------------------------------------- vitnb run

PARAMS = "tag = ''  # folder\nseed = 3  # of all\nepochs = 3  # passes\nmax_hours = None  # limit\nresume = 'auto'  # or never"
RUN = "from vitnb.experiment.run import Run\nrun = Run('train_tiny', globals(), tag, resume)"
TRAIN = """
import hashlib, time
from pathlib import Path
from fastai.callback.core import Callback
from vitnb.callback.checkpoint import load_checkpoint
from vitnb.testing import tiny_fit
class Hold(Callback):
    "In the sixth batch of this process, as long as the file `hold` is there and no signal came"
    n = 0
    def after_pred(self):
        self.n += self.training
        while self.n > 5 and Path("hold").exists():
            if any(getattr(cb, "got", None) for cb in self.learn.cbs): break
            time.sleep(.02)
    def state_dict(self): return {}
    def load_state_dict(self, s): pass
learn = tiny_fit(run.dir, epochs=epochs, seed=seed, engine=dict(mixup=.8, ema_decay=.9), cbs=[Hold()], run_kw=dict(max_hours=max_hours),
                 resume="auto" if run.resumed else "never")
"""
SCORE = "bits = b''.join(v.numpy().tobytes() for v in learn.model.state_dict().values())\nrun.finish(weights=hashlib.sha256(bits).hexdigest(), steps=learn.opt_steps)"


def score(learn):
    import hashlib
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in learn.model.state_dict().values())).hexdigest()


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    for k in [k for k in os.environ if k.startswith("VITNB_")]: monkeypatch.delenv(k)
    (tmp_path/"settings.ini").write_text("[vitnb]\noutputs_path = out\ndevice = cpu\n")
    cells = [dict(cell_type="code", id=f"c{i}", execution_count=None, outputs=[], source=s, metadata=dict(tags=["parameters"]) if i == 0 else {})
             for i,s in enumerate([PARAMS, RUN, TRAIN, SCORE])]
    meta = dict(kernelspec=dict(name="python3", language="python", display_name="python3"))
    (tmp_path/"train_tiny.ipynb").write_text(json.dumps(dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=5)))
    return tmp_path


def start(workspace, *params):
    args = [o for k,v in params for o in ("-p", k, str(v))]
    return subprocess.Popen([sys.executable, "-W", "ignore", "-m", "vitnb.experiment.cli", "run", "train_tiny.ipynb", *args], cwd=workspace,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS":"1"})


def the_run(workspace):
    (d,) = (workspace/"out"/"train_tiny").iterdir()
    return d


def wait_for(test, p, seconds=500):
    end = time.monotonic() + seconds
    while not test():
        assert p.poll() is None, p.communicate()[0]
        assert time.monotonic() < end, "it did not come"
        time.sleep(.02)


def checkpointed(workspace, since=0): return lambda: any(p.stat().st_mtime > since for p in workspace.glob("out/train_tiny/*/checkpoints/last_model.pth"))


def finish(workspace, p, code):
    out = p.communicate(timeout=500)[0]
    assert p.returncode == code, out
    return out, read_json(the_run(workspace)/"status.json")


def signal_to_all(p, number):
    "What a queue does: every process of a job gets it, the one that records the notebook and the kernel too, and these pass it on"
    for process in [psutil.Process(p.pid), *psutil.Process(p.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess): process.send_signal(number)


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), pytest.param(signal.SIGUSR2, 75, marks=pytest.mark.slow)])
@pytest.mark.timeout(1800) # three starts of a kernel: 30 s, and 140 s on a machine with four times its work
def test_stopped_and_called_again(workspace, tmp_path, number, code):
    "A signal to all of a job, then the same command: one folder, one history, the bits of a run that nobody touched"
    (workspace/"hold").touch() # or a machine that is busy with other things sends the signal when all is done
    p = start(workspace)
    wait_for(checkpointed(workspace), p)
    signal_to_all(p, number)
    out,status = finish(workspace, p, code)
    assert f"{number.name} received" in out and "run the same command again" in out and status["status"] == "stopped"
    assert (the_run(workspace)/"checkpoints/checkpoint_time_limit.pth").is_file() and (the_run(workspace)/"train_tiny.ipynb").is_file()
    (workspace/"hold").unlink()
    out,status = finish(workspace, start(workspace), 0)
    assert "resuming after" in out and status["status"] == "finished"
    whole = tiny_fit(tmp_path/"whole", engine=dict(mixup=.8, ema_decay=.9))
    assert read_json(the_run(workspace)/"result.json") == dict(weights=score(whole), steps=whole.opt_steps)
    assert not differences(json.loads((the_run(workspace)/"history.json").read_text()), whole.recorder.rows, ["seconds"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_interrupted_and_killed(workspace, tmp_path):
    "SIGINT, a time limit, SIGKILL of the training process, then to the end"
    (workspace/"hold").touch()
    p = start(workspace)
    wait_for(checkpointed(workspace), p)
    p.send_signal(signal.SIGINT)
    out,status = finish(workspace, p, 130)
    assert "SIGINT received" in out and status["status"] == "stopped"
    out,status = finish(workspace, start(workspace, ("max_hours", 1e-6)), 75)
    assert "resuming after" in out and "time limit" in out and status["status"] == "stopped"
    now = time.time()
    p = start(workspace)
    wait_for(checkpointed(workspace, now), p)
    os.kill(read_json(the_run(workspace)/"status.json")["pid"], signal.SIGKILL)
    out,status = finish(workspace, p, 1)
    assert status["status"] == "failed"
    (workspace/"hold").unlink()
    out,status = finish(workspace, start(workspace), 0)
    whole = tiny_fit(tmp_path/"whole", engine=dict(mixup=.8, ema_decay=.9))
    assert read_json(the_run(workspace)/"result.json") == dict(weights=score(whole), steps=whole.opt_steps)
    assert not differences(json.loads((the_run(workspace)/"history.json").read_text()), whole.recorder.rows, ["seconds"])


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
