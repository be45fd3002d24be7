"What a model without labels says of a sample"
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from vitnb.callback.answers import pretext_columns
from vitnb.callback.pretext import Pretext
from vitnb.data.sample import Batch


class Two(nn.Module):
    def forward(self, x): return dict(low=x.mean((1, 2, 3)).half(), count=torch.ones(len(x), dtype=torch.long), words="not a tensor")


def test_each_tensor_is_a_column_of_single_precision():
    said = pretext_columns(Pretext(), SimpleNamespace(model=Two()), Batch(dict(image=torch.ones(3, 1, 2, 2))))
    assert list(said) == ["low", "count"] and said["low"][0].dtype == np.float32 and len(said["count"]) == 3


def test_a_masked_autoencoders_learner_says_what_its_run_says(runs):
    folder,learn,rows = runs["cubes"]
    said = learn.predict(folder/"new_000.npy")
    assert said.keys() == rows[0].keys() - {"id"}
    for name in ("mse_masked", "mse_masked_reflectance"): assert said[name] == pytest.approx(rows[0][name], rel=1e-4)
    assert np.allclose(said["reconstruction"], rows[0]["reconstruction"], atol=1e-4) and not learn.model.training
