"`run.log`: how a fit went, and at level debug what each step was"
import logging
import re
from pathlib import Path

import pytest
import torch
from tiny_tasks import StopAt
from torch import nn

from vitnb.callback.runlog import logger, run_log
from vitnb.core import settings
from vitnb.testing import tiny_fit, tiny_learner


def lines(folder): return [line[24:] for line in (folder/"run.log").read_text().splitlines()]


def test_a_fit_its_epochs_and_its_end_stand_there(tmp_path):
    tiny_fit(tmp_path, epochs=2)
    first,*epochs,last = lines(tmp_path)
    assert re.match(r"INFO +fit of 2 epochs: swin_micro, [\d,]+ parameters, on cpu in float32$", first)
    assert [line.split()[:3] for line in epochs] == [["INFO", "epoch", "1/2"], ["INFO", "epoch", "2/2"]] and "end of the fit after" in last
    assert logger.handlers == [], "the file is let go of"


def test_a_failure_and_what_goes_on_are_appended(tmp_path):
    n = len(tiny_learner().dls.train)
    with pytest.raises(RuntimeError): tiny_fit(tmp_path, epochs=2, cbs=[StopAt(n+3)])
    tiny_fit(tmp_path, epochs=2)
    said = "\n".join(lines(tmp_path))
    assert "ERROR   RuntimeError: " in said and f"going on behind step {n+3}" in said and said.count("fit of 2 epochs") == 2


def test_every_step_at_level_debug_changes_no_bit(tmp_path, monkeypatch):
    plain = tiny_fit(tmp_path/"plain", epochs=1, engine=dict(accumulate=2))
    monkeypatch.setenv("VITNB_LOG_LEVEL", "debug")
    learn = tiny_fit(tmp_path/"debug", epochs=1, engine=dict(accumulate=2))
    assert all(torch.equal(a, b) for a,b in zip(plain.model.state_dict().values(), learn.model.state_dict().values()))
    steps = [line for line in lines(tmp_path/"debug") if "DEBUG" in line]
    assert len(steps) == learn.opt_steps and not any("DEBUG" in line for line in lines(tmp_path/"plain"))
    for step,line in zip(learn.recorder.steps, steps):
        said = re.match(r"DEBUG +step (\d+), epoch 1: loss ([\d.]+), lr (\S+), gradient norm (\S+), ([\d.]+) s \(([\d.]+) s for data\), image \((\d+), 3, 8, 8\) float32, target \((\d+),\) int64", line)
        assert int(said[1]) == step["step"] and float(said[2]) == pytest.approx(step["loss"], abs=1e-4) and float(said[3]) == pytest.approx(step["lr"], rel=1e-2) and float(said[5]) >= float(said[6])


def test_the_norm_is_that_before_clipping(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_LOG_LEVEL", "debug")
    learn = tiny_learner(clip=1e-3)
    learn.fit(1, cbs=run_log(tmp_path))
    norms = [float(re.search(r"gradient norm ([\d.e+-]+)", line)[1]) for line in lines(tmp_path) if "DEBUG" in line]
    assert sum(norms)/len(norms) == pytest.approx(learn.recorder.rows[-1]["grad_norm"], rel=1e-3) and min(norms) > 1e-2


def test_warnings_only_and_a_wrong_level(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_LOG_LEVEL", "warning")
    tiny_fit(tmp_path, epochs=1)
    assert lines(tmp_path) == []
    monkeypatch.setenv("VITNB_LOG_LEVEL", "debgu")
    with pytest.raises(ValueError, match="did you mean 'debug'"): settings()


def test_others_may_write_to_it_and_listen(tmp_path, caplog):
    logger.propagate = True
    with caplog.at_level(logging.INFO, "vitnb"): tiny_fit(tmp_path, epochs=1)
    assert any("epoch 1/1" in record.getMessage() for record in caplog.records)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_full_disk_leaves_a_gap_in_the_log_and_ends_no_training(tmp_path, capsys):
    (tmp_path/"run.log").symlink_to("/dev/full")
    assert len(tiny_fit(tmp_path, epochs=2).recorder.rows) == 2
    assert capsys.readouterr().err.count("the log has a gap: [Errno 28] No space left on device; make room there") == 1
