"HierarchicalViT: exact sizes, maps that keep height and width, legal sizes, positions, cross-attention and its prior, missing spectra, weights"
import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import group_parameters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vitnb.data.holdout import Split
from vitnb.data.loader import image_loaders
from vitnb.data.table import ImageSet
from vitnb.learner.core import vit_learner
from vitnb.learner.optim import decays, param_groups
from vitnb.learner.wholebatch import WholeBatch
from vitnb.models.dfca import present_samples
from vitnb.models.hvit import HVIT_SIZES, fit_hvit_state, hvit
from vitnb.models.protocol import check_model, create_model, load_weights, model_info, models
from vitnb.task import OneClass

SMALL = dict(img_size=16, patch_size=2, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2), num_classes=5)
TWO = dict(**SMALL, spectral_channels=2)


def seeded(seed=0, **kw):
    torch.manual_seed(seed)
    return hvit(**{**SMALL, **kw})

def images(*shape, seed=1): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

@cache
def meta(name, **kw):
    "A model without storage"
    with torch.device("meta"): return create_model(name, **kw)

def n_params(model): return sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------------------------------------- sizes

@pytest.mark.parametrize("name,n", [("hvit_tiny", 10_723_399), ("hvit_small", 27_596_647), ("hvit_base", 86_813_831), ("hvit_xl", 273_615_751)])
def test_parameters_are_exact(name, n): assert n_params(meta(name, num_classes=7)) == n

def test_parameters_with_a_spectral_stream_are_exact():
    two = meta("hvit_small", num_classes=7, spectral_channels=4)
    assert n_params(two) == 62_299_591 and n_params(two.fusion) == 7_088_640

@settings(max_examples=25, deadline=None)
@given(width=st.sampled_from([8, 16, 24]), depths=st.lists(st.integers(1, 3), min_size=2, max_size=4), patch=st.integers(1, 4),
       cells=st.integers(1, 2), classes=st.integers(1, 9))
