"Models: exact sizes, every option acts, windows and stems that fit, weights that load, one protocol over the whole registry"
import ast
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import group_parameters
from timm.models.swin_transformer import checkpoint_filter_fn

import vitnb.models.densenet as densenet_module
import vitnb.models.swin as swin_module
from vitnb.models.densenet import choose_stem, densenet, densenet_micro
from vitnb.models.protocol import (PROTOCOL, check_model, create_model, list_models, load_weights, model_info, models, read_weights,
                                   register_model)
from vitnb.models.swin import choose_window, fitting_windows, swin, swin_micro, token_maps

NAMES = list_models()
SMALL = dict(embed_dim=8, depths=(2, 2), num_heads=(1, 2), patch_size=2, img_size=16, num_classes=5)
DENSE = dict(growth_rate=4, block_config=(2, 2), img_size=16, num_classes=5)

@cache
def meta(name, **kw):
    "A model without storage, shared by the tests that do not change it"
    with torch.device("meta"): return create_model(name, **kw)

def n_params(model): return sum(p.numel() for p in model.parameters())

def seeded(build, seed=0, **kw):
    "A model whose weights depend on `seed` alone"
    torch.manual_seed(seed)
    return build(**kw)

def images(*shape, seed=1): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# sizes

SWIN_PARAMS = dict(swin_tiny={200: 27_673_154, 1000: 28_288_354}, swin_small={200: 48_991_058, 1000: 49_606_258}, swin_base={200: 86_948_224, 1000: 87_768_224})
DENSE_PARAMS = { # classes: (imagenet stem, cifar stem)
    "densenet121": {10: ( 6_964_106,  6_956_426), 100: ( 7_056_356,  7_048_676), 1000: ( 7_978_856,  7_971_176)},
    "densenet169": {10: (12_501_130, 12_493_450), 100: (12_650_980, 12_643_300), 1000: (14_149_480, 14_141_800)},
    "densenet201": {10: (18_112_138, 18_104_458), 100: (18_285_028, 18_277_348), 1000: (20_013_928, 20_006_248)},
    "densenet264": {10: (30_675_594, 30_667_914), 100: (30_917_604, 30_909_924), 1000: (33_337_704, 33_330_024)}}

@pytest.mark.parametrize("name,classes,n", [(k, c, n) for k,row in SWIN_PARAMS.items() for c,n in row.items()])
def test_swin_parameters(name, classes, n): assert n_params(meta(name, num_classes=classes)) == n

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

GMACS = dict(swin_tiny=4.49, swin_small=8.74, swin_base=15.43, densenet121=2.83, densenet169=3.36, densenet201=4.29, densenet264=5.75)

@pytest.mark.parametrize("name,gmacs", GMACS.items())
def test_gmacs_224(name, gmacs): assert model_info(meta(name), 224)["gmacs"] == pytest.approx(gmacs, abs=.006)

@pytest.mark.parametrize("name,standard,cifar", [("densenet121", .058, .888), ("densenet264", .117, 1.841)])
def test_gmacs_32(name, standard, cifar):
    got = [model_info(meta(name, img_size=32, num_classes=10, stem=s))["gmacs"] for s in ("imagenet", "cifar")]
    assert got == pytest.approx([standard, cifar], abs=.0006)

def test_head_dim_is_32_everywhere():
    for name in ("swin_tiny", "swin_small", "swin_base"):
        assert {b.dim//b.attn.num_heads for s in meta(name).layers for b in s.blocks} == {32}


# the protocol over the whole registry

OWN = {n: dict(in_chans=3, patch_size=(8, 1)) for n in NAMES if n.startswith("spectral")} # cubes of three bands are images
OWN |= {n: dict(patch_size=4) for n in NAMES if n.startswith("hvit")} # 32 pixels are four patches of 8, too few for three mergings
OWN |= dict(csi_raddino=dict(backbone_kw=dict(patch_size=16)), csi_micro=dict(pool="global")) # 32 pixels are no patches of 14; one class a film

def small(name): return dict(name=name, img_size=32, num_classes=10, **OWN.get(name, {}))

@pytest.fixture(scope="module", params=NAMES)
def tiny(request):
    with torch.device("meta"): return request.param,create_model(**small(request.param))

@pytest.fixture(params=NAMES)
def own(request):
    "As `tiny`, for a test that changes the model"
    with torch.device("meta"): return request.param,create_model(**small(request.param))

def test_registration_on_first_use():
    "A user who imports the protocol alone sees every family"
    code = "from vitnb.models.protocol import list_models; print(list_models())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"swin_micro", "swin_tiny", "densenet121", "densenet264"} <= set(ast.literal_eval(out))

def test_protocol(tiny): check_model(tiny[1])

def test_forward_is_head_of_features(tiny):
    name,model = tiny
    x = torch.empty(2, 3, 32, 32, device="meta")
    features = model.forward_features(x)
    assert model.forward_head(features).shape == model(x).shape == (2, 10)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features) == (2, model.get_classifier().in_features)

