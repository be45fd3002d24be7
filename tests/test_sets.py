"Data sets: splits, layouts, statistics, fingerprints and bad input"
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from data_helpers import folder, own_folders, picture

from vitnb.data.holdout import Split
from vitnb.data.sets import folder_set, load_pickle, load_set, sets
from vitnb.data.stats import STATS
from vitnb.data.table import ImageSet
from vitnb.seeding import set_seed
from vitnb.task import Value

SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"

def need_data(name):
    if not (SHARED/name).exists(): pytest.skip(f"needs the real images of {name}")
    return SHARED/name

def cifar(root, n=30, k=10, name="cifar-10-batches-py", protocol=2):
    (root/name).mkdir(parents=True)
    files,key,meta,names = ([f"data_batch_{i}" for i in range(1,6)]+["test_batch"], "labels", "batches.meta", "label_names") if k == 10 \
        else (["train", "test"], "fine_labels", "meta", "fine_label_names")
    for i,f in enumerate(files):
        d = {"data": np.random.randint(0, 256, (n,3072), dtype=np.uint8), key: [j%k for j in range(n)], "coarse_labels": [0]*n}
        (root/name/f).write_bytes(pickle.dumps(d, protocol=protocol))
    (root/name/meta).write_bytes(pickle.dumps({names: [f"c{i:02}" for i in range(k)]}, protocol=protocol))
    return root/name

WNIDS = ("n30", "n10", "n20")

def tiny(root, n=10, m=4):
    lines = []
    for w in WNIDS:
        for i in range(n): picture(root/"train"/w/"images"/f"{w}_{i}.JPEG")
        (root/"train"/w/f"{w}_boxes.txt").write_text("x")
    for i in range(m*len(WNIDS)):
        picture(root/"val"/"images"/f"val_{i}.JPEG"); lines.append(f"val_{i}.JPEG\t{WNIDS[i%3]}\t0\t0\t7\t7\n")
        picture(root/"test"/"images"/f"test_{i}.JPEG")
    (root/"val"/"val_annotations.txt").write_text("".join(lines))
    (root/"wnids.txt").write_text("\n".join(WNIDS)); (root/"words.txt").write_text("n10\tgoldfish, Carassius\nn20\tnewt\n")
    return root

def reorganise(root):
    for line in (root/"val"/"val_annotations.txt").read_text().splitlines():
        f,w = line.split("\t")[:2]
        (root/"val"/w).mkdir(exist_ok=True); (root/"val"/"images"/f).rename(root/"val"/w/f)

def by_name(s, k): return {Path(p).name:s.classes[l] for p,l in zip(s.splits[k].items, s.splits[k].labels)}

def edit(root, old, new): f = root/"val"/"val_annotations.txt"; f.write_text(f.read_text().replace(old, new, 1))

def test_digits_are_the_real_ones():
    s = load_set()
    assert [len(s.splits[k]) for k in ("train", "valid", "test")] == [1294, 144, 359] and s.n_classes == 10
    from sklearn.datasets import load_digits
    d = load_digits()
    want = sorted((np.rint(o*255/16).astype(np.uint8).tobytes(), int(t)) for o,t in zip(d.images, d.target))
    assert sorted((o.tobytes(), int(t)) for v in s.splits.values() for o,t in zip(v.items, v.labels)) == want

def test_training_seed_does_not_move_the_test():
    set_seed(1); a = load_set().fingerprint
    set_seed(2); b = load_set().fingerprint
    assert a == b != load_set(split_seed=3).fingerprint

@pytest.mark.parametrize("valid, n", [(None, 144), (0.25, 360), (100, 100)])
def test_valid_acts(valid, n): assert len(load_set(valid=valid).splits["valid"]) == n

@pytest.mark.parametrize("valid", [0, 1, 0., 1., -3, 5000, 1438, True, "0.1", 5.])
def test_valid_of_no_use(valid):
    if valid == 1 and valid is not True and isinstance(valid, int): match = "at least one of each"
    else: match = "must be a share"
    with pytest.raises(ValueError, match=match): load_set(valid=valid)

