"A set is a table: any targets, groups that never straddle a split, files of any depth, csv files with named columns"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitnb.data.image import UnreadableImage, read_grey, read_map, read_native, readers, widen
from vitnb.data.sets import load_set
from vitnb.data.split import shared_groups
from vitnb.data.stats import BandStats, STATS
from vitnb.data.holdout import Split, hold_out, limit_split, strata
from vitnb.data.table import ImageSet, hold_out_missing
from vitnb.task import ClassMap, MultiLabel, OneClass, Ordinal, Tasks, Value


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_DATA_PATH", str(tmp_path))
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))
    monkeypatch.setenv("VITNB_HEADLESS", "1")

def films(folder, n=24, depth=8, name="films.csv", sep=",", **columns):
    "A csv beside grey images; two films a patient"
    for i in range(n):
        a = np.random.default_rng(0).integers(0, 2**depth, (6,6)).astype(np.uint8 if depth == 8 else np.uint16)
        Image.fromarray(a).save(folder/f"{i}.png")
        Image.fromarray(np.random.default_rng(0).integers(0, 3, (6,6), dtype=np.uint8)).save(folder/f"{i}_parts.png")
    table = dict(file=[f"{i}.png" for i in range(n)], patient=[f"{i//2:03}" for i in range(n)], kind=["cat" if i % 3 else "dog" for i in range(n)],
                 upper=[i % 4 for i in range(n)], lower=["" if i == 5 else i % 3 for i in range(n)], age=[f"{40 + i/2}" for i in range(n)], parts=[f"{i}_parts.png" for i in range(n)])
    frame = pd.DataFrame(table | columns)
    frame.to_csv(folder/name, index=False, sep=sep)
    return folder/name

ZONES = dict(label=["upper", "lower"], task=Ordinal(levels=4, unknown=4))

# ---- columns

@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
def test_one_class_from_the_values_of_a_column(tmp_path, sep):
    s = load_set(films(tmp_path, sep=sep), label="kind")
    assert s.tasks == Tasks.of(OneClass(("cat", "dog"))) and s.classes == ["cat", "dog"] and s.name == "films" and sum(map(len, s.splits.values())) == 24
    for v in s.splits.values():
        for p,y in zip(v.items, v.labels): assert s.classes[y] == ("cat" if int(p[:-4]) % 3 else "dog")

def test_names_that_are_numbers_are_in_the_order_of_numbers(tmp_path):
    s = load_set(films(tmp_path, n=60, kind=["2", "10", "9", "10"]*15), label="kind")
    assert s.classes == ["2", "9", "10"]

def test_zones_with_an_unknown_entry(tmp_path):
    s = load_set(films(tmp_path), **ZONES, group="patient")
    assert s.tasks.only == Ordinal(("upper", "lower"), levels=4, unknown=4)
    rows = {p:y for v in s.splits.values() for p,y in zip(v.items, v.labels.tolist())}
    assert rows["5.png"] == [1,4] and rows["6.png"] == [2,0] and len(rows) == 24
    assert {len(v.groups[0]) for v in s.splits.values()} == {3} # 007 is not 7

def test_several_tasks_and_a_map(tmp_path):
    kw = dict(tasks=dict(zones=(ZONES["task"], ZONES["label"]), kind=(None, "kind"), age=(Value(unit="years"), "age"), parts=(ClassMap(tuple("abc")), "parts")))
    s = load_set(films(tmp_path), **kw)
    same = load_set(tmp_path/"films.csv", label={k:c for k,(_,c) in kw["tasks"].items()}, task={k:t for k,(t,_) in kw["tasks"].items() if t})
    assert list(s.tasks) == ["zones", "kind", "age", "parts"] and s.fingerprint == same.fingerprint and s.tasks["kind"].names == ("cat", "dog")
    i = 3
    number = int(s.splits["train"].items[i][:-4])
    assert s.splits["train"].targets["age"][i] == 40 + number/2 and (s.label_map("train", "parts", i) == np.array(Image.open(tmp_path/f"{number}_parts.png"))).all()
    assert s.check() == {} and s.counts("train", "kind").sum() == len(s.splits["train"]) and s.counts("train", "parts").sum() == 36*len(s.splits["train"])

