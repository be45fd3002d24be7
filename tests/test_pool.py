"Images without labels, and class folders that are classes or not"
import numpy as np
import pytest
from leaf_helpers import OPTIONS, TINY, picture

from vitnb.callback.contrastive import Contrastive
from vitnb.data.pool import has_class_folders, load_pool
from vitnb.data.sets import load_set
from vitnb.learner.core import vit_learner


def test_loose_images_are_a_pool_without_classes(tmp_path):
    for i in range(30): picture(tmp_path/"pool"/f"{'deep/' if i % 2 else ''}{i}.png", 8*i)
    with pytest.raises(ValueError, match="class folders"): load_set(tmp_path/"pool")
    pool = load_pool(tmp_path/"pool", labels=None)
    assert not pool.tasks and sum(map(len, pool.splits.values())) == 30 and not has_class_folders(tmp_path/"pool")
    learn = vit_learner(pool.loaders(16, bs=8, augment="simclr", device="cpu", seed=0), "hvit_micro", TINY, pretext=Contrastive(temperature=.2), **OPTIONS)
    learn.progress.plot = False
    learn.logger = lambda *a: None
    learn.fit(1)
    assert np.isfinite(learn.recorder.rows[-1]["valid_loss"])


def test_class_folders_are_classes_unless_they_are_not_wanted_or_one_image_lies_outside(tmp_path):
    for i in range(40): picture(tmp_path/"s"/"ab"[i % 2]/f"{i}.png", 6*i)
    assert load_pool(tmp_path/"s", labels=None).classes == ["a", "b"] and not load_pool(tmp_path/"s", labels=False).tasks
    picture(tmp_path/"s"/"loose.png", 0)
    assert not load_pool(tmp_path/"s", labels=None).tasks and load_set(tmp_path/"s").classes == ["a", "b"]
    assert sum(map(len, load_pool(tmp_path/"s", labels=None).splits.values())) == 41


def test_splits_of_a_pool_stay_and_an_empty_one_is_an_error(tmp_path):
    for part,n in (("train", 12), ("test", 3)):
        for i in range(n): picture(tmp_path/"s"/part/f"{i}.png", 20*i)
    pool = load_pool(tmp_path/"s", labels=None)
    assert len(pool.splits["test"]) == 3 and len(pool.splits["train"]) + len(pool.splits["valid"]) == 12
    (tmp_path/"empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"): load_pool(tmp_path/"empty", labels=None)


def test_a_class_with_one_image_is_an_error_and_a_pool_takes_it(tmp_path):
    for i in range(30): picture(tmp_path/"s"/"ab"[i % 2]/f"{i}.png", 8*i)
    picture(tmp_path/"s"/"c"/"only.png", 1)
    for labels in (True, None):
        with pytest.raises(ValueError, match="class 'c' has 1 training images"): load_pool(tmp_path/"s", labels=labels)
    assert sum(map(len, load_pool(tmp_path/"s", labels=False).splits.values())) == 31
