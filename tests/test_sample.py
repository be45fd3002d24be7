"A batch is its fields by name and, by position, what a training loop expects; what lies on the pixels moves with them"
import pickle

import numpy as np
import pytest
import torch
from fastai.torch_core import to_device
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.data.augment import Draws, Flip, Pipeline, RandomCrop, RandomResizedCrop, Resize, Transform, make_pipeline, make_transform, train_pipeline, transforms
from vitnb.data.sample import Batch, is_map, map_tensors
from vitnb.task import ClassMap, OneClass, Ordinal, Tasks, Value

fast = settings(max_examples=25, deadline=None)

def some(n_inp=1, **more):
    return Batch(dict(image=torch.arange(12.).view(2,1,2,3), other=torch.zeros(2), target=torch.tensor([1,0]), mask=torch.ones(2,1,2,3), **more), n_inp)

# ---- Batch

@pytest.mark.parametrize("n_inp", [1, 2])
def test_inputs_come_first_and_the_target_last(n_inp):
    b = some(n_inp)
    assert len(b) == n_inp + 1 and b[0] is b["image"] and b[-1] is b["target"] and b.inputs == ("image", "other")[:n_inp]
    *x,y = b
    assert y is b.fields["target"] and len(x) == n_inp

def test_a_batch_without_a_target_is_its_inputs():
    b = some().replace(target=None)
    (x,) = b
    assert x is b["image"] and b.get("target") is None and b.get("target", 3) == 3 and "mask" in b.fields

def test_replace_gives_another_batch():
    b = some()
    c = b.replace(target=b["target"] + 1, weight=torch.ones(2))
    assert b["target"].tolist() == [1,0] and c["target"].tolist() == [2,1] == c[1].tolist() and "weight" not in b.fields and c["mask"] is b["mask"]

def test_map_reaches_every_tensor_and_nothing_else():
    b = some(index=np.array([4,5]), group=np.array(["a","b"])).replace(target=dict(zone=torch.ones(2), part=torch.zeros(2)))
    seen = []
    c = b.map(lambda o: seen.append(o) or o + 1)
    assert len(seen) == 5 and c["target"]["part"].tolist() == [1,1] and c["index"] is b["index"] and c["group"] is b["group"] and c.inputs == b.inputs

def test_it_survives_a_process_and_fastais_own_walk():
    b = some(n_inp=2)
    for c in (pickle.loads(pickle.dumps(b)), b.map(torch.clone)):
        assert type(c) is Batch and list(c.fields) == list(b.fields) and c.n_inp == 2 and all(torch.equal(b[k], c[k]) for k in b.fields)
    moved = to_device(some(), torch.device("cpu")) # fastai makes the same type from a list
    assert type(moved) is Batch and torch.equal(moved["target"], torch.tensor([1,0]))

@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("n_inp", [1, 2])
def test_the_tuple_of_a_foreign_loader_keeps_its_parts(n, n_inp):
    parts = tuple(torch.full((2,), float(i)) for i in range(n))
    if n < n_inp: return
    b = Batch.of(parts, n_inp)
    assert tuple(b) == parts and b["image"] is parts[0] and b.get("target") is (parts[n_inp] if n > n_inp else None) and b.inputs[0] == "image" and len(b.inputs) == n_inp
    assert Batch.of(b) is b

def test_mistakes_of_a_batch():
    with pytest.raises(KeyError, match="did you mean 'mask'"): some()["masks"]
    for fields,n in ((dict(target=1, image=2), 1), (dict(image=1), 2), (dict(image=1), 0)):
        with pytest.raises(ValueError, match="inputs"): Batch(fields, n)

def test_nested_tensors():
    o = dict(a=[torch.ones(1), (torch.ones(2), "text")], b=3)
    assert map_tensors(lambda t: t.numel(), o) == dict(a=[1, (2, "text")], b=3)

# ---- what moves with the image

