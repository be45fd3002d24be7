"A batch is its fields by name and, by position, what a training loop expects; what lies on the pixels moves with them"
import pickle

import numpy as np
import pytest
import torch
from fastai.torch_core import to_device

from vitnb.data.sample import Batch, is_map, map_tensors

def some(n_inp=1, **more):
    return Batch(dict(image=torch.arange(12.).view(2,1,2,3), other=torch.zeros(2), target=torch.tensor([1,0]), mask=torch.ones(2,1,2,3), **more), n_inp)

@pytest.mark.parametrize("n_inp", [1, 2])
def test_inputs_come_first_and_the_target_last(n_inp):
    b = some(n_inp)
    assert len(b) == n_inp + 1 and b[0] is b["image"] and b[-1] is b["target"] and b.inputs == ("image", "other")[:n_inp]
    *x,y = b
    assert y is b.fields["target"] and len(x) == n_inp

def test_a_batch_without_a_target_is_its_inputs():
    b = some().replace(target=None)
    (x,) = b
    assert x is b["image"] and b.get("target") is None and b.get("target", 3) == 3 and "mask" in b.fields

def test_replace_gives_another_batch():
    b = some()
    c = b.replace(target=b["target"] + 1, weight=torch.ones(2))
    assert b["target"].tolist() == [1,0] and c["target"].tolist() == [2,1] == c[1].tolist() and "weight" not in b.fields and c["mask"] is b["mask"]

def test_map_reaches_every_tensor_and_nothing_else():
    b = some(index=np.array([4,5]), group=np.array(["a","b"])).replace(target=dict(zone=torch.ones(2), part=torch.zeros(2)))
    seen = []
    c = b.map(lambda o: seen.append(o) or o + 1)
    assert len(seen) == 5 and c["target"]["part"].tolist() == [1,1] and c["index"] is b["index"] and c["group"] is b["group"] and c.inputs == b.inputs

def test_it_survives_a_process_and_fastais_own_walk():
    b = some(n_inp=2)
    for c in (pickle.loads(pickle.dumps(b)), b.map(torch.clone)):
        assert type(c) is Batch and list(c.fields) == list(b.fields) and c.n_inp == 2 and all(torch.equal(b[k], c[k]) for k in b.fields)
    moved = to_device(some(), torch.device("cpu")) # fastai makes the same type from a list
    assert type(moved) is Batch and torch.equal(moved["target"], torch.tensor([1,0]))

@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("n_inp", [1, 2])
def test_the_tuple_of_a_foreign_loader_keeps_its_parts(n, n_inp):
    parts = tuple(torch.full((2,), float(i)) for i in range(n))
    if n < n_inp: return
    b = Batch.of(parts, n_inp)
    assert tuple(b) == parts and b["image"] is parts[0] and b.get("target") is (parts[n_inp] if n > n_inp else None) and b.inputs[0] == "image" and len(b.inputs) == n_inp
    assert Batch.of(b) is b

def test_mistakes_of_a_batch():
    with pytest.raises(KeyError, match="did you mean 'mask'"): some()["masks"]
    for fields,n in ((dict(target=1, image=2), 1), (dict(image=1), 2), (dict(image=1), 0)):
        with pytest.raises(ValueError, match="inputs"): Batch(fields, n)

def test_nested_tensors():
    o = dict(a=[torch.ones(1), (torch.ones(2), "text")], b=3)
    assert map_tensors(lambda t: t.numel(), o) == dict(a=[1, (2, "text")], b=3)

def test_a_map_is_what_has_two_dimensions():
    assert is_map(torch.zeros(2,4,4)) and is_map([torch.zeros(4,4)]) and not is_map(torch.zeros(2,6)) and not is_map(torch.zeros(2))
