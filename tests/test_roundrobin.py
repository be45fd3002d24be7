"Loaders in turn"
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.data.roundrobin import RoundRobin


class Counting:
    "A loader whose batches say which they are"
    bs,dataset = 2,None
    def __init__(self, name, n): self.name,self.n,self.start,self.epoch = name,n,0,0
    def __len__(self): return self.n
    def set_epoch(self, epoch): self.epoch = epoch
    def __iter__(self):
        first,self.start = self.start,0
        return iter([(self.name, self.epoch, i) for i in range(first, self.n)])


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), most=st.integers(1, 30), start=st.integers(0, 30), epoch=st.integers(0, 3))
def test_batches_come_in_turn_wherever_a_pass_begins(lengths, most, start, epoch):
    turns = RoundRobin([Counting(i, n) for i,n in enumerate(lengths)], most)
    turns.set_epoch(epoch)
    total = min(most, len(lengths)*min(lengths))
    slow = [(i % len(lengths), epoch, i//len(lengths)) for i in range(total)]
    assert len(turns) == total and list(turns) == slow
    turns.start = start
    assert list(turns) == slow[start:] and list(turns) == slow # and the next pass is whole
