"What fields contradict, and what stands inside the dictionaries of a recipe, is refused before anything is loaded"
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from vitnb.callback.pretext import pretexts
from vitnb.data.augment import augments
from vitnb.data.cubeaugment import cube_augments
from vitnb.data.sets import sets
from vitnb.experiment.agreement import OPTION_RULES, TWICE, check_options_inside
from vitnb.experiment.names import FACTS, NAMED_OPTIONS, NAMES, as_registered, check_name
from vitnb.experiment.recipes import check_recipe, families, learner_args, recipes, resolve
from vitnb.learner.options import OPTIONS
from vitnb.learner.views import view_sets, views
from vitnb.losses.base import losses
from vitnb.metrics.base import metrics
from vitnb.models.protocol import create_model, list_models, models
from vitnb.models.spectral import HEADS

ROOT = Path(__file__).resolve().parents[1]
REFUSED = dict(swin=[(dict(epochs=5, warmup_epochs=5.), "warmup_epochs=5.0 does not end within the run's 5 epochs"), (dict(tags={"a": [1]}), "must be a dictionary of words"), (dict(minutes=5), "recipe='auto' plans with"), (dict(recipe=None, minutes=5), "the recipe is 'digits'"), (dict(more=dict(minutes=5)), "plans with"), (dict(img_size=7), "give 6 or 8"), (dict(img_size=[8, 16], tta="d4"), "needs square ones"), (dict(img_size=(8, 16), tta="hflip+rot90"), "give tta=flip"),
    (dict(arch="swin_tiny", img_size=30), "give 28 or 32"), (dict(arch="hvit_tiny", img_size=100), "whole number of 128"), (dict(arch="densenet_micro"), "drop_path=0.1 is of the recipe, and densenet_micro has no"),
    (dict(arch="spectral_mae_micro"), "does not fit this data"), (dict(arch="Spectral_MAE_Micro"), "does not fit this data"), (dict(pretrained=True), "no weights are published for swin_micro"), (dict(pretrained="nope"), "is not there"), (dict(pretrained="https://somewhere/model.pth"), "is an address"),
    (dict(pretrained="nbs"), "is a folder and holds no weights"), (dict(pretrained="README.md"), "holds no weights"), (dict(model_kw=dict(window_size=0)), "window_size=0, which must be a whole number from 1"),
    (dict(model_kw=dict(depths=[1, 2], num_heads=[1])), "one number a stage"), (dict(model_kw=dict(num_classes=3)), "the data says it"), (dict(model_kw=dict(stem="x")), "one of patch"),
    (dict(model_kw=dict(drop_path_rate=.2), drop_path=.1), "say the same thing twice"), (dict(aug_kw=dict(padding="x")), "padding='x'"), (dict(augment="imagenet", aug_kw=dict(scale=[1., .5])), "the smaller first"),
    (dict(augment="imagenet", aug_kw=dict(scale=2)), "two numbers"), (dict(augment="imagenet", aug_kw=dict(flip=2)), "flip=2, which must be a number from 0 to 1"), (dict(optimizer="sgd", nesterov=True, momentum=0.), "has none"),
    (dict(monitor="lr"), "better neither"), (dict(monitor="zone_f1"), "column of other runs"), (dict(monitor="valid_focal"), "column of other runs"), (dict(monitor="knn_accuracy"), "column of other runs"),
    (dict(early_stop=2, early_stop_monitor="grad_norm"), "better neither"), (dict(loss="mse"), "give label_smoothing=0"), (dict(loss="mse", label_smoothing=0.), "other targets than this data has"),
    (dict(loss="ntxent", label_smoothing=0.), "compares two views"), (dict(loss="binary_cross_entropy"), "other targets"), (dict(loss_kw=dict(label_smoothing=.3)), "twice; give label_smoothing=0.3"),
    (dict(loss="focal", loss_kw=dict(gamma="a")), "gamma='a'"), (dict(loss="focal", loss_kw=dict(gamma=-1)), "gamma=-1"), (dict(class_weights=True, loss_kw=dict(weight=[1.]*10)), "weigh the classes twice"),
    (dict(class_weights=True, sampling="balanced"), "weigh the classes twice"), (dict(ema_decay=.9, ema_half_life=1.), "say the same thing twice")],
    densenet=[(dict(bs=5000), "more than the 1,438 images of digits"), (dict(loss_kw=dict(weight=[1., 2.])), "digits has 10 classes"), (dict(img_size=2), "at least 4 pixels"), (dict(img_size=[8, 2]), "at least 4 pixels"), (dict(arch="densenet121", model_kw=dict(stem="imagenet"), img_size=28), "at least 29 pixels"), (dict(model_kw=dict(stem="conv")), "one of auto, imagenet, cifar for densenet_micro"), (dict(arch="swin_micro", dropout=.1, drop_path=0., model_kw=dict(proj_drop_rate=.1)), "twice"), (dict(model_kw=dict(block_config=[0, 2])), "block_config"), (dict(model_kw=dict(memory_efficient=1)), "True or False")],
    chest=[(dict(data="digits"), "another kind of data"), (dict(data_kw=dict(nn=3)), "did you mean .n."), (dict(data_kw=dict(n="a")), "n=.a."), (dict(loss="huber"), "other targets"), (dict(monitor="accuracy"), "column of other runs"), (dict(arch="densenet_micro"), "does not fit this data"), (dict(masking="zero"), "needs masks"), (dict(strength=.7), "would do nothing"), (dict(unknown_weight=2), "from 0 to 1"), (dict(monitor="sam_degrees"), "column of other runs"), (dict(loss="byol"), "compares two views"), (dict(recipe="csi", data="chest_synthetic", arch="csi_micro"), "no weights are published")],
    hvit_pretrain=[(dict(temperature=.1, objective_kw=dict(temperature=.5)), "say the same thing twice"), (dict(arch="swin_tiny"), "give spectral=False"), (dict(objective="vicreg", use_groups=True), "told from each other"), (dict(accumulate=2), "needs the whole batch"), (dict(labels=False, monitor="probe_accuracy"), "labels=False"), (dict(probe_every=0), "from 1"), (dict(spectral="maybe"), "spectral=.maybe. must be"), (dict(objective="focal"), "compares no views"), (dict(img_size=30), "whole number of 8"), (dict(monitor="accuracy"), "column of other runs"), (dict(img_size=30, model_kw=dict(patch_size=8)), "whole number of 64"), (dict(aug_kw=dict(scale=[2, 1])), "the smaller first"), (dict(objective_kw=dict(temperature=0)), "above 0")],
    hvit_finetune=[(dict(sizes=[[.5, 32]]), "shares rising to 1"), (dict(sizes=[32, 64]), "shares rising to 1"), (dict(averaged=True), "pretrained names none"), (dict(ema_half_life=1.), "ema_decay=0.99 and ema_half_life=1.0 say the same thing twice"), (dict(pretrained="nbs"), "give the folder of a run"), (dict(loss="mse"), "label_smoothing=0")],
    spectral=[(dict(data="digits"), "another kind of data"), (dict(arch="swin_micro"), "does not fit this data"), (dict(monitor="accuracy"), "column of other runs"), (dict(monitor="spread"), "column of other runs"), (dict(mask_ratio=.6, model_kw=dict(mask_ratio=.5)), "twice"), (dict(model_kw=dict(depth=0)), "depth=0")])
