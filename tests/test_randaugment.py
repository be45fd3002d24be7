"Random operations are torchvision's, one sample at a time"
import pytest
import torch
from data_helpers import pictures
from torchvision.transforms.v2 import functional as F, RandAugment as TorchvisionRandAugment

from vitnb.data import augment as A, randaugment
from vitnb.data.draws import Draws

@pytest.mark.parametrize("bins", [11, 31])
def test_magnitudes_are_torchvisions(bins):
    space = TorchvisionRandAugment._AUGMENTATION_SPACE
    assert list(space) == list(randaugment._ops)
    for op,(f,signed) in space.items():
        assert randaugment._ops[op][1] == signed
        want = f(bins, 20, 30)
        for m in range(bins): assert randaugment.op_magnitude(op, m, (20,30), bins) == (float(want[m]) if want is not None else 0)

@pytest.mark.parametrize("magnitude,interpolation", [(0, "nearest"), (9, "nearest"), (30, "nearest"), (9, "bilinear")])
def test_randaugment_is_torchvision_one_sample_at_a_time(magnitude, interpolation):
    x,tfm,theirs = pictures(120, 17, 14),A.RandAugment(2, magnitude, interpolation=interpolation),TorchvisionRandAugment(2, magnitude, interpolation=interpolation)
    got,d,met = tfm(x, Draws(3, 0, range(120))),Draws(3, 0, range(120)),set()
    rounds = [tfm.choose(d) for _ in range(2)]
    for i,o in enumerate(x):
        for op,sign in rounds:
            name,(f,signed) = list(theirs._AUGMENTATION_SPACE.items())[op[i]]
            m = f(31, 17, 14)
            m = 0. if m is None else float(m[magnitude])*(int(sign[i]) if signed else 1)
            o = theirs._apply_image_or_video_transform(o, name, m, theirs.interpolation, theirs._fill)
            met.add((name, int(sign[i]) if signed else 1))
        assert torch.equal(got[i], o), i
    assert len(met) == 23 # 14 operations, 9 of them with two signs

def test_color_jitter_is_torchvision_and_zero_is_nothing():
    x,d = pictures(20),Draws(1, 0, range(20))
    assert torch.equal(A.ColorJitter(0, 0, 0, 0)(x, d), x)
    got,u = A.ColorJitter(.5, 0, 0)(x, Draws(1, 0, range(20))),Draws(1, 0, range(20)).uniform(.5, 1.5)
    for i,o in enumerate(x): assert torch.equal(got[i], F.adjust_brightness(o, float(u[i])))
