"Sets from tables with named columns"
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from data_helpers import film_table, own_folders, same

from vitnb.data.frame import frame_set
from vitnb.data.sets import load_set
from vitnb.data.table import hold_out_missing
from vitnb.task import ClassMap, MultiLabel, OneClass, Ordinal, Tasks, Value

ZONES = dict(label=["upper", "lower"], task=Ordinal(levels=4, unknown=4))

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

@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
def test_one_class_from_the_values_of_a_column(tmp_path, sep):
    s = load_set(film_table(tmp_path, sep=sep), label="kind")
    assert s.tasks == Tasks.of(OneClass(("cat", "dog"))) and s.classes == ["cat", "dog"] and s.name == "films" and sum(map(len, s.splits.values())) == 24
    for v in s.splits.values():
        for p,y in zip(v.items, v.labels): assert s.classes[y] == ("cat" if int(p[:-4]) % 3 else "dog")

def test_names_that_are_numbers_are_in_the_order_of_numbers(tmp_path):
    s = load_set(film_table(tmp_path, n=60, kind=["2", "10", "9", "10"]*15), label="kind")
    assert s.classes == ["2", "9", "10"]

def test_zones_with_an_unknown_entry(tmp_path):
    s = load_set(film_table(tmp_path), **ZONES, group="patient")
    assert s.tasks.only == Ordinal(("upper", "lower"), levels=4, unknown=4)
    rows = {p:y for v in s.splits.values() for p,y in zip(v.items, v.labels.tolist())}
    assert rows["5.png"] == [1,4] and rows["6.png"] == [2,0] and len(rows) == 24
    assert {len(v.groups[0]) for v in s.splits.values()} == {3} # 007 is not 7

def test_several_tasks_and_a_map(tmp_path):
    kw = dict(tasks=dict(zones=(ZONES["task"], ZONES["label"]), kind=(None, "kind"), age=(Value(unit="years"), "age"), parts=(ClassMap(tuple("abc")), "parts")))
    s = load_set(film_table(tmp_path), **kw)
    same = load_set(tmp_path/"films.csv", label={k:c for k,(_,c) in kw["tasks"].items()}, task={k:t for k,(t,_) in kw["tasks"].items() if t})
    assert list(s.tasks) == ["zones", "kind", "age", "parts"] and s.fingerprint == same.fingerprint and s.tasks["kind"].names == ("cat", "dog")
    i = 3
    number = int(s.splits["train"].items[i][:-4])
    assert s.splits["train"].targets["age"][i] == 40 + number/2 and (s.label_map("train", "parts", i) == np.array(Image.open(tmp_path/f"{number}_parts.png"))).all()
    assert s.check() == {} and s.counts("train", "kind").sum() == len(s.splits["train"]) and s.counts("train", "parts").sum() == 36*len(s.splits["train"])

def test_labels_there_or_not(tmp_path):
    path = film_table(tmp_path, cold=[i % 2 for i in range(24)], warm=["1"]*24)
    s = load_set(path, label=["cold", "warm"], task=MultiLabel(("cold", "warm")))
    assert s.splits["train"].labels[:,1].all() and s.tasks.only.names == ("cold", "warm")

def test_a_frame_is_read_as_its_csv_is(tmp_path):
    path = film_table(tmp_path)
    a,b = load_set(path, **ZONES, group="patient"),load_set(pd.read_csv(path, dtype=str, keep_default_na=False), root=tmp_path, **ZONES, group="patient")
    assert a.fingerprint == b.fingerprint
    c = load_set(pd.read_csv(path, dtype=dict(patient=str)), root=tmp_path, **ZONES, group="patient") # numbers as numbers, an empty cell as NaN
    assert c.fingerprint == a.fingerprint

def test_without_a_label_there_is_nothing_to_predict(tmp_path):
    s = load_set(film_table(tmp_path))
    assert s.tasks == {} and s.splits["train"].targets == {} and [len(v) for v in s.splits.values()] == [17, 2, 5]

def test_splits_of_a_column_stay(tmp_path):
    said = ["train"]*12 + ["val"]*6 + ["testing"]*6
    s = load_set(film_table(tmp_path, part=said), label="kind", split="part", group="patient")
    assert [len(v) for v in s.splits.values()] == [12, 6, 6] and s.splits["valid"].items[0] == "12.png"
    with pytest.raises(ValueError, match="group '000' is in train and in valid"): load_set(film_table(tmp_path, name="b.csv", part=["train", "val"]*12), label="kind", split="part", group="patient")

