"Augmentation: every sample its own draws, torchvision's pixels, options that act"

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import RandAugment as TorchvisionRandAugment
from torchvision.transforms.v2 import functional as F

from vitnb.data import augment as A
from vitnb.data.augment import Draws

MEAN,STD = [.5,.4,.3],[.2,.3,.25]
fast = settings(max_examples=25, deadline=None)

def pictures(n=12, h=11, w=9, seed=0):
    "Noise on which most operations show; every third is grey, which is where rounding of colour operations shows"
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n,3,h,w), dtype=torch.uint8, generator=g)
    x[::3] = x[::3,:1]
    return x

TRANSFORMS = [A.Resize(8), A.Resize(13), A.Resize(7, shorter=True), A.Resize(13, interpolation="bicubic"), A.RandomCrop(6), A.RandomCrop((7,5), 3, "reflect"), A.CenterCrop(6),
              A.CenterCrop(16), A.Flip(.5), A.RandomResizedCrop(8), A.RandAugment(2, 9), A.RandAugment(3, 25, interpolation="bilinear"), A.ColorJitter(.4,.4,.4,.2),
              A.Normalize(MEAN, STD)]
ERASE = [A.RandomErasing(.7), A.RandomErasing(.7, value="random")]

# ---- draws

@fast
@given(st.integers(0, 2**40), st.integers(0, 10**4), st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.data())
def test_draws_need_no_neighbours(seed, epoch, index, data):
    rows = data.draw(st.lists(st.integers(0, len(index)-1), min_size=1, max_size=8))
    d,e = Draws(seed, epoch, index, 3),Draws(seed, epoch, np.array(index)[rows], 3)
    for _ in range(3): assert torch.equal(d.uniform()[rows], e.uniform())
    assert torch.equal(d.normal(2, 3)[rows], e.normal(2, 3))
    assert torch.equal(d[rows].uniform(), e.uniform())

def test_draws_differ_in_every_key():
    base = Draws(1, 2, range(50), 0).uniform()
    again = Draws(1, 2, range(50), 0)
    assert torch.equal(again.uniform(), base)
    others = [Draws(0, 2, range(50), 0), Draws(1, 3, range(50), 0), Draws(1, 2, range(50, 100), 0), Draws(1, 2, range(50), 1), again]
    for o in others: assert not (o.uniform() == base).any()

@fast
@given(st.integers(-5, 5), st.integers(1, 12), st.integers(0, 99))
def test_integers_stay_in_range_and_reach_both_ends(lo, n, seed):
    v = Draws(seed, 0, range(2000)).integers(lo, lo+n)
    assert v.min() == lo and v.max() == lo+n-1

def test_integers_are_even():
    counts = Draws(0, 0, range(70_000)).integers(0, 7).bincount()
    assert ((counts - 10_000)**2/10_000).sum() < 22.5 # chi-squared, 6 degrees of freedom, p = 0.001

# ---- a sample's bits depend on the sample alone

@pytest.mark.parametrize("tfm", TRANSFORMS + ERASE, ids=repr)
@pytest.mark.parametrize("hw", [(8,8), (11,9), (9,20)])
def test_batch_composition_changes_nothing(tfm, hw):
    x,idx = pictures(12, *hw),np.arange(100, 112)
    if tfm in ERASE: x = A.Normalize(MEAN, STD)(x, None)
    whole = tfm(x, Draws(5, 3, idx))
    for rows in ([0], [11,2], [3,3,7], list(range(11, -1, -1))): assert torch.equal(tfm(x[rows], Draws(5, 3, idx[rows])), whole[rows]), rows

@pytest.mark.parametrize("tfm", [t for t in TRANSFORMS if not isinstance(t, (A.RandAugment, A.Normalize))], ids=repr)
def test_a_list_gives_what_a_tensor_gives(tfm):
    x = pictures()
    out = tfm(list(x), Draws(5, 3, range(12)))
    assert torch.equal(torch.stack(list(out)), tfm(x, Draws(5, 3, range(12))))

@pytest.mark.parametrize("name", ["none", "shift", "crop_flip", "basic", "advanced", "imagenet"])
def test_recipes_on_pictures_of_any_sizes(name):
    sizes = [(20,30), (33,17), (20,30), (24,24), (16,40)]
    x,p = [pictures(1, *s, seed=i)[0] for i,s in enumerate(sizes)],A.train_pipeline(name, 16, MEAN, STD)
    whole = p(x, Draws(0, 0, range(5)))
    assert whole.shape == (5,3,16,16) and whole.dtype == torch.float32 and type(whole) is torch.Tensor
    for rows in ([0,2], [4,1], [3]): assert torch.equal(p([x[i] for i in rows], Draws(0, 0, rows)), whole[rows]) # [0,2] are of one size
    made,done = p.host(x, Draws(0, 0, range(5)))
    assert torch.equal(p(made, Draws(0, 0, range(5)), start=done), whole)