def test_parameters_by_closed_form(width, depths, patch, cells, classes):
    side = patch*2**(len(depths) - 1)*cells
    with torch.device("meta"): model = hvit(side, classes, patch, embed_dim=width, depths=depths, num_heads=[1]*len(depths))
    d = [width*2**i for i in range(len(depths))]
    want = sum(n*(12*k*k + 13*k) for n,k in zip(depths, d)) + sum(8*k*k + 8*k for k in d[:-1])
    want += 3*patch**2*width + 3*width + (side//patch)**2*width + 4*d[-1] + d[-1]*classes + classes
    assert n_params(model) == want

@pytest.mark.parametrize("depths,millions", [((2, 2, 2, 2), 20.5), ((2, 2, 4, 2), 24.0), ((2, 2, 8, 2), 31.1), ((2, 2, 18, 2), 48.9)])
def test_the_depth_ablation_of_the_fact_sheet(depths, millions):
    assert n_params(meta("hvit_small", num_classes=7, depths=depths))/1e6 == pytest.approx(millions, abs=.06)

@pytest.mark.parametrize("name,gmacs", [("hvit_tiny", .165), ("hvit_small", .40), ("hvit_base", 1.30), ("hvit_xl", 18.3)])
def test_operations(name, gmacs):
    "Attention is global: cost per layer is quadratic in the tokens, and small, for there are few"
    assert model_info(meta(name, num_classes=7))["gmacs"] == pytest.approx(gmacs, rel=.03)

def test_head_dim_is_32_everywhere():
    for name in HVIT_SIZES: assert {b.attn.head_dim for stage in meta(name).stages for b in stage.blocks} == {32}

@pytest.mark.parametrize("name,heads", [("hvit_tiny", 8), ("hvit_small", 12), ("hvit_base", 16), ("hvit_xl", 24)])
def test_heads_of_cross_attention_follow_the_width(name, heads):
    "The guide's 12 divide the width of small and xl alone"
    assert meta(name, spectral_channels=1).fusion.num_heads == heads

def test_the_guides_tokens():
    model = meta("hvit_small")
    maps = model.forward_intermediates(torch.empty(1, 3, 256, 256, device="meta"), intermediates_only=True)
    assert [tuple(o.shape[1:]) for o in maps] == [(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2)]

def test_drop_path_is_linear_over_all_blocks():
    rates = [getattr(b.drop_path1, "drop_prob", 0.) for stage in meta("hvit_small", drop_path_rate=.2).stages for b in stage.blocks]
    assert rates == pytest.approx(torch.linspace(0, .2, 12).tolist())


# ---------------------------------------------------------------------------------------------- a second implementation

def slow_forward(model, x):
    "The model from its weights, written out: one sample, loops over tokens"
    w = dict(model.named_parameters())
    norm = lambda t,name: F.layer_norm(t, t.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])
    linear = lambda t,name: t @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)
    p,(rows,cols) = model.patch_size,(x.shape[1]//model.patch_size, x.shape[2]//model.patch_size)
    kernel = w["patch_embed.proj.weight"].flatten(1)
    tokens = {(i, j): kernel @ x[:,i*p:(i+1)*p,j*p:(j+1)*p].flatten() + w["patch_embed.proj.bias"] for i in range(rows) for j in range(cols)}
    tokens = {k: norm(t, "patch_embed.norm") + w["pos_embed"][0][k] for k,t in tokens.items()}
    for s,stage in enumerate(model.stages):
        if s:
            rows,cols = rows//2,cols//2
            four = lambda i,j: torch.cat([tokens[2*i,2*j], tokens[2*i+1,2*j], tokens[2*i,2*j+1], tokens[2*i+1,2*j+1]])
            tokens = {(i, j): linear(norm(four(i, j), f"stages.{s}.downsample.norm"), f"stages.{s}.downsample.reduction") for i in range(rows) for j in range(cols)}
        for b,block in enumerate(stage.blocks):
            name,places,heads = f"stages.{s}.blocks.{b}",list(tokens),block.attn.num_heads
            all_tokens = torch.stack([tokens[k] for k in places])
            q,k,v = linear(norm(all_tokens, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, -1)
            out = []
            for a,c,d in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1)):
                out.append((a @ c.T/math.sqrt(a.shape[-1])).softmax(-1) @ d)
            all_tokens = all_tokens + linear(torch.cat(out, -1), f"{name}.attn.proj")
            hidden = F.gelu(linear(norm(all_tokens, f"{name}.norm2"), f"{name}.mlp.fc1"))
            all_tokens = all_tokens + linear(hidden, f"{name}.mlp.fc2")
            tokens = dict(zip(places, all_tokens))
    pooled = torch.stack([norm(t, "norm") for t in tokens.values()]).mean(0)
    return linear(norm(pooled, "fc_norm"), "head")

@pytest.mark.parametrize("size", [(16, 16), (16, 32), (32, 16)])
def test_the_model_is_its_second_implementation(size):
    model = seeded(img_size=size).eval()
    x = images(1, 3, *size)
    with torch.no_grad(): assert torch.allclose(model(x)[0], slow_forward(model, x[0]), atol=1e-5)


# ---------------------------------------------------------------------------------------------- legal sizes

@pytest.mark.parametrize("size", [224, 320, (256, 384 - 64), 1, (128, 100)])
def test_sizes_that_crashed_are_refused_when_the_model_is_made_and_when_it_runs(size):
    with pytest.raises(ValueError, match="a multiple of 128 pixels; use img_size"): meta("hvit_small", img_size=size)
    height,width = (size, size) if isinstance(size, int) else size
    with pytest.raises(ValueError, match="a multiple of 128 pixels; use img_size"): meta("hvit_small")(torch.empty(1, 3, height, width, device="meta"))

def test_the_guides_224_pixels_work_with_the_patch_that_the_error_names():
    with pytest.raises(ValueError, match="patch_size=14"): meta("hvit_small", img_size=224)
    assert meta("hvit_small", img_size=224, patch_size=14)(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)

