"Figures: what lies where in curves, grids and a confusion matrix"
import numpy as np

from vitnb.figures import plot_curves, png
from vitnb.task import Column

ROWS = [dict(epoch=e, train_loss=1/e, valid_loss=2/e, accuracy=1 - .5**e, kappa=.9 - .5**e, mae=3/e, size=40/e) for e in range(1, 5)]
COLUMNS = {c.name:c for c in (Column("accuracy", "max"), Column("kappa", "max"), Column("mae", "min", "levels"), Column("size", "min", "mm"))}

def panels(fig): return {ax.get_title():[line.get_label() for line in ax.lines] for ax in fig.axes if ax.get_title()}

def test_each_unit_has_a_panel_and_directions_are_arrows():
    got = panels(plot_curves(ROWS, metrics=list(COLUMNS), columns=COLUMNS, loss_name="Loss"))
    assert got == {"Loss":["train loss", "valid loss"], "Validation metrics":["accuracy ↑", "kappa ↑"], "Validation metrics (levels)":["mae ↓"],
                   "Validation metrics (mm)":["size ↓"], "Learning rate":[]}

def test_without_columns_curves_are_as_they_were():
    fig = plot_curves(ROWS, metrics=["accuracy", "mae"], loss_name="Loss")
    assert panels(fig) == {"Loss":["train loss", "valid loss"], "Validation metrics":["accuracy", "mae"], "Learning rate":[]}
    assert len(fig.axes) == 3 and fig.axes[1].get_ylim()[1] == 1.02

def test_an_undeclared_metric_has_no_arrow_and_values_above_one_are_seen():
    fig = plot_curves(ROWS, metrics=["accuracy", "mae"], columns={"accuracy":COLUMNS["accuracy"]})
    assert panels(fig)["Validation metrics"] == ["accuracy ↑", "mae"]
    assert fig.axes[1].get_ylim()[1] > 3

def test_curves_without_metrics_or_with_undefined_ones_are_drawn():
    assert len(plot_curves(ROWS, columns=COLUMNS).axes) == 3
    undefined = [dict(r, kappa=np.nan, accuracy=None) for r in ROWS]
    assert png(plot_curves(undefined, metrics=["accuracy", "kappa"], columns=COLUMNS))
