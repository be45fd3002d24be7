"The library notebooks run from top to bottom, each example and each claim in them"
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.timeout(1500)
def test_every_notebook_runs():
    "nbdev-test over nbs/; experiments say `skip_exec` and are left out"
    exe = Path(sys.executable).parent/"nbdev-test"
    cmd = [str(exe), "--n-workers", str(min(4, os.cpu_count() or 1)), "--timing"]
    env = {"OMP_NUM_THREADS": "1", **os.environ, "VITNB_HEADLESS": "1"}
    r = subprocess.run(cmd, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, timeout=1450)
    assert r.returncode == 0, (r.stdout + r.stderr)[-6000:]
