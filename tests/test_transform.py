"What a transform promises, and how a configuration names it"
import pytest
import torch
from data_helpers import chart

from vitnb.data.augment import train_pipeline
from vitnb.data.draws import Draws
from vitnb.data.transform import make_transform, Transform, transforms

LEVELS = 7

def test_a_transform_that_would_leave_a_map_behind_refuses():
    s = chart(2, 8, 8, 0)
    class Shift(Transform):
        moves = True
        def batch(self, x, draws): return x.roll(1, -1)
    with pytest.raises(ValueError, match="leave mask and target behind"): Shift()(s, Draws(0, 0, range(2)))
    plain = {k:v for k,v in s.items() if k not in ("mask", "target")}
    assert torch.equal(Shift()(plain, None)["image"], s["image"].roll(1, -1))
    with pytest.raises(ValueError, match="RandAugment.*behind"): train_pipeline("advanced", 8, [.5]*3, [.2]*3, s["tasks"])({k:v for k,v in s.items() if k != "tasks"}, Draws(0, 0, range(2)))

def test_every_transform_of_the_library_is_registered():
    from vitnb.data import augment, companion, cubeaugment, filmaugment, lungmask, severity, simclr
    rooms,bases = (augment, companion, cubeaugment, filmaugment, lungmask, severity, simclr),{"Transform", "Geometric", "Warp", "OnInputs"}
    own = {k for m in rooms for k,v in vars(m).items() if isinstance(v, type) and issubclass(v, Transform) and k[0] != "_"} - bases
    assert own == set(transforms)

def test_what_is_not_registered_is_said():
    class Mine(Transform): pass
    with pytest.raises(ValueError, match="transforms.register"): Mine().config()
    with pytest.raises(ValueError, match="did you mean 'Flip'.*import the module"): make_transform(dict(name="Flipp", p=.5))
