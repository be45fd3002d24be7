"Which folders are splits, which are classes, and which are neither"
import gzip

import numpy as np
import pytest
from PIL import Image
from data_helpers import folder, own_folders, picture

from vitnb.data.folder import class_folders
from vitnb.data.sets import load_set


@pytest.mark.parametrize("classes", [("valid", "invalid"), ("test", "valid"), ("train", "bus", "plane"), ("validation", "x"), ("training", "testing", "idle")])
def test_classes_may_be_called_like_splits(tmp_path, classes):
    s = load_set(folder(tmp_path/"s", classes=classes, n=8), valid=len(classes))
    assert s.classes == sorted(classes) and sum(map(len, s.splits.values())) == 8*len(classes)


def test_the_names_of_splits_are_a_parameter(tmp_path):
    root = folder(folder(tmp_path/"s", parts=("learn", "judge"), n=3), classes=("train", "test"), n=3)
    s = load_set(root, splits=dict(train="learn", test="judge"), valid=2)
    assert s.classes == ["a", "b"] and all(item.startswith("judge/") for item in s.splits["test"].items)
    plain = folder(tmp_path/"t", classes=("train", "test"), n=4)
    with pytest.raises(ValueError, match="0 class folders and loose images"): load_set(plain)
    assert load_set(plain, splits={}, valid=2).classes == ["test", "train"]
    with pytest.raises(ValueError, match="no such folder: did you mean 'learn'"): load_set(root, splits=dict(train="lern"))
    with pytest.raises(ValueError, match="unknown split 'dev'"): load_set(root, splits=dict(dev="learn"))
    with pytest.raises(ValueError, match="names no train"): load_set(root, splits=dict(test="learn"))


def test_folders_beside_the_splits_are_told(tmp_path, capsys):
    root = folder(tmp_path/"s", parts=("train", "test"), n=3); picture(root/"extra"/"1.png")
    load_set(root, valid=2)
    assert "s: 1 passed over: 1 folders beside the splits (extra)" in capsys.readouterr().out


@pytest.mark.parametrize("names", [("images", "masks"), ("Images", "annotations"), ("imgs", "GT"), ("images_001", "images_002"), ("part1", "part2"), ("batch-1", "batch-2")])
def test_what_is_no_class_is_noticed(tmp_path, names):
    root = folder(tmp_path/"s", classes=names, n=4)
    with pytest.raises(ValueError, match="no classes: .* give classes="): load_set(root)
    assert load_set(root, classes=list(names), valid=2).classes == list(names)
    with pytest.raises(ValueError, match="no classes"): load_set(folder(tmp_path/"t", classes=names, parts=("train", "test"), n=2))


def test_masks_are_noticed_before_they_are_found_empty(tmp_path):
    picture(tmp_path/"s"/"images"/"1.png"); (tmp_path/"s"/"labels").mkdir(); (tmp_path/"s"/"labels"/"1.txt").write_text("0 .5 .5 .1 .1")
    with pytest.raises(ValueError, match="images and labels, which are no classes"): load_set(tmp_path/"s")


def test_chosen_classes_keep_their_order(tmp_path):
    root = folder(tmp_path/"s", classes="abc", parts=("train", "test"), n=2)
    read = class_folders(root, classes=["c", "a"])
    assert read.classes == ["c", "a"] and read.items["test"][0] == "test/c/0.png" and read.labels["train"] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="has no class folder 'd'"): load_set(root, classes=["a", "d"])


def test_no_message_advises_to_delete(tmp_path):
    "Whatever a folder lacks, what is in it is the user's"
    (tmp_path/"s"/"a").mkdir(parents=True); (tmp_path/"s"/"b").mkdir()
    for make in (lambda: None, lambda: folder(tmp_path/"s", n=2, parts=("train", "val")), lambda: folder(tmp_path/"s", classes=("x",), parts=("val",), n=1)):
        make()
        try: load_set(tmp_path/"s")
        except ValueError as error: assert "remove" not in str(error) and "delete" not in str(error)


