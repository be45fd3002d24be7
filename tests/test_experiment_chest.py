"The recipes of the congestion score are the guide's, and every field of them acts"
import configparser
import json
import re
from pathlib import Path

import pytest
import torch

from vitnb.callback.stop import EarlyStop
from vitnb.data.chest import csi_task, load_chest
from vitnb.data.holdout import as_tasks
import vitnb.experiment.chest # noqa: F401, registers the family
from vitnb.experiment.recipes import callback_args, families, learner_args, loader_args, recipes, resolve
from vitnb.experiment.space import spaces
from vitnb.explore.gradcam import zone_cams
from vitnb.learner.core import train_callbacks, vit_learner
from vitnb.learner.predict import predict_split
from vitnb.metrics.report import as_prediction
from vitnb.models.chest import chest_arch, chest_size, chest_stats

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT/"tests"/"fixtures"/"chest_guide.ini"
SEED = ROOT.parent/"shared"/"seeds"/"csi_predictor.txt" # the guide's text, where it is at hand
HERE = ("device", "num_workers", "pin_memory") # settings of a machine, and no part of a recipe


def read_ini(text):
    parser = configparser.ConfigParser(inline_comment_prefixes=("#",))
    parser.read_string(text)
    return {section:{k:v for k,v in parser[section].items() if k not in HERE} for section in parser.sections()}


@pytest.mark.skipif(not SEED.is_file(), reason="the guide's text is not at hand")
def test_the_fixture_is_the_guides_text():
    blocks = [read_ini(block) for block in re.findall(r"```ini\n(.*?)```", SEED.read_text(errors="replace"), re.S)]
    fixture = read_ini(GUIDE.read_text())
    config = next(block for block in blocks if {"Training", "Model", "Optimization", "Loss"} <= block.keys())
    callbacks = next(block["Callbacks"] for block in blocks if "Callbacks" in block)
    assert dict(config, Callbacks=callbacks) == fixture


def test_the_recipe_csi_is_the_guides_file_value_by_value():
    g,r = read_ini(GUIDE.read_text()),resolve("chest", "csi", dict(data="labels.csv"))
    training,how = g["Training"],g["Optimization"]
    assert (r.bs, r.lr, r.epochs) == (int(training["batch_size"]), float(training["learning_rate"]), int(training["n_epochs"]))
    assert r.arch == chest_arch(g["Model"]["model_arch"]) and r.pretrained is (g["Model"]["pretrained"] == "true")
    assert (r.optimizer, r.weight_decay) == (how["optimizer"], float(how["weight_decay"]))
    assert how["scheduler"] == "reduce_lr_on_plateau" and r.schedule == "plateau"
    assert (r.patience, r.factor) == (int(how["patience"]), float(how["factor"]))
    assert r.unknown_weight == float(g["Loss"]["unknown_weight"])
    stop = g["Callbacks"]
    assert (r.early_stop, r.early_stop_min_delta) == (int(stop["early_stopping_patience"]), float(stop["early_stopping_min_delta"]))
    assert r.restore_best is (stop["restore_best_weights"] == "true")


def test_the_guides_values_reach_the_loss_the_schedule_and_the_stop():
    r = resolve("chest", "csi", dict(data="labels.csv"))
    args = learner_args(r)
    assert args["loss"] == "weighted_csi" and args["loss_kw"] == dict(unknown_weight=.3) and args["model_kw"] == dict(drop_rate=.5)
    assert args["schedule"] == "plateau" and dict(patience=10, factor=.5).items() <= args["schedule_kw"].items()
    stop, = [cb for cb in train_callbacks(**callback_args(r)) if isinstance(cb, EarlyStop)]
    assert (stop.patience, stop.min_delta, stop.restore_best) == (10, .001, True)


@pytest.mark.parametrize("space", [name for name in spaces if name.startswith("chest")])
def test_every_parameter_of_the_search_spaces_is_a_field(space):
    assert set(spaces[space]) <= families["chest"].fields.keys()
    for arch in spaces[space]["arch"]: assert chest_arch(arch) == arch


@pytest.mark.parametrize("given,says", [(dict(loss="cross_entropy", unknown_weight=.5), "weighted_csi"), (dict(early_stop_min_delta=.1), "goes with early_stop"),
                                        (dict(drop_path=.1), "unknown parameter 'drop_path'"), (dict(patience=3), "it is for plateau"), (dict(zone_mix=.5, mixup=.2), "mixed already; give one of them, or mixup=0"),
                                        (dict(zone_mix=.5, cutmix=1.), "or cutmix=0")])
