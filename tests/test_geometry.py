"Pixels that move, against slow references, with all that lies on them"
import pytest
import torch
from data_helpers import chart, pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from vitnb.data import augment as A, geometry
from vitnb.data.draws import Draws
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.data.geometry import scaled_size, Flip, RandomCrop, RandomResizedCrop, Resize
from vitnb.task import ClassMap, Tasks

fast = settings(max_examples=25, deadline=None)

LEVELS = 7

def agrees(s):
    "Whether image, mask and map still say the same of every pixel"
    for x,m,y in zip(s["image"], s["mask"], s["target"]["part"]):
        known = y != 255
        if not torch.equal(x[0][known], (y[known]*30).to(torch.uint8)) or not torch.equal(m[0][known], y[known] > 0): return False
        if (~known).any() and m[0][~known].any(): return False
    return True

@fast
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([Flip(.5), RandomCrop(6), RandomCrop(9, padding=3), RandomCrop(6, 1, "reflect"), Resize(16, interpolation="nearest")]))
def test_image_mask_and_map_share_one_geometry(seed, ragged, transform):
    s = chart(4, 8, 8, seed, ragged)
    out = transform(s, Draws(seed, 1, range(4)))
    if isinstance(transform, Resize): assert out["target"]["part"].shape == (4,16,16) and set(out["target"]["part"].unique().tolist()) <= set(range(LEVELS))
    else: assert agrees(out)
    assert torch.equal(out["target"]["kind"], s["target"]["kind"]) and torch.equal(out["target"]["age"], s["target"]["age"])

@pytest.mark.parametrize("size", [3, 8, 11])
def test_a_resized_crop_takes_the_same_window_of_a_map(size):
    s = chart(5, 12, 10, 0)
    smooth = torch.arange(12)[:,None]*4 + torch.arange(10)*6 # a ramp: the mean of a window of the image is that of the map
    s["image"],s["target"]["part"] = smooth.to(torch.uint8).expand(5,3,-1,-1).contiguous(),smooth.expand(5,-1,-1).contiguous()
    out = RandomResizedCrop(size)(s, Draws(3, 0, range(5)))
    far = (out["image"][:,0].float() - out["target"]["part"].float()).abs()
    assert out["target"]["part"].shape == (5,size,size) and far.max() <= 12 and out["mask"].shape == (5,1,size,size)

def test_zones_change_sides_only_where_the_image_did():
    s = chart(200, 4, 4, 1)
    out = Flip(.5)(s, Draws(5, 0, range(200)))
    flipped = torch.tensor([torch.equal(a.flip(-1), b) and not torch.equal(a, b) for a,b in zip(s["image"], out["image"])])
    assert 60 < flipped.sum() < 140
    assert torch.equal(out["target"]["zone"][flipped], s["target"]["zone"][flipped].flip(1)) and torch.equal(out["target"]["zone"][~flipped], s["target"]["zone"][~flipped])

def test_added_pixels_need_a_class():
    s = chart(2, 4, 4, 0)
    s["tasks"] = Tasks({**s["tasks"], "part":ClassMap(tuple("0123456"))})
    with pytest.raises(ValueError, match="unknown="): RandomCrop(4, padding=1)(s, Draws(0, 0, range(2)))
    RandomCrop(4, padding=1, mode="reflect")(s, Draws(0, 0, range(2)))

@fast
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 4), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9))
def test_crop_is_the_naive_loop(h, w, padding, seed, ch, cw):
    ch,cw,x = min(ch, h+2*padding),min(cw, w+2*padding),pictures(5, h, w, seed)
    out,d = A.RandomCrop((ch,cw), padding)(x, Draws(seed, 0, range(5))),Draws(seed, 0, range(5))
    top,left = d.integers(0, h+2*padding-ch+1),d.integers(0, w+2*padding-cw+1)
    for i in range(5):
        for r in range(ch):
            for c in range(cw):
                y,z = int(top[i])+r-padding,int(left[i])+c-padding
                want = x[i,:,y,z] if 0 <= y < h and 0 <= z < w else torch.zeros(3, dtype=torch.uint8)
                assert torch.equal(out[i,:,r,c], want)

