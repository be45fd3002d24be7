"Losses of two views: closed forms, slow references, what the guide's loss does wrong, precision, several processes, and the seam to the loop"
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import view_worker
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.callback.pretext import Pretext, fold_views, unfold_views
from vitnb.data.loader import image_loaders
from vitnb.data.sample import Batch
from vitnb.data.holdout import Split
from vitnb.data.table import ImageSet
from vitnb.learner.core import vit_learner
from vitnb.losses.base import Loss, losses, make_loss, weigh
from vitnb.losses.contrastive import (BYOLLoss, DINOLoss, InfoNCELoss, NTXentLoss, ViewLoss, VICRegLoss, all_rows, pair_views,
                                      sinkhorn)

NAMES = ("ntxent", "infonce", "vicreg", "byol", "dino")
GROUPING = ("ntxent", "infonce")


def views(n, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=g), torch.randn(n, width, generator=g)


# ---------------------------------------------------------------------------------------------- closed forms

@pytest.mark.parametrize("n,temperature,value", [(4, .5, .594438), (8, .1, 6.354e-4), (64, .5, 2.893270), (8, .5, 1.06288)])
def test_ntxent_of_identical_orthonormal_views(n, temperature, value):
    one = torch.eye(n)
    assert NTXentLoss(temperature)(one, one).item() == pytest.approx(value, rel=2e-4)
    assert value == pytest.approx(math.log(1 + (2*n - 2)*math.exp(-1/temperature)), rel=2e-4)

@pytest.mark.parametrize("n,value", [(4, 1.945910), (64, 4.844187)])
def test_ntxent_of_collapsed_features(n, value):
    assert NTXentLoss(.07)(torch.ones(n, 5), torch.ones(n, 5)).item() == pytest.approx(value, abs=1e-5)

def test_infonce_of_collapsed_features_is_what_the_failed_runs_ended_at():
    assert InfoNCELoss(.07)(torch.ones(64, 5), torch.ones(64, 5)).item() == pytest.approx(4.1589, abs=1e-4)

@pytest.mark.parametrize("name", NAMES)
def test_collapse_value_is_the_loss_of_features_that_are_all_the_same(name):
    loss = make_loss(name)
    z = torch.full((16, 12), .3)
    assert loss(z, z).item() == pytest.approx(loss.collapse_value(16, 12), abs=1e-4)

@pytest.mark.parametrize("prototypes,value", [(4096, 8.317766), (65536, 11.090355)])
def test_dino_of_a_uniform_head(prototypes, value):
    z = torch.zeros(4, prototypes)
    terms = DINOLoss().terms(z, z)
    assert DINOLoss()(z, z).item() == pytest.approx(value, abs=1e-4) == DINOLoss().collapse_value(4, prototypes)
    assert (terms["teacher_entropy"][0]/terms["teacher_entropy"][1]).item() == pytest.approx(value, abs=1e-4)

def test_vicreg_terms_by_hand():
    z = torch.tensor([[1., 1], [-1, -1], [1, 1], [-1, -1]])
    hinge,overlap = VICRegLoss().spread(z)
    assert overlap.item() == pytest.approx(1.7778, abs=1e-4) and hinge == 0
    assert VICRegLoss(eps=1e-4).spread(torch.zeros(4, 3))[0].item() == pytest.approx(.99)

def test_byol_of_opposite_and_of_equal_vectors():
    one = torch.eye(3)
    assert BYOLLoss()(one, -5*one).item() == pytest.approx(4) and BYOLLoss()(one, 2*one).item() == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------------------------------------- slow references

def slow_ntxent(z1, z2, temperature, group=None):
    "Equation 1 of the SimCLR paper, term by term"
    z,n = torch.cat([z1, z2]).double(),len(z1)
    group = torch.arange(n) if group is None else group
    alike = lambda i,k: i % n != k % n and group[i % n] == group[k % n]
    total = 0.
    for i in range(2*n):
        sim = [F.cosine_similarity(z[i], z[k], dim=0)/temperature for k in range(2*n)]
        others = [sim[k].exp() for k in range(2*n) if k != i and not alike(i, k)]
        total -= sim[(i + n) % (2*n)] - sum(others).log()
    return (total/(2*n)).item()

