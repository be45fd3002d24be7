"Recipes of all families: one registry, one resolver, and every field reaches its place"
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.core import Registry
from vitnb.experiment.cli import notebook_params, read_notebook
import vitnb.experiment.chest # noqa: F401, registers families
import vitnb.experiment.leaves # noqa: F401, registers families
from vitnb.experiment.recipes import SET_FIELDS, set_args, callback_args, families, learner_args, loader_args, recipe, recipes, register_family, resolve, run_args
from vitnb.experiment.stored import stored_recipe

ROOT = Path(__file__).resolve().parents[1]
FORMAT1 = ROOT/"tests"/"fixtures"/"format1"
ALL = [(f,n) for f in recipes for n in recipes[f] if "warmup_epochs" in families[f].fields] # those that train one model
NOTEBOOKS = dict(train_swin="swin", train_densenet="densenet", pretrain_spectral="spectral", pretrain_hvit="hvit_pretrain", finetune_hvit="hvit_finetune", train_chest="chest", compare_films="films")

# what the spectral recipes were when they had a table and a resolver of their own
OLD_SPECTRAL = dict(
    synthetic=dict(data="retina_synthetic", data_root=None, data_kw=dict(n=96), window=None, stride=None, jitter=0, normalize="log", augment="flip", aug_kw=None,
                   arch="spectral_mae_micro", patch_size=(8, 5), mask_ratio=.8, mask_mode="random", spectral_pos="auto", model_kw=None, epochs=40, bs=4, lr=2e-3,
                   weight_decay=.05, schedule="warmup_cosine", warmup_epochs=2., min_lr=0., clip=None, mse_weight=1., sam_weight=.1, variance_weight=.01,
                   range_penalty_weight=.001, norm_target=False, ema_decay=0., accumulate=1, precision="fp32"),
    retina=dict(data=None, data_root=None, data_kw=None, window=None, stride=None, jitter=0, normalize="log", augment="guide", aug_kw=None,
                arch="spectral_mae_medium", patch_size=(25, 5), mask_ratio=.8, mask_mode="random", spectral_pos="auto", model_kw=None, epochs=200, bs=6, lr=1e-4,
                weight_decay=.05, schedule="warmup_cosine", warmup_epochs=10., min_lr=0., clip=None, mse_weight=1., sam_weight=.1, variance_weight=.01,
                range_penalty_weight=.001, norm_target=False, ema_decay=0., accumulate=1, precision="auto"),
    scene=dict(data="jasper_ridge", data_root=None, data_kw=None, window=20, stride=10, jitter=5, normalize="zscore", augment="flip", aug_kw=None,
               arch="spectral_mae_micro", patch_size=(4, 6), mask_ratio=.8, mask_mode="random", spectral_pos="auto", model_kw=None, epochs=60, bs=8, lr=2e-3,
               weight_decay=.05, schedule="warmup_cosine", warmup_epochs=2., min_lr=0., clip=None, mse_weight=1., sam_weight=.1, variance_weight=.01,
               range_penalty_weight=.001, norm_target=False, ema_decay=0., accumulate=1, precision="fp32"))


@pytest.fixture
def own():
    "Families that a test registers are gone after it"
    before = dict(families),dict(recipes)
    yield
    for table,old in zip((families, recipes), before):
        table.clear()
        table.update(old)


def resolved(family, name, **given): return resolve(family, name, {"data":"x", **given})


# ---------------------------------------------------------------------------------------------- values

@pytest.mark.parametrize("name", OLD_SPECTRAL)
def test_the_spectral_recipes_are_what_they_were(name):
    old,new = OLD_SPECTRAL[name],recipes["spectral"][name]
    assert {k:new[k] for k in old} == old
    args = learner_args(resolved("spectral", name))
    assert args["optimizer"] == "adamw" and args["opt_kw"] == dict(betas=(.9, .95)), "He et al. 2022, table 8"
    assert args["schedule_kw"] == dict(warmup_epochs=old["warmup_epochs"], min_lr=0., warmup_lr=1e-6), "warm-up began at the schedule's own 1e-6"
    assert args["model_kw"] == {k:old[k] for k in ("patch_size", "mask_ratio", "mask_mode", "spectral_pos")}
    weights = {k:old[k] for k in ("mse_weight", "sam_weight", "variance_weight", "range_penalty_weight", "norm_target")}
    assert args["pretext"] == dict(name="masked", group_weight=0., **weights)
    assert loader_args(new) == dict(fit_bands=None, **{k:old[k] for k in ("bs", "window", "stride", "jitter", "normalize", "augment", "aug_kw", "patch_size")})
    assert set(recipes["spectral"]) == set(OLD_SPECTRAL)


