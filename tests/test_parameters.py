"What a notebook can be asked: the same in JupyterLab, by papermill and by `vitnb run`, and nothing that does not act"
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vitnb.core import repo_root
from vitnb.experiment.notebook import notebook_askable, notebook_params, read_notebook
from vitnb.experiment.recipes import recipes, register_family, resolve
from vitnb.experiment.run import Run, family_params, read_json
from vitnb.parameters import Askable, askable, asked_fields, check_injected, literal_params, parse_params, parse_value, take_params

NBS = repo_root(Path(__file__).parent)/"nbs"
FAMILIES = dict(pretrain_hvit="hvit_pretrain", finetune_hvit="hvit_finetune", train_swin="swin", train_densenet="densenet", pretrain_spectral="spectral", finetune_spectral="finetune", train_chest="chest", compare_films="films",
                compare_scenes="scenes")

# what the cells showed before they were shortened, with a value of each
COMMON = dict(
    tag="'x'", seed="1", recipe="'digits'", data="'digits'", data_root="'data'", arch="'swin_tiny'", img_size="8",
    augment="'none'", epochs="2", bs="4", lr="0.5", weight_decay="0.1", schedule="'cosine'", warmup_epochs="1.0", clip="1.0",
    ema_decay="0.9", accumulate="2", precision="'fp32'", more="{}", max_hours="1.5", resume="'never'", dry_run="True",
    smoke="True", model_kw="{'depth': 1}", pretrained="'weights.pth'", overfit_batches="1", checkpoint_every_n_epochs="1")
CLASSES = dict(label_smoothing="0.1", loss="'focal'", mixup="0.8", cutmix="1.0", class_weights="True",
               grad_checkpointing="True", early_stop="3", tta="'flip'", use="'best'")
BEFORE = dict(
    train_swin=dict(COMMON, **CLASSES, drop_path="0.2"),
    train_densenet=dict(COMMON, **CLASSES, stats="'imagenet'", optimizer="'adam'", momentum="0.8", dropout="0.2"),
    pretrain_spectral={k:v for k,v in dict(
        COMMON, data_kw="{'n': 8}", window="8", normalize="'none'", patch_size="[4, 5]", mask_ratio="0.5", mask_mode="'tube'",
        spectral_pos="'index'", sam_weight="0.2", norm_target="True").items() if k != "img_size"},
    finetune_spectral=dict(
        tag="'x'", seed="1", data="'a'", data_root="'b'", set_kw="{'n': 8}", task="'cubes'", window="None", per_class="None",
        test_per_class="8", normalize="'none'", augment="'none'", encoder="'e'", arch="'a'", patch_size="[8, 5]",
        mask_ratio="0.5", pretrain_epochs="2", modes="['tuned']", epochs="2", bs="2", lr="0.1", frozen_lr="0.1",
        resume="'never'", smoke="True"),
    compare_scenes=dict(
        tag="'x'", seed="1", split_seed="2", dealings="3", resume="'auto'", real="'folder'", sources="[['a', {}]]",
        target="['b', {}]", window="8", patch_size="[2, 5]", mask_ratio="0.5", width="32", depth="2", modulate="False",
        shortest="100.0", noise="0.5", fade="100.0", steps="4", bs="2", lr="0.1", angle="1.0", adapt="2", labels="[5]",
        probe_steps="3", probe_window="5", probe_noise="1.0", probe_bs="2", probe_block="1", reach="1", probe_dim="8",
        draws="2", pool="9", test_pool="9", weights="'w'", smoke="True"))
TODAY = dict(dealings="n_splits", reach="neighborhood_radius")
ASKED = [(notebook, name) for notebook,before in BEFORE.items() for name in before]
FIELDS = [(notebook, name) for notebook,family in FAMILIES.items() for name in family_params(family).fields if name != "family"]


def opened(notebook):
    "A notebook, what its cell shows, and its family"
    nb = read_notebook(NBS/f"{notebook}.ipynb")
    return nb, notebook_params(nb), notebook_askable(nb)


