"The contrastive pretext: views, head, teacher, health of features, alarm, exact resume, phase 2, and two processes that are one"
import copy
import math
import os
import sys
import warnings
from pathlib import Path

import contrastive_worker as worker
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contrastive_worker import ARCHS, make, outcome, quiet_fit
from tiny_tasks import Die, DieAt

from vitnb.callback.base import TrainCallback
from vitnb.callback.contrastive import Contrastive, MomentumTeacher, ProjectionHead, SmallBatch, make_teacher, put_head
from vitnb.callback.pretext import make_pretext, pretexts
from vitnb.launch import Ranks
from vitnb.learner.core import load_model, run_callbacks
from vitnb.losses.contrastive import InfoNCELoss, NTXentLoss, VICRegLoss
from vitnb.models.protocol import create_model
from vitnb.testing import differences

HERE = Path(__file__).resolve().parent


# ---------------------------------------------------------------------------------------------- head

@pytest.mark.parametrize("options,layers", [(dict(), ["Linear", "Identity", "ReLU", "Linear"]), (dict(depth=1), ["Linear"]),
                                            (dict(depth=3, norm="batch"), ["Linear", "BatchNorm1d", "ReLU"]*2 + ["Linear"]), (dict(norm="layer"), ["Linear", "LayerNorm", "ReLU", "Linear"])])
def test_options_of_the_head_act(options, layers):
    head = ProjectionHead(12, 5, hidden=7, **options)
    assert [type(o).__name__ for o in head.layers] == layers and head(torch.rand(4, 12)).shape == (4, 5)
    assert head.layers[-1].in_features == (12 if options.get("depth") == 1 else 7)


@pytest.mark.parametrize("options,message", [(dict(projection=0), "projection=0"), (dict(depth=0), "depth=0"), (dict(norm="bach"), "did you mean 'batch'|norm"), (dict(momentum=.9), "NTXentLoss has none"),
    (dict(predictor=True), "NTXentLoss has none"), (dict(loss="vicreg", use_groups=True), "VICRegLoss does not do"), (dict(loss="cross_entropy"), "does not compare views"), (dict(loss="ntxnt"), "ntxent"),
    (dict(temperature=0), "must be above 0"), (dict(temperatur=1.), "temperature"), (dict(loss=NTXentLoss(.1), temperature=.2), "made already"), (dict(loss="byol", momentum=1.5), "momentum=1.5")])
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message): make(pretext=dict(options))


@pytest.mark.parametrize("given", [dict(), dict(loss=NTXentLoss(.3)), dict(loss=VICRegLoss(10., 5., 2., .1)), dict(loss="byol", momentum=.9), dict(loss="dino", temperature=.2, projection=64), dict(loss=InfoNCELoss(.2))])
def test_a_task_is_made_again_from_its_configuration(given):
    task = Contrastive(**given)
    again = make_pretext(task.config())
    assert again.config() == task.config() and type(again.loss) is type(task.loss)
    assert again.loss.weights == task.loss.weights and getattr(again.loss, "temperature", 0) == getattr(task.loss, "temperature", 0)


def test_left_alone_it_is_the_guides():
    task = Contrastive()
    assert isinstance(task.loss, NTXentLoss) and task.loss.temperature == .07 and task.head == dict(projection=128, hidden=None, depth=2, norm="none", predictor=False)
    assert Contrastive("byol").head["predictor"] and Contrastive("byol").head["norm"] == "batch" and not Contrastive("dino").head["predictor"]


def test_a_model_without_a_classifier_is_refused():
    with pytest.raises(ValueError, match="needs a model with get_classifier, which Linear has not"): Contrastive().setup(None, torch.nn.Linear(2, 2))
    class Odd(torch.nn.Module):
        def get_classifier(self): return torch.nn.Identity()
    with pytest.raises(ValueError, match="is not one of its modules"): put_head(Odd())


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("classes", [0, 7])
def test_the_head_stands_where_the_classifier_stood(arch, classes):
    model = create_model(arch, num_classes=classes, **ARCHS[arch])
    put_head(model, projection=9)
    side = 32 if arch == "swin_micro" else 16
    assert isinstance(model.get_classifier(), ProjectionHead) and model(torch.rand(2, 3, side, side)).shape == (2, 9)


# ---------------------------------------------------------------------------------------------- training

def still(arch): return dict(ARCHS[arch], **({} if arch == "densenet_micro" else dict(drop_path_rate=0.)))


