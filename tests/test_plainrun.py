"A notebook without a line of vitnb leaves what a run leaves, and goes on where it stopped"
import json
import subprocess

import pytest
from command_helpers import notebook, only_run, text, workspace

from vitnb.experiment import cli
from vitnb.experiment.plainrun import is_plain, loose_params, whole_value
from vitnb.experiment.salvage import journal_of
from vitnb.runfolder import read_json

PLAIN = ["import os\nsteps = 3\ndouble = steps*2", "open('made.txt', 'w').write('x'*steps)\nprint('working')", "print(open('made.txt').read())\nassert os.path.exists('go'), 'not yet'"]


def test_a_plain_notebook_leaves_a_run_and_resumes(workspace, capfd):
    "The second cell is skipped, its output kept; the notebook of the failure stays"
    git = lambda *args: subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *args], cwd=workspace, check=True, capture_output=True)
    (workspace/"helper.py").write_text("a = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    (workspace/"helper.py").write_text("a = 2\n")
    path = notebook(workspace/"plain.ipynb", *PLAIN)
    nb = json.loads(path.read_text())
    nb["cells"][1]["metadata"]["tags"] = ["products:made.txt"]
    path.write_text(json.dumps(nb))
    assert cli.main(["run", str(path), "-p", "steps", "5"]) == 1
    said = capfd.readouterr()
    run = only_run(workspace, "plain")
    assert "double is computed from the default of steps" in said.err
    assert read_json(run/"params.json") == dict(steps=5) and "+a = 2" in (run/"code.diff").read_text()
    env,status = read_json(run/"environment.json"),read_json(run/"status.json")
    assert env["dirty"] is True and env["folder"] == str(workspace) and status["status"] == "failed" and status["seconds"] >= 0
    assert not (run/"result.json").exists()
    (workspace/"go").touch()
    assert cli.main(["run", str(path), "-p", "steps", "5", "--resume"]) == 0
    said = capfd.readouterr().out
    assert "is skipped: made.txt" in said and "working" not in said and "is unfinished" not in said
    assert only_run(workspace, "plain") == run and read_json(run/"status.json")["status"] == "finished"
    assert read_json(run/"result.json").keys() == {"seconds"} and "working" in text(run/"plain.ipynb") and "xxxxx" in text(run/"plain.ipynb")
    assert "working" in text(run/"attempts"/"plain-1.ipynb") and not journal_of(run/"plain.ipynb").exists()


def test_resume_is_given_once_and_says_where_nothing_is_unfinished(workspace, capfd):
    path = notebook(workspace/"train_demo.ipynb", "resume = 'auto'", "1/0")
    assert cli.main(["run", str(path), "--resume"]) == 1 and "is unfinished, so this is a new one" in capfd.readouterr().out
    assert cli.main(["run", str(path), "--resume", "-p", "resume", "never"]) == 2 and "give one of them" in capfd.readouterr().err


@pytest.mark.parametrize("source,found", [
    ("a = 1\nb = a", dict(a=1)), ("import os\na: int = 2\nc, d = 1, 2", dict(a=2)), ("%matplotlib inline\na = b = [1]", dict(a=[1], b=[1])), ("def f(): pass", {})])
def test_parameters_of_a_notebook_without_rules(source, found): assert loose_params(source) == found


def test_a_parameters_cell_that_is_no_python():
    with pytest.raises(ValueError, match="line 2 of the parameters"): loose_params("a = 1\nb = (")


def test_what_is_plain():
    cell = lambda kind, source: dict(cell_type=kind, source=source)
    assert is_plain(dict(cells=[cell("code", "import torch"), cell("markdown", "about vitnb")])) and not is_plain(dict(cells=[cell("code", "from vitnb.all import *")]))


@pytest.mark.parametrize("typed,meant", [
    ("./a.mat", "{here}/a.mat"), ("./a.mat:gt", "{here}/a.mat:gt"), ("a.mat", "a.mat"), ("./both.mat", "./both.mat"), ("./none.mat:gt", "./none.mat:gt"), ("[1, 2", "[1, 2"), ("x/(?P<label>a)", "x/(?P<label>a)"),
    ('["./a.mat", "both.mat"]', "['{here}/a.mat', 'both.mat']"), ('["./a.mat", {"truth": "./a.mat:gt"}]', "['{here}/a.mat', {{'truth': '{here}/a.mat:gt'}}]"), ('["./none.mat", 5]', '["./none.mat", 5]')])
def test_a_path_that_was_typed_here_means_the_same_elsewhere_however_deep_it_stands(tmp_path, monkeypatch, typed, meant):
    here,there = tmp_path/"here",tmp_path/"there"
    for folder in (here, there): folder.mkdir()
    for file in (here/"a.mat", here/"both.mat", there/"both.mat"): file.touch()
    monkeypatch.chdir(here)
    assert whole_value(typed, there) == meant.format(here=here)
