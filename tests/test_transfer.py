"The second phase: what it takes over and what it refuses, what stands still, which rate each layer has, and images that grow"
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitnb.callback.base import TrainCallback
from vitnb.callback.ema import EMACallback
from vitnb.callback.pretext import Pretext
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.data.table import ImageSet
from vitnb.learner.core import run_callbacks, train_callbacks, vit_learner
from vitnb.learner.optim import make_optimizer
from vitnb.learner.predict import load_run
from vitnb.learner.transfer import (Pretrained, SizeSchedule, head_names, legal_size, load_backbone, read_pretrained, scale_head,
                                    size_schedule, transfer_learner)
from vitnb.models.protocol import create_model

SMALL = dict(img_size=8, patch_size=1, depths=(1, 1), num_heads=(2, 2), embed_dim=16)
DENSE = dict(growth_rate=4, block_config=(2, 2))
OPTIONS = dict(seed=0, device="cpu", precision="fp32")


def loaders(classes=10, size=8):
    "Digits, all or the first few"
    whole = load_set("digits", limit=12)
    if classes == 10: return image_loaders(whole, size, bs=24, augment="shift", device="cpu", seed=0)
    splits = {k:v.take(np.flatnonzero(np.asarray(v.targets[""]) < classes)) for k,v in whole.splits.items()}
    some = ImageSet("some", [str(k) for k in range(classes)], splits)
    return image_loaders(some, size, bs=24, augment="shift", device="cpu", seed=0)


class Brightness(Pretext):
    "A task without labels"
    name = "brightness"
    def terms(self, pred, batch): return dict(loss=((pred.mean(1) - batch["image"].mean((1, 2, 3))).square().sum(), len(pred)))
    def counts(self, batch): return dict(loss=len(batch["image"]))


@pytest.fixture(scope="module")
def phase1(tmp_path_factory):
    "The folder of a first phase without labels"
    folder = tmp_path_factory.mktemp("phase1")
    learn = vit_learner(loaders(), "hvit_micro", SMALL, pretext=Brightness(), **OPTIONS)
    learn.progress.plot = False
    learn.fit(1, cbs=run_callbacks(folder, tracker="none"))
    return folder


def quiet(learn):
    learn.progress.plot = False
    learn.logger = lambda *a: None
    return learn


def second(run, dls=None, **kw): return quiet(transfer_learner(loaders() if dls is None else dls, run, **{**OPTIONS, **kw}))


# ---- what is taken over

def test_a_run_folder_is_loaded_and_said(phase1, capsys):
    learn = second(phase1)
    old = read_pretrained(phase1).state
    own = learn.model.state_dict()
    assert all(torch.equal(own[k], old[k]) for k in own if not k.startswith("head."))
    assert learn.load_report.dropped == ["head.weight", "head.bias"] == learn.load_report.fresh
    said = capsys.readouterr().out
    assert f"hvit_micro: {len(own) - 2} tensors from best_model.pth" in said
    assert "left at random: head.weight, head.bias" in said and "dropped: head.weight, head.bias" in said
    assert learn.config["training"]["pretrained"].endswith("best_model.pth")


@pytest.mark.parametrize("kind", ["checkpoint", "pth", "safetensors"])
def test_a_file_is_loaded_like_the_folder(phase1, tmp_path, kind):
    state = read_pretrained(phase1).state
    file = phase1/"checkpoints"/"last_model.pth"
    if kind == "pth": torch.save(state, file := tmp_path/"plain.pth")
    if kind == "safetensors": save_file({k:v.contiguous().clone() for k,v in state.items()}, file := tmp_path/"plain.safetensors")
    named = {} if kind == "checkpoint" else dict(arch="hvit_micro", model_kw=SMALL)
    a,b = second(phase1).model.state_dict(),second(file, **named).model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_another_size_is_resized_and_said(phase1, capsys):
    learn = second(phase1, loaders(size=16))
    assert learn.load_report.adapted == ["pos_embed"] and "resized: pos_embed" in capsys.readouterr().out
    assert tuple(learn.model.pos_embed.shape[1:3]) == (16, 16)
    learn.fit(1)