def first_step(**kw):
    "The model before, the batch, and the Learner after one step of plain SGD"
    model_kw = still(kw.get("arch", "hvit_micro"))
    learn = make(engine={}, optimizer="sgd", lr=.1, weight_decay=0., opt_kw=dict(momentum=0.), schedule="constant", model_kw=model_kw, **kw)
    before = copy.deepcopy(learn.model)
    seen = []
    class Spy(TrainCallback):
        order = 100
        def before_batch(self): seen.append(self.learn.batch)
    with pytest.raises(Die): quiet_fit(learn, 1, cbs=[Spy(), DieAt(1)])
    return learn,before,seen[0]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_step_is_that_of_the_loss_by_hand(arch):
    "Also the head's weights take part"
    learn,before,batch = first_step(arch=arch, pretext=dict(temperature=.3))
    assert batch["image"].shape[0] == 32 and batch["image"].ndim == 4
    z = F.normalize(before.train()(batch["image"]), dim=1)
    similar = (z @ z.T/.3).fill_diagonal_(-torch.inf)
    loss = F.cross_entropy(similar, torch.arange(32) ^ 1)
    loss.backward()
    for (k,p),q in zip(before.named_parameters(), learn.model.parameters()):
        assert torch.allclose(p - .1*p.grad, q, atol=5e-6), k
    head = learn.model.get_classifier()
    assert not torch.equal(head.layers[0].weight, before.get_classifier().layers[0].weight)


def test_images_of_one_group_are_not_told_from_each_other():
    learn,before,batch = first_step(groups=True, pretext=dict(temperature=.3, use_groups=True))
    assert len(set(batch["group"].tolist())) < 16
    pred = before.train()(batch["image"])
    masked = learn.pretext.terms(pred, batch)["loss"][0]/16
    views = pred.view(16, 2, -1)
    assert masked.item() == pytest.approx(NTXentLoss(.3)(views[:,0], views[:,1], group=batch["group"]).item(), rel=1e-5)
    assert masked < NTXentLoss(.3)(views[:,0], views[:,1])
    with pytest.raises(ValueError, match="use_groups=True needs images that belong to groups"): make(pretext=dict(use_groups=True))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("loss", ["ntxent", "byol"])
def test_every_architecture_learns(arch, loss):
    options = dict(byol=dict(momentum=.9), ntxent=dict(temperature=.2))[loss]
    views = dict(aug_kw=dict(blur=0., jitter=.2, gray=0., scale=(.6, 1.)))
    learn = quiet_fit(make(arch, dict(loss=loss, **options), optimizer="adamw", lr=3e-3, opt_kw={}, loader_kw=views), 8)
    losses = [o["loss"] for o in learn.recorder.steps]
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - .05


def test_the_seed_decides_the_head():
    heads = [make(seed=s).model.get_classifier().state_dict() for s in (3, 3, 4)]
    assert not differences(heads[0], heads[1]) and differences(heads[0], heads[2])


def test_accumulation_is_refused_by_name_and_where_it_is_exact_allowed():
    "A09: two half batches are another loss; a teacher's answer to each view is not"
    with pytest.raises(ValueError, match="depends on the whole batch here \\(Contrastive\\), so a step of 2 batches would be another loss"): quiet_fit(make(engine=dict(accumulate=2)), 1)
    whole,parts = (quiet_fit(make(pretext=dict(loss="byol", norm="layer"), bs=bs, engine=dict(accumulate=k), model_kw=still("hvit_micro")), 1) for bs,k in ((16, 1), (8, 2)))
    a,b = whole.model.state_dict(),parts.model.state_dict()
    assert whole.opt_steps == parts.opt_steps == 3 and all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)


@pytest.mark.parametrize("kw,message", [(dict(bs=1), "train has a batch of 1 \\(48 images, bs=1\\); use another bs"), (dict(valid_bs=23), "valid has a batch of 1 \\(24 images, bs=23\\); use another valid_bs"),
                                        (dict(bs=47, loader_kw=dict(drop_last=False)), "train has a batch of 1 .* drop_last=True")])
def test_a_batch_of_one_is_refused_before_the_first_step(kw, message):
    with pytest.raises(ValueError, match="NTXentLoss holds images against each other and needs 2 or more in a batch, and " + message): make(**kw)
    make(pretext=dict(loss="byol"), **kw) # which looks at each pair by itself


# ---------------------------------------------------------------------------------------------- teacher

