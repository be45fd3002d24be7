"What is generated equals what generates it: clean notebooks, exported modules, the README"
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vitnb.experiment.cli import render_readme

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("nbs", "vitnb", "pyproject.toml", "settings.ini", "README.md", "LICENSE")


@pytest.fixture
def copy(tmp_path):
    "The sources in a folder of their own, so that nothing here can change the checkout"
    for name in COPIED:
        if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        elif (ROOT/name).exists(): shutil.copy(ROOT/name, tmp_path/name)
    return tmp_path


def nbdev(tool, cwd):
    "Run nbdev's `tool` in `cwd`"
    exe = Path(sys.executable).parent/tool
    r = subprocess.run([str(exe)], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(cwd)}, timeout=300)
    assert r.returncode == 0, r.stdout + r.stderr


def contents(folder, pattern): return {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in sorted(folder.rglob(pattern))}


def differing(a, b): return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def test_notebooks_are_clean(copy):
    before = contents(copy/"nbs", "*.ipynb")
    nbdev("nbdev-clean", copy)
    assert not differing(before, contents(copy/"nbs", "*.ipynb")), "run: nbdev-clean"


def test_library_is_the_export_of_the_notebooks(copy):
    "Also that no module is left over from a notebook that is gone"
    before = contents(copy/"vitnb", "*.py")
    for p in (copy/"vitnb").rglob("*.py"):
        if p.name not in ("__init__.py", "all.py"): p.unlink()
    nbdev("nbdev-export", copy)
    assert not differing(before, contents(copy/"vitnb", "*.py")), "run: nbdev-export"


def test_readme_is_the_index_notebook():
    stale = [p.name for p,text in render_readme(ROOT).items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    assert not stale, "run: vitnb readme"
