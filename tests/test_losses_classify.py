"Losses against torch, slow references and closed forms"
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.losses import FocalLoss as FastaiFocal
from fastai.losses import LabelSmoothingCrossEntropy
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.losses.classify import CombinedLoss, CrossEntropy, FocalLoss, class_weights, losses, make_loss

W = [.5, 1., 2., 4.]
CLASS_LOSSES = ("combined", "cross_entropy", "focal") # of rows of classes; others have files of their own

def data(B=16, K=4, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return 2*torch.randn(B, K, generator=g, dtype=dtype), torch.randint(K, (B,), generator=g), torch.rand(B, K, generator=g, dtype=dtype).softmax(-1)

def slow_focal(pred, t, gamma, alpha):
    "One number at a time"
    out = []
    for row,target in zip(pred.double().tolist(), t.double().tolist()):
        z = sum(math.exp(v) for v in row)
        ps = [math.exp(v)/z for v in row]
        out.append(sum(-a*q*(1-p)**gamma*math.log(p) for p,q,a in zip(ps, target, alpha)))
    return torch.tensor(out, dtype=torch.float64)

def slow_ce(pred, t, w):
    return slow_focal(pred, t, 0, w)


# ---------------------------------------------------------------- cross-entropy

@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, W])
@pytest.mark.parametrize("smooth", [0., .1, .5])
def test_cross_entropy_is_torchs_with_smoothing_in_training_only(reduction, weight, smooth):
    pred,y,soft = data()
    loss = CrossEntropy(smooth, weight, reduction)
    w = None if weight is None else torch.tensor(weight)
    for t in (y, soft): # to rounding: the mean is a sum and a count here
        by_mass = len(t)/(t*w).sum() if t is soft and w is not None and reduction == "mean" else 1. # torch divides masses by rows, whatever their weights
        torch.testing.assert_close(loss.train()(pred, t), by_mass*F.cross_entropy(pred, t, w, reduction=reduction, label_smoothing=smooth), rtol=1e-6, atol=0)
        torch.testing.assert_close(loss.eval()(pred, t), by_mass*F.cross_entropy(pred, t, w, reduction=reduction), rtol=1e-6, atol=0)

def test_smoothing_equals_fastais_and_its_closed_form():
    pred,y,_ = data()
    ours = CrossEntropy(.1)(pred, y)
    torch.testing.assert_close(ours, LabelSmoothingCrossEntropy(.1)(pred, y))
    torch.testing.assert_close(ours, slow_ce(pred, F.one_hot(y, 4)*.9 + .1/4, [1]*4).float().mean())
    torch.testing.assert_close(CrossEntropy(.3)(torch.zeros(2, 5), torch.tensor([0, 4])), torch.tensor(math.log(5))) # equal logits: log K, smoothed or not

def test_weighted_mean_divides_by_the_weighted_mass():
    "Torch's for indices, and the same for their masses; for mixed ones the closed form"
    pred,y,soft = data()
    w,per = torch.tensor(W),F.cross_entropy(pred, y, reduction="none")
    torch.testing.assert_close(CrossEntropy(weight=W)(pred, y), (w[y]*per).sum()/w[y].sum())
    torch.testing.assert_close(CrossEntropy(weight=W)(pred, F.one_hot(y, 4).float()), F.cross_entropy(pred, y, w))
    torch.testing.assert_close(CrossEntropy(weight=W)(pred, soft), (slow_ce(pred, soft, W).sum()/(soft*w).sum()).float())

@pytest.mark.parametrize("weight", [None, W])
def test_levels_above_levels_with_weights(weight):
    "Level by level: the weight of the target's level times the binary cross-entropies of `above level j`"
    g = torch.Generator().manual_seed(4)
    pred,y,w = torch.randn(9, 3, generator=g),torch.randint(4, (9,), generator=g),torch.tensor(weight or [1.]*4)
    slow = [sum(F.binary_cross_entropy_with_logits(row[j], torch.tensor(float(level > j))) for j in range(3)) for row,level in zip(pred, y)]
    want = sum(w[level]*o for o,level in zip(slow, y))/w[y].sum()
    torch.testing.assert_close(make_loss("cumulative", weight=weight)(pred, y), want)
    torch.testing.assert_close(make_loss("cumulative", weight=weight)(pred, F.one_hot(y, 4).float()), want)


# ---------------------------------------------------------------- focal

def test_focal_oracle():
    one,y = torch.tensor([[2.,0,0]]),torch.tensor([0])
    for gamma,alpha,want in ((0, None, .239545), (2, None, .0108693), (2, .25, .00271733)):
        assert FocalLoss(gamma, alpha)(one, y).item() == pytest.approx(want, rel=1e-5)

def test_focal_of_one_probability_and_of_a_uniform_answer():
    "A19: not divided by the number of classes"
    sure = torch.tensor([[math.log(.9), math.log(.1)]])
    assert FocalLoss(2.)(sure, torch.tensor([0])).item() == pytest.approx(.00105361, rel=1e-5)
    assert FocalLoss(2.)(torch.zeros(3, 7), torch.tensor([0, 3, 6])).item() == pytest.approx(1.429648, rel=1e-6)

