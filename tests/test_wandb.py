"W&B: its configuration, its file format and its mode"
import json
import os

import pytest
from tracker_stores import broken, check, make, store

import vitnb.callback.wandb as wandb_tracker
from vitnb.callback.checkpoint import Checkpoints
from vitnb.callback.track import make_tracker
from vitnb.callback.wandb import log_records


def test_what_is_on_its_way_to_wandb_is_not_sent_again(store, monkeypatch, capsys):
    "The file lags behind what was handed over: within a process the latter counts"
    folder,uri,read = store("wandb")
    broken("wandb", monkeypatch, 8)
    monkeypatch.setattr(wandb_tracker, "wandb_history", lambda *a: iter(()))
    learn = make()
    learn.fit(3, cbs=make_tracker("wandb", folder, uri))
    check(read, learn, 3)


def test_wandb_that_cannot_start(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    def no_login(**kw): raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")
    monkeypatch.setattr(wandb, "init", no_login)
    with pytest.raises(RuntimeError, match="the wandb tracker could not start .*wandb login"): make().fit(1, cbs=make_tracker("wandb", tmp_path, ""))


def test_wandb_keeps_config_names_and_files(store):
    folder,uri,read = store("wandb")
    from wandb.proto import wandb_internal_pb2 as pb
    (folder/"params.json").write_text(json.dumps(dict(epochs=1, opt=dict(lr=.1))))
    make().fit(1, cbs=[make_tracker("wandb", folder, uri, tags=dict(version="v1")), Checkpoints(folder/"checkpoints")])
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    records = [pb.Record.FromString(r) for r in log_records(path.read_bytes())]
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"][:1]
    assert (run.project, run.display_name, list(run.tags)) == ("train_digits", "20250101-000000", ["version=v1", "arch=swin_micro"])
    config = {u.key or ".".join(u.nested_key):u.value_json for r in records if r.WhichOneof("record_type") == "config" for u in r.config.update}
    assert config["opt.lr"] == "0.1" and config["arch"] == '"swin_micro"'
    assert (path.parent/"files/checkpoints/best_model.pth").exists()


def test_wandb_mode_is_respected(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    learn = make()
    learn.fit(1, cbs=make_tracker("wandb", tmp_path, ""))
    assert len(learn.recorder.rows) == 1 and not list(tmp_path.glob("**/*.wandb"))


def test_a_log_that_was_cut_off(store):
    "A killed process leaves half a record: all before it are read"
    folder,uri,read = store("wandb")
    learn = make()
    learn.fit(1, cbs=make_tracker("wandb", folder, uri))
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    whole = [bytes(r) for r in log_records(path.read_bytes())]
    for cut in range(8, len(path.read_bytes()), 97):
        part = [bytes(r) for r in log_records(path.read_bytes()[:cut])]
        assert part == whole[:len(part)]


@pytest.mark.parametrize("sizes", [[5], [32761], [32760, 3], [32755, 1, 1], [32768*3, 10], [20000]*9], ids=str)
def test_log_format_across_blocks(sizes):
    "Records written by the plain rule of LevelDB's format come back"
    data,records = b":W&B\xe1\xbe\x00",[os.urandom(n) for n in sizes]
    for r in records:
        first = True
        while True:
            room = 32768 - len(data) % 32768
            if room < 7:
                data += bytes(room)
                continue
            piece,r = r[:room-7],r[room-7:]
            kind = (1 if not r else 2) if first else (4 if not r else 3)
            data,first = data + bytes(4) + len(piece).to_bytes(2, "little") + bytes([kind]) + piece,False
            if not r: break
    assert list(log_records(data)) == records
