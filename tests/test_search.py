"No kill, no second worker and no failing trial upsets a search"
import json
import signal
from multiprocessing import get_context

import pytest
from search_helpers import SPACE, demo, drawn, space_file, start, wait_for, workspace # noqa: F401, two of them are fixtures

from vitnb.experiment.run import read_json
from vitnb.experiment.search import claim, requeue, search, study_rows
from vitnb.experiment.space import check_space, suggest
from vitnb.experiment.study import make_sampler, open_study, study_folder, study_plan

optuna = pytest.importorskip("optuna")


def test_a_trial_that_fails_is_recorded_and_does_not_count(workspace):
    study = open_study("s", demo(workspace, dict(x=[6., 2.]), params=dict(epochs=1)), root=workspace)
    study.enqueue_trial(dict(x=6.))
    study.enqueue_trial(dict(x=2.))
    lines = []
    found = search(study, 1, root=workspace, say=lines.append)
    rows = study_rows(study)
    assert [row["state"] for row in rows] == ["fail", "complete"] and "ValueError: x=6.0 is too far" in rows[0]["why"]
    assert found["best_params"] == dict(x=2.) and found["states"] == dict(complete=1, fail=1) and len(lines) == 2
    assert read_json(workspace/"out"/rows[0]["run"]/"status.json")["status"] == "failed"
    for _ in range(2): study.enqueue_trial(dict(x=6.))
    with pytest.raises(RuntimeError, match="2 trials in a row failed.*too far"): search(study, 5, root=workspace, max_failures=2)


def test_a_killed_search_goes_on_where_it_was(workspace, space_file):
    "SIGKILL amid the second of 3 trials: the next worker takes up its run at the epoch it had reached, and draws what would have been drawn"
    slow = [*space_file, "--trials", "3", "-p", "nap", "0.4"]
    worker = start(workspace, *slow)
    def second():
        runs = sorted((workspace/"out/train_demo").glob("*-s.0001"))
        return runs and (runs[0]/"history.json").is_file() and runs[0]
    run = wait_for(second, "no second trial")
    worker.kill()
    worker.wait()
    done = len(json.loads((run/"history.json").read_text()))
    worker = start(workspace, *slow)
    out,_ = worker.communicate(timeout=200)
    assert worker.returncode == 0, out
    study = open_study("s", root=workspace)
    rows = study_rows(study)
    assert [row["state"] for row in rows] == ["complete", "fail", "complete", "complete"]
    assert rows[1]["run"] == rows[2]["run"] and rows[1]["x"] == rows[2]["x"]
    began = [int(line) for line in (run/"began.txt").read_text().split()]
    assert began[0] == 0 and len(began) == 2 and began[1] >= done > 0
    space = check_space(SPACE)
    whole = [suggest(optuna.create_study(sampler=make_sampler(dict(name="tpe", seed=42), n)).ask(), space) for n in range(3)] # at random at first
    assert drawn(study) == whole


def test_two_workers_share_a_study(workspace, space_file):
    "Between them they carry out what was asked for, no setting twice and no number twice"
    workers = [start(workspace, *space_file, "--trials", "4", "-p", "epochs", "1") for _ in range(2)]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    rows = study_rows(open_study("s", root=workspace))
    assert [row["state"] for row in rows] == ["complete"]*4 and [row["number"] for row in rows] == list(range(4))
    assert len({row["x"] for row in rows}) == 4 and len({row["run"] for row in rows}) == 4
    assert all("trial" in output for output in outputs), "one of them found nothing to do"


@pytest.mark.slow # starts a kernel for each trial
def test_a_signal_ends_a_search_and_its_trial_is_queued_again(workspace, space_file):
    worker = start(workspace, *space_file, "--trials", "1", "-p", "nap", "60")
    wait_for(lambda: list((workspace/"out/train_demo").glob("*/began.txt")), "no trial")
    worker.send_signal(signal.SIGTERM)
    out,_ = worker.communicate(timeout=300)
    assert worker.returncode in (130, 143), out
    states = [row["state"] for row in study_rows(open_study("s", root=workspace))]
    assert states == ["fail", "waiting"]


def carry_on(storage, folder, number):
    "A worker of a study without kernels: each trial reports three epochs and ends"
    study = open_study("s", storage=storage)
    while (trial := claim(study, folder, 20, f"worker{number}")) is not None: # no lock of it lies here, as if it were on another machine
        chosen = suggest(trial, study_plan(study).space)
        for epoch in range(3): trial.report(-(chosen["x"] - 2)**2, epoch)
        study.tell(trial, -(chosen["x"] - 2)**2)


def test_four_processes_on_one_file_of_sqlite_end_twenty_trials(workspace):
    "No number twice, no setting twice, and nobody meets `database is locked`"
    folder = study_folder("s", workspace)
    open_study("s", demo(workspace), folder/"study.db", workspace)
    workers = [get_context("fork").Process(target=carry_on, args=(folder/"study.db", folder, number)) for number in range(4)]
    for worker in workers: worker.start()
    for worker in workers: worker.join(300)
    assert [worker.exitcode for worker in workers] == [0]*4
    trials = open_study("s", storage=folder/"study.db", root=workspace).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"]*20 and [trial.number for trial in trials] == list(range(20))
    assert len({trial.params["x"] for trial in trials}) == 20 and all(len(trial.intermediate_values) == 3 for trial in trials)
    assert len({trial.user_attrs["worker"] for trial in trials}) > 1, "one of them did it all"


@pytest.mark.parametrize("most,times", [(3, 3), (None, 9)])
def test_an_orderly_stop_is_no_failed_try(workspace, most, times):
    "A kill may be the setting's fault, three times at most; a queue may take a job away however often"
    study = open_study("s", demo(workspace))
    trial = study.ask()
    for _ in range(9):
        requeue(study, study.get_trials()[trial.number], most)
        if not study.get_trials(states=[optuna.trial.TrialState.WAITING]): break
        trial = study.ask()
    assert len(study.get_trials()) == 1 + times
