"Recommendations: ranges, contradictions of the guides that must not come back, and that each argument acts"
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.experiment.advice import (REMEDIES, SIZES, Advice, advice_base, fitting_batch, guide_row, findings, peak_lr, recommend, remedies, split_batch, symptoms)
from vitnb.experiment.recipes import ADVICE, FIELDS, callback_args, families, learner_args, loader_args, recipe, recipes, register_family
from vitnb.parameters import RUN_FIELDS
from vitnb.parameters import askable

GiB = 2**30
ADVISED = sorted(k for k,f in families.items() if f.advice)
PLAIN = dict(n_images=20_000, n_classes=10, img_size=224, params=28_000_000)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 2_000_000), k=st.integers(2, 1000), size=st.sampled_from([8, 32, 64, 224, 384]), params=st.integers(10_000, 300_000_000),
       family=st.sampled_from(ADVISED), epochs=st.one_of(st.none(), st.integers(1, 400)), pretrained=st.booleans(), mirror=st.booleans())
def test_every_recommendation_is_a_recipe_in_range(n, k, size, params, family, epochs, pretrained, mirror):
    a = recommend(n, k, size, params, family, epochs, pretrained, mirror)
    r = recipe(**a)
    assert set(a) <= set(FIELDS) and a.keys() == a.why.keys() and all(a.why.values())
    assert learner_args(r)["lr"] == a["lr"] and loader_args(r)["bs"] == a["bs"] and callback_args(r)["accumulate"] == a["accumulate"]
    assert 0 < a["min_lr"] + a["lr"] and a["min_lr"] <= a["lr"] and 0 <= a["warmup_epochs"] < max(a["epochs"], 1)
    assert 1 <= a["bs"]*a["accumulate"] <= max(1, n) and a["bs"] & (a["bs"]-1) == 0


@settings(max_examples=60, deadline=None)
@given(memory=st.floats(.5*GiB, 80*GiB), fixed=st.floats(0, .3*GiB), per=st.floats(1e5, .2*GiB))
def test_a_batch_fits_and_twice_as_many_do_not(memory, fixed, per):
    n = fitting_batch(memory, fixed, per)
    assert n & (n-1) == 0
    if n: assert fixed + n*per <= .9*memory
    assert fixed + 2*max(n, .5)*per > .9*memory*(1-1e-9)


@pytest.mark.parametrize("batch,fits", [(64, 64), (64, 100), (64, 16), (48, 32), (1, 1)])
def test_a_split_batch_is_whole(batch, fits):
    bs,k = split_batch(batch, fits)
    assert bs <= fits and bs*k >= batch and bs*(k-1) < batch


def test_less_memory_means_smaller_batches_and_the_same_step_and_rate():
    a,b = recommend(**PLAIN),recommend(**PLAIN, memory=4*GiB, fixed=.5*GiB, per_image=.2*GiB)
    assert b["bs"] < a["bs"] and b["bs"]*b["accumulate"] == a["bs"]*a["accumulate"] and a["lr"] == b["lr"]
    with pytest.raises(ValueError, match="checkpointing"): recommend(**PLAIN, memory=.5*GiB, fixed=.5*GiB, per_image=.2*GiB)


@pytest.mark.parametrize("kw", [dict(n_images=2_000), dict(n_images=900_000), dict(img_size=32), dict(params=1_000_000), dict(family="densenet"), dict(epochs=7), dict(pretrained=True),
                                dict(mirror=False), dict(memory=4*GiB, per_image=.2*GiB), dict(memory=4*GiB, fixed=2*GiB, per_image=.1*GiB)], ids=str)
def test_each_argument_acts(kw): assert dict(recommend(**{**PLAIN, **kw})) != dict(recommend(**PLAIN))


def test_the_guides_rows_as_they_stand():
    "Batch 16, 32, 64; rate 5e-5, 1e-4, 3e-4; warm-up 10, 5, 3; decay .05, .01, .001; drop path .3, .2, .1"
    rows = [guide_row(n) for n in (100, 20_000, 100_000)]
    assert [r["name"] for r in rows] == list(SIZES)
    assert [[r[k] for r in rows] for k in ("bs", "lr", "warmup_epochs", "weight_decay", "drop_path")] == [[16,32,64], [5e-5,1e-4,3e-4], [10,5,3], [.05,.01,.001], [.3,.2,.1]]


