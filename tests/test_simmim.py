"Masked pixels: what is hidden, what the model can see of it, what counts in the loss, and what phase two takes over"
import numpy as np
import pytest
import torch
from contrastive_worker import image_set, outcome
from tiny_tasks import Die, DieAt

from vitnb.callback.pretext import make_pretext
from vitnb.callback.simmim import MaskedPixels, hidden_units, pixel_distance, unit_norm
from vitnb.data.loader import image_loaders
from vitnb.learner.core import load_model, run_callbacks, train_callbacks, vit_learner
from vitnb.learner.transfer import transfer_learner
from vitnb.models.hvit import hvit
from vitnb.models.protocol import create_model
from vitnb.testing import differences

SMALL = dict(img_size=16, patch_size=2, embed_dim=16, depths=(1, 1), num_heads=(1, 2)) # units of 4 pixels, 16 of them


def of_one_colour():
    "Images whose gaps can be told from what is left"
    s = image_set()
    for split in s.splits.values(): split.items = np.broadcast_to(split.items[:,:1,:1], split.items.shape).copy()
    return s


def make(bs=16, accumulate=1, data=None, model_kw=SMALL, arch="hvit_micro", **pretext):
    dls = image_loaders(data or image_set(channels=model_kw.get("in_chans", 3)), bs=bs, valid_bs=12, seed=5, workers=0, augment="none", device="cpu")
    kw = dict(seed=3, precision="fp32", lr=3e-3, optimizer="adamw", weight_decay=.01)
    learn = vit_learner(dls, arch, dict(model_kw, drop_path_rate=0.) if arch == "hvit_micro" else {}, pretext=dict(name="masked_pixels", **pretext), cbs=train_callbacks(accumulate=accumulate), **kw)
    learn.logger = lambda *a: None
    return learn


def quiet_fit(learn, n=1, **kw):
    with learn.no_bar(): learn.fit(n, **kw)
    return learn


def filler(seed=0, **kw):
    torch.manual_seed(seed)
    model = hvit(**{**SMALL, **kw})
    model.reconstruct_pixels()
    return model


@pytest.mark.parametrize("ratio", [.25, .6, .75])
@pytest.mark.parametrize("grid", [(4, 4), (2, 9)])
def test_masks_are_a_function_of_seed_epoch_and_position(ratio, grid):
    masks = lambda seed, epoch, positions: hidden_units(seed, epoch, np.asarray(positions), grid, ratio)
    all_of = masks(1, 2, range(40))
    assert (all_of.sum((1, 2)) == round(ratio*grid[0]*grid[1])).all() and np.array_equal(all_of[[7, 3]], masks(1, 2, [7, 3]))
    assert not np.array_equal(all_of, masks(1, 3, range(40))) and not np.array_equal(all_of, masks(2, 2, range(40)))
    many = masks(0, 0, range(4000)).mean(0)
    assert abs(many - round(ratio*many.size)/many.size).max() < .04, "each unit as often"


def test_what_is_hidden_has_no_influence_and_what_is_visible_has():
    model,image = filler().eval(),torch.randn(2, 3, 16, 16)
    hidden = torch.from_numpy(hidden_units(0, 0, np.arange(2), (4, 4), .6)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:,None]
    other,seen = torch.where(hidden, 9., image),torch.where(hidden, image, image + 1)
    gaps = lambda x: torch.where(hidden, torch.nan, x)
    with torch.no_grad(): a,b,c = (model(gaps(x)) for x in (image, other, seen))
    assert torch.equal(a, b) and a.isfinite().all() and a.shape == image.shape and not torch.allclose(a, c, atol=1e-4)
    with torch.no_grad():
        model.mask_token.copy_(torch.randn(16)) # a constant would be lost in the layer norm
        assert not torch.allclose(model(gaps(image)), a, atol=1e-4)


