"Simple models beside the network: the same answers as scikit-learn by hand, for each kind of task"
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score

from vitnb.data.cube import cube_loaders, load_cube_set, pixel_windows
from vitnb.data.holdout import Split
from vitnb.data.loader import image_loaders
from vitnb.data.table import ImageSet
from vitnb.learner.baseline import Baselines, baseline_answer, baselines, class_probs, histograms, thumbnails
from vitnb.task import ClassMap, MultiLabel, OneClass, Ordinal, Value

CLASSES = np.random.default_rng(0).integers(0, 3, 150)
PIXELS = (np.random.default_rng(1).normal(128, 20, (150, 6, 6, 3)) + 40*np.eye(3)[CLASSES][:,None,None]).clip(0, 255).astype(np.uint8)


def image_set(task, targets, pixels=PIXELS):
    parts = dict(train=slice(0, 90), valid=slice(90, 110), test=slice(110, 150))
    return ImageSet("drawn", task, {name:Split(pixels[o], targets[o]) for name,o in parts.items()})


def of(task, targets, **kw): return baselines(image_loaders(image_set(task, targets), bs=30, augment="basic", workers=0), **kw)


def test_thumbnails_are_means_of_squares():
    x = torch.rand(2, 3, 64, 32)
    by_hand = x.unfold(2, 4, 4).unfold(3, 2, 2).mean((-1, -2)).flatten(1)
    torch.testing.assert_close(thumbnails(x), by_hand)


def test_histograms_are_those_of_numpy():
    x = torch.randn(3, 2, 9, 7)*2
    edges = np.r_[-np.inf, np.linspace(-2.5, 2.5, 15), np.inf]
    by_hand = [np.histogram(channel, edges)[0]/63 for image in x.numpy() for channel in image]
    np.testing.assert_allclose(histograms(x).reshape(6, 16), by_hand, atol=1e-6)


def test_the_forest_is_that_of_scikit_learn_on_the_same_split():
    dls = image_loaders(image_set(["a", "b", "c"], CLASSES), bs=30, augment="none", workers=0)
    found = {row["model"]:row for row in baselines(dls, seed=3)}
    x = {}
    for name,dl in zip(("train", "test"), (dls.train, dls.test)):
        batch = dl.new(shuffle=False, drop_last=False, bs=200).one_batch()[0]
        x[name] = np.concatenate([thumbnails(batch), histograms(batch)], 1)
    forest = RandomForestClassifier(300, random_state=3).fit(x["train"], CLASSES[:90])
    assert found["forest"]["score"] == pytest.approx(accuracy_score(CLASSES[110:], forest.predict(x["test"])))
    assert found["forest"]["low"] <= found["forest"]["score"] <= found["forest"]["high"]
    assert (found["forest"]["n"], found["forest"]["trained_on"]) == (40, 90)


def test_no_test_sample_is_trained_on_and_augmentation_stays_out():
    noise = np.random.default_rng(2).integers(0, 256, PIXELS.shape, np.uint8)
    rows = baselines(image_loaders(image_set(["a", "b", "c"], CLASSES, noise), bs=30, augment="crop_flip", workers=0))
    assert all(row["score"] < .7 for row in rows) # labels that have nothing to do with the images stay at chance
    again = baselines(image_loaders(image_set(["a", "b", "c"], CLASSES, noise), bs=30, augment="none", workers=0))
    assert [row["score"] for row in rows] == [row["score"] for row in again]


def test_samples_are_bounded_and_counted():
    for row in of(["a", "b", "c"], CLASSES, most=25): assert (row["n"], row["trained_on"]) == (25, 25)


LABELS = np.stack([CLASSES == 0, CLASSES == 1], 1).astype(np.int64)
ZONES = np.stack([CLASSES, 2 - CLASSES], 1)
ZONES[::7,0] = 9
VALUES = np.where(np.arange(150)%9 == 0, np.nan, CLASSES + .5).astype(np.float32)
TASKS = dict(
    labels=(MultiLabel(("x", "y")), LABELS, "average_precision", .9),
    zones=(Ordinal(("left", "right"), levels=3, unknown=9, monitor="accuracy"), ZONES, "accuracy", .8),
    abstaining=(Ordinal(("left", "right"), levels=3, unknown=9, abstain=True, monitor="accuracy"), ZONES, "accuracy", .7),
    cumulative=(Ordinal(levels=3, cumulative=True, monitor="accuracy"), CLASSES, "accuracy", .8),
    conditional=(Ordinal(levels=3, conditional=True, monitor="accuracy"), CLASSES, "accuracy", .8),
    value=(Value(unknown=0, monitor="r2"), VALUES, "r2", .5))


