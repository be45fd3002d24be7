"Figures: what lies where in curves, grids and a confusion matrix; named axes, one epoch that is seen, colours that all can tell apart"
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from vitnb.drawings import class_colors
from vitnb.figures import COLORS_OF_LINES, RIGHT, WRONG, in_words, log_axis, marked, new_figure, plot_confusion, plot_curves, plot_predictions, png, say_empty
from vitnb.task import Column

ROWS = [dict(epoch=e, train_loss=1/e, valid_loss=2/e, accuracy=1 - .5**e, accuracy_ema=1 - .6**e, top5=1 - .1**e, kappa=.9 - .5**e, mae=3/e, size=40/e)
        for e in range(1, 5)]
COLUMNS = {c.name:c for c in (Column("accuracy", "max"), Column("kappa", "max"), Column("mae", "min", "levels"), Column("size", "min", "mm"))}
STEPS = [dict(step=s, loss=2/s, lr=.01*s) for s in range(1, 41)]

def panels(fig): return {ax.get_title():[line.get_label() for line in ax.lines] for ax in fig.axes if ax.get_title()}
def ticks(ax): return [float(t) for t in ax.get_xticks() if ax.get_xlim()[0] <= t <= ax.get_xlim()[1]]

def test_each_metric_has_a_panel_its_unit_is_named_and_directions_are_arrows():
    got = panels(plot_curves(ROWS, metrics=list(COLUMNS), columns=COLUMNS, loss_name="Loss"))
    assert got == {"Loss":["train loss", "valid loss"], "Accuracy":["accuracy ↑"], "Kappa":["kappa ↑"], "MAE (levels)":["MAE ↓"],
                   "Size (mm)":["size ↓"], "Learning rate":[]}

def test_accuracy_is_not_flattened_by_another_metric_but_shares_its_axis_with_what_is_accuracy_too():
    got = panels(plot_curves(ROWS, metrics=["accuracy", "top5", "accuracy_ema"], loss_name="Loss"))
    assert got["Accuracy"] == ["accuracy", "accuracy averaged"] and got["Top-5 accuracy"] == ["top-5 accuracy"]
    rows = [dict(epoch=1, **{"left/kappa":.1, "right/kappa":.2, "probe_accuracy":.3, "knn_accuracy":.4, "size":9})]
    got = panels(plot_curves(rows, metrics=list(rows[0])[1:], columns=COLUMNS))
    assert got["Kappa"] == ["left kappa", "right kappa"] and got["Accuracy"] == ["probe accuracy", "kNN accuracy"] and got["Size (mm)"] == ["size ↓"]

def test_many_metrics_share_panels_by_unit_and_direction():
    columns = {c.name:c for c in [*(Column(f"up{i}", "max") for i in range(4)), *(Column(f"down{i}", "min") for i in range(4)), Column("far", "min", "mm")]}
    rows = [dict.fromkeys(columns, .5) | dict(epoch=1)]
    fig = plot_curves(rows, metrics=list(columns), columns=columns)
    assert sorted(len(ax.lines) for ax in fig.axes[1:4]) == [1, 4, 4]

def test_shares_end_at_one_and_other_values_are_seen():
    fig = plot_curves(ROWS, metrics=["accuracy", "mae"])
    assert .9375 < fig.axes[1].get_ylim()[1] <= 1.02 and fig.axes[2].get_ylim()[1] > 3

def test_curves_without_metrics_have_no_panel_for_them_and_undefined_ones_say_so():
    assert list(panels(plot_curves(ROWS, columns=COLUMNS, loss_name="Loss"))) == ["Loss", "Learning rate"]
    undefined = [dict(r, kappa=np.nan, accuracy=None) for r in ROWS]
    fig = plot_curves(undefined, metrics=["accuracy", "kappa"], columns=COLUMNS)
    assert png(fig) and [t.get_text() for ax in fig.axes[1:3] for t in ax.texts] == ["nothing yet"]*2

@pytest.mark.parametrize("rows,steps", [(ROWS, STEPS), (ROWS[:1], STEPS[:10]), (ROWS[:1], STEPS[:1]), ([], STEPS[:3]), ([], []), (ROWS[:2], [])])
def test_axes_are_named_and_below_all_panels_are_the_same_whole_epochs(rows, steps):
    fig = plot_curves(rows, steps, 10, ["accuracy", "mae"], columns=COLUMNS)
    fig.canvas.draw()
    for ax in fig.axes:
        assert ax.get_title() and ax.get_ylabel() and ax.get_xlabel() == "epoch"
        assert ticks(ax) and all(t == int(t) for t in ticks(ax)) and ticks(ax) == ticks(fig.axes[0])
        assert ax.lines or ax.texts, "no panel is empty without a word"

