"Predictions of every kind as a table: what has a cell, and what has a file"
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from stored_runs import LUNG, TASKS, registered # noqa: F401

from vitnb.learner.predict import Predictions, predict
from vitnb.learner.sheet import answers_frame, write_answers
from vitnb.task import Tasks


def answers(runs, kind):
    rows = runs[kind][2]
    return Predictions(rows, tasks=runs[kind][1].tasks)


def test_one_class_has_a_word_and_a_column_for_each_class(runs):
    said = answers(runs, "class")
    frame = answers_frame(said)
    assert list(frame.columns) == ["id", "prediction", *(f"p {n}" for n in range(10))]
    assert (frame.filter(like="p ").idxmax(axis=1) == "p " + frame.prediction).all()
    assert np.allclose(frame.filter(like="p ").to_numpy(), np.stack([row["probabilities"] for row in said]))


def test_labels_are_joined_and_none_is_an_empty_cell(runs):
    frame = answers_frame(answers(runs, "labels"))
    assert list(frame.columns) == ["id", "prediction", "p red", "p bright"]
    want = [";".join(row["prediction"]) for row in runs["labels"][2]]
    assert frame.prediction.tolist() == want


def test_zones_have_a_level_each_and_probabilities_by_level(runs):
    frame = answers_frame(answers(runs, "zones"))
    assert list(frame.columns)[1:3] == list(LUNG) and [c for c in frame if c.startswith("p ")] == [f"p {zone} {level}" for zone in LUNG for level in range(3)]
    for zone in LUNG: assert (frame[[f"p {zone} {level}" for level in range(3)]].to_numpy().argmax(1) == frame[zone]).all()


def test_who_abstains_leaves_the_cell_empty(tmp_path):
    one = Predictions([dict(id="a", prediction=dict(left=1, right=None))], tasks=Tasks.of(TASKS["zones"]))
    assert write_answers(one, tmp_path/"a.csv").read_text().splitlines() == ["id,left,right", "a,1,"]


def test_values_are_cells(runs):
    assert list(answers_frame(answers(runs, "values")).columns) == ["id", "mean", "spread"]
    assert answers_frame(answers(runs, "value")).prediction.dtype.kind == "f"


def test_maps_and_reconstructions_are_files_that_the_table_names(runs, tmp_path):
    frame = pd.read_csv(write_answers(answers(runs, "map"), tmp_path/"maps.csv"))
    for row,cell in zip(runs["map"][2], frame.prediction): assert (np.asarray(Image.open(tmp_path/cell)) == row["prediction"]).all()
    frame = pd.read_csv(write_answers(answers(runs, "cubes"), tmp_path/"cubes.csv"))
    assert np.array_equal(np.load(tmp_path/frame.reconstruction[1]), runs["cubes"][2][1]["reconstruction"])
    assert frame.mse_masked.tolist() == pytest.approx([row["mse_masked"] for row in runs["cubes"][2]], rel=1e-5)
    assert not list(tmp_path.rglob("*.tmp"))


def test_several_tasks_keep_their_names(runs):
    columns = set(answers_frame(answers(runs, "several")).columns)
    assert {"zones/upper right", "zones/p upper left 2", "pixels/prediction", "size/prediction"} <= columns


def test_files_of_one_name_in_two_folders_do_not_meet(runs, tmp_path):
    rows = [{**row, "id":f"{n}/same.npy"} for n,row in enumerate(runs["map"][2][:2])]
    frame = pd.read_csv(write_answers(Predictions(rows, tasks=runs["map"][1].tasks), tmp_path/"m.csv"))
    assert frame.prediction.nunique() == 2


def test_predict_gives_what_the_table_needs(runs):
    folder = runs["zones"][0]
    assert list(answers_frame(predict(folder, folder/"new_000.npy", device="cpu")).columns)[1:3] == list(LUNG)
