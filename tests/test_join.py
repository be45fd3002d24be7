"Processes that must stand alike: what is compared, what is said of a difference, and what a launch may not ask"
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException

from vitnb.learner.join import compare_facts, join_ranks, learner_facts
from vitnb.testing import tiny_learner


def test_the_first_thing_that_differs_is_named_with_its_rank():
    same = dict(seed=1, bs=8)
    compare_facts([same, dict(same), dict(same)])
    with pytest.raises(ValueError, match="bs is 4 in rank 2, but 8 in rank 0"): compare_facts([same, dict(same), dict(seed=1, bs=4)])
    with pytest.raises(ValueError, match="mixup is 0.8 in rank 1, but None in rank 0"): compare_facts([same, dict(same, mixup=.8)])


class Look(Callback):
    "The facts of a fit, before and after one bit of a weight has changed"
    def before_train(self):
        self.changed,weight = next((k, p) for k,p in self.model.named_parameters() if p.ndim > 1)
        self.facts = [learner_facts(self.learn), learner_facts(self.learn)]
        with torch.no_grad(): weight.view(torch.int32).view(-1)[0] ^= 1
        self.facts.append(learner_facts(self.learn))
        raise CancelFitException


def test_one_bit_of_one_weight_is_another_fact():
    "Neither its mean nor its printed value would show it"
    look = Look()
    learn = tiny_learner(cbs=[look])
    with learn.no_logging(): learn.fit(1)
    before,again,after = look.facts
    assert before == again and [k for k in before if before[k] != after[k]] == [f"the tensor {look.changed}"]


@pytest.mark.parametrize("name,value", [
    ("ACCELERATE_MIXED_PRECISION", "bf16"), ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"), ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
    ("ACCELERATE_USE_DEEPSPEED", "true"), ("ACCELERATE_USE_FSDP", "TRUE")])
def test_what_a_launch_asks_and_would_not_happen_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"{name}={value.lower()}: .*:"): join_ranks(torch.device("cpu"))
