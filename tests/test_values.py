"Every field of a recipe has its bounds: what lies inside arrives, what lies outside is named with the rule"
import math
import re

import pytest

from vitnb.core import repo_root
from vitnb.experiment.asking import names_are_ours
from vitnb.experiment.notebook import notebook_askable, notebook_params, read_notebook
from vitnb.experiment.recipes import check_recipe, families, recipes
from vitnb.experiment.values import check_alike, check_data, check_values, RULES
from vitnb.parameters import RUN_FIELDS, askable, check_given, check_injected

NOTEBOOKS = [path for path in (repo_root()/"nbs").glob("*.ipynb") if path.stem != "index"]
NOT_NUMBERS = {"family", "augment", "loss", "stats", "labels", "objective", "predictor", "spectral", "sizes", "normalize", "label", "splits"} # names, or several kinds of value


@pytest.mark.parametrize("family", ["swin", "densenet", "spectral", "chest", "hvit_pretrain", "hvit_finetune"])
def test_each_field_of_what_trains_has_a_rule(family):
    lost = families[family].fields.keys() - RULES.keys() - NOT_NUMBERS
    assert not lost, f"give {sorted(lost)} a rule in RULES of vitnb.experiment.values"
    assert not RUN_FIELDS.keys() - RULES.keys()


@pytest.mark.parametrize("family,name", [(family, name) for family in recipes for name in recipes[family]])
def test_each_recipe_follows_the_rules(family, name): check_values(recipes[family][name], family)


WRONG = dict(epochs=(1.5, -3, 0, True, "3"), bs=(0, 2.), lr=(0, -1e-3, math.nan, math.inf, "high"), weight_decay=(-1e-3,), betas=((.9,), (.9, 1.), .9), drop_path=(1, -.1),
    label_smoothing=(1.,), ema_decay=(1.,), accumulate=(0,), seed=(-1, 1.), img_size=(0, (224,), 224.), milestones=(.5, [-1]), mix_mode=("pairs",), precision=("fp8",),
    model_kw=("x", [1]), compile=(0, "no"), data=(2024,), arch=(121,), tag=("a/b", "a b", ".hidden"), max_hours=(-1,), mask_ratio=(0, 1), patch_size=((4,), 4, (0, 5)),
    pretrained=(3,), use=("first",), sampling=("random",), smoke=(1,), resume=(True,), device=("tpu", 0, ""), augment=("",), window=(2**17,), aug_kw=({1:2},))


@pytest.mark.parametrize("field,value", [(field, value) for field,values in WRONG.items() for value in values])
def test_a_wrong_value_is_named_with_its_rule(field, value):
    with pytest.raises(ValueError, match=f"^{field}=.* must be "): check_values({field:value})


RIGHT = dict(epochs=3, lr=1, betas=[.9, .95], img_size=(64, 32), tag="Prüfung-ü.1", pretrained="weights.pth", model_kw={}, milestones=(.5, .75), max_hours=0, clip=None, mixup=0, data="2024")


@pytest.mark.parametrize("field", RIGHT)
def test_a_right_value_passes(field): check_values({field:RIGHT[field]})


@pytest.mark.parametrize("params,says", [
    (dict(recipe="digit"), "did you mean 'digits'"), (dict(recipe="digits", epochs=-3), "epochs=-3 must be a whole number from 1"), (dict(recipe="digits", more=dict(bs=0)), "bs=0"),
    (dict(recipe="digits", momentum=.9), "optimizer is 'adamw', which does not use it"), (dict(recipe="digits", data="dir/2024"), "no set and not there"),
    (dict(recipe="digits", data_root="nowhere"), "data_root='nowhere' is not there"), (dict(recipe="digits", more=dict(lr=.1), lr=.2), "give it once")])
def test_a_recipe_is_refused_as_a_whole(params, says):
    with pytest.raises(ValueError, match=says): check_recipe("swin", params)


@pytest.mark.parametrize("field,value", [("arch", "mine"), ("schedule", "mine"), ("loss", "mine"), ("data", "mine"), ("augment", "mine")])
def test_names_of_ones_own_pass_unless_there_can_be_none(field, value):
    check_recipe("swin", {"recipe":"digits", field:value})
    with pytest.raises(ValueError, match="mine"): check_recipe("swin", {"recipe":"digits", field:value}, named=True)


def test_a_recipe_that_needs_data_says_so():
    with pytest.raises(ValueError, match="recipe 'retina' needs data"): check_recipe("spectral", dict(recipe="retina"))


def test_data_is_looked_for_where_sets_are(tmp_path):
    (tmp_path/"settings.ini").write_text("[vitnb]\ndata_path = sets\n")
    for place in ("sets/mine", "here", "root/deep", "sets/imagenet/train"): (tmp_path/place).mkdir(parents=True)
    for data,root in (("mine", None), ("here", None), ("deep", "root"), (str(tmp_path/"here"), None), ("imagenet", None)): check_data(data, root, tmp_path)
    with pytest.raises(ValueError, match="looked for"): check_data("nowhere", None, tmp_path)
    with pytest.raises(ValueError, match="looked for"): check_data("here", "root", tmp_path)
    with pytest.raises(ValueError, match="cannot be downloaded"): check_data("imagenet", "root", tmp_path)


