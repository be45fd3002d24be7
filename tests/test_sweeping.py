"`vitnb sweep`, as a shell meets it"
import json
from pathlib import Path

import pytest
from search_helpers import workspace # noqa: F401, a fixture

from vitnb.experiment import sweeping
from vitnb.experiment.cli import main, parser
from vitnb.experiment.sweeping import sweep_of


def parsed(*args):
    args = parser().parse_args(["sweep", *args])
    return args


def test_a_sweep_is_typed_read_or_named(workspace):
    typed = sweep_of(parsed("train_demo.ipynb", "--space", '{"x": [0.0, 1.0]}', "--score", "near", "--better", "max", "-p", "epochs", "2", "--run-name", "x{x}"))
    (workspace/"s.json").write_text(json.dumps(dict(notebook="train_demo.ipynb", space=dict(x=[0., 1.]), score="near", better="max", name="x{x}")))
    assert sweep_of(parsed("s.json", "-p", "epochs", "2")) == typed and typed.search.params == dict(epochs=2) and typed.runs == 2


@pytest.mark.parametrize("args,says", [
    (["nothing"], "neither a notebook"), (["train_demo.ipynb"], "--space is missing"), (["train_demo.ipynb", "--space", "{}", "--score", "near", "--better", "max"], "dictionary of parameters"),
    (["train_demo.ipynb", "--space", '{"y": [1]}', "--score", "near", "--better", "max"], "unknown parameter 'y'"),
    (["train_demo.ipynb", "--space", '{"x": [1.0]}', "--score", "near", "--better", "max", "--workers", "0"], "workers=0"), (["other.ipynb", "--space", '{"x": [1]}', "--score", "a", "--better", "max"], "no notebook")])
def test_a_wrong_call_is_one_line_and_exit_2(workspace, capfd, args, says):
    assert main(["sweep", *args]) == 2
    err = capfd.readouterr().err
    assert says in err and "Traceback" not in err and not (workspace/"out/train_demo").exists()


def test_with_wandb_a_notebook_creates_and_an_id_joins(workspace, monkeypatch):
    called = []
    monkeypatch.setattr(sweeping, "create_wandb_sweep", lambda args: called.append(("create", args.notebook)) or 0)
    monkeypatch.setattr(sweeping, "join_sweep", lambda name, count: called.append(("join", name, count)) or 3)
    assert main(["sweep", "--wandb", "train_demo.ipynb", "--space", "s.json"]) == 0 and main(["sweep", "--wandb", "me/project/abc123", "--runs", "3"]) == 0
    assert called == [("create", "train_demo.ipynb"), ("join", "me/project/abc123", 3)]


SCORED = ["--score", "near", "--better", "max"]
REAL = "nbs/train_swin.ipynb" # of a family, whose columns and fields are known


@pytest.mark.parametrize("args,says", [
    ([REAL, "--space", '{"lr": [0.1]}', "--score", "nope", "--better", "max"], "nothing that a run writes"),
    ([REAL, "--space", '{"lr": [0.1]}', "--score", "valid_accuracy", "--better", "min"], "the max is better"),
    ([REAL, "--space", '{"lr": [-0.1]}', "--score", "accuracy", "--better", "max"], "lr=-0.1"),
    ([REAL, "--space", '{"arch": ["swin_micro", "swin_tinny"]}', "--score", "accuracy", "--better", "max"], "swin_tinny"),
    ([REAL, "--space", '{"lr": [0.1]}', "--score", "accuracy", "--better", "max", "-p", "data", "nowhere"], "nowhere"),
    (["DEMO", *SCORED, "--minutes", "nan"], "minutes=nan"), (["DEMO", *SCORED, "--minutes", "inf"], "minutes=inf"), (["DEMO", *SCORED, "--seed", "-1"], "seed=-1"),
    (["DEMO", *SCORED, "--startup", "3"], "startup=3 does nothing"), (["DEMO", *SCORED, "--storage", "x.db"], "storage does nothing"),
    (["DEMO", *SCORED, "--devices", ""], "empty name"), (["DEMO", *SCORED, "--devices", "97"], "not on this machine"), (["DEMO", *SCORED, "--project", "p"], "--project does nothing"),
    (["DEMO", *SCORED, "--run-name", "x{x"], "cannot be filled in"), (["DEMO", *SCORED, "--run-name", "{x:q}"], "cannot be filled in"),
    (["DEMO", *SCORED, "--method", "tpe", "--runs", "2", "--pruner", '{"name": "median", "n_startup_trials": -2}'], "pruners: median cannot be made"),
    (["DEMO", *SCORED, "--method", "tpe", "--runs", "2", "--pruner", '{"name": "median", "warm": 2}'], "pruners: median cannot be made"),
    (["DEMO", *SCORED, "--method", "tpe", "--runs", "2", "--storage", "postgresql://nobody@127.0.0.1:1/none"], "cannot be reached"),
    (["DEMO", *SCORED, "--method", "tpe", "--runs", "2", "--storage", "no/folder/here.db"], "cannot be reached"),
    (["--wandb", "me/p/1", "--minutes", "3"], "--minutes does nothing"), (["--wandb", "me/p/1", "--runs", "0"], "--runs 0"), (["--wandb", "me/p/1", "--score", "a"], "--score does nothing")])
def test_what_can_be_known_to_be_wrong_is_refused_before_there_is_a_folder(workspace, capfd, monkeypatch, args, says):
    repository = Path(__file__).resolve().parent.parent
    args = [str(repository/arg) if arg == REAL else arg for arg in args]
    if args[0] == "DEMO": args = ["train_demo.ipynb", "--space", '{"x": [0.0, 1.0]}', *args[1:]]
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(workspace/"out"))
    assert main(["sweep", *args]) == 2
    err = capfd.readouterr().err
    assert says in err and err.count("\n") == 1, err
    assert not [path for path in (workspace/"out").rglob("*") if path.is_file() and path.name != ".lock"], "nothing was begun"


@pytest.mark.parametrize("wrong,says", [(dict(space=[1]), "dictionary of parameters"), (dict(params=[1]), "must be a dict"), (dict(pruner=3, method="tpe", runs=2), "pruners=3"), (dict(score=3), "score=3"),
    (dict(pick="nope"), "pick"), (dict(runs="two", method="random"), "runs='two'"), (dict(name=3), "name=3"), (dict(startup=-1, method="tpe", runs=2), "startup=-1"), (dict(space=dict(x=dict(low=0, high=1e999))), "no number"),
    (dict(space=dict(x=dict(low=0, high=1, step="a"))), "step"), (dict(space=dict(x=dict(low=0., high=1., when=3))), "when")])
def test_a_file_of_a_sweep_that_cannot_be_meant(workspace, capfd, wrong, says):
    said = dict(dict(notebook="train_demo.ipynb", space=dict(x=[0., 1.]), score="near", better="max"), **wrong)
    (workspace/"s.json").write_text(json.dumps(said))
    assert main(["sweep", "s.json"]) == 2
    err = capfd.readouterr().err
    assert says in err and err.count("\n") == 1, err
