"A set is a table: any targets, groups that never straddle a split, files of any depth, csv files with named columns"
import os
import shutil

import numpy as np
import pytest
from data_helpers import folder, own_folders, picture

from vitnb.data.holdout import Split
from vitnb.data.sets import load_set
from vitnb.data.table import ImageSet
from vitnb.task import ClassMap, OneClass, Ordinal, Value

def test_unknown_split():
    with pytest.raises(ValueError, match="did you mean 'valid'"): load_set().read("vaild", 0)

def test_reading_arrays():
    grey = ImageSet("g", ["a", "b"], dict(train=Split(np.random.randint(0, 255, (2,4,5), dtype=np.uint8), [0,1])))
    one = ImageSet("o", ["a", "b"], dict(train=Split(grey.splits["train"].items[...,None], [0,1])))
    assert (grey.read("train", 1) == one.read("train", 1)).all() and grey.read("train", 0).shape == (4,5,3)
    assert grey.path("train", 0) is None

def test_fingerprint_follows_contents_not_place(tmp_path):
    a = load_set(folder(tmp_path/"s")).fingerprint
    shutil.copytree(tmp_path/"s", tmp_path/"else"/"s")
    assert load_set(tmp_path/"else"/"s").fingerprint == a
    (tmp_path/"s"/"a"/"3.png").rename(tmp_path/"s"/"a"/"33.png")
    b = load_set(tmp_path/"s").fingerprint
    picture(tmp_path/"s"/"a"/"33.png", 20, 20)
    c = load_set(tmp_path/"s").fingerprint
    assert len({a, b, c}) == 3 and len(a) == 64

def test_stamp_sees_a_file_written_anew(tmp_path):
    f = folder(tmp_path/"s")/"b"/"2.png"
    a = load_set(tmp_path/"s")
    first = a.fingerprint,a.stamp
    os.utime(f, ns=(1, 1)) # an older time counts as well
    b = load_set(tmp_path/"s")
    assert first[0] == b.fingerprint and first[1] != b.stamp

def test_a_fingerprint_sees_all_that_a_sample_has():
    a = np.zeros((4,2,2), np.uint8)
    def of(**kw):
        o = dict(targets=[0,1,0,1], groups=None, weights=None, tasks=["a", "b"], reader=None) | kw
        return ImageSet("s", o["tasks"], dict(train=Split(a, o["targets"], o["groups"], o["weights"])), reader=o["reader"]).fingerprint
    prints = [of(), of(targets=[1,1,0,1]), of(groups=list("wxyz")), of(groups=list("wxyy")), of(weights=[1,1,1,2]), of(reader="native"), of(tasks=OneClass(("a", "b"), unknown=-1)),
              of(tasks=dict(k=OneClass(("a", "b")), v=Value()), targets=dict(k=[0,1,0,1], v=[0.,1,2,3])), of(tasks=dict(k=OneClass(("a", "b")), v=Value()), targets=dict(k=[0,1,0,1], v=[0.,1,2,4]))]
    assert len(set(prints)) == len(prints)

def test_targets_are_checked_when_a_set_is_made():
    for tasks,targets,says in [(OneClass(("a", "b")), [0,2], "target 2 is not in 0..1"), (Ordinal(("a", "b"), levels=3), [0,1], "one level for each of 2 zones"), (dict(a=Value(), b=Value()), dict(c=[1.,2]), "no task describes"),
                               (ClassMap(("a", "b")), np.zeros((2,3,3), int), "make them one size")]:
        with pytest.raises(ValueError, match=says): ImageSet("s", tasks, dict(train=Split(np.zeros((2,4,4), np.uint8), targets)))

def test_maps_in_arrays_are_checked_when_a_set_is_made():
    maps = np.random.default_rng(0).integers(0, 3, (4,5,5), dtype=np.uint8)
    of = lambda task, y=maps: ImageSet("s", task, dict(train=Split(np.zeros((4,5,5), np.uint8), y)))
    assert of(ClassMap(tuple("abc"))).counts("train").sum() == 100
    with pytest.raises(ValueError, match="target 2 is not in 0..1"): of(ClassMap(tuple("ab")))
    assert of(ClassMap(tuple("ab"), unknown=2)).counts("train").sum() == (maps < 2).sum()