def test_the_guides_numbers():
    r = resolve("swin", "tiny_imagenet", {})
    assert (r.bs, r.lr, r.weight_decay, r.epochs, r.clip, r.img_size, r.drop_path, r.label_smoothing) == (64, 3e-4, .05, 100, 1., 224, .1, .1)
    assert (r.warmup_epochs, r.warmup_lr, r.min_lr) == (5, 1e-6, 1e-5)
    d = resolve("densenet", "cifar10", {})
    assert (d.bs, d.lr, d.momentum, d.weight_decay, d.epochs, d.optimizer) == (64, .1, .9, 1e-4, 200, "sgd")
    i = resolve("densenet", "imagenet", {})
    assert (i.epochs, i.bs, i.lr, i.schedule, i.step_size, i.gamma) == (90, 256, .1, "step", 30, .1)
    s = resolve("spectral", "retina", dict(data="catalogue.csv"))
    assert (s.arch, s.epochs, s.bs, s.patch_size, s.mask_ratio, s.mask_mode, s.accumulate) == ("spectral_mae_medium", 200, 6, (25, 5), .8, "random", 1)


@pytest.mark.parametrize("family,name", ALL)
def test_recipes_are_whole_and_resolve(family, name):
    r = recipes[family][name]
    assert list(r) == list(families[family].fields) and r["family"] == family
    full = resolved(family, name, epochs=3, no_field_of_a_recipe=1, bs=None)
    assert full.epochs == 3 and full.bs == r["bs"] and full.keys() == r.keys()
    assert learner_args(full)["arch"] == r["arch"] and loader_args(full)["bs"] == r["bs"] and callback_args(full)["accumulate"] == r["accumulate"]
    json.dumps(full)


@pytest.mark.parametrize("notebook,family", NOTEBOOKS.items())
def test_each_recipe_field_of_a_notebook_is_a_recipe_field(notebook, family):
    "A parameter whose default is None means `as the recipe says`, so the recipe must have it"
    own = {k for k,v in notebook_params(read_notebook(ROOT/"nbs"/f"{notebook}.ipynb")).items() if v is None}
    assert own - families[family].fields.keys() <= {"recipe", "max_hours", "more", "hyperparams"} # `more` takes the fields that have no parameter


# ---------------------------------------------------------------------------------------------- resolving

@pytest.mark.parametrize("family,name", [("swin", "digits"), ("densenet", "digits"), ("spectral", "scene")])
def test_the_rules_of_resolving_hold_for_every_family(family, name):
    base = recipes[family][name]
    assert dict(resolve(family, name, {})) == base
    assert resolve(family, name, dict(lr=None, clip=0.)).clip == 0. and resolve(family, name, dict(lr=None)).lr == base["lr"]
    assert resolve(family, name, dict(more=dict(accumulate=3))).accumulate == 3
    with pytest.raises(ValueError, match="give it once"): resolve(family, name, dict(lr=1., more=dict(lr=1.)))
    with pytest.raises(ValueError, match="did you mean 'accumulate'"): resolve(family, name, dict(more=dict(accumulat=3)))
    with pytest.raises(ValueError, match="epochs='3' is a str"): resolve(family, name, dict(epochs="3"))
    with pytest.raises(ValueError, match=f"did you mean '{name}'"): resolve(family, name[:-1], {})
    with pytest.raises(ValueError, match="leave it out"): resolve(family, name, dict(more=dict(family="densenet")))


@settings(max_examples=100, deadline=None)
@given(which=st.sampled_from([o for o in ALL if recipes[o[0]][o[1]]["warmup_epochs"]]), epochs=st.integers(1, 400))
def test_the_warm_up_of_a_shortened_run_is_its_share(which, epochs):
    base = recipes[which[0]][which[1]]
    r = resolved(*which, epochs=epochs)
    if epochs > base["warmup_epochs"]: assert r.warmup_epochs == base["warmup_epochs"]
    else: assert r.warmup_epochs/epochs == pytest.approx(base["warmup_epochs"]/base["epochs"]) and r.warmup_epochs < epochs
    assert resolved(*which, epochs=epochs, warmup_epochs=7.).warmup_epochs == 7, "unless it was asked for"


def test_a_recipe_that_names_no_data_asks_for_it():
    with pytest.raises(ValueError, match="'retina' needs data"): resolve("spectral", "retina", {})


def test_resolving_changes_no_recipe():
    before = json.dumps(recipes["swin"]["digits"])
    r = resolve("swin", "digits", dict(epochs=1))
    r.lr = 9.
    assert json.dumps(recipes["swin"]["digits"]) == before


# ---------------------------------------------------------------------------------------------- every field acts

