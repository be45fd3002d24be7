"Grad-CAM points at the place, in every layout and from frozen networks"
import numpy as np
import pytest
import torch
from torch import nn

from vitnb.explore.cam import channels_first, fine_stage, grad_cam, plot_cam, stage_info
from vitnb.explore.embedding import plot_features
from vitnb.models.protocol import create_model

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
def test_the_maximum_lies_at_the_hot_place(last, size):
    "A17: row 1, column 6 of a map of 8 places is rows 32 to 63, columns 192 to 223 of an image of 256; nothing is transposed"
    x = torch.zeros(1, 2, *size)
    x[0,1,1,6] = 1.
    model = Hot(last)
    heat = grad_cam(model, x, classes=torch.tensor([1]))
    assert heat.shape == (1, *size)
    large = nn.functional.interpolate(heat[None], [32*o for o in size], mode="bilinear")[0,0]
    row,column = divmod(int(large.argmax()), large.shape[1])
    assert 32 <= row < 64 and 192 <= column < 224
    assert not grad_cam(model, x, classes=torch.tensor([0])).any(), "nothing speaks for the other class"


@pytest.mark.parametrize("name", MODELS)
def test_a_frozen_network_gives_the_same_map_and_nothing_is_left_changed(name):
    "A18"
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, **MODELS[name]).train()
    x = torch.rand(2, 3, 64, 64)
    free = grad_cam(model, x)
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters()) and not x.requires_grad
    model.requires_grad_(False)
    with torch.no_grad(): assert torch.allclose(grad_cam(model, x), free) # also where nobody records
    assert free.shape == (2, 64, 64) and free.isfinite().all() and free.amin() >= 0 and free.amax() <= 1 and free.any()


def test_a_head_without_weights_gives_zeros_and_no_nan():
    model = create_model("hvit_micro", num_classes=3, img_size=64)
    nn.init.zeros_(model.head.weight)
    assert not grad_cam(model, torch.rand(2, 3, 64, 64)).any()


def test_it_is_the_definition():
    "By hand, from the last map on"
    torch.manual_seed(0)
    model = create_model("hvit_micro", num_classes=4, img_size=64, patch_size=4, drop_path_rate=0.).eval()
    x = torch.rand(3, 3, 64, 64)
    heat = grad_cam(model, x, classes=torch.tensor([2, 0, 1]), stage=-1)
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
    heat = grad_cam(model, torch.rand(2, 3, 64, 64), torch.rand(2, 2, 64, 64))
    assert heat.shape == (2, 64, 64)


def test_layouts_are_told_apart_also_where_all_sides_are_one_number():
    x = torch.arange(2*5*5*5.).view(2, 5, 5, 5)
    assert torch.equal(channels_first(x, 5), x) and torch.equal(channels_first(x, 5, last=True), x.permute(0, 3, 1, 2))
    tokens = torch.arange(1*10*4.).view(1, 10, 4)
    assert torch.equal(channels_first(tokens, 4, prefix=1)[0,:,0,1], tokens[0,2])


def test_the_stage_is_the_last_that_can_point():
    model = create_model("hvit_micro", num_classes=3, img_size=64, patch_size=4)
    assert fine_stage(model, (64, 64)) == 2 and fine_stage(model, (8, 8)) == 0
    with pytest.raises(ValueError, match="has 4 stages; the last is -1"): stage_info(model, 4)
    with pytest.raises(ValueError, match="Linear does not list its stages"): stage_info(nn.Linear(2, 2))


def test_figures_are_drawn():
    assert len(plot_cam(torch.rand(5, 3, 8, 8), torch.rand(5, 8, 8), list("abcde"), cols=3).axes) == 12
    features = np.random.default_rng(0).normal(size=(20, 8))
    assert len(plot_features(features, np.arange(20) % 3, "abc").axes) == 2 and plot_features(features).axes
