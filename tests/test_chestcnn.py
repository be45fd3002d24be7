"The plain convolutions of Custom_1: sizes of their maps, kernels and strides"
import torch
from torch import nn

from vitnb.models.chestcnn import ChestCNN


def test_custom_1_is_five_convolutions_of_stride_two():
    maps = ChestCNN().forward_intermediates(torch.zeros(1, 3, 224, 224))[1]
    assert [o.shape[-1] for o in maps] == [56, 14, 7, 4, 2] and [o.shape[1] for o in maps] == [64, 128, 256, 512, 1024]
    convolutions = [m for m in ChestCNN().modules() if isinstance(m, nn.Conv2d)]
    assert [(m.kernel_size[0], m.stride[0], m.bias is not None) for m in convolutions] == [(7, 2, True), (5, 2, True)] + [(3, 2, True)]*3
