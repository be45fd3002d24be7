"Maps of one answer: against an explicit derivative, on networks whose evidence is known; of every layout, stage and zone; frozen, flat and odd-shaped ones"
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from vitnb.explore.gradcam import (cam_layer, channels_first, chosen_scores, enlarge, fine_stage, grad_cam, grad_cams, plot_cam, relative,
                                   show_cams, stage_info, zone_cams)
from vitnb.models.protocol import create_model


class Spot(nn.Module):
    "A network whose map is its image, pooled to cells: the first channel speaks for class 0, the second against it"
    def __init__(self, grid=(8, 8), channels_last=False):
        super().__init__()
        self.grid, self.channels_last, self.num_features, self.num_classes = grid, channels_last, 2, (6, 5)
        self.fc = nn.Linear(2, 30)
        with torch.no_grad():
            self.fc.weight.zero_()
            self.fc.weight[::5, 0], self.fc.weight[::5, 1] = 1., -1.
    def forward_features(self, x):
        x = nn.functional.adaptive_avg_pool2d(x, self.grid)
        return x.movedim(1, -1) if self.channels_last else x
    def forward_head(self, x): return self.fc(x.mean((1, 2) if self.channels_last else (2, 3))).unflatten(1, (6, 5))
    def forward(self, x): return self.forward_head(self.forward_features(x))


def spot(grid=(8, 8), row=1, column=6, channel=0, side=(256, 256)):
    x = torch.zeros(1, 2, *side)
    high, wide = side[0]//grid[0], side[1]//grid[1]
    x[0, channel, high*row:high*(row + 1), wide*column:wide*(column + 1)] = 1
    return x


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("grid,side", [((8, 8), (256, 256)), ((8, 12), (256, 384))])
def test_the_hottest_place_is_where_the_evidence_is(last, grid, side):
    cam = grad_cam(Spot(grid, last), spot(grid, side=side), zone=2, classes=0)
    assert cam.shape == (1, *grid) and cam.flatten().argmax() == 1*grid[1] + 6
    row, column = divmod(enlarge(cam, side)[0].argmax().item(), side[1])
    assert 32 <= row < 64 and 192 <= column < 224


def test_what_speaks_against_an_answer_is_no_evidence():
    cam = grad_cam(Spot(), spot(channel=1), zone=0, classes=0)
    assert torch.equal(cam, torch.zeros(1, 8, 8)) and torch.equal(relative(cam), cam) # zeros and not 0/0


def test_an_answer_without_weights_is_flat_and_the_figure_says_so():
    model = Spot()
    nn.init.zeros_(model.fc.weight)
    cams = zone_cams(model, spot(), classes=0)
    assert torch.equal(cams, torch.zeros(1, 6, 8, 8))
    fig = show_cams(torch.zeros(64, 64), cams[0], [f"zone {z}" for z in range(6)])
    assert all("nothing speaks for it" in ax.get_title() for ax in fig.axes) and all(len(ax.images) == 1 for ax in fig.axes)
    plt.close(fig)


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_the_map_is_that_of_the_formula(method):
    torch.manual_seed(0)
    model, films = create_model("csi_micro").eval(), torch.randn(2, 3, 96, 96)
    features = model.forward_features(films).detach().requires_grad_()
    model.forward_head(features)[:, 4, 2].sum().backward()
    weights = features.grad if method == "hirescam" else features.grad.mean((2, 3), keepdim=True)
    want = (weights*features).sum(1).clamp(min=0).detach()
    assert torch.allclose(grad_cam(model, films, zone=4, classes=2, method=method), want, atol=1e-6)