@pytest.mark.parametrize("size", [(128, 128), (384, 384), (512, 512), (256, 512), (256, 384), (128, 512)])
def test_every_legal_size_runs_on_a_model_built_for_256(size):
    model = meta("hvit_small")
    features = model.forward_features(torch.empty(2, 3, *size, device="meta"))
    assert features.shape == (2, size[0]//128, size[1]//128, 768)

@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_padding_makes_every_size_legal(height, width):
    model = seeded(pad=True).eval()
    with torch.no_grad(): features = model.forward_features(images(1, 3, height, width))
    halved = lambda side: math.ceil(math.ceil(math.ceil(math.ceil(side/2)/2)/2)/2) # patches of 2, then three mergings
    assert features.shape == (1, halved(height), halved(width), 64) and features.isfinite().all()

def test_padding_changes_nothing_where_nothing_is_padded():
    with torch.no_grad(): assert torch.equal(seeded().eval()(images(2, 3, 16, 16)), seeded(pad=True).eval()(images(2, 3, 16, 16)))

def test_micro_chooses_its_patch():
    assert {side: create_model("hvit_micro", img_size=side).patch_size for side in (32, 64, 96, 128)} == {32: 4, 64: 8, 96: 12, 128: 16}

@pytest.mark.parametrize("kw,message", [
    (dict(img_size=17), "img_size=17 × 17 is not legal"), (dict(img_size=0), "whole numbers of pixels"), (dict(patch_size=1.5), "whole numbers of pixels"),
    (dict(img_size=16.), "whole numbers of pixels"), (dict(depths=(1, 1)), "one number a stage each"), (dict(num_heads=(3, 1, 2, 2)), "stage 1 is 8 wide, which 3 heads"),
    (dict(drop_path_rate=1.), "drop_path_rate=1.0 must be"), (dict(modality_dropout=-.1, spectral_channels=1), "modality_dropout=-0.1 must be"),
    (dict(use_dfca=True), "use_dfca=True acts on a spectral stream"), (dict(modality_dropout=.1), "modality_dropout=0.1 acts on a spectral"),
    (dict(spectral_embed_dim=8), "spectral_embed_dim=8 acts on"), (dict(dfca_num_heads=2), "dfca_num_heads=2 acts on"), (dict(dfca_drop=.2), "dfca_drop=0.2 acts on"),
    (dict(spectral_channels=2, use_dfca=False, dfca_drop=0.), "dfca_drop=0.0 belongs to cross-attention"),
    (dict(spectral_channels=2, dfca_num_heads=3), "dfca_num_heads=3 do not divide a width of 64"),
    (dict(spectral_channels=4, in_chans=4), "4 spectral ones leave 0 colours"), (dict(in_chans=0), "leave 0 colours")])
def test_bad_options(kw, message):
    with pytest.raises(ValueError, match=message): hvit(**{**SMALL, **kw})

@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (3, 16, 16), (2, 1, 16, 16)])
def test_images_of_other_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r"this stream takes \(B,3,H,W\)"): seeded()(torch.zeros(shape))


# ---------------------------------------------------------------------------------------------- positions

def test_a_resized_table_is_trained():
    model = seeded()
    model(images(2, 3, 32, 16)).sum().backward()
    assert model.pos_embed.grad.abs().sum() > 0


# ---------------------------------------------------------------------------------------------- two streams

def test_one_tensor_or_two():
    model = seeded(spectral_channels=2).eval()
    x,s = images(2, 3, 16, 32),images(2, 2, 16, 32, seed=2)
    with torch.no_grad(): assert torch.equal(model(torch.cat([x, s], 1)), model(x, s))
    assert model.in_chans == 5 and model_info(model)["input"] == (5, 16, 16)

@pytest.mark.parametrize("kw", [{}, dict(use_dfca=False), dict(spectral_embed_dim=16), dict(in_chans=3)])
def test_both_streams_count(kw):
    model = seeded(spectral_channels=2, **kw).eval()
    x,s = images(2, model.channels, 16, 16),images(2, 2, 16, 16, seed=2)
    with torch.no_grad():
        assert not torch.allclose(model(x, s), model(x, s.flip(1)), atol=1e-4) and not torch.allclose(model(x, s), model(x.flip(2), s), atol=1e-4)
    assert model.channels == (1 if kw.get("in_chans") else 3)

