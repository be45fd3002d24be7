"The health of features: measures by their definitions, and the alarm when they collapse"
import math
import warnings

import numpy as np
import pytest
import torch
from contrastive_worker import make, quiet_fit

from vitnb.callback.base import TrainCallback
from vitnb.callback.health import CollapseAlarm, CollapseWarning, effective_rank, is_collapsed, measure, measures


def slow(name, z):
    "The definitions, sample by sample"
    z = (z/z.norm(dim=-1, keepdim=True)).double()
    n = len(z)
    if name == "alignment": return sum(((a - b)**2).sum().item() for a,b in z)/n
    if name == "uniformity":
        near = [math.exp(-2*((z[i,0] - z[j,0])**2).sum().item()) for i in range(n) for j in range(n) if i != j]
        return math.log(sum(near)/len(near))
    rows = z.flatten(0, 1).numpy()
    if name == "spread": return rows.std(0).mean()
    share = np.linalg.svd(rows, compute_uv=False)
    share = share[share > 1e-12]/share.sum()
    return math.exp(-(share*np.log(share)).sum())


@pytest.mark.parametrize("name", measures)
@pytest.mark.parametrize("n,width", [(6, 4), (9, 20), (30, 8)])
def test_a_measure_is_its_definition(name, n, width):
    z = torch.randn(n, 2, width, generator=torch.Generator().manual_seed(n))
    assert measure(name, z) == pytest.approx(slow(name, z), rel=1e-3)
    assert measure(name, z*torch.rand(n, 2, 1).add(.1)) == pytest.approx(slow(name, z), rel=1e-3), "lengths do not matter"


def test_closed_forms_of_the_measures():
    "A02: one point, an orthonormal basis, and directions at random"
    one = torch.ones(8, 2, 16)
    assert [measure(k, one) for k in ("alignment", "uniformity", "spread")] == pytest.approx([0, 0, 0], abs=1e-3) and effective_rank(one[:,0]) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.eye(8)) == pytest.approx(8, abs=1e-4) and effective_rank(torch.zeros(4, 3)) == 1
    assert measure("uniformity", torch.eye(8)[:,None].expand(8, 2, 8)) == pytest.approx(-4, abs=1e-5)
    assert measure("spread", torch.randn(8192, 2, 128, generator=torch.Generator().manual_seed(0))) == pytest.approx(.0884, abs=1e-3)


def test_validation_measures_all_batches_together():
    learn = quiet_fit(make(engine={}), 1)
    learn.model.eval()
    learn.dls.valid.set_epoch(0) # validation has the same draws each time
    with torch.no_grad(): parts = [learn.model(learn.pretext.prepare(learn, b)["image"]).view(-1, 2, 16) for b in learn.dls.valid]
    row = learn.recorder.rows[-1]
    assert len(parts) == 2
    for name in ("alignment", "effective_rank", "spread"): assert row[name] == pytest.approx(slow(name, torch.cat(parts)), rel=1e-3), name


def test_columns_are_declared_with_their_directions():
    learn = make()
    better = {k: c.better for k,c in learn.columns.items()}
    assert {k: better[k] for k in measures} == dict(alignment="min", uniformity="min", effective_rank="max", spread="max")
    assert better["spread_ema"] == "max" and learn.monitor == "valid_loss"
    quiet_fit(learn, 1)
    assert set(measures) < set(learn.recorder.rows[0])
    assert {"train_invariance", "valid_covariance"} < set(make(pretext=dict(loss="vicreg")).columns)
    assert make(pretext=dict(loss="dino")).columns["valid_teacher_entropy"].better == ""


@pytest.mark.parametrize("loss,at,spread,width,said", [
    (math.log(127), math.log(127), 0., 128, True), (4.84, math.log(127), .0884, 128, False), (3.1, math.log(127), 0., 128, False),
    (8.317766, math.log(4096), 0., 4096, True), (11.090355, math.log(65536), 0., 65536, True), (.001, 0., 1e-4, 64, True), (.001, 0., .1, 64, False)])
def test_collapse_is_a_loss_at_its_value_without_spread(loss, at, spread, width, said): assert is_collapsed(loss, at, spread, width) == said


class Collapse(TrainCallback):
    "Make the head forget everything"
    order = -10
    def before_epoch(self):
        last = self.learn.model.get_classifier().layers[-1]
        with torch.no_grad(): last.weight.zero_()


@pytest.mark.parametrize("loss", ["ntxent", "infonce"])
def test_the_alarm_speaks_in_a_fit(loss):
    learn = make(pretext=dict(loss=loss), cbs=[Collapse()], lr=1e-9, schedule="constant")
    with pytest.warns(CollapseWarning, match="for 2 epochs the loss lies at .* that of features that are all the same") as said: quiet_fit(learn, 3)
    assert len([o for o in said if o.category is CollapseWarning]) == 1, "once"
    assert learn.recorder.rows[-1]["train_loss"] == pytest.approx(math.log(31 if loss == "ntxent" else 16), abs=1e-4) == learn.pretext.collapse_value


class Uniform(TrainCallback):
    "Make a head of prototypes give nearly the same to all: logits of rounding, or one row for every image"
    order = -10
    def __init__(self, noise, bias): self.noise,self.bias = noise,bias
    def before_epoch(self):
        for model in (self.learn.model, self.learn.companions["teacher"]):
            last = model.get_classifier().layers[-1]
            with torch.no_grad():
                last.weight.normal_(0, self.noise) if self.noise else last.weight.zero_()
                last.bias.normal_(0, self.bias) if self.bias else last.bias.zero_()


@pytest.mark.parametrize("noise,bias", [(0., 0.), (1e-4, 0.), (0., .3)], ids=["constant", "rounding", "one row"])
def test_the_alarm_speaks_of_a_uniform_head_of_prototypes(noise, bias):
    "A01: the loss of DINO stays at ln K; tiny logits have directions as widely spread as good ones, but the teacher chooses nothing"
    learn = make(pretext=dict(loss="dino", projection=512), cbs=[Uniform(noise, bias)], lr=1e-9, schedule="constant")
    with pytest.warns(CollapseWarning, match="teacher's entropy at 6.23.*it chooses nothing.*lower lr"): quiet_fit(learn, 3)
    row = learn.recorder.rows[-1]
    assert row["train_teacher_entropy"] == pytest.approx(math.log(512), abs=.01) and (row["spread"]*512**.5 > .5) == (noise > 0)


def test_the_alarm_is_silent_while_prototypes_are_chosen():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        learn = quiet_fit(make(pretext=dict(loss="dino", projection=64)), 3)
    assert learn.recorder.rows[-1]["train_teacher_entropy"] < .9*math.log(64)


@pytest.mark.parametrize("epochs,cbs", [(1, [Collapse()]), (3, [])])
def test_the_alarm_is_silent_after_one_epoch_and_where_features_are_well(epochs, cbs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        quiet_fit(make(cbs=cbs, lr=1e-9 if cbs else .05, schedule="constant"), epochs)


def test_patience_counts_epochs_in_a_row():
    with pytest.raises(ValueError, match="patience=0"): CollapseAlarm(1., 8, 0)
    alarm = CollapseAlarm(1., 8, 2)
    rows = [dict(train_loss=1., spread=0.), dict(train_loss=.5, spread=.3), dict(train_loss=1., spread=0.)]
    for row in rows:
        alarm.learn = type("L", (), dict(recorder=type("R", (), dict(rows=[row]))))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            alarm.after_epoch()
    assert alarm.state_dict() == dict(epochs=1)
    with pytest.warns(CollapseWarning): alarm.after_epoch()