def test_limit_acts_and_nests():
    five,ten,full = (load_set(limit=k) for k in (5, 10, None))
    for k in full.splits:
        sets_ = [{o.tobytes() for o in s.splits[k].items} for s in (five, ten, full)]
        assert sets_[0] <= sets_[1] <= sets_[2]
        assert five.counts(k).max() == 5 and ten.counts(k).max() == 10

@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "3"])
def test_limit_of_no_use(limit):
    with pytest.raises(ValueError, match="limit="): load_set(limit=limit)

def test_train_and_val_give_a_test_and_a_held_out_valid(tmp_path):
    s = load_set(folder(tmp_path/"s", parts=("Train", "val")))
    assert {k:len(v) for k,v in s.splits.items()} == dict(train=18, valid=2, test=20)
    assert all(o.startswith("val/") for o in s.splits["test"].items) and all(o.startswith("Train/") for o in s.splits["valid"].items)

def test_three_folders_stay_as_they_are(tmp_path):
    folder(tmp_path/"s", parts=("train", "validation", "test"))
    s = load_set(tmp_path/"s")
    assert [len(v) for v in s.splits.values()] == [20]*3 and s.splits["valid"].items[0] == "validation/a/0.png"
    with pytest.raises(ValueError, match="valid=5 would do nothing"): load_set(tmp_path/"s", valid=5)

def test_what_is_no_image_and_what_is_hidden(tmp_path):
    root = folder(tmp_path/"s", n=5)
    (root/"a"/"notes.txt").write_text("x"); picture(root/"a"/".thumb.png"); picture(root/".cache"/"x.png"); picture(root/"__MACOSX"/"x.png")
    picture(root/"a"/"deep"/"er"/"UP.PNG")
    s = folder_set(root)
    assert s.classes == ["a", "b"] and len(s.splits["train"]) == 11 and "a/deep/er/UP.PNG" in s.splits["train"].items
    assert s.path("train", 0).is_file()

@pytest.mark.parametrize("make, match", [
    (lambda d: (d/"train"/"c").mkdir(), "class folder .*c holds no image .* add images, or choose the classes"),
    (lambda d: (d/"test"/"b2").mkdir() or picture(d/"test"/"b2"/"0.png"), "does not have: b2"),
    (lambda d: shutil.rmtree(d/"train"), "no train folder"),
    (lambda d: folder(d, parts=("val", "valid")), "both val and valid"),
    (lambda d: shutil.rmtree(d/"test") or picture(d/"test"/"0.png"), "test holds no image in a class folder"),
    (lambda d: shutil.rmtree(d/"train"/"b"), "1 class folders"),
])
def test_folders_that_cannot_be_meant(tmp_path, make, match):
    make(folder(tmp_path/"s", n=3, parts=("train", "test")))
    with pytest.raises(ValueError, match=match): load_set(tmp_path/"s")

def test_loose_images(tmp_path):
    for i in range(3): picture(tmp_path/"s"/f"{i}.png")
    with pytest.raises(ValueError, match="0 class folders and loose images"): load_set(tmp_path/"s")

def test_missing_data(tmp_path):
    with pytest.raises(ValueError, match="unknown data set .*nowhere.* there is none at"): load_set(tmp_path/"nowhere")
    with pytest.raises(ValueError, match="did you mean 'cifar10'"): load_set("cifar_10")

def test_names_and_archives_in_the_data_path(tmp_path):
    folder(tmp_path/"data"/"leaves")
    assert load_set("leaves").name == "leaves" == load_set("leaves", root=tmp_path/"data").name
    with zipfile.ZipFile(tmp_path/"data"/"more.leaves.zip", "w") as z:
        for f in (tmp_path/"data"/"leaves").rglob("*.png"): z.write(f, f"wrapped/twice/{f.relative_to(tmp_path/'data'/'leaves')}")
    for _ in range(2): assert len(load_set("more.leaves.zip").splits["train"]) == 14
    assert (tmp_path/"data"/"more.leaves"/"a").is_dir()

