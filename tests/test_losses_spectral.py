"Losses of filled-in cubes against slow references: each term, invalid voxels, bounds, slopes that stay finite"
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.losses.base import add_terms, divide
from vitnb.losses.spectral import (SpectralMAELoss, masked_mse, patchify, range_penalty, reconstruct, masked_tokens, spectral_angle, spectral_std, token_stats,
                                   unpatchify, voxel_mask)

PATCH,SHAPE = (2, 3),(6, 4, 8) # 2 band groups, 2x4 places: 16 tokens of 12 values


def means(loss, *args): return {k: float(divide(*o).detach()) for k,o in loss.terms(*args).items()}

def gen(seed): return torch.Generator().manual_seed(seed)

def answer(cube, seed=0, n_visible=5, every=False, off=.2):
    "What a model could return: noisy predictions of the removed tokens, or of all"
    tokens = patchify(cube, PATCH)
    order = torch.rand(tokens.shape[:2], generator=gen(seed)).argsort(1)
    mask = torch.ones(order.shape, dtype=torch.bool).scatter(1, order[:,:n_visible], False)
    index = order if every else order[:,n_visible:]
    pred = torch.stack([t[i] for t,i in zip(tokens, index)])
    return dict(pred=(pred + off*torch.randn(pred.shape, generator=gen(seed+1))).requires_grad_(), index=index, mask=mask, n_visible=n_visible, patch=PATCH)

def slow_terms(out, cube, valid=None, low=None, high=None, norm_target=False):
    "Each term by loops over tokens and pixels, in double precision, with the arc cosine"
    cube,(p,s),(C,H,W) = cube.double(),PATCH,cube.shape[1:]
    valid = torch.ones_like(cube).bool() if valid is None else valid.expand_as(cube)
    low,high = (torch.full((C,), d) if b is None else torch.as_tensor(b).expand(C) for b,d in ((low, 0.), (high, 1.)))
    made,gone = cube.clone(),torch.zeros_like(cube).bool()
    errors,over = [],[]
    pred,index = masked_tokens(out)[0].detach(),masked_tokens(out)[1]
    for b in range(len(cube)):
        for k,i in enumerate(index[b].tolist()):
            t,r,c = i//(H//p*(W//p)),i//(W//p) % (H//p),i % (W//p)
            box = (b, slice(t*s, t*s+s), slice(r*p, r*p+p), slice(c*p, c*p+p))
            y,w,v = cube[box],valid[box],pred[b,k].view(s, p, p).double()
            if norm_target:
                mean,std = y[w].mean(),(y[w].var(correction=min(1, max(0, int(w.sum())-1))) + 1e-6).sqrt()
                if w.any(): errors.append((v - (y - mean)/std)[w].square().mean())
                v = v*std + mean
            elif w.any(): errors.append((v - y)[w].square().mean())
            made[box],gone[box] = torch.where(w, v, y),True
            for j in range(s):
                o = v[j][w[j]]
                over += ((low[t*s+j] - o).relu() + (o - high[t*s+j]).relu()).tolist()
    angles,spread = [],[]
    for b,i,j in (gone.any(1) & valid.any(1)).nonzero().tolist():
        u,v = made[b,:,i,j],cube[b,:,i,j]
        angles.append(torch.acos((u@v/u.norm()/v.norm()).clamp(-1, 1)))
        spread.append(((u.var(correction=0) + 1e-6).sqrt() - (v.var(correction=0) + 1e-6).sqrt()).square())
    mean = lambda o: float(torch.stack(o).mean()) if o and torch.is_tensor(o[0]) else sum(o)/max(1, len(o))
    return dict(mse=mean(errors), sam=mean(angles), variance=mean(spread), range=mean(over)),made

def case(seed, kind):
    "A cube with pixels or voxels that are not valid"
    cube = torch.rand(2, *SHAPE, generator=gen(seed)) + .05
    valid = dict(all=None, pixels=torch.rand(2, 1, 4, 8, generator=gen(seed+5)) > .3, voxels=torch.rand(2, *SHAPE, generator=gen(seed+5)) > .3)[kind]
    return cube,valid

@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), kind=st.sampled_from(["all", "pixels", "voxels"]), every=st.booleans(), norm=st.booleans())
def test_terms_equal_the_slow_reference(seed, kind, every, norm):
    if norm and kind == "voxels": kind = "pixels"
    cube,valid = case(seed, kind)
    out = answer(cube, seed, every=every)
    loss = SpectralMAELoss(norm_target=norm)
    total,(want,_) = loss(out, cube, valid).detach(),slow_terms(out, cube, valid, norm_target=norm)
    got = means(loss, out, cube, valid)
    for k,v in want.items(): assert got[k] == pytest.approx(v, rel=2e-4, abs=2e-5), k
    assert float(total) == pytest.approx(sum(w*want[k] for k,w in dict(mse=1., sam=.1, variance=.01, range=.001).items()), rel=2e-4, abs=2e-5)

def test_default_weights_are_the_guides():
    assert SpectralMAELoss().weights == dict(mse=1., sam=.1, variance=.01, range=.001, group=0.)

