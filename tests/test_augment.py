"Augmentation: every sample its own draws, torchvision's pixels, options that act"
import json

import numpy as np
import pytest
import torch
from data_helpers import pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from vitnb.data import augment as A
from vitnb.data.augment import train_pipeline
from vitnb.data.draws import Draws
from vitnb.data.transform import make_pipeline

MEAN,STD = [.5,.4,.3],[.2,.3,.25]

fast = settings(max_examples=25, deadline=None)

TRANSFORMS = [A.Resize(8), A.Resize(13), A.Resize(7, shorter=True), A.Resize(13, interpolation="bicubic"), A.RandomCrop(6), A.RandomCrop((7,5), 3, "reflect"), A.CenterCrop(6),
              A.CenterCrop(16), A.Flip(.5), A.RandomResizedCrop(8), A.RandAugment(2, 9), A.RandAugment(3, 25, interpolation="bilinear"), A.ColorJitter(.4,.4,.4,.2),
              A.Normalize(MEAN, STD)]

ERASE = [A.RandomErasing(.7), A.RandomErasing(.7, value="random")]

OPTIONS = [("shift", "padding", 0), ("crop_flip", "padding", 0), ("crop_flip", "flip", 0.), ("basic", "flip", 1.), ("advanced", "ratio", 1.5), ("advanced", "flip", 0.), ("advanced", "num_ops", 0),
           ("advanced", "magnitude", 25), ("advanced", "erase", 1.), ("imagenet", "scale", (.5,1.)), ("imagenet", "flip", 0.), ("imagenet", "jitter", .4), ("imagenet", "erase", 1.),
           *[(n, o, v) for n in ("light", "mild", "moderate", "aggressive", "strong") for o,v in (("scale", (.3,.4)), ("flip", 0.))],
           *[(n, o, v) for n in ("moderate", "aggressive", "strong") for o,v in (("degrees", 5.), ("blur", 1.), ("hue", .2), ("color", False))],
           *[(n, o, v) for n in ("aggressive", "strong") for o,v in (("distort", 0.), ("num_ops", 0), ("magnitude", 25), ("cutout", 1.))],
           *[("simclr", o, v) for o,v in (("scale", (.3,.4)), ("flip", 0.), ("jitter", .2), ("jitter_p", 0.), ("gray", 1.), ("blur", 1.), ("sigma", (3.,4.)), ("color", False))]]

CHANGES = [(A.Resize(8), A.Resize(8, interpolation="nearest")), (A.RandomCrop(8, 2), A.RandomCrop(8, 2, "reflect")), (A.RandomCrop(8, 2), A.RandomCrop(8, 2, "replicate")),
           (A.RandomResizedCrop(8), A.RandomResizedCrop(8, ratio=(1,1))), (A.RandomResizedCrop(8), A.RandomResizedCrop(8, interpolation="bicubic")),
           (A.RandAugment(2, 9), A.RandAugment(2, 9, bins=11)), (A.RandAugment(2, 9), A.RandAugment(2, 9, interpolation="bilinear")),
           (A.ColorJitter(), A.ColorJitter(.1)), (A.ColorJitter(), A.ColorJitter(contrast=.1)), (A.ColorJitter(), A.ColorJitter(saturation=.1)), (A.ColorJitter(), A.ColorJitter(hue=.3)),
           (A.RandomErasing(1), A.RandomErasing(1, scale=(.5,.5))), (A.RandomErasing(1), A.RandomErasing(1, ratio=(1,1))), (A.RandomErasing(1), A.RandomErasing(1, value=.5))]

BAD = [(lambda: A.Resize(0), "at least 1 pixel"), (lambda: A.Resize(4, interpolation="bilinar"), "did you mean 'bilinear'"),
       (lambda: A.RandomCrop(4, -1), "0 or more"), (lambda: A.RandomCrop(4, 1, "edge"), "unknown mode"), (lambda: A.Flip(1.5), "between 0 and 1"), (lambda: A.RandAugment(2, 31), "bins-1 = 30"),
       (lambda: A.RandAugment(-1), "0 or more"), (lambda: A.RandomResizedCrop(4, scale=(1, .5)), "smaller first"), (lambda: A.RandomErasing(-.1), "between 0 and 1"),
       (lambda: A.RandomErasing(.1, value="noise"), "unknown value"), (lambda: A.Normalize([0,0], [1,1,1]), "as many numbers each"), (lambda: A.Normalize([0]*3, [1,0,1]), "above 0"),
       (lambda: A.ColorJitter(hue=.6), "hue at most 0.5"), (lambda: A.RandomCrop(9)(pictures(2, 8, 8), Draws(0, 0, range(2))), "put Resize(9, shorter=True) before it"),
       (lambda: A.RandAugment()([pictures()[0]], Draws(0, 0, [0])), "different sizes"), (lambda: A.Pipeline([A.Flip()])([pictures()[0]], Draws(0, 0, [0])), "add RandomCrop"),
       (lambda: A.train_pipeline("basc", 8, MEAN, STD), "did you mean 'basic'"), (lambda: A.train_pipeline("none", 8, MEAN, STD, flip=1), "has no option 'flip'")]