@pytest.mark.parametrize("parts", [("TRAIN_SET", "test_set"), ("train-images", "Test Images"), ("trainset", "hold-out"), ("train_data", "test_split")])
def test_splits_in_other_spellings(tmp_path, parts):
    s = load_set(folder(tmp_path/"s", parts=parts, n=3), valid=2)
    assert s.classes == ["a", "b"] and all(item.startswith(parts[1]) for item in s.splits["test"].items)


@pytest.mark.parametrize("parts", [("train2017", "val2017"), ("train_v2", "test_v2"), ("my train", "my test")])
def test_what_is_only_alike_a_split_is_asked_about(tmp_path, parts):
    root = folder(tmp_path/"s", parts=parts, n=3)
    kind = {"v": "valid", "t": "test"}[parts[1].split()[-1][0]]
    with pytest.raises(ValueError, match="called like splits: say so with splits=") as refused: load_set(root)
    assert f"{kind!r}: {parts[1]!r}" in str(refused.value)
    assert len(load_set(root, splits={"train": parts[0], "test": parts[1]}, valid=2).splits["test"]) == 6
    assert load_set(root, splits={}, valid=2).classes == sorted(parts)


def test_splits_inside_of_classes_are_refused_and_can_be_read(tmp_path):
    root = folder(tmp_path/"s", parts=("cat", "dog"), classes=("train", "test"), n=4)
    with pytest.raises(ValueError, match="lie inside of the classes") as refused: load_set(root)
    pattern = str(refused.value).split("pattern=r'")[1].split("'")[0]
    s = load_set(root, pattern=pattern, valid=2)
    assert s.classes == ["cat", "dog"] and all("/test/" in item for item in s.splits["test"].items) and len(s.splits["test"]) == 8
    assert len(load_set(root, classes=["cat", "dog"], valid=2).classes) == 2


def test_what_lies_beside_class_folders_is_counted(tmp_path, capsys):
    root = folder(tmp_path/"s", parts=("a", "b"), classes=("p1", "p2"), n=3)
    for name in ("1.png", "2.png", ".hidden/3.png"): picture(root/name)
    for name in ("notes.txt", "Thumbs.db"): (root/name).write_text("x")
    s = load_set(root, valid=2)
    out = capsys.readouterr().out
    assert sum(map(len, s.splits.values())) == 12
    assert "s: 5 passed over: 2 images beside the class folders, 1 " in out and "1 no images (.txt)" in out and "1 hidden or system folders" in out
    assert "s: 4 folders inside classes count as their class (a/p1, a/p2, b/p1)" in out


def test_an_archive_in_a_folder_is_named(tmp_path):
    (tmp_path/"s").mkdir(); (tmp_path/"s"/"data.zip").write_bytes(b"PK"); (tmp_path/"s"/"readme").mkdir()
    with pytest.raises(ValueError, match="and data.zip: give the path of the archive"): load_set(tmp_path/"s")


@pytest.mark.parametrize("name,says", [
    ("t.xlsx", r"read_excel\('t.xlsx'\)"), ("t.ods", "read_excel"), ("t.parquet", "read_parquet"), ("t.csv.bz2", "read_csv"), ("my.t.csv.zip", r"read_csv\('my.t.csv.zip'\)"), ("t.pkl", "read_pickle.*only if you trust it")])
def test_tables_that_pandas_reads_are_named_with_how(tmp_path, name, says):
    (tmp_path/"s"/"images").mkdir(parents=True)
    (tmp_path/"s"/name).write_bytes(b"PK\3\4")
    for what in (tmp_path/"s", tmp_path/"s"/name):
        with pytest.raises(ValueError, match=f"a table that pandas reads: give load_set.pandas.{says}"): load_set(what)


def test_a_compressed_table_in_a_folder_is_its_table(tmp_path):
    (tmp_path/"s"/"images").mkdir(parents=True)
    for i in range(12): Image.new("RGB", (4,4), (i,0,0)).save(tmp_path/"s"/"images"/f"{i}.png")
    rows = "".join(f"{i}.png,{'ab'[i%2]}\n" for i in range(12))
    (tmp_path/"s"/"t.csv.gz").write_bytes(gzip.compress(f"file,label\n{rows}".encode()))
    assert load_set(tmp_path/"s").classes == ["a", "b"]