@pytest.mark.parametrize("name", ["shift", "crop_flip", "basic", "advanced", "imagenet"])
def test_samples_of_a_batch_draw_apart(name):
    x,p = pictures(1, 16, 16).expand(64, -1, -1, -1),A.train_pipeline(name, 16, MEAN, STD)
    kinds = len(p(x, Draws(0, 0, range(64))).flatten(1).unique(dim=0))
    assert kinds >= dict(basic=2, shift=9).get(name, 40)
    assert not torch.equal(p(x, Draws(0, 0, range(64))), p(x, Draws(0, 1, range(64))))

def test_nothing_touches_global_generators_or_the_input():
    x = pictures(12, 16, 16)
    kept,state,np_state = x.clone(),torch.get_rng_state(),np.random.get_state()[1].copy()
    for name in A.augments: A.train_pipeline(name, 16, MEAN, STD)(x, Draws(0, 0, range(12)))
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == np_state).all() and torch.equal(x, kept)

@pytest.mark.parametrize("threads", [1, 2])
def test_thread_count_changes_nothing(threads):
    x,p,before = pictures(12, 65, 63),A.train_pipeline("advanced", 64, MEAN, STD),torch.get_num_threads()
    try:
        torch.set_num_threads(3 - threads)
        first = p(x, Draws(0, 0, range(12)))
        torch.set_num_threads(threads)
        assert torch.equal(p(x, Draws(0, 0, range(12))), first)
    finally: torch.set_num_threads(before)

def test_every_transform_follows_its_batch_to_another_device():
    x = pictures(12, 16, 16).to("meta") # has shapes and a device but no values: a tensor left on the CPU would be an error
    for tfm in TRANSFORMS:
        if not isinstance(tfm, A.RandAugment): assert tfm(x, Draws(0, 0, range(12))).device.type == "meta"
    for tfm in ERASE: assert tfm(x.float(), Draws(0, 0, range(12))).device.type == "meta"

# ---- against slow references and torchvision

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

@pytest.mark.parametrize("bins", [11, 31])
def test_magnitudes_are_torchvisions(bins):
    space = TorchvisionRandAugment._AUGMENTATION_SPACE
    assert list(space) == list(A._ops)
    for op,(f,signed) in space.items():
        assert A._ops[op][1] == signed
        want = f(bins, 20, 30)
        for m in range(bins): assert A.op_magnitude(op, m, (20,30), bins) == (float(want[m]) if want is not None else 0)

@pytest.mark.parametrize("magnitude,interpolation", [(0, "nearest"), (9, "nearest"), (30, "nearest"), (9, "bilinear")])
def test_randaugment_is_torchvision_one_sample_at_a_time(magnitude, interpolation):
    x,tfm,theirs = pictures(120, 17, 14),A.RandAugment(2, magnitude, interpolation=interpolation),TorchvisionRandAugment(2, magnitude, interpolation=interpolation)
    got,d,met = tfm(x, Draws(3, 0, range(120))),Draws(3, 0, range(120)),set()
    rounds = [tfm.choose(d) for _ in range(2)]
    for i,o in enumerate(x):
        for op,sign in rounds:
            name,(f,signed) = list(theirs._AUGMENTATION_SPACE.items())[op[i]]
            m = f(31, 17, 14)
            m = 0. if m is None else float(m[magnitude])*(int(sign[i]) if signed else 1)
            o = theirs._apply_image_or_video_transform(o, name, m, theirs.interpolation, theirs._fill)
            met.add((name, int(sign[i]) if signed else 1))
        assert torch.equal(got[i], o), i
    assert len(met) == 23 # 14 operations, 9 of them with two signs

def test_color_jitter_is_torchvision_and_zero_is_nothing():
    x,d = pictures(20),Draws(1, 0, range(20))
    assert torch.equal(A.ColorJitter(0, 0, 0, 0)(x, d), x)
    got,u = A.ColorJitter(.5, 0, 0)(x, Draws(1, 0, range(20))),Draws(1, 0, range(20)).uniform(.5, 1.5)
    for i,o in enumerate(x): assert torch.equal(got[i], F.adjust_brightness(o, float(u[i])))

