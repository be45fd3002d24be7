"Catalogues and folders of cubes"
import os

import numpy as np
import pytest
from cube_files import CUBE, NM, own_cache, write_envi, write_h5, write_npy
from PIL import Image

from vitnb.data.cube import IGNORE, load_cube_set
from vitnb.data.cubetable import read_catalogue, read_folder

TRUTH = (np.arange(20*16).reshape(20,16) % 3).astype("u1")


def catalogue(d, head="ID,label,hs_file", row="p{i},a,c{i}.npy", n=4):
    for i in range(n): write_npy(d/f"c{i}.npy", CUBE.transpose(1,2,0))
    (d/"set.csv").write_text(head + "\n" + "".join(row.format(i=i) + "\n" for i in range(n)))
    return d/"set.csv"


@pytest.mark.parametrize("column", ["wavelengths", "wavelength_file", "wl"])
def test_a_column_of_wavelengths_chooses_the_axis(tmp_path, column):
    np.savetxt(tmp_path/"nm.txt", NM/1000)
    s = load_cube_set(catalogue(tmp_path, f"ID,label,hs_file,{column}", "p{i},a,c{i}.npy,nm.txt"))
    assert np.allclose(s.wavelengths, NM) and np.array_equal(s.records[0].source.read(), CUBE)


def test_numbers_in_a_cell(tmp_path):
    cell = " ".join(f"{v:g}" for v in NM)
    assert np.allclose(load_cube_set(catalogue(tmp_path, "ID;label;hs_file;wavelengths", "p{i};a;c{i}.npy;" + cell)).wavelengths, NM)


def test_a_cube_of_another_sensor_is_named(tmp_path):
    for i in range(4): write_envi(tmp_path, name=f"c{i}", nm=NM/1000 + (.1 if i == 3 else 0))
    (tmp_path/"set.csv").write_text("ID,label,hs_file\n" + "".join(f"p{i},a,c{i}.hdr\n" for i in range(4)))
    with pytest.raises(ValueError, match=r"c3\.hdr .its wavelengths differ .* by up to 100 nm"): load_cube_set(tmp_path/"set.csv")
    assert len(load_cube_set(tmp_path/"set.csv", max_bad=.3).records) == 3


@pytest.mark.parametrize("column", ["truth", "gt", "label_map"])
def test_a_column_of_class_maps(tmp_path, column, capsys):
    for i in range(4): np.save(tmp_path/f"c{i}_gt.npy", TRUTH*(i != 3))
    path = catalogue(tmp_path, f"ID,label,hs_file,{column}", "p{i},a,c{i}.npy,c{i}_gt.npy")
    blank = CUBE.transpose(1,2,0).copy()
    blank[:2] = 0
    np.save(tmp_path/"c1.npy", blank)
    s = load_cube_set(path, axes="hwc", classes=["corn", "oats"])
    maps = {r.name:r.label_map for r in s.records}
    assert s.pixel_classes == ["corn", "oats"] and s.classes == ["a"] and (maps["c3.npy"] == IGNORE).all()
    assert np.array_equal(maps["c0.npy"], np.where(TRUTH > 0, TRUTH.astype(int) - 1, IGNORE)) and (maps["c1.npy"][:2] == IGNORE).all()
    assert "c1.npy: labelled pixels that were not measured" in capsys.readouterr().out
    x,y = s.loaders(window=8, label="pixels", bs=2, device="cpu").one_batch()
    assert set(y.unique().tolist()) <= {IGNORE, 0, 1}


@pytest.mark.parametrize("n", [1, 2])
def test_one_scene_is_passed_itself(tmp_path, n):
    with pytest.raises(ValueError, match=rf"set.csv has {n} cube.*single scene.*load_cube_set\('scene.mat', truth="): load_cube_set(catalogue(tmp_path, n=n), axes="hwc")
    with pytest.raises(ValueError, match="column `truth`"): load_cube_set(tmp_path/"set.csv", axes="hwc", truth=TRUTH)
    assert load_cube_set(tmp_path/"c0.npy", axes="hwc", block=6).bands == 6, "the remedy"


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators(tmp_path, mark): assert len(read_catalogue(catalogue(tmp_path, mark.join(["ID", "label", "hs_file"]), mark.join(["p{i}", "a", "c{i}.npy"])))) == 4