@pytest.mark.parametrize("k,arg", [("mse", "mse_weight"), ("sam", "sam_weight"), ("variance", "variance_weight"), ("range", "range_penalty_weight"), ("group", "group_weight")])
def test_each_weight_acts_and_every_term_is_kept(k, arg):
    cube,_ = case(1, "all")
    out = answer(cube)
    alone = SpectralMAELoss(**{**dict(mse_weight=0., sam_weight=0., variance_weight=0., range_penalty_weight=0.), arg:2.})
    value,terms = alone(out, cube),means(alone, out, cube)
    assert float(value) == pytest.approx(2*terms[k]) and value.requires_grad and set(terms) == set(alone.weights)
    for n,v in means(SpectralMAELoss(), out, cube).items(): assert v == pytest.approx(terms[n], rel=1e-6)

def test_the_gradient_reaches_removed_tokens_only():
    cube,_ = case(2, "all")
    out = answer(cube, every=True)
    SpectralMAELoss()(out, cube).backward()
    g = out["pred"].grad
    assert not g[:,:5].any() and (g[:,5:].abs().sum(-1) > 0).all()

def test_invalid_pixels_have_no_say():
    cube,valid = case(3, "pixels")
    out = answer(cube)
    loss = SpectralMAELoss()
    a = loss(out, cube, valid)
    a.backward()
    inside = torch.stack([t[i] for t,i in zip(patchify(valid.expand_as(cube), PATCH), out["index"])])
    assert not out["pred"].grad[~inside].any()
    wild = torch.where(valid, cube, 1e6)
    other = {**out, "pred":torch.where(inside, out["pred"].detach(), -1e6)}
    assert torch.allclose(loss(other, wild, valid), a, rtol=1e-5)
    nothing = loss(out, cube, torch.zeros_like(valid))
    assert float(nothing) == 0 and nothing.isfinite()

def test_group_term_is_of_means_over_groups():
    cube,_ = case(4, "all")
    out = answer(cube)
    loss = SpectralMAELoss(group_weight=1.)
    _,made = slow_terms(out, cube)
    gone = voxel_mask(out, SHAPE).any(1)
    groups = lambda c: c.unflatten(1, (2, 3)).mean(1)
    want = (groups(made) - groups(cube.double())).square().mean(1)[gone].mean()
    assert means(loss, out, cube)["group"] == pytest.approx(float(want), rel=1e-4)

@pytest.mark.parametrize("low,high", [(-1., 2.), ([-.1*i for i in range(6)], [.5 + .1*i for i in range(6)])])
def test_bounds_are_the_normalisers(low, high):
    cube,_ = case(5, "all")
    out = answer(cube, off=2.)
    loss = SpectralMAELoss(low=low, high=high)
    want,_ = slow_terms(out, cube, low=low, high=high)
    assert means(loss, out, cube)["range"] == pytest.approx(want["range"], rel=1e-4)
    with pytest.raises(ValueError, match="do not fit cubes of 6 bands"): SpectralMAELoss(low=[0.]*4)(out, cube)

def test_range_penalty_by_hand():
    assert range_penalty(torch.tensor([-1., 0, .5, 1, 3])).tolist() == [1, 0, 0, 0, 2]

def test_normalised_targets_are_each_tokens_own():
    t = torch.rand(2, 3, 12, generator=gen(0))
    mean,std = token_stats(t)
    assert torch.allclose(((t - mean)/std).mean(-1), torch.zeros(2, 3), atol=1e-6) and torch.allclose(std[...,0], (t.var(-1) + 1e-6).sqrt())
    cube,_ = case(6, "all")
    out = answer(cube)
    out["pred"] = ((masked_tokens(out)[0] - 0).detach()*0) # predicting 0 means predicting the token's own mean
    made = patchify(reconstruct(out, cube, norm_target=True), PATCH)
    truth = patchify(cube, PATCH)
    for b,i in zip(range(2), out["index"]): assert torch.allclose(made[b,i], truth[b,i].mean(-1, keepdim=True).expand(-1, 12), atol=1e-6)

@settings(max_examples=60, deadline=None)
@given(T=st.integers(1, 3), h=st.integers(1, 3), w=st.integers(1, 4), s=st.integers(1, 3), p=st.integers(1, 3), seed=st.integers(0, 99))
def test_patchify_and_back(T, h, w, s, p, seed):
    x = torch.rand(2, T*s, h*p, w*p, generator=gen(seed))
    tokens = patchify(x, (p, s))
    assert tokens.shape == (2, T*h*w, s*p*p) and torch.equal(unpatchify(tokens, (p, s), x.shape[1:]), x)

def test_tokens_are_those_of_the_model():
    from vitnb.models.spectral import take_tokens
    x = torch.rand(2, *SHAPE, generator=gen(1))
    assert torch.equal(patchify(x, PATCH), take_tokens(x, PATCH, torch.arange(16).expand(2, -1)))


# the angle

