"Losses of zones: against torch, loops and closed forms; absent zones, unknown zones, and how far off a grade is"
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.kinds.ordinal import conditional_probs
from vitnb.losses.base import make_loss
from vitnb.losses.classify import CumulativeLoss, WeightedCSILoss
from vitnb.losses.objective import make_objective
from vitnb.losses.ordinal import CornCSILoss, CornLoss, OrdinalCSILoss
from vitnb.task import Ordinal, Tasks

ZONES = ("right_sup", "left_sup", "right_mid", "left_mid", "right_inf", "left_inf")
TASK = Ordinal(ZONES, levels=4, unknown=4, abstain=True)


def draws(seed, n=5, low=0, high=5):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, 5, generator=g), torch.randint(low, high, (n, 6), generator=g)


def by_hand(logits, targets, weights):
    "Sum of weights times cross-entropies, and sum of weights, zone by zone"
    total = norm = zones = 0.
    for film, truth in zip(logits.tolist(), targets.tolist()):
        for scores, k in zip(film, truth):
            if k < 0: continue
            total += weights[k]*(math.log(sum(map(math.exp, scores))) - scores[k])
            norm += weights[k]
            zones += 1
    return total, norm, zones


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.floats(.05, 1))
def test_the_guides_loss_is_that_of_a_loop(seed, unknown):
    logits, targets = draws(seed, low=-1)
    total, norm, zones = by_hand(logits, targets, [1, 1, 1, 1, unknown])
    assert WeightedCSILoss(unknown)(logits, targets).item() == pytest.approx(total/norm, rel=1e-4)
    assert WeightedCSILoss(unknown, normalize="count")(logits, targets).item() == pytest.approx(total/zones, rel=1e-4)


def test_it_is_torchs_weighted_mean_and_takes_any_memory_layout():
    logits, targets = draws(0)
    want = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), torch.tensor([1, 1, 1, 1, .3]))
    assert torch.allclose(WeightedCSILoss()(logits, targets), want)
    apart = logits.permute(2, 1, 0).contiguous().permute(2, 1, 0) # the guide's own used `view`
    assert torch.allclose(WeightedCSILoss()(apart, targets), want)


def test_a_film_of_unknown_zones_costs_the_same_for_any_weight_unless_zones_are_counted():
    logits, targets = draws(1)[0], torch.full((5, 6), 4)
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    for u in (.1, .3, 1.):
        assert torch.allclose(WeightedCSILoss(u)(logits, targets), plain)
        assert torch.allclose(WeightedCSILoss(u, normalize="count")(logits, targets), u*plain)


def test_an_absent_zone_has_no_gradient_and_leaves_the_loss_of_the_others():
    for loss in (WeightedCSILoss(), OrdinalCSILoss()):
        logits, targets = draws(2, n=1, high=4)
        logits.requires_grad_()
        targets[0, 3] = -1
        value = loss(logits, targets)
        value.backward()
        rest = [0, 1, 2, 4, 5]
        assert torch.equal(logits.grad[0, 3], torch.zeros(5)) and logits.grad[0, rest].abs().sum(-1).min() > 0
        assert torch.allclose(value, loss(logits[:, rest], targets[:, rest]))


@pytest.mark.parametrize("name", ["weighted_csi", "ordinal_csi"])
def test_halves_add_up_to_the_whole_through_the_task(name):
    objective = make_objective(Tasks.of(TASK), name)
    logits, targets = draws(3, n=6)
    def sums(rows): return objective.terms(logits[rows], dict(target=targets[rows]))["loss"]
    (a, n), (b, m), (c, k) = sums(slice(0, 2)), sums(slice(2, 6)), sums(slice(0, 6))
    assert torch.allclose(a + b, c) and torch.allclose(n + m, k)
    assert torch.allclose(objective.counts(dict(target=targets))["loss"], k)
    assert torch.allclose(c/k, make_loss(name)(logits, targets))


