"Near duplicates: what counts as one photograph, groups that no split divides, pools and held-out images"
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from vitnb.data.duplicates import (check_pool, close_pairs, connected_groups, drop_copies, find_duplicates, group_duplicates, identical_files, merge_groups,
    perceptual_hash)
from vitnb.data.sets import folder_set
from vitnb.data.holdout import Split
from vitnb.data.table import ImageSet, hold_out_missing

pytest.importorskip("imagehash", reason="pip install 'vitnb[duplicates]'")
SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"


def texture(seed, size=72, channels=3, top=255, dtype=np.uint8):
    waves = gaussian_filter(np.random.default_rng(seed).normal(size=(size,size,channels)), (5,5,0))
    return (top*(waves - waves.min())/np.ptp(waves)).round().astype(dtype)


def saved(path, array, **kw):
    Image.fromarray(array).save(path, **kw)
    return path


def test_copies_are_found_and_other_images_are_not():
    a = texture(0)
    copies = dict(mirrored=a[:,::-1], upside_down=a[::-1], turned=np.rot90(a), turned_back=np.rot90(a, 3), transposed=a.transpose(1,0,2),
        darker=a//2, brighter=np.minimum(a.astype(int)+40, 255).astype(np.uint8), smaller=np.asarray(Image.fromarray(a).resize((40,40))))
    found = find_duplicates([a, *(np.ascontiguousarray(o) for o in copies.values()), *(texture(i) for i in range(1, 30))])
    assert set(found.groups[:9]) == {0} and len(set(found.groups[9:])) == 29 and found.repeated == 8


def test_without_turns_only_upright_copies_are_found():
    a = texture(0)
    found = find_duplicates([a, a//2, np.rot90(a).copy(), a[:,::-1].copy()], turns=False)
    assert found.pairs.tolist() == [[0,1]]


def test_a_copy_saved_again_or_turned_by_a_flag_is_one_group(tmp_path):
    "A picture saved with orientation 6, and once with turned pixels"
    a = texture(3, 96)
    turn = Image.new("RGB", (1,1)).getexif()
    turn[274] = 6
    files = [saved(tmp_path/"a.png", a), saved(tmp_path/"b.jpg", a, quality=40), saved(tmp_path/"c.jpg", a, quality=95, exif=turn),
        saved(tmp_path/"d.png", np.rot90(a, 3).copy()), saved(tmp_path/"e.png", texture(4, 96))]
    assert find_duplicates(files).groups.tolist() == [0,0,0,0,1]
    upright = find_duplicates(files, turns=False) # c, as it is shown, is d
    assert upright.groups.tolist() == [0,0,1,1,2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(1, 50), st.sampled_from([1, 8]), st.integers(0, 31))
def test_blocks_change_nothing_and_a_loop_finds_the_same(seed, n, block, turns, most):
    rng = np.random.default_rng(seed)
    hashes = rng.random((n,turns,64)) < .5
    hashes[rng.integers(0, n, n//2),0] = hashes[0,rng.integers(0, turns)] ^ (rng.random(64) < .06)
    want = []
    for i in range(n):
        for j in range(i+1, n):
            bits = min(min((hashes[i,g] != hashes[j,0]).sum(), (hashes[i,0] != hashes[j,g]).sum()) for g in range(turns))
            if bits <= most: want.append([i, j, bits])
    assert close_pairs(hashes, most, block).tolist() == want == close_pairs(hashes, most, 10_000).tolist()


def test_blocks_of_64_and_of_10_000_give_the_same_pairs():
    images = [texture(i % 90) for i in range(150)]
    a,b = (find_duplicates(images, block=n) for n in (64, 10_000))
    assert np.array_equal(a.pairs, b.pairs) and np.array_equal(a.distances, b.distances) and len(a.pairs) == 60


def test_links_through_others_make_one_group():
    assert connected_groups(5, [(0,1), (1,2)]).tolist() == [0,0,0,1,2]
    assert connected_groups(3, []).tolist() == [0,1,2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0,5), st.integers(0,5)), min_size=1, max_size=20))
def test_merged_groups_are_the_components(rows):
    a,b = zip(*rows)
    merged = merge_groups(a, b)
    home = list(range(len(rows)))
    for _ in rows: home = [min(h for h,r in zip(home, rows) if r[0] == o[0] or r[1] == o[1]) for o in rows]
    assert [[x == y for y in home] for x in home] == [[x == y for y in merged] for x in merged]


def test_a_group_stands_in_one_split_also_where_its_ends_are_unlike():
    "A~B, B~C, not A~C: all three in one split, whatever the seed"
    images = np.stack([texture(i) for i in range(16)])
    rows = ImageSet("chain", ["a","b"], dict(train=Split(images, [0,1]*8)))
    group_duplicates(rows)
    rows.splits["train"].groups = merge_groups(rows.splits["train"].groups, connected_groups(16, [(0,1), (1,2)]))
    for seed in range(50):
        s = ImageSet("chain", ["a","b"], dict(train=rows.splits["train"].take(np.arange(16))))
        hold_out_missing(s, .2, seed)
        assert sum(0 in v.groups for v in s.splits.values()) == 1


def test_groups_that_are_there_are_kept():
    images = np.stack([texture(i) for i in (0,1,2,0)])
    s = ImageSet("plants", ["a","b"], dict(train=Split(images, [0,1,0,1], groups=["p","q","q","r"])))
    assert len(group_duplicates(s).pairs) == 1 and s.splits["train"].groups.tolist() == [0,1,1,0]


def test_a_set_that_is_split_is_not_regrouped():
    s = ImageSet("two", ["a","b"], {k:Split(np.stack([texture(0), texture(1)]), [0,1]) for k in ("train", "test")})
    with pytest.raises(ValueError, match="split already"): group_duplicates(s)
    found = find_duplicates(s)
    assert len(found.across_splits) == 2 and not len(found.across_classes) and "pairs across splits: 2" in repr(found)


def test_the_same_photograph_under_two_classes_is_reported():
    s = ImageSet("wrong", ["a","b"], dict(train=Split(np.stack([texture(0), texture(1), texture(0)//2]), [0,1,1])))
    found = find_duplicates(s)
    assert found.across_classes.tolist() == [[0,2]] and "pairs across classes: 1, such as train 0 (a, train) and train 2 (b, train)" in repr(found)


def test_unreadable_files_are_counted_and_in_no_pair(tmp_path):
    files = [saved(tmp_path/"a.png", texture(0)), tmp_path/"b.png", tmp_path/"c.png", saved(tmp_path/"d.png", texture(0))]
    for o in files[1:3]: o.write_bytes(b"")
    found = find_duplicates(files)
    assert found.pairs.tolist() == [[0,3]] and list(found.unreadable) == [str(o) for o in files[1:3]] and "2 could not be read" in repr(found)
    assert len(find_duplicates(files[1:3]).pairs) == 0 and len(find_duplicates([]).pairs) == 0


@pytest.mark.parametrize("channels,top,dtype", [(1,255,np.uint8), (5,255,np.uint8), (1,65535,np.uint16), (30,1,np.float32), (3,4095,np.int32)])
def test_any_channels_and_any_depth(channels, top, dtype):
    if dtype == np.float32: a,b = (texture(i, channels=channels, top=1000).astype(np.float32)/1000 for i in (0, 1))
    else: a,b = (texture(i, channels=channels, top=top, dtype=dtype) for i in (0, 1))
    assert find_duplicates([a, (a//2 if dtype != np.float32 else a/2), b]).groups.tolist() == [0,0,1]
    assert perceptual_hash(np.zeros((9,5,channels), dtype)).shape == (8,64)


def test_a_pool_that_holds_a_held_out_image_is_refused(tmp_path):
    pool = [saved(tmp_path/f"{i}.png", texture(i)) for i in range(6)]
    held = ImageSet("held", ["a","b"], dict(train=Split(np.stack([texture(0), texture(1)]), [0,1]), valid=Split(np.stack([texture(20), texture(21)]), [0,1]),
        test=Split(np.stack([texture(22), texture(23)]), [0,1])))
    assert check_pool(pool, held) == 6 # what is in its train may be in the pool
    again = saved(tmp_path/"again.jpg", texture(22)[:,::-1].copy(), quality=60)
    with pytest.raises(ValueError, match=r"1 of 4 held-out images are in the pool, such as test 0 \(.*again.jpg\)"): check_pool([*pool, again], held)


@pytest.mark.parametrize("distance", [-1, 32])
def test_a_distance_that_means_nothing_is_refused(distance):
    with pytest.raises(ValueError, match="from 0"): find_duplicates([texture(0)], distance)


def test_without_the_library_the_error_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ImportError, match=r"pip install 'vitnb\[duplicates\]'"): find_duplicates([texture(0)])


def test_files_of_the_same_bytes_need_no_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    for name,text in dict(a=b"11", b=b"22", c=b"11", d=b"3", e=b"22").items(): (tmp_path/name).write_bytes(text)
    assert identical_files(sorted(tmp_path.iterdir())).tolist() == [0,1,0,2,1]


def test_a_drawing_shows_the_doubtful_pairs(monkeypatch):
    from matplotlib import pyplot as plt
    find_duplicates([texture(0), texture(0)//2, texture(1)]).show()
    assert len(plt.gcf().axes) == 2
    plt.close("all")


@pytest.mark.skipif(not (SHARED/"cotton_leaf_disease.zip").is_file(), reason="cotton_leaf_disease.zip is not at ../shared/data")
def test_leaves_of_the_web_have_copies_of_one_class(tmp_path):
    with zipfile.ZipFile(SHARED/"cotton_leaf_disease.zip") as z: z.extractall(tmp_path)
    s = folder_set(tmp_path/"cotton_leaf_disease")
    found = group_duplicates(s)
    assert len(found.names) == 600 and 200 < found.repeated < 400 and not len(found.across_classes)


def test_no_held_out_image_is_trained_on_though_it_lies_in_both_folders(tmp_path, capsys):
    "A22: copies byte for byte leave train, counted; a file that only has the same size stays; what is encoded anew check_pool finds"
    from vitnb.data.pool import load_pool
    for part,seeds in (("train", range(12)), ("test", range(20, 24)), ("valid", range(30, 33))):
        (tmp_path/part).mkdir()
        for seed in seeds: saved(tmp_path/part/f"{seed}.png", texture(seed))
    for number,source in enumerate(("test/20.png", "valid/31.png")): (tmp_path/"train"/f"again{number}.png").write_bytes((tmp_path/source).read_bytes())
    pool = load_pool(tmp_path)
    before = pool.fingerprint
    assert drop_copies(pool) == 2 and "2 of 14 training images are held out too" in capsys.readouterr().out
    held = {(tmp_path/item).read_bytes() for part in ("valid", "test") for item in pool.splits[part].items}
    seen = {(tmp_path/item).read_bytes() for item in pool.splits["train"].items}
    assert len(seen) == 12 and not seen & held and pool.fingerprint != before
    assert drop_copies(pool) == 0 and not capsys.readouterr().out
    check_pool(pool, pool)
    saved(tmp_path/"train"/"re-encoded.jpg", texture(21), quality=90)
    pool = load_pool(tmp_path)
    drop_copies(pool)
    with pytest.raises(ValueError, match="1 of 7 held-out images are in the pool"): check_pool(pool, pool)


def test_copies_among_arrays_leave_train_with_their_labels():
    x = np.stack([texture(seed, 16) for seed in range(10)])
    both = ImageSet("x", None, dict(train=Split(x[:8], groups=np.arange(8)), test=Split(np.concatenate([x[8:], x[2:3]]))))
    assert drop_copies(both) == 1 and both.splits["train"].groups.tolist() == [0, 1, 3, 4, 5, 6, 7] and len(both.splits["test"]) == 3
