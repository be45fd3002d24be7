"Maps of one answer: against an explicit derivative, on networks whose evidence is known; frozen, flat and odd-shaped ones"
import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from vitnb.explore.gradcam import cam_layer, enlarge, grad_cam, grad_cams, relative, show_cams, zone_cams
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
    cam = grad_cam(Spot(grid, last), spot(grid, side=side), zone=2, label=0)
    assert cam.shape == (1, *grid) and cam.flatten().argmax() == 1*grid[1] + 6
    row, column = divmod(enlarge(cam, side)[0].argmax().item(), side[1])
    assert 32 <= row < 64 and 192 <= column < 224


def test_what_speaks_against_an_answer_is_no_evidence():
    cam = grad_cam(Spot(), spot(channel=1), zone=0, label=0)
    assert torch.equal(cam, torch.zeros(1, 8, 8)) and torch.equal(relative(cam), cam) # zeros and not 0/0


def test_an_answer_without_weights_is_flat_and_the_figure_says_so():
    model = Spot()
    nn.init.zeros_(model.fc.weight)
    cams = zone_cams(model, spot(), label=0)
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
    assert torch.allclose(grad_cam(model, films, 4, 2, method=method), want, atol=1e-6)


def test_each_zone_has_its_own_map_and_its_likeliest_class():
    torch.manual_seed(0)
    model, films = create_model("csi_micro").eval(), torch.randn(1, 3, 96, 96)
    cams, said = zone_cams(model, films), model(films).argmax(-1)[0]
    for z in range(6):
        assert torch.allclose(cams[:, z], grad_cam(model, films, z, said[z].item(), method="hirescam"))
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
    assert grad_cam(model, films, 0, 0, layer=model.backbone.blocks[0]).shape == (1, 24, 24)
    with pytest.raises(ValueError, match="ran 0 times"): grad_cam(model, films, 0, 0, layer=nn.Identity())


@pytest.mark.parametrize("zone,say", [(None, "give a zone where a model has zones")])
def test_an_answer_must_be_one_number(zone, say):
    with pytest.raises(ValueError, match=say): grad_cam(create_model("csi_micro"), torch.zeros(1, 3, 96, 96), zone)
    with pytest.raises(ValueError, match="method"): grad_cams(create_model("csi_micro"), torch.zeros(1, 3, 96, 96), [(0, 0)], method="cam")


def test_a_model_of_one_answer_a_film():
    model = create_model("csi_micro", num_classes=2, pool="global").eval()
    assert grad_cam(model, torch.randn(2, 3, 96, 96)).shape == (2, 6, 6)