def test_intermediates(tiny):
    "Maps are NCHW, and as wide and deep as `feature_info` says"
    name,model = tiny
    last,maps = model.forward_intermediates(torch.empty(2, 3, 32, 32, device="meta"))
    want = [(2, o["num_chs"], *[-(-32//o["reduction"])]*2) for o in model.feature_info]
    assert [tuple(o.shape) for o in maps] == want
    assert model.forward_head(last).shape == (2, 10)
    some = model.forward_intermediates(torch.empty(2, 3, 32, 32, device="meta"), indices=[0, 2], intermediates_only=True)
    assert [tuple(o.shape) for o in some] == [want[0], want[2]]

def test_reset_classifier(own):
    name,model = own
    model.reset_classifier(3)
    assert model.num_classes == model.get_classifier().out_features == 3
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 3)
    model.reset_classifier(0)
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, model.num_features)
    with torch.device("meta"): model.reset_classifier(10)
    assert model.get_classifier().out_features == 10

def test_group_matcher(tiny):
    "Every parameter has a depth; the stem comes first, the classifier last"
    name,model = tiny
    groups = group_parameters(model, model.group_matcher())
    names = [n for g in groups.values() for n in g]
    assert sorted(names) == sorted(n for n,_ in model.named_parameters())
    head = next(n for n,m in model.named_modules() if m is model.get_classifier()) + ".weight"
    assert head in groups[max(groups)] and next(n for n,_ in model.named_parameters()) in groups[min(groups)]

@pytest.mark.parametrize("coarse", [True, False])
def test_the_classifier_alone_lies_deepest(tiny, coarse):
    "So that freezing all but the head trains what is new, and not the last norm of pre-trained weights"
    name,model = tiny
    depth = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    head = next(n for n,m in model.named_modules() if m is model.get_classifier())
    assert {n for n,d in depth.items() if d == max(depth.values())} == {f"{head}.weight", f"{head}.bias"}
    stem = [n for n in depth if n.startswith("patch_embed") or "conv0" in n] or [next(n for n,_ in model.named_parameters())]
    assert {depth[n] for n in stem} == {0}
    assert sorted(set(depth.values())) == list(range(max(depth.values())+1)) and max(depth.values()) >= 2

def test_the_decoder_lies_as_deep_as_its_head():
    model = create_model("spectral_mae_micro")
    for coarse in (True, False):
        depth = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert {n for n,d in depth.items() if d == max(depth.values())} == {n for n in depth if n.startswith(("decoder", "head"))}

def test_no_weight_decay(tiny):
    name,model = tiny
    tables = {n for n,_ in model.named_parameters() if n.endswith(("relative_position_bias_table", "pos.spatial", "pos.spectral", "pos_embed", "cls_token"))}
    assert set(model.no_weight_decay()) == tables and bool(tables) == name.startswith(("swin", "spectral", "hvit", "csi_raddino"))
    if name == "swin_tiny": assert len(tables) == 12

def test_grad_checkpointing_switch(own):
    name,model = own
    model.set_grad_checkpointing()
    model.train()(torch.empty(2, 3, 32, 32, device="meta")).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert any(getattr(m, "grad_checkpointing", False) for m in model.modules())
    model.set_grad_checkpointing(False)
    assert not any(getattr(m, "grad_checkpointing", False) for m in model.modules())

def test_info(tiny):
    name,model = tiny
    info = model_info(model)
    assert info["params"] == n_params(model) and info["classes"] == 10 and info["input"] == (3, 32, 32)
    assert name in str(info) and f"{info['params']:,}" in info._repr_markdown_() and f"{info['params']:,}" in str(info)
    assert len(info["grid"]) == len(model.feature_info) and info["gmacs"] > 0

def test_every_model_refuses_a_misspelt_keyword(tiny):
    with pytest.raises(ValueError, match="has no keyword 'num_clases': did you mean 'num_classes'"): create_model(tiny[0], num_clases=3)

def test_unknown_model():
    with pytest.raises(ValueError, match="did you mean 'swin_tiny'"): create_model("swin_tinny")

def test_info_leaves_the_model_alone():
    model = seeded(densenet_micro, img_size=16, num_classes=3).train()
    before,rng = {k: v.clone() for k,v in model.state_dict().items()},torch.get_rng_state()
    model_info(model)
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items()) and torch.equal(rng, torch.get_rng_state()) and model.training

def test_check_model_names_what_is_missing():
    model = swin_micro(img_size=8)
    model.group_matcher = None
    with pytest.raises(ValueError, match="lacks group_matcher of the model protocol"): check_model(model)
    for o in PROTOCOL: assert callable(getattr(swin_micro(img_size=8), o))

def test_register_refuses_a_taken_name(monkeypatch):
    monkeypatch.setitem(models, "swin_tiny", models["swin_tiny"]) # put back, also where this fails
    with pytest.raises(ValueError, match="'swin_tiny' is registered already"): register_model("swin_tiny", densenet)
    assert models["swin_tiny"].build is swin
    assert register_model("swin_tiny", swin, **swin_module.SWIN_SIZES["swin_tiny"]).preset == swin_module.SWIN_SIZES["swin_tiny"] # a module that is reloaded


# every option acts

def trace(build, **kw):
    "What can be seen of a model from outside: shapes of weights and maps, windows, a training pass"
    model = seeded(build, **kw).train()
    channels,size = kw.get("in_chans", 3),kw["img_size"]
    x = images(4, channels, *((size, size) if isinstance(size, int) else size))
    torch.manual_seed(2)
    return [tuple(p.shape) for p in model.parameters()],[tuple(o.shape) for o in model.forward_intermediates(x)[1]],model(x).detach()

def differs(a, b): return a[0] != b[0] or a[1] != b[1] or a[2].shape != b[2].shape or not torch.equal(a[2], b[2])

SWIN_OPTIONS = dict(img_size=(16, 32), num_classes=3, window_size=2, patch_size=4, in_chans=1, embed_dim=16, depths=(1, 2), num_heads=(2, 4),
                    drop_path_rate=.5, drop_rate=.5, proj_drop_rate=.5, attn_drop_rate=.5, mlp_ratio=2., window_near=2)
DENSE_OPTIONS = dict(img_size=80, num_classes=3, stem="imagenet", in_chans=1, growth_rate=8, block_config=(1, 2), bn_size=2, drop_rate=.5, proj_drop_rate=.5)

def test_same_options_same_model():
    assert not differs(trace(swin, **SMALL), trace(swin, **SMALL)) and not differs(trace(densenet, **DENSE), trace(densenet, **DENSE))

def test_no_option_is_forgotten():
    assert set(SWIN_OPTIONS) == set(models["swin_tiny"].options()) and {*DENSE_OPTIONS, "memory_efficient"} == set(models["densenet121"].options())

@pytest.mark.parametrize("option", SWIN_OPTIONS)
def test_swin_option_acts(option): assert differs(trace(swin, **SMALL), trace(swin, **{**SMALL, option: SWIN_OPTIONS[option]}))

@pytest.mark.parametrize("option", DENSE_OPTIONS)
def test_densenet_option_acts(option): assert differs(trace(densenet, **DENSE), trace(densenet, **{**DENSE, option: DENSE_OPTIONS[option]}))

@pytest.mark.parametrize("name", ["swin_micro", "densenet_micro"])
def test_callers_keyword_wins_over_the_preset(name):
    others = dict(swin_micro=dict(embed_dim=24, depths=(1, 1, 2), mlp_ratio=2.), densenet_micro=dict(growth_rate=4, block_config=(1, 1)))
    for option,value in others[name].items():
        assert n_params(meta(name, **{option: value})) != n_params(meta(name))

@pytest.mark.parametrize("build,kw,option", [(swin, SMALL, o) for o in ("drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")]
                         + [(densenet, DENSE, o) for o in ("drop_rate", "proj_drop_rate")])
def test_rates_act_in_training_only(build, kw, option):
    off = dict(drop_path_rate=0.) if build is swin else {}
    x = images(8, 3, 16, 16)
    model = seeded(build, **{**kw, **off, option: .5})
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    for bad in (-.1, 1., 2):
        with pytest.raises(ValueError, match=f"{option}={bad}"): build(**{**kw, option: bad})

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


# drop path

def drop_rates(model): return [[getattr(p, "drop_prob", 0.) for p in (b.drop_path1, b.drop_path2)] for s in model.layers for b in s.blocks]

@pytest.mark.parametrize("name", ["swin_micro", "swin_tiny", "swin_small", "swin_base"])
@pytest.mark.parametrize("rate", [0., .1, .5])
def test_drop_path_is_linear_and_reaches_both_branches(name, rate):
    got = drop_rates(meta(name, drop_path_rate=rate))
    want = torch.linspace(0, rate, len(got)).tolist()
    assert [o[0] for o in got] == pytest.approx(want) and [o[1] for o in got] == pytest.approx(want)

def test_guides_drop_path():
    assert [round(o[0], 4) for o in drop_rates(meta("swin_tiny"))][:2] == [0, .0091] and drop_rates(meta("swin_tiny"))[-1][0] == pytest.approx(.1)

def test_drop_path_drops_whole_samples_at_its_rate():
    drop = seeded(swin, **SMALL, drop_path_rate=.5).train().layers[-1].blocks[-1].drop_path1
    kept = drop(torch.ones(2000, 2, 2, 16)).flatten(1)
    assert ((kept == 0).all(1) | (kept == 2).all(1)).all() # what stays is scaled, so that the mean is kept
    assert abs(float((kept[:,0] == 0).float().mean()) - .5) < .05


# windows

@settings(max_examples=150, deadline=None)
@given(patch=st.integers(1, 8), h=st.integers(1, 96), w=st.integers(1, 96), stages=st.integers(1, 4), near=st.integers(1, 12))
def test_chosen_window_needs_no_padding(patch, h, w, stages, near):
    size = (h*patch, w*patch)
    maps = token_maps(size, patch, stages)
    assert maps[0] == (h, w) and len(maps) == stages
    fit = lambda o: all((-s) % min(o, s) == 0 for m in maps for s in m) # timm shrinks a window to the map, then pads to a multiple
    naive = [o for o in range(min(2, max(h, w)), max(h, w)+1) if fit(o)]
    assert fitting_windows(maps) == naive
    small = [o for o in naive if o <= 16]
    if not small:
        with pytest.raises(ValueError, match="no window up to 16 fits"): choose_window(size, patch, stages, None, near)
        return
    chosen = choose_window(size, patch, stages, None, near)
    assert chosen in small and all(abs(chosen - near) <= abs(o - near) for o in small)

@settings(max_examples=120, deadline=None)
@given(patch=st.sampled_from([1, 2, 4]), grid=st.integers(1, 80), stages=st.integers(1, 4), window=st.integers(2, 40))
def test_explicit_window_fits_or_the_error_names_what_does(patch, grid, stages, window):
    maps = token_maps(grid*patch, patch, stages)
    fits = all(s <= window or s % window == 0 for m in maps for s in m)
    if fits: assert choose_window(grid*patch, patch, stages, window) == window
    else:
        with pytest.raises(ValueError, match=f"window_size={window} does not fit img_size={grid*patch}") as e: choose_window(grid*patch, patch, stages, window)
        text = str(e.value)
        named = [int(o) for o in text.split("windows that fit: ")[1].split(";")[0].split(", ")]
        assert all(choose_window(grid*patch, patch, stages, o) == o for o in named)
        sizes = text.split(f"fit window {window}: ")[1]
        assert sizes != "none near" and all(choose_window(int(o), patch, stages, window) == window for o in sizes.split(" and "))

@settings(max_examples=100, deadline=None)
@given(patch=st.integers(2, 16), size=st.integers(1, 300))
def test_patch_that_does_not_divide(patch, size):
    if size % patch == 0: assert token_maps(size, patch)[0] == (size//patch,)*2
    else:
        with pytest.raises(ValueError, match=f"img_size={size} is not a whole number of patches of {patch} pixels") as e: token_maps(size, patch)
        for o in str(e.value).split("use img_size ")[1].split(", or")[0].split(" or "): assert token_maps(int(o), patch)

@pytest.mark.parametrize("size,window", [(224, 7), (192, 6), (128, 8), (256, 8), (64, 8), (32, 8), (384, 6)])
def test_default_windows(size, window):
    model = meta("swin_tiny", img_size=size)
    assert max(b.window_size[0] for s in model.layers for b in s.blocks) == window
    for s in model.layers:
        for i,b in enumerate(s.blocks):
            side = s.output_resolution[0]
            assert side % b.window_size[0] == 0
            assert b.shift_size[0] == (b.window_size[0]//2 if i % 2 and side > b.window_size[0] else 0)

@pytest.mark.parametrize("size", [8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 64])
def test_micro_at_many_sizes(size):
    model = seeded(swin_micro, img_size=size, num_classes=4).eval()
    with torch.no_grad(): y = model(images(2, 3, size, size))
    assert y.shape == (2, 4) and y.isfinite().all()

def test_windows_of_the_recommended_64():
    for window in (4, 8): assert meta("swin_tiny", img_size=64, window_size=window)
    assert round(n_params(meta("swin_tiny", img_size=64, patch_size=2, window_size=4, num_classes=200))/1e6, 2) == 27.65

@pytest.mark.parametrize("kw,message", [
    (dict(img_size=192, window_size=7), "windows that fit: 2, 3, 6, 12, 24, 48"), (dict(img_size=226), "not a whole number of patches of 4"),
    (dict(window_size=0), "window_size=0 must be a whole number"), (dict(window_size=3.5), "window_size=3.5 must be"),
    (dict(patch_size=1.5), "patch_size=1.5 must be"),
    (dict(depths=(2, 2)), "must have one number a stage each"), (dict(num_heads=(5, 6, 12, 24)), "stage 1 is 96 wide, which 5 heads do not divide")])
def test_swin_bad_input(kw, message):
    with pytest.raises(ValueError, match=message): create_model("swin_tiny", **kw)

def test_rectangular_images():
    model = seeded(swin, **{**SMALL, "img_size": (16, 32)}).eval()
    assert model(images(2, 3, 16, 32)).shape == (2, 5) and model_info(model)["grid"] == [(8, 8, 16), (16, 4, 8)]


# stems

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


# memory

def step(model, x, seed=3):
    "Gradients and state after one training pass"
    torch.manual_seed(seed)
    y = model.train()(x)
    y.square().sum().backward()
    return y.detach(),[p.grad for p in model.parameters()],{k: v.clone() for k,v in model.state_dict().items()}

def same(a, b):
    return torch.equal(a[0], b[0]) and all(torch.allclose(p, q, atol=1e-6) for p,q in zip(a[1], b[1])) and all(torch.equal(v, b[2][k]) for k,v in a[2].items())

@pytest.mark.parametrize("build,kw", [(swin, {**SMALL, "drop_path_rate": .5, "proj_drop_rate": .2}), (densenet, {**DENSE, "proj_drop_rate": .2})],
                         ids=["swin", "densenet"])
def test_checkpointing_same_step(build, kw):
    "Outputs, gradients and running statistics, with random depth and dropout drawn alike"
    plain,saving = seeded(build, **kw),seeded(build, **kw)
    saving.set_grad_checkpointing()
    x = images(4, 3, 16, 16)
    assert same(step(plain, x), step(saving, x))

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

@pytest.mark.parametrize("name", ["swin_micro", "densenet_micro"])
def test_channels_last(name):
    model = seeded(models[name], img_size=16, num_classes=4).eval()
    x = images(2, 3, 16, 16)
    with torch.no_grad(): plain,last = model(x),model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-5)

def test_learns():
    "A few steps on eight images: the loss falls by half, for both families"
    for name in ("swin_micro", "densenet_micro"):
        model = seeded(models[name], img_size=8, num_classes=4).train()
        opt,x,y = torch.optim.AdamW(model.parameters(), 2e-3),images(8, 3, 8, 8),torch.arange(8) % 4
        losses = []
        for _ in range(25):
            losses.append(torch.nn.functional.cross_entropy(model(x), y))
            opt.zero_grad(); losses[-1].backward(); opt.step()
        assert losses[-1] < .5*losses[0], name


# weights

@pytest.fixture
def saved(tmp_path):
    "A trained-elsewhere `swin_micro`, ten classes, as a file"
    model = seeded(swin_micro, img_size=16, num_classes=10)
    torch.save(model.state_dict(), tmp_path/"micro.pth")
    return model,tmp_path/"micro.pth"

def test_weights_from_a_path(saved, capsys):
    model,path = saved
    again = seeded(create_model, 7, name="swin_micro", pretrained=path, img_size=16, num_classes=10).eval()
    x = images(2, 3, 16, 16)
    assert torch.equal(again(x), model.eval()(x)) and not again.load_report.fresh
    assert capsys.readouterr().out.startswith(f"swin_micro: {len(model.state_dict())} tensors from micro.pth")
    assert create_model("swin_micro").load_report is None

def test_other_classes_start_anew(saved, capsys):
    model,path = saved
    other = create_model("swin_micro", pretrained=path, img_size=16, num_classes=3)
    assert other.load_report.fresh == ["head.fc.weight", "head.fc.bias"] and "left at random: head.fc.weight" in capsys.readouterr().out
    x = images(2, 3, 16, 16)
    assert torch.equal(other.eval().forward_features(x), model.eval().forward_features(x)) and other(x).shape == (2, 3)

def test_other_channels(saved):
    model,path = saved
    grey = create_model("swin_micro", pretrained=path, img_size=16, num_classes=10, in_chans=1)
    assert torch.allclose(grey.patch_embed.proj.weight, model.patch_embed.proj.weight.sum(1, keepdim=True), atol=1e-6)
    assert create_model("swin_micro", pretrained=path, img_size=16, num_classes=10, in_chans=5)(images(1, 5, 16, 16)).shape == (1, 10)

def test_other_window_and_patch(saved):
    model,path = saved
    other = create_model("swin_micro", pretrained=path, img_size=32, patch_size=4, window_size=8, num_classes=10)
    assert any("relative_position_bias_table" in o for o in other.load_report.adapted) and "patch_embed.proj.weight" in other.load_report.adapted
    assert torch.equal(other.layers[0].blocks[0].mlp.fc1.weight, model.layers[0].blocks[0].mlp.fc1.weight)

@pytest.mark.parametrize("wrap", [lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k,v in s.items()},
                                  lambda s: {f"_orig_mod.{k}": v for k,v in s.items()},
                                  lambda s: {"model_state": {f"module._orig_mod.{k}": v for k,v in s.items()}}])
def test_wrapped_weights(saved, tmp_path, wrap):
    model,_ = saved
    torch.save(wrap(model.state_dict()), tmp_path/"wrapped.pth")
    state = read_weights(tmp_path/"wrapped.pth")
    assert set(state) == set(model.state_dict()) and torch.equal(state["norm.weight"], model.norm.weight)

def test_safetensors(saved, tmp_path):
    model,_ = saved
    safetensors.torch.save_file(model.state_dict(), tmp_path/"micro.safetensors")
    assert not create_model("swin_micro", pretrained=str(tmp_path/"micro.safetensors"), img_size=16, num_classes=10).load_report.fresh

@pytest.mark.parametrize("kw", [dict(embed_dim=24, num_heads=(3, 3, 3)), dict(depths=(1, 1, 1)), dict(depths=(2, 2, 2))])
def test_another_architecture_is_refused(saved, kw):
    with pytest.raises(ValueError, match="does not fit this SwinTransformer"):
        create_model("swin_micro", pretrained=saved[1], img_size=16, num_classes=10, **kw)
    with pytest.raises(ValueError, match="does not fit this DenseNet"): create_model("densenet_micro", pretrained=saved[1], img_size=16)

def test_load_weights_changes_nothing_when_it_refuses(saved):
    model = seeded(densenet, **DENSE)
    before = {k: v.clone() for k,v in model.state_dict().items()}
    with pytest.raises(ValueError): load_weights(model, {**before, "features.norm5.weight": torch.ones(3)})
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())

