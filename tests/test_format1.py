"Runs of format 1, as make_format1_fixtures.py left them with commit 2cdb6f0: what they predicted then they predict now"
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vitnb.callback.checkpoint import load_checkpoint, newest_state
from vitnb.data.cube import make_normalizer
from vitnb.experiment.recipes import stored_recipe
from vitnb.experiment.run import read_json
from vitnb.learner.core import load_model
from vitnb.learner.spectral import find_checkpoint
from vitnb.losses.spectral import reconstruct

ROOT = Path(__file__).resolve().parent/"fixtures"/"format1"
FOLDERS = {p.name:p for p in sorted(ROOT.iterdir()) if p.is_dir()}
CHECKPOINTS = [(name, file) for name in FOLDERS for file in ("best_model.pth", "last_model.pth")]
EPOCHS = dict(swin=5, densenet=4, spectral=6, label_map=6)
each_folder = pytest.mark.parametrize("name", FOLDERS)
each_checkpoint = pytest.mark.parametrize("name,file", CHECKPOINTS, ids="-".join)


def told(name): return torch.load(FOLDERS[name]/"predictions.pt", weights_only=True)
def config(name, file="best_model.pth"): return load_checkpoint(FOLDERS[name]/"checkpoints"/file)["config"]


def near(a, b):
    "Within 1e-5, in the units of what the model gives, which are of the order of 1"
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-5)


def test_all_four_kinds_of_run_are_there():
    assert set(FOLDERS) == {"swin", "densenet", "spectral", "label_map"}


@each_checkpoint
@torch.no_grad()
def test_the_model_predicts_what_it_predicted(name, file):
    model,known = load_model(FOLDERS[name]/"checkpoints"/file),told(name)
    want = known["outputs"][file]
    if name == "spectral":
        got = model(known["inputs"], known["order"])
        assert got.keys() == want.keys()
        for k,v in want.items(): assert near(got[k], v) if torch.is_tensor(v) else got[k] == v, k
        assert near(reconstruct(got, known["inputs"]), known["filled"][file])
    else:
        got = model(known["inputs"])
        assert near(got, want) and near(got.softmax(1), known["probabilities"][file])


@each_folder
def test_a_change_of_weights_would_be_seen(name):
    "The check itself: another checkpoint, or one weight that is a hundredth off, predicts something else"
    known = told(name)
    args = [known[k] for k in ("inputs", "order") if k in known]
    first = lambda out: out["pred"] if isinstance(out, dict) else out
    model = load_model(FOLDERS[name]/"checkpoints/last_model.pth")
    weight = next(p for n,p in model.named_parameters() if p.ndim > 1)
    with torch.no_grad():
        weight.mul_(1.01)
        assert not near(first(model(*args)), first(known["outputs"]["last_model.pth"]))


@each_folder
def test_raw_data_become_the_inputs(name):
    "What the checkpoint says of the normalisation is enough, but for the label map, whose format 1 does not hold it"
    known,c = told(name),config(name)
    if name in ("swin", "densenet"):
        mean,std = (torch.tensor(c[k])[:,None,None] for k in ("mean", "std"))
        got = (known["raw"].movedim(-1, 1)/255 - mean)/std
    else:
        norm = c["normalizer"] if name == "spectral" else known["normalizer"]
        assert norm == known["normalizer"]
        got = make_normalizer(**norm).normalize(known["raw"])
    assert known["raw"].dtype == (torch.uint8 if name in ("swin", "densenet") else torch.float32)
    if name == "spectral": got = torch.where(known["targets"], got, 0.)
    if name == "label_map": got = torch.where((known["inputs"] != 0).any(1, keepdim=True), got, 0.)
    assert near(got, known["inputs"])


def test_the_autoencoder_says_all_that_it_said_of_its_data():
    c = config("spectral")
    assert c["normalizer"]["kind"] == "zscore" and len(c["normalizer"]["mean"]) == len(c["wavelengths"]) == 10
    assert c["model_kw"]["wavelengths"] == c["wavelengths"] and c["rgb_bands"] == [3, 2, 0]
    assert load_model(FOLDERS["spectral"]/"checkpoints/best_model.pth").wavelengths == pytest.approx(c["wavelengths"])
    assert dict(stored_recipe(FOLDERS["spectral"]))["normalize"] == "zscore"


def test_the_label_map_says_all_that_it_said_of_its_data():
    c,known = config("label_map"),told("label_map")
    assert c["classes"] == ["tissue", "artery", "vein", "disc"] and c["model_kw"]["head"] == "pixel"
    assert len(c["model_kw"]["wavelengths"]) == 10 and c["mean"] == known["normalizer"]["mean"]
    assert set(known["targets"].unique().tolist()) <= {-100, 0, 1, 2, 3} and "normalizer" not in c


@each_checkpoint
def test_a_checkpoint_is_plain_and_of_format_1(name, file):
    "Readable without running code from it, and with all that format 1 had"
    ck = torch.load(FOLDERS[name]/"checkpoints"/file, weights_only=True)
    assert ck["format"] == 1 and ck["monitor"] == ("mse_masked" if name == "spectral" else "accuracy")
    assert {"model_state_dict", "epoch", "global_step", "metrics", "best", "best_epoch", "config"} <= ck.keys()
    assert ("training_state" in ck) == (file == "last_model.pth")
    assert {"arch", "model_kw", "classes", "mean", "std", "training"} <= ck["config"].keys()


@each_folder
def test_a_finished_run_holds_its_history_and_its_last_state(name):
    folder = FOLDERS[name]
    rows,state = json.loads((folder/"history.json").read_text()),newest_state(folder/"checkpoints")
    assert [r["epoch"] for r in rows] == list(range(1, EPOCHS[name] + 1))
    assert len((folder/"history.csv").read_text().splitlines()) == len(rows) + 1
    assert state["epochs_done"] == len(rows) and state["opt_steps"] == rows[-1]["step"]
    assert read_json(folder/"status.json")["status"] == "finished" and read_json(folder/"result.json")["test_n"] > 0
    assert find_checkpoint(folder).name == "best_model.pth"


def texts(path):
    "A file as text; of a torch file all that is not a tensor's bytes"
    if path.suffix not in (".pth", ".pt"): return path.read_text(encoding="utf-8")
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as z:
        return "\n".join(z.read(n).decode("latin1") for n in z.namelist() if "/data/" not in n)


@each_folder
def test_no_file_names_a_path_of_this_machine_and_each_folder_is_small(name):
    files = [p for p in FOLDERS[name].rglob("*") if p.is_file()]
    word = "|".join(("work", "tmp", "farm", "root", "opt", "home", "Users", "var", "mnt"))
    for p in files: assert not re.findall(rf"(?<![\w./~])/(?:{word})/\S*", texts(p)), p.name
    assert sum(p.stat().st_size for p in files) < 400_000
    assert read_json(FOLDERS[name]/"environment.json")["commit"].startswith("2cdb6f0")
    assert read_json(FOLDERS[name]/"status.json")["host"] == "host"


def test_the_best_of_a_run_can_be_another_than_the_last():
    "Or a mistake between the two files would not be seen"
    out = told("swin")["outputs"]
    assert not np.allclose(out["best_model.pth"], out["last_model.pth"], atol=1e-2)