def test_a_field_that_would_not_act_is_refused(given, says):
    with pytest.raises(ValueError, match=says): resolve("chest", "synthetic", dict(more=given))


def test_the_weight_and_the_dropout_are_those_of_the_learner():
    r = resolve("chest", "synthetic", dict(unknown_weight=.7, dropout=.25))
    films = load_chest("chest_synthetic", n=24, size=48)
    learn = vit_learner(films.loaders(seed=0, **{**loader_args(r), "bs":4}), seed=0, device="cpu", **learner_args(r))
    assert learn.model.head_drop.p == .25 and .7 in [round(w, 6) for m in learn.loss_func.modules() if getattr(m, "weight", None) is not None for w in m.weight.tolist()]


def test_sizes_and_statistics_are_those_of_the_weights():
    assert (chest_size("csi_raddino", None), chest_size("csi_raddino", 96), chest_size("csi_raddino", 98), chest_size("csi_resnet50", None), chest_size("csi_cnn", 97)) == (518, 98, 98, 224, 97)
    assert chest_stats("csi_raddino") != chest_stats("csi_resnet50")
    assert recipes["chest"]["csi"]["stats"] == "arch"


def test_the_summary_of_a_model_of_zones_names_zones_and_classes():
    films = load_chest("chest_synthetic", n=24, size=48)
    learn = vit_learner(films.loaders(seed=0, bs=4), "csi_micro", seed=0, device="cpu")
    assert dict(learn.summary_table().rows())["classes"] == "6 × 5"


def test_a_file_of_weights_may_take_the_place_of_the_hubs():
    for given in ("chexnet.pth", False): assert learner_args(resolve("chest", "csi", dict(data="labels.csv", pretrained=given)))["pretrained"] == given


def test_corn_acts_from_the_recipe_to_the_step():
    "`-p loss corn_csi`: the notebook makes the task's outputs conditional, a step is trained, and normal for severe costs more than for mild"
    r = resolve("chest", "synthetic", dict(loss="corn_csi", unknown_weight=.5, warmup_epochs=0.))
    films = load_chest("chest_synthetic", n=40, size=48)
    films.tasks = as_tasks(csi_task(metrics=("zone_f1", "csi_mae"), monitor="zone_f1", conditional=r.loss == "corn_csi"))
    learn = vit_learner(films.loaders(seed=0, **{**loader_args(r), "bs":len(films.split("train"))}), seed=0, device="cpu", **learner_args(r))
    before = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(): learn.fit(1)
    row = learn.recorder.rows[-1]
    assert row["step"] == 1 and any((a != b).any() for a,b in zip(before, learn.model.parameters())) and row["zone_f1"] is not None
    loss, = learn.loss_func.losses.values()
    assert type(loss).__name__ == "CornCSILoss" and loss.unknown_weight == .5 and learn.model.num_classes == (6, 4)
    said = torch.tensor([[3., -3, -3, -3]]).expand(6, 4)[None]
    costs = [learn.loss_func(said, torch.full((1, 6), grade)).item() for grade in range(4)]
    assert costs[3] > costs[1] > costs[0]
    probs,_ = predict_split(learn, "test")
    assert probs.shape[1:] == (6, 5) and torch.allclose(probs.sum(-1), torch.ones(()), atol=1e-5)
    assert torch.equal(films.tasks.only.decode(as_prediction(films.tasks.only, probs)), probs.argmax(-1))
    maps = zone_cams(learn.model, learn.dls.valid.one_batch()[0], read=films.tasks.only.activation)
    assert maps.shape[1] == 6 and maps.isfinite().all()


def test_the_strength_of_masking_is_a_field_and_acts():
    films = load_chest("chest_synthetic", n=24, size=48, masks="masks")
    r = resolve("chest", "synthetic", dict(masking="attention", strength=.9))
    dls = films.loaders(seed=0, **{**loader_args(r), "bs":4})
    assert [t.strength for t in dls.valid.pipeline.transforms if type(t).__name__ == "FocusLungs"] == [.9]
    with pytest.raises(ValueError, match="would do nothing with masking='zero'"): films.loaders(**{**loader_args(r), "masking":"zero"})
    with pytest.raises(ValueError, match="between .5"): films.loaders(**{**loader_args(r), "bs":4, "strength":.3})


@pytest.mark.parametrize("name", ["train_chest", "sweep_chest", "compare_films"])
def test_the_notebooks_of_films_say_that_they_are_not_for_clinical_use(name):
    cells = json.loads((ROOT/"nbs"/f"{name}.ipynb").read_text())["cells"]
    assert any("not for clinical use" in "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
