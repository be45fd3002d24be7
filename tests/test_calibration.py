"Calibration of every kind of classes: bins by hand, the closed form of a temperature, and one that is found again"
import math

import numpy as np
import pytest
import torch

from vitnb.data.zones import ZONES
from vitnb.metrics.calibration import calibration_error, calibration_report, entry_probs, fit_temperature, scale_probs, task_temperature
from vitnb.task import ClassMap, MultiLabel, OneClass, Ordinal, Value


def test_the_last_bin_is_closed():
    assert calibration_error(np.array([[.95, .05], [1, 0.]]), np.array([0, 1]), bins=10) == pytest.approx(.475)


def test_temperature_has_its_closed_form():
    scores, true = np.tile([4., 0], (10, 1)), np.array([0]*8 + [1]*2)
    assert fit_temperature(scores, true) == pytest.approx(4/math.log(4), rel=1e-4)
    with pytest.warns(UserWarning, match="as good as a limit"): fit_temperature(scores, true*0)
    with pytest.raises(ValueError, match="no entry is known"): fit_temperature(scores, true - 5)


KINDS = dict(classes=(OneClass("abc"), (900, 3)), labels=(MultiLabel("abc"), (600, 3)), zones=(Ordinal(ZONES, levels=4, unknown=4, abstain=True), (300, 6, 5)),
             levels=(Ordinal(levels=4, unknown=-1), (900, 4)), map=(ClassMap("abc", unknown=255), (90, 3, 4, 4)))


def drawn_from(task, probs, g):
    "Targets as likely as `probs` says"
    if task.outputs == 3 and isinstance(task, MultiLabel): return (torch.rand(probs.shape, generator=g) < probs).long()
    last = probs.movedim(1, -1) if isinstance(task, ClassMap) else probs
    return torch.multinomial(last.reshape(-1, last.shape[-1]), 1, generator=g).reshape(last.shape[:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_temperature_makes_any_task_more_honest_and_changes_no_answer(kind):
    task, shape = KINDS[kind]
    g = torch.Generator().manual_seed(0)
    honest = 1.5*torch.randn(shape, generator=g)
    target = drawn_from(task, task.activation(honest), g)
    if kind in ("levels", "map"): target.reshape(-1)[:2] = task.unknown
    probs = task.activation(3*honest) # three times too sure
    found = task_temperature(task, probs, target)
    rows, true = entry_probs(task, probs, target)
    assert found == pytest.approx(3, rel=.15) and (scale_probs(rows, found).argmax(1) == rows.argmax(1)).all()
    before, after = calibration_report(task, probs, target), calibration_report(task, probs, target, found)
    assert after["ece"] < .5*before["ece"] and after["log_loss"] < before["log_loss"] and after["accuracy"] == before["accuracy"]
    assert before["n"] == len(true) == target.numel() - 2*(kind in ("levels", "map"))


def test_values_have_no_calibration():
    with pytest.raises(ValueError, match="values have no probabilities"): entry_probs(Value(("age",)), torch.zeros(2, 1), torch.zeros(2, 1))