@pytest.mark.parametrize("channels,dtype,top", [(1, torch.uint8, 255), (2, torch.int32, 65535), (5, torch.float32, 1), (12, torch.int16, 4000)])
@pytest.mark.parametrize("name", ["none", "shift", "crop_flip", "basic", "imagenet"])
def test_recipes_on_any_channels_and_depth(channels, dtype, top, name):
    x = (torch.rand(6, channels, 12, 12)*top).to(dtype)
    kept = x.clone()
    p = train_pipeline(name, 8, [top/2]*channels, [top/4]*channels, white=1.)
    y = p(x, Draws(0, 0, range(6)))
    assert y.shape == (6,channels,8,8) and y.dtype == torch.float32 and y.abs().max() <= 2.01 and torch.equal(x, kept)

def test_colour_operations_and_statistics_name_what_they_met():
    x = torch.zeros(2,5,8,8, dtype=torch.uint8)
    for augment in ("advanced", "imagenet"):
        options = dict(jitter=.4) if augment == "imagenet" else {}
        with pytest.raises(ValueError, match="3 channels, and these have 5 of uint8"): train_pipeline(augment, 8, [0]*5, [1]*5, **options)(x, Draws(0, 0, range(2)))
    with pytest.raises(ValueError, match="5 channels met the statistics of 3"): train_pipeline("none", 8, [0]*3, [1]*3)(x, Draws(0, 0, range(2)))

@pytest.mark.parametrize("name", ["none", "shift", "crop_flip", "basic", "advanced", "imagenet"])
def test_a_recipe_is_rebuilt_from_plain_values(name):
    p = train_pipeline(name, 8, [.5,.4,.3], [.2,.3,.25])
    q = make_pipeline(json.loads(json.dumps(p.config())))
    x = torch.randint(0, 256, (6,3,16,16), dtype=torch.uint8)
    assert torch.equal(p(x, Draws(1, 2, range(6))), q(x, Draws(1, 2, range(6)))) and q.config() == p.config()

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

def test_evaluation_is_the_middle_at_the_training_scale():
    x = pictures(2, 40, 60)
    out = A.eval_pipeline(28, MEAN, STD, resize=32)(x, Draws(0, 0, range(2)))
    want = F.center_crop(F.resize(x, [32], antialias=True), [28,28])
    assert torch.equal(out, A.Normalize(MEAN, STD)(want, None))
    assert torch.equal(out, A.eval_pipeline(28, MEAN, STD, resize=32)(x, Draws(9, 9, range(7, 9))))
    assert round(224*A.augment_ratio["advanced"]) == 256

@pytest.mark.parametrize("name,option,value", OPTIONS)
def test_recipe_options_act(name, option, value):
    x,d = pictures(32, 20, 20),Draws(0, 0, range(32))
    assert not torch.equal(A.train_pipeline(name, 16, MEAN, STD)(x, d), A.train_pipeline(name, 16, MEAN, STD, **{option:value})(x, d))

def test_all_recipe_options_are_covered():
    "Those of films are in test_filmaugment"
    import inspect
    have = {(n, o) for n,f in A.augments.items() if n != "film" for o in list(inspect.signature(f).parameters)[1:]}
    assert have == {(n, o) for n,o,_ in OPTIONS}

@pytest.mark.parametrize("one,other", CHANGES, ids=lambda o: repr(o))
def test_transform_options_act(one, other):
    x = pictures(32, 12, 12)
    if isinstance(one, A.RandomErasing): x = A.Normalize(MEAN, STD)(x, None)
    assert not torch.equal(one(x, Draws(0, 0, range(32))), other(x, Draws(0, 0, range(32))))

@pytest.mark.parametrize("call,says", BAD, ids=[o for _,o in BAD])
def test_mistakes_are_explained(call, says):
    with pytest.raises(ValueError) as e: call()
    assert says in str(e.value)
