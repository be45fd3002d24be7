"Tasks that images set themselves: made by name, checked against model and data, and their views"
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vitnb.callback.pretext import Pretext, fold_views, make_pretext, pretexts, unfold_views


class Shuffled(Pretext):
    "As much of a pretext task as is needed to make one"
    name = "shuffled"
    needs = ("forward_features", "reset_classifier")
    def __init__(self, pieces=4):
        super().__init__()
        self.pieces = pieces
    def config(self): return dict(name=self.name, pieces=self.pieces)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(pretexts, "shuffled", Shuffled)


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 4), views=st.integers(1, 4))
def test_views_of_a_sample_stay_beside_each_other(samples, views):
    x = torch.arange(samples*views).view(samples, views, 1, 1, 1).expand(-1, -1, 3, 2, 2)
    folded = fold_views(x)
    assert folded.shape == (samples*views, 3, 2, 2)
    for i in range(samples):
        for v in range(views): assert torch.equal(folded[i*views + v], x[i, v])
    assert torch.equal(unfold_views(folded, views), x)


def test_images_without_views_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) has no axis of views.*views=2"): fold_views(torch.zeros(2, 3, 4, 4))


def test_by_name_by_config_and_as_it_is(registered):
    made = make_pretext(dict(name="shuffled", pieces=9))
    assert make_pretext(made) is made
    assert make_pretext("shuffled").pieces == 4
    assert make_pretext(made.config()).config() == made.config() == dict(name="shuffled", pieces=9)
    with pytest.raises(ValueError, match="needs a name, one of .*it has pieces"): make_pretext(dict(pieces=9))
    with pytest.raises(ValueError, match="did you mean 'shuffled'"): make_pretext("shufled")


def test_a_model_must_have_what_is_needed():
    model = nn.Linear(1, 1)
    model.forward_features = model.forward
    with pytest.raises(ValueError, match="needs a model with reset_classifier, which Linear has not; take a model that was made for it"):
        Shuffled().setup(None, model)
    model.reset_classifier = model.forward
    Shuffled().setup(None, model)


def test_mixing_is_refused_unless_the_task_says_how():
    with pytest.raises(ValueError, match="'shuffled' does not say how its targets are mixed"): Shuffled().mix(torch.zeros(2), None)