FIRST = dict(swin="digits", densenet="digits", chest="synthetic", hvit_pretrain="leaves", hvit_finetune="leaves", spectral="synthetic")
LEGAL = dict(swin=[dict(img_size=[8, 16], tta="flips"), dict(img_size=[16, 16], tta="d4"),dict(recipe="auto", data="digits", minutes=5), dict(arch="Swin_Micro"), dict(arch="hvit_micro"), dict(img_size=6), dict(arch="densenet_micro", drop_path=0.), dict(pretrained="hf://owner/name/file.safetensors"),
    dict(model_kw=dict(window_size=None, in_chans=3)), dict(monitor="train_loss"), dict(monitor="top5"), dict(loss="combined", monitor="valid_focal"), dict(loss="focal", loss_kw=dict(alpha=[1.]*10)), dict(class_weights=True, sampling="weighted"),
    dict(ema_decay=.9), dict(recipe="auto", data="digits", ema_decay=.9), dict(label=dict(leaf="l", plant="p"), loss=dict(leaf="mse", plant=None)), dict(arch="csi_timm", drop_path=0., pretrained=True)],
    hvit_pretrain=[dict(arch="swin_tiny", spectral=False), dict(augment="light"), dict(data="digits"), dict(objective_kw=dict(temperature=.5)), dict(objective="byol"), dict(monitor="probe_accuracy")], hvit_finetune=[dict(ema_decay=0., ema_half_life=1.), dict(sizes=[[.5, 32], [1., 64]])], spectral=[dict(monitor="sam_degrees"), dict(augment="basic", aug_kw=dict(scale=.1))])
REGISTRIES = dict(arch=models, data=sets, augment=augments, tta=views, **{kind:known for kind,(known, _) in OPTIONS.items()})
SPELLINGS = [str.upper, str.title, lambda name: f" {name}", lambda name: name.replace("_", "-"), lambda name: name]


def cases(table): return [pytest.param(family, *case, id=f"{family}-{case}"[:70]) for family in table for case in ([one] if isinstance(one, tuple) else [(one,)] for one in table[family]) for case in case]


@pytest.fixture(autouse=True)
def from_the_workspace(monkeypatch): monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("family,params,says", cases(REFUSED))
def test_a_contradiction_is_refused(family, params, says):
    with pytest.raises(ValueError, match=says): check_recipe(family, {"recipe":FIRST[family], **params}, named=True)


@pytest.mark.parametrize("family,params", cases(LEGAL))
def test_what_agrees_passes(family, params): check_recipe(family, {"recipe":FIRST[family], **params}, named=True)