def test_a_lesion_mask_changes_the_answer_and_only_of_cross_attention():
    x,s,lesion = images(2, 3, 32, 32),images(2, 2, 32, 32, seed=2),torch.zeros(2, 1, 32, 32)
    lesion[:,:,:16] = 1
    model = seeded(spectral_channels=2).eval()
    with torch.no_grad(): assert (model(x, s, lesion) - model(x, s)).abs().max() > 1e-4
    with torch.no_grad(): assert torch.equal(model(torch.cat([x, s], 1), lesion=lesion), model(x, s, lesion))
    with pytest.raises(ValueError, match="this model has none between its streams"): seeded(spectral_channels=2, use_dfca=False)(x, s, lesion)
    with pytest.raises(ValueError, match="there is no spectral image"): seeded()(x, None, lesion)

def test_a_missing_spectral_image_is_an_error_unless_the_model_was_trained_for_it():
    x = images(2, 3, 16, 16)
    with pytest.raises(ValueError, match="has not been trained to do without.*modality_dropout"): seeded(spectral_channels=2)(x)
    alone = seeded(spectral_channels=2, modality_dropout=.3).eval()
    colours = seeded().eval()
    colours.load_state_dict({k: v for k,v in alone.state_dict().items() if k in colours.state_dict()})
    with torch.no_grad(): assert torch.equal(alone(x), colours(x)) # the answer of the colour stream alone

def test_a_sample_without_a_spectral_image_gets_the_answer_of_the_colours():
    model = seeded(spectral_channels=2, modality_dropout=.3).eval()
    x,s = images(3, 3, 16, 16),images(3, 2, 16, 16, seed=2)
    s[1] = torch.nan
    with torch.no_grad(): out,alone,both = model(x, s),model(x),model(x[::2], s[::2])
    assert torch.allclose(out[1], alone[1], atol=1e-6) and torch.allclose(out[::2], both, atol=1e-5) and not torch.allclose(out[0], alone[0], atol=1e-4)

def test_a_spectral_image_of_zeros_is_missing_and_one_of_few_zeros_is_not():
    model = seeded(spectral_channels=2, modality_dropout=.3).eval()
    x,s = images(3, 3, 16, 16),images(3, 2, 16, 16, seed=2)
    s[1],s[2,0] = 0,0
    with torch.no_grad(): out,alone = model(x, s),model(x)
    assert torch.allclose(out[1], alone[1], atol=1e-6) and (out - alone)[[0, 2]].abs().amax(1).min() > 1e-4

@pytest.mark.parametrize("kw", [{}, dict(use_dfca=False)])
def test_a_stream_without_images_has_a_gradient_of_0(kw):
    "None would stop several processes, which wait for all gradients"
    model = seeded(spectral_channels=2, modality_dropout=.3, drop_path_rate=0., **kw).train()
    x = images(4, 3, 16, 16)
    model(x).sum().backward()
    spectral = {k: p.grad for k,p in model.named_parameters() if k.startswith(("spectral.", "fusion."))}
    assert spectral and all(g is not None and not g.any() for g in spectral.values())
    train = model(x)
    assert torch.equal(train, model.eval()(x))

def test_missing_samples_leave_gradients_finite():
    model = seeded(spectral_channels=2, modality_dropout=.3).train()
    s = images(4, 2, 16, 16)
    s[0] = torch.nan
    model(images(4, 3, 16, 16), s).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

def test_modality_dropout_takes_its_share_in_training_only():
    s = torch.ones(4000, 1, 1, 1)
    assert abs(present_samples(s, .3, True).float().mean().item() - .7) < .03 and present_samples(s, .3, False).all()
    model = seeded(spectral_channels=2, modality_dropout=.5, drop_path_rate=0., dfca_drop=0.).train()
    x,s = images(16, 3, 16, 16),images(16, 2, 16, 16, seed=2)
    with torch.no_grad(): out,alone = model(x, s),model(x)
    dropped = (out - alone).abs().amax(1) < 1e-6
    assert 0 < dropped.sum() < 16