def test_a_folder_takes_each_cube_once_and_says_what_it_passes_over(tmp_path, capsys):
    d = tmp_path/"set"/"a"/"p0"
    (d/".ipynb_checkpoints").mkdir(parents=True)
    for name in ("a.h5", "b.he5", "c.nc", "d", "e.mat", ".ipynb_checkpoints/a-checkpoint.h5", "._a.h5"): write_h5(d/name)
    write_envi(d, name="f", ending=".img")
    write_npy(d/"f_gt.npy", TRUTH)
    np.save(d/"wavelengths.npy", NM)
    Image.new("RGB", (16,20)).save(d/"a.png")
    Image.new("RGB", (16,20)).save(d/"rgb.tif")
    (d/"notes.txt").write_text("x")
    os.symlink(tmp_path/"set", d/"loop")
    os.symlink(d/"a.h5", d/"link.h5")
    names = sorted(row.name.split("/")[-1] for row in read_folder(tmp_path/"set"))
    assert [n.split(".")[0] for n in names] == ["a", "b", "c", "d", "e", "f"], "the file itself, not the link to it"
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    for part in ("2 images", "1 files called like class maps", "1 lists of wavelengths", "1 hidden or system folders", "1 hidden or system files", "1 no cubes (.txt)", "1 links to files that are there already", "1 links to folders that are there already"): assert part in said, said


def test_broken_cubes_of_a_folder_are_named(tmp_path):
    (tmp_path/"set").mkdir()
    for i in range(4): write_h5(tmp_path/"set"/f"{i}.h5")
    (tmp_path/"set"/"bad.nc").write_bytes(b"junk")
    os.symlink(tmp_path/"gone.h5", tmp_path/"set"/"dangling.h5")
    with pytest.raises(ValueError, match="2 of 6 cubes.*bad.nc.*dangling.h5 .the file is missing"): load_cube_set(tmp_path/"set", axes="chw")


def test_of_a_file_and_a_link_to_it_the_file_counts_wherever_they_lie(tmp_path):
    "A walk by name would take the link, which comes first, and give the cube to another class"
    for name in ("z/real.h5", "z/other.h5"): (tmp_path/"set/z").mkdir(parents=True, exist_ok=True); write_h5(tmp_path/"set"/name)
    (tmp_path/"set/a").mkdir(); os.symlink("../z/real.h5", tmp_path/"set/a/link.h5"); os.symlink("..", tmp_path/"set/a/up")
    assert [row.name for row in read_folder(tmp_path/"set")] == ["z/other.h5", "z/real.h5"]


def test_what_is_no_file_is_not_opened(tmp_path, capsys):
    "Whoever opens a pipe waits for ever"
    (tmp_path/"set").mkdir(); write_h5(tmp_path/"set/a.h5"); os.mkfifo(tmp_path/"set/b.h5"); os.mkfifo(tmp_path/"pipe"); os.symlink("../pipe", tmp_path/"set/c.h5")
    assert [row.name for row in read_folder(tmp_path/"set")] == ["a.h5"] and "2 what is no file" in capsys.readouterr().out


def test_classes_that_only_unicode_tells_apart_are_refused_and_case_is_told(tmp_path, capsys):
    for folder in ("Corn", "corn"): (tmp_path/"set"/folder).mkdir(parents=True); write_h5(tmp_path/"set"/folder/"a.h5")
    assert len(read_folder(tmp_path/"set")) == 2 and "differ only in upper and lower case" in capsys.readouterr().out
    for folder in ("bl\u00e9", "ble\u0301"): (tmp_path/"set"/folder).mkdir(); write_h5(tmp_path/"set"/folder/"a.h5")
    with pytest.raises(ValueError, match="differ only in their Unicode form"): read_folder(tmp_path/"set")


def test_what_does_not_act_is_said_or_refused(tmp_path, capsys):
    path = catalogue(tmp_path)
    load_cube_set(path, axes="hwc", block=6, guard=1)
    assert "block and guard not used" in capsys.readouterr().out
    load_cube_set(path, axes="hwc", dataset="Y")
    assert "dataset='Y' is not used" in capsys.readouterr().out
    for place in (path, tmp_path/"c0.npy"):
        with pytest.raises(ValueError, match=r"classes=\['corn'\] names the values of a class map.*truth="): load_cube_set(place, axes="hwc", classes=["corn"])