@pytest.mark.parametrize("name", ["weighted_csi", "ordinal_csi"])
def test_masses_are_mixtures_of_grades(name):
    "The loss of mixed targets is that of their parts, in proportion"
    loss = make_loss(name)
    logits, targets = draws(4)
    rows, first = logits.flatten(0, 1), TASK.encode(targets).flatten(0, 1)
    second = first.flip(0)
    def total(masses): return loss.terms(rows, masses)["loss"][0]
    assert torch.allclose(total(.3*first + .7*second), .3*total(first) + .7*total(second), atol=1e-4)
    assert torch.allclose(total(first), loss.terms(rows, targets.flatten())["loss"][0], atol=1e-4)


@pytest.mark.parametrize("kw,say", [
    (dict(unknown_weight=1.5), "must be from 0"), (dict(normalize="mean"), "normalize"), (dict(weight=[1., 2]), "2 numbers for 5 classes")])
def test_bad_options(kw, say):
    with pytest.raises(ValueError, match=say): WeightedCSILoss(**kw)


def test_a_model_without_an_output_for_unknown_is_refused():
    with pytest.raises(ValueError, match="abstain=True"): WeightedCSILoss()(torch.zeros(2, 6, 4), torch.zeros(2, 6).long())


def test_class_weights_multiply():
    logits, targets = draws(5)
    weight = [1., 2, 3, 4, 5]
    want = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), torch.tensor([1., 2, 3, 4, 5*.3]))
    assert torch.allclose(WeightedCSILoss(weight=weight)(logits, targets), want)


# how far off

def sure(grade, by=7.): return by*F.one_hot(torch.tensor([grade]), 5).float()


@pytest.mark.parametrize("true", range(4))
def test_a_further_grade_costs_more(true):
    costs = torch.stack([OrdinalCSILoss()(sure(grade), torch.tensor([true])) for grade in range(4)])
    order = np.argsort([abs(grade - true) for grade in range(4)], kind="stable")
    for near, far in zip(order, order[1:]):
        if abs(near - true) < abs(far - true): assert costs[far] > costs[near] + 1
    plain = torch.stack([WeightedCSILoss()(sure(grade), torch.tensor([true])) for grade in range(4) if grade != true])
    assert torch.allclose(plain, plain[0].expand_as(plain)) # cross-entropy does not care


def test_the_ordinal_loss_by_hand():
    logits = torch.tensor([.3, -1, 2, .5, .7])
    p = logits.double().softmax(0).numpy()
    grades = p[:4]/p[:4].sum()
    def cost(k):
        if k == 4: return -math.log(p[4])*.3
        cut = [sum(grades[:j + 1]) for j in range(3)] # at most j
        return -math.log(p[:4].sum()) - sum(math.log(1 - c if k > j else c) for j, c in enumerate(cut))
    for k in range(5):
        each = OrdinalCSILoss(reduction="sum")(logits[None], torch.tensor([k])).item()
        assert each == pytest.approx(cost(k), rel=1e-5)


def test_the_ordinal_loss_stays_finite_and_has_a_gradient():
    logits = torch.tensor([[300., -300, 0, 0, 0]], requires_grad=True)
    OrdinalCSILoss()(logits, torch.tensor([3])).backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


def test_conditional_answers_have_their_closed_forms():
    levels = torch.tensor([0, 1, 2, 3, 3])
    assert CornLoss()(torch.zeros(5, 3), levels).item() == pytest.approx(math.log(2), abs=1e-6)
    assert CumulativeLoss()(torch.zeros(5, 3), levels).item() == pytest.approx(3*math.log(2), abs=1e-6)
    above = 1 - conditional_probs(torch.tensor([.9, .5, .2]).logit()).cumsum(-1)[:3]
    assert torch.allclose(above, torch.tensor([.9, .45, .09]), atol=1e-6) and (above > .5).sum() == 1
    coral = Ordinal(levels=4, cumulative=True).activation(-torch.tensor([-1., 0, 1])) # score 0, thresholds -1, 0, 1
    assert torch.allclose(coral, torch.tensor([.2689, .2311, .2311, .2689]), atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999))
