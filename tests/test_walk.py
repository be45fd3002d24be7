"Which files below a folder are images: each once, by content, with a reason for what is passed over"
import os
import unicodedata

import pytest
from PIL import Image
from data_helpers import folder, own_folders, picture

from vitnb.data.sets import load_set
from vitnb.data.walk import FileKind, difference, image_format, is_system, locate, say_passed, walk_files, walk_images


def listed(root): return walk_images(root, {"":root}).images[""]


@pytest.mark.parametrize("hidden", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", ".git/annex", "$RECYCLE.BIN", "deep/@eaDir/1.png"])
def test_folders_of_systems_are_passed_over_at_any_depth(tmp_path, hidden):
    picture(tmp_path/"a"/"1.png"); picture(tmp_path/"a"/"deep"/hidden/"1.png")
    found = walk_images(tmp_path, dict(a=tmp_path/"a"))
    assert found.images == dict(a=["a/1.png"]) and found.passed == {"hidden or system folders":1}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("name", ["scan", "scan.jfif", "scan.jpe", "scan.backup", "scan.txt"])
def test_images_are_known_by_their_contents(tmp_path, kind, name):
    Image.new("RGB", (4,4)).save(tmp_path/name, format=kind)
    assert listed(tmp_path) == [name]


@pytest.mark.parametrize("name", ["1.png~", "1.png.bak", "#1.png#", "~$1.png", "1.png.part", "1.png.crdownload", "1.tmp"])
def test_copies_of_editors_and_parts_of_downloads_are_no_images(tmp_path, name):
    for file in ("1.png", name): Image.new("RGB", (4,4)).save(tmp_path/file, format="PNG")
    found = walk_images(tmp_path, {"":tmp_path})
    assert found.images[""] == ["1.png"] and found.passed == {"backups and parts of files":1}


@pytest.mark.parametrize("text", [b"BMI,age,sex,label\n1,2,3,4\n", b"P1 patient one\n", b"GIFs are here", b"", b"\x0a\x05 a", b"RIFF----WAVEfmt ", b"%PDF-1.4"])
def test_what_begins_like_an_image_and_is_none(tmp_path, text):
    (tmp_path/"notes").write_bytes(text)
    found = walk_images(tmp_path, {"":tmp_path})
    assert found.images[""] == [] and found.passed == {"no images":1} and image_format(text) == ""


def test_files_with_usual_endings_are_not_opened(tmp_path, monkeypatch):
    for i in range(3): picture(tmp_path/f"{i}.png")
    (tmp_path/"other").write_bytes(b"text")
    opened = []
    monkeypatch.setattr("builtins.open", lambda path, *args, real=open: opened.append(os.path.basename(path)) or real(path, *args))
    assert len(listed(tmp_path)) == 3 and opened == ["other"]


def test_photographs_that_pillow_does_not_open_are_named(tmp_path, capsys):
    (tmp_path/"IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40)); (tmp_path/"1.dng").write_bytes(b"II*\0" + bytes(40))
    line = say_passed("phone", walk_images(tmp_path, {"":tmp_path}))
    assert line.startswith("phone: 2 passed over: ") and "1 HEIC photographs" in line and "1 raw photographs" in line and capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize("to", ["..", ".", "../..", "../b", "../b/deep"])
def test_links_bring_no_file_twice_and_none_to_another_class(tmp_path, to):
    root = tmp_path/"up"/"s"
    folder(root, n=8); picture(root/"b"/"deep"/"9.png")
    (root/"a"/"all").symlink_to(to)
    s = load_set(root, valid=2)
    items = sorted(item for split in s.splits.values() for item in split.items)
    assert items == [*(f"a/{i}.png" for i in range(8)), *(f"b/{i}.png" for i in range(8)), "b/deep/9.png"]


def test_a_link_to_a_folder_elsewhere_is_followed_once(tmp_path):
    folder(tmp_path/"store", n=2); root = tmp_path/"s"
    for c in "ab": (root/c).mkdir(parents=True); (root/c/"more").symlink_to(tmp_path/"store"/"a")
    found = walk_images(root, {c:root/c for c in "ab"})
    assert found.images == dict(a=["a/more/0.png", "a/more/1.png"], b=[]) and found.passed == {"links to folders that are there already":1}


def test_files_that_are_links_count_once(tmp_path):
    "As in a store of contents (git-annex): all files are links into a hidden folder"
    picture(tmp_path/".store"/"x1.png"); (tmp_path/"s").mkdir(); picture(tmp_path/"s"/"real.png")
    for name,to in dict(one="../.store/x1.png", two="../.store/x1.png", three="real.png").items(): (tmp_path/"s"/f"{name}.png").symlink_to(to)
    found = walk_images(tmp_path/"s", {"":tmp_path/"s"})
    assert found.images[""] == ["one.png", "real.png"] and found.passed == {"links to files that are there already":2}


def test_one_folder_cannot_be_two_classes_or_two_splits(tmp_path):
    root = folder(tmp_path/"s", n=8)
    (root/"c").symlink_to("a")
    with pytest.raises(ValueError, match="are one folder"): load_set(root)
    assert load_set(root, classes=["a", "b"], valid=2).classes == ["a", "b"]
    root = folder(tmp_path/"t", n=3, parts=("train",)); (root/"test").symlink_to("train")
    with pytest.raises(ValueError, match="are one folder"): load_set(root)


def test_a_broken_link_is_an_unreadable_file(tmp_path):
    root = folder(tmp_path/"s", n=10)
    (root/"a"/"gone.jpg").symlink_to("/nowhere/x.jpg"); (root/"a"/"gone.txt").symlink_to("/nowhere/x.txt"); (root/"b"/"round.png").symlink_to("round.png")
    s = load_set(root, max_bad=.2)
    bad = s.check()
    assert set(bad) == {"a/gone.jpg", "b/round.png"} and sum(map(len, s.splits.values())) == 20
    with pytest.raises(ValueError, match="more than max_bad=0.01"): load_set(root).check()


@pytest.mark.parametrize("one, other, how", [
    ("caf\u00e9", "cafe\u0301", "Unicode"), ("Cat", "cat", "case"), ("cat ", "cat", "spaces"), ("stra\u00dfe", "STRASSE", "case"),
    ("cat", "dog", ""), ("cat", "cat", ""), ("CAF\u00c9", "cafe\u0301", "case")])
def test_names_that_look_alike(one, other, how):
    found = difference(one, other)
    assert (how in found and found) if how else not found
    assert difference(other, one) == found


def test_class_names_that_look_alike_are_told(tmp_path, capsys):
    composed,decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    root = folder(tmp_path/"s", classes=(composed, "tea"), parts=("train",), n=3)
    folder(root, classes=(decomposed, "tea"), parts=("val",), n=3)
    with pytest.raises(ValueError, match="differ only in their Unicode form"): load_set(root)
    with pytest.raises(ValueError, match="two classes .* differ only in their Unicode form"): load_set(folder(tmp_path/"t", classes=(composed, decomposed)))
    with pytest.raises(ValueError, match="'cat' and train has 'Cat': the names differ only in upper and lower case"):
        load_set(folder(folder(tmp_path/"u", classes=("Cat", "dog"), parts=("train",)), classes=("cat", "dog"), parts=("test",)))
    load_set(folder(tmp_path/"v", classes=("Cat", "cat")))
    assert "classes 'cat' and 'Cat' differ only in upper and lower case" in capsys.readouterr().out


def test_files_are_found_by_what_a_table_calls_them(tmp_path):
    tmp_path = tmp_path/"s"
    for name in ("a/1.png", "b/1.png", "a/2.png", "c/ex\u00e9.png"): picture(tmp_path/name)
    asked = {"a/1.png":"a/1.png", "1.png":["a/1.png", "b/1.png"], "s/b/1.png":"b/1.png", "/old/place/b/1.png":"b/1.png", "C:/b/1":"b/1.png",
             "old/z/1.png":["a/1.png", "b/1.png"], "2":"a/2.png", "elsewhere/2.png":"a/2.png", "exe\u0301.png":"c/ex\u00e9.png", "A/2.PNG":"a/2.png",
             "ex%C3%A9.png":"c/ex\u00e9.png", "https://x.org/d/b%2F1.png?raw=1":"b/1.png", "9.png":None, "2.jpg":None}
    assert dict(zip(asked, locate(list(asked), tmp_path))) == asked
    assert locate(["b/1.png"], tmp_path.parent) == ["s/b/1.png"]
    assert [is_system(name) for name in (".x", "thumbs.DB", "__init__")] == [True, True, False]


@pytest.mark.parametrize("name", ["pipe.png", "pipe"])
def test_what_is_no_file_is_counted_and_not_opened(tmp_path, name):
    os.mkfifo(tmp_path/name); picture(tmp_path/"a.png"); (tmp_path/"s").mkdir(); (tmp_path/"s"/"link.png").symlink_to(f"../{name}")
    found = walk_images(tmp_path, {"":tmp_path})
    assert found.images[""] == ["a.png"] and found.passed == {"what is no file":2}


def test_one_walk_looks_for_any_kind_of_file_by_the_same_rules(tmp_path):
    notes = FileKind("notes", frozenset({".txt"}), lambda path: "" if str(path).endswith(".txt") else "no notes")
    (tmp_path/"@eaDir").mkdir()
    for name in ("a.txt", "b.dat", "@eaDir/a.txt", ".c.txt"): (tmp_path/name).write_text("x")
    for name,to in {"gone.txt":"nowhere", "gone.dat":"nowhere", "same.txt":"a.txt"}.items(): (tmp_path/name).symlink_to(to)
    found = walk_files(tmp_path, {"":tmp_path}, notes)
    assert found.images[""] == ["a.txt", "gone.txt"] and found.endings == {".dat"}
    assert found.passed == {"no notes":1, "hidden or system folders":1, "hidden or system files":1, "links that lead nowhere":1, "links to files that are there already":1}
    assert walk_files(tmp_path, {"":tmp_path}, notes, every_name=True).images[""] == ["a.txt", "gone.txt", "same.txt"]