def slow_infonce(z1, z2, temperature, group=None):
    n = len(z1)
    group = torch.arange(n) if group is None else group
    def one_way(a, b):
        total = 0.
        for i in range(n):
            sim = [F.cosine_similarity(a[i], b[k], dim=0)/temperature for k in range(n)]
            total -= sim[i] - sum(sim[k].exp() for k in range(n) if k == i or group[i] != group[k]).log()
        return total/n
    return ((one_way(z1.double(), z2.double()) + one_way(z2.double(), z1.double()))/2).item()

def slow_vicreg(z1, z2):
    n,width = z1.shape
    invariance = sum((a - b)**2 for a,b in zip(z1.flatten().tolist(), z2.flatten().tolist()))/(n*width)
    variance = covariance = 0.
    for z in (z1, z2):
        column = [z[:,j].tolist() for j in range(width)]
        mean = [sum(c)/n for c in column]
        cov = lambda i,j: sum((a - mean[i])*(b - mean[j]) for a,b in zip(column[i], column[j]))/(n - 1)
        variance += sum(max(0, 1 - math.sqrt(cov(j, j) + 1e-4)) for j in range(width))/width/2
        covariance += sum(cov(i, j)**2 for i in range(width) for j in range(width) if i != j)/width
    return 25*invariance + 25*variance + covariance

def slow_byol(z1, z2):
    return sum(((a/a.norm() - b/b.norm())**2).sum().item() for a,b in zip(z1.double(), z2.double()))/len(z1)

def slow_dino(z1, z2, temperature=.1, teacher=.04, steps=3):
    n,width = z1.shape
    q = [[math.exp((v - z2.max().item())/teacher) for v in row] for row in z2.double().tolist()]
    for _ in range(steps):
        for j in range(width):
            share = sum(q[i][j] for i in range(n))
            for i in range(n): q[i][j] /= share
        q = [[v/sum(row) for v in row] for row in q]
    total = 0.
    for chosen,row in zip(q, z1.double().tolist()):
        norm = math.log(sum(math.exp(v/temperature) for v in row))
        total -= sum(c*(v/temperature - norm) for c,v in zip(chosen, row))
    return total/n

SLOW = dict(ntxent=lambda a,b: slow_ntxent(a, b, .5), infonce=lambda a,b: slow_infonce(a, b, .07), vicreg=slow_vicreg, byol=slow_byol, dino=slow_dino)

@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(n=st.integers(2, 7), width=st.integers(2, 6), seed=st.integers(0, 99))
def test_each_loss_is_its_slow_reference(name, n, width, seed):
    z1,z2 = views(n, width, seed)
    assert make_loss(name)(z1, z2).item() == pytest.approx(SLOW[name](z1, z2), rel=2e-4, abs=1e-5)

@pytest.mark.parametrize("temperature", [.05, .07, .5, 2.])
def test_temperature_acts_as_in_the_reference(temperature):
    z1,z2 = views(5, 8)
    assert NTXentLoss(temperature)(z1, z2).item() == pytest.approx(slow_ntxent(z1, z2, temperature), rel=1e-4)
    assert InfoNCELoss(temperature)(z1, z2).item() == pytest.approx(slow_infonce(z1, z2, temperature), rel=1e-4)

def test_every_table_row_is_tested():
    assert {k for k,o in losses.items() if isinstance(o, type) and issubclass(o, ViewLoss)} == set(NAMES) == set(SLOW) == set(view_worker.CASES)


# ---------------------------------------------------------------------------------------------- what a loss of views should do

@pytest.mark.parametrize("name", ["ntxent", "infonce", "vicreg"])
def test_swapping_views_changes_nothing(name):
    z1,z2 = views(6, 8)
    assert make_loss(name)(z1, z2).item() == pytest.approx(make_loss(name)(z2, z1).item(), rel=1e-5)

@pytest.mark.parametrize("name", ["ntxent", "infonce", "byol"])
@settings(max_examples=20, deadline=None)
@given(scale=st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5))
def test_the_length_of_a_row_does_not_matter(name, scale):
    z1,z2 = views(5, 8)
    loss = make_loss(name)
    assert loss(torch.tensor(scale)[:,None]*z1, z2).item() == pytest.approx(loss(z1, z2).item(), rel=1e-3)

