"The terminal's view of all runs: in its width and height, what runs first"
import json
import os
import platform
import time

import pytest
from hypothesis import given, strategies as st
from rich.console import Console

from vitnb.experiment.watch import RunViews
from vitnb.experiment.watching import screen_of, shortened_name


@pytest.fixture
def views(tmp_path):
    "Five runs, of which the oldest still runs, with a picture"
    for n in range(5):
        folder = tmp_path/"train_densenet"/f"2025013{n}-175959-lr0.{n}_wd0.0001"
        (folder/"figures").mkdir(parents=True)
        events = [dict(t=time.time() - 9, event="start", epochs=4, done=0), dict(t=time.time(), event="epoch", epoch=1, train_loss=2., mse_masked=.25)]
        if n == 0: events.append(dict(t=time.time(), event="picture", path="figures/masked_epoch_0001.png", epoch=1))
        (folder/"events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        (folder/"status.json").write_text(json.dumps(dict(status="finished" if n else "running", pid=os.getpid(), host=platform.node())))
    (tmp_path/"train_densenet/20250130-175959-lr0.0_wd0.0001/figures/masked_epoch_0001.png").write_bytes(b"")
    return RunViews(tmp_path).read()


def shown(views, width, height):
    console = Console(width=width, height=height, record=True, file=open(os.devnull, "w"))
    console.print(screen_of(views, width, height))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width,height", [(40, 6), (80, 24), (80, 7), (120, 40), (200, 10)])
def test_a_moment_fits_the_terminal_a_line_for_each_run(views, width, height):
    lines = shown(views, width, height)
    assert len(lines) <= height and all(len(line) <= width for line in lines)
    assert lines[0].strip() == "1 running, 4 finished" and "running"[:5] in lines[2], "what runs comes first"
    more = [line for line in lines if line.startswith("and ")]
    assert "picture:" in lines[-1] and len(lines) == 3 + min(5, height - 4) + bool(more), lines
    assert bool(more) == (height < 9)


def test_what_is_no_terminal_gets_whole_names_and_all_columns(views):
    console = Console(width=10_000, record=True, file=open(os.devnull, "w"))
    console.print(screen_of(views))
    text = console.export_text()
    assert text.count("train_densenet/2025013") == 6 and "last event" in text and "figures/masked_epoch_0001.png" in text


@given(st.text(st.characters(codec="ascii", exclude_categories=["C"])), st.integers(1, 60))
def test_a_name_is_shortened_in_its_middle(name, width):
    short = shortened_name(name, width)
    assert len(short) <= max(width, 0) and (short == name) == (len(name) <= width)
    if len(name) > width >= 4: assert short.count("…") >= 1 and name.endswith(short.rpartition("…")[2]) and name.startswith(short.partition("…")[0])
