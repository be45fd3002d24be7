"`vitnb run` and `vitnb readme`, as a script meets them: exit codes, files, and no surprise on wrong input"
import os
import re
import subprocess
import sys

import pytest
from command_helpers import PARAMS, notebook, only_run, text, workspace

from vitnb.core import repo_root
from vitnb.experiment import cli
from vitnb.experiment.run import read_json


def test_a_run(workspace, capfd):
    show = "import json, os, sys\nprint('epoch', epochs, lr, repr(tag), clip, mild)\nprint('stdin', repr(sys.stdin.read()))\nprint(os.environ['VITNB_HEADLESS'])"
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, show, "from pathlib import Path\nprint(Path.cwd().name)\nPath(os.environ['VITNB_RUN_DIR'], 'result.json').write_text('{\"acc\": 0.5}')")
    before = nb.read_bytes()
    assert cli.main(["run", str(nb), "-p", "epochs", "3", "-p", "lr", "1", "-p", "clip", "0.5", "-p", "mild", "false", "--tag", "5"]) == 0
    out,d = capfd.readouterr().out,only_run(workspace)
    assert "epoch 3 1.0 '5' 0.5 False" in out and "stdin ''" in out and "acc = 0.5" in out and str(d) in out
    assert re.fullmatch(r"\d{8}-\d{6}-5", d.name)
    assert "epoch 3" in text(d/"train_demo.ipynb") and workspace.name in text(d/"train_demo.ipynb")
    assert read_json(d/"status.json")["status"] == "finished" and read_json(d/"status.json")["notebook"] == "train_demo.ipynb"
    assert nb.read_bytes() == before
    assert not [k for k in os.environ if k.startswith("VITNB_")]


def test_output_option(workspace, capfd):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "print(1)")
    assert cli.main(["run", str(nb), "--output", str(workspace/"new"/"{a}.ipynb")]) == 0
    assert "1" in text(workspace/"new"/"{a}.ipynb") and not list(only_run(workspace).glob("*.ipynb"))


@pytest.mark.parametrize("args,message", [
    (["-p", "epoch", "3"], "did you mean 'epochs'"), (["-p", "epochs", "3.5"], "epochs=3.5 is a float"),
    (["-p", "epochs", "many"], "epochs='many' is a str"), (["-p", "lr", "high"], "lr='high'"), (["-p", "mild", "1"], "mild=1 is a int"),
    (["-p", "epochs", "1", "-p", "epochs", "2"], "more than once"), (["--tag", "a/b"], "folder name"), (["-p", "tag", "a", "--tag", "b"], "more than once")])
def test_wrong_parameters_run_nothing(workspace, capfd, args, message):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "1/0")
    assert cli.main(["run", str(nb), *args]) == 2
    assert message in capfd.readouterr().err
    assert not list((workspace/"out").glob("*/*"))


@pytest.mark.parametrize("name,content,message", [
    ("train_dem.ipynb", None, "did you mean 'train_demo.ipynb'"), ("train.py", "1", "ends in .ipynb"), ("half.ipynb", '{"cells": [', "not JSON")])
def test_wrong_notebooks(workspace, capfd, name, content, message):
    notebook(workspace/"train_demo.ipynb", PARAMS)
    if content: (workspace/name).write_text(content)
    assert cli.main(["run", str(workspace/name)]) == 2
    assert message in capfd.readouterr().err


def test_notebook_without_parameters(workspace, capfd):
    nb = notebook(workspace/"train_demo.ipynb", "x = 1", "print('x', x)", tags=())
    assert cli.main(["run", str(nb), "-p", "x", "2"]) == 2
    assert "takes no parameters" in capfd.readouterr().err
    assert cli.main(["run", str(nb)]) == 0


def test_wrong_call_is_exit_2(capfd):
    for args in ([], ["walk"], ["run"], ["run", "a.ipynb", "-p", "x"]):
        with pytest.raises(SystemExit) as e: cli.main(args)
        assert e.value.code == 2


def test_run_cell_stops_plain_papermill(workspace):
    src = "import vitnb.core\nfrom vitnb.experiment.run import Run\nrun = Run('train_demo', globals(), tag)"
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, src)
    call = lambda *a: subprocess.run([sys.executable, "-m", "papermill", str(nb), str(workspace/"o.ipynb"), *a], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400)
    bad = call("-p", "epoch", "3")
    assert bad.returncode != 0 and "did you mean 'epochs'" in bad.stderr and not list((workspace/"out").glob("*/*"))
    good = call("-p", "epochs", "3", "-p", "tag", "w4")
    assert good.returncode == 0, good.stderr
    d = only_run(workspace)
    assert d.name.endswith("-w4") and read_json(d/"params.json") == dict(epochs=3, lr=1e-3, tag="w4", clip=None, mild=True)


def test_command_is_installed():
    exe = os.path.join(os.path.dirname(sys.executable), "vitnb")
    if not os.path.exists(exe): pytest.skip("vitnb is not installed in this environment, only importable")
    assert subprocess.run([exe, "run", "nowhere.ipynb"], capture_output=True, text=True).returncode == 2
    assert (repo_root(os.path.dirname(__file__))/"settings.ini").is_file()
