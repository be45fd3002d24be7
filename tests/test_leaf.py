"Sets of leaves: SAR-CLD-2024's layout, copies that follow their source, and the synthetic set"
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitnb.data.leaf import COPIES, ORIGINALS, LeafSet, load_leaves
from vitnb.data.leafmodel import LEAF_CLASSES
from vitnb.data.sets import load_set

SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"
PUBLISHED = (250, 431, 257, 280, 225, 578, 116) # photographs of each class, as two audits counted


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_DATA_PATH", str(tmp_path/"data"))
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))


def image(path, rng, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (size,size,3), np.uint8)).save(path)


def published(root, n=10, copies=20, name="aug_{}_{}"):
    "SAR-CLD-2024's layout in small: n photographs and some copies of each class, the copies named after photographs 0, 1, 2 ..."
    rng = np.random.default_rng(0)
    for o in LEAF_CLASSES:
        for i in range(n): image(root/ORIGINALS/o/f"leaf_{i}.png", rng)
        for i in range(copies): image(root/COPIES/o/f"{name.format(f'leaf_{i % n}', i)}.png", rng)
    return root


def groups(s): return [set(v.groups.tolist()) for v in s.splits.values()]


def test_the_classes_have_the_published_spelling_and_order():
    assert LEAF_CLASSES == ("Bacterial Blight", "Curl Virus", "Healthy Leaf", "Herbicide Growth Damage", "Leaf Hopper Jassids", "Leaf Redding", "Leaf Variegation")
    assert (ORIGINALS, COPIES) == ("Original Dataset", "Augmented Dataset")


@pytest.mark.parametrize("load", [load_leaves, load_set, lambda p: load_leaves("sar_cld_2024", p), lambda p: load_set("sar_cld_2024", p)])
def test_the_published_layout_is_read_by_path_and_by_name(tmp_path, load):
    s = load(published(tmp_path))
    assert isinstance(s, LeafSet) and s.classes == list(LEAF_CLASSES) and sum(map(len, s.splits.values())) == 70
    assert all(o.startswith("Original Dataset/" + LEAF_CLASSES[y]) for v in s.splits.values() for o,y in zip(v.items, v.labels))
    assert all((s.root/o).is_file() for v in s.splits.values() for o in v.items)


def test_all_numbers_of_the_published_set_come_out(tmp_path):
    "2,137 photographs in the published proportions, stratified, and reproducible from the sorted names"
    rng = np.random.default_rng(0)
    image(tmp_path/"x.png", rng, 4)
    data = (tmp_path/"x.png").read_bytes()
    for o,n in zip(LEAF_CLASSES, PUBLISHED):
        (tmp_path/"sar"/ORIGINALS/o).mkdir(parents=True)
        for i in range(n): (tmp_path/"sar"/ORIGINALS/o/f"{i}.png").write_bytes(data + f"{o}{i}".encode()) # other bytes, the same image
    s = load_leaves(tmp_path/"sar")
    assert sum(map(len, s.splits.values())) == 2137
    for k,share in dict(train=.72, valid=.08, test=.2).items(): assert np.abs(s.counts(k)/np.array(PUBLISHED) - share).max() < .02
    again = load_leaves(tmp_path/"sar")
    assert all(v.items == again.splits[k].items for k,v in s.splits.items())
    assert load_leaves(tmp_path/"sar", split_seed=1).splits["test"].items != s.splits["test"].items


def test_augmented_copies_are_never_held_out_and_follow_their_source(tmp_path):
    for seed in range(5):
        s = load_leaves(published(tmp_path/f"{seed}", n=10, copies=25), augmented="name", split_seed=seed)
        held = {(k,o) for k in ("valid","test") for o in s.splits[k].items}
        assert all(o.startswith(ORIGINALS) for _,o in held)
        train = s.splits["train"].items
        assert sum(o.startswith(COPIES) for o in train) == s.copies["used"] > 0
        stems = {(Path(o).parent.name, Path(o).stem) for _,o in held}
        for o in train:
            source = re.search(r"leaf_\d+", Path(o).stem)[0]
            assert (Path(o).parent.name, source) not in stems
        a,b,c = groups(s)
        assert not (a & b or a & c or b & c) and sum(s.copies.values()) == 175 and s.copies["unknown"] == 0


