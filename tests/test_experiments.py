"The experiment notebooks run as a user runs them, and fail as a user needs it"
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitnb.core import settings
from vitnb.experiment.card import read_card, verify_card, write_card
from vitnb.experiment.notebook import notebook_params, read_notebook
from vitnb.learner import rebuilt

ROOT = Path(__file__).resolve().parents[1]
SMOKE = [p for p in sorted((ROOT/"nbs").glob("[a-z]*.ipynb")) if "smoke" in notebook_params(read_notebook(p))]
# what compares and measures trains several times, half a minute each and more; all it calls is tested by itself
LONG = {"benchmark":pytest.mark.bench, "compare":pytest.mark.slow, "sweep":pytest.mark.slow}


def marked(path):
    mark = LONG.get(path.stem.split("_")[0])
    return pytest.param(path, id=path.stem, marks=[mark] if mark else [])


def vitnb(*args, out, **env):
    "Run the command with all that it writes in `out`, or beside it"
    beside = {f"VITNB_{k}_PATH":str(out.with_name(f"{out.name}_{k.lower()}")) for k in ("DATA", "CACHE")}
    env = {**os.environ, "VITNB_OUTPUTS_PATH":str(out), **beside, "OMP_NUM_THREADS":"1", **env}
    return subprocess.run([sys.executable, "-m", "vitnb.experiment.cli", "run", *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env)


SCORE = dict(train_chest="test_zone_f1") # by which a notebook is judged, where that is not accuracy
WRONG = {"recipe":("digit", "did you mean 'digits'"), "data":("no/such/folder", "no/such/folder"), "arch":("swin_mikro", "did you mean 'swin_micro'"), "bs":("100000", "100000")}

def smoke(path): return path, "-p", "smoke", "true"


def asked(item):
    "The run that a test wants to see: a name, and what comes after `vitnb run`"
    name,params = getattr(item, "originalname", ""),getattr(getattr(item, "callspec", None), "params", {})
    if name == "test_smoke": return params["path"].stem, smoke(params["path"])
    if name.startswith("test_the_card_of"): return params["name"], smoke(ROOT/f"nbs/{params['name']}.ipynb")
    if name == "test_a_wrong_value_is_a_clear_error_and_an_exit_code": return params["wrong"], (ROOT/"nbs/train_swin.ipynb", "-p", params["wrong"], WRONG[params["wrong"]][0])
    if name == "test_a_dry_run_trains_nothing": return "dry", (ROOT/"nbs/train_swin.ipynb", "-p", "dry_run", "true", "-p", "data", "digits")


@pytest.fixture(scope="module")
def ran(request, tmp_path_factory):
    "All runs that were asked for, one to a core at a time: most of each is the start of a kernel"
    jobs = dict(o for i in request.session.items if (o := asked(i)))
    outs = {k:tmp_path_factory.mktemp(k) for k in jobs}
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    yield {k:(pool.submit(vitnb, *args, out=outs[k]), outs[k]) for k,args in jobs.items()}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("path", map(marked, SMOKE))
def test_smoke(path, ran):
    job,out = ran[path.stem]
    p = job.result()
    assert p.returncode == 0, p.stdout[-3000:] + p.stderr[-3000:]
    run, = (d for d in (out/path.stem).iterdir())
    result = json.loads((run/"result.json").read_text())
    assert result, "a run ends with scores"
    if path.stem == "compare_pretraining":
        means = {k for k in result if f"{k}_lo" in result}
        assert len(means) == 18 and all(result[f"{k}_lo"] <= result[k] <= result[f"{k}_hi"] for k in means), "three ways, two shares, two starts and their difference"
        assert not [d for d in run.iterdir() if d.is_dir() and d.name.startswith("tuned")], "what is known of a training replaces its checkpoints"
    if path.stem == "compare_films":
        assert result["synthetic"] and all(result[f"{k}_lo"] <= result[k] <= result[f"{k}_hi"] for k in ("test_auroc", "probe_auroc", "difference"))
    if path.stem.startswith("train_"):
        score = SCORE.get(path.stem, "test_accuracy")
        assert 0 <= result[f"{score}_lo"] <= result[score] <= result[f"{score}_hi"] <= 1 and result["test_n"] > 0
        have = {str(f.relative_to(run)) for f in run.rglob("*") if f.is_file()}
        assert {"params.json", "environment.json", "history.csv", "history.json", "events.jsonl", "recipe.json", "checkpoints/best_model.pth", "checkpoints/last_model.pth",
                "figures/curves.png", "figures/confusion.png", "figures/predictions.png", f"{path.stem}.ipynb"} <= have
        if path.stem == "train_chest":
            named = "metrics report training_history validation_history".split()
            assert {*(f"{name}.json" for name in named), "test_predictions.csv", "valid_predictions.csv"} <= have
            assert {f"figures/{name}.png" for name in ("roc_pr", "calibration", "index", "risk_coverage", "zone_maps")} <= have
        assert [l for l in p.stdout.splitlines() if l.startswith("epoch 1/1")], "one readable line an epoch"
        assert "it/s" not in p.stdout and "\r" not in p.stdout, "no bar spam"


def spoil(run):
    "Reverse the largest weights of every checkpoint"
    for path in (run/"checkpoints").glob("*.pth"):
        checkpoint = torch.load(path, weights_only=True)
        for state in (value for name,value in checkpoint.items() if name.endswith("state_dict") and isinstance(value, dict)):
            floats = [value for value in state.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
            if floats: max(floats, key=torch.numel).neg_()
        torch.save(checkpoint, path)
        Path(f"{path}.crc32").unlink(missing_ok=True)


@pytest.mark.parametrize("name,score", [
    ("pretrain_hvit", "loss"), ("pretrain_spectral", "mse"), pytest.param("train_chest", "zone_f1", marks=pytest.mark.slow), # half a minute
    *(pytest.param(name, "accuracy", marks=pytest.mark.slow) for name in ("train_densenet", "finetune_hvit"))]) # one task of images, as in test_card
def test_the_card_of_each_family_holds_and_sees_other_weights(name, score, ran, tmp_path, monkeypatch):
    monkeypatch.setattr(rebuilt, "export_facts", lambda run: {}) # test_export and test_rebuilt do that
    job,out = ran[name]
    assert job.result().returncode == 0
    run, = (out/name).iterdir()
    card = write_card(run, tmp_path/"card.ipynb")
    facts,_ = read_card(card)
    assert [key for key in facts["scores"] if score in key], sorted(facts["scores"])
    assert verify_card(card, run)[0] == []
    other = tmp_path/"other"
    shutil.copytree(run, other)
    spoil(other)
    found = [line.split(":")[0] for line in verify_card(card, other)[0]]
    assert "weights" in found and [line for line in found if line.startswith("scores.")] and not [line for line in found if line.startswith(("data", "split"))]



@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_is_a_clear_error_and_an_exit_code(wrong, ran):
    p = ran[wrong][0].result()
    assert p.returncode == 2 and WRONG[wrong][1] in p.stdout + p.stderr, p.stderr[-1500:]


def test_a_dry_run_trains_nothing(ran):
    "Two batches, then the rest of the notebook with the weights as they were"
    job,out = ran["dry"]
    p = job.result()
    assert p.returncode == 0, p.stdout[-3000:] + p.stderr[-3000:]
    run, = (out/"train_swin").iterdir()
    result = json.loads((run/"result.json").read_text())
    assert result["epochs"] == 0 and result["step_seconds"] > 0 and result["train_loss"] > 0 and result["test_n"] > 0
    assert not list(run.rglob("*.pth")) and not (run/"history.csv").exists(), "nothing of a dry run is left to go on from"


def test_a_folder_of_images_without_classes_is_learnt_from(tmp_path):
    "Of any size and mode, with the recipe of a synthetic set whose own options do not go with a folder"
    rng = np.random.default_rng(0)
    for i in range(30):
        image = Image.fromarray(rng.integers(0, 256, (40 + i, 70 - i, 3), np.uint8)).convert(("RGB", "L", "RGBA")[i % 3])
        (folder := tmp_path/"photos"/("holiday" if i % 2 else "")).mkdir(parents=True, exist_ok=True)
        image.save(folder/f"{i}.png")
    p = vitnb(ROOT/"nbs/pretrain_hvit.ipynb", "-p", "smoke", "true", "-p", "data", tmp_path/"photos", "-p", "arch", "swin_micro", "-p", "img_size", "32", out=tmp_path/"out")
    assert p.returncode == 0, p.stdout[-3000:] + p.stderr[-3000:]
    run, = (tmp_path/"out"/"pretrain_hvit").iterdir()
    result = json.loads((run/"result.json").read_text())
    assert result["test_n"] >= 6 and result["valid_loss"] > 0 and result["effective_rank"] >= 1 and not result["synthetic"]
    assert (run/"figures/neighbours.png").exists() and not (run/"figures/probe.png").exists(), "nothing to probe"


def test_an_unknown_parameter_runs_nothing(tmp_path):
    p = vitnb(ROOT/"nbs"/"train_swin.ipynb", "-p", "epoch", "3", out=tmp_path)
    assert p.returncode == 2 and "did you mean 'epochs'" in p.stderr and not list(tmp_path.iterdir())


def test_settings_act(monkeypatch, tmp_path):
    "Each setting reaches what it is for; those of the loader, device and seed have tests of their own"
    from vitnb.learner.core import run_callbacks
    from vitnb.learner.precision import pick_precision
    names = lambda: [type(c).__name__ for c in run_callbacks(tmp_path/"run")]
    monkeypatch.setenv("VITNB_TRACKER", "none")
    assert "TensorBoard" not in names()
    monkeypatch.setenv("VITNB_TRACKER", "tensorboard")
    assert "TensorBoard" in names()
    monkeypatch.setenv("VITNB_PRECISION", "bf16")
    assert str(pick_precision(None, "cpu")) == "torch.bfloat16"
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path))
    assert settings().outputs_path == tmp_path.resolve()