@pytest.mark.parametrize("gamma", [0., .5, 1., 2., 5.])
@pytest.mark.parametrize("alpha", [None, W])
def test_focal_against_a_slow_reference(gamma, alpha):
    pred,y,soft = data()
    a = alpha or [1]*4
    for t,dense in ((y, F.one_hot(y, 4)), (soft, soft)):
        ref = slow_focal(pred, dense, gamma, a)
        torch.testing.assert_close(FocalLoss(gamma, alpha, reduction="none")(pred, t).double(), ref, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(FocalLoss(gamma, alpha)(pred, t).double(), ref.mean(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(FocalLoss(gamma, alpha, reduction="sum")(pred, t).double(), ref.sum(), rtol=1e-5, atol=1e-7)

def test_focal_at_gamma_0_is_cross_entropy():
    pred,y,soft = data()
    for t in (y, soft): torch.testing.assert_close(FocalLoss(0.)(pred, t), F.cross_entropy(pred, t))
    w = class_weights(np.bincount(y, minlength=4)) # these average to 1 over the batch: then torch's weighted mean is ours too
    torch.testing.assert_close(FocalLoss(0., w)(pred, y), F.cross_entropy(pred, y, w))
    torch.testing.assert_close(FocalLoss(0., W, reduction="none")(pred, y), F.cross_entropy(pred, y, torch.tensor(W), reduction="none"))

def test_focal_agrees_with_fastai_where_fastai_goes():
    pred,y,_ = data()
    torch.testing.assert_close(FocalLoss(2.)(pred, y), FastaiFocal(gamma=2.)(pred, y))

def test_focal_smoothing_in_training_only():
    pred,y,_ = data()
    loss = FocalLoss(2., label_smoothing=.2)
    torch.testing.assert_close(loss(pred, y).double(), slow_focal(pred, F.one_hot(y, 4)*.8 + .05, 2, [1]*4).mean(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(loss.eval()(pred, y), FocalLoss(2.)(pred, y))

def test_combined_is_the_sum_of_its_parts():
    pred,y,soft = data()
    c = CombinedLoss(gamma=1.5, alpha=.5, label_smoothing=.2, weight=W, w_focal=.3, w_ce=.9)
    for t in (y, soft):
        for mode in (True, False):
            ce = F.cross_entropy(pred, t, torch.tensor(W), label_smoothing=.2 if mode else 0)
            if t is soft: ce = ce*len(t)/(t*torch.tensor(W)).sum() # torch divides masses by rows
            torch.testing.assert_close(c.train(mode)(pred, t), .3*FocalLoss(1.5, .5)(pred, t) + .9*ce)
    d = CombinedLoss()
    torch.testing.assert_close(d(pred, y), .5*FocalLoss(2.)(pred, y) + .5*F.cross_entropy(pred, y, label_smoothing=.1)) # the guide's


# ---------------------------------------------------------------- all of them

@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("weight", [None, W])
def test_soft_one_hot_equals_index(name, weight):
    pred,y,_ = data()
    for mode in (True, False):
        loss = make_loss(name, .1, weight).train(mode)
        loss.reduction = "none"
        torch.testing.assert_close(loss(pred, F.one_hot(y, 4).float()), loss(pred, y))

@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_soft_targets_are_linear(name):
    "MixUp's loss of mixed targets is the mixture of its losses"
    pred,y,_ = data()
    y2,loss = y.flip(0),make_loss(name)
    a,b = F.one_hot(y, 4).float(),F.one_hot(y2, 4).float()
    torch.testing.assert_close(loss(pred, .3*a + .7*b), .3*loss(pred, y) + .7*loss(pred, y2))

@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("soft", [True, False])
def test_gradcheck(name, soft):
    pred,y,s = data(5, 4, dtype=torch.float64)
    loss = make_loss(name, .1, [1., 2., .5, 1.])
    assert torch.autograd.gradcheck(lambda p: loss(p, s if soft else y), pred.requires_grad_())

@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_a_single_precision_loss(name, dtype):
    pred,y,soft = data()
    loss,half = make_loss(name, weight=W),pred.to(dtype)
    for t in (y, soft, soft.to(dtype)):
        out = loss(half, t)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, loss(half.float(), t.float() if t.is_floating_point() else t))
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(loss(half, y), loss(half.float(), y))
    big = make_loss(name)(torch.tensor([[60000., -60000.]], dtype=torch.float16), torch.tensor([1]))
    assert big.dtype == torch.float32 and torch.isfinite(big)

@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("gamma", [0., .5, 2.])
def test_gradients_stay_finite_at_certainty(name, gamma):
    kw = {} if name == "cross_entropy" else dict(gamma=gamma)
    pred = torch.tensor([[1e4, 0., -1e4], [0., 0., 100.]], requires_grad=True)
    make_loss(name, **kw)(pred, torch.tensor([0, 2])).backward()
    assert torch.isfinite(pred.grad).all()

@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_reduction_acts_and_can_be_changed(name):
    pred,y,_ = data()
    loss = make_loss(name)
    m = loss(pred, y)
    loss.reduction = "none"; n = loss(pred, y)
    loss.reduction = "sum"; s = loss(pred, y)
    assert n.shape == (16,) and m.shape == s.shape == ()
    torch.testing.assert_close(n.mean(), m); torch.testing.assert_close(n.sum(), s)
    assert make_loss(name, reduction="none")(pred, y).shape == (16,)

@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_fastai_finds_what_it_asks_for(name):
    pred,y,_ = data()
    loss = make_loss(name)
    torch.testing.assert_close(loss.activation(pred), pred.softmax(-1))
    assert loss.activation(pred.half()).dtype == torch.float32
    assert torch.equal(loss.decodes(loss.activation(pred)), pred.argmax(-1))
    assert "gamma=2" in repr(FocalLoss(alpha=.25)) and "alpha=0.25" in repr(FocalLoss(alpha=.25)) and "weight=[0.5" in repr(CrossEntropy(weight=W))
    twin = pickle.loads(pickle.dumps(loss))
    assert torch.equal(twin(pred, y), loss(pred, y))

ACTS = dict(label_smoothing=.3, weight=W, alpha=W, gamma=.7, reduction="sum", w_focal=.9, w_ce=.1)

@pytest.mark.parametrize("name,option", [(n, o) for n in CLASS_LOSSES for o in inspect.signature(losses[n]).parameters])
def test_each_option_acts(name, option):
    pred,y,_ = data()
    assert not torch.allclose(make_loss(name)(pred, y), make_loss(name, **{option:ACTS[option]})(pred, y))

def test_weight_is_the_focal_losss_alpha():
    pred,y,_ = data()
    assert torch.equal(make_loss("focal", weight=W)(pred, y), FocalLoss(alpha=W)(pred, y))

@pytest.mark.parametrize("call,match", [
    (lambda: make_loss("CombinedLoss"), "unknown loss 'CombinedLoss': did you mean 'combined'"),
    (lambda: make_loss("cross_entropy", gamma=2), "has no option 'gamma'"),
    (lambda: make_loss("focal", weight=W, alpha=W), "same parameter"),
    (lambda: make_loss(label_smoothing=1.), "label_smoothing=1.0 must be"), (lambda: make_loss(label_smoothing=-.1), "must be from 0"),
    (lambda: make_loss("focal", gamma=-1), "gamma=-1 must be"), (lambda: make_loss(reduction="avg"), "unknown reduction 'avg'"),
    (lambda: make_loss("combined", w_focal=0, w_ce=0), "not both 0"), (lambda: make_loss("combined", w_ce=-1), "from 0"),
    (lambda: make_loss()(torch.zeros(2, 3, 4), torch.zeros(2)), "are not \\(N,K\\)"),
    (lambda: make_loss()(torch.zeros(2, 3), torch.zeros(3)), "fit neither"), (lambda: make_loss()(torch.zeros(2, 3), torch.zeros(2, 4)), "fit neither"),
    (lambda: class_weights([3, 0]), "without samples"), (lambda: class_weights([]), "one number above 0"), (lambda: class_weights([[1, 2]]), "one number above 0"),
    (lambda: class_weights([1, math.nan]), "one number above 0")])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match): call()

def test_a_changed_reduction_is_checked():
    loss = make_loss("focal"); loss.reduction = "avg"
    with pytest.raises(ValueError, match="avg"): loss(*data()[:2])

@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=20))
def test_class_weights_average_to_one(counts):
    w,n = class_weights(counts).double(),torch.tensor(counts).double()
    assert (w*n).sum().item()/n.sum().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(w*n, (w*n)[0].expand(len(n)), rtol=1e-5, atol=0) # every class has the same say
    torch.testing.assert_close(class_weights(torch.tensor(counts)).double(), class_weights(np.array(counts)).double())

@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 20), st.floats(0, 4), st.integers(0, 99))
def test_focal_is_between_zero_and_cross_entropy(K, B, gamma, seed):
    pred,y,_ = data(B, K, seed)
    f = FocalLoss(gamma, reduction="none")(pred, y)
    assert (f >= 0).all() and (f <= F.cross_entropy(pred, y, reduction="none")*(1+1e-5) + 1e-6).all()

def test_a_class_that_is_never_a_target_has_no_say():
    w = class_weights([9, 0, 3], never=(1,))
    torch.testing.assert_close(w[[0,2]], class_weights([9, 3]))
    assert w[1] == 1
    with pytest.raises(ValueError, match="leave class_weights out"): class_weights([0, 3], never=(1,))
    with pytest.raises(ValueError, match="one number above 0"): class_weights([0, 0], never=(0, 1))
