"What is read once: kept, read again when the data have changed, and refused when too much is broken"
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from vitnb.data.once import refuse_too_many, scan_once


def test_data_are_scanned_once_for_each_key(tmp_path):
    scans = []
    def scan(): return scans.append(1) or dict(n=len(scans))
    file = tmp_path/"deep"/"found.json"
    assert [scan_once(file, key, scan)["n"] for key in ("a", "a", "b", "b", "a")] == [1, 1, 2, 2, 3]
    assert json.loads(file.read_text()).items() >= dict(n=3, of="a").items()


def test_of_several_at_once_one_scans(tmp_path):
    scans = []
    def scan(): return scans.append(1) or dict(n=len(scans))
    with ThreadPoolExecutor(4) as pool: found = list(pool.map(lambda _: scan_once(tmp_path/"found.json", "a", scan), range(8)))
    assert scans == [1] and all(o == dict(n=1, of="a") for o in found)


def test_a_scan_that_fails_leaves_nothing(tmp_path):
    def broken(): raise ValueError("broken")
    with pytest.raises(ValueError, match="broken"): scan_once(tmp_path/"found.json", "a", broken)
    assert not (tmp_path/"found.json").exists()


@pytest.mark.parametrize("bad,total,max_bad,refused", [(1, 100, .01, False), (2, 100, .01, True), (1, 3, 0, True), (3, 3, 1, False)])
def test_the_share_decides(bad, total, max_bad, refused, capsys):
    names = {f"{i}.npy":"empty" for i in range(bad)}
    if refused:
        with pytest.raises(ValueError, match=f"{bad} of {total} cubes cannot be used: 0.npy .empty.*more than max_bad={max_bad:g}; repair"):
            refuse_too_many(names, total, max_bad, "cubes")
    else:
        refuse_too_many(names, total, max_bad, "cubes")
        assert "They are left out." in capsys.readouterr().out
