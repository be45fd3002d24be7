"One of several processes: whose turn it is in a validation, and rows of the whole batch in its order"
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_threads import RankThreads

import vitnb.gather as gather
from vitnb.data.shard import shard
from vitnb.learner.together import Together, Turns


class Own:
    "The loader of one rank: every so-many-th batch, and the last one again where there is none"
    def __init__(self, rank, world, n, bs): self.rank,self.world,self.n,self.bs = rank,world,n,bs
    def __iter__(self):
        for first in range(0, self.n, self.world): yield min(first + self.rank, self.n - 1)


@settings(max_examples=60, deadline=None)
@given(world=st.integers(1, 4), n=st.integers(1, 9), bs=st.integers(1, 3))
def test_each_batch_is_run_once_in_the_turn_in_which_it_is_asked_for(world, n, bs):
    passes = [list(Turns(Own(rank, world, n, bs), world, n)) for rank in range(world)]
    assert all(len(batches) == n for batches in passes)
    for i in range(n): assert passes[i % world][i] == i, "the rank whose turn it is has the batch at hand"
    turns = Turns(Own(world - 1, world, n, bs), world, n)
    for i in range(n):
        run = passes[world-1][i]
        assert turns.positions(i, bs).tolist() == list(range(run*bs, run*bs + bs)) and len(turns) == n


def ranks_of(monkeypatch, world):
    threads = RankThreads(world)
    monkeypatch.setattr(gather, "dist", threads)
    return threads, [SimpleNamespace(rank=rank, world=world) for rank in range(world)]


@pytest.mark.parametrize("n,world,each", [(8, 2, 1), (7, 2, 1), (8, 3, 2)])
def test_joined_rows_stand_in_the_order_of_the_batch_with_their_gradient(monkeypatch, n, world, each):
    "All calculate the same loss of the whole batch; the mean over ranks is its gradient"
    threads,answers = ranks_of(monkeypatch, world)
    whole = torch.randn(n, each, 3, generator=torch.Generator().manual_seed(0))
    factor = torch.arange(n*each*3.).view(n*each, 3)
    def of(rank):
        own = whole[shard(n, rank, world)].flatten(0, 1).requires_grad_()
        joined = Together.join(answers[rank], n, own)
        (joined*factor).sum().backward()
        return joined.detach(), own.grad/world
    for rank,(joined, grad) in enumerate(threads.run(of)):
        assert torch.equal(joined, whole.flatten(0, 1))
        assert torch.allclose(grad, factor.view(n, each, 3)[shard(n, rank, world)].flatten(0, 1))


def test_rows_that_belong_to_no_sample_are_refused():
    with pytest.raises(ValueError, match="as many rows for each sample"): Together.join(SimpleNamespace(rank=0, world=2), 4, torch.zeros(3, 2))


def test_what_has_a_row_a_sample_is_shared_and_the_rest_is_everyones_own(monkeypatch):
    threads,answers = ranks_of(monkeypatch, 2)
    sizes = [2, 1]
    def of(rank):
        n = sizes[rank]
        tree = dict(pred=torch.full((n, 3), float(rank)), views=torch.full((2*n, 1), float(rank)), scale=torch.tensor(5.))
        return Together.shared(answers[rank], tree, sizes, n*2)
    for found in threads.run(of):
        for rank,tree in enumerate(found):
            assert tree["pred"].shape == (sizes[rank], 3) and tree["views"].shape == (2*sizes[rank], 1) and tree["scale"] == 5
            assert (tree["pred"] == rank).all() and (tree["views"] == rank).all()


def test_positions_are_the_rows_of_this_process():
    for rank in range(3): assert np.array_equal(Together.positions(SimpleNamespace(rank=rank, world=3), 8), shard(8, rank, 3))