@fast
@given(st.integers(4, 60), st.integers(4, 60), st.integers(0, 50))
def test_windows_keep_their_promises(h, w, seed):
    hw,scale,ratio = torch.tensor([[h,w]]).expand(30, 2),(.2, .8),(.5, 2.)
    win,found = A._windows(hw, Draws(seed, 0, range(30)), scale, ratio)
    t,l,wh,ww = win[found].T
    assert (t >= 0).all() and (l >= 0).all() and (t+wh <= h).all() and (l+ww <= w).all() and (wh > 0).all() and (ww > 0).all()
    slack = (wh+ww+1)/2 # both sides are rounded by up to half a pixel
    assert ((wh*ww >= scale[0]*h*w - slack) & (wh*ww <= scale[1]*h*w + slack)).all()
    assert ((ww/wh <= ratio[1]*1.001 + 1/wh*2) & (ww/wh >= ratio[0]/1.001 - 1/wh*2)).all()

@pytest.mark.parametrize("hw", [(4,200), (200,4)])
def test_a_strip_falls_back_to_its_middle(hw):
    x = pictures(3, *hw)
    win = A._central(torch.tensor([hw]), (3/4, 4/3))[0].tolist()
    assert sorted(win[2:]) == [4,5] and abs(win[0]*2+win[2]-hw[0]) <= 1 and abs(win[1]*2+win[3]-hw[1]) <= 1
    out = A.RandomResizedCrop(6, scale=(.9,1))(x, Draws(0, 0, range(3)))
    assert torch.equal(out[0], F.resized_crop(x[0], *win, [6,6], antialias=True))

@fast
@given(st.lists(st.floats(.01, .99), min_size=6, max_size=6))
def test_normalize_and_undo(v):
    x = pictures()
    norm = A.Normalize(v[:3], v[3:])
    y = norm(x, None)
    assert torch.allclose(y, F.normalize(x/255, v[:3], v[3:]), rtol=1e-4, atol=1e-4) and y.is_contiguous()
    assert torch.equal(norm.undo(y), x)

def test_erasing_share_area_and_value():
    x = torch.ones(3000, 3, 20, 24)
    gone = A.RandomErasing(.25, scale=(.1,.2))(x, Draws(0, 0, range(3000))) == 0
    hit,area = gone.flatten(1).any(1),gone[:,0].flatten(1).float().mean(1)
    assert abs(hit.float().mean() - .25) < .03 and .07 < area[hit].min() and area[hit].max() < .23
    noise = A.RandomErasing(1, value="random")(x, Draws(0, 0, range(3000)))
    values = noise[noise != 1]
    assert abs(values.mean()) < .01 and abs(values.std() - 1) < .01
    assert A.RandomErasing(1, value=7.)(x[:9], Draws(0, 0, range(9))).max() == 7

def test_normal_draws_are_normal():
    z = Draws(0, 0, range(400)).normal(3, 10, 10).double()
    assert abs(z.mean()) < .01 and abs(z.std() - 1) < .01 and abs((z**4).mean() - 3) < .1 and torch.isfinite(z).all()

def test_evaluation_is_the_middle_at_the_training_scale():
    x = pictures(2, 40, 60)
    out = A.eval_pipeline(28, MEAN, STD, resize=32)(x, Draws(0, 0, range(2)))
    want = F.center_crop(F.resize(x, [32], antialias=True), [28,28])
    assert torch.equal(out, A.Normalize(MEAN, STD)(want, None))
    assert torch.equal(out, A.eval_pipeline(28, MEAN, STD, resize=32)(x, Draws(9, 9, range(7, 9))))
    assert round(224*A.augment_ratio["advanced"]) == 256

# ---- every option acts

OPTIONS = [("shift", "padding", 0), ("crop_flip", "padding", 0), ("crop_flip", "flip", 0.), ("basic", "flip", 1.), ("advanced", "ratio", 1.5), ("advanced", "flip", 0.), ("advanced", "num_ops", 0),
           ("advanced", "magnitude", 25), ("advanced", "erase", 1.), ("imagenet", "scale", (.5,1.)), ("imagenet", "flip", 0.), ("imagenet", "jitter", .4), ("imagenet", "erase", 1.),
           *[(n, o, v) for n in ("light", "mild", "moderate", "aggressive", "strong") for o,v in (("scale", (.3,.4)), ("flip", 0.))],
           *[(n, o, v) for n in ("moderate", "aggressive", "strong") for o,v in (("degrees", 5.), ("blur", 1.), ("hue", .2), ("color", False))],
           *[(n, o, v) for n in ("aggressive", "strong") for o,v in (("distort", 0.), ("num_ops", 0), ("magnitude", 25), ("cutout", 1.))]]

