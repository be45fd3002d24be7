"Training as one of several processes: what all must agree on"
import distribute_worker as worker
import numpy as np
import pytest

from vitnb.data.source import SubsetSource
from vitnb.learner.ranks import check_batches


@pytest.mark.parametrize("case,n", [("masked", 11), ("swin", 35)])
def test_a_last_batch_may_be_shared_unevenly(case, n):
    "Sums add up whatever the parts; only partners of mixing must stay together, and each process needs a sample"
    learn = worker.make(**dict(worker.CASES[case], bs=8, drop_last=False))
    data = learn.dls.train.dataset
    learn.dls.loaders[0] = learn.dls.train.new(type(data)(SubsetSource(data.source, np.arange(n)), {k: v[:n] for k,v in data.targets.items()}, data.tasks))
    check_batches(learn, 2)
    with pytest.raises(ValueError, match="the last batch of an epoch has 3 samples and cannot be divided among 4 processes; use drop_last=True"): check_batches(learn, 4)
