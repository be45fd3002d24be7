"The comparison of states sees every bit, and the spy every event"
import pytest
import torch

from vitnb.testing import Spy, differences, tiny_fit, tiny_learner

NAN = torch.tensor(float("nan"))


@pytest.mark.parametrize("make", [
    lambda: 1, lambda: "a", lambda: None, lambda: torch.randn(3, generator=torch.Generator().manual_seed(0)), lambda: NAN.clone(),
    lambda: dict(a=[1, (torch.ones(2), float("nan"))], b={})])
def test_what_is_made_twice_is_the_same(make): assert differences(make(), make()) == []


@pytest.mark.parametrize("first,second,say", [
    (1, 1.0, "1 is not 1.0"), (True, 1, "True is not 1"), (torch.zeros(2), -torch.zeros(2), "0 of 2 values differ"),
    (torch.zeros(2), torch.zeros(2).double(), "float32 (2,) is not torch.float64"), (torch.zeros(2), torch.zeros(1, 2), "is not torch.float32 (1, 2)"),
    (torch.zeros(3), torch.tensor([0, 1e-30, 0]), "1 of 3 values differ, by up to 1e-30"), ([1], [1, 2], "1 items are not 2"), ([1], {"a":1}, "is not")])
def test_each_difference_is_said(first, second, say):
    (line,) = differences(first, second)
    assert say in line


def test_a_difference_is_named_by_its_place_and_a_missing_key_by_its_side():
    first = dict(model=dict(weight=torch.zeros(2), bias=1), seconds=1.)
    second = dict(model=dict(weight=torch.ones(2), scale=1), seconds=2.)
    assert [line.split(":")[0] for line in differences(first, second, ignore=["seconds"])] == ["model.bias", "model.scale", "model.weight"]
    assert differences([1, [2, 3]], [1, [2, 4]]) == ["[1][1]: 3 is not 4"]
    assert differences(first, second, ignore=["seconds", "weight", "bias", "scale"]) == []


def test_the_spy_sees_every_event_with_its_place(tmp_path):
    spy = Spy()
    learn = tiny_fit(tmp_path, epochs=2, cbs=[spy])
    steps,validations = len(learn.dls.train), len(learn.dls.valid)
    assert spy.count("before_fit") == spy.count("after_fit") == 1 and spy.count("before_epoch") == 2
    assert spy.count("after_step") == 2*steps and spy.count("before_batch") == 2*(steps + validations)
    places = [(epoch, i) for epoch in range(2) for n in (steps, validations) for i in range(n)]
    assert [(epoch, i) for name,epoch,i in spy.seen if name == "before_batch"] == places


def test_a_tiny_learner_is_a_function_of_its_seed():
    def weights(seed): return tiny_learner(seed=seed).model.state_dict()
    assert differences(weights(1), weights(1)) == [] and differences(weights(1), weights(2))