def test_another_normalisation_is_said(phase1, capsys):
    assert "normalised differently" not in str(second(phase1).load_report)
    dls = image_loaders(load_set("digits", limit=12), bs=24, augment="shift", device="cpu", stats=([.5]*3, [.2]*3))
    second(phase1, dls)
    assert "images are normalised differently" in capsys.readouterr().out


@pytest.mark.parametrize("kw,says", [
    (dict(arch="hvit_tiny"), "is of hvit_micro, not hvit_tiny"), (dict(arch="densenet_micro"), "is of hvit_micro, not densenet_micro"),
    (dict(model_kw=dict(embed_dim=32)), "does not fit this HierarchicalViT"), (dict(model_kw=dict(depths=(2, 1))), "does not fit this HierarchicalViT"),
    (dict(keep_head=True), r"keep_head=True, but head.weight is \(1000, 32\) in .* and \(10, 32\) here")])
def test_what_does_not_fit_is_refused(phase1, kw, says):
    with pytest.raises(ValueError, match=says): second(phase1, **kw)


def test_a_plain_file_of_another_architecture_is_refused(tmp_path):
    torch.save(create_model("densenet_micro", **DENSE).state_dict(), tmp_path/"dense.pth")
    with pytest.raises(ValueError, match="does not say of which model it is; give arch"): second(tmp_path/"dense.pth")
    with pytest.raises(ValueError, match="dense.pth does not fit this HierarchicalViT"): second(tmp_path/"dense.pth", arch="hvit_micro", model_kw=SMALL)
    with pytest.raises(FileNotFoundError, match="there is no run and no checkpoint"): second(tmp_path/"deeper"/"none")


def test_another_number_of_classes_begins_with_a_new_classifier(tmp_path):
    first = quiet(vit_learner(loaders(5), "hvit_micro", SMALL, **OPTIONS))
    first.fit(1, cbs=run_callbacks(tmp_path, tracker="none"))
    learn = second(tmp_path)
    assert learn.model.head.weight.shape == (10, 32) and "head.weight" in learn.load_report.dropped
    with pytest.raises(ValueError, match=r"head.weight is \(5, 32\).*another number of classes"): second(tmp_path, keep_head=True)
    same = second(tmp_path, loaders(5), keep_head=True)
    assert torch.equal(same.model.head.weight, first.model.head.weight) and not same.load_report.dropped


def test_further_names_are_dropped_when_asked():
    model = create_model("hvit_micro", num_classes=3, **SMALL)
    state = {**model.state_dict(), "decoder.weight":torch.zeros(2)}
    with pytest.raises(ValueError, match="decoder.weight unknown"): load_backbone(model, Pretrained(Path("a.pth"), state, {}))
    assert load_backbone(model, Pretrained(Path("a.pth"), state, {}), drop=["decoder."]).dropped[-1] == "decoder.weight"


def test_a_projection_head_in_place_of_the_classifier_is_dropped():
    first,model = create_model("hvit_micro", **SMALL),create_model("hvit_micro", num_classes=3, **SMALL)
    first.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 128))
    before = model.head.weight.clone()
    report = load_backbone(model, Pretrained(Path("a.pth"), first.state_dict(), {}))
    assert report.dropped == ["head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"]
    assert torch.equal(model.norm.weight, first.norm.weight) and torch.equal(model.head.weight, before)


@pytest.mark.parametrize("name,kw,wanted", [("hvit_micro", SMALL, ["head."]), ("densenet_micro", DENSE, ["classifier."]), ("swin_micro", dict(img_size=16), ["head.fc."])])
def test_the_classifier_is_found_by_identity(name, kw, wanted): assert head_names(create_model(name, **kw)) == wanted


