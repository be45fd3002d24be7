"Sweeps of Weights & Biases, without it"
import json
import sys

import pytest
from search_helpers import SPACE, workspace # noqa: F401, a fixture

from vitnb.experiment.cli import main
from vitnb.experiment.run import read_json
from vitnb.experiment.search import study_rows
from vitnb.experiment.space import check_space
from vitnb.experiment.study import open_study

pytest.importorskip("optuna")


class FakeRun:
    "A run of a sweep, as far as it is used"
    def __init__(self, config): self.config,self.id,self.logged,self.summary,self.failed = config,f"r{id(config)%997}",[],{},None
    def log(self, values): self.logged.append(values)
    def __enter__(self): return self
    def __exit__(self, kind, *_): self.failed = kind is not None


class FakeServer:
    "What wandb.sweep, agent and init do: keep a sweep by its id, draw settings of it"
    def __init__(self): self.sweeps,self.runs,self.current = {},[],None

    def sweep(self, config, project=None, entity=None):
        self.sweeps["abc123"] = config
        return "abc123"

    def agent(self, sweep, function, entity=None, project=None, count=None):
        self.asked = entity, project
        for i in range(count):
            drawn = {k:p["values"][i % len(p["values"])] if "values" in p else p.get("value", p.get("min")) for k,p in self.sweeps[sweep]["parameters"].items()}
            self.current = FakeRun(drawn)
            self.runs.append(self.current)
            function()

    def init(self): return self.current


@pytest.fixture
def server(monkeypatch):
    fake = FakeServer()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def test_a_sweep_is_created_and_joined_by_its_id(workspace, server, capfd):
    "The plan travels in it; what does not act beside the rest is left out; each trial is a run folder"
    (workspace/"space.json").write_text(json.dumps(SPACE))
    assert main(["sweep", "--wandb", "train_demo.ipynb", "--space", "space.json", "--score", "near", "--better", "max", "--entity", "me", "-p", "epochs", "1"]) == 0
    assert "vitnb sweep-agent me/train_demo/abc123" in capfd.readouterr().out
    config = server.sweeps["abc123"]
    assert config["method"] == "bayes" and config["metric"] == dict(name="near", goal="maximize")
    assert config["early_terminate"] == dict(type="hyperband", min_iter=5, eta=3)
    assert config["parameters"]["x"] == dict(distribution="uniform", min=0., max=4.) and config["parameters"]["kind"] == dict(values=["a", "b"])
    assert main(["sweep-agent", "me/train_demo/abc123", "--count", "2"]) == 0
    assert server.asked == ("me", "train_demo") and [run.failed for run in server.runs] == [False, False]
    asked = [read_json(workspace/"out"/run.summary["run"]/"params.json") for run in server.runs]
    assert [a["kind"] for a in asked] == ["a", "b"] and [run.summary["near"] for run in server.runs] == [-2., -2.]


@pytest.mark.parametrize("entry,wanted", [
    (dict(low=1e-5, high=.1, log=True), dict(distribution="log_uniform_values", min=1e-5, max=.1)),
    (dict(low=5, high=20), dict(distribution="int_uniform", min=5, max=20)), ([16, 32], dict(values=[16, 32])),
    (dict(low=.1, high=.9, step=.2), dict(distribution="q_uniform", q=.2, min=.1, max=.9))])
def test_each_kind_of_entry_in_wandbs_words(workspace, entry, wanted):
    from vitnb.experiment.study import SearchPlan
    from vitnb.experiment.wandbsweep import sweep_config
    assert sweep_config(SearchPlan("n.ipynb", check_space(dict(p=entry)), "s", "min"))["parameters"]["p"] == wanted


class CommError(Exception):
    "W&B's own error, which keeps what it came from"
    def __init__(self, text, exc=None):
        super().__init__(text)
        self.exc = exc


def asked(workspace):
    (workspace/"space.json").write_text(json.dumps(SPACE))
    return ["sweep", "--wandb", "train_demo.ipynb", "--space", "space.json", "--score", "near", "--better", "max", "--sweep-name", "mine", "-p", "epochs", "1"]


@pytest.mark.parametrize("error", [ConnectionError("no route to host"), CommError("no route to host", TimeoutError())], ids=["plain", "wrapped"])
def test_without_a_network_a_sweep_falls_back_to_a_study_of_this_machine_and_says_so(workspace, server, capfd, error):
    "A45: the plan is not lost, and the agent joins it by its name, though nobody said offline"
    def refuse(*_, **__): raise error
    server.sweep = refuse
    assert main(asked(workspace)) == 0
    out = capfd.readouterr().out
    assert f"W&B cannot be reached ({type(error).__name__}: no route to host): the sweep is a study on this machine" in out and "vitnb sweep-agent mine" in out
    server.agent = refuse
    assert main(["sweep-agent", "mine", "--count", "1"]) == 0
    assert [row["state"] for row in study_rows(open_study("mine", root=workspace))] == ["complete"]
    assert main(["sweep-agent", "me/demo/abc123", "--count", "1"]) == 2 and "W&B could not join the sweep" in capfd.readouterr().err


@pytest.mark.parametrize("error", [CommError("permission denied"), PermissionError("api key is not valid")])
def test_what_the_server_refuses_is_an_error_that_names_the_way_without_it(workspace, server, capfd, error):
    def refuse(*_, **__): raise error
    server.sweep = refuse
    assert main(asked(workspace)) == 2
    err = capfd.readouterr().err
    assert str(error) in err and "WANDB_MODE=offline" in err and "vitnb search" in err
    assert not (workspace/"out/search/mine").exists()


def test_offline_a_sweep_is_a_study_of_this_machine(workspace, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (workspace/"space.json").write_text(json.dumps(SPACE))
    assert main(["sweep", "--wandb", "train_demo.ipynb", "--space", "space.json", "--score", "near", "--better", "max", "--sweep-name", "mine", "-p", "epochs", "1"]) == 0
    assert "W&B is offline" in capfd.readouterr().out
    assert main(["sweep-agent", "mine", "--count", "1"]) == 0
    assert [row["state"] for row in study_rows(open_study("mine", root=workspace))] == ["complete"]
    assert main(["sweep-agent", "mine"]) == 2 and "--count" in capfd.readouterr().err
    assert main(["sweep-agent", "other", "--count", "1"]) == 2 and "no study 'other'" in capfd.readouterr().err