def test_weights_and_another_folder(tmp_path):
    path = film_table(tmp_path, often=[1 + i % 2 for i in range(24)])
    (tmp_path/"elsewhere").mkdir()
    path = path.rename(tmp_path/"elsewhere"/"films.csv")
    s = load_set(path, root=tmp_path, label="kind", weight="often")
    assert [1 + int(p[:-4]) % 2 for p in s.splits["train"].items] == s.splits["train"].weights.tolist()

@pytest.mark.parametrize("kw, says", BAD, ids=[o for _,o in BAD])
def test_what_a_table_does_not_have_is_said(tmp_path, kw, says):
    with pytest.raises(ValueError, match=says): load_set(film_table(tmp_path), **kw)

def test_files_that_are_missing(tmp_path):
    path = film_table(tmp_path)
    (tmp_path/"7.png").unlink()
    with pytest.raises(ValueError, match="row 8 of the table, column 'file': there is no file .*7.png .1 of 24 are missing"): load_set(path, label="kind")
    film_table(tmp_path)
    (tmp_path/"3_parts.png").unlink()
    with pytest.raises(ValueError, match="row 4 of the table, column 'parts': there is no file"): load_set(path, label="parts", task=ClassMap(("a", "b", "c")))

def test_a_folder_has_no_columns(tmp_path):
    for c in "ab":
        (tmp_path/"s"/c).mkdir(parents=True)
        for i in range(20): Image.new("RGB", (4,4), (i,i,i)).save(tmp_path/"s"/c/f"{i}.png")
    with pytest.raises(ValueError, match="label=... names a column, and .* is no table"): load_set(tmp_path/"s", label="kind")
    assert load_set(tmp_path/"s", reader="grey").read("train", 0).shape == (4,4,1)


# ---------- one file in several rows

def listed(folder, *rows, columns=("image", "label", "group")):
    for number in range(12): Image.new("RGB", (4, 4), (number, 0, 0)).save(folder/f"{number}.png")
    return pd.DataFrame(rows, columns=columns)


def test_a_file_of_two_groups_is_refused(tmp_path):
    frame = listed(tmp_path, ("0.png", "a", "p0"), ("./0.png", "a", "p1"), ("1.png", "b", "p2"))
    with pytest.raises(ValueError, match="0.png is of group 'p1' here and of 'p0' in row 1"):
        frame_set(frame, "set", tmp_path, label="label", group="group")


def test_rows_of_one_file_stay_in_one_split(tmp_path, capsys):
    rows = [(f"{number % 12}.png", "ab"[number % 2], "") for number in range(24)]
    found = frame_set(listed(tmp_path, *rows), "set", tmp_path, label="label")
    assert "12 rows name a file again" in capsys.readouterr().out
    hold_out_missing(found, None, 0)
    parts = [set(split.items) for split in found.splits.values()]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 12
    rows = [("0.png", "a", "train"), ("0.png", "a", "test"), ("1.png", "b", "train")]
    with pytest.raises(ValueError, match="0.png.*in train and in test"):
        frame_set(listed(tmp_path, *rows, columns=("image", "label", "split")), "set", tmp_path, label="label", split="split")


# ---------------------------------------------------------------------------------------------- tables as people have them