LEVELS = 7
def chart(n, h, w, seed, ragged=False):
    "Images whose pixels say their class, so that a map that moved otherwise shows"
    rng = np.random.default_rng(seed)
    sizes = [(h + i % 3*ragged, w + 2*(i % 2)*ragged) for i in range(n)]
    maps = [torch.from_numpy(rng.integers(0, LEVELS, s)) for s in sizes]
    images = [(m*30).to(torch.uint8).expand(3, -1, -1).contiguous() for m in maps]
    masks = [(m > 0)[None] for m in maps]
    tasks = Tasks(part=ClassMap(tuple(map(str, range(LEVELS))), unknown=255), zone=Ordinal(("left", "right"), levels=4, flips=dict(hflip=(1,0))), kind=OneClass(("a", "b")), age=Value())
    target = dict(part=maps, zone=torch.from_numpy(rng.integers(0, 4, (n,2))), kind=torch.from_numpy(rng.integers(0, 2, n)), age=torch.rand(n))
    sample = dict(image=images, mask=masks, target=target, tasks=tasks)
    if ragged: return sample
    return {**sample, "image":torch.stack(images), "mask":torch.stack(masks), "target":{**target, "part":torch.stack(maps)}}

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

def test_a_transform_that_would_leave_a_map_behind_refuses():
    s = chart(2, 8, 8, 0)
    class Shift(Transform):
        moves = True
        def batch(self, x, draws): return x.roll(1, -1)
    with pytest.raises(ValueError, match="leave mask and target behind"): Shift()(s, Draws(0, 0, range(2)))
    plain = {k:v for k,v in s.items() if k not in ("mask", "target")}
    assert torch.equal(Shift()(plain, None)["image"], s["image"].roll(1, -1))
    with pytest.raises(ValueError, match="RandAugment.*behind"): train_pipeline("advanced", 8, [.5]*3, [.2]*3, s["tasks"])({k:v for k,v in s.items() if k != "tasks"}, Draws(0, 0, range(2)))

def test_added_pixels_need_a_class():
    s = chart(2, 4, 4, 0)
    s["tasks"] = Tasks({**s["tasks"], "part":ClassMap(tuple("0123456"))})
    with pytest.raises(ValueError, match="unknown="): RandomCrop(4, padding=1)(s, Draws(0, 0, range(2)))
    RandomCrop(4, padding=1, mode="reflect")(s, Draws(0, 0, range(2)))

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

# ---- configurations

@pytest.mark.parametrize("name", ["none", "shift", "crop_flip", "basic", "advanced", "imagenet"])
def test_a_recipe_is_rebuilt_from_plain_values(name):
    import json
    p = train_pipeline(name, 8, [.5,.4,.3], [.2,.3,.25])
    q = make_pipeline(json.loads(json.dumps(p.config())))
    x = torch.randint(0, 256, (6,3,16,16), dtype=torch.uint8)
    assert torch.equal(p(x, Draws(1, 2, range(6))), q(x, Draws(1, 2, range(6)))) and q.config() == p.config()

def test_every_transform_of_the_library_is_registered():
    from vitnb.data import augment, companion, cubeaugment, severity
    rooms,bases = (augment, companion, cubeaugment, severity),{"Transform", "Geometric", "Warp", "OnInputs"}
    own = {k for m in rooms for k,v in vars(m).items() if isinstance(v, type) and issubclass(v, Transform) and k[0] != "_"} - bases
    assert own == set(transforms)

def test_what_is_not_registered_is_said():
    class Mine(Transform): pass
    with pytest.raises(ValueError, match="transforms.register"): Mine().config()
    with pytest.raises(ValueError, match="did you mean 'Flip'.*import the module"): make_transform(dict(name="Flipp", p=.5))

def test_a_map_is_what_has_two_dimensions():
    assert is_map(torch.zeros(2,4,4)) and is_map([torch.zeros(4,4)]) and not is_map(torch.zeros(2,6)) and not is_map(torch.zeros(2))