def test_corn_is_that_of_a_loop(seed):
    g = torch.Generator().manual_seed(seed)
    logits, levels = torch.randn(7, 3, generator=g), torch.randint(0, 4, (7,), generator=g)
    weight = torch.rand(4, generator=g) + .1
    total = asked = 0.
    for row, level in zip(logits, levels.tolist()):
        for j in range(min(level + 1, 3)): # asked only of those that are at least at level j
            total += weight[level]*F.binary_cross_entropy_with_logits(row[j], torch.tensor(float(level > j)))
            asked += weight[level]
    assert torch.allclose(CornLoss(weight=weight)(logits, levels), total/asked, atol=1e-5)
    assert torch.allclose(CornLoss(weight=weight)(logits, F.one_hot(levels, 4).float()), total/asked, atol=1e-5)
    assert torch.allclose(conditional_probs(logits).sum(-1), torch.ones(7), atol=1e-5)


# conditional answers of zones

CORN = Ordinal(ZONES, levels=4, unknown=4, abstain=True, conditional=True)


def corn_by_hand(logits, targets, u):
    "Of each zone: can it be graded, and if so, does it lie above 0, above 1, above 2, as far as it is asked"
    total = asked = 0.
    for row, grade in zip(logits.reshape(-1, 4), targets.flatten().tolist()):
        if grade < 0: continue # nobody looked
        steps = [0.] if grade == 4 else [1.] + [float(grade > j) for j in range(min(grade + 1, 3))]
        weight = u if grade == 4 else 1.
        total += weight*sum(F.binary_cross_entropy_with_logits(row[i], torch.tensor(step)) for i, step in enumerate(steps))
        asked += weight*len(steps)
    return total, asked


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0., .3, 1.]))
def test_corn_of_zones_is_that_of_a_loop_also_mixed_in_halves_and_with_absent_zones(seed, u):
    g = torch.Generator().manual_seed(seed)
    logits, targets = torch.randn(6, 6, 4, generator=g), torch.randint(-1, 5, (6, 6), generator=g)
    loss = make_loss("corn_csi", unknown_weight=u)
    total, asked = corn_by_hand(logits, targets, u)
    assert torch.allclose(loss(logits, targets), total/asked, atol=1e-5)
    seen = targets.clamp(min=0)
    objective = make_objective(Tasks.of(CORN), "corn_csi", loss_kw=dict(unknown_weight=u))
    def sums(rows): return objective.terms(logits[rows], dict(target=seen[rows]))["loss"]
    (a, n), (b, m), (c, k) = sums(slice(0, 2)), sums(slice(2, 6)), sums(slice(0, 6))
    assert torch.allclose(a + b, c, atol=1e-4) and torch.allclose(n + m, k) and torch.allclose(objective.counts(dict(target=seen))["loss"], k)
    masses = CORN.encode(seen).flatten(0, 1)
    assert torch.allclose(loss.terms(logits.flatten(0, 1), masses)["loss"][0], c, atol=1e-4)


def test_normal_said_of_a_severe_zone_costs_more_than_of_a_mild_one():
    "In the sum and in the mean over answers; cross-entropy does not care"
    normal = torch.tensor([[5., -5, -5, -5]])
    for reduction in ("sum", "mean"):
        costs = [CornCSILoss(reduction=reduction)(normal, torch.tensor([grade])).item() for grade in range(4)]
        assert costs == sorted(costs) and costs[3] > costs[1] + .5
    with pytest.raises(ValueError, match="5 outputs a zone.*conditional=True"): CornCSILoss()(torch.zeros(2, 6, 5), torch.zeros(2, 6).long())
    with pytest.raises(ValueError, match="unknown_weight=2"): CornCSILoss(unknown_weight=2)
    with pytest.raises(ValueError, match="abstain=True"): WeightedCSILoss()(torch.zeros(2, 6, 4), torch.zeros(2, 6).long())
