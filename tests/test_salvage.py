"A journal that a killed process left becomes a whole notebook with all that was written"
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from vitnb.experiment.journal import Journal
from vitnb.experiment.salvage import complete, complete_all, journal_of, watch


def notebook(count):
    cells = [dict(cell_type="code", id=f"c{i}", source=f"print({i})", outputs=[], execution_count=None, metadata={}) for i in range(count)]
    return dict(cells=[dict(cell_type="markdown", id="m", source="# title", metadata={}), *cells], metadata={}, nbformat=4, nbformat_minor=5)


def run(journal, nb, upto):
    "As the engine does: every cell prints, shows and warns"
    for number,cell in enumerate(nb["cells"][:upto]):
        journal.begin(cell)
        if cell["cell_type"] == "code":
            for name,text in (("stdout", f"line {number}\n"), ("stdout", "and more\n"), ("stderr", "a warning\n")):
                journal.add_text(name, text)
                cell["outputs"].append(dict(output_type="stream", name=name, text=[text]))
            shown = dict(output_type="display_data", data={"text/plain":f"shown {number}"}, metadata={})
            journal.add(shown)
            cell["outputs"].append(shown)
            cell["execution_count"] = number
        journal.end()


def whole(path):
    nb = nbformat.read(path, 4)
    nbformat.validate(nb)
    return nb


def test_every_beginning_of_a_journal_is_completed(tmp_path):
    "Cut anywhere: a valid notebook with all cells, and every cell that had ended has all its outputs"
    output,nb = tmp_path/"a.ipynb",notebook(3)
    journal = Journal(output, nb)
    skeleton = output.read_bytes()
    run(journal, nb, 4)
    os.close(journal.descriptor)
    raw = journal.path.read_bytes()
    for size in (*range(0, len(raw), 7), len(raw) - 1, len(raw)):
        output.write_bytes(skeleton)
        journal.path.write_bytes(raw[:size])
        assert complete(output) and not journal.path.exists()
        cells = whole(output).cells
        assert [cell.id for cell in cells] == ["m", "c0", "c1", "c2"]
        ended = raw[:size].count(b'],"execution_count"') - (b'],"execution_count"' in raw[:size].rpartition(b"\n")[2])
        assert [c.outputs[-1].get("data") for c in cells[1:ended+1]] == [{"text/plain":f"shown {i+1}"} for i in range(ended)]


@pytest.mark.parametrize("there", [None, b"", b'{"cells": [', b"[]"])
def test_a_notebook_that_was_taken_away_or_edited(tmp_path, there):
    "The journal alone makes a valid one; a damaged file is kept"
    output,nb = tmp_path/"a.ipynb",notebook(2)
    journal = Journal(output, nb)
    run(journal, nb, 2)
    os.close(journal.descriptor)
    output.unlink() if there is None else output.write_bytes(there)
    assert complete_all(tmp_path) == [output]
    assert "line 1" in str(whole(output).cells[1].outputs)
    assert [p.read_bytes() for p in tmp_path.glob("*.damaged")] == ([] if there is None else [there])


def test_a_notebook_that_was_changed_since_keeps_its_name(tmp_path):
    "Whoever has saved the view with a change, or has put another notebook there, finds it again; the journal's is beside it"
    output,nb = tmp_path/"a.ipynb",notebook(2)
    journal = Journal(output, nb)
    run(journal, nb, 2)
    journal.refresh()
    os.close(journal.descriptor)
    output.write_text(output.read_text().replace("print(1)", "print(1) # mine"))
    mine = output.read_bytes()
    assert complete_all(tmp_path) == [tmp_path/"a.killed.ipynb"] and output.read_bytes() == mine
    assert "line 1" in str(whole(tmp_path/"a.killed.ipynb").cells[1].outputs)


def test_a_journal_in_use_is_left_alone(tmp_path):
    output,nb = tmp_path/"a.ipynb",notebook(1)
    journal = Journal(output, nb)
    assert not complete(output) and journal.path.exists()
    with pytest.raises(ValueError, match="another process"): Journal(output, nb)
    journal.finish()


WRITER = """
import sys
import time
from vitnb.experiment.journal import Journal, viewing
from vitnb.experiment.salvage import guardian
cells = [dict(cell_type="code", id=f"c{i}", source="", outputs=[], execution_count=None, metadata={}) for i in range(4000)]
nb = dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
with guardian(sys.argv[1]):
    journal = Journal(sys.argv[1], nb)
    with viewing(journal):
        for number,cell in enumerate(cells):
            with journal.lock:
                journal.begin(cell)
                text = "x"*(number % 7)*3000 + "\\n"
                journal.add_text("stdout", text)
                cell["outputs"].append(dict(output_type="stream", name="stdout", text=[text]))
                journal.end()
            print(number, flush=True)
    time.sleep(100) # a fast machine is done before it is killed
"""


def test_killed_at_random_instants_no_finished_cell_is_lost(tmp_path):
    "Really killed; who waits beside the process completes the notebook without being asked"
    random.seed(3)
    for turn in range(4):
        output = tmp_path/f"{turn}.ipynb"
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(output)], stdout=subprocess.PIPE, text=True)
        said = [process.stdout.readline()]
        time.sleep(random.random()*.6)
        process.kill()
        said += process.stdout.read().split("\n")
        finished = max(int(line) for line in said if line.strip().isdigit())
        end = time.monotonic() + 120
        while journal_of(output).exists() and time.monotonic() < end: time.sleep(.02)
        cells = whole(output).cells
        assert len(cells) == 4000 and not journal_of(output).exists()
        assert all(cell.outputs and "".join(cell.outputs[0].text) == "x"*(i % 7)*3000 + "\n" for i,cell in enumerate(cells[:finished+1]))
        process.wait()


def test_a_kernel_that_outlives_its_parent_is_ended(tmp_path):
    deaf = subprocess.Popen([sys.executable, "-c", "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(300)"])
    born = psutil.Process(deaf.pid).create_time()
    watch("", iter([f"kernel {deaf.pid} {born - 100}"])) # another process that has its number
    assert deaf.poll() is None
    watch("", iter([f"kernel {deaf.pid} {born}", "done"]))
    assert deaf.poll() is None
    watch("", iter([f"kernel {deaf.pid} {born}"]))
    assert deaf.wait(120) == -signal.SIGKILL
