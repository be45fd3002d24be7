"Predicting from a run folder alone: every kind of task, in a process of its own, equals what the Learner said"
import io
import os
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tiny_heads
import torch
from PIL import Image

from vitnb.callback.checkpoint import load_checkpoint
from vitnb.callback.pretext import Pretext, pretexts
from vitnb.data.cube import cube_loaders, load_cube_set
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.data.holdout import Split
from vitnb.data.table import ImageSet
from vitnb.learner.core import run_callbacks, vit_learner
from vitnb.learner.predict import answer_columns, find_inputs, predict, predict_split
from vitnb.learner.trained import find_checkpoint, load_run
from vitnb.learner.spectral import evaluate_model
from vitnb.learner.tta import predict_tta
from vitnb.models.protocol import models
from vitnb.task import ClassMap, MultiLabel, OneClass, Ordinal, Task, Tasks, Value

HERE = Path(__file__).resolve().parent
LUNG = ("upper right", "upper left")
TASKS = dict(
    labels=MultiLabel(("red", "bright")),
    zones=Ordinal(LUNG, levels=3, unknown=-1, flips=dict(hflip=[1, 0])),
    abstain=Ordinal(LUNG, levels=3, unknown=9, abstain=True, flips=dict(hflip=[1, 0])),
    grade=Ordinal(levels=4, cumulative=True),
    map=ClassMap(("dark", "light"), unknown=-100),
    value=Value(unit="mm"),
    values=Value(("mean", "spread")),
    several=Tasks.of(dict(zones=Ordinal(LUNG, levels=3, unknown=-1, flips=dict(hflip=[1, 0])), pixels=ClassMap(("dark", "light"), unknown=-100), size=Value())))
IMAGE_KINDS = ["class", *TASKS]
CUBE_KINDS = ["cubes", "pixels", "patches"]


def targets_of(x, rng):
    "Targets of each kind for images (N,H,W,C)"
    sides = np.stack([x[:,:,h:h+4].mean((1, 2, 3)) for h in (4, 0)], 1)
    levels = np.digitize(sides, np.quantile(sides, [.33, .67]))
    unknown = rng.random(levels.shape) < .2
    mean = x.mean((1, 2, 3))
    zones = np.where(unknown, -1, levels)
    pixels = np.where(rng.random(x.shape[:3]) < .1, -100, x.mean(3) > .5)
    return dict(labels=np.stack([x[...,0].mean((1, 2)) > .5, mean > .5], 1).astype(int), zones=zones, abstain=np.where(unknown, 9, levels),
                grade=np.digitize(mean, np.quantile(mean, [.25, .5, .75])), map=pixels, value=mean[:,None].astype(np.float32),
                values=np.stack([mean, x.std((1, 2, 3))], 1).astype(np.float32), several=dict(zones=zones, pixels=pixels, size=mean[:,None].astype(np.float32)))


def image_set(kind):
    "24 and 8 float images of four channels, with targets of a kind"
    rng = np.random.default_rng(0)
    splits = {}
    for name,n in dict(train=24, valid=8, test=8).items():
        x = (rng.random((n, 8, 8, 4))*.5 + rng.random((n, 1, 2, 1)).repeat(4, 2)*.5).astype(np.float32)
        splits[name] = Split(x, targets_of(x, rng)[kind])
    return ImageSet(f"tiny_{kind}", TASKS[kind], splits)


def fit(folder, learn, **kw):
    learn.progress.plot = False
    learn.fit(1, cbs=run_callbacks(folder, tracker="none", **kw))
    return learn


def image_run(kind, folder):
    "A run, its Learner, and its test images as files"
    data = load_set("digits", limit=4) if kind == "class" else image_set(kind)
    dls = image_loaders(data, bs=8, augment="none", seed=1, device="cpu", workers=0)
    dense = [k for k,t in data.tasks.items() if isinstance(t, ClassMap)]
    learn = vit_learner(dls, "tiny_heads", dict(dense=dense), seed=1, device="cpu", precision="fp32", lr=1e-2)
    images = data.splits["test"].items
    for i,x in enumerate(images):
        if kind == "class": Image.fromarray(x).save(folder/f"new_{i:03}.png")
        else: np.save(folder/f"new_{i:03}.npy", x)
    return fit(folder, learn)