def test_published_stem_into_a_small_one(tmp_path, capsys):
    full = seeded(models["densenet121"], num_classes=10)
    torch.save(full.state_dict(), tmp_path/"full.pth")
    small = create_model("densenet121", pretrained=tmp_path/"full.pth", img_size=32, num_classes=10)
    assert small.load_report.fresh == ["features.conv0.weight"] and torch.equal(small.features.norm5.weight, full.features.norm5.weight)
    torch.save(small.state_dict(), tmp_path/"small.pth")
    with pytest.raises(ValueError, match="features.conv0.weight"): create_model("densenet121", pretrained=tmp_path/"small.pth", img_size=224, num_classes=10)

def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"): create_model("swin_micro", pretrained=tmp_path/"none.pth")
    (tmp_path/"text.pth").write_text("hello")
    (tmp_path/"text.safetensors").write_text("hello")
    torch.save({"epoch": 3}, tmp_path/"empty.pth")
    torch.save([1, 2], tmp_path/"list.pth")
    for name in ("text.pth", "text.safetensors", "empty.pth", "list.pth"):
        message = "no readable weights" if name.startswith("text") else "no tensors by name"
        with pytest.raises(ValueError, match=message): create_model("swin_micro", pretrained=tmp_path/name)

class Boom:
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.write_text,(Path(self.path), "ran")

