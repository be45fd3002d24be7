"What a run suffers from, as the last lines of its notebook say it"
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.experiment.diagnosis import batch_statistics, diagnose
from vitnb.testing import tiny_learner

NBS = Path(__file__).resolve().parents[1]/"nbs"
TRAINING = sorted(p for verb in ("train", "pretrain", "finetune") for p in NBS.glob(f"{verb}_*.ipynb"))


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_every_training_notebook_ends_with_a_diagnosis(path):
    sources = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    fits = max(i for i,s in enumerate(sources) if ".fit(" in s)
    ends = [i for i,s in enumerate(sources) if "diagnose(learn)" in s and 'run.save("diagnosis"' in s]
    assert ends and ends[0] > fits and ends[0] >= len(sources) - 2


@settings(max_examples=40, deadline=None)
@given(views=st.sampled_from([(), (2,)]), channels=st.integers(1, 5), masked=st.booleans(), seed=st.integers(0, 99))
def test_the_statistics_are_numpys(views, channels, masked, seed):
    rng = np.random.default_rng(seed)
    image = rng.normal(3, 2, (4, *views, channels, 5, 6)).astype(np.float32)
    mask = rng.random((4, *views, 1, 5, 6)) < (.6 if masked else 2)
    mean,deviation,low,high = batch_statistics(torch.from_numpy(image), torch.from_numpy(mask) if masked else None)
    held = np.moveaxis(image, -3, 0)
    parts = [part[np.moveaxis(mask, -3, 0)[0]] for part in held]
    assert (mean, deviation) == pytest.approx((np.concatenate(parts).mean(), np.concatenate(parts).std(ddof=1)), rel=1e-4)
    assert (low, high) == pytest.approx((min(p.mean() for p in parts), max(p.mean() for p in parts)), rel=1e-4)


def test_a_run_that_diverges_says_so_with_remedies_and_a_batch():
    learn = tiny_learner(schedule="constant")
    learn.fit(5, lr=2.)
    said = str(diagnose(learn))
    assert said.startswith("diverging: ") and "  lr: a third" in said and "warmup_epochs: longer" in said and "a training batch has mean" in said and "normalised data has about 0 and 1" in said
    assert diagnose(learn).facts()["symptoms"].keys() >= {"diverging"}


def test_a_healthy_run_suffers_from_nothing_and_wrong_statistics_are_named():
    learn = tiny_learner()
    learn.fit(1)
    assert str(diagnose(learn)).startswith("the history of 1 epochs suffers from nothing that shows\na training batch has mean")
    learn.dls.train.one_batch = lambda: {"image":torch.full((2, 1, 4, 4), 128.)}
    assert "far from 0 and 1: look at stats" in str(diagnose(learn))


def test_nothing_was_trained(): assert str(diagnose(tiny_learner())) == "no epoch was trained, so there is nothing to judge"