def cube_run(kind, folder):
    "The same of cubes: masked, or with a class for each pixel or patch"
    cubes = load_cube_set("retina_synthetic", n=40, bands=10, size=16)
    dls = cube_loaders(cubes, bs=3, normalize="zscore", label=None if kind == "cubes" else "pixels", seed=1, workers=0, device="cpu")
    kw = dict(patch_size=(4, 5), **({} if kind == "cubes" else dict(head=dict(pixels="pixel", patches="patch")[kind])))
    learn = vit_learner(dls, "spectral_mae_micro", kw, pretext="masked" if kind == "cubes" else None, seed=1, device="cpu", precision="fp32")
    for i,k in enumerate(cubes.splits["test"]): np.save(folder/f"new_{i:03}.npy", cubes.records[k].source.read())
    return fit(folder, learn)


SCRIPT = """
import pickle, sys
from pathlib import Path
import tiny_heads
from vitnb.learner.predict import predict
tiny_heads.register()
root = Path(sys.argv[1])
said = {p.name:predict(p, f"{p}/new_*", bs=3, device="cpu") for p in sorted(root.iterdir()) if p.is_dir()}
(root/"said.pkl").write_bytes(pickle.dumps({k:list(v) for k,v in said.items()}))
"""


@pytest.fixture(scope="module", autouse=True)
def registered():
    "The model is known while this file is tested"
    tiny_heads.register()
    yield
    del models["tiny_heads"]


@pytest.fixture(scope="module")
def runs(registered, tmp_path_factory):
    "Folder, Learner, and what a process that never saw the Learner predicts, for each kind"
    root = tmp_path_factory.mktemp("runs")
    learners = {}
    for kind in IMAGE_KINDS + CUBE_KINDS:
        (root/kind).mkdir()
        learners[kind] = (cube_run if kind in CUBE_KINDS else image_run)(kind, root/kind)
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", SCRIPT, str(root)], check=True, env={**os.environ, "PYTHONPATH":path}, cwd=root)
    said = pickle.loads((root/"said.pkl").read_bytes())
    return {k:(root/k, learn, said[k]) for k,learn in learners.items()}


def stacked(rows, column): return torch.from_numpy(np.stack([o[column] for o in rows]))


@pytest.mark.parametrize("kind", ["class", "labels", "zones", "abstain", "grade", "map", "pixels", "patches"])
def test_another_process_says_what_the_learner_said(runs, kind):
    folder,learn,rows = runs[kind]
    probs,_ = predict_split(learn, "test")
    assert [Path(o["id"]).name for o in rows] == sorted(p.name for p in folder.glob("new_*")) and len(rows) == len(probs)
    assert torch.allclose(stacked(rows, "probabilities"), probs, atol=1e-5)


def test_values_in_another_process(runs):
    for kind in ("value", "values"):
        _,learn,rows = runs[kind]
        want,_ = predict_split(learn, "test")
        got = [o["prediction"] if kind == "value" else [o["prediction"][k] for k in ("mean", "spread")] for o in rows]
        assert np.allclose(np.array(got).reshape(want.shape), want, atol=1e-5)
        assert rows[0].keys() == {"id", "prediction"}, "a value has no probabilities"


def test_several_tasks_in_another_process(runs):
    _,learn,rows = runs["several"]
    probs,_ = predict_split(learn, "test")
    assert rows[0].keys() == {"id", "zones/prediction", "zones/probabilities", "pixels/prediction", "pixels/probabilities", "size/prediction"}
    for k in ("zones", "pixels"): assert torch.allclose(stacked(rows, f"{k}/probabilities"), probs[k], atol=1e-5)
    assert np.allclose([o["size/prediction"] for o in rows], probs["size"][:,0], atol=1e-5)


def test_a_masked_autoencoder_in_another_process(runs):
    "Its error of each cube is that of `evaluate_model`, and what it was shown stays as it was"
    folder,learn,rows = runs["cubes"]
    scores = evaluate_model(folder, learn.dls.test, ("masked",), ssim=False, device="cpu")["cubes"]
    for k in ("mse_masked", "mse_masked_reflectance"): assert [o[k] for o in rows] == pytest.approx([o[k] for o in scores], rel=1e-4)
    for i,row in enumerate(rows):
        raw = np.load(folder/f"new_{i:03}.npy")
        valid = raw[0] >= 1e-3 # the set's mark of background
        shown = ~row["masked"] & valid
        assert row["reconstruction"].shape == raw.shape and np.allclose(row["reconstruction"][shown], raw[shown], atol=1e-5)
        assert not np.allclose(row["reconstruction"][row["masked"] & valid], raw[row["masked"] & valid], atol=1e-3)


