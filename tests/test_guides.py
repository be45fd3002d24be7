"Every argument of the guides is answered: by a field, a parameter, a setting, an option, or a reason why not"
import dataclasses
import importlib
import inspect
import json
from pathlib import Path

import pytest

from vitnb.callback import history, zonehistory
from vitnb.callback.schedule import schedules
from vitnb.core import Settings
from vitnb.data.augment import augments
from vitnb.experiment import cli, commands, sweeping
from vitnb.experiment.recipes import FIELDS, learner_args, recipes, resolve, run_args
from vitnb.experiment.run import Run
from vitnb.models.protocol import list_models, models
from vitnb.parameters import RUN_FIELDS

ARGUMENTS = json.loads((Path(__file__).parent/"fixtures"/"guide_arguments.json").read_text())
KINDS = "field common model augment call schedule history scalar setting parameter option folder".split()


def named(row): return f"{row['guide']}:{row['argument']}"
def alike(a, b): return (list(a) if isinstance(a, tuple) else a) == b


def option(function, name):
    "Default of a parameter"
    parameters = inspect.signature(function).parameters
    assert name in parameters, f"{function} has no {name}; it has {', '.join(parameters)}"
    return parameters[name].default


def called(path):
    "A function or a class by its path"
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try: found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError: continue
        for part in parts[cut:]: found = getattr(found, part)
        return found


# what stands for an argument, by the kind of its answer: a value to compare, or None where being there is the answer
def of_field(family, recipe, field):
    asks = recipes[family][recipe]["data"] is None # it has no data of its own
    return resolve(family, recipe, dict(data="x") if asks else {})[field]
def of_model(arch, name):
    list_models()
    return models[arch].options()[name]
def of_augment(recipe, name): return option(augments[recipe], name)
def of_scalar(family, recipe, name): return run_args(resolve(family, recipe, {}))["scalar_names"][name]
def of_call(path):
    function,_,name = path.partition(":")
    return option(called(function), name)


def there(row):
    "Whether what answers an argument by its name alone exists"
    if "common" in row: return row["common"] in FIELDS
    if "setting" in row: return row["setting"] in {f.name for f in dataclasses.fields(Settings)}
    if "parameter" in row: return row["parameter"] in RUN_FIELDS
    if "option" in row: return f'"{row["option"]}"' in inspect.getsource(cli) + inspect.getsource(commands) + inspect.getsource(sweeping)
    if "folder" in row: return hasattr(Run, row["folder"])
    if "history" in row: return row["history"] in inspect.getsource(history) + inspect.getsource(zonehistory)
    if "schedule" in row: return row["schedule"] in schedules
    return bool(row.get("reason"))


VALUES = dict(field=of_field, model=of_model, augment=of_augment, scalar=of_scalar)


@pytest.mark.parametrize("row", ARGUMENTS, ids=named)
def test_an_argument_of_a_guide_is_answered(row):
    kinds = [kind for kind in KINDS if kind in row]
    assert len(kinds) <= 1 and (kinds or row.get("reason")), "neither a place nor a reason"
    want = row.get("stands", row["value"])
    if "stands" in row: assert row.get("reason") or alike(row["stands"], row["value"]) or kinds == ["augment"] or row["argument"] in ("model", "img_size", "mlflow.tags.version"), "another value needs a reason"
    kind = kinds[0] if kinds else ""
    if kind == "call": assert alike(of_call(row["call"]), want)
    elif kind in VALUES and not (row["guide"] == "spectral" and row.get("field", [""])[-1] == "data"): assert alike(VALUES[kind](*row[kind]), want)
    elif kind in VALUES: assert row["field"][-1] in FIELDS
    else: assert there(row)


def test_nothing_waits(): assert not [named(row) for row in ARGUMENTS if "open" in row]


def test_an_argument_that_nothing_answers_fails():
    for row in (dict(guide="swin", argument="--ema", value=1, common="emma"), dict(guide="swin", argument="--ema", value=1, setting="emma"), dict(guide="swin", argument="--ema", value=1)): assert not there(row)
    with pytest.raises(KeyError): of_field("swin", "digits", "emma")
    with pytest.raises(AssertionError, match="has no emma"): of_call("vitnb.callback.live.MaskedLive:emma")


def test_the_guides_are_all_there(): assert {row["guide"] for row in ARGUMENTS} == {"swin", "densenet", "spectral", "hierarchical_vit", "csi_predictor"} and len({named(row) for row in ARGUMENTS}) > 150


def test_the_chest_guides_callbacks_and_plateau_together():
    "Its [Optimization] and [Callbacks] sections as fields"
    r = resolve("densenet", "digits", dict(optimizer="adam", lr=.001, weight_decay=1e-4, schedule="reduce_lr_on_plateau", patience=10, factor=.5, early_stop=10, early_stop_min_delta=.001, restore_best=True))
    args = learner_args(r)
    assert (args["optimizer"], args["lr"], args["weight_decay"], args["schedule_kw"]["patience"], args["schedule_kw"]["factor"]) == ("adam", .001, 1e-4, 10, .5)
