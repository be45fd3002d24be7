"What cells print is written down as a terminal would show it"
import itertools
import os

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitnb.experiment import journal as room
from vitnb.experiment.salvage import journal_of
from vitnb.experiment.scribe import finish, flush, join_text, scribe_class, take_text


class Desk:
    "What a `Scribe` has, without papermill"
    def __init__(self): self.streams, self.terminal, self.journal, self.log_output = {}, {}, None, False


def as_shown(text):
    "A terminal, letter by letter: after a carriage return letters are written over those that stand there"
    lines, column = [""], 0
    for letter in text:
        if letter == "\n":
            lines.append("")
            column = 0
        elif letter == "\r": column = 0
        else:
            lines[-1] = lines[-1][:column] + letter + lines[-1][column + 1:]
            column += 1
    return "\n".join(lines)


@given(st.lists(st.text("ab\r\n", max_size=6), max_size=8))
def test_the_same_text_comes_out_however_it_is_cut(parts):
    outputs, desk = [], Desk()
    for part in parts: take_text(desk, outputs, "stdout", part)
    flush(desk, outputs)
    cell = dict(outputs=outputs)
    join_text(cell)
    assert "".join(output["text"] for output in outputs).rstrip("\n") == as_shown("".join(parts)).rstrip("\n")


def test_streams_stay_apart_and_in_order():
    outputs, desk = [], Desk()
    for name,text in (("stdout", "one\n"), ("stderr", "warning\n"), ("stdout", "two\n")): take_text(desk, outputs, name, text)
    join_text(dict(outputs=outputs))
    assert [(output["name"], output["text"]) for output in outputs] == [("stdout", "one\n"), ("stderr", "warning\n"), ("stdout", "two\n")]


@pytest.fixture
def notebook():
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1)"), nbformat.v4.new_code_cell("print(2)")])
    nb.metadata.papermill = dict(exception=None)
    for cell in nb.cells: cell.metadata.papermill = {}
    return nb


def test_a_cell_is_in_the_file_when_it_has_ended_and_the_books_are_closed_once(notebook, tmp_path):
    scribe = scribe_class()(notebook, str(tmp_path/"out.ipynb"), tmp_path, {}, progress_bar=False)
    scribe.cell_start(notebook.cells[0], 0)
    take_text(scribe, notebook.cells[0].outputs, "stdout", "1\n")
    scribe.cell_complete(notebook.cells[0], 0)
    finish(scribe)
    ended = scribe.end_time
    finish(scribe)
    kept = nbformat.read(tmp_path/"out.ipynb", 4)
    assert scribe.end_time == ended and [output.text for output in kept.cells[0].outputs] == ["1\n"] and not kept.cells[1].outputs
    assert kept.cells[0].metadata.papermill.status == "completed"


@pytest.mark.parametrize("moments", [range(0, 20), range(20, 40)])
def test_interrupted_at_any_write_the_notebook_is_whole_and_has_what_came(notebook, tmp_path, monkeypatch, moments):
    "A Ctrl-C amid each line of the journal, and amid the lines that close it"
    real,output = os.write,tmp_path/"out.ipynb"
    def run(moment):
        for cell in notebook.cells: cell.outputs, cell.metadata.papermill = [], dict(status="pending", exception=None)
        scribe = scribe_class()(notebook, str(output), tmp_path, {}, progress_bar=False)
        count = itertools.count()
        def write(descriptor, raw):
            if next(count) == moment: raise KeyboardInterrupt
            return real(descriptor, raw)
        monkeypatch.setattr(room.os, "write", write)
        try:
            for number,cell in enumerate(notebook.cells):
                try:
                    scribe.cell_start(cell, number)
                    for name in ("stdout", "stderr"): take_text(scribe, cell.outputs, name, f"{name} {number}\nand more\n")
                finally: scribe.cell_complete(cell, number)
            finish(scribe)
            return False
        except KeyboardInterrupt: return True
        finally:
            monkeypatch.setattr(room.os, "write", real)
            finish(scribe)
    were_interrupted = []
    for moment in moments:
        were_interrupted.append(run(moment))
        for cell in notebook.cells: join_text(cell)
        kept = nbformat.read(output, 4)
        nbformat.validate(kept)
        assert not journal_of(output).exists()
        assert [[o.text for o in cell.outputs] for cell in kept.cells] == [[o.text for o in cell.outputs] for cell in notebook.cells], moment
    assert were_interrupted[0] and (moments[0] == 0 or not were_interrupted[-1]), "all moments were tried"
