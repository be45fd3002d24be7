"Views of an image: what moves where, what is brought back, and how predictions are averaged"
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from view_helpers import SWAP, Heads, Zones, zones

from vitnb.learner.views import TTA, apply_view, check_views, pick_views, turning_views, view_sets, views
from vitnb.task import MOVES, ClassMap, MultiLabel, OneClass, Ordinal, Tasks, Value

CLASSES = OneClass(("a", "b"))
LABELS = MultiLabel(("a", "b"))
COLOURS = OneClass(("red", "green", "blue"))


class Table(nn.Module):
    "Given logits, whatever the image, one set for each call in turn"
    def __init__(self, *logits):
        super().__init__()
        self.logits,self.n = logits,-1
    def forward(self, x):
        self.n += 1
        return self.logits[self.n % len(self.logits)]


def test_probabilities_are_averaged_and_not_logits():
    "softmax(ln 9, 0) = (.9, .1), softmax(0, 0) = (.5, .5): mean .7; the mean of logits would give softmax(ln 3, 0) = .75"
    a,b = torch.tensor([[9., 1.]]).log(),torch.zeros(1, 2)
    p = TTA(Table(a, b), ["identity", "hflip"], CLASSES)(torch.zeros(1, 3, 4, 4)).softmax(-1)
    assert torch.allclose(p, torch.tensor([[.7, .3]]), atol=1e-6)
    q = TTA(Table(a, b), ["identity", "hflip"], LABELS)(torch.zeros(1, 3, 4, 4)).sigmoid()
    assert torch.allclose(q, torch.tensor([[.7, .5]]), atol=1e-6)


def test_the_log_of_the_mean_does_not_underflow():
    z = TTA(nn.Identity(), "flip", CLASSES).mean([torch.tensor([[200., 0.]]), torch.tensor([[220., 0.]])])
    assert z[0,1].item() == pytest.approx(-200 + torch.tensor(.5).log().item(), abs=1e-4)
    s = TTA(nn.Identity(), "flip", MultiLabel(("a",))).mean([torch.tensor([[90.]]), torch.tensor([[90.]])])
    assert s.isfinite().all() and s.item() == pytest.approx(90, abs=1e-3)


def test_one_class_is_averaged_to_the_bit_as_it_always_was():
    "logsumexp over the views' log-softmax, less the logarithm of their number"
    views = [torch.randn(5, 7, generator=torch.Generator().manual_seed(i))*4 for i in range(5)]
    want = torch.stack([o.log_softmax(-1) for o in views]).logsumexp(0) - math.log(5)
    assert torch.equal(TTA(nn.Identity(), "shifts", OneClass(tuple("abcdefg"))).mean(views), want)


@pytest.mark.parametrize("name", view_sets)
def test_a_model_that_sees_no_order_says_the_same_of_moved_pixels(name):
    "Flips and turns keep the set of pixels, so the mean colour does not change; shifts and crops do not"
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3, eps=1e-9)).train() # makes small differences large
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    same = torch.allclose(TTA(model, name, COLOURS)(x).softmax(-1), model(x).softmax(-1), atol=1e-4)
    assert same == (name in ("none", "flip", "flips", "d4"))


def test_views_of_a_known_image():
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
    assert torch.allclose(TTA(Zones(), "flip", zones(hflip=SWAP))(x).softmax(-1), plain, atol=1e-6)
    assert not torch.allclose(TTA(Zones(), "flip", zones(hflip=None))(x).softmax(-1), plain, atol=1e-3)
    assert not torch.allclose(TTA(Zones(), "flip", zones(hflip=[5, 4, 3, 2, 1, 0]))(x).softmax(-1), plain, atol=1e-3)


def test_joined_views_are_undone_backwards():
    "Two exchanges that do not commute: a quarter turn of four zones, and a flip"
    class Quarters(nn.Module):
        def forward(self, x): return F.adaptive_avg_pool2d(x, (2, 2)).flatten(2).transpose(1, 2) # (B,4,3)
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(4.).view(1, 1, 2, 2)
    task = zones(4, **{o:apply_view(index, o).flatten().long().tolist() for o in MOVES}) # zone i of the view is that zone of the image
    for o in (*MOVES, "rot90+hflip", "hflip+rot90"):
        assert torch.allclose(TTA(Quarters(), [o], task)(x).softmax(-1), Quarters()(x).softmax(-1), atol=1e-6), o