def test_each_zone_has_its_own_map_and_its_likeliest_class():
    torch.manual_seed(0)
    model, films = create_model("csi_micro").eval(), torch.randn(1, 3, 96, 96)
    cams, said = zone_cams(model, films), model(films).argmax(-1)[0]
    for z in range(6):
        assert torch.allclose(cams[:, z], grad_cam(model, films, zone=z, classes=said[z].item(), method="hirescam"))
        cells = torch.zeros(6, 6, dtype=torch.bool)
        cells[2*(z//2):2*(z//2) + 2, 3*(z%2):3*(z%2) + 3] = True
        assert not cams[0, z][~cells].any() # a zone that is pooled by itself


def test_a_frozen_model_has_the_same_map_and_nothing_of_it_changes():
    torch.manual_seed(0)
    model, films = create_model("csi_micro").train(), torch.randn(2, 3, 96, 96)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    free = zone_cams(model, films)
    for p in model.parameters(): p.requires_grad_(False)
    with torch.no_grad(): frozen = zone_cams(model, films)
    assert torch.equal(free, frozen) and model.training and not films.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("kw,grid", [(dict(backbone="vit_tiny_patch16_224", img_size=64), (4, 4)), (dict(backbone="swin_micro", img_size=64), (4, 4)), (dict(backbone="resnet18", img_size=96), (3, 3))])
@pytest.mark.parametrize("pool", ["global", "zones"])
def test_transformers_and_convolutions(kw, grid, pool):
    torch.manual_seed(0)
    model = create_model("csi_timm", pool=pool, **kw).eval()
    cams = zone_cams(model, torch.randn(1, 3, kw["img_size"], kw["img_size"]))
    assert cams.shape == (1, 6, *grid) and (cams >= 0).all() and cams.isfinite().all() and cams.any()
    assert (cam_layer(model) is None) == (not hasattr(model.backbone, "cls_token"))


def test_a_layer_may_be_given_and_must_matter():
    model, films = create_model("csi_micro").eval(), torch.randn(1, 3, 96, 96)
    assert grad_cam(model, films, zone=0, classes=0, layer=model.backbone.blocks[0]).shape == (1, 24, 24)
    with pytest.raises(ValueError, match="ran 0 times"): grad_cam(model, films, zone=0, classes=0, layer=nn.Identity())


@pytest.mark.parametrize("zone,say", [(None, "give a zone where a model has zones")])
def test_an_answer_must_be_one_number(zone, say):
    with pytest.raises(ValueError, match=say): grad_cam(create_model("csi_micro"), torch.zeros(1, 3, 96, 96), zone=zone)
    with pytest.raises(ValueError, match="method"): grad_cams(create_model("csi_micro"), torch.zeros(1, 3, 96, 96), answers=[(0, 0)], method="cam")


def test_a_model_of_one_answer_a_film():
    model = create_model("csi_micro", num_classes=2, pool="global").eval()
    assert grad_cam(model, torch.randn(2, 3, 96, 96)).shape == (2, 6, 6)


# ------------------------------------------------------------------------------------- stages, layouts and several inputs

MODELS = dict(hvit_micro=dict(img_size=64, patch_size=4), swin_micro=dict(img_size=64), densenet_micro={})


class Hot(nn.Module):
    "A network whose only map is what it is given, channels first or last; class k looks at channel k"
    def __init__(self, last):
        super().__init__()
        self.stage = nn.Identity()
        self.last = last
        self.feature_info = [dict(num_chs=2, reduction=32, module="stage")]
    def get_classifier(self): return self.stage
    def forward(self, x):
        x = self.stage(x.permute(0, 2, 3, 1) if self.last else x)
        return x.mean((1, 2) if self.last else (2, 3))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_the_maximum_of_a_stage_lies_at_the_hot_place(last, size):
    "A17: row 1, column 6 of a map of 8 places is rows 32 to 63, columns 192 to 223 of an image of 256; nothing is transposed"
    x = torch.zeros(1, 2, *size)
    x[0,1,1,6] = 1.
    model = Hot(last)
    heat = grad_cam(model, x, classes=torch.tensor([1]), stage=-1)
    assert heat.shape == (1, *size)
    large = nn.functional.interpolate(heat[None], [32*o for o in size], mode="bilinear")[0,0]
    row,column = divmod(int(large.argmax()), large.shape[1])
    assert 32 <= row < 64 and 192 <= column < 224
    assert not grad_cam(model, x, classes=torch.tensor([0]), stage=-1).any(), "nothing speaks for the other class"


@pytest.mark.parametrize("name", MODELS)
def test_a_frozen_network_of_stages_gives_the_same_map_and_nothing_is_left_changed(name):
    "A18"
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, **MODELS[name]).train()
    x = torch.rand(2, 3, 64, 64)
    stage = fine_stage(model, (64, 64))
    rough = grad_cam(model, x, stage=stage)
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters()) and not x.requires_grad
    model.requires_grad_(False)
    with torch.no_grad(): assert torch.allclose(grad_cam(model, x, stage=stage), rough) # also where nobody records
    free = relative(enlarge(rough, (64, 64)))
    assert free.shape == (2, 64, 64) and free.isfinite().all() and free.amin() >= 0 and free.amax() <= 1 and free.any()


def test_a_head_without_weights_gives_zeros_and_no_nan():
    model = create_model("hvit_micro", num_classes=3, img_size=64)
    nn.init.zeros_(model.head.weight)
    for stage in (None, -1, 0): assert not grad_cam(model, torch.rand(2, 3, 64, 64), stage=stage).any()


def test_the_map_of_a_stage_is_the_definition():
    "By hand, from the last map on"
    torch.manual_seed(0)
    model = create_model("hvit_micro", num_classes=4, img_size=64, patch_size=4, drop_path_rate=0.).eval()
    x = torch.rand(3, 3, 64, 64)
    heat = relative(enlarge(grad_cam(model, x, classes=torch.tensor([2, 0, 1]), stage=-1), (64, 64)))
    kept = []
    handle = model.stages[-1].register_forward_hook(lambda m, a, o: kept.append(o))
    logits = model(x)
    handle.remove()
    slope, = torch.autograd.grad(logits[[0, 1, 2],[2, 0, 1]].sum(), kept[0])
    rough = (slope.mean((1, 2), keepdim=True)*kept[0]).sum(-1).relu()[:,None]
    want = nn.functional.interpolate(rough, (64, 64), mode="bilinear")[:,0]
    want = want/want.amax((1, 2), keepdim=True).clamp_min(1e-30)
    assert torch.allclose(heat, want.detach(), atol=1e-5)


