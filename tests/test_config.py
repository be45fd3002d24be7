"The configuration of a run: format 1 becomes format 2, from which everything can be built again"
import shutil
from pathlib import Path

import pytest
import torch

from vitnb.callback.checkpoint import load_checkpoint
from vitnb.data.augment import augment_ratio, eval_pipeline
from vitnb.data.cube import make_normalizer
from vitnb.data.draws import Draws
from vitnb.data.retina import retina_wavelengths
from vitnb.data.transform import make_pipeline
from vitnb.learner.config import upgrade_config
from vitnb.learner.trained import load_run
from vitnb.models.protocol import create_model
from vitnb.renamed import upgrade
from vitnb.task import ClassMap, OneClass, make_tasks

FORMAT1 = Path(__file__).resolve().parent/"fixtures"/"format1"
KEYS = {"format", "arch", "model_kw", "tasks", "pretext", "reader", "transforms", "normalize", "training"}
MEAN,STD = [.1, .2, .3],[.4, .5, .6]
NORM = f"\n  Normalize(mean={MEAN}, std={STD})"

# pipelines of training as commit 2cdb6f0 printed them into checkpoints, for images of 224 pixels
PRINTED = dict(
    none="Pipeline:\n  Resize(size=224, shorter=False, interpolation='bilinear')" + NORM,
    shift="Pipeline:\n  Resize(size=224, shorter=False, interpolation='bilinear')\n  RandomCrop(size=224, padding=1, mode='constant')" + NORM,
    crop_flip="Pipeline:\n  Resize(size=224, shorter=False, interpolation='bilinear')\n  RandomCrop(size=224, padding=4, mode='constant')\n  Flip(p=0.5)" + NORM,
    basic="Pipeline:\n  Resize(size=224, shorter=False, interpolation='bilinear')\n  Flip(p=0.5)" + NORM,
    advanced="Pipeline:\n  Resize(size=256, shorter=True, interpolation='bilinear')\n  RandomCrop(size=224, padding=0, mode='constant')\n  Flip(p=0.5)\n"
             "  RandAugment(num_ops=2, magnitude=9, bins=31, interpolation='nearest')" + NORM + "\n  RandomErasing(p=0.25, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0.0)",
    imagenet="Pipeline:\n  RandomResizedCrop(size=224, scale=(0.08, 1.0), ratio=(0.75, 1.3333333333333333), interpolation='bilinear')\n  Flip(p=0.5)" + NORM)
EVAL = "Pipeline:\n  Resize(size=230, shorter=True, interpolation='bilinear')\n  CenterCrop(size=224)" + NORM # where batches were learnt by heart
LOG = "Pipeline:\n  CubeFlip(p=0.5)\n  CubeNormalize(normalizer=LogScale(floor, top, least), background=0.0)\n  CubeNoise(std=0.02)"


def stored(name, file="best_model.pth"): return load_checkpoint(FORMAT1/name/"checkpoints"/file)["config"]


def by_hand(augment, **changes):
    "A configuration of format 1, as `vit_learner` wrote it"
    return dict(dict(arch="swin_tiny", model_kw=dict(img_size=224, num_classes=2), classes=["cat", "dog"], mean=MEAN, std=STD,
                     training=dict(loss="focal", lr=1e-3, augment=augment)), **changes)


def pipeline(config):
    "What the pipeline of evaluation says of itself, built from the plain values"
    return make_pipeline([*config["transforms"], config["normalize"]]).config()


def plain(o): return all(map(plain, o.values() if isinstance(o, dict) else o)) if isinstance(o, (dict, list, tuple)) else o is None or type(o) in (str, int, float, bool)


@pytest.mark.parametrize("name", ["swin", "densenet", "spectral", "label_map"])
@pytest.mark.parametrize("file", ["best_model.pth", "last_model.pth"])
def test_stored_runs_become_format_2(name, file):
    old = stored(name, file)
    before = repr(old)
    new = upgrade_config(old)
    assert new.keys() == KEYS and new["format"] == 2 and plain(new) and repr(old) == before
    assert all(new[k] == old[k] for k in ("arch", "model_kw", "training"))
    assert upgrade_config(new) == new and upgrade(new, "config", say=None) == new


def test_the_tasks_of_stored_runs():
    only = {k:make_tasks(upgrade_config(stored(k))["tasks"]).only for k in ("swin", "densenet", "label_map", "spectral")}
    digits = OneClass(tuple("0123456789"))
    assert only["swin"] == only["densenet"] == digits and only["spectral"] is None, "what is filled in is no class"
    assert only["label_map"] == ClassMap(("tissue", "artery", "vein", "disc"), unknown=-100)