def test_answers_are_in_the_tasks_own_names(runs):
    rows = {k:o[2] for k,o in runs.items()}
    assert all(o["prediction"] == str(o["probabilities"].argmax()) for o in rows["class"])
    assert all(o["prediction"] == [k for k,p in zip(("red", "bright"), o["probabilities"]) if p > .5] for o in rows["labels"])
    assert all(o["prediction"] == dict(zip(LUNG, o["probabilities"].argmax(1).tolist())) for o in rows["zones"])
    assert all(type(o["prediction"]) is int and 0 <= o["prediction"] < 4 for o in rows["grade"])
    assert all((o["prediction"] == o["probabilities"].argmax(0)).all() for o in rows["map"])


def test_a_model_that_abstains_says_none():
    task = TASKS["abstain"]
    pred = torch.tensor([[[0., 9, 0, 0], [0, 0, 0, 9.]]])
    assert answer_columns(task, pred, (8, 8))["prediction"] == [{"upper right":1, "upper left":None}]
    same = Ordinal(LUNG, levels=3, unknown=0) # a mark that a level has too is no reason to call the level unknown
    assert answer_columns(same, pred[...,:3], (8, 8))["prediction"] == [{"upper right":1, "upper left":0}]


def test_the_class_of_a_patch_is_that_of_its_pixels(runs):
    _,learn,rows = runs["patches"]
    assert rows[0]["prediction"].shape == (16, 16) and rows[0]["probabilities"].shape[1:] == (4, 4)
    for o in rows: assert (o["prediction"] == o["probabilities"].argmax(0).repeat(4, 0).repeat(4, 1)).all()


@pytest.mark.parametrize("kind", ["class", "labels", "zones", "abstain", "grade", "map", "several"])
def test_views_are_averaged_as_on_the_learner(runs, kind):
    folder,learn,rows = runs[kind]
    probs,_ = predict_tta(learn, "test", "flip")
    said = predict(folder, f"{folder}/new_*", tta="flip", device="cpu")
    of = (lambda p: p["zones"]) if kind == "several" else lambda p: p
    name = "zones/probabilities" if kind == "several" else "probabilities"
    assert torch.allclose(stacked(said, name), of(probs), atol=1e-5) and not torch.allclose(stacked(said, name), stacked(rows, name), atol=1e-5)


def test_views_need_a_task(runs):
    folder,_,_ = runs["cubes"]
    with pytest.raises(ValueError, match="no task"): predict(folder, f"{folder}/new_*", tta="flip", device="cpu")


def test_a_masked_learner_has_no_split_to_predict(runs):
    with pytest.raises(ValueError, match="evaluate_model"): predict_split(runs["cubes"][1], "test")


@pytest.mark.parametrize("kind", ["class", "several", "cubes"])
def test_arrays_are_read_as_files_are_and_batches_do_not_matter(runs, kind):
    folder,learn,rows = runs[kind]
    files = sorted(folder.glob("new_*"))
    arrays = [np.load(p) if p.suffix == ".npy" else np.asarray(Image.open(p)) for p in files]
    said = predict(load_run(folder, "cpu"), np.stack(arrays), bs=64)
    assert [o["id"] for o in said] == list(range(len(files)))
    for k in rows[0].keys() - {"id"}:
        if isinstance(rows[0][k], np.ndarray): assert torch.allclose(stacked(said, k).float(), stacked(rows, k).float(), atol=1e-5), k
        elif not isinstance(rows[0][k], float): assert [o[k] for o in said] == [o[k] for o in rows], k


@pytest.fixture
def broken(runs, tmp_path):
    "Four files of a run: the second is text, the third is not there"
    folder = runs["class"][0]
    files = [tmp_path/f"{c}.png" for c in "abcd"]
    for i in (0, 3): files[i].write_bytes((folder/f"new_{i:03}.png").read_bytes())
    files[1].write_text("no image")
    return files


def test_what_cannot_be_read_is_named_and_counted_and_left_out(runs, broken, capsys):
    folder,_,rows = runs["class"]
    said = predict(folder, broken, device="cpu")
    assert [Path(o["id"]).name for o in said] == ["a.png", "d.png"]
    assert [Path(k).name for k in said.unreadable] == ["b.png", "c.png"]
    out = capsys.readouterr().out
    assert "2 of 4 files" in out and "b.png" in out and "c.png" in out
    for o,i in zip(said, (0, 3)): assert np.allclose(o["probabilities"], rows[i]["probabilities"], atol=1e-6)