def test_a_second_phase_can_be_loaded_again(phase1, tmp_path):
    learn = second(phase1, lr_decay=.75, head_scale=10.)
    learn.fit(1, cbs=run_callbacks(tmp_path, tracker="none"))
    run = load_run(tmp_path, "cpu")
    assert run.config["training"]["head_scale"] == 10. and run.config["training"]["opt_kw"]["lr_decay"] == .75


# ---- what stands still

class Watch(TrainCallback):
    "Which tensors an epoch moved"
    order = 150
    def __init__(self): self.moved = []
    def before_train(self): self.before = {k:v.clone() for k,v in self.model.state_dict().items()}
    def after_train(self): self.moved.append({k for k,v in self.model.state_dict().items() if not torch.equal(v, self.before[k])})


def test_frozen_epochs_train_the_classifier_alone(phase1):
    learn = second(phase1, freeze_epochs=2, lr_decay=.75, head_scale=10., cbs=[Watch()])
    learn.fit(3)
    head = {"head.weight", "head.bias"}
    assert learn.watch.moved[:2] == [head, head]
    assert learn.watch.moved[2] == set(learn.model.state_dict())


def test_statistics_of_norms_stand_still_too(tmp_path):
    first = quiet(vit_learner(loaders(), "densenet_micro", DENSE, **OPTIONS))
    first.fit(1, cbs=run_callbacks(tmp_path, tracker="none"))
    learn = second(tmp_path, freeze_epochs=1, cbs=[Watch()])
    learn.fit(2)
    frozen,free = learn.watch.moved
    assert frozen == {"classifier.weight", "classifier.bias"}
    assert any(k.endswith("running_mean") for k in free) and any(k.endswith("num_batches_tracked") for k in free)


# ---- which rate

def rates(opt): return {p:g["lr"] for g in opt.opt.param_groups for p in g["params"]}


def test_each_block_has_its_power_of_the_decay(phase1):
    "Stem 0, two blocks, classifier 3: the classifier ten times its own"
    learn = second(phase1, lr_decay=.5, head_scale=10., lr=1e-3)
    found = rates(learn.opt)
    named = dict(learn.model.named_parameters())
    wanted = {"pos_embed":.5**3, "patch_embed.proj.weight":.5**3, "stages.0.blocks.0.attn.qkv.weight":.5**2, "stages.1.blocks.0.mlp.fc1.weight":.5,
              "stages.1.blocks.0.mlp.fc2.bias":.5, "norm.weight":.5, "head.weight":10., "head.bias":10.}
    assert {k:found[named[k]]/1e-3 for k in wanted} == pytest.approx(wanted)
    assert len(found) == len(named)


def test_steps_are_in_proportion_also_after_the_schedule_moved(phase1):
    "SGD, all gradients 1: each parameter moves by its rate"
    learn = second(phase1, lr_decay=.75, head_scale=4., lr=1., optimizer="sgd", weight_decay=0., opt_kw=dict(momentum=0.))
    named = dict(learn.model.named_parameters())
    for lr in (1., .5):
        learn.opt.set_hyper("lr", lr)
        before = {k:p.detach().clone() for k,p in named.items()}
        for p in named.values(): p.grad = torch.ones_like(p)
        learn.opt.step()
        for name,share in (("head.weight", 4.), ("stages.1.blocks.0.attn.proj.weight", .75), ("stages.0.blocks.0.attn.proj.weight", .75**2), ("pos_embed", .75**3)):
            assert torch.allclose(before[name] - named[name], torch.full_like(named[name], lr*share), atol=1e-5), name


def test_rates_keep_their_ratios_through_a_fit(phase1):
    class Rates(TrainCallback):
        order = 55
        def __init__(self): self.seen = []
        def before_batch(self):
            if self.training: self.seen.append([g["lr"] for g in self.learn.opt.opt.param_groups])
    learn = second(phase1, lr_decay=.5, head_scale=10., freeze_epochs=1, cbs=[Rates()], schedule_kw=dict(warmup_steps=2))
    learn.fit(3, 1e-3)
    seen = np.array(learn.rates.seen)
    assert seen.max() == pytest.approx(1e-2) and np.ptp(seen[:,-1]) > 0
    scales = [g["lr_scale"] for g in learn.opt.opt.param_groups]
    assert np.allclose(seen/seen[:,-1:], np.array(scales)/scales[-1])