def test_a_teacher_follows_as_the_closed_form_says():
    "A06: parameters are averaged, statistics and whole numbers are the student's"
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    net.get_classifier = lambda: ProjectionHead(2, 2)
    teacher = make_teacher(net)
    with torch.no_grad():
        for p in teacher.parameters(): p.fill_(1.)
        for p in net.parameters(): p.zero_()
        net[1].running_mean.fill_(7.)
        net[1].num_batches_tracked.fill_(12)
    cb = MomentumTeacher(.99)
    cb.learn = type("L", (), dict(model=net, companions=dict(teacher=teacher), n_iter=10, group_size=2, epoch=0, iter=1, n_epoch=3))
    for n,want in ((1, .99), (9, .904382)):
        for _ in range(n): cb.after_step()
        assert teacher[0].weight.flatten().tolist() == pytest.approx([want]*4, abs=1e-6)
    assert teacher[1].running_mean.tolist() == [7, 7] and teacher[1].num_batches_tracked.item() == 12 and teacher[1].num_batches_tracked.dtype == torch.int64
    assert cb.share() == pytest.approx(.01)
    cb.learn.epoch,cb.learn.iter = 1,5 # half of the 15 steps, and a bit less
    assert cb.share() == pytest.approx(.01*(1 + math.cos(math.pi*7/15))/2)
    cb.learn.epoch,cb.learn.iter = 3,0
    cb.after_step()
    assert teacher[0].weight.flatten().tolist() == pytest.approx([.904382]*4, abs=1e-6), "at the end it stands still"


def test_a_teacher_is_never_trained_and_has_no_predictor():
    learn,before,batch = first_step(arch="densenet_micro", pretext=dict(loss="byol", momentum=.9))
    teacher = learn.companions["teacher"]
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters()) and isinstance(teacher.get_classifier().predictor, torch.nn.Identity)
    plain = make_teacher(before)
    with torch.no_grad(): assert torch.allclose(plain(batch["image"]), batch["teacher"], atol=1e-6)
    pred,said = before.train()(batch["image"]).view(16, 2, -1),batch["teacher"].view(16, 2, -1)
    by_hand = sum((2 - 2*F.cosine_similarity(pred[:,v], said[:,1-v], dim=1)).mean() for v in (0, 1))/2
    total,count = learn.pretext.terms(pred.flatten(0, 1), batch)["loss"]
    assert (total/count).item() == pytest.approx(by_hand.item(), rel=1e-5)
    names = dict(learn.model.named_parameters())
    for k,p in plain.named_parameters(): assert torch.allclose(teacher.get_parameter(k), .9*p + .1*names[k], atol=1e-6), k


def test_a_trial_and_a_search_for_a_rate_leave_the_teacher_alone():
    learn = make(pretext=dict(loss="byol"))
    before = copy.deepcopy(dict(model=learn.model.state_dict(), teacher=learn.companions["teacher"].state_dict()))
    learn.dry_run()
    with learn.no_bar(): learn.lr_find(num_it=3, show_plot=False)
    assert not differences(before, dict(model=learn.model.state_dict(), teacher=learn.companions["teacher"].state_dict()))


def test_a_teacher_begins_as_the_weights_that_were_loaded():
    learn = make(pretext=dict(loss="byol"), lr=1e-9, schedule="constant")
    with torch.no_grad(): learn.model.get_classifier().layers[0].bias.fill_(3.)
    quiet_fit(learn, 1)
    assert learn.companions["teacher"].get_classifier().layers[0].bias.mean() > 2.5


# ---------------------------------------------------------------------------------------------- kills, files, phase 2

KILLED = dict(ntxent=dict(), byol=dict(arch="densenet_micro", pretext=dict(loss="byol", momentum=.9)), dino=dict(pretext=dict(loss="dino", projection=24)))


@pytest.mark.parametrize("case", KILLED)
def test_a_killed_run_goes_on_exactly(case, tmp_path):
    "Weights, head, optimiser, averaged weights, teacher, columns: every bit"
    whole = outcome(quiet_fit(make(**KILLED[case]), 3))
    for at in (2, 6, None): # inside an epoch, at the end of one
        learn = make(**KILLED[case])
        cbs = run_callbacks(tmp_path, every_n_steps=1, tracker="none")
        if at is None: quiet_fit(learn, 3, cbs=cbs, resume="auto")
        else:
            with pytest.raises(Die): quiet_fit(learn, 3, cbs=[*cbs, DieAt(at)], resume="auto")
    got = outcome(learn)
    assert not differences({k: whole[k] for k in ("model", "opt", "ema", "teacher", "losses")}, {k: got[k] for k in ("model", "opt", "ema", "teacher", "losses")})
    assert not differences(whole["rows"], got["rows"], ["seconds"])
    assert any("layers.0" in k for k in got["model"]) and any("layers.0" in k for k in got["ema"][0])
    assert bool(got["teacher"]) == (case != "ntxent")


