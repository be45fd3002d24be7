"Pictures of a comparison draw its numbers"
import numpy as np
import pytest
from compare_helpers import outputs, scored, write_run # noqa: F401, a fixture

from vitnb.experiment.compare import compare
from vitnb.experiment.comparefigures import draw_comparison, plot_learning, plot_importance, plot_parallel


def test_a_curve_is_the_history_of_a_run(outputs):
    write_run(outputs/"train_a/broken", params=dict(lr=.3, seed=0, bs=8), status=dict(status="failed"), history=[dict(epoch=1, accuracy=.5)])
    table = compare(root=outputs)
    ax, = plot_learning(table, "accuracy").axes
    assert len(ax.lines) == 7 and len(ax.get_legend().texts) == 7
    for run,line in zip(table.runs, ax.lines):
        assert line.get_ydata().tolist() == [row["accuracy"] for row in run.history] and line.get_linestyle() == ("--" if run.state == "failed" else "-")
        assert (line.get_marker() == "o") == (len(run.history) == 1), "a single epoch is seen"
    with pytest.raises(ValueError, match="did you mean 'accuracy'"): plot_learning(table, "acuracy")


def test_parallel_axes_end_at_the_score(outputs):
    table = compare(root=outputs, score="test_accuracy")
    ax, = plot_parallel(table, "test_accuracy").axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["lr", "seed", "test_accuracy"]
    runs = ax.lines[:6]
    assert runs[0].get_ydata()[-1] == 1 and runs[-1].get_ydata()[-1] == 0, "the best first"
    assert [line.get_ydata()[0] for line in runs] == [float(run.params["lr"] == .2) for run in table.runs]


def test_decades_are_apart_alike_and_words_have_ticks(tmp_path):
    for n,(lr,arch) in enumerate([(1e-4, "a"), (1e-3, "b"), (1e-2, "c")]): scored(tmp_path/"a"/str(n), .1*n, lr=lr, arch=arch)
    ax, = plot_parallel(compare(root=tmp_path), "test_accuracy").axes
    assert np.allclose([line.get_ydata()[:2] for line in ax.lines[:3]], [[0, 0], [.5, .5], [1, 1]])
    assert {"a", "b", "c"} <= {text.get_text() for text in ax.texts}


def test_what_cannot_be_drawn_says_why(tmp_path):
    scored(tmp_path/"a"/"0", .9, lr=1)
    drawn = draw_comparison(compare(root=tmp_path), "test_accuracy")
    assert "needs four runs" in drawn["importance"] and "no run has a column" in drawn["curves"] and drawn["parallel"].axes
    with pytest.raises(ValueError, match="needs four runs"): plot_importance(compare(root=tmp_path), "test_accuracy")
