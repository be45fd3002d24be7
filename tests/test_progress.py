"Bars for eyes, one line for logs"
import pytest

from vitnb import progress as room
from vitnb.progress import fmt_time, progress, progress_bar


@pytest.fixture
def clock(monkeypatch):
    "A clock that a test moves"
    now = [1000.]
    monkeypatch.setattr(room, "time", type("clock", (), dict(time=staticmethod(lambda: now[0]))))
    return now


@pytest.mark.parametrize("seconds,text", [(0, "0.0 s"), (59.9, "59.9 s"), (60, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90_061, "25:01:01")])
def test_durations(seconds, text): assert fmt_time(seconds) == text


def test_a_log_hears_of_what_took_long_and_of_nothing_else(clock, capsys):
    with progress_bar(None, "decoding") as bar: bar.update(3)
    assert capsys.readouterr().out == ""
    with progress_bar(10, "decoding", "images") as bar:
        bar.update(10)
        clock[0] += 75
    assert capsys.readouterr().out == "decoding: 10 images in 1:15\n"


def test_a_bar_is_closed_when_the_work_fails(clock, capsys):
    def items():
        clock[0] += 3
        yield 1
        raise OSError("gone")
    with pytest.raises(OSError): list(progress(items(), "reading", total=2))
    assert "reading: 1 items" in capsys.readouterr().out


def test_a_notebook_sees_one_line_that_says_how_long_it_will_take(clock, monkeypatch):
    import IPython.display
    shown = []
    handle = type("handle", (), dict(update=lambda self, data, raw: shown.append(data["text/plain"])))()
    monkeypatch.setattr(IPython.display, "display", lambda *a, **k: handle)
    monkeypatch.setattr(room, "in_kernel", lambda: True)
    with progress_bar(4, "adding") as bar:
        clock[0] += 1
        bar.update()
        clock[0] += 1
        bar.update(3)
    assert shown == ["adding: 1/4 items in 1.0 s, 3 s left", "adding: 4/4 items in 2.0 s", "adding: 4/4 items in 2.0 s"]
    monkeypatch.setenv("VITNB_HEADLESS", "1")
    with progress_bar(4, "adding") as bar: bar.update(4)
    assert len(shown) == 3, "nobody watches"
