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
    assert json.loads((settings().cache_path/"speed.json").read_text()) == dict(a=dict(ms=1), b=dict(ms=2))


def test_what_may_not_be_kept_leaves_no_entry():
    assert measured_once("speed", "a", lambda: (1, False)) == 1
    assert not (settings().cache_path/"speed.json").exists()


@pytest.mark.parametrize("text", ["[1", "[]", "\"a\""])
def test_a_damaged_file_is_named_with_the_remedy(text):
    path = settings().cache_path/"speed.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="speed.json .*remove it"): measured_once("speed", "a", lambda: (1, True))
    assert path.read_text() == text # nothing is written over


def _measure(number): return measured_once("speed", "a", lambda: (number, True))


def test_processes_that_measure_at_once_agree():
    with get_context("spawn").Pool(2) as pool: assert len(set(pool.map(_measure, range(4), chunksize=1))) == 1
