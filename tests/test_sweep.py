"A sweep's folder: the journal, what is done and what is left, whatever a kill leaves"
import json
from pathlib import Path

import pytest
from search_helpers import workspace # noqa: F401, a fixture
from sweep_helpers import Pretend, plan_of

from vitnb.experiment.sweep import Configuration, Sweep, read_journal
from vitnb.experiment.sweeper import run_sweep


def run(plan, executor, **how): return run_sweep(plan, executor=executor, say=lambda line: None, **how)
def states(sweep): return [one.state for _,one in sorted(sweep.rows.items())]


def test_every_configuration_is_run_once_and_the_best_is_written(workspace):
    executor = Pretend()
    sweep = run(plan_of(workspace), executor, workers=2)
    assert [params["x"] for params in executor.begun] == [0., 1., 2.] and states(sweep) == ["finished"]*3
    assert json.loads((sweep.folder/"best_params.json").read_text())["best_params"] == dict(x=2.) and sweep.best().tag == "x2.0"
    assert [run.params["tag"] for run in sweep.compare().runs] == ["x2.0", "x1.0", "x0.0"], "the best first"
    assert run(plan_of(workspace), executor).counts() == dict(finished=3) and len(executor.begun) == 3, "begun again there is nothing to do"


def test_what_failed_is_kept_and_counted_and_run_again_on_request(workspace):
    "One raises, one is lost with its worker: the lost one is run again by itself"
    lost = iter(["lost", "finished"])
    executor = Pretend(lambda x: "failed" if x == 0 else next(lost) if x == 1 else "finished")
    sweep = run(plan_of(workspace), executor)
    assert states(sweep) == ["failed", "finished", "finished"] and [params["x"] for params in executor.begun] == [0., 1., 1., 2.]
    assert "failed" in (sweep.folder/"table.csv").read_text()
    again = Pretend()
    assert states(run(plan_of(workspace), again)) == ["failed", "finished", "finished"] and not again.begun
    assert states(run(plan_of(workspace), again, retry_failed=True)) == ["finished"]*3 and len(again.begun) == 1


def test_a_configuration_that_kills_its_worker_again_and_again_fails(workspace):
    executor = Pretend(lambda x: "lost" if x == 1 else "finished")
    sweep = run(plan_of(workspace), executor)
    assert states(sweep) == ["finished", "failed", "finished"] and sweep.rows[1].why.startswith("killed 3 times")


def test_a_score_that_the_runs_do_not_write_loses_no_run(workspace):
    executor = Pretend(lambda x: "mute")
    with pytest.raises(ValueError, match="has no score 'near'.*the runs are kept"): run(plan_of(workspace), executor)
    with pytest.raises(ValueError, match="has no score 'near'"): run(plan_of(workspace), executor)
    assert len(executor.begun) == 1, "nothing more is begun"
    with Sweep(plan_of(workspace)) as sweep:
        assert states(sweep) == ["finished", "waiting", "waiting"]
        (sweep.run_dir(sweep.rows[0])/"result.json").write_text(json.dumps(dict(f1=.5)))
    from vitnb.experiment.configurations import make_sweep
    other = make_sweep(workspace/"train_demo.ipynb", dict(x=[0., 1., 2.]), "f1", "max")
    with Sweep(other) as sweep: assert sweep.best().number == 0


def test_a_run_whose_score_is_damaged_stops_no_sweep(workspace):
    "It is passed over, and the best of the others is named"
    run(plan_of(workspace), Pretend())
    with Sweep(plan_of(workspace)) as sweep: (sweep.run_dir(sweep.rows[0])/"history.json").write_text("[{")
    again = run(plan_of(workspace), Pretend())
    assert again.best().params == dict(x=2.) and again.value(again.rows[0]) is None and states(again) == ["finished"]*3


def test_of_an_edited_notebook_nothing_more_is_begun(workspace):
    "The runs of one sweep are of one text; put back, it goes on"
    path = workspace/"train_demo.ipynb"
    old = path.read_text()
    executor = Pretend(lambda x: path.write_text(f"{old} ") and "finished")
    with pytest.raises(ValueError, match="train_demo.ipynb was edited while the sweep ran.*put back"): run(plan_of(workspace), executor)
    path.write_text(old)
    assert [one["x"] for one in executor.begun] == [0.] and states(run(plan_of(workspace), Pretend())) == ["finished"]*3


def test_two_sweeps_on_one_folder_and_another_plan_are_refused(workspace):
    with Sweep(plan_of(workspace)):
        import vitnb.runfolder as runfolder
        descriptor = runfolder._held.pop(runfolder._key(workspace/"out/sweeps/train_demo")) # as another process sees it
        with pytest.raises(ValueError, match="is under way.*name of its own"): Sweep(plan_of(workspace)).__enter__()
        runfolder._held[runfolder._key(workspace/"out/sweeps/train_demo")] = descriptor
    with pytest.raises(ValueError, match="another plan.*space.x"): run(plan_of(workspace, dict(x=[0., 3.])), Pretend())
    (workspace/"train_demo.ipynb").write_text((workspace/"train_demo.ipynb").read_text().replace("best at 2", "best at 3"))
    with pytest.raises(ValueError, match="was edited since"): run(plan_of(workspace), Pretend())


