"Searches from the command line"
import json
import os
import signal

import psutil
import pytest
from search_helpers import SPACE, space_file, start, wait_for, workspace # noqa: F401, two of them are fixtures

from vitnb.experiment.cli import main, parser
from vitnb.experiment.commands import worker_line
from vitnb.experiment.run import read_json
from vitnb.experiment.search import study_rows
from vitnb.experiment.study import open_study

pytest.importorskip("optuna")


def test_a_study_from_the_command_line_to_its_best_parameters(workspace, capfd):
    "Each trial is a run folder; best_params.json is what `hyperparams` applies, all of it"
    (workspace/"space.json").write_text(json.dumps(dict(space=SPACE, score="near", better="max")))
    command = ["search", "train_demo.ipynb", "--space", "space.json", "--trials", "3", "--study", "s", "-p", "epochs", "2"]
    assert main(command) == 0
    out = capfd.readouterr().out
    best = read_json(workspace/"out/search/s/best_params.json")
    assert "study s" in out and "-p epochs 2 -p hyperparams" in out and best["study_name"] == "s" and best["n_trials"] == 3
    assert {"best_value", "best_params", "n_trials", "study_name", "optimization_time"} <= best.keys()
    lines = (workspace/"out/search/s/trials.csv").read_text().splitlines()
    assert len(lines) == 4 and (workspace/"out/search/s/history.png").is_file()
    run = workspace/"out"/best["best_run"]
    asked = {k:v for k,v in read_json(run/"params.json").items() if k in best["best_params"]}
    assert asked == best["best_params"] and read_json(run/"status.json")["status"] == "finished"
    assert best["best_value"] == max(row["near"] for row in json.loads((run/"history.json").read_text()))
    assert main(command) == 0 and len(list((workspace/"out/train_demo").iterdir())) == 3 # enough have ended: nothing more is run
    assert main(["search", "train_demo.ipynb", "--space", "space.json", "--trials", "4", "--study", "s"]) == 2
    assert "exists with another plan (params.epochs: 2 -> None)" in capfd.readouterr().err


def test_workers_of_one_command_are_the_same_command_without_their_number(workspace):
    line = ["search", "train_demo.ipynb", "--space", "space.json", "--score", "near", "--better", "max", "--trials", "3", "--pruner", "none", "-p", "epochs", "2", "-p", "kind", "a"]
    args = parser().parse_args([*line, "--processes", "3"])
    again = parser().parse_args(worker_line(args))
    assert vars(again) == {**vars(args), "processes":1}


@pytest.mark.slow # starts a kernel for each trial
def test_processes_share_a_study_and_a_signal_ends_them_all(workspace, space_file):
    worker = start(workspace, *space_file, "--trials", "3", "--processes", "2", "-p", "epochs", "1")
    out = worker.communicate(timeout=300)[0]
    assert worker.returncode == 0 and out.count(": complete") == 3, out
    rows = study_rows(open_study("s", root=workspace))
    assert [row["state"] for row in rows] == ["complete"]*3 and len({row["x"] for row in rows}) == 3
    worker = start(workspace, "--space", "space.json", "--study", "t", "--trials", "2", "--processes", "2", "-p", "nap", "60")
    wait_for(lambda: len([p for p in (workspace/"out/train_demo").glob("*t.0*/began.txt")]) == 2, "not two trials at once")
    worker.send_signal(signal.SIGTERM)
    out = worker.communicate(timeout=300)[0]
    assert worker.returncode in (130, 143), out
    states = [row["state"] for row in study_rows(open_study("t", root=workspace))]
    assert sorted(states) == ["fail", "fail", "waiting", "waiting"], "both trainings are queued again"


def test_no_process_is_no_search(workspace, space_file, capfd):
    assert main(["search", "train_demo.ipynb", *space_file, "--processes", "0"]) == 2 and "from 1" in capfd.readouterr().err


@pytest.mark.slow # starts a kernel for each trial
def test_workers_end_with_the_process_that_started_them(workspace, space_file):
    "SIGKILL of the one that was typed: the others stop, what had ended stays, and the same command goes on"
    slow = [*space_file, "--trials", "3", "--processes", "2", "-p", "nap", "0.5"]
    search = start(workspace, *slow)
    began = lambda number: list((workspace/"out/train_demo").glob(f"*-s.000{number}/began.txt"))
    wait_for(lambda: began(2), "no third trial")
    started = psutil.Process(search.pid).children(recursive=True)
    search.kill()
    search.communicate(timeout=120)
    _,alive = psutil.wait_procs(started, timeout=30)
    assert started and not alive, [process.cmdline() for process in alive]
    ended = [row for row in study_rows(open_study("s", root=workspace)) if row["state"] == "complete"]
    assert ended, "the first of two had ended when the third began"
    search = start(workspace, *slow)
    out = search.communicate(timeout=300)[0]
    rows = [row for row in study_rows(open_study("s", root=workspace)) if row["state"] == "complete"]
    assert search.returncode == 0 and len(rows) == 3 and all(row in rows for row in ended), out


def test_a_worker_whose_parent_is_gone_takes_no_trial(workspace, space_file):
    worker = start(workspace, *space_file, "--trials", "2", "--parent", "1" if os.getpid() != 1 else "2")
    worker.communicate(timeout=120)
    assert worker.returncode in (-signal.SIGTERM, 130, 143)
    assert not list((workspace/"out").glob("train_demo/*/began.txt"))
