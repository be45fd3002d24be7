"What frozen features tell of the classes: both classifiers beside slow references, whose images they see, and that nothing else moves"
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_spectral
import torch
import torch.nn.functional as F
from torch import nn

from vitnb.callback.base import TrainCallback
from vitnb.callback.pretext import Pretext
from vitnb.callback.probe import (LEAST_IMAGES, Probe, accuracy_and_f1, class_pairs, knn_votes,
                                  linear_answers, pooled_features, probe_data, probe_sizes, run_probe, vote_hits)
from vitnb.data.holdout import Split
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.data.table import ImageSet
from vitnb.launch import Ranks
from vitnb.learner.core import run_callbacks, vit_learner
from vitnb.learner.distribute import distribute
from vitnb.models.protocol import create_model
from vitnb.task import MultiLabel, OneClass, Tasks
from vitnb.testing import differences, tiny_learner

HERE = Path(__file__).resolve().parent


def say_nothing(*said): pass


def cloud(n, dim=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)).astype(np.float32), rng.integers(0, classes, n)


# ---- neighbours

def slow_votes(bank, labels, queries, n_classes, k, temperature, own):
    "One query and one neighbour at a time"
    votes = np.zeros((len(queries), n_classes))
    for i,q in enumerate(queries):
        similar = []
        for j,b in enumerate(bank):
            if own is None or own[i] != j: similar.append((float(q @ b/np.linalg.norm(q)/np.linalg.norm(b)), j))
        nearest = sorted(similar, reverse=True)[:k]
        for s,j in nearest: votes[i,labels[j]] += np.exp((s - nearest[0][0])/temperature)
    return votes


@pytest.mark.parametrize("k", [1, 5, 20, 100])
@pytest.mark.parametrize("inside", [False, True])
def test_votes_are_those_of_a_slow_reference(k, inside):
    bank,labels = cloud(40)
    queries = bank[10:25] if inside else cloud(15, seed=1)[0]
    own = np.arange(10, 25) if inside else None
    expected = slow_votes(bank.astype(float), labels, queries.astype(float), 3, k, .2, own)
    found = knn_votes(bank, labels, queries, 3, k, .2, own)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert ((found > 0).sum(1) >= 1).all()


def test_a_query_is_not_its_own_neighbour():
    angles = np.array([0, .1, 1, 1.1])
    points,classes = np.stack([np.cos(angles), np.sin(angles)], 1),np.array([0, 1, 0, 1])
    assert vote_hits(knn_votes(points, classes, points, 2, k=1), classes).mean() == 1
    assert vote_hits(knn_votes(points, classes, points, 2, k=1, own=np.arange(4)), classes).mean() == 0


def test_the_length_of_a_feature_does_not_matter():
    bank,labels = cloud(50)
    queries,_ = cloud(20, seed=2)
    scale = np.random.default_rng(3).uniform(.01, 100, (50, 1)).astype(np.float32)
    assert np.allclose(knn_votes(bank*scale, labels, queries*7, 3), knn_votes(bank, labels, queries, 3), rtol=1e-3, atol=1e-6)


def test_only_classes_with_a_vote_are_answers():
    votes = knn_votes(np.ones((1, 2)), np.array([0]), np.ones((1, 2)), n_classes=5, k=1)
    assert not vote_hits(votes, np.array([1]), top=5).any()
    assert vote_hits(votes, np.array([0]), top=1).all()


def test_a_small_temperature_leaves_the_nearest_alone():
    bank,labels = cloud(60)
    queries,_ = cloud(30, seed=4)
    votes = knn_votes(bank, labels, queries, 3, k=20, temperature=1e-6)
    assert np.isfinite(votes).all()
    assert (votes.argmax(1) == knn_votes(bank, labels, queries, 3, k=1).argmax(1)).all()
    for kw in (dict(k=0), dict(temperature=0)):
        with pytest.raises(ValueError, match="for example 20 and 0.07"): knn_votes(bank, labels, queries, 3, **kw)