def cell_of(nb): return next(c["source"] for c in nb["cells"] if "parameters" in c["metadata"].get("tags", []))


def in_jupyterlab(cell, name, text):
    "The namespace of a kernel in which a person ran the cell with one line changed or added"
    lines = [line for line in cell.splitlines() if line.split("=")[0].strip() != name]
    source = "\n".join([*lines, f"{name} = {text}"])
    return {**literal_params(source), "In":["", source]}


@pytest.fixture
def leaves():
    "A family whose notebooks can be asked for `share`"
    register_family("leaves", fields=dict(share=.5), model=dict(share="keep_rate"), recipes=dict(small=dict(data="leaves")))
    yield askable["leaves"]
    from vitnb.experiment.recipes import families
    for table in (askable, families, recipes): del table["leaves"]


# ------------------------------------------------------------------------------------------- what the notebooks show

@pytest.mark.parametrize("notebook", FAMILIES)
def test_what_is_read_of_the_recipe_is_a_field_of_it(notebook):
    "And every field that the cell does not show is read, by the notebook or by what shares a recipe out"
    nb,shown,family = opened(notebook)
    if FAMILIES[notebook] not in ("finetune", "scenes"): return # tests/test_recipes.py asks this of the others
    text = "\n".join(cell["source"] for cell in nb["cells"])
    hidden = [name for name in family.fields if name not in shown and name != "family"]
    assert hidden and all(f"asked.{name}" in text for name in hidden)
    as_recipe = [name for name in shown if shown[name] is None and f"asked.{name}" not in text]
    assert not as_recipe, "None means: as the recipe says, so the recipe is what is read"


# ----------------------------------------------------------------------------------------------------- the three ways

@pytest.mark.parametrize("notebook,name", ASKED)
def test_what_a_cell_once_showed_can_still_be_given_in_all_three_ways(notebook, name):
    nb,shown,family = opened(notebook)
    family = replace(family, check=None)
    text = BEFORE[notebook][name]
    today = TODAY.get(name, name)
    value = literal_params(f"{name} = {text}")[name]
    typed = value if isinstance(value, str) else text
    assert parse_params([[name, typed]], shown, family) == {today:value}, "vitnb run"
    assert check_injected(["", cell_of(nb), f"# Parameters\n{name} = {text}\n"], family) == {today:value}, "papermill"
    assert take_params(in_jupyterlab(cell_of(nb), name, text), family)[today] == value, "JupyterLab"


@pytest.mark.parametrize("notebook,name", FIELDS)
def test_every_field_of_the_recipe_can_be_given_in_all_three_ways(notebook, name):
    nb,shown,family = opened(notebook)
    family = replace(family, check=None) # any value will do; tests/test_values.py asks which are right
    default = family.beyond(shown).get(name)
    text = repr(default) if default is not None else "'a'"
    value = literal_params(f"{name} = {text}")[name]
    typed = value if isinstance(value, str) else text
    assert parse_params([[name, typed]], shown, family) == {name:value}
    assert check_injected(["", cell_of(nb), f"# Parameters\n{name} = {text}\n"], family) == {name:value}
    assert take_params(in_jupyterlab(cell_of(nb), name, text), family)[name] == value


@pytest.mark.parametrize("notebook", FAMILIES)
@pytest.mark.parametrize("wrong,right", [("smokee", "smoke"), ("seeed", "seed")])
def test_an_unknown_name_names_the_nearest_in_all_three_ways(notebook, wrong, right):
    nb,shown,family = opened(notebook)
    says = f"unknown parameter '{wrong}': did you mean '{right}'"
    with pytest.raises(ValueError, match=says): parse_params([[wrong, "1"]], shown, family)
    with pytest.raises(ValueError, match=says): check_injected(["", cell_of(nb), f"# Parameters\n{wrong} = 1\n"], family)
    with pytest.raises(ValueError, match=says): take_params(in_jupyterlab(cell_of(nb), wrong, "1"), family)