def test_a_registered_set(monkeypatch):
    monkeypatch.setitem(sets, "mine", lambda root, download: ImageSet("mine", ["a", "b"], dict(train=Split(np.zeros((40,2,2), np.uint8), [0,1]*20))))
    assert [len(v) for v in load_set("mine").splits.values()] == [29, 3, 8]

def test_cifar10_planes(tmp_path):
    d = cifar(tmp_path)
    s = load_set("cifar10", root=tmp_path, download=False, valid=20)
    assert [len(v) for v in s.splits.values()] == [130, 20, 30]
    raw = load_pickle(d/"test_batch")["data"][4]
    for c in range(3): assert (s.read("test", 4)[...,c] == raw[1024*c:1024*(c+1)].reshape(32,32)).all()

def test_cifar100_and_all_ways_to_name_it(tmp_path):
    d = cifar(tmp_path, n=400, k=100, name="cifar-100-python")
    prints = {load_set(n, root=r, download=False, valid=.25).fingerprint for n,r in (("cifar100", tmp_path), ("cifar100", d), (d, None))}
    assert len(prints) == 1 and load_set(d, valid=.25).n_classes == 100

@pytest.mark.parametrize("harm, match", [
    (lambda d: (d/"data_batch_3").unlink(), "data_batch_3 is missing"),
    (lambda d: (d/"data_batch_3").write_bytes((d/"data_batch_3").read_bytes()[:500]), "data_batch_3 is not a CIFAR batch"),
    (lambda d: (d/"test_batch").write_bytes(pickle.dumps(dict(data=np.zeros((2,3072), np.uint8), labels=[0,10]))), "from 0 to 9"),
    (lambda d: (d/"test_batch").write_bytes(pickle.dumps(dict(data=np.zeros((2,3072)), labels=[0,1]))), "rows of 3,072 bytes"),
    (lambda d: (d/"test_batch").write_bytes(pickle.dumps([1])), "rows of 3,072 bytes"),
    (lambda d: (d/"batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat"]})), "names of the classes under 'label_names'"),
    (lambda d: (d/"batches.meta").write_bytes(pickle.dumps([1])), "names of the classes under 'label_names'"),
])
def test_damaged_cifar(tmp_path, harm, match):
    harm(cifar(tmp_path))
    with pytest.raises(ValueError, match=match): load_set("cifar10", root=tmp_path)

def test_cifar_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="put cifar-100-python.tar.gz .* there, or load"): load_set("cifar100", root=tmp_path, download=False)

def test_tiny_imagenet_both_layouts(tmp_path):
    root = tiny(tmp_path/"tiny-imagenet-200")
    a = load_set("tiny_imagenet", root=tmp_path)
    assert a.classes == ["n10", "n20", "n30"] and a.titles == ["goldfish", "newt", "n30"]
    assert {k:len(v) for k,v in a.splits.items()} == dict(train=27, valid=3, test=12)
    assert by_name(a, "test") == {f"val_{i}.JPEG":WNIDS[i%3] for i in range(12)}
    reorganise(root)
    for b in (load_set("tiny_imagenet", root=root), load_set(root)):
        assert by_name(b, "test") == by_name(a, "test") and by_name(b, "train") == by_name(a, "train")

@pytest.mark.parametrize("harm, match", [
    (lambda r: (r/"val"/"images"/"val_3.JPEG").unlink(), "val_3.JPEG has no file"),
    (lambda r: edit(r, "val_3.JPEG\tn30\t0\t0\t7\t7\n", ""), "val_3.JPEG is not in val_annotations.txt"),
    (lambda r: edit(r, "val_3.JPEG\tn30", "val_3.JPEG\tn99"), "line 4: .* a wnid of wnids.txt"),
    (lambda r: edit(r, "val_3.JPEG\tn30\t0", "val_3.JPEG n30 0"), "line 4: .* separated by tabs"),
    (lambda r: edit(r, "val_4.JPEG\tn10", "val_3.JPEG\tn10"), "val_3.JPEG has another label above"),
    (lambda r: (r/"wnids.txt").write_text("n10\nn20"), "n30 is in train only"),
    (lambda r: shutil.rmtree(r/"train"/"n20"), "n20 is in wnids.txt only"),
    (lambda r: shutil.rmtree(r/"train"/"n20"/"images"), "n20 holds no image"),
    (lambda r: (r/"val"/"val_annotations.txt").unlink(), "val_annotations.txt is missing"),
])
def test_contradictions_in_tiny_imagenet(tmp_path, harm, match):
    root = tiny(tmp_path/"tiny-imagenet-200"); harm(root)
    with pytest.raises(ValueError, match=match): load_set("tiny_imagenet", root=tmp_path)

