"What a run writes down: files that hold the recorder's rows, and a stream that nobody rewrites"
import csv
import json
from pathlib import Path

import pytest

from vitnb.callback.history import EventLog, History
from vitnb.testing import tiny_learner


def quiet_fit(learn, epochs, *cbs):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, cbs=list(cbs))


def test_csv_and_json_hold_the_rows(tmp_path):
    learn = tiny_learner()
    quiet_fit(learn, 2, History(tmp_path))
    rows = learn.recorder.rows
    assert json.loads((tmp_path/"history.json").read_text()) == rows
    with (tmp_path/"history.csv").open(newline="") as file: table = list(csv.DictReader(file))
    assert [list(o) for o in table] == [list(o) for o in rows]
    for written,row in zip(table, rows): assert {k:float(v) for k,v in written.items()} == pytest.approx(row)


def test_columns_say_which_way_is_better(tmp_path):
    learn = tiny_learner()
    quiet_fit(learn, 1, History(tmp_path))
    columns = json.loads((tmp_path/"columns.json").read_text())
    assert set(learn.recorder.rows[0]) - {"epoch", "step", "seconds"} == set(columns)
    assert {k:o["better"] for k,o in columns.items()} == {k:c.better for k,c in learn.columns.items()}


def test_events_are_appended_over_two_fits(tmp_path):
    learn = tiny_learner()
    file = tmp_path/"events.jsonl"
    quiet_fit(learn, 1, EventLog(file))
    first = file.read_text()
    learn.validate()
    assert file.read_text() == first
    quiet_fit(learn, 1, EventLog(file))
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert file.read_text().startswith(first)
    assert [e["event"] for e in events] == ["start", "steps", "epoch", "end"]*2
    assert [(e["first"], e["last"]) for e in events if e["event"] == "steps"] == [(1, 6), (7, 12)]
    assert [e["done"] for e in events if e["event"] == "start"] == [0, 1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_full_disk_names_the_event_log(tmp_path):
    (tmp_path/"events.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device; make room there.*events.jsonl"): quiet_fit(tiny_learner(), 1, EventLog(tmp_path/"events.jsonl"))
