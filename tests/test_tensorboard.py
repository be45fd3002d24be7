"TensorBoard's files"
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
