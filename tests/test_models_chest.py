"Networks of zones: the guide's sizes, which pixels a zone sees, names in any case, weights of chest films, and a training run"
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from vitnb.callback.zonemix import ZoneMix
from vitnb.data.holdout import Split
from vitnb.data.loader import image_loaders
from vitnb.data.table import ImageSet, hold_out_missing
from vitnb.learner.core import load_model, run_callbacks, vit_learner
from vitnb.models.chest import (IMAGENET_STATS, RADDINO_STATS, RADDINO_WEIGHTS, ZoneHead, chest_arch, chest_stats, feature_map, pool_zones)
from vitnb.models.protocol import create_model
from vitnb.task import Ordinal, Tasks

ZONES = ("right_sup", "left_sup", "right_mid", "left_mid", "right_inf", "left_inf")


def count(module): return sum(p.numel() for p in module.parameters())
def meta(name, **kw):
    with torch.device("meta"): return create_model(name, **kw)


@pytest.mark.parametrize("name,width,side,backbone", [
    ("csi_resnet50", 2048, 224, 23_508_032), ("csi_chexnet", 1024, 224, 6_953_856), ("csi_cnn", 1024, 224, 6_413_312)])
def test_sizes_are_the_guides(name, width, side, backbone):
    model = meta(name)
    assert (model.num_features, model.img_size, count(model.backbone)) == (width, side, backbone)
    assert count(model.head) == 6*(5*width + 5) and model.head_drop.p == .5
    assert model(torch.empty(2, 3, side, side, device="meta")).shape == (2, 6, 5)


def test_raddino_is_a_dinov2_of_518_pixels():
    model = meta("csi_raddino", pool="zones")
    assert model.num_features == 768 and model.img_size == 518 and model.backbone.patch_embed.grid_size == (37, 37) and count(model.head) == 23_070
    names = set(timm.create_model("vit_base_patch14_dinov2", num_classes=0, device="meta").state_dict())
    assert {k.removeprefix("backbone.") for k in model.state_dict() if k.startswith("backbone.")} == names
    assert chest_stats("csi_raddino") == RADDINO_STATS and chest_stats("CSI_ResNet50") == IMAGENET_STATS


SHALLOW = dict(growth_rate=4, block_config=(2, 2), stem="imagenet") # a DenseNet of milliseconds


def test_the_last_map_of_a_chexnet_is_rectified():
    "torchvision applies a ReLU after the last norm, which the guide's own code forgot"
    model = create_model("csi_chexnet", img_size=64, backbone_kw=SHALLOW).eval()
    assert model.forward_features(torch.randn(1, 3, 64, 64)).min() == 0


@pytest.mark.parametrize("name", ["csi_micro", "CSI_Micro", "Csi_MICRO"])
def test_names_in_any_case(name): assert create_model(name).name == "csi_micro"


@pytest.mark.parametrize("given,name", [("ResNet50", "csi_resnet50"), ("CheXNet", "csi_chexnet"), ("raddino", "csi_raddino"), ("Custom_1", "csi_cnn"), ("CSI_cnn", "csi_cnn")])
def test_the_guides_names(given, name): assert chest_arch(given) == name


def test_an_unknown_name():
    with pytest.raises(ValueError, match="did you mean 'csi_micro'"): create_model("csi_mikro")
    with pytest.raises(ValueError, match="did you mean 'chexnet'"): chest_arch("chexnett")
    with pytest.raises(ValueError, match="no backbone 'resnet5'"): create_model("csi_timm", backbone="resnet5")


# zones

