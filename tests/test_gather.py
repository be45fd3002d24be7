"Rows of several processes: their order, their padding, and the gradient of the whole"
import pytest
import torch
from rank_threads import RankThreads

import vitnb.gather as gather
from vitnb.gather import all_rows, gather_rows, gather_with_grad


@pytest.fixture
def ranks(monkeypatch):
    "`ranks(n)` puts n threads in the place of the processes"
    def start(n):
        threads = RankThreads(n)
        monkeypatch.setattr(gather, "dist", threads)
        return threads
    return start


def parts(sizes, *rest):
    "Rows of each rank"
    whole = torch.randn(sum(sizes), *rest, generator=torch.Generator().manual_seed(0))
    return list(whole.split(list(sizes)))


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (1, 4, 2), (2, 0, 1)])
def test_rows_come_in_the_order_of_the_ranks_without_their_padding(ranks, sizes):
    rows = parts(sizes, 3)
    for found in ranks(len(sizes)).run(lambda rank: gather_rows(rows[rank], sizes)):
        assert [len(part) for part in found] == list(sizes) and torch.equal(torch.cat(found), torch.cat(rows))


def test_as_many_rows_as_here_is_what_is_meant_without_sizes(ranks):
    rows = parts((2, 2), 3)
    for found in ranks(2).run(lambda rank: gather_rows(rows[rank])): assert torch.equal(torch.cat(found), torch.cat(rows))


@pytest.mark.parametrize("sizes", [(2, 2), (1, 4, 2)])
def test_the_gradient_is_that_of_the_sum_of_all_losses(ranks, sizes):
    "Each rank has a loss of its own of all rows: a row is in every one of them"
    rows = parts(sizes, 3)
    factors = [torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(1 + rank)) for rank in range(len(sizes))]
    def gradient(rank):
        own = rows[rank].clone().requires_grad_()
        (gather_with_grad(own, sizes).square()*factors[rank]).sum().backward()
        return own.grad
    whole = torch.cat(rows).requires_grad_()
    sum((whole.square()*factor).sum() for factor in factors).backward()
    assert torch.allclose(torch.cat(ranks(len(sizes)).run(gradient)), whole.grad, atol=1e-6)


@pytest.mark.parametrize("sizes", [(2, 2), (1, 4, 2)])
def test_the_mean_over_ranks_of_one_loss_is_its_gradient(ranks, sizes):
    "All calculate the same loss, and DistributedDataParallel divides by their number"
    rows = parts(sizes, 3)
    def loss(x): return (x @ x.T).exp().sum().log()
    def gradient(rank):
        own = rows[rank].clone().requires_grad_()
        loss(gather_with_grad(own, sizes, same=True)).backward()
        return own.grad/len(sizes)
    whole = torch.cat(rows).requires_grad_()
    loss(whole).backward()
    assert torch.allclose(torch.cat(ranks(len(sizes)).run(gradient)), whole.grad, atol=1e-6)


def test_nobody_needs_to_know_how_many_rows_the_others_have(ranks):
    rows = parts((1, 4, 2), 3)
    for found in ranks(3).run(lambda rank: all_rows(rows[rank])): assert torch.equal(found, torch.cat(rows))
    for found in ranks(3).run(lambda rank: all_rows(rows[rank] > 0)):
        assert found.dtype == torch.bool and torch.equal(found, torch.cat(rows) > 0)


def test_one_process_keeps_its_rows():
    x = torch.randn(2, 3)
    assert gather_with_grad(x) is x and all_rows(x) is x
