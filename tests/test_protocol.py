"Models: one protocol over the whole registry, every option acts, weights that load"
import ast
import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch
from model_helpers import (
    DENSE, DENSE_OPTIONS, NAMES, SMALL, SWIN_OPTIONS, differs, drop_rates, images, meta, n_params, same, seeded, small, step, trace)
from model_helpers import saved # noqa: F401, a fixture
from timm.models import group_parameters

import vitnb.models.swin as swin_module
from vitnb.models.densenet import densenet, densenet_micro
from vitnb.models.protocol import (
    PROTOCOL, check_model, create_model, load_weights, model_info, models, register_model)
from vitnb.models.swin import swin, swin_micro


# sizes

GMACS = dict(swin_tiny=4.49, swin_small=8.74, swin_base=15.43, densenet121=2.83, densenet169=3.36, densenet201=4.29, densenet264=5.75)

@pytest.mark.parametrize("name,gmacs", GMACS.items())
def test_gmacs_224(name, gmacs): assert model_info(meta(name), 224)["gmacs"] == pytest.approx(gmacs, abs=.006)


# the protocol over the whole registry

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

def test_same_options_same_model():
    assert not differs(trace(swin, **SMALL), trace(swin, **SMALL)) and not differs(trace(densenet, **DENSE), trace(densenet, **DENSE))

def test_no_option_is_forgotten():
    assert set(SWIN_OPTIONS) == set(models["swin_tiny"].options()) and {*DENSE_OPTIONS, "memory_efficient"} == set(models["densenet121"].options())

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


# drop path

@pytest.mark.parametrize("name", ["swin_micro", "swin_tiny", "swin_small", "swin_base"])
@pytest.mark.parametrize("rate", [0., .1, .5])
def test_drop_path_is_linear_and_reaches_both_branches(name, rate):
    got = drop_rates(meta(name, drop_path_rate=rate))
    want = torch.linspace(0, rate, len(got)).tolist()
    assert [o[0] for o in got] == pytest.approx(want) and [o[1] for o in got] == pytest.approx(want)


# memory

@pytest.mark.parametrize("build,kw", [(swin, {**SMALL, "drop_path_rate": .5, "proj_drop_rate": .2}), (densenet, {**DENSE, "proj_drop_rate": .2})],
                         ids=["swin", "densenet"])
def test_checkpointing_same_step(build, kw):
    "Outputs, gradients and running statistics, with random depth and dropout drawn alike"
    plain,saving = seeded(build, **kw),seeded(build, **kw)
    saving.set_grad_checkpointing()
    x = images(4, 3, 16, 16)
    assert same(step(plain, x), step(saving, x))

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


@pytest.mark.parametrize("wrap,says", [(lambda sd, other: [sd], "79 tensors"), (lambda sd, other: (sd, 3), "79 tensors"), (lambda sd, other: [dict(model=sd), "notes"], "79 tensors"),
    (lambda sd, other: dict(model=sd, ema=dict(shadow=other, decay=.99)), "ema.shadow there too, as 'w.pth::ema.shadow'")])
def test_weights_in_lists_and_averages_that_lie_deeper(tmp_path, wrap, says):
    model = create_model("swin_micro", num_classes=10)
    sd = model.state_dict()
    torch.save(wrap(sd, {name:weight*0 if weight.is_floating_point() else weight for name,weight in sd.items()}), tmp_path/"w.pth")
    loaded = create_model("swin_micro", num_classes=10, pretrained=str(tmp_path/"w.pth"))
    assert says in str(loaded.load_report) and torch.equal(loaded.state_dict()["patch_embed.proj.weight"], sd["patch_embed.proj.weight"])
    if "shadow" not in says: return
    loaded = create_model("swin_micro", num_classes=10, pretrained=f"{tmp_path/'w.pth'}::ema.shadow")
    assert (loaded.state_dict()["patch_embed.proj.weight"] == 0).all(), "the remedy"


@pytest.mark.parametrize("arch", ["swin_micro", "densenet_micro", "hvit_micro"])
def test_weights_that_cannot_fit_are_refused_for_every_family(tmp_path, arch):
    def load(state):
        torch.save(state, tmp_path/"w.pth")
        return create_model(arch, num_classes=10, pretrained=str(tmp_path/"w.pth"))
    four = create_model(arch, num_classes=10, in_chans=4).state_dict()
    with pytest.raises(ValueError, match="cannot be matched with 3: give in_chans=4"): load(four)
    with pytest.raises(ValueError, match="does not fit"): load({f"base.{name}.lora_A.weight":torch.ones(2, 2) for name in list(four)[:5]})
    with pytest.raises(ValueError, match="a list of 2, of which 2 are weights"): load([four, four])
