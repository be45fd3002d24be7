"Measurements that are kept beside the caches"
import json
from multiprocessing import get_context

import pytest

from vitnb.core import settings
from vitnb.measured import measured_once


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path))


def test_what_was_measured_is_not_measured_again():
    calls = []
    def measure(): calls.append(1); return dict(ms=len(calls)), True
    assert [measured_once("speed", key, measure)["ms"] for key in "aabab"] == [1, 1, 2, 1, 2]
    assert json.loads((settings().cache_path/"speed.json").read_text()).items() >= dict(a=dict(ms=1), b=dict(ms=2)).items()


def test_what_may_not_be_kept_leaves_no_entry():
    assert measured_once("speed", "a", lambda: (1, False)) == 1
    assert not (settings().cache_path/"speed.json").exists()


@pytest.mark.parametrize("text", ["[1", "[]", "\"a\"", '{"a": 5}'])
def test_a_damaged_file_is_told_and_measured_again(text, capsys):
    path = settings().cache_path/"speed.json"
    path.write_text(text)
    assert measured_once("speed", "a", lambda: (1, True)) == 1 and "speed.json" in capsys.readouterr().out
    assert measured_once("speed", "a", lambda: (2, True)) == 1


def _measure(number): return measured_once("speed", "a", lambda: (number, True))


def test_processes_that_measure_at_once_agree():
    with get_context("spawn").Pool(2) as pool: assert len(set(pool.map(_measure, range(4), chunksize=1))) == 1
