"What all kinds of task share: configurations, moves, masses, means of probabilities, and refusals"
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.task import MOVES, ClassMap, MultiLabel, OneClass, Ordinal, Task, Value, make_task
from vitnb.kinds.base import log_mean, one_hot_masses

KINDS = [
    OneClass("abc", unknown=-1), MultiLabel("ab", metrics=("f1_macro",)), ClassMap("ab", unknown=-100, monitor="accuracy"),
    Ordinal(("left", "right"), levels=3, flips=dict(hflip=[1, 0], vflip=None)), Ordinal(levels=4, cumulative=True),
    Value(("age", "size"), unit="mm", unknown=0)]


@pytest.mark.parametrize("task", KINDS, ids=lambda task: task.kind)
def test_a_task_is_made_again_from_json(task):
    again = make_task(json.loads(json.dumps(task.config())))
    assert again == task and type(again) is type(task) and hash(again) == hash(task)


def test_a_field_that_a_kind_has_not_names_the_nearest():
    with pytest.raises(ValueError, match="kind 'value' has no field 'units': did you mean 'unit'"): make_task(dict(kind="value", units="mm"))


@pytest.mark.parametrize("view", MOVES)
def test_each_move_has_its_way_back_and_spares_the_other_dimensions(view):
    x = torch.randn(2, 3, 4, 5)
    there,back = MOVES[view]
    assert torch.equal(back(there(x)), x) and not torch.equal(there(x[...,:4]), x[...,:4])
    assert torch.equal(there(x)[1,2], there(x[1,2]))


def test_turns_add_up():
    x = torch.randn(1, 3, 4)
    quarter,half,three = (MOVES[view][0] for view in ("rot90", "rot180", "rot270"))
    assert torch.equal(quarter(quarter(x)), half(x)) and torch.equal(quarter(half(x)), three(x))
    assert torch.equal(half(x), MOVES["hflip"][0](MOVES["vflip"][0](x)))


@given(n=st.integers(1, 6), rows=st.lists(st.integers(-3, 8), min_size=1, max_size=6))
def test_masses_are_one_for_a_class_and_nothing_for_what_is_none(n, rows):
    got = one_hot_masses(torch.tensor(rows), n)
    for row,masses in zip(rows, got): assert masses.tolist() == [float(row == k) for k in range(n)]


def test_an_unknown_entry_has_no_mass_also_where_it_is_one_of_the_classes():
    task = OneClass("abc", unknown=2)
    assert torch.equal(task.encode(torch.tensor([0, 2, 1])), torch.tensor([[1., 0, 0], [0, 0, 0], [0, 1, 0]])) and task.never == (2,)


@settings(max_examples=40, deadline=None)
@given(views=st.integers(1, 5), spread=st.sampled_from([.1, 3., 200.]), seed=st.integers(0, 99))
def test_the_mean_of_probabilities_in_logarithms_is_that_in_double_precision(views, spread, seed):
    "A spread of 200 has probabilities that float32 does not have"
    logits = torch.randn(views, 4, 3, generator=torch.Generator().manual_seed(seed))*spread
    got = log_mean(list(logits), lambda x: x.log_softmax(-1))
    want = logits.double().softmax(-1).mean(0)
    assert torch.allclose(got.double().exp(), want, atol=1e-6) and bool(got.isfinite().all())


def test_right_answers_are_those_of_a_loop_over_known_entries():
    task = OneClass("abc", unknown=-1)
    pred,target = torch.randn(40, 3), torch.randint(-1, 3, (40,))
    rows = [(p.argmax().item(), t) for p,t in zip(pred, target.tolist()) if t != -1]
    assert [int(n) for n in task.score(pred, target)] == [sum(p == t for p,t in rows), len(rows)]
    masses = task.encode(target) # the same of masses: an entry without any is unknown
    assert [int(n) for n in task.score(pred, masses)] == [int(n) for n in task.score(pred, target)]


def test_classes_are_counted_without_unknown_ones():
    assert OneClass("abcd", unknown=-1).counts(torch.tensor([0, -1, 2, 2, -1]).numpy()).tolist() == [1, 0, 2, 0]


class Bare(Task):
    "A kind that says nothing for itself"
    kind = "bare"
    defaults = dict(loss="mse", metrics=("mae",), monitor="mae")


@pytest.mark.parametrize("ask,remedy", [
    (lambda task: task.mix(torch.zeros(2), None), "train without MixUp and CutMix"), (lambda task: task.balance([0]), "sampling='uniform'"),
    (lambda task: task.counts([0]), "leave it out")])
def test_what_a_kind_does_not_say_is_refused_with_a_remedy(ask, remedy):
    with pytest.raises(ValueError, match=remedy): ask(Bare())


def test_predictions_of_a_plain_kind_are_averaged_as_they_are():
    preds = [torch.randn(2, 3).half() for _ in range(3)]
    assert torch.allclose(Bare().average(preds), sum(p.double() for p in preds).float()/3, atol=1e-6)