@pytest.mark.parametrize("answers", [lambda *a: linear_answers(*a), lambda b, l, q: knn_votes(b, l, q, 2).argmax(1)], ids=["linear", "knn"])
def test_clusters_are_told_apart_and_shuffled_labels_are_chance(answers):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    points = rng.normal(size=(600, 8)) + 4*(2*labels[:,None] - 1)
    assert (answers(points[:300], labels[:300], points[300:]) == labels[300:]).all()
    mixed = rng.permutation(labels)
    share = (answers(points[:300], mixed[:300], points[300:]) == mixed[300:]).mean()
    assert abs(share - .5) < 4*.5/300**.5, "within four standard errors of chance level"


def test_the_linear_layer_is_the_minimum_of_its_loss():
    "Torch's autograd at what scikit-learn found: the gradient of the penalised loss is nothing"
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    bank,labels = cloud(200, dim=4)
    queries,_ = cloud(50, dim=4, seed=1)
    mean,deviation = bank.mean(0),bank.std(0)
    x = torch.tensor((bank - mean)/deviation, dtype=torch.float64)
    weight = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    opt = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe")
    def loss():
        opt.zero_grad()
        value = .1*F.cross_entropy(x @ weight.T + bias, torch.tensor(labels), reduction="sum") + weight.square().sum()/2
        value.backward()
        return value
    opt.step(loss)
    logits = torch.tensor((queries - mean)/deviation, dtype=torch.float64) @ weight.T + bias
    sure = logits.topk(2).values.diff().abs().flatten() > 1e-3
    assert sure.sum() > 40
    assert (torch.tensor(linear_answers(bank, labels, queries)) == logits.argmax(1))[sure].all()


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score
    rng = np.random.default_rng(0)
    said,truth = rng.integers(0, 4, 100),rng.integers(1, 4, 100)
    accuracy,f1 = accuracy_and_f1(class_pairs(said, truth, 6))
    assert accuracy == pytest.approx(accuracy_score(truth, said)) and f1 == pytest.approx(f1_score(truth, said, average="macro"))


# ---- which images

def numbered(n=60, classes=3):
    "Images that say in their pixels which split and row they are of"
    def split(start, n):
        images = np.zeros((n, 8, 8, 3), np.uint8)
        images[...,0] = np.arange(start, start + n)[:,None,None]
        return Split(images, np.arange(n) % classes)
    return ImageSet("numbered", [str(k) for k in range(classes)], dict(train=split(0, n), valid=split(100, 30), test=split(200, 30)))


def pixels(dls, loader):
    norm = next(t for t in loader.pipeline.transforms if hasattr(t, "undo"))
    return np.concatenate([norm.undo(b["image"])[:,0,0,0].numpy() for b in loader]).astype(int)


@pytest.mark.parametrize("views", [1, 2])
def test_the_bank_never_sees_a_row_of_validation(views):
    dls = image_loaders(numbered(), 8, bs=10, augment="basic", device="cpu", seed=0, stats=([0.]*3, [1.]*3))
    if views > 1: dls = dls.with_views(views)
    data = probe_data(dls, bank=40, queries=20)
    bank,queries = pixels(dls, data.bank),pixels(dls, data.queries)
    assert len(bank) == len(set(bank)) == 40 and set(bank) <= set(range(60))
    assert len(queries) == len(set(queries)) == 20 and set(queries) <= set(range(100, 130))
    assert (data.bank_labels == bank % 3).all() and (data.query_labels == (queries - 100) % 3).all()
    assert (pixels(dls, data.bank) == bank).all(), "a second pass has the same order"
    assert (pixels(dls, probe_data(dls, bank=40, queries=20).bank) == bank).all(), "and a second choice the same images"


def test_unknown_labels_are_left_out():
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(40) % 4 - 1
    task = OneClass(("a", "b", "c"), unknown=-1)
    splits = {k:Split(images, labels) for k in ("train", "valid", "test")}
    data = probe_data(image_loaders(ImageSet("some", task, splits), 8, bs=8, device="cpu"), bank=100, queries=100)
    assert len(data.bank_labels) == 30 and set(data.bank_labels) == {0, 1, 2}
    assert sum(len(b["image"]) for b in data.bank) == 30


