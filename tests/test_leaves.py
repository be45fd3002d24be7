"The recipes of both phases of HierarchicalViT are the guide's, and every field of them acts"
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from leaf_helpers import OPTIONS, TINY, picture

from vitnb.callback.ema import EMACallback
from vitnb.callback.mix import MixCallback
from vitnb.callback.pretext import make_pretext
from vitnb.data.companion import CompanionSplit, has_companions
from vitnb.data.companionloader import spectral_loaders
from vitnb.data.leaf import LEAF_CLASSES, load_leaves
from vitnb.data.loader import image_loaders
from vitnb.data.pool import load_pool
from vitnb.data.sets import load_set
import vitnb.experiment.leaves # noqa: F401, registers the families
from vitnb.experiment.recipes import callback_args, families, learner_args, loader_args, recipes, resolve
from vitnb.learner.core import train_callbacks, vit_learner
from vitnb.learner.transfer import transfer_learner, usable_options
from vitnb.losses.classify import CombinedLoss
from vitnb.models.protocol import list_models, models

ROOT = Path(__file__).resolve().parents[1]
GUIDE = json.loads((ROOT/"tests"/"fixtures"/"hvit_guide.json").read_text())
SEED = ROOT.parent/"shared"/"seeds"/"hierarchical_vit.txt" # the guide's text, where it is at hand
ROWS = ["sar_cld_2024_small", "sar_cld_2024", "sar_cld_2024_large"]


# ---------------------------------------------------------------------------------------------- the guide

def files_of_the_guide():
    "The two configuration files that its text shows, and its table of starting points"
    text = SEED.read_text(errors="replace")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    whole = [block for block in blocks if block and {"data", "model", "training"} <= block.keys()]
    table = {name:[cell.strip() for cell in cells.split("|")[:3]] for name,cells in re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.M)}
    severity = next(block["augmentations"]["severity"] for block in blocks if block and "augmentations" in block)
    return whole, table, severity


@pytest.mark.skipif(not SEED.is_file(), reason="the guide's text is not at hand")
def test_the_fixture_is_the_guides_text():
    (pretrain,finetune),table,severity = files_of_the_guide()
    for block in (pretrain, finetune): block["data"].pop("root_dir") # a place on somebody's machine
    assert pretrain == GUIDE["pretrain"] and finetune == GUIDE["finetune"] and severity == GUIDE["severity"]
    assert {name:table[name] for name in GUIDE["starting_points"]} == GUIDE["starting_points"]


def test_pre_training_is_the_guides_file_value_by_value():
    guide,r = GUIDE["pretrain"],resolve("hvit_pretrain", "sar_cld_2024", {})
    training = guide["training"]
    assert (r.epochs, r.bs, r.lr, r.weight_decay, r.warmup_epochs) == tuple(training[k] for k in ("epochs", "batch_size", "learning_rate", "weight_decay", "warmup_epochs"))
    assert (r.temperature, r.projection_dim) == (guide["temperature"], guide["projection_dim"])
    assert [r.img_size]*2 == guide["data"]["img_size"] and r.grad_checkpointing == guide["model"]["use_gradient_checkpointing"]
    list_models()
    preset = models[r.arch].options()
    assert [preset[k] for k in ("patch_size", "embed_dim")] == [guide["model"][k] for k in ("patch_size", "embed_dim_rgb")]
    assert [list(preset[k]) for k in ("depths", "num_heads")] == [guide["model"][k] for k in ("depths", "num_heads")]
    assert len(LEAF_CLASSES) == guide["data"]["num_classes"] and (r.optimizer, r.schedule, r.augment, r.aug_kw) == ("adamw", "warmup_cosine", "simclr", None)


def test_fine_tuning_is_the_guides_file_value_by_value():
    guide,r = GUIDE["finetune"],resolve("hvit_finetune", "sar_cld_2024", {})
    t = guide["training"]
    assert (r.epochs, r.bs, r.lr, r.weight_decay, r.warmup_epochs) == tuple(t[k] for k in ("epochs", "batch_size", "learning_rate", "weight_decay", "warmup_epochs"))
    assert t["use_ema"] and r.ema_decay == t["ema_decay"] and t["use_tta"] and r.tta and t["use_mixup"] and t["use_cutmix"]
    assert (r.mixup, r.cutmix, r.loss, r.focal_gamma, r.label_smoothing) == tuple(t[k] for k in ("mixup_alpha", "cutmix_alpha", "loss_type", "focal_gamma", "label_smoothing"))
    assert (r.drop_path, r.use_dfca, r.pretrained) == tuple(guide["model"][k] for k in ("drop_path_rate", "use_dfca", "ssl_pretrained_path"))
    assert [r.img_size]*2 == guide["data"]["img_size"] and r.augment == GUIDE["severity"] and r.pretrain_epochs == 0
    assert (r.optimizer, r.schedule, r.freeze_epochs, r.lr_decay, r.head_scale, r.sizes) == ("adamw", "warmup_cosine", 0, None, 1., None), "nothing that the guide does not have"


