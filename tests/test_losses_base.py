"Every loss is a sum and a count: parts of a batch add up to the whole, unknown entries have no part, masses are linear"
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.losses.base import add_terms, divide, weigh
from vitnb.losses.classify import make_loss
from vitnb.losses.contrastive import ViewLoss
from vitnb.losses.regress import losses

K = 4
WEIGHTS = [.5, 1., 2., 4.]
CASES = dict(
    cross_entropy = ("cross_entropy", dict(label_smoothing=.1)),
    weighted      = ("cross_entropy", dict(label_smoothing=.1, weight=WEIGHTS)),
    focal         = ("focal", dict(weight=WEIGHTS, label_smoothing=.1)),
    combined      = ("combined", dict(weight=WEIGHTS)),
    binary        = ("binary_cross_entropy", dict(label_smoothing=.1, pos_weight=[1., 2., 3., .5])),
    cumulative    = ("cumulative", {}),
    levels        = ("cumulative", dict(weight=WEIGHTS)),
    zones         = ("weighted_csi", dict(levels=K - 1, label_smoothing=.1)),
    zone_levels   = ("ordinal_csi", dict(levels=K - 1, weight=WEIGHTS)),
    conditional   = ("corn", dict(levels=K, weight=WEIGHTS)),
    zone_answers  = ("corn_csi", dict(levels=K - 1, weight=WEIGHTS)),
    mse           = ("mse", {}),
    mae           = ("mae", {}),
    huber         = ("huber", dict(delta=.7)))

QUESTIONS = dict( # how many conditional questions an entry of each level answers; "unknown", the last class of a zone, the first alone
    conditional=torch.tensor([1., 2., 3., 3.]), zone_answers=torch.tensor([2., 3., 3., 1.]))


def data(case, n, seed=0):
    "Predictions, targets and what is known, for a case"
    g = torch.Generator().manual_seed(seed)
    known = torch.rand(n, generator=g) < .7
    if case == "binary": return torch.randn(n, K, generator=g), torch.randint(2, (n, K), generator=g), torch.rand(n, K, generator=g) < .7
    if case in ("mse", "mae", "huber"):
        y = torch.randn(n, generator=g)
        return torch.randn(n, generator=g), torch.where(known, y, torch.nan), known
    width = K - 1 if case in ("cumulative", "levels", "conditional", "zone_answers") else K
    return 2*torch.randn(n, width, generator=g), torch.randint(K, (n,), generator=g), known


def test_all_losses_of_rows_are_here(): # those of views compare rows with each other: see test_losses_contrastive
    assert {name for name,_ in CASES.values()} == {k for k in losses.names() if not issubclass(losses[k], ViewLoss)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cut", [1, 5, 12])
def test_two_parts_are_the_whole(case, cut):
    "Values and gradients; the mean of the two means is another number where entries are unknown or classes have weights"
    name,kw = CASES[case]
    loss,(pred,y,known) = make_loss(name, **kw),data(case, 16)
    pred.requires_grad_()
    parts = [loss.terms(pred[s], y[s], known[s]) for s in (slice(0, cut), slice(cut, 16))]
    whole,joined = loss(pred, y, known),weigh(add_terms(*parts), loss.weights)
    torch.testing.assert_close(joined, whole)
    torch.testing.assert_close(*(torch.autograd.grad(o, pred, retain_graph=True)[0] for o in (joined, whole)))
    halves = sum(weigh(o, loss.weights) for o in parts)/2
    assert not torch.allclose(halves, whole, rtol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_unknown_rows_have_no_part(case):
    name,kw = CASES[case]
    loss,(pred,y,known) = make_loss(name, **kw),data(case, 16)
    if case != "binary": torch.testing.assert_close(loss(pred, y, known), loss(pred[known], y[known]))
    pred.requires_grad_()
    loss(pred, y, known).backward()
    assert torch.isfinite(pred.grad).all() and (pred.grad[~known] == 0).all() and (pred.grad[known] != 0).any()
    nothing = loss(pred.detach(), y, torch.zeros_like(known))
    assert nothing == 0


@pytest.mark.parametrize("case", CASES)
def test_counts_are_those_of_the_terms(case):
    "Known before the model has run"
    name,kw = CASES[case]
    loss,(pred,y,known) = make_loss(name, **kw),data(case, 16)
    for mask in (known, torch.ones_like(known)):
        terms,counts = loss.terms(pred, torch.where(known, y, 0), mask),loss.counts(torch.where(known, y, 0), mask)
        assert {k: float(n) for k,(_,n) in terms.items()} == {k: float(n) for k,n in counts.items()}


@pytest.mark.parametrize("case", [k for k in CASES if k not in ("mse", "mae", "huber")])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("unknown", [True, False])
def test_masses_are_linear(case, train, unknown):
    "The loss of mixed targets is the mixture of the losses, row by row, also with unknown entries"
    name,kw = CASES[case]
    loss,(pred,y,known) = make_loss(name, **kw).train(train),data(case, 16)
    if not unknown: known = torch.ones_like(known)
    n = 2 if case == "binary" else K
    masses = F.one_hot(y, n)*known[...,None].float()
    other,known_other = y.flip(0),known.flip(0)
    mixed = .3*masses + .7*masses.flip(0)
    want = .3*loss.each(pred, y, known) + .7*loss.each(pred, other, known_other)
    torch.testing.assert_close(loss.each(pred, mixed), want)
    for k,count in loss.counts(mixed).items():
        weighted = case in ("weighted", "levels", "zones", "zone_levels", *QUESTIONS) or k == "cross_entropy"
        by = known*loss.weight[y] if weighted else known.float() # focal divides by rows
        if case in QUESTIONS: by = by*QUESTIONS[case][y]
        assert float(count) == pytest.approx(float((.3*by + .7*by.flip(0)).sum()), rel=1e-6)


@pytest.mark.parametrize("case", [k for k in CASES if k not in ("mse", "mae", "huber")])
@pytest.mark.parametrize("train", [True, False])
def test_indices_and_masses_add_up(case, train):
    "One convention: a part that comes as indices and one that comes as masses are the whole, in either form"
    name,kw = CASES[case]
    loss,(pred,y,known) = make_loss(name, **kw).train(train),data(case, 16)
    masses = F.one_hot(y, 2 if case == "binary" else K)*known[...,None].float()
    both = add_terms(loss.terms(pred[:7], y[:7], known[:7]), loss.terms(pred[7:], masses[7:]))
    torch.testing.assert_close(weigh(both, loss.weights), loss(pred, y, known))
    torch.testing.assert_close(weigh(both, loss.weights), loss(pred, masses))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99), st.sampled_from(sorted(CASES)))
def test_any_parts_are_the_whole(sizes, seed, case):
    name,kw = CASES[case]
    loss,(pred,y,known) = make_loss(name, **kw),data(case, sum(sizes), seed)
    terms = {}
    for p,t,k in zip(pred.split(sizes), y.split(sizes), known.split(sizes)): terms = add_terms(terms, loss.terms(p, t, k))
    torch.testing.assert_close(weigh(terms, loss.weights), loss(pred, y, known), equal_nan=False)


def test_nothing_counted_is_nothing_lost():
    assert divide(torch.tensor(0.), 0) == 0 and divide(torch.tensor(0.), torch.tensor(0)) == 0
    assert divide(torch.tensor(3.), torch.tensor(.5)) == 6, "a count may be less than 1: class weights are"
