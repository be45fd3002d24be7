"Test-time augmentation: what cells of the notebook do not show"
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitnb.core import set_seed
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import vit_learner
from vitnb.learner.predict import predict_split
from vitnb.learner.tta import TTA, apply_view, log_mean, mean_nll, pick_views, predict_tta, tta_mode, view_scores, view_sets, views

SWAP = [1, 0, 3, 2, 5, 4]


@pytest.fixture(scope="module")
def learn():
    set_seed(1)
    dls = image_loaders(load_set("digits", limit=12), bs=32, augment="none", seed=1, device="cpu")
    learn = vit_learner(dls, "swin_micro", device="cpu", precision="fp32", seed=1)
    learn.fit(1)
    return learn


class Zones(nn.Module):
    "Mean colours of three rows of two zones, (B,6,3)"
    def forward(self, x): return F.adaptive_avg_pool2d(x, (3, 2)).flatten(2).transpose(1, 2)


class Table(nn.Module):
    "Given logits, whatever the image, one set for each call in turn"
    def __init__(self, *logits):
        super().__init__()
        self.logits,self.n = logits,-1
    def forward(self, x):
        self.n += 1
        return self.logits[self.n % len(self.logits)]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_identity_alone_is_predict_split(learn, split):
    for a,b in zip(predict_tta(learn, split, "none"), predict_split(learn, split)): assert a.dtype == b.dtype and torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", view_sets)
def test_a_learner_whose_model_is_the_mean_agrees_with_predict_tta(learn, name):
    probs,y = predict_tta(learn, "valid", name)
    model = learn.model
    with tta_mode(learn, name):
        assert torch.allclose(predict_split(learn, "valid")[0], probs, atol=1e-6)
        loss,acc,*_ = learn.validate()
    assert learn.model is model
    assert loss == pytest.approx(mean_nll(probs, y), abs=1e-5) and acc == pytest.approx((probs.argmax(1) == y).float().mean().item(), abs=1e-6)


def test_the_mean_is_that_of_the_views_probabilities(learn):
    each = [predict_tta(learn, "test", [o])[0] for o in pick_views("d4")]
    assert torch.allclose(torch.stack(each).mean(0), predict_tta(learn, "test", "d4")[0], atol=1e-6)


def test_probabilities_are_averaged_and_not_logits():
    "softmax(ln 9, 0) = (.9, .1), softmax(0, 0) = (.5, .5): mean .7; the mean of logits would give softmax(ln 3, 0) = .75"
    a,b = torch.tensor([[9., 1.]]).log(),torch.zeros(1, 2)
    p = TTA(Table(a, b), ["identity", "hflip"])(torch.zeros(1, 3, 4, 4)).softmax(-1)
    assert torch.allclose(p, torch.tensor([[.7, .3]]), atol=1e-6)
    q = TTA(Table(a, b), ["identity", "hflip"], activation="sigmoid")(torch.zeros(1, 3, 4, 4)).sigmoid()
    assert torch.allclose(q, torch.tensor([[.7, .5]]), atol=1e-6)


def test_the_log_of_the_mean_does_not_underflow():
    z = log_mean([torch.tensor([[200., 0.]]), torch.tensor([[220., 0.]])])
    assert z[0,1].item() == pytest.approx(-200 + torch.tensor(.5).log().item(), abs=1e-4)
    s = log_mean([torch.tensor([90.]), torch.tensor([90.])], "sigmoid")
    assert s.isfinite().all() and s.item() == pytest.approx(90, abs=1e-3)


def test_nll_of_the_mean():
    p,y = torch.tensor([[.7, .3], [.2, .8]]),torch.tensor([0, 1])
    want = -(torch.tensor([.7, .8]).log().mean()).item()
    assert mean_nll(p, y) == pytest.approx(want) and mean_nll(p, F.one_hot(y).float()) == pytest.approx(want)
    assert mean_nll(p, torch.tensor([0, -100])) == pytest.approx(-torch.tensor(.7).log().item()), "an unknown target does not count"
    assert mean_nll(torch.tensor([[1., 0.]]), torch.tensor([1])) < 100, "a certain mistake is a large number, not infinity"
    assert mean_nll(p[None].expand(3, 2, 2), y.expand(3, 2)) == pytest.approx(want), "zones: every one counts"


@pytest.mark.parametrize("name", view_sets)
def test_a_model_that_sees_no_order_says_the_same_of_moved_pixels(name):
    "Flips and turns keep the set of pixels, so the mean colour does not change; shifts and crops do not"
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3, eps=1e-9)).train() # makes small differences large
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    same = torch.allclose(TTA(model, name)(x).softmax(-1), model(x).softmax(-1), atol=1e-4)
    assert same == (name in ("none", "flip", "flips", "d4"))