@pytest.mark.parametrize("way", ["vitnb run", "papermill", "jupyterlab"])
def test_a_hidden_field_of_another_type_is_an_error_before_the_run(way):
    nb,shown,family = opened("train_swin")
    calls = {"vitnb run":lambda: parse_params([["sampling", "1"], ["early_stop", "soon"]], shown, family),
             "papermill":lambda: check_injected(["", cell_of(nb), "# Parameters\nearly_stop = 'soon'\n"], family),
             "jupyterlab":lambda: take_params(in_jupyterlab(cell_of(nb), "early_stop", "'soon'"), family)}
    with pytest.raises(ValueError, match="early_stop='soon' is a str, but must be a int"): calls[way]()


def test_of_two_lines_in_a_cell_the_last_counts_and_this_is_said(capsys):
    cell = "tag = ''\nlr = 0.1\nepochs = 3\nlr = 0.5"
    assert literal_params(cell) == dict(tag="", lr=.5, epochs=3)
    assert take_params({"In":["", cell], "tag":"", "lr":.5, "epochs":3})["lr"] == .5
    assert capsys.readouterr().out == "lr has 2 lines in the cell; the last counts: lr = 0.5\n"


def test_a_field_that_is_given_twice_is_an_error_in_each_way():
    nb,shown,family = opened("train_swin")
    more = "{'lr': 0.1}"
    with pytest.raises(ValueError, match="'lr' is given as a parameter and in more"):
        parse_params([["lr", "1"], ["more", more]], shown, family)
    with pytest.raises(ValueError, match="more than once"): parse_params([["lr", "1"], ["lr", "2"]], shown, family)
    cell = cell_of(nb) + "\nlr = 0.5" # a second line, below the one that is shown
    assert take_params({"In":["", cell], "tag":"", "lr":.5}, family)["lr"] == .5 # as in every cell of Python
    space = in_jupyterlab(cell_of(nb), "mixup", "0.8")
    with pytest.raises(ValueError, match="'mixup' is given as a parameter and in more"):
        take_params({**space, "more":{"mixup":.1}}, family)
    given = {**literal_params(cell_of(nb)), "In":["", cell_of(nb), f"# Parameters\nlr = 1.0\nmore = {more}\n"]}
    with pytest.raises(ValueError, match="'lr' is given as a parameter and in more"):
        take_params({**given, "lr":1., "more":{"lr":.1}}, family)


def test_more_may_hold_fields_only():
    fields = family_params("swin").fields
    with pytest.raises(ValueError, match="did you mean 'sampling'"): asked_fields(dict(more=dict(samplin="")), fields)
    with pytest.raises(ValueError, match="must be a dictionary of fields"): asked_fields(dict(more="lr=1"), fields)
    with pytest.raises(ValueError, match="leave it out"): asked_fields(dict(more=dict(family="densenet")), fields)


def test_none_is_as_the_recipe_says_and_the_word_none_is_a_value():
    _,shown,family = opened("train_swin")
    given = parse_params([["augment", "none"], ["mixup", "None"], ["clip", "none"]], shown, family)
    assert given == dict(augment="none", mixup=None, clip=None)
    r = resolve("swin", "tiny_imagenet", given)
    assert (r.augment, r.mixup, r.clip) == ("none", 0., 1.)


def test_the_published_scenes_are_one_parameter_away():
    _,shown,family = opened("compare_scenes")
    r = resolve("scenes", "published", {**shown, **parse_params([["recipe", "published"], ["real", "tests"]], shown, family)})
    assert (r.width, r.steps, r.bs, r.probe_steps, r.neighborhood_radius, r.n_splits) == (128, 1800, 8, 1200, 1, 12)


# ------------------------------------------------------------------------------------------- edges of the three ways

def test_without_a_family_the_cell_is_all_there_is():
    cell = "bs = 16\ntag = ''"
    assert take_params({"In":["", cell + "\nextra = 1"], "bs":16, "tag":"", "extra":1}) == dict(bs=16, tag="", extra=1)
    with pytest.raises(ValueError, match="unknown parameter 'lr'"): check_injected(["", cell, "# Parameters\nlr = 1\n"])


