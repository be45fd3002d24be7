"Swin: exact sizes, every option acts, windows that fit, and the authors' own files"
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import SMALL, SWIN_OPTIONS, differs, drop_rates, images, meta, n_params, saved, seeded, trace
from timm.models.swin_transformer import checkpoint_filter_fn

from vitnb.models.protocol import create_model, load_weights, model_info
from vitnb.models.swin import choose_window, fitting_windows, swin, swin_micro, token_maps

SWIN_PARAMS = dict(swin_tiny={200: 27_673_154, 1000: 28_288_354}, swin_small={200: 48_991_058, 1000: 49_606_258}, swin_base={200: 86_948_224, 1000: 87_768_224})

@pytest.mark.parametrize("name,classes,n", [(k, c, n) for k,row in SWIN_PARAMS.items() for c,n in row.items()])
def test_swin_parameters(name, classes, n): assert n_params(meta(name, num_classes=classes)) == n

def test_head_dim_is_32_everywhere():
    for name in ("swin_tiny", "swin_small", "swin_base"):
        assert {b.dim//b.attn.num_heads for s in meta(name).layers for b in s.blocks} == {32}

@pytest.mark.parametrize("option", SWIN_OPTIONS)
def test_swin_option_acts(option): assert differs(trace(swin, **SMALL), trace(swin, **{**SMALL, option: SWIN_OPTIONS[option]}))

def test_guides_drop_path():
    assert [round(o[0], 4) for o in drop_rates(meta("swin_tiny"))][:2] == [0, .0091] and drop_rates(meta("swin_tiny"))[-1][0] == pytest.approx(.1)

def test_drop_path_drops_whole_samples_at_its_rate():
    drop = seeded(swin, **SMALL, drop_path_rate=.5).train().layers[-1].blocks[-1].drop_path1
    kept = drop(torch.ones(2000, 2, 2, 16)).flatten(1)
    assert ((kept == 0).all(1) | (kept == 2).all(1)).all() # what stays is scaled, so that the mean is kept
    assert abs(float((kept[:,0] == 0).float().mean()) - .5) < .05


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

def test_other_window_and_patch(saved):
    model,path = saved
    other = create_model("swin_micro", pretrained=path, img_size=32, patch_size=4, window_size=8, num_classes=10)
    assert any("relative_position_bias_table" in o for o in other.load_report.adapted) and "patch_embed.proj.weight" in other.load_report.adapted
    assert torch.equal(other.layers[0].blocks[0].mlp.fc1.weight, model.layers[0].blocks[0].mlp.fc1.weight)

def test_a_swin_of_192_pixels_goes_on_at_256():
    "Masks and indices are no weights, bias tables are resampled, and a size that fits no window is refused by name"
    small = dict(embed_dim=8, depths=(2, 1, 1, 1), num_heads=(1, 1, 2, 2), num_classes=3)
    model,larger = seeded(swin, img_size=192, **small),seeded(swin, 7, img_size=256, **small)
    window = lambda m: m.layers[0].blocks[1].window_size[0]
    assert window(model) != window(larger), "so the tables differ"
    assert not [k for k in model.state_dict() if "mask" in k or "index" in k]
    report = load_weights(larger, model.state_dict(), adapt=checkpoint_filter_fn)
    tables = [k for k in model.state_dict() if k.endswith("relative_position_bias_table")]
    assert not report.fresh and set(report.adapted) >= set(tables) and len(tables) == 5
    with torch.no_grad(): assert larger.eval()(images(1, 3, 256, 256)).isfinite().all()
    with pytest.raises(ValueError, match="img_size=250 is not a whole number of patches of 4 pixels; use img_size 248 or 252"): create_model("swin_tiny", img_size=250)

def test_authors_swin_files_load():
    "The paper's authors merge patches at the end of a stage, timm at the start of the next: timm's filter knows both"
    model = seeded(swin, **SMALL)
    state = {k.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): v for k,v in model.state_dict().items()}
    assert not load_weights(seeded(swin, 5, **SMALL), state, adapt=checkpoint_filter_fn).fresh


@pytest.mark.parametrize("patch_size,size", [(2, 8), (4, 64), (8, 64)])
def test_a_stem_of_convolutions_gives_the_map_of_the_patches(patch_size, size):
    kw = dict(img_size=size, patch_size=patch_size, num_classes=3)
    plain,conv = (create_model("swin_micro", stem=stem, **kw).eval() for stem in ("patch", "conv"))
    x = torch.randn(2, 3, size, size)
    assert conv.patch_embed(x).shape == plain.patch_embed(x).shape and conv(x).shape == (2, 3)
    moved = x.clone()
    moved[..., patch_size - 1] += 1 # the last pixel of the first token's row is seen by the next token
    change = (conv.patch_embed(moved) - conv.patch_embed(x)).abs().sum((0, 1, 3))
    assert change[1] > 0, "unlike a patch, a convolution looks across the border"


@pytest.mark.parametrize("kw,says", [(dict(stem="convs"), "did you mean 'conv'"), (dict(stem="conv", patch_size=6, img_size=48), "power of two")])
def test_a_stem_that_does_not_exist_is_refused(kw, says):
    with pytest.raises(ValueError, match=says): create_model("swin_micro", **kw)