def test_crop_reaches_every_place_evenly():
    x = torch.arange(25, dtype=torch.uint8).view(1,1,5,5).expand(8100, 3, -1, -1)
    corner = A.RandomCrop(3)(x, Draws(0, 0, range(8100)))[:,0,0,0]
    values,counts = corner.unique(return_counts=True)
    assert values.tolist() == [0,1,2,5,6,7,10,11,12] and ((counts-900)**2/900).sum() < 26.1 # 8 degrees of freedom, p = 0.001

def test_flip_mirrors_its_share():
    x = pictures(1, 4, 4).expand(4000, -1, -1, -1)
    for p in (0, .2, 1): assert abs((A.Flip(p)(x, Draws(0, 0, range(4000))) != x).flatten(1).any(1).float().mean() - p) < .03

@fast
@given(st.integers(4, 60), st.integers(4, 60), st.integers(0, 50))
def test_windows_keep_their_promises(h, w, seed):
    hw,scale,ratio = torch.tensor([[h,w]]).expand(30, 2),(.2, .8),(.5, 2.)
    win,found = geometry.random_windows(hw, Draws(seed, 0, range(30)), scale, ratio)
    t,l,wh,ww = win[found].T
    assert (t >= 0).all() and (l >= 0).all() and (t+wh <= h).all() and (l+ww <= w).all() and (wh > 0).all() and (ww > 0).all()
    slack = (wh+ww+1)/2 # both sides are rounded by up to half a pixel
    assert ((wh*ww >= scale[0]*h*w - slack) & (wh*ww <= scale[1]*h*w + slack)).all()
    assert ((ww/wh <= ratio[1]*1.001 + 1/wh*2) & (ww/wh >= ratio[0]/1.001 - 1/wh*2)).all()

@pytest.mark.parametrize("hw", [(4,200), (200,4)])
def test_a_strip_falls_back_to_its_middle(hw):
    x = pictures(3, *hw)
    win = geometry._central_windows(torch.tensor([hw]), (3/4, 4/3))[0].tolist()
    assert sorted(win[2:]) == [4,5] and abs(win[0]*2+win[2]-hw[0]) <= 1 and abs(win[1]*2+win[3]-hw[1]) <= 1
    out = A.RandomResizedCrop(6, scale=(.9,1))(x, Draws(0, 0, range(3)))
    assert torch.equal(out[0], F.resized_crop(x[0], *win, [6,6], antialias=True))


@pytest.mark.parametrize("now", [(40, 60), (60, 40), (50, 50), (7, 90)])
@pytest.mark.parametrize("size", [(16, 24), (24, 16), (20, 20), 20])
def test_a_size_is_just_covered_and_the_shape_kept(now, size):
    "Slow reference: of the two scales that make one side fit, the larger"
    pair = (size, size) if isinstance(size, int) else size
    found = scaled_size(*now, size)
    factor = max(least/side for least,side in zip(pair, now))
    assert all(side >= least for side,least in zip(found, pair)) and any(side == least for side,least in zip(found, pair))
    assert all(abs(side - old*factor) <= 1 for side,old in zip(found, now))


@pytest.mark.parametrize("augment", ["none", "crop_flip", "basic", "advanced", "imagenet", "moderate"])
def test_loaders_give_images_of_any_height_and_width(augment):
    s = load_set("digits", limit=8)
    dls = image_loaders(s, (16, 24), bs=8, augment=augment, device="cpu")
    assert all(tuple(dl.one_batch()[0].shape[2:]) == (16, 24) for dl in dls) and dls.model_kw["img_size"] == (16, 24)
    assert image_loaders(s, [16, 24], bs=8, device="cpu").model_kw["img_size"] == (16, 24)


@pytest.mark.parametrize("kw", [dict(img_size="64"), dict(img_size=(16, 24, 3)), dict(img_size=0), dict(img_size=True), dict(img_size=(16, 2.5)), dict(img_size=16, eval_resize="crop")])
def test_sizes_that_are_none_are_refused(kw):
    with pytest.raises(ValueError, match="must be a side in pixels or .height, width."): image_loaders(load_set("digits", limit=8), bs=8, device="cpu", **kw)