def test_zones_that_move_are_refused_without_an_order_and_shifts_are_not():
    x = torch.rand(2, 3, 12, 12)
    with pytest.raises(ValueError, match=r"flips=dict\(hflip="): TTA(Zones(), "flip", zones())(x)
    assert TTA(Zones(), "shifts", zones())(x).shape == (2, 6, 3)
    assert TTA(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "flip", Ordinal(levels=3))(x).shape == (2, 3), "one level for the whole image stays"


def test_cumulative_levels_are_averaged_as_probabilities_of_each_threshold():
    a,b = torch.tensor([[2., -1.]]),torch.tensor([[-1., -3.]])
    mean = TTA(Table(a, b), "flip", Ordinal(levels=3, cumulative=True))(torch.zeros(1, 3, 4, 4))
    assert torch.allclose(mean.sigmoid(), (a.sigmoid() + b.sigmoid())/2, atol=1e-6)


@pytest.mark.parametrize("name", ["none", "flip", "flips", "d4", "hflip+rot90", "rot90+vflip"])
def test_a_map_comes_back_pixel_by_pixel(name):
    "The model says of each pixel what stands there, so that every view says the same once it is brought back"
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(TTA(nn.Identity(), name, ClassMap(COLOURS.names))(x).softmax(1), x.softmax(1), atol=1e-6)


def test_a_map_of_patches_comes_back_too():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(TTA(nn.AvgPool2d(4), "d4", ClassMap(COLOURS.names))(x).softmax(1), nn.AvgPool2d(4)(x).softmax(1), atol=1e-6)


@pytest.mark.parametrize("name", ["shifts", "five_crop", "crop_tl+hflip"])
def test_what_cannot_be_brought_back_is_refused_for_maps(name):
    with pytest.raises(ValueError, match="cannot be taken back from a map"): TTA(nn.Identity(), name, ClassMap(COLOURS.names))(torch.rand(1, 3, 16, 16))


def test_values_are_averaged_as_they_are():
    a,b = torch.tensor([[3.], [1.]]),torch.tensor([[5.], [0.]])
    assert torch.equal(TTA(Table(a, b), "flip", Value())(torch.zeros(2, 3, 4, 4)), torch.tensor([[4.], [.5]]))


def test_several_tasks_each_by_its_own_rule():
    x = torch.rand(3, 3, 12, 12)
    tasks = dict(zones=zones(hflip=SWAP), whole=COLOURS, pixels=ClassMap(COLOURS.names), light=Value())
    out,plain = TTA(Heads(), "flip", tasks)(x),Heads()(x)
    assert list(out) == list(tasks)
    activation = {k:t.activation for k,t in tasks.items()}
    for k in tasks: assert torch.allclose(activation[k](out[k]), activation[k](plain[k]), atol=1e-6), k
    with pytest.raises(ValueError, match=r"flips=dict\(hflip="): TTA(Heads(), "flip", {**tasks, "zones":zones()})(x)


def test_a_model_without_tasks_is_refused():
    with pytest.raises(ValueError, match="no task"): TTA(nn.Identity(), "flip", Tasks())


@pytest.mark.parametrize("flips", [dict(hflip=[0, 0, 1, 2, 3, 4]), dict(hflip=[1, 0])])
def test_a_wrong_exchange_is_an_error_of_the_task(flips):
    with pytest.raises(ValueError, match="each of 0 to 5"): zones(**flips)


@pytest.mark.parametrize("which,says", [("hflp", "did you mean 'hflip'"), ("five_crops", "did you mean 'five_crop'"), (["identity", "rot9"], "did you mean 'rot90'"),
                                        ("rot90+hflop", "did you mean 'hflip'"), ([], "views is empty")])
def test_an_unknown_view_is_an_error_that_names_the_nearest(which, says):
    with pytest.raises(ValueError, match=says): pick_views(which)


@pytest.mark.parametrize("which", [*view_sets, "rot90", "hflip+rot270", ["identity", "rot180"]])
def test_views_that_turn_are_refused_for_images_that_are_not_square_before_anything_is_shown(which):
    image = torch.zeros(1, 3, 4, 6)
    for size in (None, 4, (4, 4)): check_views(which, size)
    turns = any("rot90" in name or "rot270" in name for name in pick_views(which))
    assert not isinstance(which, str) or turns == any(part in turning_views() for part in which.split("+"))
    if not turns:
        check_views(which, (4, 6))
        for name in pick_views(which): assert apply_view(image, name).shape == image.shape
        return
    with pytest.raises(ValueError, match="these have 4×6 pixels"): check_views(which, (4, 6))