@pytest.mark.parametrize("name,kw", [("hvit_micro", SMALL), ("densenet_micro", DENSE), ("swin_micro", dict(img_size=16))])
@pytest.mark.parametrize("lr_decay", [None, .75])
def test_only_the_classifier_is_scaled(name, kw, lr_decay):
    "By identity: no fc1 or fc2 of an MLP is among it"
    model = create_model(name, num_classes=3, **kw)
    plain,scaled = (make_optimizer(model, lr=1., lr_decay=lr_decay) for _ in range(2))
    scale_head(scaled, model, 10.).set_hyper("lr", 1.)
    before,after = rates(plain),rates(scaled)
    head = set(model.get_classifier().parameters())
    assert all(after[p] == pytest.approx(before[p]*(10. if p in head else 1.)) for p in model.parameters())
    decays = lambda opt: {p:g["weight_decay"] for g in opt.opt.param_groups for p in g["params"]}
    assert decays(plain) == decays(scaled)


def test_frozen_layers_shift_no_rate():
    model = create_model("hvit_micro", num_classes=3, **SMALL)
    free = rates(scale_head(make_optimizer(model, lr=1., lr_decay=.75), model, 2.))
    model.stages[0].requires_grad_(False)
    assert rates(scale_head(make_optimizer(model, lr=1., lr_decay=.75), model, 2.)) == free


def test_rates_that_mean_nothing_are_refused(phase1):
    with pytest.raises(ValueError, match="head_scale=0 must be above 0"): second(phase1, head_scale=0)
    with pytest.raises(ValueError, match="two answers to one question"): second(phase1, head_scale=2., lr=slice(1e-5, 1e-3))


def test_a_killed_second_phase_goes_on_with_the_same_bits(phase1, tmp_path):
    def learner():
        learn = second(phase1, freeze_epochs=1, lr_decay=.75, head_scale=10.)
        size_schedule(learn, [(.5, 6), (1., 8)], 4)
        return learn
    class Die(TrainCallback):
        order = 190
        def after_batch(self):
            if self.training and self.opt_steps == 9: raise KeyboardInterrupt
    whole = learner()
    whole.fit(4, cbs=run_callbacks(tmp_path/"a", tracker="none"))
    with pytest.raises(KeyboardInterrupt): learner().fit(4, cbs=[*run_callbacks(tmp_path/"b", every_n_steps=2, tracker="none"), Die()])
    rest = learner()
    rest.fit(4, cbs=run_callbacks(tmp_path/"b", every_n_steps=2, tracker="none"), resume="auto")
    a,b = whole.model.state_dict(),rest.model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


# ---- the guide's loss and its mixing

def test_a_mixed_step_of_the_combined_loss_is_that_of_its_formula(phase1):
    "Half focal loss with gamma 2, half cross-entropy with smoothing .1, of the soft targets of MixUp and CutMix"
    class Seen(TrainCallback):
        order = 150
        def __init__(self): self.steps = []
        def after_loss(self):
            if self.training: self.steps.append((self.learn.pred.detach(), self.learn.batch["target"], self.learn.loss.item()))
    learn = second(phase1, loss="combined", label_smoothing=.1, cbs=[Seen(), *train_callbacks(mixup=.8, cutmix=1., ema_half_life=1.)])
    learn.fit(2)
    assert len(learn.seen.steps) == learn.opt_steps > 4
    for pred,target,loss in learn.seen.steps:
        assert target.shape == pred.shape and torch.allclose(target.sum(1), torch.ones(len(target)))
        logs = pred.double().log_softmax(1)
        focal = -(target*(1 - logs.exp())**2*logs).sum(1).mean()
        smooth = -((.9*target + .01)*logs).sum(1).mean()
        assert loss == pytest.approx(.5*focal.item() + .5*smooth.item(), rel=1e-5)
    assert any(((target > 0) & (target < 1)).any() for _,target,_ in learn.seen.steps)