def test_views_of_a_known_picture():
    x = torch.arange(4.).view(1, 1, 2, 2)
    want = dict(identity=[0,1,2,3], hflip=[1,0,3,2], vflip=[2,3,0,1], rot90=[1,3,0,2], rot180=[3,2,1,0], rot270=[2,0,3,1],
                up=[2,3,2,3], down=[0,1,0,1], left=[1,1,3,3], right=[0,0,2,2])
    for k,v in want.items(): assert apply_view(x, k).flatten().tolist() == v, k
    assert apply_view(x, "rot90+hflip").flatten().tolist() == apply_view(apply_view(x, "rot90"), "hflip").flatten().tolist()


def test_the_eight_views_of_a_square_are_different_and_all():
    x = torch.arange(9.).view(1, 1, 3, 3)
    assert len({tuple(apply_view(x, o).flatten().tolist()) for o in view_sets["d4"]}) == 8


@pytest.mark.parametrize("name", views)
def test_views_keep_shape_and_leave_the_image_alone(name):
    x = torch.rand(2, 3, 16, 16)
    before = x.clone()
    y = apply_view(x, name)
    assert y.shape == x.shape and torch.equal(x, before)
    assert torch.equal(y, x) == (name == "identity")


def test_crops_are_where_they_say():
    x = torch.zeros(1, 1, 16, 16)
    x[..., 0, 0] = 1
    assert [o for o in views if o.startswith("crop") and apply_view(x, o).sum() > 0] == ["crop_tl"]


def test_images_that_are_not_square():
    x = torch.rand(1, 3, 8, 16)
    for o in views:
        if o in ("rot90", "rot270"):
            with pytest.raises(ValueError, match="square"): apply_view(x, o)
        else: assert apply_view(x, o).shape == x.shape


def test_the_six_zones_exchange_as_they_should():
    x = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    plain = Zones()(x).softmax(-1)
    assert torch.allclose(TTA(Zones(), "flip", dict(hflip=SWAP))(x).softmax(-1), plain, atol=1e-6)
    assert not torch.allclose(TTA(Zones(), "flip", dict(hflip=None))(x).softmax(-1), plain, atol=1e-3)
    assert not torch.allclose(TTA(Zones(), "flip", dict(hflip=[5, 4, 3, 2, 1, 0]))(x).softmax(-1), plain, atol=1e-3)


def test_joined_views_are_undone_backwards():
    "Two exchanges that do not commute: a quarter turn of four zones, and a flip"
    class Quarters(nn.Module):
        def forward(self, x): return F.adaptive_avg_pool2d(x, (2, 2)).flatten(2).transpose(1, 2) # (B,4,3)
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(4.).view(1, 1, 2, 2)
    def order(o): return apply_view(index, o).flatten().long().argsort().tolist() # where zone i of the image is in the view
    moves = dict(hflip=order("hflip"), rot90=order("rot90"), rot180=order("rot180"), rot270=order("rot270"))
    for o in ("rot90", "rot270", "rot90+hflip", "hflip+rot90"):
        assert torch.allclose(TTA(Quarters(), [o], moves)(x).softmax(-1), Quarters()(x).softmax(-1), atol=1e-6), o


def test_the_dimension_of_the_exchange():
    class Late(nn.Module):
        def forward(self, x): return Zones()(x).transpose(1, 2) # (B,3,6): zones last
    x = torch.rand(2, 3, 12, 12)
    t = TTA(Late(), ["hflip"], dict(hflip=SWAP), dim=2)
    assert torch.allclose(t(x).softmax(-1), Late()(x).softmax(-1), atol=1e-6)
    with pytest.raises(ValueError, match="dimension 1"): TTA(Late(), ["hflip"], dict(hflip=SWAP))(x)


@pytest.mark.parametrize("make", [lambda a, b: dict(zones=a, whole=b), lambda a, b: (a, b)], ids=["dict", "tuple"])
def test_several_heads(make):
    class Two(nn.Module):
        def forward(self, x): return make(Zones()(x), x.mean((2, 3)))
    x = torch.rand(3, 3, 12, 12)
    for permute in (dict(hflip={"zones" if isinstance(make(0, 0), dict) else 0: SWAP}),):
        out,plain = TTA(Two(), "flip", permute)(x),Two()(x)
        assert type(out) is type(plain)
        for k in (out if isinstance(out, dict) else range(2)): assert torch.allclose(out[k].softmax(-1), plain[k].softmax(-1), atol=1e-6)
    with pytest.raises(ValueError, match=r"permute=dict\(hflip="): TTA(Two(), "flip")(x)


