"A run of a few digits, trained once, with the files that a notebook writes"
import pytest

from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.experiment.recipes import learner_args, loader_args, resolve, set_args
from vitnb.learner.core import run_callbacks, vit_learner
from vitnb.runfolder import mark_status, release, write_json


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    "The folder of a run, and the Learner that trained it"
    folder = tmp_path_factory.mktemp("card")/"20260101-120000"
    folder.mkdir()
    recipe = resolve("swin", "digits", dict(epochs=2, bs=16))
    image_set = load_set(recipe.data, limit=8, **set_args(recipe))
    dls = image_loaders(image_set, seed=1, **loader_args(recipe), device="cpu")
    learn = vit_learner(dls, seed=1, path=folder, device="cpu", **{**learner_args(recipe), "precision":"fp32"})
    learn.progress.plot = False
    with learn.no_logging(): learn.fit(2, cbs=run_callbacks(folder, tracker="none"))
    write_json(folder/"params.json", dict(smoke=True, seed=1, epochs=2, recipe="digits"))
    write_json(folder/"recipe.json", recipe)
    write_json(folder/"environment.json", dict(data=image_set.fingerprint, weights="last", device="cpu"))
    write_json(folder/"result.json", dict(test_accuracy=.5))
    mark_status(folder, "finished", name="train_swin")
    release(folder)
    return folder, learn