def test_if_nothing_can_be_read_that_is_an_error(runs, broken):
    with pytest.raises(ValueError, match="2 of 2 files.*Nothing is left"): predict(runs["class"][0], broken[1:3], device="cpu")


def test_masks_belong_to_the_place_among_the_items_also_beside_an_unreadable_one(runs, tmp_path):
    folder,_,rows = runs["cubes"]
    (tmp_path/"bad.npy").write_text("no cube")
    said = predict(folder, [tmp_path/"bad.npy", folder/"new_001.npy"], device="cpu")
    assert len(said) == 1 and (said[0]["masked"] == rows[1]["masked"]).all() and not (said[0]["masked"] == rows[0]["masked"]).all()
    assert said[0]["mse_masked"] == pytest.approx(rows[1]["mse_masked"], rel=1e-4)


def test_an_image_that_does_not_fit_is_an_error_with_its_name(runs, tmp_path):
    np.save(tmp_path/"five.npy", np.zeros((8, 8, 5), np.float32))
    with pytest.raises(ValueError, match=r"five.npy: images of 5 channels met the statistics of 4"): predict(runs["zones"][0], tmp_path/"five.npy", device="cpu")


def test_cubes_of_several_sizes_come_in_batches_of_one_size(runs):
    run = load_run(runs["cubes"][0], "cpu")
    sizes = [8, 8, 16, 8]
    batches = list(run.read([np.full((10, n, n), .5, np.float32) for n in sizes]))
    assert [b["index"].tolist() for b in batches] == [[0, 1], [2], [3]] and [b["image"].shape[-1] for b in batches] == [8, 16, 8]


def test_options_of_the_reader_may_be_others_for_new_files(runs, tmp_path):
    "Cubes that are stored as whole numbers, ten thousand for a reflectance of 1"
    folder,_,rows = runs["pixels"]
    for p in folder.glob("new_*"): np.save(tmp_path/p.name, np.load(p)*1e4)
    said = predict(load_run(folder, "cpu", reader=dict(scale=1e-4)), f"{tmp_path}/new_*")
    assert torch.allclose(stacked(said, "probabilities"), stacked(rows, "probabilities"), atol=1e-4)
    assert not torch.allclose(stacked(predict(folder, f"{tmp_path}/new_*", device="cpu"), "probabilities"), stacked(rows, "probabilities"), atol=1e-2)