@pytest.mark.parametrize("shape", [(2, 2, 16, 32), (2, 2, 32, 16)])
def test_streams_of_another_size_are_refused(shape):
    with pytest.raises(ValueError, match="both need one height and width"): seeded(spectral_channels=2)(images(2, 3, 16, 16), torch.zeros(shape))

def test_spectra_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"this stream takes \(B,2,H,W\)"): seeded(spectral_channels=2)(images(2, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="this model has no spectral stream"): seeded()(images(2, 3, 16, 16), torch.zeros(2, 3, 16, 16))

def test_two_streams_learn_what_only_the_spectrum_tells():
    "Labels that the colours do not know: with cross-attention the loss falls, from colours alone it cannot fall as far"
    y = torch.arange(8) % 2
    x,s = images(1, 3, 16, 16).expand(8, 3, 16, 16),images(8, 2, 16, 16, seed=2)
    s = s + 2.*y.view(8, 1, 1, 1)
    def train(model, *inputs):
        opt = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(20):
            loss = F.cross_entropy(model(*inputs), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
        return loss.item()
    assert train(seeded(num_classes=2, spectral_channels=2, drop_path_rate=0.), x, s) < .1 < .69 < train(seeded(num_classes=2, drop_path_rate=0.), x) + .01


# ---------------------------------------------------------------------------------------------- the protocol, with two streams

@pytest.mark.parametrize("kw", [{}, dict(use_dfca=False), dict(modality_dropout=.2)])
def test_two_streams_answer_the_protocol(kw):
    model = seeded(spectral_channels=2, **kw).eval()
    check_model(model)
    x = images(2, 5, 16, 16)
    with torch.no_grad():
        last,maps = model.forward_intermediates(x)
        assert torch.equal(model.forward_head(last), model(x)) and len(maps) == 4
        early = model.forward_intermediates(x, [0, 1], stop_early=True)
        assert torch.equal(early[1][1], maps[1]) and torch.equal(early[0], maps[1].permute(0, 2, 3, 1))
        assert torch.equal(model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)[2], maps[2].permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match="did you mean 'NHWC'"): model.forward_intermediates(x, output_fmt="NHW")

def test_the_last_norm_belongs_to_the_last_map():
    model = seeded().eval()
    x = images(2, 3, 16, 16)
    with torch.no_grad():
        last,maps = model.forward_intermediates(x, norm=True)
        plain = model.forward_intermediates(x, intermediates_only=True)
    assert torch.equal(maps[-1].permute(0, 2, 3, 1), last) and torch.equal(maps[0], plain[0]) and not torch.equal(maps[-1], plain[-1])

@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("kw", [{}, dict(spectral_channels=2), dict(spectral_channels=2, use_dfca=False)])
def test_depth_grows_from_the_patches_to_the_classifier(coarse, kw):
    model = seeded(**kw)
    depth = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    assert set(depth) == {n for n,_ in model.named_parameters()}
    top = max(depth.values())
    assert {n for n,d in depth.items() if d == top} == {"head.weight", "head.bias"}
    assert {n for n,d in depth.items() if d == 0} == {n for n in depth if "patch_embed" in n or "pos_embed" in n}
    for n,d in depth.items():
        if n.startswith("spectral."): assert d == depth[n.removeprefix("spectral.")], n
        if n.startswith("fusion."): assert d == top - 1, n
    blocks = [depth[f"stages.{s}.blocks.{b}.mlp.fc1.weight"] for s,k in enumerate(SMALL["depths"]) for b in range(k)]
    assert blocks == ([1, 2, 3, 3, 4] if coarse else [1, 2, 3, 4, 5])
    assert depth["norm.weight"] == depth["fc_norm.bias"] == blocks[-1] and depth["stages.2.downsample.reduction.weight"] == blocks[2]

def test_layer_wise_decay_of_five_depths():
    groups = param_groups(seeded(depths=(1, 1, 1, 1)), lr_decay=.75)
    scales = sorted({g["lr_scale"] for g in groups})
    assert scales == pytest.approx([.75**k for k in (5, 4, 3, 2, 1, 0)])

def test_tables_and_prototypes_do_not_decay():
    model = seeded(spectral_channels=2)
    flags = decays(model)
    assert not any(flags[n] for n in ("pos_embed", "spectral.pos_embed", "fusion.prototypes", "norm.weight", "head.bias", "fusion.kv.bias"))
    assert all(flags[n] for n in ("patch_embed.proj.weight", "stages.1.downsample.reduction.weight", "fusion.q.weight", "head.weight"))


# ---------------------------------------------------------------------------------------------- memory, precision, static shapes

def step(model, x, seed=3):
    torch.manual_seed(seed)
    out = model.train()(x)
    out.square().sum().backward()
    return out.detach(), [p.grad for p in model.parameters()]

@pytest.mark.parametrize("kw", [dict(drop_path_rate=.5, proj_drop_rate=.2), dict(spectral_channels=2, modality_dropout=.4, drop_path_rate=.3)])
def test_checkpointing_gives_the_same_step(kw):
    plain,saving = seeded(**kw),seeded(**kw)
    saving.set_grad_checkpointing()
    x = images(4, plain.in_chans, 16, 16)
    (out,grads),(out2,grads2) = step(plain, x),step(saving, x)
    assert torch.equal(out, out2) and all(torch.allclose(a, b, atol=1e-6) for a,b in zip(grads, grads2))

def test_checkpointing_keeps_less():
    def kept(on):
        seen,model = {},seeded(depths=(4, 4, 4, 4)).train()
        model.set_grad_checkpointing(on)
        def note(t):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t): out = model(images(4, 3, 16, 16))
        return out.requires_grad*sum(seen.values())
    assert kept(True) < .5*kept(False)

