"The pictures of six-zone scores show what they are given: scores in their zones, counts in their tables, curves with their areas"
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from vitnb.chestfigures import plot_calibration, plot_class_curves, plot_index, plot_risks, plot_roc, plot_zone_confusion, show_scored_films
from vitnb.data.zones import ZONES, zone_grid
from vitnb.metrics.calibration import calibration_error
from vitnb.metrics.selective import risk_coverage


def texts(ax): return [t.get_text() for t in ax.texts]


def test_each_score_stands_in_its_own_zone():
    fig = show_scored_films(torch.zeros(1, 90, 60), [[0, 1, 2, 3, 4, -1]], ["a"])
    ax = fig.axes[0]
    assert texts(ax) == ["0", "1", "2", "3", "?", "?"]
    for number,text in enumerate(ax.texts):
        x,y = map(int, text.get_position())
        assert zone_grid(90, 60)[number,y,x]


def test_tables_lie_as_the_zones_on_the_film():
    tables = {f"zone_{i}":np.eye(5, dtype=int)*i for i in range(1, 7)} | dict(overall=np.eye(5, dtype=int)*21)
    fig = plot_zone_confusion(tables, ZONES)
    places = {ax.get_title():(ax.get_subplotspec().rowspan.start, ax.get_subplotspec().colspan.start) for ax in fig.axes if ax.get_title()}
    titles = {f"{zone}, {4*i} known":None for i,zone in enumerate(ZONES, 1)} # each table says on how many known zones it rests
    assert places == dict(zip(titles, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)])) | {"all zones, 84 known":(0, 2)}
    assert {ax.get_title():texts(ax) for ax in fig.axes if ax.get_title()}["left_inf, 24 known"] == ["6"]*5


def test_films_without_an_index_are_no_points():
    said,true = np.array([1., np.nan, 2., .5]),np.array([1.5, 1., np.nan, .5])
    left,right = plot_index(said, true).axes
    assert left.get_title() == "2 films" and len(left.collections[0].get_offsets()) == 2
    assert np.allclose(sorted(right.collections[0].get_offsets()[:,1]), [-.5, 0])
    assert "-0.25" in texts(right), "the mean difference"


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_films_are_drawn_without_limits(n):
    assert not texts(plot_index(np.ones(n), np.ones(n)).axes[1])


def some(n=300):
    generator = np.random.default_rng(0)
    true = generator.integers(0, 3, n)
    rows = generator.dirichlet(np.ones(5), n) + np.eye(5)[true]
    return rows/rows.sum(1, keepdims=True), true


def test_a_grade_without_cases_has_no_curve():
    left,_ = plot_class_curves(*some()).axes
    labels = [line.get_label().split()[0] for line in left.lines]
    assert {"normal", "mild", "moderate", "all"} <= set(labels) and "severe" not in labels
    counts = [int(line.get_label().split("n=")[1].split(")")[0]) for line in left.lines if "n=" in line.get_label()]
    assert counts == [*np.bincount(some()[1]), 300]


def test_the_calibration_error_is_written():
    rows,true = some()
    before,after = plot_calibration(rows, true, 2.).axes
    assert f"{calibration_error(rows, true):.3f} (n=300)" in before.get_title() and "Temperature 2.00" in after.get_title()


def test_a_panel_for_each_risk():
    rows,true = some()
    curve = risk_coverage(rows.max(1), rows.argmax(1) != true)
    fig = plot_risks(dict(a=curve, b=curve))
    assert [ax.get_ylabel() for ax in fig.axes] == ["a", "b"] and "(n=300)" in fig.axes[0].get_title() and np.allclose(fig.axes[0].lines[0].get_ydata(), curve["risk"])
    with pytest.raises(ValueError, match="curves is empty"): plot_risks({})


def test_each_model_has_its_curve_with_the_area_that_scikit_learn_finds():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, 80)
    scores = dict(good=true + rng.normal(0, .5, 80), chance=rng.normal(0, 1, 80)) # any number: logits have no bounds
    fig = plot_roc(scores, true)
    labels = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert labels == [f"{name} {roc_auc_score(true, score):.2f}" for name,score in scores.items()]