def test_zones_are_read_like_text():
    "Cells of a map that is 6 rows and 4 columns, each of another brightness"
    cells = torch.arange(6.).view(3, 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert pool_zones(cells[None, None])[0,:,0].tolist() == [0, 1, 2, 3, 4, 5]


def test_each_zone_has_a_classifier_of_its_own():
    head = ZoneHead(7, (6, 5))
    x = torch.randn(2, 6, 7)
    want = torch.stack([x[:,z] @ head.weight[5*z:5*z + 5].T + head.bias[5*z:5*z + 5] for z in range(6)], 1)
    assert torch.allclose(head(x), want, atol=1e-6)
    assert torch.allclose(head(x[:,0]), head(x[:,:1].expand(2, 6, 7)), atol=1e-6)


@pytest.mark.parametrize("pool,only", [("zones", True), ("global", False)])
def test_what_a_zone_sees(pool, only):
    torch.manual_seed(0)
    model = create_model("csi_micro", pool=pool).eval()
    film = torch.randn(1, 3, 96, 96, requires_grad=True)
    model(film)[0, 0].sum().backward() # the patient's right upper zone: upper left on the film
    seen = film.grad[0].abs().sum(0) > 0
    assert seen[:32, :48].any() and not seen[72:, 72:].any() == only


@pytest.mark.parametrize("backbone,size", [("vit_tiny_patch16_224", (96, 64)), ("resnet18", 96), ("swin_micro", 64), ("convnext_atto", 96)])
def test_any_backbone(backbone, size):
    model = create_model("csi_timm", backbone=backbone, img_size=size, in_chans=1, pool="zones").eval()
    side = (size, size) if isinstance(size, int) else size
    film = torch.randn(2, 1, *side)
    features = feature_map(model.forward_features(film), model.backbone)
    assert model(film).shape == (2, 6, 5) and features.shape[:2] == (2, model.num_features) and features.shape[2] >= 3


@pytest.mark.parametrize("kw,say", [
    (dict(num_classes=2), "answers for 6 zones"), (dict(pool="zonal"), "pool"), (dict(drop_rate=1.), "drop_rate"),
    (dict(num_classes=dict(a=2, b=3)), "has 2 tasks"), (dict(widths=(8, 8)), "one number a convolution")])
def test_bad_options(kw, say):
    with pytest.raises(ValueError, match=say): create_model("csi_micro", **kw)


def test_a_map_too_small_for_zones():
    with pytest.raises(ValueError, match="1×1 has no cell for each"): create_model("csi_micro", img_size=16).eval()(torch.zeros(1, 3, 16, 16))


# weights

def test_no_imagenet_weights_under_the_name_of_chexnet(tmp_path):
    with pytest.raises(ValueError, match="no weights are published for csi_chexnet.*path of a file"): create_model("csi_chexnet", pretrained=True, backbone_kw=SHALLOW)
    state = create_model("densenet121", num_classes=1000, **SHALLOW).state_dict()
    torch.save(state, tmp_path/"densenet.pth")
    kw = dict(pretrained=tmp_path/"densenet.pth", backbone_kw=SHALLOW)
    with pytest.raises(ValueError, match="ImageNet's and not CheXNet's"): create_model("csi_chexnet", **kw)
    model = create_model("csi_densenet121", **kw)
    assert torch.equal(model.backbone.features.conv0.weight, state["features.conv0.weight"]) and model.load_report.fresh == ["head.weight", "head.bias"]


def test_a_network_of_zones_loads_whole(tmp_path):
    model = create_model("csi_micro")
    torch.save(model.state_dict(), tmp_path/"micro.pth")
    again = create_model("csi_micro", pretrained=tmp_path/"micro.pth")
    assert not again.load_report.fresh and torch.equal(again.head.weight, model.head.weight)


def test_weights_come_from_a_file_of_the_hub(monkeypatch, tmp_path):
    "What is asked of the hub, and that the file of a DINOv2 with a mask token fits"
    kw = dict(backbone_kw=dict(depth=1, embed_dim=24, num_heads=2), img_size=28)
    state = timm.create_model("vit_base_patch14_dinov2", num_classes=0, depth=1, embed_dim=24, num_heads=2, img_size=56).state_dict()
    torch.save({**state, "mask_token": torch.zeros(1, 24)}, tmp_path/"dino.pth")
    asked = []
    def download(repository, file):
        asked.append((repository, file))
        return tmp_path/"dino.pth"
    monkeypatch.setattr("vitnb.hub.hf_hub_download", download)
    model = create_model("csi_raddino", pretrained=True, **kw)
    assert asked == [("microsoft/rad-dino", "backbone_compatible.safetensors")] and model.load_report.source == RADDINO_WEIGHTS
    assert torch.equal(model.backbone.cls_token, state["cls_token"]) and model.backbone.pos_embed.shape[1] == 5
    create_model("csi_raddino", pretrained="hf://some/where/else.pth", **kw)
    assert asked[1] == ("some/where", "else.pth")


def test_offline_is_said_clearly(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    kw = dict(backbone_kw=dict(depth=1, embed_dim=24, num_heads=2), img_size=28)
    with pytest.raises(RuntimeError, match="rad-dino.*could not be had from the hub.*HF_HUB_OFFLINE.*pass its path"): create_model("csi_raddino", pretrained=True, **kw)


# a training run

TASK = Ordinal(ZONES, levels=4, unknown=4, abstain=True, metrics=("zone_f1", "mae", "kappa", "csi_mae", "abstention"), monitor="zone_f1",
               flips=dict(hflip=(1, 0, 3, 2, 5, 4)))


def films(n=128, seed=0, task=TASK):
    "Each cell of a film is as bright as its grade says; an unknown one is noise"
    rng = np.random.default_rng(seed)
    grades = rng.choice(5, (n, 6), p=[.3, .2, .2, .2, .1])
    cells = grades.reshape(n, 3, 2).repeat(16, 1).repeat(24, 2)
    noise = rng.normal(0, 1, (n, 48, 48))
    x = np.where(cells == 4, 2*noise, cells - 1.5 + .2*noise).astype(np.float32)
    data = ImageSet("films", Tasks.of(task), dict(train=Split(x[...,None], grades, np.arange(n)//2)))
    hold_out_missing(data, .25, 0)
    return data


@pytest.mark.parametrize("loss,outputs", [("weighted_csi", 5), ("ordinal_csi", 5), ("corn_csi", 4)])
def test_a_run_learns_zones_and_comes_back(tmp_path, loss, outputs):
    dls = image_loaders(films(task=replace(TASK, loss="", conditional=loss == "corn_csi")), 48, bs=16)
    learn = vit_learner(dls, "CSI_Micro", loss=loss, loss_kw=dict(unknown_weight=.5), lr=1e-2, seed=1, precision="fp32", cbs=[ZoneMix(p=.3)])
    learn.progress.plot = False
    with learn.no_bar(), learn.no_logging(): learn.fit(8, cbs=run_callbacks(tmp_path, tracker="none"))
    rows = json.loads((tmp_path/"history.json").read_text())
    rows = rows.get("epochs", rows) if isinstance(rows, dict) else rows
    first, last = rows[0], rows[-1]
    assert {"zone_f1", "mae", "kappa", "csi_mae", "abstention", "train_loss", "valid_loss"} <= set(last)
    assert last["valid_loss"] < .8*first["valid_loss"] and last["zone_f1"] > .4 and last["kappa"] > .5
    model = load_model(next((tmp_path/"checkpoints").glob("best_model*")))
    assert model.name == "csi_micro"
    batch = dls.valid.one_batch()
    with torch.no_grad(): assert model(batch[0].cpu()).shape == (len(batch[0]), 6, outputs)
