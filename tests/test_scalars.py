"Names of scalars as a guide has them, and scores within an epoch"
import json
import math

import pytest
import torch
from scalar_helpers import fit, read

from vitnb.callback.record import StepRecorder
from vitnb.callback.track import make_tracker
from vitnb.experiment.recipes import resolve, run_args
from vitnb.learner.core import run_callbacks
from vitnb.testing import differences, tiny_fit, tiny_learner


@pytest.mark.parametrize("family,name,names", [("densenet", "cifar10", {"Loss/train", "Loss/val", "Accuracy/train", "Accuracy/val", "LR"}),
                                               ("swin", "tiny_imagenet", {"train/loss", "train/accuracy", "train/learning_rate", "val/loss", "val/accuracy"})])
def test_a_run_of_a_guide_writes_what_its_dashboards_read(tmp_path, family, name, names):
    "The names of the guides' tables of logged metrics"
    given = run_args(resolve(family, name, {}))["scalar_names"]
    learn,got = fit(tmp_path/"guide", scalar_names=given)
    assert names <= got.keys() and not set(given) & got.keys()
    other,plain = fit(tmp_path/"plain")
    assert not differences([got.get(given.get(k, k)) for k in plain if "system" not in k and "time" not in k], [plain[k] for k in plain if "system" not in k and "time" not in k])


def test_a_name_that_nothing_has_is_refused(tmp_path):
    for names,says in (({"train/los":"L"}, "did you mean 'train/loss'"), ({"train/loss":"val/loss"}, "two scalars the name 'val/loss'")):
        with pytest.raises(RuntimeError, match=says): fit(tmp_path, scalar_names=names)


def test_renamed_scalars_go_on_after_a_kill(tmp_path):
    "Nothing twice, nothing missing"
    for epochs in (1, 2):
        learn = tiny_learner()
        learn.n_epoch = 2
        learn.fit(epochs, cbs=run_callbacks(tmp_path, tracker="tensorboard", scalar_names={"train/loss":"Loss/train", "val/loss":"Loss/val"}), resume="auto" if epochs == 2 else None,
                  allow_changes=True)
    got = read(tmp_path)
    assert [n for n,_ in got["Loss/train"]] == list(range(1, learn.opt_steps + 1)) and len(got["Loss/val"]) == 2 and "train/loss" not in got


def test_accuracy_in_training_is_the_mean_of_the_epoch_so_far(tmp_path):
    learn,got = fit(tmp_path)
    n = len(learn.dls.train)
    assert [step for step,_ in got["train/accuracy"]] == list(range(1, 2*n + 1))
    assert [v for step,v in got["train/accuracy"] if step%n == 0] == pytest.approx([row["train_accuracy"] for row in learn.recorder.rows])
    first = learn.recorder.steps[0]["train_accuracy"]
    assert 0 <= first <= 1 and first*16 == pytest.approx(round(first*16)), "the first step's is that of its 16 images"


def test_steps_with_scores_survive_a_checkpoint():
    learn = tiny_learner()
    learn.fit(1)
    learn.recorder.steps.columns["train_accuracy"][1] = float("nan") # a step of unknown entries only
    other = StepRecorder()
    other.load_state_dict(learn.recorder.state_dict())
    assert other.steps == learn.recorder.steps
    old = learn.recorder.state_dict()
    old["steps"] = {k:old["steps"][k] for k in ("step", "lr", "loss")} # of a version without scores
    other.load_state_dict(old)
    assert other.steps == [{k:step[k] for k in ("step", "lr", "loss")} for step in learn.recorder.steps]


# ---------------------------------------------------------------------------------------------- columns

def test_the_norm_of_the_gradient_is_a_column_where_it_is_clipped():
    seen = []
    def spy(learn):
        from fastai.callback.core import Callback
        class Norms(Callback):
            order = 12
            def before_step(self): seen.append(self.learn.grad_norm.item())
        return Norms()
    learn = tiny_learner(clip=.5)
    learn.fit(1, cbs=spy(learn))
    assert learn.recorder.rows[0]["grad_norm"] == pytest.approx(sum(seen)/len(seen)) and max(seen) > .5, "before clipping"
    assert "grad_norm" in learn.columns and "grad_norm" not in tiny_learner().columns


def test_the_norm_goes_on_after_a_kill(tmp_path):
    from test_resume import cut_and_resume
    whole,again = tiny_fit(tmp_path/"a", clip=.5),cut_and_resume(tmp_path/"b", 9, clip=.5)
    assert not differences(whole.recorder.rows, again.recorder.rows, ["seconds"]) and not differences(whole.recorder.steps, again.recorder.steps)


def test_steps_that_overflow_are_counted():
    "With fp16 the first scales are too large, or a gradient is made to overflow"
    learn = tiny_learner(precision="fp16", clip=1.)
    assert "skipped_steps" in learn.columns and "skipped_steps" not in tiny_learner().columns
    learn.scaler = torch.amp.GradScaler("cpu", init_scale=2.**120, growth_interval=1000)
    learn.fit(1)
    row = learn.recorder.rows[0]
    n = len(learn.dls.train)
    assert row["skipped_steps"] == n - learn.opt_steps > 0
    assert row["grad_norm"] is None or math.isfinite(row["grad_norm"]), "an overflow is no norm"


def test_a_tracker_of_a_users_own_gets_the_names(tmp_path):
    tracker = make_tracker("tensorboard", tmp_path, scalar_names={"train/lr":"LR"})
    assert tracker.scalar_names == {"train/lr":"LR"} and make_tracker("tensorboard", tmp_path).scalar_names == {}
