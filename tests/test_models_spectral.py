"Masked autoencoders of cubes: sizes, masks, what is encoded, other sensors, heads, memory that is not needed"
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from vitnb.callback.memory import MemoryMeter
from vitnb.models.protocol import create_model, load_weights, model_info, models
from vitnb.models.spectral import SPECTRAL_SIZES, SpectralBlock, fit_state, mae_counts, spectral_mae

SMALL = dict(img_size=8, in_chans=6, patch_size=(2, 3), embed_dim=16, depth=2, num_heads=2, decoder_depth=2)
RETINA = [450. + 10*i for i in range(29)] + [850.]


def seeded(seed=0, **kw):
    torch.manual_seed(seed)
    return spectral_mae(**{**SMALL, **kw})

def cubes(*shape, seed=1): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# sizes

ENCODER = dict(tiny=6_016_896, small=22_650_624, base=87_768_576, medium=52_247_552, large=305_928_192, huge=634_201_600)
TOTAL = dict(tiny=7.27, small=26.97, base=103.62, medium=59.60, large=333.48, huge=676.67) # millions, decoder half as wide

@pytest.mark.parametrize("size", ENCODER)
def test_parameters(size):
    with torch.device("meta"): model = create_model(f"spectral_mae_{size}")
    got = mae_counts(model)
    assert got["encoder"] == ENCODER[size] and round(got["total"]/1e6, 2) == pytest.approx(TOTAL[size], abs=.0051)
    assert got["encoder"] + got["decoder"] + got["head"] == got["total"] == sum(p.numel() for p in model.parameters())

@pytest.mark.parametrize("width,total", [(256, 59.60), (192, 56.6), (384, 68.0), (512, 79.54)])
def test_medium_with_other_decoders(width, total):
    with torch.device("meta"): model = create_model("spectral_mae_medium", decoder_embed_dim=width)
    assert round(mae_counts(model)["total"]/1e6, 1) == pytest.approx(total, abs=.06)

def test_the_guides_call():
    with torch.device("meta"): model = create_model("spectral_mae_medium", img_size=500, in_chans=30, patch_size=(25, 5), mask_ratio=0.8)
    assert model.grid == (6, 20, 20) and model.n_tokens == 2400 and model.n_visible == 480 and model.patch_embed.in_features == 3125
    assert model.decoder.norm.weight.numel() == 256 and model.decoder.blocks[0].attn.num_heads == 16 and len(model.decoder.blocks) == 8

@pytest.mark.parametrize("name", [n for n in SPECTRAL_SIZES if n != "spectral_mae_micro"])
def test_widths_that_heads_do_not_divide(name):
    heads = SPECTRAL_SIZES[name]["num_heads"]
    for width in (192, 240, 256, 320, 512):
        if width % heads == 0:
            with torch.device("meta"): create_model(name, decoder_embed_dim=width)
        else:
            with pytest.raises(ValueError, match=f"{heads} heads do not divide a width of {width}"): create_model(name, decoder_embed_dim=width)


# tokens

@pytest.mark.parametrize("kw,message", [
    (dict(img_size=9), "img_size=9 is not a whole number of patches of 2 pixels; use img_size 8 or 10"), (dict(in_chans=7), "7 bands are not a whole number"),
    (dict(img_size=1), "smaller than a patch"), (dict(mask_ratio=1.), "mask_ratio=1"), (dict(mask_ratio=0), "mask_ratio=0"), (dict(mask_ratio=.99), "keeps 0 of 32 tokens"),
    (dict(mask_mode="tubes"), "did you mean 'tube'"), (dict(mask_mode="spectral", mask_ratio=.9), "keeps 0 of 2 band groups"), (dict(drop_rate=1.), "drop_rate=1"),
    (dict(spectral_pos="nm"), "unknown spectral_pos"), (dict(head="pixels"), "did you mean 'pixel'"), (dict(wavelengths=[1.]*5), "not a whole number of groups of 3"),
    (dict(wavelengths=[.4, .5, .6, -.7, .8, .9]), "not in nm"), (dict(wavelengths=[-.4]*6, spectral_pos="index"), "not in nm"),
    (dict(decoder_depth=0), "decoder_depth=0"), (dict(num_heads=3), "3 heads do not divide")])