def test_the_newest_cell_of_a_session_counts():
    "A person who mends a name and runs the cell again"
    family = Askable(dict(lr=1e-3, mixup=0.))
    space = dict(tag="", lr=None, mixup=.8, In=["", "tag = ''\nmixupp = .8", "1/0", "tag = ''\nlr = None\nmixup = .8", "x = 1"])
    assert take_params(space, family)["mixup"] == .8
    with pytest.raises(ValueError, match="did you mean 'mixup'"): take_params({**space, "In":space["In"][:3]}, family)


def test_an_old_name_in_the_cell_is_the_new_one():
    _,_,family = opened("compare_scenes")
    space = dict(tag="", dealings=3, In=["", "tag = ''\ndealings = 3"])
    assert take_params(space, family)["n_splits"] == 3 and space["n_splits"] == 3 and "dealings" not in space


def test_a_dictionary_is_checked_like_a_cell(monkeypatch, tmp_path):
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path))
    with pytest.raises(ValueError, match="did you mean 'mixup'"): Run("train_demo", dict(tag="", mixupp=.8), family="swin")
    with pytest.raises(ValueError, match="did you mean 'swin'"): Run("train_demo", dict(tag=""), family="swim")
    assert not list(tmp_path.iterdir())
    assert Run("train_demo", dict(tag="", mixup=.8), family="swin").params == dict(tag="", mixup=.8)


def test_a_family_of_a_users_own_can_be_asked(leaves):
    assert parse_params([["share", "1"]], dict(tag="", lr=None), leaves) == dict(share=1.)
    with pytest.raises(ValueError, match="did you mean 'share'"): parse_params([["shar", "1"]], dict(tag=""), leaves)


# --------------------------------------------------------------------------------------------------- real processes

OPEN = "from vitnb.experiment.run import Run\nrun = Run('train_demo', globals(), tag, resume, family='swin')"
READ = "from pathlib import Path\nPath('data_was_read').touch()\nrun.finish(mixup=run.params.get('mixup', -1.))"


@pytest.fixture
def demo(tmp_path, monkeypatch):
    "A notebook that names a family and shows three of its fields, in a workspace of its own"
    (tmp_path/"settings.ini").write_text("[vitnb]\noutputs_path = out\ndevice = cpu\n")
    monkeypatch.setenv("VITNB_WORKSPACE", str(tmp_path))
    monkeypatch.delenv("VITNB_OUTPUTS_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    sources = ["tag = ''\nresume = 'never'\nlr = None", OPEN, READ]
    cells = [dict(cell_type="code", id=f"c{n}", execution_count=None, outputs=[], source=s, metadata={}) for n,s in enumerate(sources)]
    cells[0]["metadata"] = dict(tags=["parameters"])
    meta = dict(kernelspec=dict(name="python3", language="python", display_name="python3"))
    (tmp_path/"train_demo.ipynb").write_text(json.dumps(dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=5)))
    return tmp_path