def test_what_cannot_be_probed_is_refused():
    images = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), dtype=np.uint8)
    def loaders(task, labels): return image_loaders(ImageSet("some", task, {k:Split(images, labels) for k in ("train", "valid", "test")}), 8, bs=4, device="cpu")
    with pytest.raises(ValueError, match="one class a sample, which the task '' has not"):
        probe_data(loaders(MultiLabel("abc"), np.zeros((20, 3), int)))
    with pytest.raises(ValueError, match="two classes to train on"): probe_data(loaders(OneClass("abc"), np.zeros(20, int)))
    two = Tasks.of(dict(kind=OneClass("abc"), part=OneClass("ab")))
    with pytest.raises(ValueError, match="no task '' to probe.*kind"):
        several = {k:Split(images, dict(kind=np.arange(20) % 3, part=np.arange(20) % 2)) for k in ("train", "valid", "test")}
        dls = image_loaders(ImageSet("some", two, several), 8, bs=4, device="cpu")
        assert probe_data(dls, task="part").names == ("a", "b")
        probe_data(dls)
    none = {k:Split(images) for k in ("train", "valid", "test")}
    with pytest.raises(ValueError, match="have no classes for a probe"): probe_data(image_loaders(ImageSet("some", Tasks(), none), 8, bs=4, device="cpu"))
    for kw in (dict(every=0), dict(every=True), dict(share=0.), dict(share=2.)):
        with pytest.raises(ValueError, match="must be"): Probe(**kw)


def test_a_model_without_features_is_refused():
    learn = tiny_learner(cbs=[Probe()])
    learn.model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(ValueError, match="Sequential has no forward_features and no forward_head"): learn.fit(1)


def test_features_that_are_not_finite_are_named():
    learn = tiny_learner()
    with torch.no_grad(): next(learn.model.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="features of the training split are not finite"): run_probe(learn, probe_data(learn.dls))


# ---- features

@pytest.mark.parametrize("name,kw", [("hvit_micro", {}), ("densenet_micro", dict(img_size=64)), ("swin_micro", dict(img_size=64))])
def test_features_are_what_the_classifier_is_given(name, kw):
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, **kw).eval()
    x = torch.rand(3, 3, 64, 64)
    features = pooled_features(model, x)
    assert features.ndim == 2 and torch.allclose(model.get_classifier()(features), model(x), atol=1e-5)


def test_features_are_the_backbones_and_not_the_projectors():
    "A05: of a contrastive run, whose projection head stands where the classifier stood"
    from contrastive_worker import make
    model = make(pretext=dict(projection=24)).model.eval()
    x = torch.rand(3, 3, 16, 16)
    with torch.no_grad(): features = pooled_features(model, x)
    assert features.shape == (3, model.num_features) and model.num_features != 24
    with torch.no_grad(): assert torch.allclose(model.get_classifier()(features), model(x), atol=1e-5)


def test_a_timm_model_is_probed_too():
    import timm
    model = timm.create_model("resnet10t", num_classes=4).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): assert torch.allclose(model.fc(pooled_features(model, x)), model(x), atol=1e-5)


def test_features_of_places_are_averaged():
    class Places(nn.Module):
        def forward_features(self, x): return x
        def forward_head(self, x, pre_logits=False): return x.permute(0, 2, 3, 1)
    x = torch.rand(2, 5, 3, 4)
    assert torch.allclose(pooled_features(Places(), x), x.mean((2, 3)))


# ---- in a fit

def trained(*cbs, epochs=4, **kw):
    learn = tiny_learner(cbs=cbs, **kw)
    learn.logger = say_nothing
    learn.fit(epochs)
    return learn


def test_a_probe_changes_nothing_else():
    plain,probed = trained(arch="densenet_micro"),trained(Probe(every=1), arch="densenet_micro")
    assert not differences(plain.model.state_dict(), probed.model.state_dict())
    own = [c.name for c in probed.probe.columns()]
    rest = [{k:v for k,v in r.items() if k not in own} for r in probed.recorder.rows]
    assert not differences(plain.recorder.rows, rest, ["seconds"])
    assert all(r[k] is not None for r in probed.recorder.rows for k in own)