def test_bad_input(kw, message):
    with pytest.raises(ValueError, match=message): spectral_mae(**{**SMALL, **kw})

@pytest.mark.parametrize("shape", [(2, 5, 8, 8), (2, 6, 8, 10), (6, 8, 8)])
def test_a_cube_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"this model takes \(B,6, 8, 8\)"): seeded()(torch.zeros(shape))


# masks

def test_masks_of_a_sample_do_not_depend_on_its_batch():
    model = seeded()
    whole = model.seeded_order(3, 1, np.arange(10))
    assert torch.equal(whole[6:], model.seeded_order(3, 1, np.arange(6, 10)))
    for other in (model.seeded_order(4, 1, np.arange(10)), model.seeded_order(3, 2, np.arange(10))): assert not torch.equal(whole, other)

def test_training_draws_and_evaluation_does_not():
    model,x = seeded(),cubes(3, 6, 8, 8)
    torch.manual_seed(0)
    a,b = (model.train()(x)["mask"] for _ in range(2))
    torch.manual_seed(0)
    assert not torch.equal(a, b) and torch.equal(a, model(x)["mask"])
    state = torch.get_rng_state()
    a,b = (model.eval()(x) for _ in range(2))
    assert torch.equal(a["pred"], b["pred"]) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(x[:2])["mask"], a["mask"][:2])
    assert not torch.equal(seeded(mask_seed=1).eval()(x)["mask"], a["mask"])


# what is calculated