# ---- images that grow

class Shapes(TrainCallback):
    "Sizes that the model is given"
    phases,order = ("fit",),30
    def __init__(self): self.seen = []
    def before_batch(self): self.seen.append((self.training, self.learn.epoch, tuple(self.learn.batch[0].shape[-2:])))


def test_images_grow_in_training_and_validation_keeps_its_size(phase1, capsys):
    learn = second(phase1, loaders(size=16), cbs=[Shapes()])
    size_schedule(learn, [(.25, 9), (.75, 12), (1., 16)], 4)
    assert "epochs 1 to 1: 10 × 10, epochs 2 to 3: 12 × 12, epochs 4 to 4: 16 × 16" in capsys.readouterr().out
    learn.fit(4)
    assert {(e, s) for training,e,s in learn.shapes.seen if training} == {(0, (10, 10)), (1, (12, 12)), (2, (12, 12)), (3, (16, 16))}
    assert {s for training,_,s in learn.shapes.seen if not training} == {(16, 16)}


def test_a_run_does_not_go_on_with_other_sizes(phase1, tmp_path):
    def learner(*phases):
        learn = second(phase1)
        if phases: size_schedule(learn, phases, 2)
        return learn
    learner((.5, 6), (1., 8)).fit(1, cbs=run_callbacks(tmp_path, tracker="none"))
    for other in ([(.5, 4), (1., 8)], []):
        with pytest.raises(ValueError, match="image_sizes"): learner(*other).fit(2, cbs=run_callbacks(tmp_path, tracker="none"), resume="auto")


@pytest.mark.parametrize("size,legal", [(256, 256), (1, 128), (191, 128), (192, 256), (200, 256), ((130, 500), (128, 512))])
def test_sizes_are_moved_to_the_nearest_legal_one(size, legal):
    class Coarse: size_step = 128
    wanted = legal if isinstance(legal, tuple) else (legal, legal)
    assert legal_size(Coarse(), size) == wanted
    Coarse.pad = True
    assert legal_size(Coarse(), size) == (size if isinstance(size, tuple) else (size, size))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100])
def test_every_epoch_has_one_size_and_the_last_the_last(n):
    class Dls: img_size = 8
    class Learn:
        model,dls,config = create_model("hvit_micro", **SMALL),Dls,{}
    schedule = size_schedule(Learn, [(.3, 4), (.6, 6), (1., 8)], n)
    found = [schedule(e)[0] for e in range(n)]
    assert found == sorted(found) and found[-1] == 8 and schedule(n + 5) == (8, 8)
    assert found == [4 if e < min(round(.3*n), n-1) else 6 if e < min(round(.6*n), n-1) else 8 for e in range(n)]
    assert isinstance(schedule, SizeSchedule) and Learn.size_of_epoch is schedule


@pytest.mark.parametrize("phases,n,says", [([], 4, "must be pairs"), ([(.5, 8)], 4, "must be pairs"), ([(1., 8), (1., 8)], 4, "must be pairs"),
                                           ([(0., 4), (1., 8)], 4, "must be pairs"), ([(1., 8)], 0, "whole number"), ([(1., 6)], 4, "validation has")])
def test_phases_that_are_none_are_refused(phase1, phases, n, says):
    with pytest.raises(ValueError, match=says): size_schedule(second(phase1), phases, n)


def test_a_size_that_the_model_does_not_take_is_refused():
    learn = quiet(vit_learner(loaders(size=16), "swin_micro", **OPTIONS))
    with pytest.raises(ValueError, match=r"SwinTransformer does not take images of 12 × 12"): size_schedule(learn, [(.5, 12), (1., 16)], 2)


