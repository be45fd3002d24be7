"What is said of a trained model and its data"
import json

import numpy as np
import pytest
from card_helpers import trained # noqa: F401, a fixture

from vitnb.data.holdout import Split
from vitnb.data.table import ImageSet
from vitnb.experiment.evaluated import open_evaluated
from vitnb.learner.predict import predict_split
from vitnb.learner.rebuilt import export_facts, score_facts, split_facts


def tiny(order=(0, 1, 2, 3, 4, 5), labels=(0, 1, 0, 1, 0, 1), twin=False):
    x = np.arange(6*9, dtype=np.uint8).reshape(6, 3, 3)[list(order)]
    y = np.array(labels)
    if twin: x[5] = x[0]
    return ImageSet("tiny", ["a", "b"], dict(train=Split(x[:4], y[:4]), valid=Split(x[4:5], y[4:5]), test=Split(x[5:], y[5:])))


def test_a_split_is_known_by_what_is_where():
    same,moved,relabelled = split_facts(tiny()), split_facts(tiny((5, 1, 2, 3, 4, 0))), split_facts(tiny(labels=(1, 1, 0, 1, 0, 1)))
    assert same == split_facts(tiny()) and same["images"] == dict(train=4, valid=1, test=1) and same["shared"] == 0
    assert len({one["fingerprint"] for one in (same, moved, relabelled)}) == 3
    assert split_facts(tiny(twin=True))["shared"] == 1, "a test image that is in train is told"


def test_the_scores_are_those_of_the_learner_that_was_trained(trained):
    folder,learn = trained
    evaluated = open_evaluated(folder)
    facts = score_facts(evaluated.learn)
    probs,targets = predict_split(learn, "test")
    assert facts["scores"]["test_accuracy"] == pytest.approx((probs.argmax(1) == targets).float().mean().item())
    assert facts["scores"]["test_accuracy_lo"] <= facts["scores"]["test_accuracy"] <= facts["scores"]["test_accuracy_hi"]
    assert facts["better"]["test_accuracy"] == "max" and facts["calibration"]["after"]["n"] == len(targets)
    assert not evaluated.loaded.model.training and json.loads(json.dumps(facts)) == facts


def test_exports_are_compared(trained):
    found = export_facts(open_evaluated(trained[0]).loaded)
    assert found["safetensors"] == 0 and found["torch.export"] < 1e-4
    assert found["onnx"] < 1e-4 if isinstance(found["onnx"], float) else found["onnx"].startswith("not done")