@pytest.mark.parametrize("arch", ARCHS)
def test_phase_2_takes_the_backbone_and_leaves_the_head(arch, tmp_path):
    learn = make(arch)
    quiet_fit(learn, 1, cbs=run_callbacks(tmp_path, tracker="none"))
    file = tmp_path/"checkpoints"/"best_model.pth"
    model = create_model(arch, pretrained=file, **{**learn.config["model_kw"], "num_classes":5})
    own,pretrained = model.state_dict(),torch.load(file, weights_only=True)["model_state_dict"]
    left = [k for k in pretrained if k not in own]
    assert left and all("layers." in k for k in left), "nothing but the head stays behind"
    fresh = [k for k in own if k not in pretrained]
    assert sorted(fresh) == sorted(model.load_report.fresh) and len(fresh) == 2 and model.get_classifier().out_features == 5
    assert all(torch.equal(own[k], pretrained[k]) for k in own if k not in fresh)


def test_a_file_of_the_run_is_a_model_with_its_head(tmp_path):
    learn = make(pretext=dict(loss="byol"), arch="densenet_micro")
    quiet_fit(learn, 1, cbs=run_callbacks(tmp_path, tracker="none"))
    model = load_model(tmp_path/"checkpoints"/"best_model.pth")
    batch = learn.dls.valid.make_batch(np.arange(4), 0)["image"].flatten(0, 1)
    learn.model.eval()
    with torch.no_grad(): assert torch.equal(model(batch), learn.model(batch)) and model(batch).shape == (8, 16)


def test_a_model_of_a_task_that_adds_nothing_is_rebuilt_as_before():
    assert all(hasattr(o, "rebuild") for o in pretexts.values())
    net = create_model("hvit_micro", num_classes=3, **ARCHS["hvit_micro"])
    pretexts["masked"].rebuild(net, dict(name="masked"))
    assert isinstance(net.get_classifier(), torch.nn.Linear)


# ---------------------------------------------------------------------------------------------- several processes

def distance(a, b): return max((a[k].double() - b[k].double()).abs().max().item()/max(1., a[k].double().abs().max().item()) for k in a)


def test_two_processes_are_one(tmp_path):
    "Weights, head, average, teacher, losses and columns, to the rounding of sums in another order"
    from test_distribute import environment
    old = {k: os.environ.get(k) for k in environment()}
    os.environ.update(environment())
    try:
        with open(tmp_path/"log", "w") as log, Ranks([sys.executable, str(HERE/"contrastive_worker.py"), str(tmp_path)], 2, logs=dict.fromkeys(range(2), log)) as ranks: codes = ranks.wait()
    finally:
        for k,v in old.items(): os.environ.pop(k) if v is None else os.environ.update({k: v})
    assert codes == [0, 0], (tmp_path/"log").read_text()[-4000:]
    first,second = (torch.load(tmp_path/f"rank{r}.pth", weights_only=True) for r in range(2))
    for case,kw in worker.CASES.items():
        one,a,b = outcome(quiet_fit(make(**kw), 2)),first[case],second[case]
        assert not differences(a["model"], b["model"]) and not differences(a["teacher"], b["teacher"]), case
        assert distance(one["model"], a["model"]) < 2e-5 and distance(one["ema"][0], a["ema"][0]) < 2e-5, case
        if one["teacher"]: assert distance(one["teacher"]["teacher"], a["teacher"]["teacher"]) < 2e-5, case
        assert one["losses"] == pytest.approx(a["losses"], rel=1e-4), case
        for mine,theirs in zip(one["rows"], a["rows"]):
            for k in mine.keys() - {"seconds"}: assert mine[k] == pytest.approx(theirs[k], rel=1e-3, abs=1e-5), (case, k)


def few(**kw):
    "What is said of a batch"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make(**kw)
    return " ".join(str(one.message) for one in said if issubclass(one.category, SmallBatch))


def test_a_small_batch_is_told_what_it_does():
    "A08: few negatives, and batch normalisation that lets images see each other; by the images of the whole step"
    assert "a step has 8 images: each view has only 14 others" in few(bs=8) and "batch normalisation" not in few(bs=8)
    assert "batch normalisation lets images of a batch see each other" in few(bs=8, pretext=dict(norm="batch"))
    assert "batch normalisation" not in few(bs=8, pretext=dict(norm="layer"))
    alone = few(bs=8, pretext=dict(loss="byol"))
    assert "batch normalisation" in alone and "others" not in alone, "it compares no images, but its head has a norm"
    assert not few(bs=16, pretext=dict(norm="batch")) and not few(bs=8, pretext=dict(loss="byol", norm="layer"))


@pytest.mark.parametrize("norm,sees", [("layer", False), ("batch", True)])
def test_what_a_norm_lets_a_sample_see_of_another(norm, sees):
    "A08: another sample changes by 10; with batch normalisation this one moves too"
    torch.manual_seed(0)
    head = ProjectionHead(8, 4, norm=norm).train()
    x = torch.randn(8, 8)
    other = x.clone()
    other[1] += 10
    assert ((head(x)[0] - head(other)[0]).abs().max().item() > .01) == sees