@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 9999), n=st.integers(2, 40), scale=st.floats(.1, 1e3))
def test_angle_equals_the_arc_cosine_in_double_precision(seed, n, scale):
    u,v = torch.randn(2, 20, n, generator=gen(seed), dtype=torch.float64)
    want = torch.acos(torch.nn.functional.cosine_similarity(u, v).clamp(-1, 1))
    assert torch.allclose(spectral_angle(scale*u, v).double(), want, atol=3e-6*math.pi)

def test_angle_is_exact_where_the_arc_cosine_fails():
    u = torch.rand(10_000, 30, generator=gen(0))
    assert float(spectral_angle(u, u).max()) == 0 and float(spectral_angle(u, 3*u).max()) < 1e-6
    assert torch.allclose(spectral_angle(u, -u), torch.tensor(math.pi))
    v = u.clone()
    v[:,0] += 1e-4 # far below the floor of a clamped arc cosine, 4.9e-4
    exact = torch.acos(torch.nn.functional.cosine_similarity(u.double(), v.double()))
    assert torch.allclose(spectral_angle(u, v), exact.float(), rtol=.02, atol=1e-7)

@pytest.mark.parametrize("a,b", [("same", "same"), ("zero", "same"), ("zero", "zero"), ("same", "zero"), ("same", "negative"), ("tiny", "same")])
def test_slopes_are_finite(a, b):
    base = torch.rand(5, 8, generator=gen(1))
    made = dict(same=base, zero=torch.zeros(5, 8), negative=-base, tiny=1e-20*base)
    u,v = made[a].clone().requires_grad_(),made[b].clone().requires_grad_()
    angle = spectral_angle(u, v)
    angle.sum().backward()
    assert angle.isfinite().all() and u.grad.isfinite().all() and v.grad.isfinite().all()

@pytest.mark.parametrize("value", [0., 1., .5])
def test_loss_has_finite_slopes_on_flat_cubes(value):
    cube = torch.full((2, *SHAPE), value)
    for off in (0., .1):
        out = answer(cube, off=off)
        SpectralMAELoss()(out, cube).backward()
        assert out["pred"].grad.isfinite().all() and float(out["pred"].grad.abs().max()) < 10

def test_slopes_of_the_loss_are_right():
    cube,valid = case(7, "pixels")
    out = answer(cube, off=.1)
    loss,pred = SpectralMAELoss(1., 1., 1., 0.),out["pred"].detach().clone() # the range penalty has corners
    loss(out, cube, valid).backward()
    direction = torch.randn(pred.shape, generator=gen(3))
    step = lambda e: float(loss({**out, "pred":pred + e*direction}, cube, valid).double())
    assert float((out["pred"].grad*direction).sum()) == pytest.approx((step(4e-3) - step(-4e-3))/8e-3, rel=2e-2)

def test_half_precision_goes_through_float32():
    cube,_ = case(8, "all")
    out = answer(cube)
    half = {**out, "pred":out["pred"].detach().bfloat16()}
    loss = SpectralMAELoss()
    with torch.autocast("cpu", torch.bfloat16): a = loss(half, cube)
    assert a.dtype == torch.float32 and float(a) == pytest.approx(float(loss({**out, "pred":half["pred"].float()}, cube)), rel=1e-6)

def test_masked_mse_is_over_tokens():
    pred,target = torch.zeros(1, 2, 4),torch.tensor([[[1., 1, 1, 1], [2, 2, 2, 2]]])
    assert float(masked_mse(pred, target)) == 2.5
    w = torch.tensor([[[1, 0, 0, 0], [1, 1, 1, 1]]]).bool()
    assert float(masked_mse(pred, target, w)) == 2.5 # a token with one valid value counts as much as a whole one

def test_std_by_hand():
    assert float(spectral_std(torch.tensor([[1., 3.]]))) == pytest.approx(1., abs=1e-5)

@pytest.mark.parametrize("kw,message", [(dict(mse_weight=-1.), "mse weight -1"), (dict(low=1., high=0.), "must be below"),
                                        (dict(mse_weight=0, sam_weight=0, variance_weight=0, range_penalty_weight=0), "nothing to learn")])
def test_bad_settings(kw, message):
    with pytest.raises(ValueError, match=message): SpectralMAELoss(**kw)


@pytest.mark.parametrize("kind", ["all", "pixels", "voxels"])
def test_two_parts_are_the_whole_and_counts_need_no_answer(kind):
    cube,valid = case(8, kind)
    out,loss = answer(cube),SpectralMAELoss(group_weight=.5)
    rows = lambda i: ({k: v[i:i+1] if torch.is_tensor(v) else v for k,v in out.items()}, cube[i:i+1], None if valid is None else valid[i:i+1])
    joined = add_terms(*(loss.terms(*rows(i)) for i in range(2)))
    for k,(total,n) in loss.terms(out, cube, valid).items():
        assert float(joined[k][0]) == pytest.approx(float(total), rel=1e-5, abs=1e-6) and int(joined[k][1]) == int(n), k
    masks = {k: v for k,v in out.items() if k != "pred"}
    assert {k: int(n) for k,n in loss.counts(masks, 6, valid).items()} == {k: int(n) for k,(_,n) in loss.terms(out, cube, valid).items()}