def test_several_heads_over_a_whole_split(learn):
    class Two(nn.Module):
        def __init__(self, m):
            super().__init__()
            self.m = m
        def forward(self, x): return dict(a=self.m(x), b=-self.m(x))
    plain = learn.model
    try:
        learn.model = Two(plain)
        probs,y = predict_tta(learn, "valid", "shifts")
    finally: learn.model = plain
    assert torch.allclose(probs["a"], predict_tta(learn, "valid", "shifts")[0], atol=1e-6) and probs["b"].shape == probs["a"].shape == (len(y), 10)


@pytest.mark.parametrize("permute,says", [(dict(hflp=SWAP), "did you mean 'hflip'"), (dict(hflip=[0, 0, 1, 2, 3, 4]), "each of 0 to 5 once"),
                                          (dict(hflip=[1, 0]), "each of 0 to 5 once"), (dict(hflip=dict(zones=SWAP)), "one output")])
def test_a_wrong_exchange_is_an_error(permute, says):
    with pytest.raises(ValueError, match=says): TTA(Zones(), "flip", permute)(torch.rand(1, 3, 12, 12))


def test_a_head_that_is_not_there():
    class One(nn.Module):
        def forward(self, x): return dict(zones=Zones()(x))
    with pytest.raises(ValueError, match="did you mean 'zones'"): TTA(One(), "flip", dict(hflip=dict(zone=SWAP)))(torch.rand(1, 3, 12, 12))


@pytest.mark.parametrize("which,says", [("hflp", "did you mean 'hflip'"), ("five_crops", "did you mean 'five_crop'"), (["identity", "rot9"], "did you mean 'rot90'"),
                                        ("rot90+hflop", "did you mean 'hflip'"), ([], "at|one to look at")])
def test_an_unknown_view_is_an_error_that_names_the_nearest(which, says):
    with pytest.raises(ValueError, match=says): pick_views(which)


def test_an_unknown_split_or_activation(learn):
    with pytest.raises(ValueError, match="did you mean 'valid'"): predict_tta(learn, "valide")
    with pytest.raises(ValueError, match="did you mean 'softmax'"): predict_tta(learn, "valid", activation="soft")


@pytest.mark.parametrize("kw", [dict(views="flip"), dict(views="shifts"), dict(views="ten_crop"), dict(activation="sigmoid"), dict(split="test")], ids=str)
def test_each_option_acts(learn, kw):
    a,b = predict_tta(learn, **{**dict(split="valid", views="none"), **kw})[0],predict_tta(learn, "valid", "none")[0]
    assert a.shape != b.shape or not torch.allclose(a, b, atol=1e-4)


def test_it_is_deterministic_and_draws_nothing(learn):
    rng = torch.get_rng_state()
    a,b = predict_tta(learn, "test", "ten_crop")[0],predict_tta(learn, "test", "ten_crop")[0]
    assert torch.equal(a, b) and torch.equal(rng, torch.get_rng_state())


def test_the_batch_size_does_not_matter(learn):
    whole = predict_tta(learn, "valid", "d4")[0]
    dl,learn.dls.valid.bs = learn.dls.valid.bs,7
    try: assert torch.allclose(predict_tta(learn, "valid", "d4")[0], whole, atol=1e-5)
    finally: learn.dls.valid.bs = dl


def test_it_runs_in_the_learners_precision():
    set_seed(1)
    dls = image_loaders(load_set("digits", limit=4), bs=8, augment="none", seed=1, device="cpu")
    learn = vit_learner(dls, "swin_micro", device="cpu", precision="bf16", seed=1)
    seen = []
    learn.model.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    probs,_ = predict_tta(learn, "valid", "flip")
    assert set(seen) == {torch.bfloat16} and probs.dtype == torch.float32
    assert torch.allclose(probs.sum(-1), torch.ones(len(probs)), atol=1e-5)


def test_the_model_comes_back_after_an_error(learn):
    model = learn.model
    with pytest.raises(KeyboardInterrupt):
        with tta_mode(learn): raise KeyboardInterrupt
    assert learn.model is model


def test_scores_of_each_view(learn):
    rows = view_scores(learn, "valid", "shifts")
    assert [r["view"] for r in rows] == [*view_sets["shifts"], "mean"]
    probs,y = predict_tta(learn, "valid", "shifts")
    assert rows[-1]["nll"] == pytest.approx(mean_nll(probs, y), abs=1e-6)
    assert rows[-1]["nll"] <= sum(r["nll"] for r in rows[:-1])/5 + 1e-6, "by Jensen, the mean's NLL is at most the views' mean NLL"