@pytest.mark.parametrize("column,name", enumerate(ROWS))
def test_the_starting_points_are_the_guides_table(column, name):
    "Of a range the lower end"
    points = {field:float(cells[column].partition("-")[0] if field == "batch_size" else cells[column]) for field,cells in GUIDE["starting_points"].items()}
    r = recipes["hvit_finetune"][name]
    assert dict(batch_size=r["bs"], learning_rate=r["lr"], warmup_epochs=r["warmup_epochs"], weight_decay=r["weight_decay"], drop_path_rate=r["drop_path"]) == points


# ---------------------------------------------------------------------------------------------- every field acts

def pretext(**given): return make_pretext(learner_args(resolve("hvit_pretrain", "leaves", given))["pretext"])


@pytest.mark.parametrize("given,option,value", [
    (dict(temperature=.3), "temperature", .3), (dict(projection_dim=32), "projection", 32), (dict(head_hidden=24), "hidden", 24), (dict(head_depth=3), "depth", 3),
    (dict(head_norm="layer"), "norm", "layer"), (dict(use_groups=True), "use_groups", True), (dict(objective="infonce"), "loss", "infonce"),
    (dict(objective="byol", teacher_momentum=.9), "momentum", .9), (dict(objective="byol", predictor=False), "predictor", False),
    (dict(objective="vicreg", objective_kw=dict(covariance=3.)), "covariance", 3.), (dict(objective="dino", objective_kw=dict(teacher_temperature=.05)), "teacher_temperature", .05)], ids=str)
def test_a_field_of_the_first_phase_reaches_the_pretext(given, option, value): assert pretext(**given).config()[option] == value


@pytest.mark.parametrize("given,says", [
    (dict(objective="vicreg", temperature=.1), "temperature=0.1 is given, but objective is 'vicreg'"), (dict(teacher_momentum=.9), "teacher_momentum=0.9 is given, but objective is 'ntxent'"),
    (dict(predictor=True), "predictor=True is given, but objective is 'ntxent'")])
def test_a_field_that_would_do_nothing_is_refused(given, says):
    with pytest.raises(ValueError, match=says): resolve("hvit_pretrain", "leaves", given)


def test_the_gamma_of_the_focal_loss_acts_in_every_family():
    for family,name in (("swin", "digits"), ("densenet", "digits"), ("hvit_finetune", "leaves")):
        args = learner_args(resolve(family, name, dict(loss="focal", focal_gamma=3.)))
        assert args["loss_kw"] == dict(gamma=3.)
        with pytest.raises(ValueError, match="focal_gamma=3.0 is given, but loss is 'cross_entropy'"): resolve(family, name, dict(loss="cross_entropy", focal_gamma=3.))
    assert not learner_args(resolve("hvit_finetune", "leaves", dict(loss="cross_entropy"))).get("loss_kw"), "the recipe's own gamma waits for a loss that has one"


def test_layer_wise_decay_acts_in_every_family():
    assert learner_args(resolve("swin", "digits", dict(lr_decay=.8)))["opt_kw"]["lr_decay"] == .8
    assert "lr_decay" not in learner_args(resolve("swin", "digits", {}))["opt_kw"]


def test_the_guides_second_phase_is_built_as_it_says():
    "At a small size; loss, mixing, average, cross-attention and stochastic depth are in the Learner"
    r = resolve("hvit_finetune", "sar_cld_2024", dict(arch="hvit_micro", img_size=16, bs=8, model_kw={k:v for k,v in TINY.items() if k != "img_size"}))
    leaves = load_leaves(n=112, size=16)
    dls = spectral_loaders(leaves, seed=0, **loader_args(r))
    args = learner_args(r) | dict(pretrained=False)
    learn = vit_learner(dls, cbs=train_callbacks(**callback_args(r)), **{**args, **OPTIONS})
    loss = learn.objective.loss_of("")
    assert isinstance(loss, CombinedLoss) and loss.focal.gamma == 2. and loss.label_smoothing == .1
    mix,ema = (next(cb for cb in learn.cbs if isinstance(cb, kind)) for kind in (MixCallback, EMACallback))
    assert (mix.kw["mixup"], mix.kw["cutmix"], ema.decay) == (.8, 1., .9999)
    assert type(learn.model.fusion).__name__ == "DFCA" and learn.model.stages[-1].blocks[-1].drop_path1.drop_prob == pytest.approx(.2)