def test_imagenet_folders(tmp_path):
    folder(tmp_path/"imagenet", ("n1", "n2"), n=20, parts=("train", "val")); picture(tmp_path/"imagenet"/"test"/"unlabelled.png")
    s = load_set("imagenet", root=tmp_path)
    assert s.name == "imagenet" and [len(v) for v in s.splits.values()] == [36, 4, 40]
    with pytest.raises(ValueError, match="imagenet is not at .* image-net.org"): load_set("imagenet", root=tmp_path/"no")

def test_real_tiny_imagenet():
    file = need_data("tiny-imagenet-20.zip")
    s = load_set("tiny_imagenet", root=file, limit=100)
    assert s.n_classes == 20 and s.classes == sorted(s.classes) and "German shepherd" in s.titles
    assert {k:len(v) for k,v in s.splits.items()} == dict(train=2000, valid=1000, test=1000)
    with zipfile.ZipFile(file) as z: lines = z.read("tiny-imagenet-200/val/val_annotations.txt").decode().splitlines()
    assert by_name(s, "test") == dict(o.split("\t")[:2] for o in lines)
    assert s.check() == {}
    mean,std = s.stats()
    assert np.allclose([mean,std], STATS["tiny_imagenet"], atol=.04) and not np.allclose(std, STATS["tiny_imagenet_guide"][1], atol=.025)
    grey = [i for i in range(len(s.splits["test"])) if Image.open(s.path("test", i)).mode == "L"]
    assert grey and all(s.read("test", i).shape == (64,64,3) for i in grey)

def test_real_cifar():
    s = load_set("cifar10", root=need_data("cifar10_mini.zip"))
    assert s.classes == "airplane automobile bird cat deer dog frog horse ship truck".split() and len(s.splits["test"]) == 1017
    assert s.splits["test"].labels[:4].tolist() == [3,8,8,0] # cat, ship, ship, airplane: the well-known first four
    assert np.allclose(s.stats(), STATS["cifar10"], atol=.01)

def test_real_leaves():
    s = load_set(need_data("cotton_leaf_disease.zip"))
    assert s.n_classes == 4 and [len(v) for v in s.splits.values()] == [432, 48, 120] and s.counts("test").tolist() == [30]*4
    assert s.read("train", 0).shape == (256,256,3)

# ------------------------------------------------------------------------------------- tables in folders, names of files

def scans(root, parts=("images",), n=24):
    for i in range(n): picture(root/parts[i % len(parts)]/f"s{i}.png", h=4, w=4)
    return [f"s{i}.png" for i in range(n)]

