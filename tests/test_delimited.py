"Tables as other programs wrote them"
import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from vitnb.data.delimited import IMAGE_COLUMNS, cells_of, full_cells, is_empty, is_text, read_frame, usual_columns, whole_text

ROWS = "file;class;n\nm\u00fcller.png;caf\u00e9;007\n\"b;c.png\";te\u00e9;1\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_every_encoding_gives_the_same_table(tmp_path, encoding, ends, capsys):
    (tmp_path/"t.csv").write_bytes(ROWS.replace("\n", ends).encode(encoding))
    frame = read_frame(tmp_path/"t.csv")
    assert frame.to_dict("list") == {"file":["m\u00fcller.png", "b;c.png"], "class":["caf\u00e9", "te\u00e9"], "n":["007", "1"]}
    assert ("cp1252" in capsys.readouterr().out) == (encoding == "cp1252")
    assert is_text(tmp_path/"t.csv")


def test_an_encoding_that_is_given_acts(tmp_path):
    (tmp_path/"t.csv").write_bytes("a,b\n\u00e9,1\n".encode("mac_roman"))
    assert read_frame(tmp_path/"t.csv", "mac_roman")["a"][0] == "\u00e9" != read_frame(tmp_path/"t.csv")["a"][0]
    with pytest.raises(ValueError, match="is no text in utf-8 .* give encoding="): read_frame(tmp_path/"t.csv", "utf-8")


@pytest.mark.parametrize("mark", list(",;\t|"))
def test_the_separator_is_found_outside_of_quotes(tmp_path, mark):
    others = "".join(m for m in ",;|" if m != mark)
    (tmp_path/"t.csv").write_text(f'"file{others}{others}"{mark}b\nx{mark}1\n')
    assert list(read_frame(tmp_path/"t.csv")) == [f"file{others}{others}", "b"]


@pytest.mark.parametrize("rows", ["a,b\n1,2\n\n\n", "a,b\n1,2\n,\n , \n", "a,b,\n1,2,\n,,\n", "\n\na,b\n1,2", "sep=,\na,b\n1,2\n", " a , b\n1,2\n", "a,b\n1,2,\n,,,\n"])
def test_empty_rows_and_columns_and_excels_first_line_are_no_data(tmp_path, rows):
    (tmp_path/"t.csv").write_text(rows)
    assert read_frame(tmp_path/"t.csv").to_dict("list") == dict(a=["1"], b=["2"])


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path/"t.csv").write_text("")
    with pytest.raises(ValueError, match="no first line"): read_frame(tmp_path/"t.csv")
    (tmp_path/"t.csv").write_text('a,b\n1,2\n1,2,3,4\n"x')
    with pytest.raises(ValueError, match="is not a csv with ','"): read_frame(tmp_path/"t.csv")
    (tmp_path/"t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert read_frame(tmp_path/"t.csv.gz")["b"][0] == "2"
    (tmp_path/"t.bin").write_bytes(bytes(range(40)))
    assert not is_text(tmp_path/"t.bin")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "\u00e9", "x y", "7"]), st.sampled_from(["1", "", "q"])), min_size=1, max_size=5), st.sampled_from(",;\t|"))
def test_cells_come_back_as_they_were(tmp_path_factory, rows, mark):
    path = tmp_path_factory.mktemp("t")/"t.csv"
    path.write_text("\n".join(mark.join(row) for row in [("p", "q"), *rows]), encoding="utf-8")
    assert [tuple(row) for row in read_frame(path).to_numpy().tolist()] == rows


@pytest.mark.parametrize("rows, line, cell", [("f,label\n1.png,dry, green\n", 2, "green"), ("f,label\n1.png,a\n2.png,b,c\n", 3, "c"), ("# by x\nf,label\n", 2, "label")])
def test_no_cell_without_a_column_is_lost(tmp_path, rows, line, cell):
    (tmp_path/"t.csv").write_text(rows)
    with pytest.raises(ValueError, match=f"line {line} has . cells.* '{cell}' has no column; put a cell"): read_frame(tmp_path/"t.csv")


def test_of_two_columns_with_one_name_none_is_taken(tmp_path):
    (tmp_path/"t.csv").write_text("f,label,x,label\n1.png,a,,b\n")
    for frame in (read_frame(tmp_path/"t.csv"), pd.DataFrame([["1.png", "a", "b"]], columns=["f", "label", "label"])):
        assert full_cells(frame, "f", "path") == ["1.png"]
        with pytest.raises(ValueError, match="two columns are called 'label'"): cells_of(frame, "label", "the label")


@pytest.mark.parametrize("cell, empty", [(None, True), (float("nan"), True), (pd.NA, True), (pd.NaT, True), ("NaN", True), (" ", True), ("<NA>", True), ([], True),
                                         (["a"], False), (np.zeros(2), False), (0, False), ("NA", False), ("None", False)])
def test_what_is_empty(cell, empty): assert is_empty(cell) is empty


def test_usual_names_in_any_spelling():
    assert usual_columns(["ID", "Image Index", "FILE_NAME", "age"], IMAGE_COLUMNS) == ["FILE_NAME", "Image Index"]
    assert [whole_text(cell) for cell in (3.0, "007", "1.5", " a ", "-2.0")] == ["3", "007", "1.5", "a", "-2"]


def test_an_empty_cell_names_its_row(tmp_path):
    (tmp_path/"t.csv").write_text("a,b\n1,2\n,3\n")
    with pytest.raises(ValueError, match="row 2 of the table, column 'a' is empty"): full_cells(read_frame(tmp_path/"t.csv"), "a", "label")