# ---------------------------------------------------------------------------------------------- what a recipe asks and a set has not

def digits(): return image_loaders(load_set("digits", limit=12), 16, bs=24, augment="shift", device="cpu", seed=0)


def test_cross_attention_waits_for_spectral_images_and_says_so(capsys):
    dls = digits()
    assert usable_options("hvit_micro", dict(use_dfca=True, drop_path_rate=.1), dls) == dict(drop_path_rate=.1)
    assert "use_dfca=True is left out: there are no spectral images to attend to" in capsys.readouterr().out
    assert usable_options("densenet_micro", dict(drop_path_rate=.1), dls) == {} and "densenet_micro has no such option" in capsys.readouterr().out


def test_what_was_asked_outright_is_the_models_error():
    dls = digits()
    with pytest.raises(ValueError, match="use_dfca=True acts on a spectral stream, and there is none"):
        transfer_learner(dls, None, "hvit_micro", {**TINY, **usable_options("hvit_micro", dict(use_dfca=True), dls, ["use_dfca"])}, **OPTIONS)


# ---------------------------------------------------------------------------------------------- images of one's own

def test_a_set_of_a_later_notebook_loads_by_name_in_a_fresh_process():
    "Nobody has imported data.leaf"
    import subprocess
    import sys
    code = "import sys; from vitnb.data.sets import load_set; assert 'vitnb.data.leaf' not in sys.modules; print(load_set('leaves_synthetic', n=112))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "7 classes" in said.stdout, said.stderr[-800:]


def test_options_of_a_named_set_act_and_others_are_refused():
    leaves = load_set("leaves_synthetic", n=112, size=16)
    assert sum(map(len, leaves.splits.values())) == 112 and leaves.splits["train"].items.shape[1] == 16
    bare = load_pool("leaves_synthetic", labels=False, n=112, size=16)
    assert not bare.tasks and isinstance(bare.splits["train"], CompanionSplit), "without classes, with their spectral images"
    with pytest.raises(ValueError, match="has no option 'sise': did you mean 'size'"): load_set("leaves_synthetic", sise=16)
    with pytest.raises(ValueError, match="label=... names a column"): load_set("leaves_synthetic", label="kind")


def test_spectral_images_are_taken_where_there_are_any(tmp_path, capsys):
    for i in range(30): picture(tmp_path/"s"/"ab"[i % 2]/f"{i}.png", 8*i)
    def inputs(spectral): return spectral_loaders(load_set(tmp_path/"s"), 12, spectral, bs=4, device="cpu", seed=0).train.one_batch().inputs
    assert inputs(None) == ("image",) == inputs(False) and has_companions(load_set(tmp_path/"s")) == (False, False)
    for file in sorted((tmp_path/"s").rglob("*.png"))[1:]: np.save(file.with_name(file.stem + "_spectral.npy"), np.random.rand(2, 12, 12).astype(np.float32))
    assert inputs(None) == ("image", "spectral") and "1 images of s have no spectral one" in capsys.readouterr().out
    assert inputs(False) == ("image",)
    with pytest.raises(ValueError, match="1 of 30 images of s have no spectral file"): inputs(True)
    with pytest.raises(ValueError, match="spectral"): inputs("ndvi")


# ---------------------------------------------------------------------------------------------- any model

def test_a_model_of_timms_trains_in_both_phases(tmp_path):
    from vitnb.learner.core import load_model, run_callbacks
    dls = digits()
    first = vit_learner(dls, "timm/test_resnet", pretext=dict(name="contrastive", temperature=.2), **OPTIONS)
    first.progress.plot = False
    first.fit(1, cbs=run_callbacks(tmp_path, tracker="none"))
    second = transfer_learner(dls, tmp_path, **OPTIONS)
    assert second.config["arch"] == "timm/test_resnet" and {n.partition(".")[0] for n in second.load_report.fresh} == {"fc"}
    assert load_model(tmp_path/"checkpoints"/"last_model.pth").config["arch"] == "timm/test_resnet"
    assert "timm/test_resnet" not in list_models(), "thousands of names would bury ours"


def test_names_of_families_are_those_of_the_notebooks():
    assert {"hvit_pretrain", "hvit_finetune"} <= families.keys()
    for family,name in (("hvit_pretrain", "pretrain_hvit"), ("hvit_finetune", "finetune_hvit")): assert f'family="{family}"' in (ROOT/"nbs"/f"{name}.ipynb").read_text().replace("\\", "")
