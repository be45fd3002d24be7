"What a step minimises: several tasks by hand, sums of parts, weights, and losses of torch"
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitnb.data.sample import Batch
from vitnb.losses.base import add_terms, weigh
from vitnb.losses.objective import PlainObjective, as_objective, make_objective
from vitnb.task import OneClass, Tasks, Value

TWO = Tasks.of(dict(kind=OneClass("abc", unknown=-1), size=Value(unknown=0)))


def batch(n=8):
    "Predictions and a batch of both tasks, some of whose entries are unknown"
    g = torch.Generator().manual_seed(n)
    pred = dict(kind=torch.randn(n, 3, generator=g), size=torch.randn(n, 1, generator=g))
    target = dict(kind=torch.randint(-1, 3, (n,), generator=g), size=torch.randn(n, 1, generator=g))
    target["size"][1] = float("nan")
    return pred, Batch(dict(image=torch.zeros(n, 1), target=target))


def by_hand(pred, fields, kind=1., size=1.):
    target = fields["target"]
    known = ~target["size"].isnan()
    return kind*F.cross_entropy(pred["kind"], target["kind"], ignore_index=-1) + size*F.mse_loss(pred["size"][known], target["size"][known])


@pytest.mark.parametrize("weights", [{}, dict(size=.25), dict(kind=0, size=2)])
def test_the_loss_is_the_weighted_sum_of_the_means_of_each_task(weights):
    objective = make_objective(TWO, task_weights=weights)
    pred,fields = batch()
    assert torch.allclose(objective(pred, fields["target"]), by_hand(pred, fields, **weights))


def test_parts_add_up_to_the_whole_and_counts_need_no_prediction():
    objective = make_objective(TWO)
    pred,fields = batch()
    halves = []
    for part in (slice(0, 3), slice(3, 8)):
        own = {name:p[part] for name,p in pred.items()}, dict(target={name:t[part] for name,t in fields["target"].items()})
        terms = objective.terms(*own)
        assert {name:float(count) for name,(_, count) in terms.items()} == {name:float(c) for name,c in objective.counts(own[1]).items()}
        halves.append(terms)
    assert torch.allclose(weigh(add_terms(*halves), objective.weights), by_hand(pred, fields))


def test_a_task_without_a_target_has_no_term():
    objective = make_objective(TWO)
    pred,fields = batch()
    fields = dict(target=dict(size=fields["target"]["size"]))
    assert list(objective.terms(pred, fields)) == ["size/loss"] and list(objective.scores(pred, fields)) == ["size/mae"]
    assert not objective.has_loss(dict(target=None)) and objective.has_loss(fields)


def test_columns_say_whose_they_are_and_which_way_is_better():
    objective = make_objective(TWO)
    assert [(c.name, c.better, c.task) for c in objective.columns()] == [("kind/loss", "min", "kind"), ("size/loss", "min", "size")]
    assert [(c.name, c.better) for c in objective.score_columns()] == [("kind/accuracy", "max"), ("size/mae", "min")]
    assert make_objective(Tasks.of(OneClass("ab"))).columns() == [], "one task fills `train_loss` alone"


def test_the_loss_of_each_sample_averages_to_the_loss():
    objective = make_objective(Tasks.of(OneClass("abc")))
    pred,target = torch.randn(6, 3), torch.randint(0, 3, (6,))
    assert torch.allclose(objective.each(pred, dict(target=target)), F.cross_entropy(pred, target, reduction="none"))
    objective.reduction = "none"
    assert torch.allclose(objective(pred, target).mean(), F.cross_entropy(pred, target))


@pytest.mark.parametrize("kw,message", [
    (dict(task_weights=dict(weight=1)), "'weight', which is no task"), (dict(task_weights=dict(kind=-1)), "must be from 0"),
    (dict(task_weights=dict(kind=0, size=0)), "not all 0"), (dict(loss=dict(colour="mse")), "loss names 'colour'"), (dict(loss_kw=dict(colour={})), "loss_kw names 'colour'")])
def test_names_that_are_no_task_are_refused(kw, message):
    with pytest.raises(ValueError, match=message): make_objective(TWO, **kw)


def test_without_a_task_there_is_nothing_to_learn():
    with pytest.raises(ValueError, match=r"pretext=Masked\(\)"): make_objective(Tasks())


def test_a_term_that_a_loss_does_not_declare_is_refused():
    objective = make_objective(Tasks.of(Value()))
    objective.loss_of("").terms = lambda pred, target, known: dict(other=(pred.sum(), 1))
    with pytest.raises(ValueError, match="gives the term 'other'"): objective.terms(torch.zeros(2, 1), dict(target=torch.zeros(2, 1)))


@pytest.mark.parametrize("loss,why", [
    (nn.CrossEntropyLoss(), ""), (nn.CrossEntropyLoss(weight=torch.ones(3)), "class weights"), (nn.MSELoss(reduction="sum"), "'sum'"), (F.mse_loss, "")])
def test_a_loss_of_torch_says_why_it_is_no_mean(loss, why):
    assert why in PlainObjective(loss).uneven and bool(PlainObjective(loss).uneven) == bool(why)


def test_a_loss_of_torch_gives_each_sample_and_is_as_it_was_also_after_an_error():
    loss = nn.CrossEntropyLoss()
    objective = as_objective(loss)
    pred,target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    fields = Batch(dict(image=torch.zeros(4, 1), target=target))
    assert torch.allclose(objective.each(pred, fields), F.cross_entropy(pred, target, reduction="none")) and loss.reduction == "mean"
    with pytest.raises(ValueError): objective.each(pred[:2], fields)
    assert loss.reduction == "mean" and as_objective(objective) is objective and objective.terms(pred, fields)["loss"][1] == 4


def test_a_figure_names_the_loss_that_was_chosen():
    assert make_objective(Tasks.of(OneClass("abc"))).title == "Loss (cross entropy)"
    assert make_objective(Tasks.of(OneClass("abc")), "focal").title == "Loss (focal)"
    assert make_objective(TWO).title == "Loss (weighted sum of tasks)"
