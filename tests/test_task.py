"Columns and several tasks at once: which value is better, what belongs to whom, and names that do not fit"
import json

import pytest
import torch

from vitnb.task import Column, OneClass, Ordinal, Tasks, Value, column, make_tasks, monitored

TWO = Tasks.of(dict(kind=OneClass("ab"), size=Value(unit="mm")))
COLUMNS = {c.name:c for c in (Column("accuracy", "max"), Column("valid_loss", "min"), Column("lr"), Column("size/mae", "min", "mm", "size"))}


@pytest.mark.parametrize("better,value,best,by,answer", [
    ("max", .6, .5, 0, True), ("max", .5, .5, 0, False), ("max", .4, .5, 0, False), ("max", .6, .5, .2, False), ("min", .4, .5, 0, True),
    ("min", .4, .5, .2, False), ("max", -1, None, 0, True), ("min", float("nan"), None, 0, False), ("max", None, .5, 0, False)])
def test_a_value_is_better_in_the_direction_of_its_column(better, value, best, by, answer):
    assert Column("score", better).improves(value, best, by) is answer


def test_a_direction_is_one_of_two():
    with pytest.raises(ValueError, match="direction of column 'score'"): Column("score", "more")


def test_a_declared_column_can_be_followed():
    assert monitored(COLUMNS, "size/mae") is COLUMNS["size/mae"]
    assert monitored(COLUMNS, "lr", "min") == Column("lr", "min") and monitored(COLUMNS, "accuracy", "min").better == "min"


@pytest.mark.parametrize("name,mode,message", [
    ("acuracy", None, "did you mean 'accuracy'"), ("lr", None, "give mode='min' or 'max'"), ("accuracy", "less", "mode")])
def test_what_cannot_be_followed_is_refused(name, mode, message):
    with pytest.raises(ValueError, match=message): monitored(COLUMNS, name, mode)


def test_the_only_task_names_its_columns_by_the_metric_alone(): assert (column("", "mae"), column("size", "mae")) == ("mae", "size/mae")


def test_each_task_gets_its_own_part_and_one_that_lacks_any_is_left_out():
    pred = dict(kind=torch.randn(2, 2), size=torch.randn(2, 1))
    target = dict(kind=torch.tensor([0, 1]))
    assert [(name, len(parts)) for name,_,*parts in TWO.split(pred)] == [("kind", 1), ("size", 1)]
    ((name, task, own_pred, own_target),) = TWO.split(pred, target)
    assert name == "kind" and task == OneClass("ab") and own_pred is pred["kind"] and own_target is target["kind"]
    assert list(TWO.split(pred, dict())) == []


def test_one_task_takes_all_and_several_give_dictionaries():
    one = Tasks.of(Ordinal(levels=3))
    pred = torch.randn(4, 3)
    assert torch.equal(one.map(lambda task, part: task.decode(part), pred), pred.argmax(1)) and one.only == Ordinal(levels=3)
    found = TWO.map(lambda task, part: task.kind, dict(kind=0, size=1))
    assert found == dict(kind="class", size="value") and TWO.only is None
    assert one.outputs == 3 and TWO.outputs == dict(kind=2, size=1)


def test_tasks_are_made_again_from_json_in_their_order():
    again = make_tasks(json.loads(json.dumps(TWO.config())))
    assert again == TWO and list(again) == list(TWO) and type(again) is Tasks


@pytest.mark.parametrize("tasks,message", [
    (dict(kind="class"), "tasks are Task objects"), ({"":OneClass("ab"), "size":Value()}, "need names"), ({"a/b":OneClass("ab"), "c":Value()}, "without '/'")])
def test_what_are_no_tasks_is_refused(tasks, message):
    with pytest.raises(ValueError, match=message): Tasks.of(tasks)


def test_a_target_that_does_not_fit_names_its_task():
    with pytest.raises(ValueError, match="task 'kind': target 2 is not in 0..1"): TWO.check(dict(kind=torch.tensor([2])))
    with pytest.raises(ValueError, match="no task for the target 'sise': did you mean 'size'"): TWO.check(dict(sise=torch.zeros(1, 1)))
    TWO.check(dict(size=torch.zeros(1, 1)))