USED_BY_NOTEBOOKS = {"family", "data", "data_root", "epochs", "tta", "use"}
OTHER = dict(optimizer="sgd", schedule="multistep", milestones=[.5], loss="focal", sampling="balanced", mix_mode="pair", augment="flip", stats="imagenet", arch="other",
             normalize="none", mask_mode="tube", spectral_pos="index", precision="bf16", pretrained="weights.pth", model_kw=dict(depth=1), aug_kw=dict(padding=2),
             patch_size=(2, 2), betas=(.8, .9), loss_kw=dict(gamma=1.), early_stop_monitor="accuracy", monitor="valid_loss", max_hours=2., scalar_names={"train/lr": "LR"}, task_weights=dict(zones=2.), window=8, stride=4,
             objective="infonce", objective_kw=dict(eps=1.), head_norm="layer", spectral="optional")


def other(name, value):
    "Another value of a field"
    if name in OTHER: return OTHER[name]
    if isinstance(value, bool): return not value
    return 3 if isinstance(value, int) else .37


def everything(r): return repr([loader_args(r), learner_args(r), callback_args(r), run_args(r)])


@pytest.mark.parametrize("family,field", [(f,k) for f in families for k in families[f].fields])
def test_every_field_reaches_the_loaders_the_learner_or_the_callbacks(family, field):
    "With the optimiser and the schedule that know it"
    f = families[family]
    if field in USED_BY_NOTEBOOKS or field in f.other: return
    home = dict(betas=dict(optimizer="adamw"), momentum=dict(optimizer="sgd"), nesterov=dict(optimizer="sgd"), step_size=dict(schedule="step"), gamma=dict(schedule="step"),
                milestones=dict(schedule="multistep"), patience=dict(schedule="plateau"), factor=dict(schedule="plateau"), focal_gamma=dict(loss="focal"),
                teacher_momentum=dict(objective="byol"), predictor=dict(objective="byol")).get(field, {})
    base = recipe(family=family, **{"optimizer":"adamw", "schedule":"warmup_cosine", **home})
    assert everything({**base, field:other(field, base[field])}) != everything(base)


@pytest.mark.parametrize("notebook,family", NOTEBOOKS.items())
def test_what_a_notebook_reads_of_its_recipe_is_there(notebook, family):
    "And the fields that no function passes on are read by the notebook itself"
    text = "\n".join(c["source"] for c in read_notebook(ROOT/"nbs"/f"{notebook}.ipynb")["cells"])
    left = [k for k in families[family].fields if (k in USED_BY_NOTEBOOKS or k in families[family].other) and k != "family"]
    passed = (*SET_FIELDS, "data_root") if "**set_args(r)" in text else ()
    missing = [k for k in left if f"r.{k}" not in text and k not in passed]
    assert not missing, missing
    for share in ("loader_args(r)", "learner_args(r)", "callback_args(r)", "run_args(r)"): assert f"**{share}" in text or f"args = {share}" in text, share


def test_what_was_done_before_there_was_a_field_still_stands(tmp_path):
    "A run of the time before `factor`, `betas` and `focal_gamma`"
    old = {k:v for k,v in recipes["swin"]["digits"].items() if k not in ("factor", "betas", "focal_gamma", "loss_kw")}
    (tmp_path/"recipe.json").write_text(json.dumps(dict(old, schedule="plateau", patience=5, beta2=.95)))
    args = learner_args(stored_recipe(tmp_path))
    assert (args["schedule_kw"]["factor"], args["schedule_kw"]["patience"], args["opt_kw"]) == (.1, 5, dict(betas=(.9, .95)))
    assert args["loss_kw"] == {}


def test_zero_is_given_and_none_is_not():
    "Swin's own stochastic depth is 0.1; a recipe that asks for none gets none"
    assert "drop_path_rate" not in learner_args(recipe())["model_kw"]
    assert learner_args(resolve("swin", "digits", dict(drop_path=0.)))["model_kw"] == dict(drop_path_rate=0.)


def test_what_the_recipe_says_of_the_model_outright_wins():
    r = resolve("spectral", "scene", dict(model_kw=dict(mask_ratio=.5, depth=3)))
    assert learner_args(r)["model_kw"]["mask_ratio"] == .5 and learner_args(r)["model_kw"]["depth"] == 3


def test_a_file_of_weights_may_be_given():
    for given,want in ((None, False), (True, True), ("weights.pth", "weights.pth"), ("", False)):
        assert learner_args(resolve("swin", "digits", dict(pretrained=given)))["pretrained"] == want


# ---------------------------------------------------------------------------------------------- families

