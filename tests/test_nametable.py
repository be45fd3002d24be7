"The file of names is what the rooms register: a loss that is added there is known everywhere"
import argparse
import subprocess
import sys
from pathlib import Path

import vitnb.experiment.nametable as nametable

ROOT = Path(__file__).resolve().parents[1]


def vitnb(*args, **kw): return subprocess.run([sys.executable, "-m", "vitnb.experiment.cli", *args], capture_output=True, text=True, **kw)


def test_the_file_is_up_to_date():
    done = vitnb("names", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_carries_the_file():
    assert 'vitnb = ["names.json"]' in (ROOT/"pyproject.toml").read_text()


def test_what_a_room_registers_comes_into_the_file_with_its_options(new_loss, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nametable, "NAMES_FILE", tmp_path/"names.json")
    (tmp_path/"names.json").write_text("{}")
    assert nametable.cmd_names(argparse.Namespace(check=True)) == 1 and "run: vitnb names" in capsys.readouterr().err
    assert (tmp_path/"names.json").read_text() == "{}"
    assert nametable.cmd_names(argparse.Namespace(check=False)) == 0
    assert nametable.cmd_names(argparse.Namespace(check=True)) == 0