def test_one_epoch_and_one_step_are_seen():
    fig = plot_curves(ROWS[:1], STEPS[:1], 1, ["accuracy"])
    for ax in fig.axes:
        for line in ax.lines: assert line.get_marker() not in ("None", "", None), f"{line.get_label()} is a line of one point"
    assert fig.axes[1].lines[0].get_markersize() >= 6 and marked([1, 2])["ms"] < 6
    (left,right),(x,) = fig.axes[1].get_xlim(),fig.axes[1].lines[0].get_xdata()
    assert left < x < right, "the mark is not cut by the frame"

@pytest.mark.parametrize("values", [[.5, .55], [2.1, 4.9], [.1, 60.], [1e-3, 30.], [.05, 2e5], [3.]])
def test_a_log_axis_says_so_and_has_ticks(values):
    fig,((ax,),) = new_figure()
    ax.plot(values, "o")
    ax.set_ylabel("loss")
    log_axis(ax)
    fig.canvas.draw()
    low,high = ax.get_ylim()
    shown = [label.get_text() for place,label in zip(ax.get_yticks(), ax.get_yticklabels()) if low <= place <= high]
    assert ax.get_ylabel() == "loss (log scale)" and len(set(shown)) == len(shown) >= 2, shown
    places = sorted(label.get_window_extent().y0 for place,label in zip(ax.get_yticks(), ax.get_yticklabels()) if low <= place <= high)
    assert min(np.diff(places)) >= ax.get_yticklabels()[0].get_window_extent().height, "labels run into one another"

def test_a_loss_over_more_than_a_decade_is_on_a_log_axis():
    far,near = [dict(epoch=e, train_loss=10.**-e, valid_loss=10.**-e) for e in range(3)], [dict(epoch=e, train_loss=2 - .1*e) for e in range(3)]
    assert plot_curves(far).axes[0].get_yscale() == "log" and plot_curves(near).axes[0].get_yscale() == "linear"
    assert plot_curves([*far, dict(epoch=3, train_loss=0.)]).axes[0].get_yscale() == "linear"

def test_names_of_columns_are_words():
    assert in_words("sam_degrees", "degrees") == "spectral angle" and in_words("a_$b") == r"a \$b"

def test_axes_without_a_line_say_why():
    _,((ax,),) = new_figure()
    ax.plot([1, 2], [np.nan]*2)
    say_empty(ax, "nothing was masked")
    assert [t.get_text() for t in ax.texts] == ["nothing was masked"]


def seen_without_red_or_green(color, kind):
    "What a person without one kind of cones sees: Viénot, Brettel and Mollon 1999, in linear RGB"
    linear = np.where(np.array(color) <= .04045, np.array(color)/12.92, ((np.array(color) + .055)/1.055)**2.4)
    matrix = dict(protan=[[.11238, .88762, 0], [.11238, .88762, 0], [.00401, -.00401, 1]],
                  deutan=[[.29275, .70725, 0], [.29275, .70725, 0], [-.02234, .02234, 1]])[kind]
    return np.clip(np.array(matrix) @ linear, 0, 1)**(1/2.2)

def nearest(colors, kind):
    seen = np.array([seen_without_red_or_green(to_rgb(c), kind) for c in colors])
    return min(np.linalg.norm(a - b) for i,a in enumerate(seen) for b in seen[:i])

@pytest.mark.parametrize("kind", ["protan", "deutan"])
def test_colours_are_told_apart_without_red_or_green(kind):
    from vitnb.spectra import POINTS
    if kind == "deutan": assert nearest(("tab:red", "tab:green"), kind) < .25, "the measure sees what was wrong"
    assert nearest((RIGHT, WRONG), kind) > .4
    for colors in (COLORS_OF_LINES, POINTS, class_colors(8)): assert nearest(colors, kind) > .1, colors
    assert nearest(COLORS_OF_LINES[:4], kind) > .2 and nearest(POINTS[:3], kind) > .2


def test_names_that_are_cut_say_so():
    name = "a very long name of a class"
    ax = plot_confusion(np.eye(2), [name, "b"]).axes[0]
    assert ax.get_xticklabels()[0].get_text() == name[:17].rstrip() + "…"
    (ax,) = plot_predictions(np.zeros((1, 4, 4, 3)), np.array([[.9, .1]]), np.array([1]), [name, "$b"]).axes
    assert ax.get_title() == f"{name[:13]}… 90%\nis " + r"\$b" and ax.title.get_color() == WRONG