@pytest.mark.parametrize("name", ["ntxent", "infonce", "vicreg", "byol"])
def test_the_loss_falls_as_views_get_aligned(name):
    z1,z2 = views(8, 16)
    values = [make_loss(name)(z1, torch.lerp(z2, z1, share)).item() for share in (0., .5, .9, 1.)]
    assert values == sorted(values, reverse=True) and values[0] > values[-1] + .05

@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_loss(name):
    z1,z2 = views(8, 16)
    z1.requires_grad_()
    opt,loss = torch.optim.SGD([z1], .1),make_loss(name)
    first = loss(z1, z2).item()
    for _ in range(10):
        opt.zero_grad()
        loss(z1, z2).backward()
        opt.step()
    assert loss(z1, z2).item() < first

@pytest.mark.parametrize("name,held", [(k, k in ("byol", "dino")) for k in NAMES])
def test_a_teacher_is_held_fixed_and_a_second_view_is_not(name, held):
    z1,z2 = views(4, 8)
    z1.requires_grad_(), z2.requires_grad_()
    loss = make_loss(name)
    loss(z1, z2).backward()
    assert loss.teacher == held == (z2.grad is None) and z1.grad.abs().sum() > 0


def guides_loss(features, temperature=.07):
    "The loss that the guide prints: labels on the diagonal of a matrix of similarities with itself"
    features = F.normalize(features, dim=1)
    return F.cross_entropy(features @ features.T/temperature, torch.arange(len(features)))