def call(folder, *args):
    done = subprocess.run([sys.executable, "-m", *args], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


WAYS = {"papermill":("papermill", "train_demo.ipynb", "o.ipynb"), "vitnb run":("vitnb.experiment.cli", "run", "train_demo.ipynb")}


@pytest.mark.parametrize("way", WAYS)
def test_a_field_that_is_not_shown_acts(demo, way):
    code,said = call(demo, *WAYS[way], "-p", "mixup", "0.8")
    assert code == 0, said
    result, = (demo/"out"/"train_demo").glob("*/result.json")
    assert read_json(result) == dict(mixup=.8)
    assert way == "papermill" or "unknown" not in said, "papermill's own warning is not passed on"


@pytest.mark.parametrize("way", WAYS)
def test_an_unknown_name_stops_before_data_is_read(demo, way):
    code,said = call(demo, *WAYS[way], "-p", "mixupp", "0.8")
    assert code != 0 and "did you mean 'mixup'" in said
    assert not (demo/"data_was_read").exists() and not list((demo/"out").glob("*/*"))


# -- hyperparameters of a search -----------------------------------------------------------------------------------------

def best_file(tmp_path, **best):
    file = tmp_path/"best_params.json"
    file.write_text(json.dumps(dict(best_value=.9, best_params=best, n_trials=3)))
    return str(file)


HYPERPARAMS_WAYS = {"vitnb run":lambda shown, cell, family, path: parse_params([["hyperparams", path]], shown, family),
        "papermill":lambda shown, cell, family, path: take_params(dict({k:v for k,v in shown.items()}, hyperparams=path,
                                                               In=["", cell, f"# Parameters\nhyperparams = {path!r}\n"]), family),
        "jupyterlab":lambda shown, cell, family, path: take_params(dict(in_jupyterlab(cell, "hyperparams", repr(path))), family)}


@pytest.mark.parametrize("way", HYPERPARAMS_WAYS)
def test_every_best_parameter_is_applied_in_all_three_ways(way, tmp_path):
    "Whether the cell shows it (lr) or not (momentum, label_smoothing), and nothing else changes"
    nb,shown,family = opened("train_densenet")
    best = dict(lr=.03, optimizer="sgd", momentum=.8, label_smoothing=.1, bs=8, model_kw=dict(drop_rate=.1))
    found = HYPERPARAMS_WAYS[way](shown, cell_of(nb), family, best_file(tmp_path, **best))
    assert {k:found[k] for k in best} == best
    r = resolve("densenet", "digits", found)
    assert {k:r[k] for k in best} == best and r.epochs == recipes["densenet"]["digits"]["epochs"]


@pytest.mark.parametrize("way", HYPERPARAMS_WAYS)
@pytest.mark.parametrize("best,message", [(dict(lrr=.1), "unknown parameter 'lrr'"), (dict(lr="high"), "lr='high' is a str"), ({}, "no best_params")])
def test_a_best_parameter_that_is_unknown_is_refused_in_all_three_ways(way, best, message, tmp_path):
    nb,shown,family = opened("train_densenet")
    with pytest.raises(ValueError, match=message): HYPERPARAMS_WAYS[way](shown, cell_of(nb), family, best_file(tmp_path, **best))


def test_a_parameter_beside_the_file_must_agree_with_it(tmp_path):
    nb,shown,family = opened("train_densenet")
    path = best_file(tmp_path, lr=.03)
    with pytest.raises(ValueError, match="lr=0.1 is given, and hyperparams=.* has 0.03; give it once"):
        parse_params([["hyperparams", path], ["lr", ".1"]], shown, family)
    assert parse_params([["hyperparams", path], ["lr", ".03"], ["epochs", "9"]], shown, family) == dict(hyperparams=path, lr=.03, epochs=9)
    with pytest.raises(ValueError, match="is not there"): parse_params([["hyperparams", "missing.json"]], shown, family)


def test_a_notebook_without_a_family_takes_a_file_where_its_cell_has_the_parameter(tmp_path):
    path = best_file(tmp_path, lr=.03)
    shown = dict(lr=.1, hyperparams=None)
    assert parse_params([["hyperparams", path]], shown)["lr"] == .03
    assert take_params(dict(lr=.1, hyperparams=path))["lr"] == .03
    with pytest.raises(ValueError, match="unknown parameter 'hyperparams'"): parse_params([["hyperparams", path]], dict(lr=.1))


def test_a_dictionary_is_read_as_python_or_as_json_says_it():
    "A user writes `-p head '{\"predictor\": true}'`"
    assert parse_value('{"a": true, "b": [null, 1]}', None) == parse_value("{'a': True, 'b': [None, 1]}", {}) == dict(a=True, b=[None, 1])
    assert parse_value("[1, false]", ()) == [1, False] and parse_value("{broken", {}) == "{broken" and parse_value("NaN", 1.) == "NaN"
