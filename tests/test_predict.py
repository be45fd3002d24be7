"Predicting from a run folder alone: every kind of task, in a process of its own, equals what the Learner said"
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from stored_runs import LUNG, TASKS, changed, registered

from vitnb.callback.pretext import Pretext, pretexts
from vitnb.learner.predict import answer_columns, find_inputs, predict, predict_split
from vitnb.learner.spectral import evaluate_model
from vitnb.learner.trained import load_run
from vitnb.learner.tta import predict_tta
from vitnb.task import OneClass, Ordinal, Task


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


def test_a_scene_larger_than_the_model_is_answered_by_the_window(runs):
    "Each window is predicted as if it had been given alone; where two overlap the later one counts"
    folder,_,rows = runs["cubes"]
    cubes = [np.load(folder/f"new_{i:03}.npy") for i in range(4)]
    side = cubes[0].shape[-1]
    scene = np.concatenate([np.concatenate(cubes[:2], 2), np.concatenate(cubes[2:], 2)], 1)[:,:,:-side//2] # 2 × 1.5 windows
    places = [(top, left) for top in (0, side) for left in (0, side//2)]
    windows = [scene[:,top:top+side,left:left+side] for top,left in places]
    run = load_run(folder, "cpu")
    whole, = predict(run, [scene])
    alone = predict(run, windows)
    parts = {name:np.zeros(scene.shape) for name in ("reconstruction", "masked")}
    for answer,(top,left) in zip(alone, places):
        for name,part in parts.items(): part[:,top:top+side,left:left+side] = answer[name]
    assert np.allclose(whole["reconstruction"], parts["reconstruction"], atol=1e-5) and (whole["masked"] == parts["masked"]).all()
    counts = [(answer["masked"] & (window[0] >= 1e-3)).sum() for answer,window in zip(alone, windows)]
    assert whole["mse_masked"] == pytest.approx(np.average([answer["mse_masked"] for answer in alone], weights=counts), rel=1e-4)
    with pytest.raises(ValueError, match="do not fit; this model takes"): predict(run, [scene[:,:,:side-1]])


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
    with pytest.raises(ValueError, match=r"five.npy \(images of 5 channels met the statistics of 4"): predict(runs["zones"][0], tmp_path/"five.npy", device="cpu")


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


@pytest.mark.parametrize("items,says", [("*.nothing", "no file matches"), ([], "nothing to predict")])
def test_nothing_to_predict_is_an_error(items, says):
    with pytest.raises(ValueError, match=says): find_inputs(items)


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


@pytest.mark.parametrize("frames", [1, 3])
def test_pages_that_nobody_looked_at_are_told(runs, tmp_path, capsys, frames):
    kind = next(kind for kind,(folder,*_) in runs.items() if load_run(folder, "cpu").config["reader"]["name"] == "rgb")
    pages = [Image.fromarray(np.full((16, 16, 3), 60*place, np.uint8)) for place in range(frames)]
    pages[0].save(tmp_path/"a.tif", save_all=True, append_images=pages[1:])
    predict(runs[kind][0], tmp_path/"a.tif", device="cpu")
    assert ("1 of 1 files hold several pages" in capsys.readouterr().out) == (frames > 1)