def test_two_inputs():
    model = create_model("hvit_micro", num_classes=3, img_size=64, spectral_channels=2)
    model = model.eval().requires_grad_(False)
    x, spectral = torch.rand(2, 3, 64, 64), torch.rand(2, 2, 64, 64)
    heat = grad_cam(model, x, spectral)
    assert enlarge(heat, (64, 64)).shape == (2, 64, 64) and heat.any()
    assert not torch.allclose(heat, grad_cam(model, x, torch.rand(2, 2, 64, 64))), "the second stream has its part in the map"
    layer = model.spectral.stages[-1]
    assert grad_cam(model, x, spectral, layer=layer).isfinite().all(), "a frozen second stream may be asked itself"


def test_layouts_are_told_apart_also_where_all_sides_are_one_number():
    x = torch.arange(2*5*5*5.).view(2, 5, 5, 5)
    network = SimpleNamespace(num_features=4, num_prefix_tokens=1)
    assert torch.equal(channels_first(x, network, 5), x)
    assert torch.equal(channels_first(x, network, 5, last=True), x.permute(0, 3, 1, 2))
    tokens = torch.arange(1*10*4.).view(1, 10, 4)
    assert torch.equal(channels_first(tokens, network, 4)[0,:,0,1], tokens[0,2])
    with pytest.raises(ValueError, match="has no places"): channels_first(torch.zeros(2, 4), network, 4)


def test_the_stage_is_the_last_that_can_point():
    model = create_model("hvit_micro", num_classes=3, img_size=64, patch_size=4)
    assert fine_stage(model, (64, 64)) == 2 and fine_stage(model, (8, 8)) == 0
    with pytest.raises(ValueError, match="has 4 stages; the last is -1"): stage_info(model, 4)
    with pytest.raises(ValueError, match="Linear does not list its stages"): stage_info(nn.Linear(2, 2))


def test_a_stage_that_only_a_class_token_hears_is_refused():
    "The tokens of places that the last block of a plain ViT gives have no part in the answer"
    torch.manual_seed(0)
    model = create_model("csi_timm", backbone="vit_tiny_patch16_224", img_size=64, pool="global", num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match="does not depend on the places"): grad_cam(model, x, stage=-1)
    assert fine_stage(model, (64, 64)) == 10
    assert grad_cam(model, x, stage=10).any() and grad_cam(model, x, stage=10).shape == (1, 4, 4)


def test_one_class_for_all_is_that_class_for_each():
    torch.manual_seed(0)
    model, x = create_model("hvit_micro", num_classes=3, img_size=64).eval(), torch.rand(2, 3, 64, 64)
    said = model(x).argmax(1)
    assert torch.equal(grad_cam(model, x, classes=1), grad_cam(model, x, classes=torch.tensor([1, 1])))
    assert torch.equal(grad_cam(model, x), grad_cam(model, x, classes=said))


def test_the_last_stage_of_a_network_that_ends_with_it_is_the_map_at_the_end():
    torch.manual_seed(0)
    model, films = create_model("csi_micro").eval(), torch.randn(2, 3, 96, 96)
    end = grad_cam(model, films, zone=1, classes=0)
    assert torch.equal(grad_cam(model, films, zone=1, classes=0, stage=-1), end)
    assert torch.equal(grad_cam(model, films, zone=1, classes=0, layer=model.backbone.blocks[-1]), end)


@pytest.mark.parametrize("classes,say", [(3, "classes=3: the model has 3"), (-1, "the first is 0"), (torch.tensor([0, 1, 2]), "for 2 samples")])
def test_classes_that_are_none_are_refused(classes, say):
    with pytest.raises(ValueError, match=say): chosen_scores(torch.zeros(2, 3), classes=classes)


def test_a_place_is_named_once():
    model = create_model("csi_micro")
    with pytest.raises(ValueError, match="stage=0 and a layer are two places"):
        grad_cam(model, torch.zeros(1, 3, 96, 96), zone=0, stage=0, layer=model.backbone.blocks[0])
    with pytest.raises(ValueError, match="Linear lacks forward_features"): grad_cam(nn.Linear(2, 2), torch.zeros(1, 2))


def test_images_are_drawn_with_their_maps_and_without_evidence_bare():
    heat = torch.rand(5, 4, 4)
    heat[4] = 0
    fig = plot_cam(torch.rand(5, 3, 8, 8), heat, list("abcde"), cols=3)
    assert len(fig.axes) == 12
    assert fig.axes[10].get_title() == "nothing speaks for it" and len(fig.axes[10].images) == 1
    assert [ax.get_title() for ax in fig.axes[:3]] == list("abc") and [len(ax.images) for ax in fig.axes[3:6]] == [2, 2, 2]
    assert fig.axes[3].images[1].get_array().shape == (8, 8)
