"Checkpoints: the best few, the newest, whole files and early errors"
import copy
import pickle
import threading

import pytest
import torch
from fastai.callback.core import Callback
from tiny_tasks import StopAt
from torch import nn

from vitnb.callback.base import TrainCallback
from vitnb.callback.checkpoint import BackgroundWriter, Checkpoints, load_checkpoint, newest_state, save_checkpoint, snapshot
from vitnb.learner.core import run_callbacks
from vitnb.testing import tiny_fit, tiny_learner


class Scores(TrainCallback):
    "Write accuracies into the row"
    order = 55
    def __init__(self, values): self.values = values
    def after_epoch(self): self.recorder.rows[-1]["accuracy"] = self.values[self.epoch]


def tops(d): return sorted(p.name for p in (d/"checkpoints").glob("top_epoch_*.pth"))


@pytest.mark.parametrize("values,keep,want", [([.1, .5, .3, .4], 2, [2, 4]), ([.5, .5, .5, .5], 2, [1, 2]), ([.1, float("nan"), .3, .2], 3, [1, 3, 4]),
                                              ([.1, .2, .3, .4], 1, [4]), ([.1, .2, .3, .4], 0, [])])
def test_the_best_few_are_kept(tmp_path, values, keep, want):
    tiny_fit(tmp_path, epochs=4, cbs=[Scores(values)], run_kw=dict(keep_top_k=keep))
    assert tops(tmp_path) == [f"top_epoch_{e}.pth" for e in want]
    for e in want:
        ck = load_checkpoint(tmp_path/f"checkpoints/top_epoch_{e}.pth")
        assert ck["epoch"] == e and "training_state" not in ck


def test_the_best_few_after_a_resume(tmp_path):
    kw = dict(epochs=4, run_kw=dict(keep_top_k=2))
    n = len(tiny_learner().dls.train)
    with pytest.raises(RuntimeError): tiny_fit(tmp_path, cbs=[Scores([.9, .1, .5, .2]), StopAt(2*n+3)], **kw)
    (tmp_path/"checkpoints/top_epoch_99.pth").write_bytes(b"left by a kill")
    tiny_fit(tmp_path, cbs=[Scores([.9, .1, .5, .2])], **kw)
    assert tops(tmp_path) == ["top_epoch_1.pth", "top_epoch_3.pth"]


def best(d):
    found = load_checkpoint(d/"checkpoints/best_model.pth")
    return found["best"], found["epoch"]


def test_a_second_worse_fit_destroys_nothing(tmp_path):
    "The same Learner in the same folder: the best of both, and the top epochs of the first"
    learn,kw = tiny_learner(),dict(keep_top_k=2, tracker="none")
    scores = Scores([.2, .9, .8])
    learn.fit(3, cbs=[*run_callbacks(tmp_path, **kw), scores])
    scores.values = [.1, .1, .1]
    learn.fit(3, cbs=[*run_callbacks(tmp_path, **kw), scores])
    assert best(tmp_path) == (.9, 2) and tops(tmp_path) == ["top_epoch_2.pth", "top_epoch_3.pth"]
    scores.values = [.95, .1, .1]
    learn.fit(3, cbs=[*run_callbacks(tmp_path, **kw), scores])
    assert best(tmp_path) == (.95, 7) and tops(tmp_path) == ["top_epoch_2.pth", "top_epoch_3.pth", "top_epoch_7.pth"]
    assert len((tmp_path/"history.csv").read_text().splitlines()) == 10


