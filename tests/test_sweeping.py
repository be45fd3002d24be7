"`vitnb sweep`, as a shell meets it"
import json

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