def test_attention_is_scaled_dot_product():
    model = seeded(spectral_channels=2).eval()
    calls = []
    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.scaled_dot_product_attention: calls.append(args[0].shape)
            return func(*args, **(kwargs or {}))
    with Count(), torch.no_grad(): model(images(1, 5, 16, 16))
    assert len(calls) == 2*sum(SMALL["depths"]) + 1

@pytest.mark.parametrize("kw", [{}, dict(spectral_channels=2, modality_dropout=.3)])
def test_a_training_pass_compiles_to_one_graph(kw):
    "No break, so no look at values and no shape that depends on them"
    model = seeded(**kw, drop_path_rate=.2).train()
    x = images(4, model.in_chans, 16, 16)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.manual_seed(0)
    want = model(x)
    torch.manual_seed(0)
    assert torch.allclose(compiled(x), want, atol=1e-5)

def test_it_runs_without_values():
    model,mode = hvit(**TWO, modality_dropout=.3).train(),FakeTensorMode()
    weights = {k: mode.from_tensor(v) for k,v in model.named_parameters()}
    with mode:
        out = torch.func.functional_call(model, weights, (torch.empty(4, 5, 32, 16), None, torch.empty(4, 1, 32, 16)))
        out.sum().backward()
    assert out.shape == (4, 5)

def test_half_precision_is_near_full_precision():
    model = seeded(spectral_channels=2).eval()
    x = images(4, 5, 16, 16)
    with torch.no_grad():
        full = model(x)
        with torch.autocast("cpu", torch.bfloat16): half = model(x)
    assert torch.allclose(half.float(), full, atol=.03)

def test_operations_are_those_of_the_formula():
    "Tokens: 12 d² a block, and twice N² d for attention"
    with torch.device("meta"): model = hvit(**SMALL) # where all kinds of attention are counted
    with FlopCounterMode(display=False) as counter: model(torch.empty(1, 3, 16, 16, device="meta"))
    want,grid,d = 3*4*8*64,64,8 # patch embedding
    for s,depth in enumerate(SMALL["depths"]):
        if s:
            grid,d = grid//4,2*d
            want += grid*2*d*d # merging: 2d wide after concatenation of four halves
        want += depth*(12*d*d*grid + 2*grid*grid*d)
    assert counter.get_total_flops()/2 == want + d*5