def test_another_learner_in_the_same_folder_destroys_nothing(tmp_path):
    "Its epochs count from 1: what they would overwrite is kept aside, and is not taken for a state of the new run"
    kw = dict(epochs=3, run_kw=dict(keep_top_k=1, every_n_epochs=1), resume="never")
    tiny_fit(tmp_path, cbs=[Scores([.2, .9, .8])], **kw)
    before = {p.name:p.read_bytes() for p in (tmp_path/"checkpoints").glob("*.pth")}
    history = (tmp_path/"history.csv").read_bytes()
    tiny_fit(tmp_path, **{**kw, "epochs":1}, cbs=[Scores([.1])])
    assert best(tmp_path) == (.9, 2)
    aside = tmp_path/"checkpoints/earlier-1"
    assert {p.name:p.read_bytes() for p in aside.iterdir()} == before and (tmp_path/"earlier-1/history.csv").read_bytes() == history
    assert {p.name for p in (tmp_path/"checkpoints").glob("*.pth")} == {"best_model.pth", "last_model.pth", "top_epoch_1.pth", "checkpoint_epoch_1.pth"}
    assert newest_state(tmp_path/"checkpoints")["epochs_done"] == 1
    tiny_fit(tmp_path, **{**kw, "epochs":1, "lr":5e-3}, cbs=[Scores([.95])])
    assert best(tmp_path) == (.95, 1)


def test_another_model_has_a_best_of_its_own(tmp_path):
    tiny_fit(tmp_path, epochs=1, cbs=[Scores([.9])])
    tiny_fit(tmp_path, epochs=1, limit=9, resume="never", cbs=[Scores([.1])])
    assert best(tmp_path) == (.1, 1), "scores on other data cannot be compared"
    assert load_checkpoint(tmp_path/"checkpoints/earlier-1/best_model.pth")["best"] == .9


def test_another_monitor_judges_the_epochs_anew(tmp_path):
    first = tiny_fit(tmp_path, epochs=2, run_kw=dict(keep_top_k=1))
    chosen = best(tmp_path)[1]
    worth = first.recorder.rows[chosen-1]["valid_loss"]
    learn = tiny_learner()
    files = run_callbacks(tmp_path, "valid_loss", keep_top_k=1, tracker="none")
    learn.fit(2, cbs=files, resume="auto")
    checkpoints = next(cb for cb in files if isinstance(cb, Checkpoints))
    assert checkpoints.best == worth and checkpoints.kept[0][0] == worth


@pytest.mark.parametrize("kw", [dict(keep_top_k=-1), dict(every_n_epochs=1.5), dict(every_n_steps=True)], ids=str)
def test_counts_are_whole_numbers(tmp_path, kw):
    with pytest.raises(ValueError, match="whole number from 0"): Checkpoints(tmp_path, **kw)


def test_a_snapshot_is_out_of_reach_and_keeps_sharing():
    lin = nn.Linear(3, 3)
    s = snapshot(dict(a=lin.state_dict(), b=[lin.state_dict()["weight"], (1, "x", None)], e=torch.empty(0)))
    before = lin.weight.detach().clone()
    with torch.no_grad(): lin.weight.zero_()
    assert torch.equal(s["a"]["weight"], before) and s["b"][0] is s["a"]["weight"] and s["b"][1] == (1, "x", None) and s["e"].numel() == 0


def test_an_error_of_the_thread_is_raised(tmp_path, monkeypatch):
    "At the next save, or at the end of the fit, when all others have cleaned up"
    class Late(Callback):
        order,cleaned = 500,False
        def after_fit(self): self.cleaned = True
    late,folder = Late(),tmp_path/"run"
    folder.mkdir()
    (folder/"checkpoints").write_text("a file where a folder should be")
    with pytest.raises((OSError, FileExistsError), match="checkpoint"): tiny_fit(folder, cbs=[late])
    assert late.cleaned


def test_the_last_file_is_there_when_fit_returns(tmp_path, monkeypatch):
    import vitnb.callback.writer as module
    waited = threading.Event()
    wait = BackgroundWriter.wait
    def late(state, path):
        assert waited.wait(200), "nobody waits for the file"
        return save_checkpoint(state, path)
    def note(self):
        if self.thread is not None: waited.set()
        wait(self)
    monkeypatch.setattr(module, "save_checkpoint", late)
    monkeypatch.setattr(BackgroundWriter, "wait", note)
    learn = tiny_learner()
    learn.fit(1, cbs=[Checkpoints(tmp_path, "accuracy")])
    assert load_checkpoint(tmp_path/"last_model.pth")["epoch"] == 1


def test_a_writer_travels_empty(tmp_path):
    w = BackgroundWriter()
    w.save({tmp_path/"a.pth":dict(a=1)})
    for other in (pickle.loads(pickle.dumps(w)), copy.deepcopy(w)): assert other.thread is None
    w.join()


