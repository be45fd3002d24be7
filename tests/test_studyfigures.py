"Pictures of a study show its numbers, and only those are drawn that there is something for"
import numpy as np
import pytest

from vitnb.experiment.studyfigures import plot_study, save_study_figures

optuna = pytest.importorskip("optuna")

VALUES = [.3, .1, .7, .5, .9]


def study_of(values, reports=()):
    "A study whose trials came to these values, each after the same reports"
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for value in values:
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        for epoch,share in enumerate(reports): trial.report(share*value, epoch + 1)
        study.tell(trial, value)
    return study


def test_the_history_is_the_best_value_so_far():
    ax, = plot_study(study_of(VALUES), "history", "f1").axes
    line, = ax.lines
    assert np.array_equal(line.get_ydata(), np.maximum.accumulate(VALUES)) and ax.get_ylabel() == "f1"


def test_a_curve_is_what_a_trial_reported():
    ax, = plot_study(study_of(VALUES, (.5, 1.)), "curves", "f1").axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[.5*value, value] for value in VALUES]
    assert [line.get_xdata().tolist() for line in ax.lines] == [[1, 2]]*len(VALUES) and ax.get_legend() is None


@pytest.mark.parametrize("values,reports,names", [
    ([], (), []), ([.3], (), ["history"]), ([.3, .3], (1.,), ["history", "curves"]), (VALUES, (1.,), ["history", "importance", "curves"])])
def test_only_what_there_is_something_for_is_drawn(tmp_path, values, reports, names):
    files = save_study_figures(study_of(values, reports), tmp_path, "f1")
    assert [file.stem for file in files] == names and sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


@pytest.mark.parametrize("state,names", [("FAIL", []), ("WAITING", []), ("PRUNED", ["curves"]), ("RUNNING", ["curves"])])
def test_a_trial_that_is_not_complete_has_a_curve_where_optuna_shows_one(tmp_path, state, names):
    study = study_of([])
    study.add_trial(optuna.trial.create_trial(state=getattr(optuna.trial.TrialState, state), intermediate_values={1:.5, 2:.6}))
    assert [file.stem for file in save_study_figures(study, tmp_path, "f1")] == names


def test_a_picture_of_no_kind_is_refused():
    with pytest.raises(ValueError, match="did you mean 'history'"): plot_study(study_of([.1]), "histroy")


@pytest.mark.parametrize("what", ["history", "curves"])
def test_there_is_no_half_a_trial_and_no_half_an_epoch(what):
    fig = plot_study(study_of(VALUES, (.5, .7, .8, .9, 1.)), what, "f1")
    ticks = fig.axes[0].get_xticks()
    assert len(ticks) > 2 and np.array_equal(ticks, np.rint(ticks))