def test_the_pretext_of_stored_runs():
    assert [upgrade_config(stored(k))["pretext"] for k in ("swin", "densenet", "label_map")] == [None]*3
    assert upgrade_config(stored("spectral"))["pretext"] == dict(name="masked", mse_weight=1., sam_weight=.1, variance_weight=.01, range_penalty_weight=.001,
                                                                 group_weight=0., norm_target=False)


@pytest.mark.parametrize("name", ["swin", "densenet"])
def test_raw_images_of_a_stored_run_become_its_inputs(name):
    "They have their size already, so the normaliser alone makes them what they were"
    new,known = upgrade_config(stored(name)),torch.load(FORMAT1/name/"predictions.pt", weights_only=True)
    assert new["reader"] == dict(name="rgb") and [o["size"] for o in new["transforms"]] == [8, 8] and known["raw"].shape[1:3] == (8, 8)
    mean,std = (torch.tensor(new["normalize"][k])[:,None,None] for k in ("mean", "std"))
    assert torch.allclose((known["raw"].movedim(-1, 1)/255 - mean)/std, known["inputs"], atol=1e-5)


@pytest.mark.parametrize("name", ["spectral", "label_map"])
def test_raw_cubes_of_a_stored_run_become_its_inputs(name):
    new,known = upgrade_config(stored(name)),torch.load(FORMAT1/name/"predictions.pt", weights_only=True)
    assert new["normalize"] == dict(name="CubeNormalize", normalizer=known["normalizer"], background=0.) and new["transforms"] == []
    assert new["reader"] == dict(name="cube") and pipeline(new) == [new["normalize"]]
    valid = (known["inputs"] != 0).any(1, keepdim=True)
    got = make_pipeline([new["normalize"]])(dict(image=known["raw"], mask=valid), Draws(0, 0, range(len(valid))))["image"]
    assert torch.allclose(got, known["inputs"], atol=1e-5)


@pytest.mark.parametrize("augment", PRINTED)
def test_evaluation_is_what_the_loaders_made_of_each_recipe(augment):
    want = eval_pipeline(224, MEAN, STD, round(224*augment_ratio.get(augment, 1)))
    new = upgrade_config(by_hand(PRINTED[augment]))
    assert pipeline(new) == want.config() == [*new["transforms"], new["normalize"]], "and no argument is left unsaid"


def test_what_was_learnt_by_heart_was_prepared_as_for_evaluation():
    assert pipeline(upgrade_config(by_hand(EVAL))) == eval_pipeline(224, MEAN, STD, 230).config()


def test_a_size_that_only_the_recipe_had():
    new = upgrade_config(by_hand(PRINTED["imagenet"]), recipe=dict(eval_resize=240))
    assert [o["size"] for o in new["transforms"]] == [240, 224]
    assert upgrade_config(by_hand(PRINTED["imagenet"]), recipe=dict(eval_resize=None)) == upgrade_config(by_hand(PRINTED["imagenet"]))


def test_the_size_is_the_datas_where_the_model_says_another():
    new = upgrade_config(by_hand(PRINTED["basic"], model_kw=dict(img_size=(240, 240))))
    assert [o["size"] for o in new["transforms"]] == [224, 224]
    custom = upgrade_config(by_hand("Pipeline:\n  Mine()", model_kw=dict(img_size=96)))
    assert [o["size"] for o in custom["transforms"]] == [96, 96], "a pipeline that prints no size"


def test_cubes_that_learnt_classes():
    "Format 1 kept the kind of their normaliser only"
    log = upgrade_config(by_hand(LOG))
    of = lambda augment: upgrade_config(by_hand(augment))["normalize"]
    assert of(LOG) == dict(name="CubeNormalize", normalizer=make_normalizer("log").state_dict(), background=0.) and log["reader"] == dict(name="cube")
    assert of(LOG.replace("LogScale(floor, top, least)", "KeepReflectance()"))["normalizer"] == dict(kind="none")
    assert of(LOG.replace("background=0.0", "background=-1.0"))["background"] == -1., "what invalid pixels hold, in the model's units"


def test_weights_of_a_loss_as_it_printed_them():
    loss = "SpectralMAELoss(mse=0.5, sam=0, variance=1e-05, range=0.001, group=2, norm_target=True)"
    new = upgrade_config(by_hand(LOG, training=dict(loss=loss, norm_target=True, augment=LOG)))
    assert new["pretext"] == dict(name="masked", mse_weight=.5, sam_weight=0., variance_weight=1e-5, range_penalty_weight=.001, group_weight=2., norm_target=True)
    assert new["tasks"] == {}