@pytest.mark.parametrize("name,option,value", OPTIONS)
def test_recipe_options_act(name, option, value):
    x,d = pictures(32, 20, 20),Draws(0, 0, range(32))
    assert not torch.equal(A.train_pipeline(name, 16, MEAN, STD)(x, d), A.train_pipeline(name, 16, MEAN, STD, **{option:value})(x, d))

def test_all_recipe_options_are_covered():
    import inspect
    have = {(n, o) for n,f in A.augments.items() for o in list(inspect.signature(f).parameters)[1:]}
    assert have == {(n, o) for n,o,_ in OPTIONS}

CHANGES = [(A.Resize(8), A.Resize(8, interpolation="nearest")), (A.RandomCrop(8, 2), A.RandomCrop(8, 2, "reflect")), (A.RandomCrop(8, 2), A.RandomCrop(8, 2, "replicate")),
           (A.RandomResizedCrop(8), A.RandomResizedCrop(8, ratio=(1,1))), (A.RandomResizedCrop(8), A.RandomResizedCrop(8, interpolation="bicubic")),
           (A.RandAugment(2, 9), A.RandAugment(2, 9, bins=11)), (A.RandAugment(2, 9), A.RandAugment(2, 9, interpolation="bilinear")),
           (A.ColorJitter(), A.ColorJitter(.1)), (A.ColorJitter(), A.ColorJitter(contrast=.1)), (A.ColorJitter(), A.ColorJitter(saturation=.1)), (A.ColorJitter(), A.ColorJitter(hue=.3)),
           (A.RandomErasing(1), A.RandomErasing(1, scale=(.5,.5))), (A.RandomErasing(1), A.RandomErasing(1, ratio=(1,1))), (A.RandomErasing(1), A.RandomErasing(1, value=.5))]

@pytest.mark.parametrize("one,other", CHANGES, ids=lambda o: repr(o))
def test_transform_options_act(one, other):
    x = pictures(32, 12, 12)
    if isinstance(one, A.RandomErasing): x = A.Normalize(MEAN, STD)(x, None)
    assert not torch.equal(one(x, Draws(0, 0, range(32))), other(x, Draws(0, 0, range(32))))

# ---- mistakes

BAD = [(lambda: A.Resize(0), "at least 1 pixel"), (lambda: A.Resize((4,5), shorter=True), "one number"), (lambda: A.Resize(4, interpolation="bilinar"), "did you mean 'bilinear'"),
       (lambda: A.RandomCrop(4, -1), "0 or more"), (lambda: A.RandomCrop(4, 1, "edge"), "unknown mode"), (lambda: A.Flip(1.5), "between 0 and 1"), (lambda: A.RandAugment(2, 31), "bins-1 = 30"),
       (lambda: A.RandAugment(-1), "0 or more"), (lambda: A.RandomResizedCrop(4, scale=(1, .5)), "smaller first"), (lambda: A.RandomErasing(-.1), "between 0 and 1"),
       (lambda: A.RandomErasing(.1, value="noise"), "unknown value"), (lambda: A.Normalize([0,0], [1,1,1]), "as many numbers each"), (lambda: A.Normalize([0]*3, [1,0,1]), "above 0"),
       (lambda: A.ColorJitter(hue=.6), "hue at most 0.5"), (lambda: A.RandomCrop(9)(pictures(2, 8, 8), Draws(0, 0, range(2))), "put Resize(9, shorter=True) before it"),
       (lambda: A.RandAugment()([pictures()[0]], Draws(0, 0, [0])), "different sizes"), (lambda: A.Pipeline([A.Flip()])([pictures()[0]], Draws(0, 0, [0])), "add RandomCrop"),
       (lambda: A.train_pipeline("basc", 8, MEAN, STD), "did you mean 'basic'"), (lambda: A.train_pipeline("none", 8, MEAN, STD, flip=1), "has no option 'flip'")]

@pytest.mark.parametrize("call,says", BAD, ids=[o for _,o in BAD])
def test_mistakes_are_explained(call, says):
    with pytest.raises(ValueError) as e: call()
    assert says in str(e.value)