@pytest.mark.parametrize("task,targets,metric,least", TASKS.values(), ids=TASKS)
def test_each_kind_of_task_has_baselines_scored_by_its_own_metric(task, targets, metric, least):
    rows = of(task, targets)
    assert {row["model"] for row in rows} == {"forest", "linear"} and not rows.skipped
    for row in rows: assert row["metric"] == metric and row["score"] > least


def test_a_map_of_classes_has_none_and_says_so():
    maps = np.repeat(np.repeat(CLASSES[:,None,None], 6, 1), 6, 2).astype(np.uint8)
    found = of(ClassMap(("a", "b", "c")), maps)
    assert not found and "has no baseline" in found.says() and found.flat() == {}


def test_several_tasks_have_columns_of_their_own():
    targets = dict(kind=CLASSES, size=(CLASSES + .5).astype(np.float32))
    parts = dict(train=slice(0, 90), valid=slice(90, 110), test=slice(110, 150))
    splits = {name:Split(PIXELS[o], {task:column[o] for task,column in targets.items()}) for name,o in parts.items()}
    both = ImageSet("both", dict(kind=OneClass(("a", "b", "c")), size=Value()), splits)
    found = baselines(image_loaders(both, bs=30, augment="none", workers=0))
    assert {"kind/baseline_forest_accuracy", "size/baseline_linear_mae_hi"} <= found.flat().keys()


@pytest.mark.parametrize("model", ("forest", "linear", "svm"))
def test_classes_without_training_samples_have_no_chance(model):
    x = np.eye(3)[np.arange(12)%2]
    probs = class_probs(model, x, np.arange(12)%2*2, x, 5, trees=20)
    np.testing.assert_allclose(probs[:,[1, 3, 4]], 0)
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
    assert (probs.argmax(1) == np.arange(12)%2*2).all()
    assert (class_probs(model, x, np.full(12, 3), x, 5)[:,3] == 1).all()


def test_the_sentence_names_the_winner_and_how_sure_it_is():
    def row(model, score, half): return dict(task="", model=model, metric="accuracy", score=score, low=score-half, high=score+half, better="max", n=9, rests_on=9)
    found = Baselines([row("forest", .8, .05), row("linear", .6, .05)])
    for own,says in ((.5, "beats the network by more than chance"), (.78, "beats the network by less"), (.9, "no baseline reaches")):
        found.own = [row("network", own, .05)]
        assert says in found.says() and ("forest" in found.says())
    lower = Baselines([dict(row("forest", .1, .01), better="min")])
    lower.own = [dict(row("network", .2, .01), better="min")]
    assert "beats the network by more" in lower.says() and "known entries" not in lower.says()
    lower.own[0]["rests_on"] = 52 # zones, say
    assert lower.says().endswith(", of 52 known entries")


def test_spectra_are_those_of_the_middle_and_of_valid_pixels():
    cubes = load_cube_set("retina_synthetic", n=12, size=24, bands=10)
    windows = {split:pixel_windows(cubes, split, 6, 12, 0) for split in ("train", "valid", "test")}
    dls = cube_loaders(cubes, label="class", label_of="center", windows=windows, bs=8, window=6, augment="flip", patch_size=(3, 5))
    found = {row["model"]:row for row in baselines(dls, "pixel")}
    assert set(found) == {"linear_pixel", "svm_pixel", "linear_3x3", "svm_3x3"}
    def middle(dl): return torch.cat([dl.new(shuffle=False, drop_last=False, pipeline=dls.valid.pipeline).make_batch([i], 0)["image"][:,:,3,3] for i in range(len(dl.dataset))]).numpy()
    x,new = middle(dls.train),middle(dls.test)
    probs = class_probs("svm", x, dls.train.dataset.labels, new, dls.c)
    assert found["svm_pixel"]["score"] == pytest.approx((probs.argmax(1) == dls.test.dataset.labels).mean())


def test_pixels_alone_have_no_neighbours():
    cubes = load_cube_set(n=12, size=16, bands=10)
    places = {split:pixel_windows(cubes, split, 1, 4) for split in ("train", "valid", "test")}
    dls = cube_loaders(cubes, bs=4, window=1, windows=places, label="class", label_of="center", device="cpu", workers=0)
    assert [row["model"] for row in baselines(dls, "pixel")] == ["linear_pixel", "svm_pixel"]
