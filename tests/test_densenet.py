"DenseNet: exact sizes, every option acts, stems and checkpointing"
import pytest
import timm
import torch
from model_helpers import DENSE, DENSE_OPTIONS, differs, images, meta, n_params, same, seeded, step, trace

import vitnb.models.densenet as densenet_module
from vitnb.models.densenet import choose_stem, densenet
from vitnb.models.protocol import create_model, model_info, models

DENSE_PARAMS = { # classes: (imagenet stem, cifar stem)
    "densenet121": {10: ( 6_964_106,  6_956_426), 100: ( 7_056_356,  7_048_676), 1000: ( 7_978_856,  7_971_176)},
    "densenet169": {10: (12_501_130, 12_493_450), 100: (12_650_980, 12_643_300), 1000: (14_149_480, 14_141_800)},
    "densenet201": {10: (18_112_138, 18_104_458), 100: (18_285_028, 18_277_348), 1000: (20_013_928, 20_006_248)},
    "densenet264": {10: (30_675_594, 30_667_914), 100: (30_917_604, 30_909_924), 1000: (33_337_704, 33_330_024)}}

@pytest.mark.parametrize("name,classes,stem,n", [
    (k, c, s, n) for k,row in DENSE_PARAMS.items() for c,ns in row.items() for s,n in zip(("imagenet", "cifar"), ns)])
def test_densenet_parameters(name, classes, stem, n): assert n_params(meta(name, num_classes=classes, stem=stem)) == n

def test_densenet264_is_not_timms_264d():
    with torch.device("meta"): other = timm.create_model("densenet264d")
    assert round(n_params(other)/1e6, 1) == 72.7 and round(n_params(meta("densenet264"))/1e6, 1) == 33.3

def test_bc100_is_the_papers(): # table 2 of the paper: L=100, k=12 has 0.8 M parameters
    model = meta("densenet_bc100", img_size=32, num_classes=10)
    assert round(n_params(model)/1e6, 2) == .77
    convs = [m for m in model.features.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) + 1 == 100 # the classifier is the hundredth layer

@pytest.mark.parametrize("name,standard,cifar", [("densenet121", .058, .888), ("densenet264", .117, 1.841)])
def test_gmacs_32(name, standard, cifar):
    got = [model_info(meta(name, img_size=32, num_classes=10, stem=s))["gmacs"] for s in ("imagenet", "cifar")]
    assert got == pytest.approx([standard, cifar], abs=.0006)

@pytest.mark.parametrize("option", DENSE_OPTIONS)
def test_densenet_option_acts(option): assert differs(trace(densenet, **DENSE), trace(densenet, **{**DENSE, option: DENSE_OPTIONS[option]}))

def test_proj_drop_after_each_dense_layer():
    "The paper's dropout: each layer's new maps are dropped, kept ones scaled"
    model = seeded(densenet, **DENSE, proj_drop_rate=.5).train()
    plain = seeded(densenet, **DENSE).train()
    for a,b in zip(model.features.modules(), plain.features.modules()):
        if not isinstance(a, densenet_module.DenseLayer): continue
        x = images(64, a.norm1.num_features, 8, 8)
        new,ref = a(x),b(x)
        assert .45 < (new == 0).float().mean() < .55
        assert torch.allclose(new[new != 0], 2*ref[new != 0])


def test_stem_choice():
    for size in (8, 32, 64, (32, 200)): assert choose_stem("auto", size) == "cifar"
    for size in (65, 224, None): assert choose_stem("auto", size) == "imagenet"
    assert choose_stem("imagenet", 32) == "imagenet" and choose_stem("cifar", 224) == "cifar"

def test_cifar_stem():
    model = meta("densenet121", img_size=32)
    conv = model.features.conv0
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1)) and isinstance(model.features.pool0, torch.nn.Identity)
    assert [o["reduction"] for o in model.feature_info] == [1, 1, 2, 4, 8]
    assert [o[1:] for o in model_info(model)["grid"]] == [(32, 32), (32, 32), (16, 16), (8, 8), (4, 4)]
    assert n_params(meta("densenet121", stem="imagenet")) - n_params(meta("densenet121", stem="cifar")) == 7680

def test_cifar_stem_is_initialised_like_the_rest():
    w = seeded(densenet, img_size=32, block_config=(1, 1), num_classes=2).features.conv0.weight # He: standard deviation sqrt(2/fan_in)
    assert float(w.detach().std()) == pytest.approx((2/27)**.5, rel=.08)

@pytest.mark.parametrize("stem,least", [("imagenet", 29), ("cifar", 8)])
def test_smallest_image(stem, least):
    kw = dict(stem=stem, block_config=(1, 1, 1, 1), growth_rate=4, num_classes=2)
    assert densenet(img_size=least, **kw).eval()(images(2, 3, least, least)).shape == (2, 2)
    with pytest.raises(ValueError, match=f"img_size={least-1} is too small for 4 blocks behind the {stem} stem; use at least {least} pixels"):
        densenet(img_size=least-1, **kw)
    with pytest.raises(RuntimeError): densenet(**kw).eval()(images(2, 3, least-1, least-1)) # the rule is torch's own

def test_memory_efficient_same_step_and_evaluation():
    plain,saving = seeded(densenet, **DENSE),seeded(densenet, **DENSE, memory_efficient=True)
    x = images(4, 3, 16, 16)
    for i in range(3): assert same(step(plain, images(4, 3, 16, 16, seed=i)), step(saving, images(4, 3, 16, 16, seed=i)))
    assert torch.equal(plain.eval()(x), saving.eval()(x)) # timm's own layer fails here: its statistics moved twice a step

def test_memory_efficient_keeps_less():
    "Bytes kept for the backward pass"
    def kept(**kw):
        seen,model = {},seeded(densenet, img_size=16, growth_rate=8, block_config=(8, 8), num_classes=2, **kw).train()
        def note(t):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t): y = model(images(4, 3, 16, 16)) # y keeps the graph, so no address is used twice
        return y.requires_grad*sum(seen.values())
    assert kept(memory_efficient=True) < .7*kept()

def test_published_stem_into_a_small_one(tmp_path, capsys):
    full = seeded(models["densenet121"], num_classes=10)
    torch.save(full.state_dict(), tmp_path/"full.pth")
    small = create_model("densenet121", pretrained=tmp_path/"full.pth", img_size=32, num_classes=10)
    assert small.load_report.fresh == ["features.conv0.weight"] and torch.equal(small.features.norm5.weight, full.features.norm5.weight)
    torch.save(small.state_dict(), tmp_path/"small.pth")
    with pytest.raises(ValueError, match="features.conv0.weight"): create_model("densenet121", pretrained=tmp_path/"small.pth", img_size=224, num_classes=10)