def test_inputs_are_paths_patterns_arrays_or_several_of_them(tmp_path):
    for name in ("b.png", "a.png", "c.jpg", "sub/d.png", "odd[1].png"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text("x")
    of = lambda o: [Path(n).name if isinstance(n, str) else n for n in find_inputs(o)[0]]
    assert of(f"{tmp_path}/*.png") == ["a.png", "b.png", "odd[1].png"]
    assert of(f"{tmp_path}/**/*.png") == ["a.png", "b.png", "odd[1].png", "d.png"]
    assert of(tmp_path/"odd[1].png") == ["odd[1].png"], "a file is a file, whatever its name looks like"
    assert of([f"{tmp_path}/*.jpg", tmp_path/"b.png", "missing.png"]) == ["c.jpg", "b.png", "missing.png"]
    assert of(np.zeros((3, 4, 4))) == [0, 1, 2] == of([np.zeros((4, 4))]*3)


@pytest.mark.parametrize("items,says", [("*.nothing", "no file matches"), (".", "is a folder"), ([], "nothing to predict")])
def test_nothing_to_predict_is_an_error(items, says):
    with pytest.raises(ValueError, match=says): find_inputs(items)


def changed(folder, to, change):
    "The run with another configuration"
    (to/"checkpoints").mkdir()
    ck = load_checkpoint(find_checkpoint(folder))
    change(ck["config"])
    torch.save(ck, to/"checkpoints"/"best_model.pth")
    return to


def set_in(*keys):
    "A change of one name"
    def change(config):
        for k in keys[:-1]: config = config[k]
        config[keys[-1]] = "mine"
    return change


@pytest.mark.parametrize("kind,what,change", [
    ("class", "model", set_in("arch")), ("class", "reader", set_in("reader", "name")), ("class", "transform", set_in("transforms", 0, "name")),
    ("class", "transform", set_in("normalize", "name")), ("class", "loss", set_in("tasks", "", "loss")), ("class", "loss", set_in("training", "loss")),
    ("class", "kind of task", set_in("tasks", "", "kind")), ("cubes", "pretext task", set_in("pretext", "name"))])
def test_a_name_that_nobody_registered_is_an_error_that_says_what_to_import(runs, tmp_path, kind, what, change):
    with pytest.raises(ValueError, match=rf"{what} 'mine'.*import the module that registers it"): load_run(changed(runs[kind][0], tmp_path, change), "cpu")


def test_a_process_that_has_not_imported_the_model_is_told_to(runs, monkeypatch):
    monkeypatch.delitem(models, "tiny_heads")
    with pytest.raises(ValueError, match="the run has the model 'tiny_heads', which is not registered.*import the module"): load_run(runs["class"][0], "cpu")


class Harmful:
    def __reduce__(self): return os.mkdir, ("harmed",)


def test_nothing_that_is_stored_is_executed(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = changed(runs["class"][0], tmp_path, lambda config: config.update(extra=Harmful()))
    with pytest.raises(ValueError, match="not a readable checkpoint"): load_run(path, "cpu")
    assert not Path("harmed").exists()


def test_a_configuration_written_by_hand_builds_the_model_and_says_what_it_lacks(runs, tmp_path):
    def bare(config):
        kept = dict(arch=config["arch"], model_kw=config["model_kw"])
        config.clear()
        config.update(kept)
    run = load_run(changed(runs["class"][0], tmp_path, bare), "cpu")
    x = torch.rand(2, 3, 8, 8)
    assert run.model(x).shape == (2, 10)
    with pytest.raises(ValueError, match="names no task"): predict(run, [np.zeros((8, 8), np.uint8)])
    with pytest.raises(ValueError, match="does not say how its images were read"): next(run.read([np.zeros((8, 8), np.uint8)]))


def test_a_run_without_checkpoints_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="best_model.pth"): load_run(tmp_path, "cpu")


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A workspace with one run and one file"
    (tmp_path/"settings.ini").write_text("[vitnb]\n")
    monkeypatch.setenv("VITNB_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path/"out"))
    monkeypatch.chdir(tmp_path)
    for name in ("a_run", "b_run"):
        (tmp_path/"out"/"train_x"/name/"checkpoints").mkdir(parents=True)
        torch.save(dict(model_state_dict={}), tmp_path/"out"/"train_x"/name/"checkpoints"/"best_model.pth")
    return tmp_path


@pytest.mark.parametrize("path", ["out/train_x/a_rum", "out/nothing", "nothing", "out/train_x/a_run/checkpoints/none/x.pth"])
def test_a_path_that_leads_nowhere_names_the_nearest_runs(home, path):
    with pytest.raises(FileNotFoundError, match=rf"no run and no checkpoint {re.escape(path)}; the nearest runs: ") as e: load_run(path)
    near = str(e.value).split("runs: ")[1].split(", ")
    assert near[0].endswith("train_x/a_run") and near[1].endswith("train_x/b_run") or path in ("nothing", "out/nothing") and len(near) == 2


def test_a_mistyped_file_of_a_run_names_the_file(home):
    with pytest.raises(FileNotFoundError, match="did you mean 'best_model.pth'"): load_run("out/train_x/a_run/checkpoints/bets_model.pth")


def test_where_there_is_no_run_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path/"out"))
    deep = tmp_path/"a"/"b"/"c" # runs of other tests are not near
    deep.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"there is no run near it or in .*out: train one, or give a \.pth file"): load_run(deep/"nothing")


@pytest.mark.parametrize("files,says", [
    ({"notes.txt": "mine"}, "it is not the folder of a run; the nearest runs: .*a_run"), # of another program
    ({"params.json": "{}", "status.json": '{"status": "running"}'}, "its run is 'running' and wrote no checkpoint yet: let it train"), # killed
    ({"params.json": "{}"}, "its run wrote no checkpoint yet"),
    ({"params.json": "{}", "checkpoints/checkpoint_time_limit.pth": ""}, "give one of its files: .*checkpoint_time_limit.pth"),
    ({"best_model.pth": ""}, "give one of its files: .*best_model.pth")])
def test_a_folder_without_best_and_last_weights_says_what_it_is(home, files, says):
    folder = home/"out"/"train_x"/"c"
    for name,text in files.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_text(text)
    with pytest.raises(FileNotFoundError, match=rf"c holds no checkpoints/best_model.pth or last_model.pth; {says}"): load_run(folder)


