"What all trackers share: names, a folder of one's own, and a store that fails"
import json

import pytest
from tracker_stores import STORES, broken, check, make, store

from vitnb.callback.history import History
from vitnb.callback.track import make_tracker
from vitnb.callback.tracker import trackers


@pytest.mark.parametrize("name", STORES)
def test_a_failure_in_the_middle_stops_nothing(name, store, monkeypatch, capsys):
    folder,uri,read = store(name)
    broken(name, monkeypatch, 1000)
    learn = make()
    learn.fit(3, cbs=[History(folder), make_tracker(name, folder, uri)])
    out = capsys.readouterr().out
    assert len(learn.recorder.rows) == 3 and len(json.loads((folder/"history.json").read_text())) == 3
    assert out.count("the server is gone). Training goes on") == 1, out
    assert "45 scalars and 1 files were not stored (last error: ConnectionError: the server is gone)" in out, out
    assert [n for n,_ in read()["train/loss"]] == [1, 2]
    assert json.loads((folder/"tracker.json").read_text())[name]["lost"] == 46 # 10 steps of 3, 3 epochs of 5, history.csv


@pytest.mark.parametrize("name", STORES)
def test_a_store_that_comes_back_gets_everything(name, store, monkeypatch, capsys):
    folder,uri,read = store(name)
    broken(name, monkeypatch, 8)
    learn = make()
    learn.fit(3, cbs=make_tracker(name, folder, uri))
    check(read, learn, 3)
    assert "0 scalars and 0 files were not stored" in capsys.readouterr().out


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="unknown tracker 'mlfow': did you mean 'mlflow'"): make_tracker("mlfow", tmp_path)
    assert sorted(trackers) == ["mlflow", "none", "tensorboard", "wandb"]
    learn = make()
    learn.fit(1, cbs=make_tracker("none", tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", STORES)
def test_two_trackers_in_one_folder(name, store):
    folder,uri,_ = store(name)
    with pytest.raises(RuntimeError, match=f"another {name} tracker is writing"): make().fit(1, cbs=[make_tracker(name, folder, uri), make_tracker(name, folder, uri)])
    make().fit(1, cbs=make_tracker(name, folder, uri)) # the lock was given back