def test_copies_have_the_group_of_their_source(tmp_path):
    train = load_leaves(published(tmp_path), augmented="name").splits["train"]
    home = {(o.split("/")[1], Path(o).stem):g for o,g in zip(train.items, train.groups) if o.startswith(ORIGINALS)}
    for o,g in zip(train.items, train.groups): assert g == home[o.split("/")[1], re.search(r"leaf_\d+", o)[0]]


@pytest.mark.parametrize("name,found", [("{}_rot{}", True), ("flip-{}-{}", True), ("{} ({})", True), ("aug{}_{}", False), ("x{}{}", False)])
def test_a_source_is_named_whole_or_it_is_unknown(tmp_path, name, found):
    "leaf_1 is not the source of leaf_12, nor of augleaf_1"
    root = published(tmp_path, n=12, copies=12, name=name)
    if found:
        s = load_leaves(root, augmented="name")
        assert s.copies["unknown"] == 0
    else:
        with pytest.raises(ValueError, match="not one of 84 copies"): load_leaves(root, augmented="name")


def test_copies_of_unknown_source_are_left_out_and_counted(tmp_path, capsys):
    root = published(tmp_path)
    for i in range(4): image(root/COPIES/"Leaf Redding"/f"stray{i}.png", np.random.default_rng(i))
    s = load_leaves(root, augmented="name")
    assert s.copies["unknown"] == 4 and "4 of unknown source are left out" in capsys.readouterr().out
    assert not any("stray" in o for v in s.splits.values() for o in v.items)


def test_a_function_may_name_the_source(tmp_path):
    s = load_leaves(published(tmp_path, name="x{}y{}"), augmented=lambda path: re.search(r"leaf_\d+(?=y)", path)[0])
    assert s.copies["unknown"] == 0 and s.copies["used"] > 0


