"What a program has printed, as a terminal would show it"
import io

import pytest
from hypothesis import given, strategies as st

from vitnb.experiment.terminal import StreamText


def shown(parts):
    "All that is left in the end"
    stream = StreamText()
    return "".join(stream.write(part) for part in parts) + stream.close()


def screen(text):
    "A slow second implementation: a screen of single signs"
    rows,row,column,at = [[]],0,0,0
    while at < len(text):
        if text.startswith("\x1b[A", at): row,at = max(0, row-1),at + 3; continue
        sign,at = text[at],at + 1
        if sign == "\n":
            row,column = row + 1,0
            if row == len(rows): rows.append([])
        elif sign == "\r": column = 0
        elif sign == "\b": column = max(0, column-1)
        else:
            rows[row].extend(" "*(column - len(rows[row])))
            rows[row][column:column+1] = sign
            column += 1
    return ["".join(r).rstrip() for r in rows]


signs = st.lists(st.sampled_from(["a", "bc", " ", "\r", "\b", "\n", "x\ny\n"]), max_size=30)


@given(signs)
def test_what_is_left_is_what_a_screen_shows(parts):
    lines = [line.rstrip() for line in shown(parts).split("\n")]
    want = screen("".join(parts))
    while lines and not lines[-1]: lines.pop()
    while want and not want[-1]: want.pop()
    assert lines == want


@given(signs, st.integers(0, 30))
def test_how_the_text_was_cut_into_parts_does_not_matter(parts, at): assert shown(parts) == shown(["".join(parts[:at]), "".join(parts[at:])])


@pytest.mark.parametrize("bars", [1, 2])
def test_bars_of_tqdm_leave_what_a_terminal_shows(bars):
    tqdm = pytest.importorskip("tqdm").tqdm
    file = io.StringIO()
    outer = tqdm(total=3, file=file, mininterval=0, desc="outer", position=0)
    for _ in range(3):
        inner = tqdm(range(50), file=file, mininterval=0, desc="inner", position=1) if bars == 2 else range(50)
        for _ in inner: pass
        outer.update()
    outer.close()
    text = file.getvalue()
    left = [line.rstrip() for line in shown([text[i:i+97] for i in range(0, len(text), 97)]).split("\n") if line.strip()]
    assert left == [line for line in screen(text) if line] and "outer: 100%" in left[-1]
    assert len(left) == 1 if bars == 1 else len(left) <= 4 < text.count("inner")


def test_a_line_is_given_away_as_soon_as_it_is_final():
    stream = StreamText()
    assert [stream.write(t) for t in ("one\ntw", "\rTW", "O\n", "end")] == ["one\n", "", "TWO\n", ""]
    assert stream.pending() == "end" and stream.close() == "end" and stream.pending() == ""
