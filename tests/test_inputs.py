"What a person points at becomes a list of files: folders, patterns, tables and arrays"
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitnb.learner.inputs import find_inputs


def names(found): return [Path(n).name if isinstance(n, str) else n for n in found[0]]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.tif", "sub/.hidden.png", ".cache/d.png", "notes.txt", "cube.h5", "scan"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_bytes(bytes(128) + b"DICM")
    return tmp_path


@pytest.mark.parametrize("reader,want", [("rgb", ["a.JPG", "b.png", "c.tif"]), ("cube", ["cube.h5"]), ("film", ["a.JPG", "b.png", "scan", "c.tif"])])
def test_of_a_folder_those_files_are_meant_that_the_run_reads(folder, capsys, reader, want):
    assert names(find_inputs(folder, reader)) == want
    assert f"{6 - len(want)} files of other kinds are passed over" in capsys.readouterr().out


def test_of_a_reader_that_nobody_knows_all_files_are_meant(folder): assert len(find_inputs(folder, "mine")[0]) == 6


def test_a_folder_without_such_files_is_an_error_that_says_what_it_holds(tmp_path):
    (tmp_path/"notes.txt").write_text("x")
    with pytest.raises(ValueError, match="holds no file that the run's reader 'rgb' reads; it holds 1 × .txt"): find_inputs(tmp_path, "rgb")


@pytest.mark.parametrize("head", ["image", "File", "path", "hs_file"])
def test_a_table_names_files_beside_it(folder, head):
    (folder/"list.csv").write_text(f"{head};label\nb.png;1\nsub\\c.tif;0\nmissing.png;0\n")
    assert find_inputs(folder/"list.csv", "rgb")[1] == [folder/"b.png", folder/"sub/c.tif", folder/"missing.png"]


def test_which_column_has_the_paths_may_be_said(folder):
    (folder/"list.csv").write_text("image,left\nb.png,a.JPG\n")
    assert names(find_inputs(folder/"list.csv", "rgb", "left")) == ["a.JPG"]
    with pytest.raises(ValueError, match="did you mean 'left'"): find_inputs(folder/"list.csv", "rgb", "lef")


@pytest.mark.parametrize("text,says", [("a,b\n1,2\n", "which column"), ("image,file\na,b\n", "which column"), ("image,note\na.png,x\n,y\n", "row 2 has no path")])
def test_a_table_that_does_not_say_its_paths_is_an_error(tmp_path, text, says):
    (tmp_path/"t.csv").write_text(text)
    with pytest.raises(ValueError, match=says): find_inputs(tmp_path/"t.csv")


def test_several_at_once_keep_their_order(folder):
    assert names(find_inputs([f"{folder}/*.png", folder/"sub", "missing.png"], "rgb")) == ["b.png", "c.tif", "missing.png"]
    assert names(find_inputs(np.zeros((2, 4, 4)))) == [0, 1]


@pytest.mark.parametrize("reader", ["rgb", "cube", "film", "mine"])
def test_a_folder_is_walked_as_in_training(tmp_path, reader):
    "Thumbnails are not predicted, nothing twice, and a file without an ending is known by its contents"
    (tmp_path/"@eaDir").mkdir()
    if reader == "cube":
        for name in ("a.npy", "@eaDir/a.npy"): np.save(tmp_path/name, np.ones((3,4,4)))
    for name in {"rgb":("a.png", "scan", "@eaDir/a.png"), "cube":()}.get(reader, ("a.png", "@eaDir/a.png")): Image.new("RGB", (4,4)).save(tmp_path/name, format="PNG")
    first = "a.npy" if reader == "cube" else "a.png"
    (tmp_path/"link.png").symlink_to(first); (tmp_path/"up").symlink_to(".")
    assert names(find_inputs(tmp_path, reader)) == [first, *["scan"]*(reader == "rgb")]