def test_a_configuration_that_somebody_wrote_by_hand():
    "As `Checkpoints(config=...)` takes it: enough for the model, and no more is claimed"
    new = upgrade_config(dict(arch="swin_micro", model_kw=dict(img_size=8)))
    assert new.keys() == KEYS and new["reader"] is None and new["tasks"] == {} and new["training"] == {}


@pytest.mark.parametrize("config,says", [(dict(arch="swin_micro"), "lacks 'model_kw'; it has: arch"), (dict(model_kw={}), "lacks 'arch'"), (dict(format=2, arch="swin_micro"), "lacks 'model_kw'")])
def test_a_configuration_without_a_model_is_refused(config, says):
    with pytest.raises(ValueError, match=says): upgrade_config(config)


INDEX = dict(arch="spectral_mae_micro", model_kw=dict(in_chans=10, spectral_pos="index"), training={})


@pytest.mark.parametrize("beside,told,want", [
    (dict(wavelengths=list(range(450, 550, 10))), {}, list(range(450, 550, 10))), # a masked run kept them beside the model
    ({}, dict(data="retina_synthetic"), retina_wavelengths(10).tolist()), # of a set that is computed
    ({}, dict(data="mine.csv", data_kw=dict(wavelengths=list(range(400, 500, 10)))), list(range(400, 500, 10))), # that were given
    (dict(wavelengths=None), dict(data="mine.csv", set_kw=dict(wavelengths=list(range(400, 500, 10)))), list(range(400, 500, 10)))])
def test_wavelengths_of_bands_by_position_are_recovered(beside, told, want, capsys):
    model_kw = upgrade_config({**INDEX, **beside}, told)["model_kw"]
    assert model_kw == dict(in_chans=10, spectral_pos="index", wavelengths=want) and capsys.readouterr().out == ""
    unsaid = upgrade_config(dict(INDEX, model_kw=dict(in_chans=10), **beside), told)["model_kw"]
    assert unsaid["spectral_pos"] == "index", "or the model would be built with other positions than its weights have"


@pytest.mark.parametrize("beside,told", [({}, {}), ({}, dict(data="mine.csv")), ({}, dict(data_kw=dict(wavelengths="nm.txt"))), (dict(wavelengths=[450., 500.]), {})])
def test_wavelengths_that_nobody_kept_are_called_missing(beside, told, capsys):
    assert upgrade_config({**INDEX, **beside}, told)["model_kw"] == INDEX["model_kw"]
    said = capsys.readouterr().out
    assert "wavelengths of spectral_mae_micro's 10 bands are missing" in said and "model.config['model_kw']['wavelengths']" in said


@pytest.mark.parametrize("config", [dict(INDEX, wavelengths=None), by_hand(PRINTED["none"]), by_hand(LOG), {**INDEX, "format":2}], ids=["none", "images", "other", "new"])
def test_nothing_is_called_missing_that_never_was(config, capsys):
    "A set without wavelengths, a model that does not ask for them, a run of today"
    assert "wavelengths" not in upgrade_config(config)["model_kw"] and capsys.readouterr().out == ""


def test_a_stored_run_with_bands_by_position_predicts_as_it_did_and_knows_its_wavelengths(tmp_path):
    folder = tmp_path/"run"
    shutil.copytree(FORMAT1/"spectral", folder)
    file = folder/"checkpoints"/"best_model.pth"
    checkpoint = load_checkpoint(file)
    model_kw = {k:v for k,v in checkpoint["config"]["model_kw"].items() if k != "wavelengths"}
    checkpoint["config"]["model_kw"] = dict(model_kw, spectral_pos="index")
    plain = create_model("spectral_mae_micro", **checkpoint["config"]["model_kw"]).eval()
    torch.save(dict(checkpoint, model_state_dict=plain.state_dict()), file)
    run,known = load_run(folder, "cpu"),torch.load(folder/"predictions.pt", weights_only=True)
    assert run.config["model_kw"]["wavelengths"] == run.model.wavelengths == pytest.approx(checkpoint["config"]["wavelengths"])
    with torch.no_grad(): assert torch.equal(run.model(known["inputs"], known["order"])["pred"], plain(known["inputs"], known["order"])["pred"])


@pytest.mark.parametrize("version", [0, 3, "2"])
def test_a_format_that_nobody_reads_is_refused(version):
    with pytest.raises(ValueError, match="this vitnb reads 1 and 2"): upgrade_config(dict(by_hand(LOG), format=version))
