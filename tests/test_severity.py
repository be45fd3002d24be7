"The guide's three severities: its table, and what moves together"
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torchvision.transforms.v2 import InterpolationMode, functional as F

from vitnb.data.augment import augments, train_pipeline
from vitnb.data.draws import Draws
from vitnb.data.randaugment import op_magnitude
from vitnb.data.transform import Pipeline, make_pipeline, transforms
from vitnb.data.severity import (SEVERITIES, Cutout, FieldRandAugment, GaussianBlur, GridDistortion, RandomRotation, RGBJitter, affine_places,
    stretched_axis, turn_matrices, warp)
from vitnb.task import ClassMap

N = 6


def draws(epoch=0, n=N): return Draws(5, epoch, np.arange(n))


def images(channels=3, size=32, n=N, dtype=torch.uint8, seed=0):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(0, 256, (n,channels,size//4,size//4))).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return x.to(dtype)


def names(severity, **kw): return [o.__name__ if isinstance(o, type) else type(o).__name__ for o in augments[severity](64, **kw)]


def test_each_severity_has_the_operations_of_the_guide_s_table():
    crop,moderate = ["RandomResizedCrop", "Flip"],["RandomRotation", "RGBJitter", "GaussianBlur"]
    assert names("light") == crop and sorted(names("moderate")) == sorted(crop + moderate)
    added = ["FieldRandAugment", "Cutout", "GridDistortion"]
    assert sorted(names("aggressive")) == sorted(crop + moderate + added + ["Normalize"]) and SEVERITIES == ("light", "moderate", "aggressive")


def test_the_strengths_are_those_of_the_guide_s_code_with_crops_of_at_most_the_image():
    found = {k:{type(o).__name__:o for o in augments[k](64) if not isinstance(o, type)} for k in SEVERITIES}
    assert [found[k]["RandomResizedCrop"].scale for k in SEVERITIES] == [(.8,1.), (.7,1.), (.6,1.)]
    assert [found[k]["RandomRotation"].degrees for k in SEVERITIES[1:]] == [25., 35.]
    assert [found[k]["GaussianBlur"].p for k in SEVERITIES[1:]] == [.25, .3] and found["aggressive"]["Cutout"].p == .2
    assert {found[k]["Flip"].p for k in SEVERITIES} == {.5} and found["moderate"]["GaussianBlur"].sigma == (.1, 1.5)


def test_the_guide_s_other_names_mean_the_same():
    assert augments["mild"] is augments["light"] and augments["strong"] is augments["aggressive"]


@pytest.mark.parametrize("name", ["agressive", "medium", ""])
def test_an_unknown_severity_is_an_error_and_not_moderate(name):
    with pytest.raises(ValueError, match="unknown augment"): train_pipeline(name, 32, [.5]*3, [.5]*3)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_each_sample_has_its_own_draws_and_they_can_be_computed_again(severity):
    x = images(n=1).repeat(N,1,1,1)
    pipeline = train_pipeline(severity, 32, [.5]*3, [.5]*3)
    y = pipeline(x, draws())
    assert len({o.numpy().tobytes() for o in y}) == N # the guide's own code gives all of them one draw
    assert torch.equal(y, pipeline(x, draws())) and not torch.equal(y, pipeline(x, draws(1)))
    alone = torch.cat([pipeline(x[[i]], Draws(5, 0, [i])) for i in range(N)])
    assert torch.allclose(y, alone, atol=1e-5)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_image_and_spectral_image_move_together(severity, dtype):
    kw = {} if severity == "light" else dict(color=False)
    x = images(5, dtype=dtype)
    steps = [o for o in augments[severity](32, **kw) if not isinstance(o, type) and type(o).__name__ != "Cutout"]
    out = Pipeline(steps)(dict(image=x, spectral=x[:,1:3].clone()), draws())
    assert torch.equal(out["spectral"], out["image"][:,1:3]) and not torch.equal(out["image"], x) and out["image"].dtype == dtype


@pytest.mark.parametrize("t,fills", [(RandomRotation(90), True), (GridDistortion(p=1.), False), (FieldRandAugment(1, color=False), True)])
def test_a_mask_and_a_label_map_move_along(t, fills):
    level = (images(1, 32)[:,0] // 64).long().repeat_interleave(2, 1).repeat_interleave(2, 2)
    sample = dict(image=level[:,None].float(), mask=torch.ones(N,1,64,64, dtype=torch.bool), target=level)
    out = Pipeline([t], ClassMap(tuple("abcd"), unknown=-100))(sample, draws())
    image,inside = out["image"][:,0],out["target"] >= 0
    flat = ((image - image.round()).abs() < 1e-4) & inside # where equal values were averaged
    assert flat.float().mean() > .3 and (image[flat].round().long() == out["target"][flat]).float().mean() > .98
    assert torch.equal(out["mask"][:,0], inside) and (out["target"] == -100).any() == fills and not torch.equal(out["target"], level)


def test_a_map_without_a_mark_for_unknown_cannot_be_turned():
    sample = dict(image=images(), target=torch.zeros(N,32,32, dtype=torch.long))
    with pytest.raises(ValueError, match="unknown"): Pipeline([RandomRotation(45)], ClassMap(("a","b")))(sample, draws())


@pytest.mark.parametrize("degrees", [-35., 12., 90.])
def test_a_rotation_is_torchvision_s(degrees):
    x = torch.rand(2,3,33,33)
    hit = torch.tensor([True, False])
    y = warp(x, *affine_places(hit, turn_matrices(torch.full((2,), degrees)), (33,33), x.device))
    want = F.rotate(x[0], degrees, InterpolationMode.BILINEAR)
    assert (y[0] - want)[:,8:-8,8:-8].abs().max() < 1e-4 and torch.equal(y[1], x[1])


def test_a_quarter_turn_of_an_oblong_image_keeps_pixels_square():
    x = torch.zeros(1,1,20,40)
    x[...,10,:] = 1 # a line through the middle
    y = warp(x, *affine_places(torch.tensor([True]), turn_matrices(torch.tensor([90.])), (20,40), x.device))
    assert y[0,0].sum(0).argmax() in (19,20) and y[0,0].sum() > 15 # it stands upright now


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(.5, 1.5), min_size=1, max_size=7), st.integers(2, 70))
def test_a_stretched_axis_never_folds_and_agrees_with_interpolation(widths, n):
    w = torch.tensor([widths], dtype=torch.float64)
    got = stretched_axis(w, n)[0].numpy()
    lines = np.concatenate([[0], np.cumsum(widths)/np.sum(widths)])
    want = 2*np.interp((np.arange(n) + .5)/n, np.linspace(0, 1, len(lines)), lines) - 1
    assert np.allclose(got, want, atol=1e-6) and (np.diff(got) > 0).all() and abs(got).max() < 1


def test_a_grid_distortion_without_limit_changes_nothing_and_its_share_is_p():
    x = images(dtype=torch.float32, n=400, size=8)
    d = Draws(0, 0, np.arange(400))
    assert torch.allclose(GridDistortion(limit=0., p=1.)(x, d), x, atol=1e-3)
    moved = (GridDistortion(p=.3)(x, d.at(1)) != x).flatten(1).any(1).float().mean()
    assert .2 < moved < .4


def test_blur_is_torchvision_s_with_a_width_for_each_sample():
    x = torch.rand(N,4,32,32)
    y = GaussianBlur(1., (.5,1.5))(x, draws())
    sigma = draws()
    sigma.uniform() # which are blurred
    for a,b,s in zip(x, y, sigma.uniform(.5, 1.5).tolist()): assert torch.allclose(b, F.gaussian_blur(a, [11,11], [s,s]), atol=1e-5)
    assert torch.allclose(GaussianBlur(1.)(torch.full((2,1,4,4), 7.), draws(n=2)), torch.tensor(7.))


def test_cutout_hides_one_rectangle_in_both_images_alike():
    d = Draws(1, 0, np.arange(600))
    x = torch.ones(600,3,40,40)
    out = Cutout(p=.5)(dict(image=x, spectral=2*x[:,:2]), d)
    hidden = out["image"][:,0] == 0
    assert torch.equal(hidden, out["spectral"][:,1] == 0) and torch.equal(hidden, out["image"][:,2] == 0)
    hit = hidden.flatten(1).any(1)
    share = hidden[hit].float().mean((1,2))
    rows,columns = hidden.any(2).sum(1),hidden.any(1).sum(1)
    assert .42 < hit.float().mean() < .56 and share.max() < .14 and (rows*columns == hidden.sum((1,2))).all()


def test_cutout_before_normalisation_is_refused():
    with pytest.raises(ValueError, match="after Normalize"): Cutout(p=1.)(images(), draws())


def test_cutout_writes_the_mean_of_the_set_and_not_black():
    x = torch.full((50,3,16,16), 200, dtype=torch.uint8)
    y = train_pipeline("aggressive", 16, [.5]*3, [.5]*3, num_ops=0, distort=0., degrees=0., blur=0., cutout=1., hue=0.)(x, Draws(0, 0, np.arange(50)))
    assert (y == 0).flatten(1).any(1).float().mean() > .8


@pytest.mark.parametrize("severity", SEVERITIES[1:])
def test_colours_change_in_rgb_only(severity):
    x = images(5)
    colors = [o for o in augments[severity](32, **(dict(num_ops=4) if severity == "aggressive" else {})) if isinstance(o, (RGBJitter, FieldRandAugment))]
    for t in colors:
        out = t(dict(image=x, spectral=x[:,3:].float(), tasks={}), draws().at(3))
        assert (out["spectral"] - out["image"][:,3:]).abs().max() <= 2 # rounding to 8 bits after each of four operations
        assert not torch.equal(out["image"][:,:3], x[:,:3])
    jittered = RGBJitter()(x, draws())
    assert torch.equal(jittered[:,3:], x[:,3:])


@pytest.mark.parametrize("x", [images(1), images(4, dtype=torch.float32)])
@pytest.mark.parametrize("severity", SEVERITIES[1:])
def test_images_that_are_not_rgb_go_through_without_colours_and_are_refused_with_them(x, severity):
    c = x.shape[1]
    with pytest.raises(ValueError, match="color=False"): train_pipeline(severity, 32, [.5]*c, [.5]*c)(x, draws())
    assert train_pipeline(severity, 32, [.5]*c, [.5]*c, color=False)(x, draws()).shape == x.shape


def test_jitter_changes_a_share_of_the_samples():
    x = images(n=200, size=8)
    changed = (RGBJitter(p=.4)(x, Draws(0, 0, np.arange(200))) != x).flatten(1).any(1).float().mean()
    assert .3 < changed < .5


def test_colour_operations_of_randaugment_are_torchvision_s():
    change = dict(Brightness=lambda x,m: F.adjust_brightness(x, 1+m), Color=lambda x,m: F.adjust_saturation(x, 1+m), Contrast=lambda x,m: F.adjust_contrast(x, 1+m),
        Sharpness=lambda x,m: F.adjust_sharpness(x, 1+m), Posterize=lambda x,m: F.posterize(x, int(abs(m))), Solarize=lambda x,m: F.solarize(x, 255*abs(m)),
        AutoContrast=lambda x,m: F.autocontrast(x), Equalize=lambda x,m: F.equalize(x), Identity=lambda x,m: x)
    order = ["Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *list(change)[:-1]]
    x,d = images(n=80),Draws(2, 0, np.arange(80))
    y = FieldRandAugment(1)(x, d)
    again = Draws(2, 0, np.arange(80))
    op,minus = again.integers(0, 14),again.uniform() < .5
    checked = set()
    for i,k in enumerate(op.tolist()):
        if order[k] not in change: continue
        m = op_magnitude(order[k], 9, (32,32))*(-1 if minus[i] else 1)
        assert torch.equal(y[i], change[order[k]](x[i], m)), order[k]
        checked.add(order[k])
    assert len(checked) >= 7


@pytest.mark.parametrize("right,down", [(3,0), (0,-2), (5,4)])
def test_matrices_are_in_pixels(right, down):
    x = torch.rand(1,2,12,20)
    plan = affine_places(torch.tensor([True]), torch.tensor([[[1.,0,right],[0,1,down]]]), (12,20), x.device)
    want = torch.zeros_like(x)
    for i in range(12):
        for j in range(20):
            if 0 <= i+down < 12 and 0 <= j+right < 20: want[...,i,j] = x[...,i+down,j+right]
    assert torch.allclose(warp(x, *plan), want, atol=1e-4)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_configuration_makes_the_same_pipeline(severity):
    pipeline = train_pipeline(severity, 32, [.5]*3, [.5]*3)
    again = make_pipeline(pipeline.config())
    assert repr(again) == repr(pipeline) and torch.equal(again(images(), draws()), pipeline(images(), draws()))


@pytest.mark.parametrize("make", [lambda: RandomRotation(200), lambda: RandomRotation(p=2), lambda: GridDistortion(limit=1.), lambda: GridDistortion(steps=0),
    lambda: Cutout(scale=(.5,.1)), lambda: Cutout(ratio=(0,1)), lambda: GaussianBlur(sigma=(0,1)), lambda: FieldRandAugment(magnitude=31), lambda: RGBJitter(p=-1)])
def test_settings_that_mean_nothing_are_refused(make):
    with pytest.raises(ValueError): make()


@pytest.mark.parametrize("t", [RandomRotation(), GridDistortion(), GaussianBlur(), Cutout()])
def test_images_of_different_sizes_are_refused_by_name(t):
    with pytest.raises(ValueError, match="different sizes"): t([torch.zeros(3,4,4), torch.zeros(3,5,4)], draws(n=2))
