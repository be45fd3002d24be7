"The library notebooks run from top to bottom, each example and each claim in them"
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted(p for p in (ROOT/"nbs"/"library").glob("*.ipynb") if not p.name.startswith("_"))


def parse(said):
    "Which notebooks ran, and which of them failed, from what `nbdev-test --do-print` writes"
    ran = {Path(path).name for path in re.findall(r"- Completed (.+?\.ipynb)", said)} # two of them may write into one line
    failed = said.partition("Tests Failed On The Following Notebooks:")[2]
    return SimpleNamespace(ran=ran, failed=set(re.findall(r"^\t(.+\.ipynb)$", failed, re.M)), said=said)


@pytest.fixture(scope="module")
def outcome():
    "All of them, in one go: a process for each would import torch and fastai seventy times"
    exe = Path(sys.executable).parent/"nbdev-test"
    cmd = [str(exe), "--n-workers", str(min(4, os.cpu_count() or 1)), "--do-print"]
    env = {"OMP_NUM_THREADS": "1", **os.environ, "VITNB_HEADLESS": "1"}
    r = subprocess.run(cmd, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, timeout=1450)
    out = parse(r.stdout + "\n" + r.stderr)
    assert (r.returncode == 0) == (not out.failed), out.said[-6000:]
    return out


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_the_notebook_runs(outcome, path):
    assert path.name in outcome.ran, "nbdev-test passed it over"
    if path.name in outcome.failed:
        start = max(outcome.said.find(f"{path.name}:\n="), 0)
        pytest.fail(f"nbdev-test says of {path.name}\n{outcome.said[start:start + 4000]}")


def test_what_nbdev_says_is_read():
    said = "Starting /a/b.ipynb\n- Completed /a/b.ipynb\n- Completed /a/c.ipynb\n"
    fence = "="*50
    out = parse(f"{said}\nnbdev Tests Failed On The Following Notebooks:\n{fence}\n\tc.ipynb\n\td.ipynb\n")
    assert out.ran == {"b.ipynb", "c.ipynb"} and out.failed == {"c.ipynb", "d.ipynb"}
    assert not parse(said + "Success.").failed


def test_the_lines_of_the_index_run():
    "It lies beside the experiments, which `.notest` leaves out"
    exe = Path(sys.executable).parent/"nbdev-test"
    cmd = [str(exe), "nbs/index.ipynb", "--ignore-fname", "none", "--do-print"]
    r = subprocess.run(cmd, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    out = parse(r.stdout + "\n" + r.stderr)
    assert r.returncode == 0 and out.ran == {"index.ipynb"}, out.said[-3000:]
