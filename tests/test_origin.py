"A run folder that begins with a checkpoint of another run"
import json

import pytest
import torch
from test_checkpoint import Scores

from vitnb.callback.checkpoint import load_checkpoint
from vitnb.experiment.run import Run, find_run, goes_on, new_run_dir
from vitnb.learner.origin import begin_from, check_origin
from vitnb.testing import tiny_fit

SCORES = [.2, .5, .3, .9]


def trained(folder, **kw): return tiny_fit(folder, epochs=4, cbs=[Scores(SCORES)], run_kw=dict(every_n_epochs=1, keep_top_k=2, monitor="accuracy"), **kw)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")/"old"
    learn = trained(folder)
    (folder/"params.json").write_text("{}")
    (folder/"phase1"/"checkpoints").mkdir(parents=True)
    (folder/"phase1"/"checkpoints"/"last_model.pth").write_bytes((folder/"checkpoints"/"last_model.pth").read_bytes())
    return folder, learn


def begun(old, epoch, tmp_path): return begin_from(old/"checkpoints"/f"checkpoint_epoch_{epoch}.pth", lambda: tmp_path/"new")


@pytest.mark.parametrize("epoch", [2, 3])
def test_it_trains_on_to_the_same_bits_in_a_folder_of_its_own(old, epoch, tmp_path):
    "Behind epoch 2 the best epoch is the checkpoint itself; behind epoch 3 its file has been overwritten since, and the search begins again"
    old,learn = old
    before = {path:path.read_bytes() for path in old.rglob("*") if path.is_file()}
    new = begun(old, epoch, tmp_path)
    again = trained(new)
    assert all(torch.equal(a, b) for a,b in zip(learn.model.state_dict().values(), again.model.state_dict().values()))
    assert [{**row, "seconds":0} for row in again.recorder.rows] == [{**row, "seconds":0} for row in learn.recorder.rows]
    assert load_checkpoint(new/"checkpoints"/"best_model.pth")["epoch"] == 4
    assert {path:path.read_bytes() for path in before} == before, "nothing of the old run is changed"
    assert json.loads((new/"origin.json").read_text()) == dict(checkpoint=str(old/"checkpoints"/f"checkpoint_epoch_{epoch}.pth"), run=str(old), epoch=epoch, step=learn.recorder.rows[epoch-1]["step"])
    assert (new/"phase1"/"checkpoints"/"last_model.pth").is_file()


def test_a_best_epoch_goes_along_only_with_its_file(old, tmp_path):
    old,_ = old
    assert load_checkpoint(begun(old, 2, tmp_path)/"checkpoints"/"best_model.pth")["epoch"] == 2
    third = begin_from(old/"checkpoints"/"checkpoint_epoch_3.pth", lambda: tmp_path/"third")
    assert not (third/"checkpoints"/"best_model.pth").exists(), "epoch 2 was the best, and the file is of epoch 4 by now"


def test_what_no_run_can_begin_with_leaves_no_folder(old, tmp_path):
    old,_ = old
    loose = tmp_path/"somewhere"/"file.pth"
    loose.parent.mkdir()
    loose.write_bytes((old/"checkpoints"/"checkpoint_epoch_2.pth").read_bytes())
    assert check_origin(loose)[1] is None, "a file that lies elsewhere has no run"
    for path,says in ((old/"checkpoints"/"best_model.pth", "no state to go on from"), (old/"phase1"/"checkpoints"/"last_model.pth", "phase 'phase1'"), (tmp_path/"no.pth", "resume=.*no checkpoint")):
        with pytest.raises(ValueError, match=says): begin_from(path, lambda: pytest.fail("a folder was made"))


def test_run_takes_a_checkpoint_and_is_resumed(old, tmp_path, monkeypatch, capsys):
    old,_ = old
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path))
    run = Run("demo", dict(bs=8), resume=str(old/"checkpoints"/"checkpoint_epoch_2.pth"))
    assert run.resumed and run.dir.parent == tmp_path/"demo" and goes_on(run.dir) and f"resume={str(run.dir)!r}" in capsys.readouterr().out
    assert find_run("demo", dict(bs=8), root=tmp_path) is None, "resume='auto' means runs that began at the beginning"
    assert not goes_on(new_run_dir("demo", root=tmp_path))