@pytest.mark.parametrize("family,name", [(family, name) for family in FIRST for name in recipes[family] if name != "auto"])
def test_each_recipe_agrees_with_itself(family, name, tmp_path):
    "But for the data, which is not everywhere"
    data = "digits" if families[family].fields.get("loss", "") is None else "retina_synthetic"
    check_recipe(family, dict(recipe=name, data=data), named=family not in ("chest", "hvit_pretrain"))


def test_a_head_is_accepted_just_where_the_network_has_it():
    for head in (*HEADS, "none"): assert bool(OPTION_RULES["arch"]["head"](head)) == (head not in HEADS), head


@pytest.mark.parametrize("kind", OPTION_RULES)
def test_each_option_of_vitnb_has_a_rule(kind):
    options = {option for known in FACTS["set_option"].values() for option in known} - {"root", "download", "shares"} if kind == "data" else {option for known in NAMED_OPTIONS[kind].values() for option in known}
    if kind == "objective": options |= {*NAMED_OPTIONS["pretext"]["contrastive"]} - {"loss"}
    assert not options - OPTION_RULES[kind].keys(), "give them a rule in vitnb.experiment.agreement"


def defaults(kind):
    "What stands in the signatures themselves"
    if kind == "data": return [(name, {"n":8, "seed":0}) for name in sets]
    if kind == "arch": return [(name, models[name].options()) for name in list_models()]
    table = dict(loss=losses, image_augment=augments, cube_augment=cube_augments, objective=pretexts)[kind]
    found = [(name, inspect.signature(table[name]).parameters) for name in table]
    return [(name, {key:p.default for key,p in known.items() if p.default is not p.empty and key != "loss"}) for name,known in found]


@pytest.mark.parametrize("kind", OPTION_RULES)
def test_each_default_follows_its_rule(kind):
    for _,options in defaults(kind):
        check_options_inside("kw", {name:value for name,value in options.items() if name not in ("num_classes", "img_size")}, kind)


@pytest.mark.parametrize("field", REGISTRIES)
def test_a_name_is_known_early_just_where_its_registry_knows_it(field):
    for name in [name for name in REGISTRIES[field] if name in NAMES[field]]:
        for written in {spell(name) for spell in SPELLINGS}:
            if field == "tta" and written in view_sets: continue
            found = written in REGISTRIES[field]
            assert (as_registered(field, written) in REGISTRIES[field].keys()) == found, written
            if found: check_name(field, written)


def test_a_network_in_upper_case_is_the_same_network():
    assert resolve("swin", "digits", dict(arch="SWIN_Micro")).arch == "swin_micro"
    assert create_model("SWIN_Micro", img_size=8).name == create_model("swin_micro", img_size=8).name


@pytest.mark.parametrize("arch,size", [("swin_micro", 7), ("swin_micro", 18), ("swin_micro", 2), ("swin_micro", 4), ("swin_tiny", 4), ("swin_tiny", 30), ("swin_tiny", 64), ("hvit_micro", 30), ("hvit_micro", 64)])
def test_the_network_itself_refuses_just_the_sizes_that_are_refused_early(arch, size):
    "A second implementation: the network's own"
    def refused(call):
        try: call()
        except ValueError as error: return "img_size" in str(error)
        return False
    early = refused(lambda: check_recipe("swin", dict(recipe="digits", arch=arch, img_size=size), named=True))
    assert early == refused(lambda: create_model(arch, img_size=size, embed_dim=8, depths=[1]*3 if arch == "swin_micro" else [1]*4, num_heads=[1]*3 if arch == "swin_micro" else [1]*4))


def test_the_facts_are_those_of_the_rooms():
    assert set(FACTS["published"]) == {name for name in list_models() if models[name].hub}
    assert set(FACTS["view_loss"]) == {name for name in losses if losses[name].whole_batch or getattr(losses[name], 'teacher', False)} and set(FACTS["label_column"]) == set(metrics)
    assert all(field in families["swin"].fields and other in families["swin"].fields for field,(other, *_) in TWICE.items())


def test_vitnb_run_refuses_them_with_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path/"outputs"))
    done = subprocess.run([sys.executable, "-m", "vitnb.experiment.cli", "run", "nbs/train_swin.ipynb", "-p", "recipe", "digits", "-p", "minutes", "5"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("vitnb run: minutes=5") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path/"outputs").exists()


def test_options_of_the_recipes_own_choice_are_not_those_of_another():
    "As options of its own set: another augmentation begins with its own defaults"
    other = resolve("hvit_pretrain", "leaves", dict(augment="light", data="digits"))
    assert other.aug_kw is None and other.data_kw is None and resolve("hvit_pretrain", "leaves", dict(augment="simclr")).aug_kw == recipes["hvit_pretrain"]["leaves"]["aug_kw"]
    assert learner_args(resolve("hvit_pretrain", "leaves", dict(objective_kw=dict(temperature=.5))))["pretext"]["temperature"] == .5
