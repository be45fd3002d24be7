"Tables of scores: what is read, what is counted, and what is refused"
import numpy as np
import pandas as pd
import pytest

from vitnb.data.chesttable import TableReport, find_films, read_scores, score_of
from vitnb.data.zones import CSI_UNKNOWN, ZONES

HEAD = ("FileID", *ZONES)


def table(path, rows, head=HEAD, sep=";", mark=""):
    path.write_text(mark + "\n".join(sep.join(map(str, r)) for r in (head, *rows)) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("text,score", [("0", 0), ("3", 3), ("2.0", 2), ("2,0", 2), ("", 4), ("4", 4), ("5", None), ("-1", None), ("1.5", None), ("1,5", None), ("mild", None), ("inf", None)])
def test_a_score_is_0_to_3_or_unknown_and_everything_else_is_odd(text, score): assert score_of(text) == score


def test_odd_cells_are_counted_and_reported_and_count_as_unknown(tmp_path):
    path = table(tmp_path/"a.csv", [("1", 0, 1, 2, 3, "", 4), ("2", 5, 5, "x", 1.5, "NaN", 0), ("3", 5, 0, 0, 0, 0, 0)])
    frame,report = read_scores(path)
    assert frame[list(ZONES)].to_numpy().tolist() == [[0, 1, 2, 3, 4, 4], [4, 4, 4, 4, 4, 0], [4, 0, 0, 0, 0, 0]]
    assert report.odd[("right_sup", "5")] == 2 and sum(report.odd.values()) == 5 and report.unknown == 3 and report.rows == 3
    assert "5 cells are no score" in report.lines()[0]
    with pytest.raises(ValueError, match="5 cells are no score from 0 to 3"): read_scores(path, odd="error")


@pytest.mark.parametrize("sep", [";", ",", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_separators_and_a_byte_order_mark(tmp_path, sep, mark):
    frame,_ = read_scores(table(tmp_path/"a.csv", [("0012", 0, 1, 2, 3, 4, 0)], sep=sep, mark=mark), sep=sep)
    assert frame.FileID.tolist() == ["0012"] and frame[ZONES[3]].tolist() == [3]


def test_a_decimal_comma_in_the_mean_and_a_mean_that_differs(tmp_path):
    path = table(tmp_path/"a.csv", [("1", 1, 2, 1, 2, 4, 4, "1,5"), ("2", 0, 0, 0, 0, 0, 0, "2,5"), ("3", 4, 4, 4, 4, 4, 4, "")], (*HEAD, "csi"))
    frame,report = read_scores(path)
    assert frame.csi[:2].tolist() == [1.5, 2.5] and np.isnan(frame.csi[2]) and report.csi_differs == 1


def test_the_mean_is_optional(tmp_path):
    frame,_ = read_scores(table(tmp_path/"a.csv", [("1", 0, 0, 0, 0, 0, 0)]))
    assert "csi" not in frame


def test_ids_are_text_whatever_the_table(tmp_path):
    frame = pd.DataFrame([dict(zip(HEAD, ("007", 0, 1, 2, 3, np.nan, 4)))])
    assert read_scores(frame)[0].FileID.tolist() == ["007"]
    numbers = pd.DataFrame([dict(zip(HEAD, (12.0, 0., 1., 2., 3., np.nan, 4.)))])
    found,_ = read_scores(numbers)
    assert found.FileID.tolist() == ["12"] and found[ZONES[4]].tolist() == [CSI_UNKNOWN]


def test_patients_become_numbers_and_those_written_in_two_ways_are_one(tmp_path):
    path = table(tmp_path/"a.csv", [(n, 0, 0, 0, 0, 0, 0, p) for n,p in enumerate(["7", "007 ", "8", "Ann", "ann"])], (*HEAD, "patient"))
    frame,report = read_scores(path, patient="patient")
    assert frame.patient.tolist() == [0, 0, 1, 2, 2] and report.patients == [(1, 2), (4, 5)]
    assert "2 patients are written in two ways" in report.lines()[0] and "Ann" not in report.lines()[0]


def test_a_missing_patient_is_an_error_and_no_group(tmp_path):
    path = table(tmp_path/"a.csv", [(1, 0, 0, 0, 0, 0, 0, "a"), (2, 0, 0, 0, 0, 0, 0, "")], (*HEAD, "patient"))
    with pytest.raises(ValueError, match="row 2 has no patient"): read_scores(path, patient="patient")
    with pytest.raises(ValueError, match="no column 'patent'.*did you mean 'patient'"): read_scores(path, patient="patent")


def test_a_table_that_does_not_fit_is_refused(tmp_path):
    rows = [("1", 0, 0, 0, 0, 0, 0)]
    with pytest.raises(ValueError, match="give sep=','"): read_scores(table(tmp_path/"a.csv", rows, sep=","))
    with pytest.raises(ValueError, match="unknown separator"): read_scores(tmp_path/"a.csv", sep=":")
    with pytest.raises(ValueError, match="no column 'FileID'"): read_scores(table(tmp_path/"b.csv", rows, ("Id", *ZONES)))
    assert len(read_scores(tmp_path/"b.csv", id="Id")[0]) == 1
    with pytest.raises(ValueError, match="no column 'left_mid'"): read_scores(table(tmp_path/"c.csv", [r[:-1] for r in rows], HEAD[:4] + HEAD[5:]))
    with pytest.raises(ValueError, match=r"id '1' is in rows \[1, 2\]"): read_scores(table(tmp_path/"d.csv", rows*2))
    with pytest.raises(ValueError, match="row 1 of the table has no id"): read_scores(table(tmp_path/"e.csv", [("", *rows[0][1:])]))
    with pytest.raises(ValueError, match="no row"): read_scores(table(tmp_path/"f.csv", []))
    with pytest.raises(ValueError, match="unknown odd"): read_scores(tmp_path/"b.csv", id="Id", odd="drop")


def test_excluded_ids_are_counted(tmp_path):
    frame,report = read_scores(table(tmp_path/"a.csv", [(n, 0, 0, 0, 0, 0, 0) for n in range(4)]), exclude=["1", 3, "99"])
    assert frame.FileID.tolist() == ["0", "2"] and report.excluded == 2


def test_films_are_found_by_name_and_absent_ones_counted(tmp_path):
    (tmp_path/"deep").mkdir()
    for name in ("0012.png", "deep/13.nii.gz", "IM7", "note.txt", ".14.png"): (tmp_path/name).write_bytes(b"")
    report = TableReport()
    assert find_films(["0012", "13.0", "IM7", "14", "note"], tmp_path, report) == ["0012.png", "deep/13.nii.gz", "IM7", None, None]
    assert report.absent == ["14", "note"] and report.renumbered == 1
    with pytest.raises(ValueError, match="not one of 1 films"): find_films(["12"], tmp_path, TableReport())
    with pytest.raises(ValueError, match="no folder"): find_films(["12"], tmp_path/"nowhere", TableReport())


def test_one_id_with_two_files_is_an_error_unless_the_end_says_which(tmp_path):
    for name in ("1.png", "1.dcm"): (tmp_path/name).write_bytes(b"")
    with pytest.raises(ValueError, match="end="): find_films(["1"], tmp_path, TableReport())
    assert find_films(["1"], tmp_path, TableReport(), end=".dcm") == ["1.dcm"]


def test_one_film_for_two_rows_is_refused(tmp_path):
    (tmp_path/"12.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"12\.png is that of two rows, '12' and '12\.0'"):
        find_films(["12", "12.0"], tmp_path, TableReport())


def test_films_are_found_by_the_one_walk(tmp_path):
    "Thumbnails of a server are no second film, a link to a folder above does not lead in circles, and a film that is a link has its own name"
    for name in ("p1/12.dcm", "p1/@eaDir/12.dcm", "p1/.trash/13.dcm"): (tmp_path/name).parent.mkdir(parents=True, exist_ok=True); (tmp_path/name).write_bytes(b"")
    (tmp_path/"p1"/"up").symlink_to(".."); (tmp_path/"p1"/"14.dcm").symlink_to("12.dcm")
    assert find_films(["12", "13", "14"], tmp_path, TableReport()) == ["p1/12.dcm", None, "p1/14.dcm"]