def slow(model, x, order):
    "The whole model by the book: embed everything, drop, encode, shuffle back, decode, predict everything"
    (p,s),T,(_,h,w) = model.patch_size,model.grid[0],model.grid
    tokens = x.view(len(x), T, s, h, p, w, p).permute(0, 1, 3, 5, 2, 4, 6).flatten(1, 3).flatten(2)
    def attention(b, y):
        q,k,v = b.attn.qkv(y).unflatten(2, (3, b.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return b.attn.proj(((q @ k.transpose(-1, -2)/q.shape[-1]**.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
    def run(blocks, y):
        for b in blocks:
            y = y + attention(b, b.norm1(y))
            y = y + b.mlp.fc2(nn.functional.gelu(b.mlp.fc1(b.norm2(y))))
        return y
    y = model.patch_embed(tokens) + model.pos()
    seen = order[:,:model.n_visible]
    y = model.norm(run(model.blocks, torch.stack([a[i] for a,i in zip(y, seen)])))
    d = model.decoder
    full = d.mask_token.repeat(len(x), model.n_tokens, 1)
    for b,i in enumerate(seen): full[b,i] = d.embed(y[b])
    return d.head(d.norm(run(d.blocks, full + d.pos())))

@pytest.mark.parametrize("kw", [{}, dict(mask_mode="tube", mask_ratio=.5), dict(wavelengths=RETINA[24:]), dict(decoder_embed_dim=24, decoder_num_heads=4)], ids=str)
def test_equals_the_slow_reference(kw):
    model,x = seeded(**kw),cubes(3, 6, 8, 8)
    for p in model.parameters(): nn.init.normal_(p, std=.2)
    order = model.seeded_order(0, 0, np.arange(3))
    want = slow(model, x, order)
    for train in (True, False):
        out = model.train(train)(x, order)
        assert torch.allclose(out["pred"], torch.stack([a[i] for a,i in zip(want, out["index"])]), atol=1e-5)
    grads = lambda out: torch.autograd.grad(out.square().sum(), list(model.parameters()))
    gone = order[:,model.n_visible:]
    for a,b in zip(grads(model.train()(x, order)["pred"]), grads(torch.stack([o[i] for o,i in zip(want, gone)]))):
        assert torch.allclose(a, b, atol=2e-4*float(b.abs().max().clamp_min(1)))

def test_removed_values_change_nothing():
    model,x = seeded().eval(),cubes(2, 6, 8, 8)
    out = model(x)
    other = x.clone()
    grid = out["mask"].view(2, 2, 4, 4).repeat_interleave(3, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    other[grid] = 77.
    assert torch.equal(model(other)["pred"], out["pred"])
    assert not torch.equal(model(torch.where(grid, x, x+1))["pred"], out["pred"])

def test_only_visible_tokens_are_embedded_and_encoded():
    model,seen = seeded(),[]
    for m in (model.patch_embed, model.blocks[0], model.decoder.blocks[0], model.decoder.head):
        m.register_forward_hook(lambda m, i, o: seen.append((i[0].shape[1], o.shape[1])))
    model.train()(cubes(2, 6, 8, 8))
    assert seen == [(6, 6), (6, 6), (32, 32), (26, 26)] # of 32 tokens 6 are visible; the head meets the removed 26

def test_attention_is_fused_whatever_the_environment_says(monkeypatch):
    from timm.layers import config
    monkeypatch.setattr(config, "_USE_FUSED_ATTN", 0)
    assert all(m.attn.fused_attn for m in seeded().modules() if isinstance(m, SpectralBlock))

def test_attention_is_never_a_matrix():
    "Peak memory of a step stays below what one attention matrix of the decoder would take"
    model = spectral_mae(img_size=40, in_chans=30, patch_size=(2, 5), embed_dim=16, depth=1, num_heads=8, decoder_embed_dim=16, decoder_depth=1)
    with MemoryMeter() as meter: model.train()(torch.zeros(1, 30, 40, 40))["pred"].sum().backward()
    assert meter.peak < 8*2400*2400*4

def live(model, every):
    "Bytes that the forward pass of a step leaves for the backward pass"
    x = torch.zeros(1, 30, 40, 40)
    with MemoryMeter((*model.parameters(), x)) as meter:
        z = model.encode(x, None if every else torch.arange(480)[None])
        return meter.live, z.shape[1]

def test_memory_follows_visible_tokens():
    model = spectral_mae(img_size=40, in_chans=30, patch_size=(2, 5), embed_dim=32, depth=6, num_heads=2, decoder_depth=1)
    weights = sum(p.nbytes for p in model.parameters())
    some,every = (live(model.train(), k)[0] - weights for k in (False, True))
    assert some < .25*every

def test_checkpointing_has_the_same_gradients():
    x,order = cubes(2, 6, 8, 8),seeded().seeded_order(0, 0, np.arange(2))
    grads = []
    for on in (False, True):
        model = seeded().train()
        model.set_grad_checkpointing(on)
        model(x, order)["pred"].square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) and all(torch.equal(a, b) for a,b in zip(*grads))

def test_half_precision_is_close():
    model,x = seeded(embed_dim=32).eval(),cubes(2, 6, 8, 8)
    with torch.autocast("cpu", torch.bfloat16): half = model(x)["pred"]
    assert torch.allclose(half.float(), model(x)["pred"], atol=.05) and half.dtype == torch.bfloat16

def test_every_parameter_learns():
    for kw in ({}, dict(wavelengths=RETINA[24:])):
        model = seeded(**kw).train()
        model(cubes(2, 6, 8, 8))["pred"].square().sum().backward()
        assert not [n for n,p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


# options

OPTIONS = dict(img_size=12, in_chans=9, patch_size=(4, 3), mask_ratio=.5, mask_mode="tube", wavelengths=RETINA[24:], spectral_pos="wavelength", num_classes=3,
               embed_dim=32, depth=3, num_heads=4, mlp_ratio=2., decoder_embed_dim=24, decoder_depth=1, decoder_num_heads=1, drop_path_rate=.5, mask_seed=1)

def trace(**kw):
    if kw.get("spectral_pos") == "wavelength" and "wavelengths" not in kw: kw["wavelengths"] = RETINA[:6]
    model = seeded(**kw)
    torch.manual_seed(5)
    x = cubes(4, model.in_chans, *(model.grid[i]*model.patch_size[0] for i in (1, 2)))
    outs = [model.train(t)(x) for t in (True, False)]
    return [tuple(p.shape) for p in model.parameters()],[o if isinstance(o, torch.Tensor) else torch.cat([o["pred"].flatten(), o["mask"].flatten()]) for o in outs]

@pytest.mark.parametrize("option", OPTIONS)
def test_option_acts(option):
    a,b = trace(),trace(**{option:OPTIONS[option]})
    assert a[0] != b[0] or any(p.shape != q.shape or not torch.equal(p, q) for p,q in zip(a[1], b[1]))

def test_no_option_is_forgotten():
    assert {*OPTIONS, "head", "drop_rate"} == set(models["spectral_mae_tiny"].options())

def test_dropout_and_drop_path_act_in_training_only():
    x = cubes(8, 6, 8, 8)
    for kw in (dict(drop_rate=.5), dict(drop_path_rate=.5)):
        model = seeded(num_classes=3, **kw)
        assert not torch.equal(model.train()(x), model(x)) and torch.equal(model.eval()(x), model(x))


# other sensors

def test_one_encoder_takes_other_sensors():
    model = seeded(wavelengths=RETINA[:6]).eval()
    weights = {k:v.clone() for k,v in model.state_dict().items()}
    for nm in ([500., 505, 510, 640, 660, 900, 901, 950, 2000], RETINA[:3]*2):
        model.set_wavelengths(nm)
        out = model(cubes(2, len(nm), 8, 8))
        assert out["mask"].shape == (2, len(nm)//3*16) and out["pred"].isfinite().all()
    assert weights.keys() == model.state_dict().keys() and all(torch.equal(v, weights[k]) for k,v in model.state_dict().items())

def test_order_of_groups_follows_wavelength_not_position():
    "With wavelength positions swapping band groups swaps tokens; with index positions it does not"
    x = cubes(1, 6, 8, 8)
    swapped = x[:,[3, 4, 5, 0, 1, 2]]
    for kw,same in ((dict(wavelengths=RETINA[:6]), True), ({}, False)):
        model = seeded(**kw).eval()
        a = model.forward_features(x)
        if kw: model.set_wavelengths([RETINA[i] for i in (3, 4, 5, 0, 1, 2)])
        b = model.forward_features(swapped).unflatten(1, (2, -1)).flip(1).flatten(1, 2)
        assert torch.allclose(a, b, atol=1e-5) == same

def test_a_missing_band_is_not_looked_at():
    nm = RETINA[:6]
    model = seeded(wavelengths=nm).eval()
    x = cubes(2, 6, 8, 8)
    whole = model.forward_features(x)
    model.set_wavelengths([*nm[:4], math.nan, nm[5]])
    a = model.forward_features(x)
    x[:,4] = math.nan
    assert torch.equal(model.forward_features(x), a) and a.isfinite().all() and not torch.allclose(a, whole)
    with pytest.raises(ValueError, match="all bands of group 1"): model.set_wavelengths([*nm[:3], *[math.nan]*3])
    with pytest.raises(ValueError, match="index positions, which belong to one sensor"): seeded().set_wavelengths(nm)

def test_wavelengths_describe_the_cubes_and_index_positions_do_not_follow_them():
    "The same weights and the same answers as without; a missing band is known all the same"
    plain,told = seeded(spectral_pos="index").eval(),seeded(spectral_pos="index", wavelengths=RETINA[:6]).eval()
    x = cubes(2, 6, 8, 8)
    assert told.spectral_pos == "index" and told.wavelengths == pytest.approx(RETINA[:6])
    assert all(torch.equal(v, told.state_dict()[k]) for k,v in plain.state_dict().items()) and plain.state_dict().keys() == told.state_dict().keys()
    assert torch.equal(plain(x)["pred"], told(x)["pred"]) and told.decoder.pos.code is None
    assert seeded(spectral_pos="index", wavelengths=RETINA[:9]).grid[0] == 3, "there are as many bands as wavelengths"
    gap = seeded(spectral_pos="index", wavelengths=[*RETINA[:4], math.nan, RETINA[5]]).eval()
    a = gap(x)["pred"]
    x[:,4] = math.nan
    assert torch.equal(gap(x)["pred"], a) and not torch.equal(plain(x.nan_to_num())["pred"], a)

def test_a_model_without_wavelengths_says_so():
    with pytest.raises(ValueError, match=r"call set_wavelengths"): seeded(spectral_pos="wavelength")(cubes(1, 6, 8, 8))


# heads and loading

@pytest.mark.parametrize("head,shape", [("pool", (2, 5)), ("patch", (2, 5, 4, 4)), ("pixel", (2, 5, 8, 8))])
def test_heads(head, shape):
    model = seeded(num_classes=5, head=head)
    assert model.decoder is None and model(cubes(2, 6, 8, 8)).shape == shape
    model(cubes(2, 6, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())

def test_pixel_head_puts_outputs_where_their_pixels_are():
    model = seeded(num_classes=1, head="pixel").eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(4.))
    assert torch.equal(model(cubes(1, 6, 8, 8))[0,0,:2,:2], torch.tensor([[0., 1], [2, 3]]))

def test_pooling_takes_every_token():
    model = seeded(num_classes=5).eval()
    tokens = model.forward_features(cubes(2, 6, 8, 8))
    assert tokens.shape == (2, 32, 16) and torch.allclose(model.forward_head(tokens, pre_logits=True), tokens.mean(1))

def test_reset_classifier_makes_a_classifier_of_an_autoencoder():
    model,x = seeded(),cubes(2, 6, 8, 8)
    before = model.forward_features(x)
    model.reset_classifier(7, "patch")
    assert model.decoder is None and model(x).shape == (2, 7, 4, 4) and torch.equal(model.forward_features(x), before)

def test_pretrained_encoder_loads_into_a_classifier(tmp_path):
    mae = seeded(wavelengths=RETINA[:6])
    torch.save(mae.state_dict(), tmp_path/"a.pth")
    entry = dict(patch_size=(2, 3), embed_dim=16, depth=2, num_heads=2, pretrained=tmp_path/"a.pth")
    model = create_model("spectral_mae_micro", img_size=12, wavelengths=[500., 600, 700], num_classes=4, **entry) # other bands, other size
    assert model.load_report.adapted == ["pos.spatial"] and model.load_report.fresh == ["head.weight", "head.bias"]
    for k,v in mae.state_dict().items():
        if k.startswith(("blocks", "patch_embed", "norm")): assert torch.equal(v, model.state_dict()[k])
    with pytest.raises(ValueError, match="does not fit"): create_model("spectral_mae_micro", img_size=12, in_chans=6, num_classes=4, **entry) # index positions

def test_places_are_interpolated_to_an_autoencoder_of_another_size():
    a,b = seeded(),seeded(img_size=12, seed=3)
    report = load_weights(b, a.state_dict(), adapt=fit_state)
    assert report.adapted == ["pos.spatial", "decoder.pos.spatial"] and not report.fresh
    assert b.pos.spatial.shape == (1, 36, 16)
    with pytest.raises(ValueError, match="no square"): load_weights(seeded(img_size=12), seeded(img_size=(8, 4)).state_dict(), adapt=fit_state)

def test_intermediates():
    model,x = seeded(depth=3).eval(),cubes(2, 6, 8, 8)
    last,maps = model.forward_intermediates(x)
    tokens = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(last, model.forward_features(x)) and [tuple(o.shape) for o in maps] == [(2, 16, 4, 4)]*3
    assert all(torch.allclose(m.flatten(2).transpose(1, 2), t.unflatten(1, (2, 16)).mean(1), atol=1e-6) for m,t in zip(maps, tokens))
    assert torch.equal(model.forward_intermediates(x, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)[0], last)
    ran = []
    hooks = [b.register_forward_hook(lambda *a, i=i: ran.append(i)) for i,b in enumerate(model.blocks)]
    early,(only,) = model.forward_intermediates(x, indices=[0], output_fmt="NLC", stop_early=True)
    assert ran == [0] and torch.equal(only, tokens[0]) and torch.equal(early, model.norm(only))
    for h in hooks: h.remove()

def test_rectangles_and_information():
    model = seeded(img_size=(4, 10))
    assert model.grid == (2, 2, 5) and model.train()(cubes(1, 6, 4, 10))["mask"].shape == (1, 20)
    assert model_info(model)["grid"] == [(16, 2, 5)]*2

def test_pickles_and_has_no_persistent_sensor():
    model = seeded(wavelengths=RETINA[:6])
    again = pickle.loads(pickle.dumps(model)).eval()
    assert torch.equal(again(cubes(1, 6, 8, 8))["pred"], model.eval()(cubes(1, 6, 8, 8))["pred"])
    assert not [k for k in model.state_dict() if k.endswith(("pos.code", "band_scale"))]

def test_gmacs_of_the_guides_model():
    "MACs of a block of N tokens and width d are 12Nd^2 + 2N^2d; embedding and head are matrices"
    from torch.utils.flop_counter import FlopCounterMode
    with torch.device("meta"): model,x = create_model("spectral_mae_medium").train(),torch.empty(1, 30, 500, 500)
    with FlopCounterMode(display=False) as counter: model(x)
    block = lambda n, d: 12*n*d*d + 2*n*n*d
    last = 1920*256*256*10 + 2400*256*256*2 + 2*1920*2400*256 # queries, projection and MLP of removed tokens alone
    want = 480*3125*512 + 16*block(480, 512) + 480*512*256 + 7*block(2400, 256) + last + 1920*256*3125
    assert counter.get_total_flops()/2 == want


# the head of the middle

@pytest.mark.parametrize("size,side", [(2, 2), (8, 2), (6, 2), (3, 1), (4, 1), (1, 1)])
def test_the_middle_is_the_place_of_the_labelled_pixel_with_all_its_band_groups(size, side):
    model = seeded(img_size=size, patch_size=(side,3), num_classes=4, head="middle").eval()
    x = cubes(2, 6, size, size)
    tokens = model.forward_features(x)
    place = size//2//side # of pixel size//2, whose class `label_of='center'` gives
    groups,rows,columns = model.grid
    joined = torch.cat([tokens[:,(group*rows + place)*columns + place] for group in range(groups)], 1)
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), joined)
    torch.testing.assert_close(model(x), joined @ model.head.weight.T + model.head.bias)
    assert model.head.in_features == groups*16 and model.get_classifier() is model.head

def test_a_joined_head_belongs_to_its_number_of_band_groups():
    nm = [500. + 10*i for i in range(6)]
    model = seeded(wavelengths=nm, num_classes=4, head="middle")
    model.set_wavelengths([wave + 100 for wave in nm])
    with pytest.raises(ValueError, match="3 band groups do not fit a head that joins 2; call reset_classifier"): model.set_wavelengths([500. + 10*i for i in range(9)])
    encoder = seeded(wavelengths=nm)
    encoder.set_wavelengths([500. + 10*i for i in range(9)])
    encoder.reset_classifier(5, "middle")
    assert encoder(cubes(2, 9, 8, 8)).shape == (2,5)

def test_a_mean_over_band_groups_cannot_tell_what_joined_tokens_can():
    "Two spectra whose band groups changed places: without positions their mean is one, whatever the encoder"
    for head,alike in (("pool", True), ("middle", False)):
        model = seeded(num_classes=3, head=head, img_size=2).eval()
        with torch.no_grad():
            for table in (model.pos.spatial, model.pos.spectral): table.zero_()
            x = cubes(1, 6, 2, 2)
            assert torch.allclose(model(x), model(x[:,[3,4,5,0,1,2]]), atol=1e-5) == alike

