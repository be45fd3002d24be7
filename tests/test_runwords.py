"Under which names MLflow and W&B file a run: parameters, settings, W&B's own variables"
import json

import pytest
from tracker_stores import make, store

from vitnb.callback.track import make_tracker, track_results
from vitnb.core import Settings
from vitnb.experiment.recipes import families
from vitnb.experiment.run import Run, changed_params, family_params
from vitnb.parameters import parse_params
from vitnb.runwords import parse_tags, run_title, run_words, wandb_project

WORDS = dict(experiment="mae_large", tags=dict(version="v2"), wandb_project="retina", wandb_entity="me")


def test_a_parameter_wins_over_the_setting_and_tags_are_joined():
    own = Settings(experiment="all", tags="version=v1, team=eyes", wandb_project="ours", wandb_entity="us")
    assert run_words({}, own) == dict(experiment="all", tags=dict(version="v1", team="eyes"), wandb_project="ours", wandb_entity="us")
    assert run_words(WORDS, own) == {**WORDS, "tags":dict(version="v2", team="eyes")}
    for tags in ("v1.0", "=v1", "version="):
        with pytest.raises(ValueError, match="words by name"): parse_tags(tags)
    for tags in (["v1"], dict(a=[1])):
        with pytest.raises(ValueError, match="must be a dictionary"): run_words(dict(tags=tags), Settings())


def test_wandbs_project_in_order(monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    named = {**WORDS, "wandb_project":""}
    assert [wandb_project(WORDS, "nb"), wandb_project(named, "nb")] == ["retina", "theirs"]
    monkeypatch.delenv("WANDB_PROJECT")
    assert [wandb_project(named, "nb"), wandb_project({**named, "experiment":""}, "nb")] == ["mae_large", "nb"]


@pytest.mark.parametrize("family", sorted(families))
def test_every_notebook_can_be_asked_and_they_decide_nothing(family):
    shown = dict(tag="", seed=42, **({"data":"retina_synthetic"} if family == "finetune" else {})) # its one recipe names no set
    given = parse_params([["note", "lower lr, for it swings"], ["experiment", "mae_large"], ["tags", '{"version": "v1.0"}'], ["wandb_project", "p"], ["wandb_entity", "e"]], shown, family_params(family))
    assert given == dict(note="lower lr, for it swings", experiment="mae_large", tags=dict(version="v1.0"), wandb_project="p", wandb_entity="e")
    assert changed_params(shown, shown | given) == [], "an unfinished run is gone on with under another note"


def test_a_run_keeps_them_and_its_result_has_the_tags(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path))
    monkeypatch.setenv("VITNB_TAGS", "team=eyes")
    run = Run("train_demo", dict(note="a try", tags=dict(version="v1.0")))
    assert run.finish(accuracy=.5) == {"accuracy":.5, "tags.team":"eyes", "tags.version":"v1.0"}
    assert json.loads((run.dir/"params.json").read_text())["note"] == "a try"


def test_mlflow_files_under_the_experiment_with_the_tags_and_the_architecture(store):
    folder,uri,_ = store("mlflow")
    from mlflow import MlflowClient
    (folder/"params.json").write_text(json.dumps(WORDS))
    make().fit(1, cbs=make_tracker("mlflow", folder, uri, tags=dict(study="leaf")))
    track_results(folder, dict(test_accuracy=.5))
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mae_large").experiment_id])
    assert {k:run.data.tags[k] for k in ("version", "study", "arch")} == dict(version="v2", study="leaf", arch="swin_micro")
    phase = folder/"phase1"
    assert make_tracker("mlflow", phase, uri).experiment == "mae_large", "a phase is filed with its run"


def test_wandb_is_given_project_entity_and_tags(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    (tmp_path/"params.json").write_text(json.dumps(WORDS))
    asked = {}
    def init(**kw):
        asked.update(kw)
        raise wandb.errors.UsageError("enough")
    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(RuntimeError, match="enough"): make().fit(1, cbs=make_tracker("wandb", tmp_path, ""))
    assert (asked["project"], asked["entity"], sorted(asked["tags"])) == ("retina", "me", ["arch=swin_micro", "version=v2"])


def test_a_run_is_called_by_what_differs():
    assert run_title("20260101-120000", {}) == "20260101-120000"
    assert run_title("f", dict(lr=.01, seed=2, tag="t", resume="never", note="n")) == "f lr=0.01 seed=2"
    assert len(run_title("f", dict(model_kw="x"*500))) == 120


def test_what_a_run_was_given_is_kept_for_its_name(tmp_path, monkeypatch):
    "Cells as papermill leaves them: the parameters, then what was injected"
    from vitnb.callback.tracker import Tracker
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path))
    cells = ["tag = ''\nlr = .1\nseed = 1", "# Parameters\nlr = 0.2\n"]
    run = Run("train_a", dict(In=cells, tag="", lr=.2, seed=1))
    assert json.loads((run.dir/"status.json").read_text())["given"] == dict(lr=.2)
    assert Tracker(run.dir).title == f"{run.dir.name} lr=0.2"