def images(folder, n=40, names="{}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n): Image.new("L", (4,4), i).save(folder/names.format(i))
    return folder

def rows_of(s): return {item:split.labels[i].tolist() for split in s.splits.values() for i,item in enumerate(split.items)}

def test_columns_with_usual_names_are_found_and_said(tmp_path, capsys):
    images(tmp_path/"images")
    frame = pd.DataFrame(dict(ImageID=[f"{i}" for i in range(40)], Class=list("ab")*20, split=["train"]*24 + ["val"]*8 + ["test"]*8, Patient_ID=[f"p{i//2}" for i in range(40)]))
    s = load_set(frame, root=tmp_path)
    said = capsys.readouterr().out
    assert s.classes == ["a", "b"] and [len(v) for v in s.splits.values()] == [24, 8, 8] and s.splits["train"].items[0] == "images/0.png"
    assert "images from column 'ImageID', labels from column 'Class', splits from column 'split'" in said and "group='Patient_ID'" in said and "40 files found by their names" in said
    assert load_set(frame, root=tmp_path, label="", split="").tasks == {} and len(load_set(frame, root=tmp_path, split="").splits["train"]) == 29

def test_which_of_two_usual_columns_is_asked_or_seen(tmp_path):
    images(tmp_path)
    frame = pd.DataFrame(dict(image_id=[f"x{i}" for i in range(40)], path=[f"{i}.png" for i in range(40)], label=list("ab")*20))
    assert load_set(frame, root=tmp_path).splits["test"].items[0].endswith(".png")
    with pytest.raises(ValueError, match="which column has the labels\\? 'label', 'target' are called so"): load_set(frame.assign(target=1), root=tmp_path)

def test_several_labels_in_a_cell(tmp_path, capsys):
    images(tmp_path)
    cells = ["mass|nodule", "mass", "", "edema | mass"]*10
    frame = pd.DataFrame(dict(file=[f"{i}.png" for i in range(40)], finding=cells))
    s = load_set(frame, root=tmp_path, label="finding", separator="|")
    slow = {f"{i}.png":[int(name in [part.strip() for part in cells[i].split("|")]) for name in ("edema", "mass", "nodule")] for i in range(40)}
    assert s.tasks.only == MultiLabel(("edema", "mass", "nodule")) and rows_of(s) == slow
    given = load_set(frame, root=tmp_path, label="finding", separator="|", task=MultiLabel(("nodule", "mass", "edema")))
    assert rows_of(given) == {k:v[::-1] for k,v in slow.items()}
    with pytest.raises(ValueError, match="row 1 of the table, column 'finding': 'nodule' is no label"): load_set(frame, root=tmp_path, label="finding", separator="|", task=MultiLabel(("mass", "edema")))
    load_set(frame.replace("", "mass"), root=tmp_path, label="finding")
    assert "separator='|'" in capsys.readouterr().out
    for kw in (dict(separator="|"), dict(separator="|", value="file"), dict(label="finding", separator="|", task=OneClass(("a", "b")))):
        with pytest.raises(ValueError, match="separator='|'|not a number"): load_set(frame, root=tmp_path, **kw)

@pytest.mark.parametrize("ages", [[61.5 + i//20 for i in range(40)], [f"{61.5 + i//20}" for i in range(40)], [i % 3 + .25 for i in range(40)]])
def test_numbers_with_decimals_are_values_and_no_classes(tmp_path, ages):
    images(tmp_path)
    frame = pd.DataFrame(dict(file=[f"{i}.png" for i in range(40)], label=ages, kind=list("ab")*20))
    with pytest.raises(ValueError, match="values and no classes: give value='label'"): load_set(frame, root=tmp_path)
    s = load_set(frame, root=tmp_path, value="label")
    assert s.tasks.only == Value() and rows_of(s) == {f"{i}.png":float(np.float32(ages[i])) for i in range(40)}
    both = load_set(frame, root=tmp_path, label="kind", value="label")
    assert list(both.tasks) == ["kind", "label"] and both.tasks["kind"] == OneClass(("a", "b"))
    named = load_set(frame, root=tmp_path, label="label", task=OneClass(tuple(sorted({str(float(a)) for a in ages}))))
    assert len(named.classes) == len(set(ages))

def test_whole_numbers_beside_an_empty_cell_keep_their_names(tmp_path):
    "pandas makes 3.0 of 3 where a cell of the column is empty"
    images(tmp_path)
    frame = pd.DataFrame(dict(file=[f"{i}.png" for i in range(40)], label=[float(i % 3) for i in range(40)]))
    assert load_set(frame, root=tmp_path).classes == ["0", "1", "2"]

def test_a_decimal_comma_gets_its_remedy(tmp_path):
    images(tmp_path)
    frame = pd.DataFrame(dict(file=[f"{i}.png" for i in range(40)], age=["40,5"]*40))
    with pytest.raises(ValueError, match="'40,5' is not a number; .*decimal=','"): load_set(frame, root=tmp_path, value="age")

def test_files_of_one_name_are_asked_for(tmp_path):
    for part in "ab": images(tmp_path/part, 3)
    with pytest.raises(ValueError, match="row 1 of the table, column 'file': '0.png' may be a/0.png or b/0.png"): load_set(pd.DataFrame(dict(file=["0.png"]*3, label=list("aab"))), root=tmp_path)

def test_labels_that_look_alike_are_told(tmp_path, capsys):
    images(tmp_path)
    load_set(pd.DataFrame(dict(file=[f"{i}.png" for i in range(40)], label=["Cat", "cat"]*20)), root=tmp_path)
    assert "'Cat' and 'cat' are two classes, although they differ only in upper and lower case" in capsys.readouterr().out

TABLE = pd.DataFrame(dict(file=[f"{i}.png" for i in range(40)], label=list("ab")*20))
SIDES = ["train"]*24 + ["valid"]*8 + ["test"]*8

@pytest.mark.parametrize("column, words", [
    ("split", ("Train", "VAL", "Test")), ("split", ("training", "dev", "holdout")), ("Split", ("train set", "Validation-Set", "test_data")),
    ("set", ("TRAIN", "valid", "hold-out")), ("fold", ("train", "val", "test")), ("whatever", ("train", "dev", "testing"))])
def test_splits_are_those_of_the_table_whatever_they_are_called(tmp_path, column, words):
    frame = TABLE.assign(**{column:[dict(zip(("train", "valid", "test"), words))[side] for side in SIDES]})
    s = load_set(frame, root=images(tmp_path))
    assert {item:side for side,split in s.splits.items() for item in split.items} == dict(zip(TABLE.file, SIDES))

@pytest.mark.parametrize("yes, no", [(True, False), ("1", "0"), ("yes", "no")])
def test_a_column_of_yes_and_no_is_a_split(tmp_path, yes, no):
    s = load_set(TABLE.assign(is_valid=[yes if side == "valid" else no for side in SIDES]), root=images(tmp_path))
    assert list(s.splits["valid"].items) == [f"{i}.png" for i in range(24, 32)]

@pytest.mark.parametrize("frame, says", [
    (TABLE.assign(split=["train"]*30 + ["eval"]*10), "column 'split' has splits, but 'eval' is none"),
    (TABLE.assign(split=["train"]*30 + [""]*10), "some of its cells are empty"),
    (TABLE.assign(a=SIDES, b=SIDES), "which column has the splits\\? 'a' and 'b'"),
    (TABLE.set_index("file"), "give frame.reset_index"),
    (TABLE.rename(columns=dict(file="0.png", label="a")), "first line of the table names no columns"),
    (TABLE.assign(label=pd.array([1, 2]*19 + [pd.NA]*2, dtype="Int64")), "row 39 of the table, column 'label' is empty"),
    (TABLE.assign(file=[f"{i}.jpg" for i in range(40)]), "there is no file .*but there is 0.png")])
def test_what_a_table_leaves_open_is_asked(tmp_path, frame, says):
    with pytest.raises(ValueError, match=says): load_set(frame, root=images(tmp_path))

def test_numbers_that_are_no_splits_are_told(tmp_path, capsys):
    load_set(TABLE.assign(split=[i % 5 for i in range(40)]), root=images(tmp_path))
    assert "column 'split' is not taken for splits: '0' is none" in capsys.readouterr().out

@pytest.mark.parametrize("cells, names", [([["b", "a"], [], ["c"], ("a",)], "abc"), (["['b', 'a']", "[]", "['c']", "['a']"], "abc"), ([np.array(["x"]), ["y"]]*2, "xy")])
def test_a_cell_with_a_list_has_several_labels(tmp_path, cells, names):
    s = load_set(TABLE.assign(label=cells*10), root=images(tmp_path))
    found = rows_of(s)
    wanted = [list(cell) if not isinstance(cell, str) else [c for c in cell if c.isalpha()] for cell in cells*10]
    assert s.tasks.only == MultiLabel(tuple(names))
    assert all(found[file] == [int(name in cell) for name in names] for file,cell in zip(TABLE.file, wanted))

def test_columns_of_yes_and_no_and_columns_without_names(tmp_path):
    marks = pd.DataFrame({0:TABLE.file, 1:["1", "0"]*20, 2:["0", "1"]*20, 3:["1", "1"]*20})
    one = load_set(marks, root=images(tmp_path), image=0, label=[1, 2])
    several = load_set(marks, root=tmp_path, image=0, label=[1, 3])
    assert one.tasks.only == OneClass(("1", "2")) and rows_of(one)["1.png"] == 1
    assert several.tasks.only == MultiLabel(("1", "3")) and rows_of(several)["1.png"] == [0, 1]
    assert rows_of(load_set(marks, root=tmp_path, label=2))["1.png"] == 1


@pytest.mark.parametrize("weights,says", [([1, -1, 1, 1], "row 2 of the table, column 'w': -1 is below 0"), ([0, 0, 0, 0], "nothing would be drawn"), ([0, 2, 1, 1], None)])
def test_weights_say_how_often_and_never_less(tmp_path, weights, says):
    for i in range(4): Image.new("RGB", (4,4)).save(tmp_path/f"{i}.png")
    frame = pd.DataFrame(dict(file=[f"{i}.png" for i in range(4)], label=list("abab"), w=weights))
    if says is None: assert frame_set(frame, "t", tmp_path, weight="w").splits["train"].weights.ravel().tolist() == weights
    else:
        with pytest.raises(ValueError, match=says): frame_set(frame, "t", tmp_path, weight="w")


@pytest.mark.parametrize("labels,told", [("abba", 2), ("abab", 0), ("abaa", 1)])
def test_a_file_under_several_classes_is_told(tmp_path, capsys, labels, told):
    for i in range(2): Image.new("RGB", (4,4)).save(tmp_path/f"{i}.png")
    frame_set(pd.DataFrame(dict(file=["0.png", "1.png"]*2, label=list(labels))), "t", tmp_path)
    out = capsys.readouterr().out
    assert (f"{told} files stand under several classes, such as " in out) if told else "several classes" not in out
