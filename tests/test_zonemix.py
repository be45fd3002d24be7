"Mixing of films with unknown zones: what plain mixing does, against a loop; and whole zones with their scores"
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_tasks import classes, task_learner
from torch import nn

from vitnb.callback.base import TrainCallback
from vitnb.callback.mix import MixCallback
from vitnb.callback.zonemix import ZoneMix, ZonePlan, draw_zone_plan, zone_classes, zone_rectangles
from vitnb.data.mix import draw_plan, mix_images
from vitnb.losses.classify import WeightedCSILoss
from vitnb.task import MultiLabel, Ordinal

ZONES = ("right_sup", "left_sup", "right_mid", "left_mid", "right_inf", "left_inf")
TASK = Ordinal(ZONES, levels=4, unknown=4, abstain=True)
MASKED = Ordinal(ZONES, levels=4, unknown=4) # unknown zones are left out


def films(n, size, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, *size, generator=g), torch.randint(0, 5, (n, 6), generator=g)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 50), st.sampled_from(["batch", "pair", "elem"]), st.booleans())
def test_plain_mixing_leaves_unknown_zones_out_as_a_loop_does(step, mode, abstain):
    task, (x, y) = TASK if abstain else MASKED, films(6, (12, 10), step)
    plan = draw_plan(6, (12, 10), 0, 0, step, mixup=.4, cutmix=1., mode=mode)
    mixed, n = task.mix(y, plan), task.n
    lam = np.broadcast_to(plan.lam, 6)
    for i in range(6):
        for z in range(6):
            want = np.zeros(n)
            for share, grade in ((lam[i], y[i, z].item()), (1 - lam[i], y[5 - i, z].item())):
                if grade < n: want[grade] += share # an unknown zone without a class of its own adds nothing
            assert np.allclose(mixed[i, z], want, atol=1e-6)
    if abstain: # the loss of mixed masses: unknown ones count a third
        logits = torch.randn(6, 6, 5)
        w = torch.tensor([1, 1, 1, 1, .3])
        want = -(mixed*w*logits.log_softmax(-1)).sum()/(mixed*w).sum()
        assert torch.allclose(WeightedCSILoss()(logits, mixed), want, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.sampled_from(["batch", "pair", "elem"]), st.sampled_from([(12, 10), (13, 11), (7, 5)]), st.sampled_from([4, 5]))
def test_whole_zones_change_places_with_their_scores(step, mode, size, n):
    "Pixel by pixel and zone by zone: a zone has its own pixels and its own score, or the partner's pixels and score"
    x, y = films(n, size, step)
    plan = draw_zone_plan(n, size, 0, 0, step, p=.8, mode=mode, classes=(5,))
    mixed, masses = mix_images(x, plan), TASK.mix(y, plan)
    rows = np.minimum(np.arange(size[0])//(size[0]//3), 2)
    columns = np.minimum(np.arange(size[1])//(size[1]//2), 1)
    zone = torch.tensor(2*rows[:,None] + columns)
    for i in range(n):
        for z in range(6):
            own, other = x[i, 0][zone == z], x[n - 1 - i, 0][zone == z]
            now, target = mixed[i, 0][zone == z], masses[i, z]
            assert target.sum() == 1 and target.max() == 1
            keeps = torch.equal(now, own)
            assert keeps or torch.equal(now, other)
            assert target.argmax() == (y[i, z] if keeps else y[n - 1 - i, z])


def test_plain_cutmix_would_mix_scores_that_nothing_touched():
    y = torch.tensor([[0]*6, [3]*6])
    plan = draw_plan(2, (12, 10), 0, 0, 1, mixup=None, cutmix=1.)
    assert ((TASK.mix(y, plan).max(-1).values < 1).all() and 0 < plan.lam[0] < 1)


def test_every_rectangle_but_the_whole_is_drawn_and_none_too_often():
    assert len(zone_rectangles((3, 2))) == 6*3 - 1
    seen = [tuple(draw_zone_plan(2, (12, 12), 0, 0, step, p=1.).box[0]) for step in range(2000)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 17 and counts.min() > 70 and counts.max() < 170 # 118 each
    assert all(draw_zone_plan(2, (12, 12), 0, 0, step, p=0.).is_identity for step in range(20))


def test_a_plan_is_a_function_of_its_keys():
    a, b, c = (draw_zone_plan(8, (12, 12), 3, 1, step, mode="elem") for step in (5, 5, 6))
    assert np.array_equal(a.box, b.box) and np.array_equal(a.zones, b.zones) and not np.array_equal(a.box, c.box)
    part = a.rows(np.array([1, 4]))
    assert isinstance(part, ZonePlan) and np.array_equal(part.zones, a.zones[[1, 4]]) and part.pastes == a.pastes


def test_other_targets_get_the_share_of_the_area():
    plan = draw_zone_plan(4, (12, 12), 0, 0, 3, p=1., mode="elem", classes=(5,))
    one = classes(3).mix(torch.tensor([0, 1, 2, 0]), plan)
    assert torch.allclose(one[0, 0], torch.tensor(1., dtype=one.dtype)) # partner has the same class
    assert torch.allclose(one[1, 1].double(), torch.tensor(plan.lam[1]))
    labels = MultiLabel("abcdef").mix(torch.ones(4, 6).long(), plan) # six labels are no zones
    assert labels.shape == (4, 6, 2) and torch.allclose(labels[..., 1], torch.ones(4, 6))


@pytest.mark.parametrize("kw,say", [(dict(p=2), "is a probability"), (dict(grid=(1, 1)), "at least two zones"), (dict(mode="zone"), "mode")])
def test_bad_options(kw, say):
    with pytest.raises(ValueError, match=say): ZoneMix(**kw)


def test_tasks_without_zones_are_refused():
    with pytest.raises(ValueError, match="no task has 6 zones"): zone_classes(dict(a=classes(3), b=Ordinal("ab", levels=4)), (3, 2))
    assert zone_classes(dict(a=classes(3), b=TASK, c=MASKED), (3, 2)) == (4, 5)


class Zoned(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(36, 30)
    def forward(self, x): return self.fc(x.flatten(1)).unflatten(1, (6, 5))


class Spy(TrainCallback):
    order,run_valid = MixCallback.order + 1, False
    def __init__(self): self.seen = []
    def before_batch(self): self.seen.append((self.learn.batch[0].clone(), self.learn.batch["target"].clone()))


def test_in_training_the_plan_of_the_step_is_used():
    x, y = films(8, (6, 6))
    spy = Spy()
    learn = task_learner(x, y, TASK, Zoned(), ZoneMix(p=1.), spy, bs=4, loss="weighted_csi")
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    for step, (image, target) in enumerate(spy.seen):
        rows = slice(4*step, 4*step + 4)
        plan = draw_zone_plan(4, (6, 6), learn.seed, 0, step, p=1., classes=(5,))
        assert torch.equal(image, mix_images(x[rows], plan)) and torch.equal(target, TASK.mix(y[rows], plan))
    assert len(spy.seen) == 2


@pytest.mark.parametrize("others", [[MixCallback(.2, None)], [MixCallback(None, 1.)], [ZoneMix(p=.1)]])
def test_a_second_mixing_is_refused_with_what_to_leave_out(others):
    "In either order, before a step"
    for cbs in ([ZoneMix(p=.5), *others], [*others, ZoneMix(p=.5)]):
        learn = task_learner(*films(8, (6, 6)), TASK, Zoned(), *cbs, bs=4, loss="weighted_csi")
        with pytest.raises(ValueError, match="mixed already; leave one of them out.*mixup=0"), learn.no_bar(), learn.no_logging(): learn.fit(1)
