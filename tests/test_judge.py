"What a run reports is told to its study, and the run is answered: from the files of the run folder alone"
import json
import threading
import time
import warnings

import pytest

from vitnb.callback.history import EventLog
from vitnb.callback.trial import RunReporter, read_verdict
from vitnb.experiment.judge import Judge, looking
from vitnb.storage import VERDICT, make_pruner, open_storage
from vitnb.written import sealed_line

optuna = pytest.importorskip("optuna")
CURVES = [[.1, .5, .9], [.3, .4, .5], [.2, .6, .7]]


def study_of(curves, storage=None):
    "A study in which some trials are complete"
    pruner = make_pruner(dict(name="median", n_startup_trials=len(curves), n_warmup_steps=2))
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize", pruner=pruner)
    for curve in curves:
        trial = study.ask()
        for i,value in enumerate(curve): trial.report(value, i + 1)
        study.tell(trial, curve[-1])
    return study


@pytest.mark.parametrize("new", [[.05, .45], [.05, .5, .6, .7], [.4, .1, .1]])
def test_a_run_is_pruned_where_the_median_says_so(tmp_path, new):
    "The rule by hand: the best value so far, against the median of the others at that epoch; asked and answered through files"
    study = study_of(CURVES, open_storage(tmp_path/"s.db"))
    tell = RunReporter(tmp_path, patience=60.)
    said = []
    with looking(Judge(study.ask(), tmp_path, "f1").look):
        for epoch,value in enumerate(new, 1):
            said.append(tell(epoch, value))
            if said[-1]: break
    medians = [sorted(curve[i] for curve in CURVES)[1] for i in range(3)] + [-1.] # nobody has a fourth epoch
    by_hand = [i >= 1 and max(new[:i+1]) < medians[i] for i in range(len(new))]
    assert [bool(why) for why in said] == by_hand[:len(said)] and (len(said) == len(new) or by_hand[len(said) - 1])
    if said[-1]: assert f"pruned after epoch {len(said)}: f1 {new[len(said) - 1]:.4g} is worse" in said[-1]
    assert study.trials[-1].intermediate_values == dict(enumerate(new[:len(said)], 1))


def test_what_an_earlier_try_reported_is_known_and_asks_for_no_verdict(tmp_path):
    "The run had been killed after its report of epoch 2, which it repeats; the old verdict is not taken for the new one"
    study = study_of(CURVES)
    trial = study.ask()
    trial.report(.05, 1)
    events = EventLog(tmp_path/"events.jsonl")
    for epoch,value in ((1, .05), (2, .45)): events.write("report", epoch=epoch, value=value)
    (tmp_path/VERDICT).write_text(sealed_line(dict(epoch=2, why="pruned")))
    with warnings.catch_warnings():
        warnings.simplefilter("error") # Optuna warns of an epoch that is reported twice
        judge = Judge(trial, tmp_path, "f1")
        assert read_verdict(tmp_path) == {} and study.trials[-1].intermediate_values == {1:.05, 2:.45}
        judge.look()
        assert read_verdict(tmp_path) == {}
        events.write("report", epoch=2, value=.45)
        judge.look()
    assert read_verdict(tmp_path)["epoch"] == 2 and "pruned after epoch 2" in read_verdict(tmp_path)["why"]


def test_a_study_that_does_not_answer_costs_a_verdict_and_no_training(tmp_path, monkeypatch):
    import sqlalchemy
    study = study_of(CURVES, open_storage(tmp_path/"s.db"))
    lines = []
    judge = Judge(study.ask(), tmp_path, "f1", lines.append)
    def fail(*args): raise sqlalchemy.exc.OperationalError("s", None, "locked")
    monkeypatch.setattr(judge.trial, "report", fail)
    EventLog(tmp_path/"events.jsonl").write("report", epoch=1, value=.1)
    judge.look()
    assert read_verdict(tmp_path) == dict(epoch=1, why="") and "epoch 1 was not reported (OperationalError)" in lines[0]


@pytest.mark.parametrize("line", ["", "{", "[1]", '{"event": "report"}', '{"event": "report", "epoch": true, "value": 1}', '{"event": "report", "epoch": 1, "value": "x"}',
                                  sealed_line(dict(event="report", epoch=1, value=.5)).replace("0.5", "0.6"), '{"event": "epoch", "epoch": 1, "value": 1}'])
def test_a_line_that_is_no_report_is_passed_over(tmp_path, line):
    study = study_of(CURVES)
    judge = Judge(study.ask(), tmp_path, "f1")
    (tmp_path/"events.jsonl").write_text(line + "\n")
    judge.look()
    assert study.trials[-1].intermediate_values == {} and read_verdict(tmp_path) == {}
    with (tmp_path/"events.jsonl").open("a") as file: file.write(json.dumps(dict(event="report", epoch=1, value=.5)) + "\n")
    judge.look()
    assert study.trials[-1].intermediate_values == {1:.5}


def test_without_an_answer_training_goes_on_and_waits_once(tmp_path, capsys):
    tell = RunReporter(tmp_path, patience=.2)
    assert [tell(epoch, .5) for epoch in range(1, 101)] == [None]*100
    assert tell.patience == 0 and capsys.readouterr().out == "epoch 1: no verdict after 0.2 s; training goes on\n"
    (tmp_path/VERDICT).write_bytes(b'{"epoch": 10')
    assert tell(101, .5) is None, "a verdict that is half there"
    (tmp_path/VERDICT).write_text(sealed_line(dict(epoch=90, why="pruned after epoch 90: late")))
    assert tell(102, .5) == "pruned after epoch 90: late", "a verdict that comes late"


def test_an_answer_is_awaited(tmp_path):
    def answer():
        time.sleep(.3)
        (tmp_path/VERDICT).write_text(sealed_line(dict(epoch=3, why="")))
    thread = threading.Thread(target=answer)
    thread.start()
    (tmp_path/VERDICT).write_text(sealed_line(dict(epoch=2, why="")))
    assert RunReporter(tmp_path, patience=60.)(3, .5) is None and read_verdict(tmp_path)["epoch"] == 3
    thread.join()