@pytest.mark.parametrize("kw", [{}, dict(spectral_channels=2)])
def test_samples_of_a_batch_do_not_see_one_another(kw):
    "No batch statistics that a pretext task could be solved by"
    model = seeded(**kw, drop_path_rate=0., **(dict(dfca_drop=0.) if kw else {})).train()
    x = images(3, model.in_chans, 16, 16)
    other = x.clone()
    other[1] += 10
    with torch.no_grad(): a,b = model(x),model(other)
    assert torch.equal(a[[0, 2]], b[[0, 2]]) and not torch.equal(a[1], b[1])

def test_a_part_of_a_batch_draws_as_the_whole_batch():
    "Drop path, dropout and missing spectra of two processes are those of one"
    model = seeded(spectral_channels=2, modality_dropout=.5, drop_path_rate=.5, drop_rate=.3).train()
    x = images(6, 5, 16, 16)
    with torch.no_grad():
        torch.manual_seed(1)
        whole = model(x)
        for part in (np.array([0, 2, 4]), np.array([1, 3, 5])):
            torch.manual_seed(1)
            with WholeBatch(6, part): assert torch.allclose(model(x[part]), whole[part], atol=1e-5)


# ---------------------------------------------------------------------------------------------- every option acts, and weights

OPTIONS = dict(img_size=32, num_classes=3, patch_size=1, in_chans=1, embed_dim=16, depths=(1, 2, 2, 1), num_heads=(2, 2, 2, 2), mlp_ratio=2., drop_path_rate=.6, drop_rate=.5,
               proj_drop_rate=.5, attn_drop_rate=.5, pad=True, spectral_channels=1)
SPECTRAL_OPTIONS = dict(spectral_embed_dim=16, use_dfca=False, dfca_num_heads=2, dfca_drop=.5, modality_dropout=.5)

def trace(**kw):
    "What can be seen of a model: shapes of weights, and a training pass on an image that is legal for all"
    model = seeded(**kw).train()
    size = (16, 24) if kw.get("pad") else (16, 16)
    x = images(4, model.in_chans, *size)
    torch.manual_seed(2)
    return [tuple(p.shape) for p in model.parameters()], model(x).detach()

def differs(a, b): return a[0] != b[0] or a[1].shape != b[1].shape or not torch.equal(a[1], b[1])

def test_no_option_is_forgotten(): assert {*OPTIONS, *SPECTRAL_OPTIONS} == set(models["hvit_small"].options())

def test_same_options_same_model(): assert not differs(trace(), trace()) and not differs(trace(spectral_channels=2), trace(spectral_channels=2))

@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_acts(option): assert differs(trace(), trace(**{option: OPTIONS[option]}))

@pytest.mark.parametrize("option", SPECTRAL_OPTIONS)
def test_every_option_of_the_spectral_stream_acts(option):
    assert differs(trace(spectral_channels=2), trace(spectral_channels=2, **{option: SPECTRAL_OPTIONS[option]}))

def test_weights_of_another_size_fit_and_say_so(tmp_path, capsys):
    old = seeded(img_size=(16, 32))
    torch.save(old.state_dict(), tmp_path/"phase1.pth")
    new = create_model("hvit_micro", pretrained=tmp_path/"phase1.pth", **{**SMALL, "img_size":32})
    assert new.load_report.adapted == ["pos_embed"] and not new.load_report.fresh and "resized: pos_embed" in capsys.readouterr().out
    x = images(1, 3, 32, 32)
    with torch.no_grad(): assert torch.allclose(new.eval()(x), old.eval()(x), atol=1e-4) # as the old one does it when it runs

def test_weights_of_another_patch_fit():
    old = seeded(patch_size=2)
    new = seeded(1, patch_size=4, img_size=32)
    assert "patch_embed.proj.weight" in load_weights(new, old.state_dict(), adapt=fit_hvit_state).adapted
    flat = torch.ones(1, 3, 32, 32)
    with torch.no_grad(): assert torch.allclose(new.patch_embed(flat)[0,0,0], old.patch_embed(flat)[0,0,0], atol=1e-3)