def test_a_hidden_patch_is_the_token_and_its_place():
    model = filler()
    image = torch.randn(1, 3, 16, 16)
    image[:,:,4:6,8:10] = torch.nan
    tokens = model.embed(image)
    assert torch.equal(tokens[0,2,4], model.mask_token + model.pos_embed[0,2,4])
    plain = hvit(**SMALL)
    plain.load_state_dict({k: v for k,v in model.state_dict().items() if not k.startswith(MaskedPixels.parts)} | {k: v for k,v in plain.state_dict().items() if k.startswith("head.")})
    keep = torch.ones(8, 8, dtype=torch.bool)
    keep[2,4] = False
    assert torch.allclose(tokens[0][keep], plain.embed(image.nan_to_num())[0][keep], atol=1e-6)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_loss_is_that_of_a_loop_over_hidden_pixels(distance):
    g = torch.Generator().manual_seed(1)
    pred,target = (torch.randn(3, 2, 8, 8, generator=g) for _ in range(2))
    hidden = torch.from_numpy(hidden_units(0, 1, np.arange(3), (4, 4), .4))
    want,n = 0.,0
    for i,c,y,x in np.ndindex(3, 2, 8, 8):
        if not hidden[i,y//2,x//2]: continue
        off = (pred[i,c,y,x] - target[i,c,y,x]).item()
        want,n = want + (abs(off) if distance == "l1" else off**2),n + 1
    task = MaskedPixels(.4, distance)
    task.side = 2
    total,count = task.terms(pred, dict(target=target, hidden=hidden))["loss"]
    assert total.item() == pytest.approx(want, rel=1e-5) and count.item() == n == task.counts(dict(target=target, hidden=hidden))["loss"].item()
    changed = torch.where(hidden[:,None].repeat_interleave(2, 2).repeat_interleave(2, 3), pred, pred + 5)
    assert pixel_distance(changed, target, hidden, distance == "l2").item() == total.item(), "visible pixels have no part"


def test_targets_in_units_of_their_own_are_those_of_a_loop():
    image = torch.randn(2, 3, 8, 12)*3 + 1
    got = unit_norm(image, 4)
    for i,r,c in np.ndindex(2, 2, 3):
        part = image[i,:,4*r:4*r+4,4*c:4*c+4]
        assert torch.allclose(got[i,:,4*r:4*r+4,4*c:4*c+4], (part - part.mean())/part.var(correction=0).add(1e-6).sqrt(), atol=1e-5)


def test_two_halves_are_the_whole_batch():
    whole,parts = (quiet_fit(make(bs=bs, accumulate=k)) for bs,k in ((16, 1), (8, 2)))
    a,b = whole.model.state_dict(),parts.model.state_dict()
    assert whole.opt_steps == parts.opt_steps == 3 and all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


@pytest.mark.parametrize("options", [{}, dict(ratio=.5, distance="l2")])
def test_it_learns(options):
    learn = quiet_fit(make(data=of_one_colour(), **options), 8)
    losses = [o["loss"] for o in learn.recorder.steps]
    assert np.mean(losses[-5:]) < .8*np.mean(losses[:5]) and learn.monitor == "valid_loss"
    again = make_pretext(learn.pretext.config())
    assert again.config() == learn.pretext.config() == dict(dict(name="masked_pixels", ratio=.6, distance="l1", norm_target=False), **options)
    figure = learn.pretext.draw(learn, 3)
    assert len(figure.axes) == 9


def test_a_killed_run_goes_on_exactly_and_phase_2_leaves_decoder_and_token(tmp_path, capsys):
    whole = outcome(quiet_fit(make(), 2))
    cbs = lambda: run_callbacks(tmp_path, every_n_steps=1, tracker="none")
    with pytest.raises(Die): quiet_fit(make(), 2, cbs=[*cbs(), DieAt(4)], resume="auto")
    learn = quiet_fit(make(), 2, cbs=cbs(), resume="auto")
    got = outcome(learn)
    assert not differences({k: whole[k] for k in ("model", "opt", "losses")}, {k: got[k] for k in ("model", "opt", "losses")})
    file = tmp_path/"checkpoints"/"last_model.pth"
    gaps = torch.full((1, 3, 16, 16), torch.nan)
    assert load_model(file)(gaps).shape == (1, 3, 16, 16)
    data = image_set()
    dls = image_loaders(type(data)("two", ["a", "b"], {k: type(v)(v.items, np.arange(len(v)) % 2) for k,v in data.splits.items()}), bs=16, workers=0, augment="none", device="cpu")
    second = transfer_learner(dls, file, device="cpu", precision="fp32")
    assert sorted(second.load_report.dropped) == ["decoder.proj.bias", "decoder.proj.weight", "mask_token"] and "dropped: " in capsys.readouterr().out
    assert second.load_report.fresh == ["head.weight", "head.bias"] and torch.equal(second.model.stages[1].blocks[0].attn.qkv.weight, learn.model.stages[1].blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("kw,says", [
    (dict(model_kw=dict(SMALL, patch_size=8)), "have 1 × 1 units of 16 pixels.*and 16 are needed; take patch_size=2, or larger images"), (dict(arch="densenet_micro"), "needs a model with reconstruct_pixels, which .* has not; take hvit_small"),
    (dict(model_kw=dict(SMALL, in_chans=5, spectral_channels=2)), "this model has two"), (dict(ratio=0), "ratio=0 must be above 0"), (dict(distance="l3"), "l3")])
def test_what_cannot_be_is_refused(kw, says):
    with pytest.raises(ValueError, match=says): make(**kw)


def test_a_model_of_labels_has_nothing_of_it():
    names = dict(create_model("hvit_micro", num_classes=3, **SMALL).named_parameters())
    assert not any(k.startswith(MaskedPixels.parts) for k in names)
    assert {"mask_token"} <= filler().no_weight_decay()
