"fastai's tools on our Learner: new images, chosen samples, and what cannot be interpreted"
import fastai.interpret as interpret
import numpy as np
import pytest
import torch
from test_fastai import DIGITS, loaders
from torch import nn

import vitnb.all
from vitnb.learner.loop import VitLearner
from vitnb.losses.objective import make_objective
from vitnb.models.protocol import create_model
from vitnb.task import MultiLabel, Ordinal, Tasks, Value

KINDS = dict(labels=(MultiLabel(("a", "b", "c")), (3,)), zones=(Ordinal(("left", "right"), levels=4), (2, 4)), level=(Ordinal(levels=4), (4,)), value=(Value(("age",)), (1,)))


class Heads(nn.Module):
    "The same prediction for each image, for each head"
    def __init__(self, outputs): super().__init__(); self.outputs = nn.ParameterDict({k:nn.Parameter(v) for k,v in outputs.items()})
    def forward(self, x): return {k:v.expand(len(x), *v.shape) for k,v in self.outputs.items()}


def test_predict_of_several_tasks():
    "Decoded from what the model gives: a label of probability .3 is not there"
    torch.manual_seed(0)
    outputs = {k:torch.randn(shape) for k,(_,shape) in KINDS.items()}
    outputs["labels"] = torch.tensor([-1., 2, .5])
    tasks = Tasks({k:task for k,(task,_) in KINDS.items()})
    dls = loaders()
    for o in dls.loaders: o.dataset.tasks,o.dataset.targets = tasks,{}
    found = VitLearner(dls, Heads(outputs), make_objective(tasks), precision="fp32").predict(DIGITS.read("valid", 0))
    assert found["labels"][0] == ["b", "c"] and torch.allclose(found["labels"][2], outputs["labels"].sigmoid())
    assert found["zones"][0] == dict(zip(("left", "right"), outputs["zones"].argmax(-1).tolist()))
    assert found["level"][0] == outputs["level"].argmax().item() and found["value"][0] == dict(age=pytest.approx(outputs["value"].item()))


def test_predict_needs_a_task():
    learn = VitLearner(loaders(), create_model("densenet_micro", num_classes=10, img_size=8), nn.CrossEntropyLoss(), precision="fp32")
    with pytest.raises(ValueError, match="no task"): learn.predict(DIGITS.read("valid", 0))


@pytest.mark.parametrize("call,say", [(lambda d: d.test_dl([]), "nothing to load"), (lambda d: d.test_dl([np.zeros((8, 8), np.uint8)], with_labels=True), "no labels"),
    (lambda d: d.test_dl(["x"], rm_type_tfms=1), "leave them out"), (lambda d: d.test_dl([d.train.items[0], d.valid.items[0]]), "several datasets")])
def test_test_dl_refuses(call, say):
    with pytest.raises(ValueError, match=say): call(loaders())


def test_a_set_without_classes_is_not_interpreted():
    "10 classes gave a matrix of one entry, and zones would give one of none"
    dls = loaders()
    for o in dls.loaders: o.dataset.tasks = Tasks.of(Ordinal(levels=10))
    learn = VitLearner(dls, create_model("densenet_micro", num_classes=10, img_size=8), make_objective(dls.tasks), precision="fp32")
    with pytest.raises(AttributeError, match="task_report"): interpret.ClassificationInterpretation.from_learner(learn)
    assert hasattr(vitnb.all, "task_report") and not hasattr(dls.valid, "vocab") and list(loaders().valid.vocab) == list(DIGITS.classes)
    assert len(interpret.Interpretation.from_learner(learn).top_losses(2)[0]) == 2