def test_labels_there_or_not(tmp_path):
    path = films(tmp_path, cold=[i % 2 for i in range(24)], warm=["1"]*24)
    s = load_set(path, label=["cold", "warm"], task=MultiLabel(("cold", "warm")))
    assert s.splits["train"].labels[:,1].all() and s.tasks.only.names == ("cold", "warm")

def test_a_frame_is_read_as_its_csv_is(tmp_path):
    path = films(tmp_path)
    a,b = load_set(path, **ZONES, group="patient"),load_set(pd.read_csv(path, dtype=str, keep_default_na=False), root=tmp_path, **ZONES, group="patient")
    assert a.fingerprint == b.fingerprint
    c = load_set(pd.read_csv(path, dtype=dict(patient=str)), root=tmp_path, **ZONES, group="patient") # numbers as numbers, an empty cell as NaN
    assert c.fingerprint == a.fingerprint

def test_without_a_label_there_is_nothing_to_predict(tmp_path):
    s = load_set(films(tmp_path))
    assert s.tasks == {} and s.splits["train"].targets == {} and [len(v) for v in s.splits.values()] == [17, 2, 5]

def test_splits_of_a_column_stay(tmp_path):
    said = ["train"]*12 + ["val"]*6 + ["testing"]*6
    s = load_set(films(tmp_path, part=said), label="kind", split="part", group="patient")
    assert [len(v) for v in s.splits.values()] == [12, 6, 6] and s.splits["valid"].items[0] == "12.png"
    with pytest.raises(ValueError, match="group '000' is in train and in valid"): load_set(films(tmp_path, name="b.csv", part=["train", "val"]*12), label="kind", split="part", group="patient")

def test_weights_and_another_folder(tmp_path):
    path = films(tmp_path, often=[1 + i % 2 for i in range(24)])
    (tmp_path/"elsewhere").mkdir()
    path = path.rename(tmp_path/"elsewhere"/"films.csv")
    s = load_set(path, root=tmp_path, label="kind", weight="often")
    assert [1 + int(p[:-4]) % 2 for p in s.splits["train"].items] == s.splits["train"].weights.tolist()

BAD = [
    (dict(label="kinds"), "no column 'kinds' for the label: did you mean 'kind'"),
    (dict(image="fil", label="kind"), "no column 'fil' for path"),
    (dict(label=["upper", "lower"]), "together are no class; say what they mean with task="),
    (dict(label=["upper", "lower"], task=Ordinal(levels=4)), "row 6 of the table, column 'lower' is empty.*unknown="),
    (dict(label=["upper", "kind"], task=Ordinal(levels=4)), "row 1 of the table, column 'kind': 'dog' is not a number"),
    (dict(label="age", task=Ordinal(levels=4)), "'40.5' is not a whole number"),
    (dict(label="upper", task=Ordinal(levels=3)), "target 3 is not in 0..2"),
    (dict(label="kind", task=OneClass(("dog", "cow"))), "'cat' is no class of the task"),
    (dict(label=["kind", "upper"], task=OneClass(("dog", "cat"))), "has one column, not 2"),
    (dict(task=OneClass(("dog", "cat"))), "label=... is missing"),
    (dict(label="kind", tasks=dict(a=(None, "kind"))), "either tasks="),
    (dict(label=dict(a="kind"), task=dict(b=OneClass(("x", "y")))), "task 'b' has no columns"),
    (dict(label="kind", group="doctor"), "no column 'doctor' for group"),
    (dict(label="kind", split="kind"), "'dog' is no split"),
    (dict(label="kind", weight="kind"), "'dog' is not a number"),
    (dict(label="parts", task=ClassMap(("a", "b")), image="parts", grup="x"), "no option 'grup': did you mean 'group'"),
    (dict(label="kind", reader="rbg"), "did you mean 'rgb'"),
]
@pytest.mark.parametrize("kw, says", BAD, ids=[o for _,o in BAD])
def test_what_a_table_does_not_have_is_said(tmp_path, kw, says):
    with pytest.raises(ValueError, match=says): load_set(films(tmp_path), **kw)

def test_files_that_are_missing(tmp_path):
    path = films(tmp_path)
    (tmp_path/"7.png").unlink()
    with pytest.raises(ValueError, match="row 8 of the table, column 'file': there is no file .*7.png .1 of 24 are missing"): load_set(path, label="kind")
    films(tmp_path)
    (tmp_path/"3_parts.png").unlink()
    with pytest.raises(ValueError, match="row 4 of the table, column 'parts': there is no file"): load_set(path, label="parts", task=ClassMap(("a", "b", "c")))

