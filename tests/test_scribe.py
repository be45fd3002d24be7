"What cells print is written down as a terminal would show it"
import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