def test_code_in_a_file_does_not_run(tmp_path):
    (tmp_path/"evil.pth").write_bytes(pickle.dumps({"norm.weight": Boom(str(tmp_path/"mark"))}))
    torch.save({"norm.weight": Boom(str(tmp_path/"mark"))}, tmp_path/"evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(ValueError, match="no readable weights"): create_model("swin_micro", pretrained=tmp_path/name)
    assert not (tmp_path/"mark").exists()

@pytest.fixture
def offline(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

@pytest.mark.parametrize("name,hub", [("swin_tiny", "swin_tiny_patch4_window7_224.ms_in1k"), ("densenet121", "densenet121.ra_in1k")])
def test_offline(offline, name, hub):
    with pytest.raises(RuntimeError, match=f"the weights '{hub}' could not be had from the hub") as e: create_model(name, pretrained=True, num_classes=10)
    assert "pretrained='model.safetensors'" in str(e.value) and "HF_HUB_OFFLINE" in str(e.value) and e.value.__cause__ is not None

def test_published_weights_are_fitted(monkeypatch):
    "With a hub in the form of a plain dictionary: other classes, other window, other stem"
    import vitnb.models.protocol as protocol
    asked = []
    def hub(name):
        asked.append(name)
        return seeded(timm.create_model, model_name=name.partition(".")[0]).state_dict()
    monkeypatch.setattr(protocol, "hub_weights", hub)
    swin_t = create_model("swin_tiny", pretrained=True, img_size=64, num_classes=5)
    assert swin_t.load_report.fresh == ["head.fc.weight", "head.fc.bias"] and len(swin_t.load_report.adapted) == 12
    dense = create_model("densenet121", pretrained=True, img_size=32, num_classes=5)
    assert dense.load_report.fresh == ["features.conv0.weight", "classifier.weight", "classifier.bias"]
    assert asked == ["swin_tiny_patch4_window7_224.ms_in1k", "densenet121.ra_in1k"]

@pytest.mark.parametrize("name", ["swin_micro", "densenet264", "densenet_micro"])
def test_nothing_published(name):
    with pytest.raises(ValueError, match=f"no weights are published for {name}; .* one of: .*swin_tiny"): create_model(name, pretrained=True, img_size=32)

def test_published_names_exist():
    for entry in models.values():
        if entry.hub and not entry.hub.startswith("hf://"): assert timm.models.is_model_pretrained(entry.hub), entry.hub

def test_authors_swin_files_load():
    "The paper's authors merge patches at the end of a stage, timm at the start of the next: timm's filter knows both"
    model = seeded(swin, **SMALL)
    state = {k.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): v for k,v in model.state_dict().items()}
    assert not load_weights(seeded(swin, 5, **SMALL), state, adapt=checkpoint_filter_fn).fresh