@pytest.mark.parametrize("parts", [("images",), ("images_001", "images_002"), ("train", "test"), ("images", "masks")])
@pytest.mark.parametrize("cut", [False, True])
def test_a_table_in_a_folder_has_its_labels(tmp_path, parts, cut, capsys):
    names = scans(tmp_path/"s", parts)
    rows = [f"{name[:-4] if cut else name},{'ab'[i//2 % 2]},p{i//2}" for i,name in enumerate(names)]
    (tmp_path/"s"/"train.csv").write_text("image_id,label,patient\n" + "\n".join(rows))
    s = load_set(tmp_path/"s", group="patient")
    assert s.classes == ["a", "b"] and sum(map(len, s.splits.values())) == 24 and "the labels are those of train.csv" in capsys.readouterr().out
    assert all(s.classes[y] == "ab"[int(item.split("/s")[1][:-4])//2 % 2] for v in s.splits.values() for item,y in zip(v.items, v.labels))
    assert load_set(tmp_path/"s"/"train.csv", group="patient").splits["test"].items == s.splits["test"].items

def test_class_folders_beside_a_table_are_asked_about(tmp_path):
    root = folder(tmp_path/"s", n=12)
    rows = [f"{c}/{i}.png,{i % 2}" for c in "ab" for i in range(12)]
    (root/"list.csv").write_text("file,label\n" + "\n".join(rows))
    with pytest.raises(ValueError, match="list.csv, which lists its images, and folders a, b"): load_set(root)
    assert load_set(root, classes=["a", "b"], valid=2).classes == ["a", "b"] and load_set(root/"list.csv", valid=2).classes == ["0", "1"]
    (root/"list.csv").write_text("file,label\n" + "\n".join(f"{row[:-2]},{row[0]}" for row in rows)) # says what the folders say
    assert load_set(root, valid=2).classes == ["a", "b"]
    (root/"list.csv").write_text("class,area\na,1\nb,2\n") # lists no images
    assert load_set(root, valid=2).classes == ["a", "b"]

def test_of_two_tables_the_one_with_the_label_is_taken(tmp_path):
    names = scans(tmp_path/"s")
    (tmp_path/"s"/"train.csv").write_text("file,diagnosis\n" + "\n".join(f"{name},{'ab'[i % 2]}" for i,name in enumerate(names)))
    (tmp_path/"s"/"submit.csv").write_text("file,guess\n" + "\n".join(f"{name},0" for name in names))
    with pytest.raises(ValueError, match="submit.csv and train.csv, which list its images"): load_set(tmp_path/"s")
    assert load_set(tmp_path/"s", label="diagnosis", valid=2).classes == ["a", "b"]

@pytest.mark.parametrize("name", ["t.txt", "t.dat", "t", "t.CSV", "t.tab"])
def test_a_table_is_known_by_its_contents(tmp_path, name):
    names = scans(tmp_path, (".",))
    (tmp_path/name).write_text("file\tlabel\n" + "\n".join(f"{file}\t{'ab'[i % 2]}" for i,file in enumerate(names)))
    assert load_set(tmp_path/name, valid=2).classes == ["a", "b"]

def test_what_pandas_reads_is_named(tmp_path):
    for name,reads in {"t.xlsx":"read_excel", "t.parquet":"read_parquet", "t.json":"read_json"}.items():
        (tmp_path/name).write_bytes(b"PK\3\4")
        with pytest.raises(ValueError, match=f"pandas.{reads}"): load_set(tmp_path/name)

def test_labels_from_names_of_files(tmp_path):
    for i in range(12): picture(tmp_path/"s"/f"{'catdog'[i % 2*3:][:3]}_p{i//4}_{i}.png", h=4, w=4)
    s = load_set(tmp_path/"s", pattern=r"(?P<label>[a-z]+)_(?P<group>p\d)", valid=.3)
    groups = [set(v.groups) for v in s.splits.values()]
    assert s.classes == ["cat", "dog"] and sum(map(len, groups)) == len(set.union(*groups)) == 3
    v = load_set(tmp_path/"s", pattern=r"(?P<kind>[a-z]+)_p(?P<value>\d)", valid=2)
    assert v.tasks.only == Value() and all(item.split("_p")[1][0] == str(int(y)) for item,y in zip(v.splits["train"].items, v.splits["train"].labels))
    assert load_set(tmp_path/"s", pattern=r"(?P<kind>[a-z]+)_", label="kind", valid=2).classes == ["cat", "dog"]
    for pattern,says in {r"(?P<label>cat)":"does not fit 6 of 12 images", r"([a-z]+)":"names no group", r"(?P<label>":"is no regular expression"}.items():
        with pytest.raises(ValueError, match=says): load_set(tmp_path/"s", pattern=pattern)