def test_columns_are_declared_and_filled_when_due(tmp_path):
    learn = tiny_learner(cbs=[Probe(every=2)])
    learn.fit(5, cbs=run_callbacks(tmp_path, monitor="probe_accuracy", tracker="none"))
    for name in ("probe_accuracy", "probe_f1", "knn_accuracy"):
        assert learn.columns[name].better == "max"
        assert [r["epoch"] for r in learn.recorder.rows if r[name] is not None] == [2, 4, 5]
    best = max((r["probe_accuracy"], -r["epoch"]) for r in learn.recorder.rows if r["probe_accuracy"] is not None)
    files = next(iter((tmp_path/"checkpoints").glob("best_model.pth")))
    assert torch.load(files, weights_only=True)["epoch"] == -best[1]
    assert "probe_accuracy" in (tmp_path/"history.csv").read_text().splitlines()[0]


def test_training_makes_better_features():
    "Four labelled images a class are enough for trained features, and too few for others"
    kw = dict(arch="densenet_micro", model_kw=dict(growth_rate=4, block_config=(2, 2)), limit=120, bs=32, lr=2e-2)
    learn = tiny_learner(**kw, cbs=[Probe(every=8)])
    learn.logger = say_nothing
    data = probe_data(learn.dls, bank=40)
    before = run_probe(learn, data)
    learn.fit(8)
    after = run_probe(learn, data)
    for kind in ("linear", "knn"): assert after.interval(kind)[1] > before.interval(kind)[2], "intervals do not overlap"
    last = learn.probe.result
    assert learn.recorder.rows[-1]["knn_accuracy"] == pytest.approx((last.knn == last.truth).mean())


class Still(Pretext):
    "A task without labels: predict the mean brightness"
    name = "still"
    def terms(self, pred, batch): return dict(loss=((pred.mean(1) - batch["image"].mean((1, 2, 3))).square().sum(), len(pred)))
    def counts(self, batch): return dict(loss=len(batch["image"]))


def test_a_pretext_task_on_unlabelled_images_is_probed_on_labelled_ones():
    images = load_set("digits", limit=20).split("train").items
    free = ImageSet("free", Tasks(), {k:Split(images) for k in ("train", "valid", "test")})
    dls = image_loaders(free, bs=32, augment="shift", device="cpu", seed=0)
    labelled = image_loaders(load_set("digits", limit=20), bs=32, augment="shift", device="cpu", seed=0)
    learn = vit_learner(dls, "densenet_micro", dict(growth_rate=4, block_config=(2, 2)), pretext=Still(), device="cpu", precision="fp32")
    learn.progress.plot = False
    with pytest.raises(ValueError, match="have no classes for a probe"): learn.fit(1, cbs=Probe())
    learn.fit(2, cbs=Probe(every=1, dls=labelled))
    rows = learn.recorder.rows
    assert len(rows) == 2 and all(.1 < r["knn_accuracy"] <= 1 for r in rows)


def test_a_masked_autoencoder_of_cubes_is_probed_on_their_classes():
    labelled = tiny_spectral.loaders(24, 4, 1, label="class")
    probe = Probe(every=1, dls=labelled)
    learn = tiny_spectral.masked_learner(n=24, bs=4)
    learn.fit(2, cbs=probe)
    assert len(probe.result.bank) == len(labelled.train.dataset) and probe.result.bank.shape[1] == 16
    assert [r["knn_accuracy"] is not None for r in learn.recorder.rows] == [True, True]


def test_a_killed_run_goes_on_with_the_same_rows(tmp_path):
    def learner(): return tiny_learner(cbs=[Probe(every=2)])
    whole = learner()
    whole.fit(4, cbs=run_callbacks(tmp_path/"a", tracker="none"))
    class Die(TrainCallback):
        order = 190
        def after_epoch(self):
            if self.epoch == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learner().fit(4, cbs=[*run_callbacks(tmp_path/"b", tracker="none"), Die()])
    rest = learner()
    rest.fit(4, cbs=run_callbacks(tmp_path/"b", tracker="none"), resume="auto")
    assert not differences(whole.recorder.rows, rest.recorder.rows, ["seconds"])
    assert not differences(whole.model.state_dict(), rest.model.state_dict())