def test_a_folder_has_no_columns(tmp_path):
    for c in "ab":
        (tmp_path/"s"/c).mkdir(parents=True)
        for i in range(20): Image.new("RGB", (4,4), (i,i,i)).save(tmp_path/"s"/c/f"{i}.png")
    with pytest.raises(ValueError, match="label=... names a column, and .* is no table"): load_set(tmp_path/"s", label="kind")
    assert load_set(tmp_path/"s", reader="grey").read("train", 0).shape == (4,4,1)

# ---- splits

@settings(max_examples=40, deadline=None)
@given(st.integers(8, 40), st.integers(1, 4), st.integers(0, 99), st.sampled_from(["none", "class", "zones", "value"]))
def test_groups_never_straddle_and_nothing_is_lost(n_groups, each, seed, kind):
    n = n_groups*each
    local = np.random.default_rng(seed)
    task,y = dict(none=(None, None), zones=(Ordinal(("a", "b"), levels=4, unknown=9), local.integers(0, 4, (n,2))), value=(Value(), local.random(n)))\
        .get(kind, (OneClass(("x", "y")), np.arange(n) % 2))
    table = Split(np.arange(n).reshape(n,1,1), y, groups=np.repeat(np.arange(n_groups), each))
    s = ImageSet("s", task, dict(train=table))
    hold_out_missing(s, None, seed)
    where = {k:v.items.ravel() for k,v in s.splits.items()}
    assert sorted(np.concatenate(list(where.values()))) == list(range(n)) and not shared_groups(where, table.groups) and all(len(v) for v in where.values())

@pytest.mark.parametrize("task, y", [(Ordinal(("a", "b"), levels=4, unknown=9), np.random.default_rng(0).integers(0, 4, (200,2))), (MultiLabel(("a", "b", "c")), np.random.default_rng(0).integers(0, 2, (200,3))),
    (Value(), np.random.default_rng(0).random(200)), (OneClass(("a", "b", "c"), unknown=-1), np.random.default_rng(0).integers(-1, 3, 200))])
def test_parts_share_out_strata_alike(task, y):
    table = Split(np.arange(200).reshape(-1,1,1), y)
    by = strata(table, Tasks.of(task))
    rest,part = hold_out(table, .25, 3, task)
    for c in np.unique(by):
        n = (by == c).sum()
        assert abs((by[part.items.ravel()] == c).sum() - n/4) <= 1 + .1*n, c

def test_a_limit_goes_by_stratum():
    table = Split(np.arange(60).reshape(-1,1,1), np.repeat([[0,0],[3,3]], 30, axis=0))
    few,more = (limit_split(table, k, 1, Tasks.of(Ordinal(("a", "b"), levels=4))) for k in (4, 9))
    assert len(few) == 8 and set(few.items.ravel()) <= set(more.items.ravel())

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

# ---- depth and channels