def test_the_rate_is_in_proportion_to_the_batch_and_names_its_base():
    for f in ADVISED: assert peak_lr(f, 128, 30e6) == pytest.approx(2*peak_lr(f, 64, 30e6))
    assert peak_lr("densenet", 256, 7e6) == .4, "the guide's four GPUs"
    assert peak_lr("swin", 64, 28e6) == 3e-4 and peak_lr("swin", 64, 28e6, pretrained=True) == pytest.approx(3e-5)
    assert peak_lr("densenet", 64, 1e5) == peak_lr("densenet", 64, 1e8), "SGD's does not follow the width"
    assert "at a batch of 64" in recommend(**PLAIN).why["lr"]


def test_what_guides_get_wrong_is_not_repeated():
    big = recommend(**{**PLAIN, "n_images":1_000_000})
    assert big["weight_decay"] == .05 and guide_row(1_000_000)["weight_decay"] == .001
    assert [recommend(**{**PLAIN, "n_images":100_000, "params":p}, memory=m, per_image=GiB)["lr"] for p,m in ((50e6, 40*GiB), (88e6, 20*GiB))] == [3e-4, 3e-4], "the step stays 64"
    assert "not" in dict(remedies("nan"))["precision"] and "1e-6" in dict(remedies("nan"))["lr"]
    assert recommend(**PLAIN, family="densenet")["weight_decay"] == 1e-4
    assert [k for k,_ in remedies("oom")][0] == "gradient checkpointing" and [k for k,_ in remedies("oom")][-1] == "window_size"


MINE = dict(advice_base("swin"), optimizer="sgd", lr=.02, batch=32, params=None, epochs=50, epochs_why="mine", augment="basic", augment_why="mine too", regularizer="dropout")


@pytest.fixture
def mine(monkeypatch):
    "A family that this library does not know, with advice of its own"
    def register(advice):
        register_family("mine", recipes=dict(small=dict(arch="densenet_micro")), advice=advice, replace=True)
    for o in (families, recipes, askable): monkeypatch.setitem(o, "mine", None)
    for o in (families, recipes, askable): monkeypatch.delitem(o, "mine")
    return register


def test_a_family_says_itself_what_is_recommended_for_it(mine):
    mine(MINE)
    a = recommend(**{**PLAIN, "n_images":900_000}, family="mine")
    assert [a[k] for k in ("family", "optimizer", "epochs", "augment", "dropout")] == ["mine", "sgd", 50, "basic", 0.] and "drop_path" not in a
    assert a.why["epochs"] == "mine" and a.why["augment"] == "mine too" and a["lr"] == pytest.approx(.04) and recipe(**a)["family"] == "mine"


@pytest.mark.parametrize("change,says", [(dict(lr=None), "lacks 'lr'"), (dict(learning_rate=.1), "has 'learning_rate'"), (dict(regularizer="dropuot"), "did you mean 'dropout'")])
def test_advice_that_lacks_or_adds_something_is_refused(mine, change, says):
    advice = {k:v for k,v in {**MINE, **change}.items() if not (k in change and v is None)}
    with pytest.raises(ValueError, match=says): mine(advice)
    assert set(MINE) == {*ADVICE, "epochs_by_size", "auto"} and "mine" not in families


def test_a_family_without_advice_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown family with advice 'spectral'.*densenet, swin"): recommend(**PLAIN, family="spectral")


def test_a_short_run_has_a_short_warm_up():
    assert recommend(**PLAIN, epochs=1)["warmup_epochs"] == 0 and recommend(**PLAIN, epochs=20)["warmup_epochs"] == 2 and recommend(**PLAIN, epochs=300)["warmup_epochs"] == 5


@pytest.mark.parametrize("kw,says", [(dict(family="swim"), "did you mean 'swin'"), (dict(n_images=0), "n_images=0"), (dict(n_classes=1), "n_classes=1"), (dict(img_size=0), "img_size=0"),
                                     (dict(params=0), "params=0"), (dict(memory=GiB), "per_image=0")])
def test_nonsense_is_an_error(kw, says):
    with pytest.raises(ValueError, match=says): recommend(**{**PLAIN, **kw})


ALL = ("nan", "diverging", "overfitting", "underfitting", "unfinished", "oom", "slow")


def rows(train, valid, acc=None): return [dict(train_loss=t, valid_loss=v, accuracy=a) for t,v,a in zip(train, valid, acc or [.5]*len(train))]