def test_a_family_of_a_users_own(own):
    register_family("leaves", fields=dict(share=.5, crop=None), model=dict(share="keep_rate"), loaders=("crop",), without=("mixup", "cutmix", "mix_mode"),
                    recipes=dict(small=dict(data="leaves", arch="leaf_net", epochs=30, share=.7)))
    r = resolve("leaves", "small", dict(epochs=3, more=dict(crop=8)))
    assert learner_args(r)["model_kw"] == dict(keep_rate=.7) and loader_args(r)["crop"] == 8 and "mixup" not in callback_args(r)
    with pytest.raises(ValueError, match="unknown parameter 'mixup'"): resolve("leaves", "small", dict(more=dict(mixup=.8)))
    assert recipe(family="leaves", share=.1)["share"] == .1


def test_a_family_with_a_pretext_of_its_own(own):
    register_family("pairs", fields=dict(temperature=.07), without=("loss", "label_smoothing", "class_weights", "task_weights"), pretext="contrastive",
                    pretext_fields=("temperature",), recipes=dict(small=dict(data="photos")))
    args = learner_args(resolve("pairs", "small", dict(temperature=.2)))
    assert args["pretext"] == dict(name="contrastive", temperature=.2) and "loss" not in args and "label_smoothing" not in args


@pytest.mark.parametrize("kw,says", [
    (dict(fields=dict(crop=1)), "'crop' of family 'leaves' goes nowhere"), (dict(loaders=("crop",)), "'crop' is no field"), (dict(without=("mixupp",)), "did you mean 'mixup'"),
    (dict(fields=dict(t=1), pretext_fields=("t",)), "name it with pretext"), (dict(recipes=dict(small=dict(epoch=3))), "did you mean 'epochs'"),
    (dict(recipes=dict(small=dict(epochs="3"))), "epochs='3' is a str")], ids=str)
def test_a_family_that_could_not_work_is_refused_and_leaves_nothing(own, kw, says):
    with pytest.raises(ValueError, match=says): register_family("leaves", **{"recipes":{}, **kw})
    assert "leaves" not in families and "leaves" not in recipes


def test_a_family_is_not_overwritten_by_chance(own):
    again = dict(fields=dict(share=.5), model=("share",), recipes=dict(small=dict(share=.7)))
    register_family("leaves", **again)
    register_family("leaves", **again) # the cell of a notebook, run again
    with pytest.raises(ValueError, match="registered already"): register_family("leaves", recipes={})
    with pytest.raises(ValueError, match="registered already"): register_family("swin", recipes={})
    register_family("leaves", recipes={}, replace=True)
    assert not recipes["leaves"] and isinstance(recipes["leaves"], Registry)


# ---------------------------------------------------------------------------------------------- recipes of runs


@pytest.mark.parametrize("field,where,name", [("class_weights", learner_args, "class_weights"), ("grad_checkpointing", learner_args, "grad_checkpointing"),
    ("compile", learner_args, "compile"), ("overfit_batches", loader_args, "overfit_batches"), ("anomaly", callback_args, "anomaly")])
def test_fields_reach_their_place(field, where, name):
    r = resolve("swin", "digits", dict(more={field:3 if field == "overfit_batches" else True}))
    assert where(r)[name] == (3 if field == "overfit_batches" else True) and where(resolve("swin", "digits", {}))[name] in (False, 0)


def test_what_is_said_of_data_of_ones_own_reaches_the_set():
    said = dict(image="file", label="disease", group="patient", split="part", weight="often", encoding="cp1252", reader="grey", white=4095, pattern="(?P<label>a)", classes=["a", "b"], splits=dict(train="t"))
    for family in ("swin", "densenet"):
        assert said.keys() == SET_FIELDS.keys() and set_args(resolve(family, "digits", dict(said, data="t.csv", data_root="here"))) == dict(said, root="here")
        assert set_args(resolve(family, "digits", {})) == dict(root=None)


@pytest.mark.parametrize("family,name,own", [("spectral", "synthetic", dict(n=96)), ("hvit_pretrain", "leaves", dict(n=1400)), ("hvit_finetune", "leaves", dict(n=1400))])
def test_options_of_the_recipes_set_do_not_go_with_another_set(family, name, own):
    "`-p data my/folder` must not ask a folder for n=1400 images"
    assert resolve(family, name, {}).data_kw == own
    assert resolve(family, name, dict(data="my/folder")).data_kw is None
    assert resolve(family, name, dict(data="my/folder", data_kw=dict(split_seed=3))).data_kw == dict(split_seed=3)
    assert resolve(family, name, dict(data_kw=dict(n=12))).data_kw == dict(n=12)
    assert "data_kw" not in resolve("swin", "digits", dict(data="my/folder"))
