"A part of a batch draws and normalises as the whole"
import torch

from vitnb.data.shard import shard
from vitnb.learner.wholebatch import WholeBatch


def test_draws_matter():
    "What the mode replaces is seen by the equality tests: without it another row of the mask is drawn"
    net = torch.nn.Dropout(.5)
    def draw(n, mode=None):
        torch.manual_seed(0)
        if mode is None: return net(torch.ones(n, 50))
        with mode: return net(torch.ones(n, 50))
    mine = shard(8, 1, 2)
    assert torch.equal(draw(8)[mine], draw(4, WholeBatch(8, mine))) and not torch.equal(draw(8)[mine], draw(4))