# ---- which of a run's weights, and none

@pytest.fixture(scope="module")
def averaged_run(tmp_path_factory):
    "A first phase that kept an average of its weights"
    folder = tmp_path_factory.mktemp("averaged")
    learn = vit_learner(loaders(), "hvit_micro", SMALL, pretext=Brightness(), lr=1e-2, cbs=[EMACallback(decay=.9)], **OPTIONS)
    learn.progress.plot = False
    learn.fit(2, cbs=run_callbacks(folder, tracker="none"))
    return folder,{k:v.clone() for k,v in learn.ema.module.state_dict().items()}


def test_averaged_weights_are_taken_where_asked_and_said(averaged_run, capsys):
    folder,average = averaged_run
    plain,mean = second(folder),second(folder, averaged=True)
    own = mean.model.state_dict()
    assert all(torch.equal(own[k], average[k]) for k in own if not k.startswith("head."))
    assert any(not torch.equal(own[k], plain.model.state_dict()[k]) for k in own if not k.startswith("head."))
    said = capsys.readouterr().out.splitlines()
    assert "averaged weights" not in said[-2] and said[-1].endswith("averaged weights (10 steps)") and "dropped: head.weight" in said[-1]
    assert mean.config["training"]["averaged"] and not plain.config["training"]["averaged"]
    assert torch.equal(read_pretrained(folder/"checkpoints"/"last_model.pth", averaged=True).state["norm.weight"], average["norm.weight"])


def test_a_run_without_an_average_says_so(phase1, averaged_run):
    with pytest.raises(ValueError, match="averaged=True, and .*last_model.pth holds no average of weights; train the first phase with ema_decay"): second(phase1, averaged=True)
    with pytest.raises(ValueError, match="best_model.pth holds no average"): second(averaged_run[0]/"checkpoints"/"best_model.pth", averaged=True)


def test_without_a_first_phase_all_but_the_weights_is_the_same(capsys):
    learn = second(None, arch="hvit_micro", model_kw=SMALL, lr_decay=.5, head_scale=10., freeze_epochs=1)
    plain = vit_learner(loaders(), "hvit_micro", SMALL, **OPTIONS)
    assert all(torch.equal(a, b) for a,b in zip(learn.model.parameters(), plain.model.parameters())) and "hvit_micro: random weights" in capsys.readouterr().out
    found = rates(learn.opt)
    assert found[learn.model.head.weight]/found[learn.model.norm.weight] == pytest.approx(20.)
    for kw in (dict(averaged=True), dict(keep_head=True), dict(drop=["decoder."])):
        with pytest.raises(ValueError, match="is about the weights of a first phase, and run is None"): second(None, arch="hvit_micro", model_kw=SMALL, **kw)
    with pytest.raises(ValueError, match="without a first phase the model has to be named"): second(None)


def test_a_plain_load_lists_the_head_that_it_dropped(phase1, capsys):
    "`create_model(pretrained=...)`, without the Learner"
    model = create_model("hvit_micro", pretrained=phase1/"checkpoints"/"best_model.pth", num_classes=3, **SMALL)
    assert model.load_report.dropped == ["head.weight", "head.bias"] == model.load_report.fresh
    assert "dropped: head.weight, head.bias" in capsys.readouterr().out


def test_a_stream_that_nothing_feeds_can_be_dropped():
    two = create_model("hvit_micro", spectral_channels=2, num_classes=3, **SMALL)
    one = create_model("hvit_micro", num_classes=3, **SMALL)
    pretrained = Pretrained(Path("a.pth"), two.state_dict(), {})
    with pytest.raises(ValueError, match="unknown"): load_backbone(one, pretrained)
    report = load_backbone(one, pretrained, drop=("spectral.", "fusion."))
    assert any(name.startswith("fusion.") for name in report.dropped) and torch.equal(one.norm.weight, two.norm.weight)
