"Arrays from a pickle: all that numpy writes is read, and nothing else is run"
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from vitnb.data.arrays import load_pickle


class Evil:
    def __init__(self, f, *args): self.f,self.args = f,args
    def __reduce__(self): return self.f,self.args


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_arrays_of_all_protocols(tmp_path, protocol):
    a = np.random.randint(0, 256, (3,4), dtype=np.uint8)
    (tmp_path/"b").write_bytes(pickle.dumps(dict(data=a, labels=[1,2]), protocol=protocol))
    assert (load_pickle(tmp_path/"b")["data"] == a).all()


@pytest.mark.parametrize("bad", [Evil(os.system, "touch opened"), Evil(eval, "1"), Evil(getattr, "a", "title"), Evil(np.load, "x"), Path("x")])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_runs_something(tmp_path, monkeypatch, bad, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"b").write_bytes(pickle.dumps(dict(data=bad), protocol=protocol))
    with pytest.raises(ValueError, match="is not part of an array"): load_pickle(tmp_path/"b")
    assert not (tmp_path/"opened").exists()


def test_codecs_only_as_arrays_use_them(tmp_path):
    import _codecs
    (tmp_path/"b").write_bytes(pickle.dumps(Evil(_codecs.encode, "x", "rot13"), protocol=2))
    with pytest.raises(ValueError, match="is not needed for an array"): load_pickle(tmp_path/"b")