def partners(z): return F.cosine_similarity(*z.split(len(z)//2)).mean()

def step_along(loss, z, rate=30.):
    z = z.clone().requires_grad_()
    loss(z).backward()
    return z.detach() - rate*z.grad

def test_the_guides_loss_is_blind_to_views_and_ours_is_not():
    one = torch.eye(8)
    wrong = one.roll(1, 0)
    assert guides_loss(torch.cat([one, one])).item() == pytest.approx(guides_loss(torch.cat([one, wrong])).item(), abs=1e-6)
    assert guides_loss(torch.cat([one, one])).item() == pytest.approx(.6931, abs=1e-4)
    assert NTXentLoss(.5)(one, wrong) - NTXentLoss(.5)(one, one) > 1

def test_the_guides_gradient_drives_partners_apart_and_ours_draws_them_together():
    z1,noise = views(8, 32)
    z = torch.cat([z1, z1 + .25*noise])
    assert partners(step_along(lambda o: guides_loss(o, .5), z)) < partners(z) - 1e-4
    for loss in (NTXentLoss(.5), InfoNCELoss(.5)):
        assert partners(step_along(lambda o, loss=loss: loss(*o.split(8)), z)) > partners(z) + 1e-4

def test_the_guides_loss_of_random_features_is_nearly_nothing():
    assert guides_loss(views(64, 512)[0]) < 1e-3 # so a run looks finished before it begins


# ---------------------------------------------------------------------------------------------- groups and unknown pairs

def test_two_photographs_of_one_subject():
    twins,alike = torch.eye(4)[[0, 0, 2, 3]],torch.tensor([7, 7, 5, 1])
    plain = NTXentLoss(.5)(twins, twins).item()
    assert plain == pytest.approx((2*1.26451 + 2*.59444)/4, abs=1e-4)
    assert NTXentLoss(.5)(twins, twins, group=alike).item() == pytest.approx((2*.43265 + 2*.59444)/4, abs=1e-4)

@pytest.mark.parametrize("slow,loss", [(slow_ntxent, NTXentLoss), (slow_infonce, InfoNCELoss)])
@settings(max_examples=15, deadline=None)
@given(group=st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_groups_are_those_of_the_reference(slow, loss, group):
    z1,z2 = views(5, 8)
    group = torch.tensor(group)
    assert loss(.3)(z1, z2, group=group).item() == pytest.approx(slow(z1, z2, .3, group), rel=1e-4, abs=1e-5)

@pytest.mark.parametrize("name", sorted(set(NAMES) - set(GROUPING)))
def test_a_group_that_would_not_act_is_refused(name):
    with pytest.raises(ValueError, match="group would not act"): make_loss(name)(*views(4, 8), group=torch.arange(4))

@pytest.mark.parametrize("name", NAMES)
def test_unknown_pairs_have_no_part(name):
    z1,z2 = views(6, 8)
    known = torch.tensor([True, False, True, True, False, True])
    loss = make_loss(name)
    whole,part = loss(z1, z2, known),loss(z1[known], z2[known])
    assert whole.item() == pytest.approx(part.item(), rel=1e-5)
    assert {int(n) for n in loss.counts(z2, known).values()} == {4} and {n for _,n in loss.terms(z1, z2, known).values()} == {4}


# ---------------------------------------------------------------------------------------------- precision and bad input

@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_scored_in_float32(name, dtype):
    z1,z2 = (o.to(dtype) for o in views(8, 16))
    want = make_loss(name)(z1.float(), z2.float())
    with torch.autocast("cpu", torch.bfloat16): got = make_loss(name)(z1, z2)
    assert got.dtype == torch.float32 and got.item() == pytest.approx(want.item(), rel=1e-6)

@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_where_views_are_equal_or_nothing(name):
    for z in (torch.zeros(4, 8), torch.ones(4, 8), torch.eye(4)):
        z1,z2 = z.clone().requires_grad_(),z.clone()
        loss = make_loss(name)(z1, z2)
        loss.backward()
        assert loss.isfinite() and z1.grad.isfinite().all()

@pytest.mark.parametrize("name", ["ntxent", "infonce", "vicreg", "dino"])
def test_a_batch_of_one_is_refused(name):
    with pytest.raises(ValueError, match=r"of 1 pairs: it needs 2 or more images.*use a larger batch"): make_loss(name)(*views(1, 4))

@pytest.mark.parametrize("a,b", [((4, 3), (4, 2)), ((4, 3), (5, 3)), ((4, 2, 3), (4, 2, 3)), ((4,), (4,))])
def test_what_are_no_pairs_is_refused(a, b):
    with pytest.raises(ValueError, match="are no pairs; NTXentLoss takes"): NTXentLoss()(torch.zeros(a), torch.zeros(b))

@pytest.mark.parametrize("name,option", [("ntxent", "temperature"), ("infonce", "temperature"), ("dino", "temperature"), ("dino", "teacher_temperature")])
@pytest.mark.parametrize("bad", [0, -1., True, "warm"])
def test_a_temperature_is_above_0(name, option, bad):
    with pytest.raises(ValueError, match="must be above 0"): make_loss(name, **{option: bad})

def test_unknown_options_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'temperature'"): make_loss("ntxent", temperatur=.1)

@pytest.mark.parametrize("option,value", [("invariance", 5.), ("variance", 5.), ("covariance", 5.), ("eps", .1)])
def test_every_weight_of_vicreg_acts(option, value):
    z1,z2 = (.5*o for o in views(8, 4))
    assert make_loss("vicreg", **{option: value})(z1, z2).item() != pytest.approx(make_loss("vicreg")(z1, z2).item(), rel=1e-3)

def test_sinkhorn_shares_prototypes_evenly():
    q = sinkhorn(views(12, 3)[0]/.1, 50)
    assert torch.allclose(q.sum(1), torch.ones(12), atol=1e-5) and torch.allclose(q.sum(0), torch.full((3,), 4.), atol=1e-2)
    assert not q.requires_grad and sinkhorn(views(12, 3)[0].requires_grad_()).grad_fn is None


# ---------------------------------------------------------------------------------------------- the seams

@pytest.mark.parametrize("name", NAMES)
def test_a_loss_of_views_is_a_loss(name):
    loss = make_loss(name)
    z1,z2 = views(6, 8)
    terms = loss.terms(z1, z2)
    assert isinstance(loss, Loss) and terms.keys() == loss.weights.keys() == loss.counts(z2).keys()
    assert all(n == loss.counts(z2)[k] == 6 for k,(_,n) in terms.items())
    assert torch.equal(weigh(terms, loss.weights), loss(z1, z2)) and loss.whole_batch == (name != "byol")

def test_parts_of_byol_add_up_to_the_whole():
    z1,z2 = views(6, 8)
    loss = BYOLLoss()
    parts = [loss.terms(z1[s], z2[s])["loss"][0] for s in (slice(0, 1), slice(1, 6))]
    assert (sum(parts)/6).item() == pytest.approx(loss(z1, z2).item(), rel=1e-5)

def test_two_half_batches_are_not_the_whole_batch():
    "Why accumulation is refused: fewer negatives, another loss"
    one = torch.eye(8)
    half = NTXentLoss(.5)(one[:4], one[:4])
    assert NTXentLoss(.5)(one, one).item() == pytest.approx(1.06288, abs=1e-5) and half.item() == pytest.approx(.59444, abs=1e-5)

def test_views_are_paired_with_the_other_view_of_the_same_image():
    z = torch.arange(12.).view(3, 2, 2)
    own,other = pair_views(z)
    assert torch.equal(own, z[:,0]) and torch.equal(other, z[:,1])
    own,other = pair_views(z, z + 100)
    assert all(torch.equal(own[2*i + v], z[i,v]) and torch.equal(other[2*i + v], z[i,1-v] + 100) for i in range(3) for v in range(2))
    with pytest.raises(ValueError, match="not two views"): pair_views(torch.zeros(3, 3, 2))

def test_a_teacher_loss_of_both_views_is_the_mean_of_both_directions():
    student,teacher = (torch.stack(views(4, 8, seed), 1) for seed in (0, 1))
    both = BYOLLoss()(*pair_views(student, teacher))
    ways = [BYOLLoss()(student[:,v], teacher[:,1-v]) for v in range(2)]
    assert both.item() == pytest.approx(sum(ways).item()/2, rel=1e-5)


class Contrast(Pretext):
    "What a pretext task has to write to use a loss of views"
    name,views,whole_batch = "contrast",2,True
    def __init__(self, loss):
        super().__init__()
        self.loss = loss
    @property
    def weights(self): return self.loss.weights
    def prepare(self, learn, batch): return Batch(dict(image=fold_views(batch["image"])))
    def terms(self, pred, batch): return self.loss.terms(*pair_views(unfold_views(pred, 2)))
    def counts(self, batch): return dict.fromkeys(self.weights, len(batch["image"])//2)

@pytest.mark.parametrize("name", ["ntxent", "infonce", "vicreg"])
def test_a_learner_trains_with_it(name):
    "Through the loop as it is"
    x = np.random.default_rng(0).random((48, 4, 4, 3)).astype(np.float32).repeat(2, 1).repeat(2, 2)
    dls = image_loaders(ImageSet("twins", None, dict(train=Split(x[:32]), valid=Split(x[32:]))), bs=16, valid_bs=16, seed=5, workers=0, augment="shift")
    learn = vit_learner(dls, "hvit_micro", model_kw=dict(patch_size=1, num_classes=16, drop_path_rate=0.), pretext=Contrast(make_loss(name)), lr=1e-3, seed=3,
                        precision="fp32")
    learn.logger = lambda *a: None
    with learn.no_bar(): learn.fit(8)
    losses = [float(o) for o in learn.recorder.losses]
    assert len(losses) == 16 and np.mean(losses[-4:]) < np.mean(losses[:4])


# ---------------------------------------------------------------------------------------------- several processes

def test_one_process_joins_nothing():
    z = views(3, 2)[0]
    assert all_rows(z) is z

@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_their_rows_and_average_to_the_gradient_of_the_whole_batch(world, tmp_path):
    "With shares that are not alike; each process says the same loss"
    script = Path(view_worker.__file__)
    runs = [subprocess.Popen([sys.executable, script, str(r), str(world), str(tmp_path)], stderr=subprocess.PIPE, text=True) for r in range(world)]
    for run in runs:
        _,err = run.communicate(timeout=240)
        assert run.returncode == 0, err
    x1,x2,group,known = view_worker.rows()
    for name in NAMES:
        given = dict(known=known, group=group) if name in GROUPING else {}
        value,grad = view_worker.loss_and_gradient(name, x1, x2, **given)
        for r in range(world):
            said,averaged = torch.load(tmp_path/f"rank{r}.pt", weights_only=True)[name]
            assert said.item() == pytest.approx(value.item(), rel=1e-5), name
            assert torch.allclose(averaged, grad, rtol=1e-4, atol=1e-6), name
