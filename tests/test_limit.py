"Limits: what stops a fit says why, and leaves nothing behind"
import pytest
import torch
from fastai.callback.core import Callback

from vitnb.testing import tiny_learner


def test_anomaly_mode_names_the_operation_and_goes():
    class Bad(Callback):
        def after_loss(self):
            if self.training: self.learn.loss_grad = self.loss_grad + (self.pred.sum()*0).sqrt()*0
    with pytest.raises(RuntimeError, match="SqrtBackward0"): tiny_learner(engine=dict(anomaly=True), cbs=[Bad()]).fit(1)
    assert not torch.is_anomaly_enabled()
