"Runs of format 1, as make_format1_fixtures.py left them with commit 2cdb6f0: what they predicted then they predict now"
import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vitnb.callback.checkpoint import load_checkpoint, newest_state
from vitnb.data.cube import cube_loaders, load_cube_set, make_normalizer
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.experiment.run import read_json
from vitnb.experiment.stored import stored_recipe
from vitnb.learner.core import load_model, vit_learner
from vitnb.learner.predict import predict
from vitnb.learner.trained import load_run
from vitnb.runweights import find_checkpoint
from vitnb.losses.spectral import reconstruct
from vitnb.metrics.spectral import to_reflectance

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


def inputs_of(name):
    "What a person would give: images as they are; cubes with NaN where a pixel is no measurement"
    known = told(name)
    if name in ("swin", "densenet"): return list(known["raw"].numpy())
    valid = known["targets"] if name == "spectral" else (known["inputs"] != 0).any(1, keepdim=True)
    return list(torch.where(valid, known["raw"], torch.nan).numpy())


@each_checkpoint
def test_predict_says_what_was_stored(name, file):
    "From raw data and the checkpoint alone, to 1e-5"
    known,rows = told(name),predict(FOLDERS[name]/"checkpoints"/file, inputs_of(name), device="cpu")
    assert [o["id"] for o in rows] == list(range(len(known["raw"])))
    if name == "spectral":
        want = to_reflectance(known["filled"][file], make_normalizer(**known["normalizer"]))
        assert near(torch.from_numpy(np.stack([o["reconstruction"] for o in rows])), want)
        return
    probs = known["probabilities"][file]
    assert near(torch.from_numpy(np.stack([o["probabilities"] for o in rows])), probs)
    if name == "label_map": assert all((o["prediction"] == p.argmax(0).numpy()).all() for o,p in zip(rows, probs))
    else: assert [o["prediction"] for o in rows] == [config(name)["classes"][i] for i in probs.argmax(1)]


def test_the_error_of_a_reconstruction_is_over_masked_and_valid_voxels():
    "By a plain loop over what was stored"
    known,rows = told("spectral"),predict(FOLDERS["spectral"], inputs_of("spectral"), device="cpu")
    for i,row in enumerate(rows):
        where = row["masked"] & known["targets"][i].numpy()
        off = (known["filled"]["best_model.pth"] - known["inputs"])[i].numpy()[where]
        assert row["mse_masked"] == pytest.approx((off.astype(float)**2).mean(), rel=1e-4) and 0 < row["masked"].mean() < 1
        assert (row["masked"].mean() - .8) < .05


@each_folder
def test_a_run_of_format_1_is_built_again(name):
    run = load_run(FOLDERS[name], "cpu")
    assert run.config["format"] == 2 and not run.model.training and run.path.name == "best_model.pth"
    batch = next(run.read(inputs_of(name)))
    assert near(batch["image"], told(name)["inputs"]), "raw data become the inputs"
    assert (run.pretext is None) == (name != "spectral") == bool(run.tasks)


def test_what_only_the_recipe_said_is_taken_from_it(tmp_path):
    shutil.copytree(FOLDERS["swin"], tmp_path/"run")
    recipe = json.loads((tmp_path/"run"/"recipe.json").read_text())
    (tmp_path/"run"/"recipe.json").write_text(json.dumps({**recipe, "eval_resize":10}))
    sizes = lambda folder: [t.size for t in load_run(folder, "cpu").reader.pipeline.transforms[:2]]
    assert sizes(tmp_path/"run") == [10, 8] and sizes(FOLDERS["swin"]) == [8, 8]


@pytest.mark.parametrize("name", ["swin", "densenet"])
def test_fine_tuning_starts_from_a_run_of_format_1(name):
    "With its weights, but for a head of another size, and it learns"
    c,file = config(name),FOLDERS[name]/"checkpoints"/"best_model.pth"
    kw = {k:v for k,v in c["model_kw"].items() if k not in ("img_size", "num_classes")}
    learn = vit_learner(image_loaders(load_set("digits", limit=20), bs=32, augment="none", seed=1, device="cpu"), c["arch"], kw, pretrained=str(file),
                        lr=1e-3, seed=1, device="cpu", precision="fp32")
    learn.progress.plot = False
    old,new = load_checkpoint(file)["model_state_dict"],learn.model.state_dict()
    assert all(torch.equal(old[k], new[k]) for k in old)
    learn.fit(2)
    assert learn.recorder.rows[-1]["train_loss"] < learn.recorder.rows[0]["train_loss"]


def test_labels_are_learnt_from_an_autoencoder_of_format_1():
    c,file = config("spectral"),FOLDERS["spectral"]/"checkpoints"/"best_model.pth"
    cubes = load_cube_set("retina_synthetic", n=24, bands=10, size=16)
    dls = cube_loaders(cubes, 4, normalize="zscore", label="pixels", seed=1, workers=0, device="cpu")
    kw = {k:c["model_kw"][k] for k in ("patch_size", "embed_dim", "depth", "num_heads", "decoder_embed_dim", "decoder_depth")}
    learn = vit_learner(dls, c["arch"], dict(kw, head="pixel"), pretrained=str(file), lr=3e-3, seed=1, device="cpu", precision="fp32")
    learn.progress.plot = False
    old,new = load_checkpoint(file)["model_state_dict"],learn.model.state_dict()
    encoder = [k for k in old if k in new and k.startswith("blocks.")]
    assert encoder and all(torch.equal(old[k], new[k]) for k in encoder)
    learn.fit(2)
    assert learn.recorder.rows[-1]["train_loss"] < learn.recorder.rows[0]["train_loss"]


def test_a_state_of_format_1_is_not_resumed_and_the_reason_is_given():
    c = config("swin")
    kw = {k:v for k,v in c["model_kw"].items() if k not in ("img_size", "num_classes")}
    learn = vit_learner(image_loaders(load_set("digits", limit=20), bs=32, augment="none", seed=1, device="cpu"), c["arch"], kw, seed=1, device="cpu", precision="fp32")
    learn.progress.plot = False
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match="earlier version, whose loop took other steps.*pretrained="):
        learn.fit(6, resume=FOLDERS["swin"]/"checkpoints"/"last_model.pth")
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items()), "and nothing was put back"


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
