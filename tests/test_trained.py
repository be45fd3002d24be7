"Runs from their folder: what is found, what is refused, and that nothing stored is executed"
import io
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from stored_runs import changed, registered

from vitnb.callback.checkpoint import load_checkpoint
from vitnb.learner.predict import predict
from vitnb.learner.trained import load_run
from vitnb.runweights import find_checkpoint
from vitnb.models.protocol import models


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
