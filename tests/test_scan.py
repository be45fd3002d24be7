"Every file decoded once, and the statistics of train"
import os

import numpy as np
import pytest
from PIL import Image, ImageFile
from data_helpers import film_table, folder, own_folders, picture

from vitnb.data.holdout import Split
from vitnb.data.image import read_image, readers
from vitnb.data.sets import load_set
from vitnb.data.stats import STATS
from vitnb.data.table import ImageSet
from vitnb.task import ClassMap

def break_files(root):
    "A truncated JPEG, an empty file, text in a picture's name, and a PNG with damaged contents"
    f = picture(root/"a"/"cut.jpg", 32, 32); f.write_bytes(f.read_bytes()[:-200])
    (root/"a"/"empty.png").write_bytes(b"")
    (root/"b"/"text.png").write_text("not a picture")
    f = picture(root/"b"/"hurt.png", 32, 32); b = bytearray(f.read_bytes()); b[60:400] = bytes(340); f.write_bytes(b)
    return {"a/cut.jpg", "a/empty.png", "b/text.png", "b/hurt.png"}

def test_bad_files_are_counted_listed_and_left_out(tmp_path, capsys):
    root = folder(tmp_path/"s", n=20); bad = break_files(root)
    s = load_set(root, max_bad=.2)
    before = s.fingerprint
    found = s.check()
    assert set(found) == bad == set(s.unreadable) and s.check() == found
    assert "truncated" in found["a/cut.jpg"] and found["a/empty.png"] == "the file is empty"
    assert "4 of 44 files of s cannot be read" in capsys.readouterr().out
    assert sum(map(len, s.splits.values())) == 40 and s.fingerprint != before
    for k,v in s.splits.items(): assert all(s.read(k, i).shape == (8,8,3) for i in range(len(v)))

def test_too_many_bad_files(tmp_path):
    root = folder(tmp_path/"s", n=20); break_files(root)
    with pytest.raises(ValueError, match=r"4 of 44 files .* more than max_bad=0.01; repair them"): load_set(root).check()
    with pytest.raises(ValueError, match="more than max_bad=0.05"): load_set(root, max_bad=.05).check()
    assert len(load_set(root).check(max_bad=.5)) == 4

@pytest.mark.parametrize("max_bad", [-1, 2])
def test_max_bad_of_no_use(max_bad):
    with pytest.raises(ValueError, match="max_bad="): load_set(max_bad=max_bad)

def test_files_are_decoded_once(tmp_path, monkeypatch):
    root,seen = folder(tmp_path/"s", n=20),[]
    monkeypatch.setitem(readers, "rgb", lambda p: seen.append(p) or read_image(p))
    load_set(root).check(); a = load_set(root).stats()
    assert len(seen) == 40
    f = root/"a"/"3.png"; st_ = f.stat(); b = f.read_bytes()
    f.write_bytes(b); os.utime(f, ns=(st_.st_atime_ns, st_.st_mtime_ns+10))
    load_set(root).stats()
    assert len(seen) == 80 and a == load_set(root).stats()

def test_a_class_without_readable_images(tmp_path):
    root = folder(tmp_path/"s", n=10)
    for f in (root/"b").iterdir(): f.write_bytes(b"x")
    with pytest.raises(ValueError, match="'b' has no training image"): load_set(root, max_bad=1.).check()
    for f in (root/"a").iterdir(): f.write_bytes(b"x")
    with pytest.raises(ValueError, match="not one training image"): load_set(root, max_bad=1.).check()

def test_filling_up_broken_images_is_refused(tmp_path, monkeypatch):
    root = folder(tmp_path/"s")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match="set it to False"): load_set(root).check()

def test_stats_are_over_pixels(tmp_path):
    root = folder(tmp_path/"s", n=6)
    for i in range(6): picture(root/"a"/f"big{i}.png", 20, 30); picture(root/"b"/f"grey{i}.png", 9, 7, "L")
    s = load_set(root)
    x = np.concatenate([s.read("train", i).reshape(-1,3) for i in range(len(s.splits["train"]))]).astype(np.float64)/255
    mean,std = s.stats()
    assert np.allclose(mean, x.mean(0), atol=1e-12) and np.allclose(std, x.std(0), atol=1e-12)
    per_image = np.mean([(s.read("train", i)/255).std((0,1)) for i in range(len(s.splits["train"]))], axis=0)
    assert (np.array(std) > per_image).all()

def test_stats_see_train_only():
    s = load_set(); a = s.stats()
    s.splits["test"].items[:] = 255
    t = ImageSet("digits", s.classes, s.splits)
    assert t.fingerprint != s.fingerprint and t.stats() == a

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
    path = film_table(tmp_path)
    Image.new("L", (5,6)).save(tmp_path/"3_parts.png")
    Image.new("L", (6,6), 7).save(tmp_path/"8_parts.png")
    s = load_set(path, label="parts", task=ClassMap(tuple("abc")), max_bad=.2)
    bad = s.check()
    assert set(bad) == {"3.png", "8.png"} and "6×5 pixels and the image 6×6" in bad["3.png"] and "target 7" in bad["8.png"]

def test_images_of_other_channels_are_refused_together(tmp_path):
    path = film_table(tmp_path)
    Image.new("RGB", (6,6)).save(tmp_path/"4.png")
    with pytest.raises(ValueError, match="differ in channels or depth; choose a reader"): load_set(path, label="kind", reader="native").stats()
    assert len(load_set(path, label="kind").stats()[0]) == 3


@pytest.mark.parametrize("reader, said", [(None, 1), ("native", 1), ("pages", 0)])
def test_files_of_several_pages_are_told(tmp_path, capsys, reader, said):
    pages = [Image.fromarray(np.full((8, 8), 60000 + place, np.uint16)) for place in range(3)]
    for name in ("a/1", "a/2", "a/3", "b/1", "b/2", "b/3"):
        (tmp_path/"s"/name).parent.mkdir(parents=True, exist_ok=True)
        pages[0].save(tmp_path/"s"/f"{name}.tif", save_all=True, append_images=pages[1:])
    for loads in (1, 2): # the second from the cache
        load_set(tmp_path/"s", reader=reader, valid=2).check()
        assert capsys.readouterr().out.count("s: 6 files hold several pages or frames, such as ") == said