def test_a_folder_of_runs_names_its_runs(home):
    with pytest.raises(FileNotFoundError, match="not the folder of a run; the nearest runs: .*a_run"): load_run(home/"out"/"train_x")


def others():
    "Files that are no checkpoint of ours, by name"
    module,buffer = torch.nn.Linear(2, 2),io.BytesIO()
    torch.jit.save(torch.jit.trace(module, torch.zeros(1, 2)), buffer)
    saved = lambda o: (b := io.BytesIO(), torch.save(o, b))[0].getvalue()
    pack = lambda o: pickle.dumps(o)
    whole = saved(dict(a=torch.zeros(99)))
    return {"text.txt": b"some words "*9, "result.json": b'{"a": 1}', "empty.pth": b"", "half.pth": whole[:len(whole)//2], "module.pth": saved(module), "script.pt": buffer.getvalue(),
        "list.pth": saved([1]), "tensor.pth": saved(torch.zeros(2)), "plain.pkl": pack(dict(a=1)), "learner.pkl": pack(Path("x")), "weights.pth": saved(module.state_dict()),
        "config.pth": saved(dict(config=3)), "model.pth": saved(dict(config=dict(arch="swin_micro"))), "noise": np.random.default_rng(0).bytes(999)}


@pytest.mark.parametrize("name", others())
def test_a_file_that_is_no_checkpoint_is_refused_with_a_remedy(name, tmp_path):
    "And never with torch's advice to run what is in it"
    (tmp_path/name).write_bytes(others()[name])
    with pytest.raises(ValueError, match="give the folder of a run, or a .pth file|build the model yourself|names its model by arch and model_kw") as e: load_run(tmp_path/name)
    assert "weights_only" not in str(e.value) and len(str(e.value)) < 400
    torch.save(dict(a=1), tmp_path/"other.pth")
    if "give the folder" in str(e.value):
        with pytest.raises(ValueError, match="use another file of its folder: other.pth"): load_run(tmp_path/name)


def test_a_loaded_run_is_ready(runs):
    folder,learn,_ = runs["zones"]
    run = load_run(folder, "cpu")
    assert not run.model.training and run.tasks == learn.tasks and run.pretext is None and run.config == load_checkpoint(find_checkpoint(folder))["config"]
    batch = next(run.read(f"{folder}/new_*"))
    assert torch.allclose(batch["image"], next(iter(learn.dls.test))["image"], atol=1e-6)
    masked = load_run(runs["cubes"][0], "cpu")
    assert masked.normalizer == runs["cubes"][1].dls.normalizer and not masked.tasks
    masked.pretext.setup(masked, masked.model)
    assert masked.pretext.config() == runs["cubes"][1].pretext.config()


def test_another_pretext_task_gives_what_its_model_gives(runs, tmp_path):
    "An embedding, for a task without labels that registers nothing of its own"
    def with_pretext(config): config.update(tasks={}, pretext=dict(name="nearness"))
    class Nearness(Pretext): name = "nearness"
    with pytest.MonkeyPatch.context() as m:
        m.setitem(pretexts, "nearness", Nearness)
        folder,learn,_ = runs["class"]
        rows = predict(changed(folder, tmp_path, with_pretext), f"{folder}/new_*", device="cpu")
    want = learn.model.eval()(next(iter(learn.dls.test))["image"]).detach()
    assert rows[0].keys() == {"id", "output"} and torch.allclose(stacked(rows, "output")[:len(want)], want, atol=1e-5)


def test_ones_own_kind_of_task_is_read_as_it_decodes_or_as_it_registers():
    @dataclass(frozen=True)
    class Halves(Task):
        kind:ClassVar[str] = "halves"
        defaults:ClassVar[dict] = dict(loss="mse", metrics=("mae",), monitor="mae")
        def decode(self, pred): return pred/2
        def activation(self, pred): return pred
    task,pred = Halves(),torch.tensor([2., 4.])
    assert answer_columns(task, pred, ())["prediction"] == [1., 2.]
    answer_columns.register(Halves)(lambda task, pred, size: dict(prediction=["half"]*len(pred)))
    assert answer_columns(task, pred, ()) == dict(prediction=["half", "half"])
    assert answer_columns(OneClass(("a", "b")), torch.tensor([[0., 1.]]), ())["prediction"] == ["b"]