def test_copies_are_found_by_look(tmp_path):
    pytest.importorskip("imagehash", reason="pip install 'vitnb[duplicates]'")
    from test_duplicates import saved, texture
    for c,o in enumerate(LEAF_CLASSES):
        (tmp_path/ORIGINALS/o).mkdir(parents=True)
        (tmp_path/COPIES/o).mkdir(parents=True)
        for i in range(6):
            a = texture(10*c + i)
            saved(tmp_path/ORIGINALS/o/f"{i}.png", a)
            saved(tmp_path/COPIES/o/f"{chr(97 + i)}.jpg", np.rot90(a//2).copy(), quality=80)
    s = load_leaves(tmp_path, augmented="near")
    train = s.splits["train"]
    assert s.copies["unknown"] == 0 and s.copies["used"] == s.counts("train").sum()/2
    held = {(o.split("/")[1], Path(o).stem) for k in ("valid","test") for o in s.splits[k].items}
    assert not {(o.split("/")[1], str(ord(Path(o).stem) - 97)) for o in train.items if o.startswith(COPIES)} & held


def test_one_photograph_under_two_classes_is_reported_and_stays_together(tmp_path, capsys):
    root = published(tmp_path)
    same = (root/ORIGINALS/"Leaf Redding"/"leaf_0.png").read_bytes()
    (root/ORIGINALS/"Curl Virus"/"leaf_3.png").write_bytes(same)
    for seed in range(20):
        s = load_leaves(root, split_seed=seed)
        where = [k for k,v in s.splits.items() for o in v.items if o.endswith(("Redding/leaf_0.png", "Virus/leaf_3.png"))]
        assert len(where) == 2 and len(set(where)) == 1
    assert s.conflicts == [("Original Dataset/Curl Virus/leaf_3.png", "Original Dataset/Leaf Redding/leaf_0.png")]
    assert "1 photographs of" in capsys.readouterr().out


def test_equal_files_of_one_class_are_one_group_and_no_conflict(tmp_path):
    root = published(tmp_path)
    (root/ORIGINALS/"Leaf Redding"/"leaf_9.png").write_bytes((root/ORIGINALS/"Leaf Redding"/"leaf_0.png").read_bytes())
    s = load_leaves(root)
    assert not s.conflicts and len(set.union(*groups(s))) == 69


def test_groups_may_come_from_the_path(tmp_path):
    s = load_leaves(published(tmp_path, n=12), groups=lambda path: path.split("/")[1] + str(int(re.search(r"leaf_(\d+)", path)[1])//3))
    a,b,c = groups(s)
    assert not (a & b or a & c or b & c) and len(a | b | c) == 28


@pytest.mark.parametrize("change,said", [
    (lambda r: [o.unlink() for o in (r/ORIGINALS/"Leaf Redding").iterdir()], "holds no image"),
    (lambda r: [o.unlink() for o in list((r/ORIGINALS/"Leaf Redding").iterdir())[1:]], "class 'Leaf Redding' has 1 photographs"),
    (lambda r: (r/ORIGINALS/"Leaf Redding").rename(r/"elsewhere"), "no class folder 'Leaf Redding'"),
    (lambda r: (r/ORIGINALS/"Leaf Redding").rename(r/ORIGINALS/"Leaf Reddening"), "'Leaf Reddening' that is none of the classes.*Leaf Redding")])
def test_class_folders_that_do_not_fit_are_errors(tmp_path, change, said):
    root = published(tmp_path)
    change(root)
    with pytest.raises(ValueError, match=said): load_leaves(root)


def test_a_plain_class_folder_with_one_image_is_an_error(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(9): image(tmp_path/"leaves"/"a"/f"{i}.png", rng)
    image(tmp_path/"leaves"/"b"/"0.png", rng)
    with pytest.raises(ValueError, match="class 'b' has 1 photographs, and train, valid and test need one each"): load_leaves(tmp_path/"leaves")


@pytest.mark.parametrize("kw,said", [(dict(augmented="names"), "augmented"), (dict(groups="same"), "groups"), (dict(n=10), "n=10 does nothing"),
    (dict(size_=3), "no option"), (dict(classes=["a"]), "none of the classes"), (dict(valid=2.), "valid"), (dict(limit=0), "limit=0")])
def test_options_that_mean_nothing_are_errors(tmp_path, kw, said):
    with pytest.raises(ValueError, match=said): load_leaves(published(tmp_path), **kw)


@pytest.mark.parametrize("kw,said", [(dict(root="x"), "root='x' does nothing"), (dict(groups="near"), "groups='near' does nothing"), (dict(augmented="name"), "no copies"),
    (dict(classes=["a"]), "does nothing"), (dict(n=0), "at least 1")])
def test_the_synthetic_set_refuses_options_of_files(kw, said):
    with pytest.raises(ValueError, match=said): load_leaves(**kw)


def test_a_set_that_is_not_there_says_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match="10.17632/b3jy2p6k8w"): load_set("sar_cld_2024", tmp_path)
    with pytest.raises(ValueError, match="there are no leaves at"): load_leaves("nowhere")


def test_augmented_copies_that_are_not_there_are_an_error(tmp_path):
    root = published(tmp_path, copies=0)
    with pytest.raises(ValueError, match="no folder 'Augmented Dataset'"): load_leaves(root, augmented="name")


def test_a_limit_counts_photographs_and_copies_follow_those_that_stay(tmp_path):
    s = load_leaves(published(tmp_path, n=20, copies=20), limit=2, augmented="name")
    originals = [o for o in s.splits["train"].items if o.startswith(ORIGINALS)]
    assert len(originals) == 14 and s.copies["used"] == 14 and all(len(s.splits[k]) <= 14 for k in ("valid", "test"))


def test_unreadable_files_are_left_out_with_their_number(tmp_path, capsys):
    root = published(tmp_path)
    (root/ORIGINALS/"Curl Virus"/"leaf_1.png").write_bytes(b"broken")
    s = load_leaves(root, max_bad=.1)
    assert len(s.check()) == 1 and "1 of 70 files" in capsys.readouterr().out and sum(map(len, s.splits.values())) == 69
    with pytest.raises(ValueError, match="max_bad=0.01"): load_leaves(root).check()


def test_the_loaders_of_a_folder_of_leaves(tmp_path):
    s = load_leaves(published(tmp_path))
    dls = s.loaders(8, bs=4, augment="moderate", device="cpu", workers=0, cache=False)
    assert dls.train.one_batch().inputs == ("image",) and dls.vocab == list(LEAF_CLASSES)
    with pytest.raises(ValueError, match="70 of 70 images of .* have no spectral file"): s.loaders(8, bs=4, spectral=True, device="cpu", cache=False)
    for v in (1, None, "yes"):
        with pytest.raises(ValueError, match="spectral="): s.loaders(8, spectral=v)


def test_the_synthetic_set_is_called_so_and_both_photographs_of_a_plant_stay_together():
    for seed in range(10):
        s = load_set("leaves_synthetic", split_seed=seed) if seed == 0 else load_leaves(n=112, size=16, split_seed=seed)
        a,b,c = groups(s)
        assert "synthetic" in s.name and not (a & b or a & c or b & c) and all(s.counts(k).min() >= 1 for k in s.splits)
        assert all(np.bincount(v.groups)[np.unique(v.groups)].tolist() == [2]*len(np.unique(v.groups)) for v in s.splits.values())


def test_the_synthetic_set_loads_with_its_spectral_image_under_every_option():
    s = load_set("leaves_synthetic", limit=8, reader="rgb", valid=.2)
    assert isinstance(s, LeafSet)
    dls = s.loaders(64, spectral=True, bs=8, augment="aggressive", device="cpu", workers=0)
    b = dls.train.one_batch()
    assert b["spectral"].shape == (8,2,64,64) and dls.model_kw["spectral_channels"] == 2
    e = torch.cat([o["spectral"] for o in dls.train.new(pipeline=dls.valid.pipeline, shuffle=False, drop_last=False)])
    assert e.mean((0,2,3)).abs().max() < 1e-3 and (e.std((0,2,3)) - 1).abs().max() < 1e-2
    assert s.loaders(64, bs=8, device="cpu", workers=0).train.one_batch().inputs == ("image",)


def test_cross_attention_to_the_spectral_image_names_more_diseases_than_colours_do():
    "The same network, steps and seed; of 84 test leaves (seeds 0 and 1) 0.21 and 0.26 right from colours, 0.46 and 0.50 with cross-attention"
    from vitnb.learner.core import vit_learner
    from vitnb.learner.predict import predict_split
    leaves = load_leaves(n=420, size=32)
    right = {}
    for spectral in (False, True):
        dls = leaves.loaders(32, spectral=spectral, bs=32, augment="basic", device="cpu", workers=0, seed=0)
        small = dict(patch_size=4, embed_dim=32, depths=(1,1), num_heads=(1,2), drop_path_rate=0.)
        learn = vit_learner(dls, "hvit_micro", model_kw=small, lr=3e-3, seed=0, precision="fp32", device="cpu")
        assert type(getattr(learn.model, "fusion", None)).__name__ == ("DFCA" if spectral else "NoneType")
        with learn.no_bar(), learn.no_logging(): learn.fit(12)
        probs,targets = predict_split(learn, "test")
        right[spectral] = (probs.argmax(1) == targets).float().mean().item()
    assert right[True] > right[False] + .1, right


@pytest.mark.skipif(not (SHARED/"cotton_leaf_disease.zip").is_file(), reason="cotton_leaf_disease.zip is not at ../shared/data")
def test_real_photographs_load_in_the_same_way_and_no_copy_is_on_two_sides():
    pytest.importorskip("imagehash", reason="pip install 'vitnb[duplicates]'")
    from vitnb.data.duplicates import find_duplicates
    s = load_leaves(SHARED/"cotton_leaf_disease.zip", groups="near")
    assert s.classes == ["bacterial_blight", "curl_virus", "fussarium_wilt", "healthy"] and sum(map(len, s.splits.values())) in (599, 600)
    found = find_duplicates(s)
    assert not len(found.across_splits) and not len(found.across_classes) and len(found.pairs) > 400
    for k,share in dict(train=.72, valid=.08, test=.2).items(): assert abs(len(s.splits[k])/600 - share) < .04
    assert len(find_duplicates(load_leaves(SHARED/"cotton_leaf_disease.zip")).across_splits) > 50 # a split by files leaks
    b = s.loaders(64, bs=16, augment="aggressive", device="cpu", workers=0, cache=False).train.one_batch()
    assert b["image"].shape == (16,3,64,64) and b["image"].isfinite().all()
