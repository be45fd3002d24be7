"Data of one's own is refused before anything is loaded, as those refuse it that load it"
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vitnb.data.cube import load_cube_set
from vitnb.data.sets import layouts, load_set
from vitnb.experiment.recipes import check_recipe
from vitnb.learner.contents import PUBLISHED, check_contents, check_cubes


@pytest.fixture
def own(tmp_path):
    "Two classes, a table in a folder of images, a table beside class folders, and what is none"
    for file in [*(f"pets/{kind}/{kind}{i}.png" for kind in ("cat", "dog") for i in range(6)), *(f"loose/{i}.png" for i in range(6))]:
        (tmp_path/file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path/file)
    (tmp_path/"loose"/"t.csv").write_text("file,kind,size,often\n" + "".join(f"{i}.png,{'ab'[i % 2]},{i/2},x\n" for i in range(6)))
    (tmp_path/"both"/"cat").mkdir(parents=True)
    (tmp_path/"both"/"dog").mkdir()
    for i in range(4): Image.new("RGB", (4, 4)).save(tmp_path/"both"/("cat", "dog")[i % 2]/f"{i}.png")
    (tmp_path/"both"/"t.csv").write_text("file,label\n" + "".join(f"{i}.png,tabby\n" for i in range(4)))
    (tmp_path/"empty").mkdir()
    for name in ("t.parquet", "t.xlsx", "t.npz", "t.npy"): (tmp_path/name).write_bytes(b"PK\3\4")
    return tmp_path


@pytest.mark.parametrize("data,given", [("empty", {}), ("t.parquet", {}), ("t.xlsx", {}), ("t.npz", {}), ("t.npy", {}), ("both", {}), ("pets", dict(label="kind")),
    ("pets", dict(group="kind")), ("pets", dict(classes=["cat", "dgo"])), ("pets", dict(splits=dict(train="cats"))), ("pets", dict(splits=dict(test="cat"))),
    ("pets", dict(pattern="(?P<label>x)")), ("loose", dict(label="knd")), ("loose/t.csv", dict(label="size")), ("loose/t.csv", dict(label="kind", weight="often")),
    ("loose/t.csv", dict(label="kind", group="plant")), ("loose/t.csv", dict(label={"a": "kind", "b": "kinds"}))])
def test_what_a_set_refuses_is_refused_before(own, data, given):
    "Word for word, but for the column of a table, of which load_set says what it is for in other words"
    with pytest.raises(ValueError) as late: load_set(own/data, **given)
    with pytest.raises(ValueError) as early: check_contents(own/data, given)
    with pytest.raises(ValueError) as first: check_recipe("swin", dict(data=str(own/data), **given))
    words = str(late.value).partition(" for ")[0]
    assert str(early.value).startswith(words) and str(first.value) == str(early.value)


@pytest.mark.parametrize("data,given", [("pets", {}), ("pets", dict(classes=["dog", "cat"])), ("pets", dict(pattern=r"(?P<label>\w+)/")), ("loose/t.csv", dict(label="kind"))])
def test_what_a_set_takes_is_counted_as_it_counts(own, data, given):
    loaded = load_set(own/data, **given)
    images = sum(len(split) for split in loaded.splits.values()) # what is held out for a test was not named as one
    counted = check_contents(own/data, given)
    assert counted in (None, (loaded.n_classes, images)) and (counted is None) == ("pattern" in given)


def test_numbers_of_ones_own_data_are_held_against_the_recipe(own):
    check_recipe("swin", dict(data=str(own/"pets"))) # how many images a step has is chosen for the set
    for given,says in ((dict(bs=13), "bs=13 is more than the 12 images"), (dict(recipe="digits"), "bs=32 is more than the 12 images"),
                       (dict(loss_kw=dict(weight=[1., 2., 3.])), "weight of 3 numbers, and .*pets has 2 classes")):
        with pytest.raises(ValueError, match=says): check_recipe("swin", dict(data=str(own/"pets"), **given))


def test_each_layout_of_a_published_set_is_passed_over(own):
    assert {*layouts} == {"cifar10", "cifar100", "tiny_imagenet", "sar_cld_2024", "cxr_pneumonia"} and len(PUBLISHED) == 5 # one mark each
    for mark in PUBLISHED:
        folder = own/mark.replace("/", "_")
        (folder/mark).mkdir(parents=True)
        (folder/"other").mkdir() # or it would be what an archive wraps
        assert check_contents(folder, {}) is None


@pytest.mark.parametrize("data", ["empty", "pets", "loose/t.csv"])
def test_a_folder_and_a_catalogue_without_cubes_are_refused_as_they_are_when_loaded(own, data):
    with pytest.raises(ValueError) as late: load_cube_set(own/data)
    with pytest.raises(ValueError) as early: check_cubes(own/data)
    assert str(early.value) == str(late.value)


def test_looking_loads_no_torch():
    code = "import sys, vitnb.learner.contents; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