def test_the_tenth_epoch_is_after_the_ninth(tmp_path):
    "A search by name takes checkpoint_epoch_9 for the newest of ten"
    from vitnb.callback.checkpoint import newest_state
    for e in (9, 10, 2): save_checkpoint(dict(training_state=dict(epochs_done=e, opt_steps=e*5)), tmp_path/f"checkpoint_epoch_{e}.pth")
    assert newest_state(tmp_path)["epochs_done"] == 10


def test_counters_come_back(tmp_path):
    "fastai begins train_iter and the scaler anew in each fit"
    with pytest.raises(RuntimeError): tiny_fit(tmp_path, precision="fp16", cbs=[StopAt(8)])
    ck = load_checkpoint(tmp_path/"checkpoints/last_model.pth")["training_state"]
    at = []
    class First(Callback):
        order = 201
        def before_batch(self): at.append((self.learn.train_iter, self.learn.scaler.state_dict()["_growth_tracker"]))
    tiny_fit(tmp_path, precision="fp16", cbs=[First()])
    assert at[0] == (ck["train_iter"], ck["scaler"]["_growth_tracker"]) and at[0][0] > 0


def test_another_architecture_is_refused(tmp_path):
    with pytest.raises(RuntimeError): tiny_fit(tmp_path, cbs=[StopAt(4)])
    with pytest.raises(ValueError, match="arch"): tiny_fit(tmp_path, arch="densenet_micro", model_kw=dict(growth_rate=4, block_config=(1, 1)))
    with pytest.raises(ValueError, match="tensors match"):
        from vitnb.callback.checkpoint import restore_weights
        restore_weights(tiny_learner(arch="densenet_micro").model, load_checkpoint(tmp_path/"checkpoints/last_model.pth"))


def test_a_folder_that_cannot_be_written_loses_nothing(tmp_path, monkeypatch):
    "The earlier file stays, the error says where"
    tiny_fit(tmp_path, epochs=1)
    before = (tmp_path/"checkpoints/last_model.pth").read_bytes()
    def no(*args, **kw): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(torch, "save", no)
    with pytest.raises(OSError, match="(?s)could not write checkpoint.*Permission denied.*intact"): tiny_fit(tmp_path, epochs=1, resume="never")
    assert (tmp_path/"checkpoints/last_model.pth").read_bytes() == before


@pytest.mark.parametrize("values,said", [([.1, .5, .3], "best epoch 2 of 3: accuracy 0.5 (higher is better), in best_model.pth"),
                                         ([float("nan")]*3, "no epoch is the best: accuracy (higher is better) was defined in none; no best_model.pth")])
def test_the_log_says_which_score_chose_the_best_epoch(tmp_path, capsys, values, said):
    tiny_fit(tmp_path, epochs=3, cbs=[Scores(values)])
    assert capsys.readouterr().out.rstrip().endswith(said)


def test_the_log_says_that_the_best_epoch_is_of_an_earlier_fit(tmp_path, capsys):
    "A second, worse fit into the same folder has fewer epochs than the number of the best"
    tiny_fit(tmp_path, epochs=3, cbs=[Scores([.1, .5, .3])])
    tiny_fit(tmp_path, epochs=1, cbs=[Scores([.2])], resume="never")
    assert capsys.readouterr().out.rstrip().endswith("best epoch 2 of an earlier fit: accuracy 0.5 (higher is better), in best_model.pth")


def test_the_log_says_it_of_another_column_and_after_a_resume(tmp_path, capsys):
    kw = dict(epochs=3, run_kw=dict(monitor="valid_loss"))
    with pytest.raises(RuntimeError): tiny_fit(tmp_path, cbs=[StopAt(len(tiny_learner().dls.train) + 2)], **kw)
    learn = tiny_fit(tmp_path, **kw)
    losses = [row["valid_loss"] for row in learn.recorder.rows]
    epoch = min(range(3), key=losses.__getitem__) + 1
    assert f"best epoch {epoch} of 3: valid_loss {min(losses):.4g} (lower is better), in best_model.pth" in capsys.readouterr().out