def test_nothing_of_a_probe_stays_behind():
    assert trained(Probe(every=1), epochs=1, workers=1).probe.data is None
    assert pickle.loads(pickle.dumps(trained(Probe(every=1), epochs=1))).probe.every == 1


# ---- what it costs

def test_the_images_of_a_probe_are_a_small_share_of_those_trained():
    for trained in (1_000, 6_000, 50_000, 10**6):
        for every in (1, 5, 10):
            read = sum(probe_sizes(trained, every))
            assert read <= max(LEAST_IMAGES, .02*every*trained)
            assert read >= LEAST_IMAGES - 1


def test_a_probe_of_a_long_epoch_reads_less_than_two_percent_of_it():
    "Counted where images are read, in the training and beside it"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6000, 4, 4, 3), dtype=np.uint8)
    splits = dict(train=Split(images, np.arange(6000) % 3), valid=Split(images[:300], np.arange(300) % 3), test=Split(images[:9], np.arange(9) % 3))
    dls = image_loaders(ImageSet("many", list("abc"), splits), 4, bs=500, device="cpu", seed=0)
    counts = SimpleNamespace(training=0, aside=0)
    class Count(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(48, 3)
        def forward_features(self, x):
            if self.training: counts.training += len(x)
            elif not torch.is_grad_enabled() and inside[0]: counts.aside += len(x)
            return x.flatten(1)
        def forward_head(self, x, pre_logits=False): return x if pre_logits else self.fc(x)
        def forward(self, x): return self.forward_head(self.forward_features(x))
    inside = [False]
    class Aside(Probe):
        def measure(self):
            inside[0] = True
            try: return super().measure()
            finally: inside[0] = False
    learn = vit_learner(dls, "densenet_micro", device="cpu", precision="fp32")
    learn.model = Count()
    learn.create_opt()
    learn.progress.plot = False
    learn.fit(5, cbs=Aside())
    assert counts.training == 30_000 and 0 < counts.aside <= .02*counts.training


def test_the_cost_is_said(capsys):
    learn = tiny_learner(cbs=[Probe(every=1)])
    learn.fit(2)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("probe:")]
    assert len(said) == 1 and "% of the time of training" in said[0] and f"{LEAST_IMAGES} images" in said[0]
    assert learn.probe.cost > 0


# ---- two processes

def rank_main(out):
    learn = distribute(tiny_learner(cbs=[Probe(every=1)]), timeout=120)
    learn.logger = say_nothing
    learn.fit(2)
    rows = [{k:v for k,v in r.items() if k != "seconds"} for r in learn.recorder.rows]
    torch.save(dict(rows=rows, computed=learn.probe.result is not None), out/f"rank{os.environ['RANK']}.pth")


def test_two_processes_log_the_same_numbers(tmp_path, monkeypatch):
    for k in [k for k in os.environ if k.startswith("ACCELERATE_") or k in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]: monkeypatch.delenv(k)
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    for k,v in dict(PYTHONPATH=path, OMP_NUM_THREADS="1", VITNB_RANK_TIMEOUT="240", PYTHONWARNINGS="ignore").items(): monkeypatch.setenv(k, v)
    with open(tmp_path/"log", "w") as log, Ranks([sys.executable, str(HERE/"test_probe.py"), str(tmp_path)], 2, logs={0:log, 1:log}) as ranks: codes = ranks.wait()
    assert codes == [0, 0], (tmp_path/"log").read_text()[-3000:]
    first,second = (torch.load(tmp_path/f"rank{r}.pth", weights_only=True) for r in range(2))
    assert first["rows"] == second["rows"]
    assert first["computed"] and not second["computed"], "the second adds nothing and waits"
    one = trained(Probe(every=1), epochs=2)
    for a,b in zip(one.recorder.rows, first["rows"]):
        for k in ("probe_accuracy", "probe_f1", "knn_accuracy"): assert a[k] == pytest.approx(b[k], abs=.03), "of weights that differ by rounding"


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank_main(Path(sys.argv[1]))