@pytest.mark.parametrize("name,content,is_table", [("a.txt", "image,label\na.png,x\n", True), ("b.txt", "sep=;\nimage;label\na.png;x\n", True), ("c.txt", "\ufeffimage\tlabel\na.png\tx\n", True), ("d", "image|label\na.png|x", True),
    ("e.txt", "Dear all,\nlabel the rest\n", False), ("f.txt", "", False), ("g.json", "{\n \"a\": 1\n}", False), ("h.txt", "image,label\n", False), ("i.csv", "", True), ("j.npy", "\0\1", True)])
def test_a_text_is_data_where_it_has_columns(tmp_path, name, content, is_table):
    (tmp_path/name).write_text(content, encoding="utf-8")
    if is_table: return check_data(str(tmp_path/name))
    with pytest.raises(ValueError, match=f"{name}.*without columns"): check_data(str(tmp_path/name))


SHOWN = dict(seed=42, data="retina_synthetic", data_root=None, window=None, set_kw={"n":96}, arch="spectral_mae_micro", epochs=40, minutes=0., ratios=[.5], split="test", checkpoint="", run_dir="", points=None, fold=None)


@pytest.mark.parametrize("asked,said", [(dict(epochs=-3), "epochs=-3 must be a whole number from 1"), (dict(window=1.5), "window=1.5 must be"),
    (dict(seed=-1), "seed=-1"), (dict(data="nowhere"), "is no set and not there"), (dict(arch="spectral_mae_micr"), "did you mean 'spectral_mae_micro'"),
    (dict(data_root="nowhere"), "data_root='nowhere' is not there"), (dict(ratios=[2.]), "each a number above 0 and below 1"), (dict(ratios=[]), "at least one"), (dict(minutes=-1.), "minutes=-1.0"),
    (dict(split="foo"), "one of valid, test"), (dict(checkpoint="nowhere"), "checkpoint='nowhere' is not there"), (dict(run_dir="README.md"), "run_dir='README.md' holds no weights"), (dict(points=[[1]]), "2 values"), (dict(data=""), "names nothing"),
    (dict(fold="0/3"), "which part of how many"), (dict(fold="4/3"), "such as 1/3"), (dict(fold="1/1"), "fold='1/1'"), (dict(fold=1), "fold=1"), (dict(fold="1/3/5"), "1/3/5")])
def test_a_notebook_without_a_family_has_the_bounds_of_the_fields_it_is_named_after(asked, said):
    with pytest.raises(ValueError, match=re.escape(said)): check_alike(SHOWN, {**SHOWN, **asked}, named=True)


@pytest.mark.parametrize("asked", [dict(minutes=0.), dict(epochs=1, window=8), dict(split="valid", ratios=[.1, .2]), dict(points=[[1, 2], [3, 4]]), dict(fold="3/3")])
def test_what_its_default_shows_to_mean_something_else_is_free(asked): # minutes of a recipe are above 0, and those of this notebook are not
    check_alike(SHOWN, {**SHOWN, **asked}, named=True)


def test_words_of_a_notebook_with_names_of_its_own_are_its_own():
    check_alike(dict(split="test", ratios=[.5]), dict(split="fold 3", ratios=[2.]), named=False)
    check_alike(dict(split="fold 1"), dict(split="fold 3"), named=True)


WRONG_OF_A_KIND = {bool:5, int:-7, float:1e30, str:"a b\n$<b>", list:[{}], tuple:[{}], dict:{1:2}, type(None):[{}]}
FREE = {("sweep_chest", "storage"), ("compare_runs", "score"), ("compare_runs", "baseline")} # any text may be one


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS), ids=lambda path: path.stem)
def test_no_parameter_of_an_experiment_takes_a_value_that_is_none(notebook):
    "Of another type, out of bounds, or a word that nobody knows; `resume` is looked for when the folder is chosen"
    nb = read_notebook(notebook)
    shown,family,is_ours = notebook_params(nb), notebook_askable(nb), names_are_ours(nb)
    assert is_ours
    for name,default in shown.items():
        if name == "resume" or (notebook.stem, name) in FREE: continue
        wrong = WRONG_OF_A_KIND[type(default)]
        with pytest.raises(ValueError) as refused: # such as: name=-7 must be a whole number from 1, such as 8
            given = check_given({name:wrong}, shown, family)
            family.refuse({**shown, **given}, shown, named=is_ours, workspace=repo_root())
        assert name in str(refused.value) or default in str(refused.value), name


def test_papermill_is_told_in_the_kernel(): # which has no quick check before
    cells = ["tag = ''\nepochs = 40", "# Parameters\nepochs = -3\n"]
    with pytest.raises(ValueError, match="epochs=-3 must be a whole number from 1"): check_injected(cells, askable[""])
