"TensorBoard's files"
import json

import pytest
from fastai.callback.core import Callback
from tracker_stores import make, read_tensorboard

from vitnb.callback.ema import EMACallback
from vitnb.callback.tensorboard import TensorBoard
from vitnb.callback.track import make_tracker


def test_averaged_weights_have_the_same_names(tmp_path):
    learn = make([EMACallback(.9)])
    learn.fit(1, cbs=TensorBoard(tmp_path/"tensorboard"))
    assert {"val/loss_ema", "val/accuracy_ema", "val/f1_macro_ema"} <= read_tensorboard(tmp_path, "").keys()


def test_tensorboard_that_cannot_start(tmp_path):
    (tmp_path/"tensorboard").write_text("a file in the way")
    with pytest.raises(RuntimeError, match="the tensorboard tracker could not start"): make().fit(1, cbs=make_tracker("tensorboard", tmp_path, ""))


def test_a_learner_pickled_in_training_carries_no_listener(tmp_path):
    seen = []
    class Pickle(Callback):
        order = 300
        def after_batch(self):
            if self.training: seen.append((len(self.recorder.listeners), self.recorder.__getstate__()["listeners"]))
    make().fit(1, cbs=[TensorBoard(tmp_path), Pickle()])
    assert seen[0] == (1, [])


def test_the_table_of_runs_has_parameters_and_a_name_that_says_what_differs(tmp_path):
    "As TensorBoard's own hparams plugin reads it; a resumed run does not write it twice"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2
    run_dir = tmp_path/"20260101-120000"
    run_dir.mkdir()
    (run_dir/"params.json").write_text(json.dumps(dict(lr=.1, arch="swin", betas=[.9, .99], clip=None)))
    (run_dir/"status.json").write_text(json.dumps(dict(status="running", given=dict(lr=.1, resume="never"))))
    make().fit(1, cbs=make_tracker("tensorboard", run_dir, ""))
    metadata = EventAccumulator(str(run_dir/"tensorboard")).Reload().SummaryMetadata("_hparams_/session_start_info")
    start = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info
    assert start.group_name == "20260101-120000 lr=0.1" and start.hparams["lr"].number_value == .1
    assert start.hparams["arch"].string_value == "swin" and start.hparams["betas"].string_value == "[0.9, 0.99]"