def test_a_random_sweep_grows(workspace):
    space = dict(x=dict(low=0., high=4.))
    executor = Pretend()
    run(plan_of(workspace, space, runs=2), executor)
    run(plan_of(workspace, space, runs=5), executor)
    assert len({params["x"] for params in executor.begun}) == 5 == len(executor.begun)


@pytest.mark.parametrize("name,spoil,says", [
    ("runs.jsonl", Path.unlink, "is gone or empty"), ("runs.jsonl", lambda path: path.write_bytes(b""), "is gone or empty"),
    ("runs.jsonl", lambda path: path.write_bytes(path.read_text().encode("utf-16")), "holds no line"), ("runs.jsonl", lambda path: path.write_text("null"), "holds no line"),
    ("runs.jsonl", lambda path: (path.unlink(), path.mkdir()), "is no file"), ("plan.json", Path.unlink, "is gone or empty"), ("plan.json", lambda path: path.write_text("{}"), "is gone or empty")])
def test_a_sweep_whose_files_are_lost_is_not_run_again_in_silence(workspace, name, spoil, says):
    executor = Pretend()
    folder = run(plan_of(workspace), executor).folder
    spoil(folder/name)
    with pytest.raises(ValueError, match=f"{name} {says}.*put back a copy"): run(plan_of(workspace), executor)
    assert len(executor.begun) == 3


@pytest.mark.parametrize("line", [dict(number="1"), dict(params=None), dict(run=3), dict(state=[]), dict(tries=True)])
def test_a_line_of_the_journal_with_other_kinds_of_values_is_passed_over(workspace, line, capfd):
    folder = run(plan_of(workspace), Pretend()).folder
    lines = (folder/"runs.jsonl").read_text().splitlines()
    wrong = {name:value for name,value in (json.loads(lines[-1]) | line).items() if name != "crc32"}
    (folder/"runs.jsonl").write_text("\n".join([*lines, json.dumps(wrong), lines[0], ""]))
    assert set(read_journal(folder/"runs.jsonl")) == {0, 1, 2} and f"line {len(lines) + 1} of" in capfd.readouterr().out


@pytest.mark.parametrize("cut", [250, 333, 500, 777])
def test_a_journal_that_is_cut_anywhere_loses_no_run(workspace, cut):
    "The run folder is the truth: with the journal cut at any byte nothing that it still names is run twice"
    executor = Pretend()
    sweep = run(plan_of(workspace), executor)
    journal = sweep.folder/"runs.jsonl"
    text = journal.read_bytes()
    journal.write_bytes(text[:cut % (len(text) + 1)])
    known = {one.number for one in read_journal(journal).values() if one.run}
    again = run(plan_of(workspace), executor)
    assert states(again) == ["finished"]*3 and len(executor.begun) == 3 + 3 - len(known)
    assert all(isinstance(one, Configuration) for one in read_journal(journal).values())


def test_tpe_is_told_once_and_goes_on(workspace):
    "Pruned and failed trials count; a trial that was asked for and never placed is none"
    optuna = pytest.importorskip("optuna")
    plan = plan_of(workspace, dict(x=dict(low=0., high=4.)), method="tpe", runs=6, startup=3)
    executor = Pretend(lambda x: "failed" if x > 3.5 else "finished")
    half = plan_of(workspace, dict(x=dict(low=0., high=4.)), method="tpe", runs=3, startup=3)
    first = run(half, executor)
    first.study.ask()
    sweep = run(plan, executor)
    trials = sweep.study.get_trials()
    assert len(executor.begun) == 6 and sum(trial.state.name == "COMPLETE" for trial in trials) == sweep.counts()["finished"]
    for one in sweep.rows.values():
        if one.state == "finished": assert trials[one.trial].value == pytest.approx(-(one.params["x"] - 2)**2) and trials[one.trial].params == one.params
    assert not [trial for trial in trials if trial.state == optuna.trial.TrialState.RUNNING]


def test_a_study_that_is_lost_is_not_begun_again(workspace):
    pytest.importorskip("optuna")
    plan = plan_of(workspace, dict(x=dict(low=0., high=4.)), method="tpe", runs=1, startup=1)
    (run(plan, Pretend()).folder/"study.db").unlink()
    with pytest.raises(ValueError, match="no trial 0.*study.db"): run(plan, Pretend())


@pytest.mark.parametrize("name,content", [("columns.json", dict(near=3)), ("columns.json", dict(near={})), ("history.json", [dict(epoch=1, near="best")]), ("history.json", [None])])
def test_a_score_that_is_damaged_is_named_once(workspace, name, content, capfd):
    sweep = run(plan_of(workspace), Pretend())
    (sweep.run_dir(sweep.rows[2])/name).write_text(json.dumps(content))
    assert run(plan_of(workspace), Pretend()).best().params == dict(x=1.) and capfd.readouterr().out.count(name) == 1


def test_what_a_sweep_of_wandb_was_called_is_still_there():
    from vitnb.experiment.sweep import sweep_config
    from vitnb.experiment.wandbsweep import sweep_config as moved
    assert sweep_config is moved