def test_filters_of_three_colours_fit_six_channels_with_the_same_response():
    "A20: repeated and halved; on an image that is repeated too nothing changes"
    three,six = seeded(),seeded(in_chans=6, seed=3)
    report = load_weights(six, three.state_dict(), adapt=fit_hvit_state)
    assert report.adapted == ["patch_embed.proj.weight"]
    x = images(2, 3, 16, 16)
    with torch.no_grad(): assert torch.allclose(six.eval()(x.repeat(1, 2, 1, 1)), three.eval()(x), atol=3e-5)

def test_two_streams_take_the_weights_of_one_and_say_what_is_random():
    one,two = seeded(),seeded(1, spectral_channels=2)
    report = load_weights(two, one.state_dict(), "phase 1", fit_hvit_state, two.fresh)
    assert torch.equal(two.stages[3].blocks[0].mlp.fc1.weight, one.stages[3].blocks[0].mlp.fc1.weight)
    assert report.loaded == len(one.state_dict()) and all(n.startswith(("spectral.", "fusion.")) for n in report.fresh) and report.fresh
    assert "left at random: spectral.pos_embed" in str(report)

def test_another_number_of_classes_starts_with_a_new_classifier():
    new = seeded(1, num_classes=3)
    assert load_weights(new, seeded().state_dict(), adapt=fit_hvit_state).fresh == ["head.weight", "head.bias"]

@pytest.mark.parametrize("kw", [dict(embed_dim=16), dict(depths=(1, 1, 1, 1)), dict(depths=(2, 1, 2, 1)), dict(mlp_ratio=2.)])
def test_another_architecture_is_refused(kw):
    with pytest.raises(ValueError, match="does not fit this HierarchicalViT.*create the model that the weights were trained with"):
        load_weights(seeded(**kw), seeded().state_dict(), adapt=fit_hvit_state)

def test_another_family_is_refused():
    with pytest.raises(ValueError, match="does not fit this HierarchicalViT"):
        load_weights(seeded(), create_model("swin_micro", img_size=16).state_dict(), adapt=fit_hvit_state)

def test_the_first_weights_are_the_guides():
    torch.manual_seed(0)
    model = create_model("hvit_micro", spectral_channels=2)
    assert model.head.weight.std().item() == pytest.approx(.02, rel=.05) and model.fusion.q.weight.std().item() == pytest.approx(.02, rel=.05)
    assert model.pos_embed.std().item() == pytest.approx(.02, rel=.1) and not model.fusion.prototypes.any() and not model.head.bias.any()
    conv = model.patch_embed.proj.weight # kaiming, fan out
    assert conv.std().item() == pytest.approx(math.sqrt(2/(conv.shape[0]*conv.shape[2]*conv.shape[3])), rel=.1)
    assert all(torch.equal(m.weight, torch.ones_like(m.weight)) for m in model.modules() if isinstance(m, torch.nn.LayerNorm))

def test_it_learns():
    model,x,y = create_model("hvit_micro", img_size=32, num_classes=4).train(),images(8, 3, 32, 32),torch.arange(8) % 4
    opt,values = torch.optim.AdamW(model.parameters(), 2e-3),[]
    for _ in range(25):
        values.append(F.cross_entropy(model(x), y))
        opt.zero_grad()
        values[-1].backward()
        opt.step()
    assert values[-1] < .5*values[0]

def test_a_set_of_five_channels_trains_two_streams_without_a_line_of_the_engine():
    "The loader says how many channels there are, the caller how many of them are spectral"
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=48)
    x = rng.normal(0, .3, (48, 8, 8, 5)).astype(np.float32)
    x[...,4] += y[:,None,None]
    data = ImageSet("leaves", OneClass(("healthy", "ill")), dict(train=Split(x[:32], y[:32]), valid=Split(x[32:], y[32:])))
    dls = image_loaders(data, bs=8, valid_bs=16, seed=0, workers=0, augment="basic")
    learn = vit_learner(dls, "hvit_micro", model_kw=dict(patch_size=1, spectral_channels=2, modality_dropout=.1), lr=2e-3, seed=0, precision="fp32")
    learn.logger = lambda *a: None
    with learn.no_bar(): learn.fit(4)
    assert learn.model.channels == 3 and learn.model.spectral_channels == 2 and learn.validate()[1] > .9