@pytest.mark.parametrize("history,want", [
    (rows([2, math.nan], [2, 2]), ["nan"]), (rows([2, 1], [2, math.inf]), ["nan"]),
    (rows([2, 1.5, 1, .8, .6, .4], [2, 1.5, 1.4, 1.6, 1.8, 2.]), ["overfitting"]),
    (rows([2.3]*6, [2.3]*6, [.1]*6), ["diverging"]), (rows([95, 60, 40, 30, 25, 20], [99, 60, 40, 35, 33, 30], [.1]*6), ["diverging"]),
    (rows([2.3, 2, 1.7, 1.7, 1.7, 1.7], [2.3, 2, 1.8, 1.8, 1.8, 1.8], [.1, .15, .2, .2, .2, .2]), ["underfitting"]),
    (rows([2, 1, .6, .8, 1.5], [2, 1, .7, 1, 1.8]), ["diverging"]),
    (rows([2, 1, 1.5, 1, 1.5, 1, 1.5, 1], [2, 1.2, 1.6, 1.2, 1.6, 1.2, 1.6, 1.2]), ["diverging"]),
    (rows([1, 3, 5], [1, 3, 5]), ["diverging"]),
    ([dict(train_loss=.07, valid_loss=.07)]*6, ["diverging"]),
    ([dict(train_loss=.5/(i+1), valid_loss=.5/(i+1)) for i in range(6)], ["unfinished"]),
    ([dict(train_loss=1/(i+1), valid_loss=.5, accuracy=.7, train_accuracy=.7+i*.05) for i in range(6)], ["overfitting"]),
    ([dict(train_loss=1/(i+1), valid_loss=None if i%2 else 1/(i+1)) for i in range(6)], ["unfinished"]),
    (rows([2, 1.5, 1, .8, .6, .4], [2, 1.5, 1, .8, .6, .4]), ["unfinished"]),
    (rows([2, 1, .5, .45, .44, .44], [2, 1, .6, .58, .58, .58], [.9]*6), []),
    (rows([2], [2]), [])])
def test_symptoms(history, want):
    assert symptoms(history, n_classes=10) == want
    assert all(findings(history, n_classes=10).values()), "each is told with what shows it"


@settings(max_examples=100, deadline=None)
@given(losses=st.lists(st.floats(.01, 10), min_size=3, max_size=30), scale=st.floats(.01, 100))
def test_what_diverges_does_so_in_any_unit(losses, scale):
    a,b = ("diverging" in symptoms([dict(train_loss=v*k, valid_loss=1., accuracy=.5) for v in losses], n_classes=4) for k in (1, 2.**round(math.log2(scale))))
    assert a == b
    steadily = sorted(losses, reverse=True)
    assert "diverging" not in symptoms([dict(train_loss=v, valid_loss=v, accuracy=.9) for v in steadily], n_classes=4)


def test_a_history_without_epochs():
    with pytest.raises(ValueError, match="no epochs"): symptoms([])


def test_every_symptom_has_remedies_about_something_that_exists():
    known = {*FIELDS, *RUN_FIELDS, "data", "gradient checkpointing", "window_size", "workers", "--processes"}
    for s in ALL:
        for what,how in remedies(s): assert how and set(what.split(", ")) <= known, (s, what)
    assert set(REMEDIES) == set(ALL)


@pytest.mark.parametrize("symptom,guides", [ # what the guides say, under the fields' names
    ("diverging", "lr warmup_epochs clip augment class_weights data stats pretrained"), ("overfitting", "weight_decay dropout augment epochs early_stop drop_path mixup cutmix ema_half_life arch"),
    ("underfitting", "arch epochs lr weight_decay dropout"), ("nan", "lr clip data anomaly"), ("oom", "bs accumulate img_size arch precision window_size"), ("slow", "optimizer bs warmup_epochs workers precision --processes")])
def test_the_guides_rows_are_complete(symptom, guides):
    assert set(guides.split()) <= {word for what,_ in remedies(symptom) for word in what.split(", ")}


@pytest.mark.parametrize("params,epochs,name", [(27.7e6, 100, "50 to 100 for Swin-T"), (49e6, 150, "100 to 150 for Swin-S"), (87e6, 200, "150 to 200 for Swin-B"), (1e6, 100, "Swin-T")])
def test_larger_models_train_longer_as_the_guide_has_it(params, epochs, name):
    a = recommend(100_000, 200, 64, int(params))
    assert a["epochs"] == epochs and name in a.why["epochs"]


def test_it_prints_itself():
    a = Advice(lr=(1e-3, "because a|b"))
    assert a == {"lr":1e-3} and "a&#124;b" in a._repr_markdown_() and "because" in str(a)