def test_readers_keep_what_a_file_has(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (5,7), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path/"deep.png")
    Image.fromarray(deep).save(tmp_path/"deep.tif")
    bands = np.random.default_rng(0).random((5,7,6)).astype(np.float32)
    np.save(tmp_path/"bands.npy", bands)
    for f in ("deep.png", "deep.tif"):
        for read in (read_native, read_grey):
            got = read(tmp_path/f)
            assert got.shape == (5,7,1) and (got[...,0] == deep).all() and (widen(got)[...,0] == deep).all() and widen(got).dtype == np.int32
        assert readers["rgb"](tmp_path/f).dtype == np.uint8
    assert (read_native(tmp_path/"bands.npy") == bands).all()
    colours = np.random.default_rng(0).integers(0, 256, (5,7,3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path/"c.png")
    assert (read_native(tmp_path/"c.png") == colours).all() and (read_grey(tmp_path/"c.png")[...,0] == np.array(Image.fromarray(colours).convert("L"))).all()

def test_what_is_no_image_or_no_map(tmp_path):
    np.save(tmp_path/"four.npy", np.zeros((2,2,2,2)))
    np.save(tmp_path/"text.npy", np.array(["a"]))
    (tmp_path/"broken.npy").write_bytes(b"\x93NUMPY")
    for f,says in (("four.npy", "no image"), ("text.npy", "not numbers"), ("broken.npy", "broken.npy"), ("none.npy", "No such file")):
        with pytest.raises(UnreadableImage, match=says): read_native(tmp_path/f)
    Image.new("RGB", (2,2)).save(tmp_path/"rgb.png")
    for f in ("rgb.png", "four.npy"):
        with pytest.raises(UnreadableImage, match="one whole number a pixel"): read_map(tmp_path/f)
    palette = Image.new("P", (2,1))
    palette.putpalette([9,9,9, 200,0,0])
    palette.putpixel((1,0), 1)
    palette.save(tmp_path/"p.png")
    assert read_map(tmp_path/"p.png").tolist() == [[0,1]] # a palette's numbers are the classes

@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "int32"])
def test_statistics_of_deep_images_are_numpys(dtype):
    a = (np.random.default_rng(0).random((30,4,5,6))*1000).astype(dtype)
    s = ImageSet("deep", None, dict(train=Split(a)))
    assert np.allclose(s.stats(), [a.mean((0,1,2), dtype=float), a.astype(float).std((0,1,2))], rtol=1e-9) and s.white() == 1 and s.reader == "native" and s.channels() == 6
    with pytest.raises(ValueError, match="of 3 channels and the images have 6"): s.stats("imagenet")
    with pytest.raises(ValueError, match="are of 8-bit images"): ImageSet("t", None, dict(train=Split(a[...,:3]))).stats("imagenet")

def test_statistics_of_eight_bits_in_any_channels():
    a = np.random.default_rng(0).integers(0, 256, (10,4,4,5), dtype=np.uint8)
    s = ImageSet("five", None, dict(train=Split(a)))
    assert np.allclose(s.stats(), [(a/255).mean((0,1,2)), (a/255).std((0,1,2))], atol=1e-12) and s.white() == 255
    assert STATS["imagenet"][0] == [.485,.456,.406]

def test_a_value_that_is_not_finite_is_reported(capsys):
    a = np.random.default_rng(0).random((20,3,3)).astype(np.float32)
    a[7,1,1] = np.nan
    s = ImageSet("nan", ["a", "b"], dict(train=Split(a, [0,1]*10)), max_bad=.1)
    assert s.check() == {"train 7":"it has values that are not finite"} and len(s.splits["train"]) == 19 and np.isfinite(s.stats()).all()
    assert "1 of 20" in capsys.readouterr().out

def test_maps_in_files_are_checked_like_images(tmp_path):
    path = films(tmp_path)
    Image.new("L", (5,6)).save(tmp_path/"3_parts.png")
    Image.new("L", (6,6), 7).save(tmp_path/"8_parts.png")
    s = load_set(path, label="parts", task=ClassMap(tuple("abc")), max_bad=.2)
    bad = s.check()
    assert set(bad) == {"3.png", "8.png"} and "6×5 pixels and the image 6×6" in bad["3.png"] and "target 7" in bad["8.png"]

def test_images_of_other_channels_are_refused_together(tmp_path):
    path = films(tmp_path)
    Image.new("RGB", (6,6)).save(tmp_path/"4.png")
    with pytest.raises(ValueError, match="differ in channels or depth; choose a reader"): load_set(path, label="kind", reader="native").stats()
    assert len(load_set(path, label="kind").stats()[0]) == 3

def test_pieces_add_up():
    parts = [np.random.default_rng(0).random((4,n)) for n in (3, 0, 7)]
    s = BandStats(4)
    for p in parts: s.add(p)
    x = np.concatenate(parts, 1)
    assert np.allclose(s.mean, x.mean(1)) and np.allclose(s.std, x.std(1))

def test_maps_in_arrays_are_checked_when_a_set_is_made():
    maps = np.random.default_rng(0).integers(0, 3, (4,5,5), dtype=np.uint8)
    of = lambda task, y=maps: ImageSet("s", task, dict(train=Split(np.zeros((4,5,5), np.uint8), y)))
    assert of(ClassMap(tuple("abc"))).counts("train").sum() == 100
    with pytest.raises(ValueError, match="target 2 is not in 0..1"): of(ClassMap(tuple("ab")))
    assert of(ClassMap(tuple("ab"), unknown=2)).counts("train").sum() == (maps < 2).sum()
