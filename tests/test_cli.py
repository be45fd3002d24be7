"`vitnb run` and `vitnb readme`, as a script meets them: exit codes, files, and no surprise on wrong input"
import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from vitnb.core import repo_root
from vitnb.experiment import cli
from vitnb.experiment.run import read_json

PARAMS = "epochs = 1    # passes\nlr     = 1e-3  # peak\ntag    = ''    # added to the run folder\nclip   = None  # norm\nmild   = True  # or not"


def notebook(path, *cells, tags=("parameters",)):
    "A notebook of a few code cells, the first of them tagged"
    cells = [dict(cell_type="code", id=f"c{i}", execution_count=None, outputs=[], source=s, metadata=dict(tags=list(tags)) if i == 0 and tags else {})
             for i,s in enumerate(cells)]
    meta = dict(kernelspec=dict(name="python3", language="python", display_name="python3"))
    path.write_text(json.dumps(dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=5)))
    return path


def text(nb): return "".join("".join(o.get("text", "")) for c in json.loads(nb.read_text())["cells"] for o in c.get("outputs", []))


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    (tmp_path/"settings.ini").write_text("[vitnb]\noutputs_path = out\ndevice = cpu\n")
    for k in [k for k in os.environ if k.startswith("VITNB_")]: monkeypatch.delenv(k)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_run(workspace, name="train_demo"):
    (d,) = (workspace/"out"/name).iterdir()
    return d


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


def test_failing_notebook(workspace, capfd):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "print('got here')", "raise RuntimeError('no such leaf')", "print('not here')")
    assert cli.main(["run", str(nb)]) == 1
    cap,d = capfd.readouterr(),only_run(workspace)
    assert "no such leaf" in cap.err and "\x1b" not in cap.err and str(d/"train_demo.ipynb") in cap.err and "got here" in cap.out
    assert "got here" in text(d/"train_demo.ipynb") and "not here" not in text(d/"train_demo.ipynb")
    status = read_json(d/"status.json")
    assert status["status"] == "failed" and status["error"] == "RuntimeError: no such leaf"


def test_dying_kernel(workspace, capfd):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert cli.main(["run", str(nb)]) == 1
    assert "died" in capfd.readouterr().err.lower() and read_json(only_run(workspace)/"status.json")["status"] == "failed"


def wait_for(what, why, seconds=200):
    "What `what` gives when it gives something"
    end = time.monotonic() + seconds
    while not (got := what()):
        assert time.monotonic() < end, why
        time.sleep(.1)
    return got


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_interruption(workspace, sig):
    work = "import os, time\nfrom pathlib import Path\nprint('started')\nPath(os.environ['VITNB_RUN_DIR'], 'pid').write_text(str(os.getpid()))\ntime.sleep(300)"
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, work)
    said = workspace/"said.txt"
    with said.open("w") as log:
        cmd = [sys.executable, "-m", "vitnb.experiment.cli", "run", str(nb)]
        p = subprocess.Popen(cmd, stdout=log, stderr=subprocess.PIPE, text=True)
    written = lambda: "".join(f.read_text() for f in workspace.glob("out/*/*/pid"))
    pid = int(wait_for(written, "the notebook did not come to its second cell"))
    wait_for(lambda: "started" in said.read_text(), "what the cell prints did not arrive")
    p.send_signal(sig)
    _,err = p.communicate(timeout=200)
    assert p.returncode == 130, err
    assert "interrupted after" in err and read_json(only_run(workspace)/"status.json")["status"] == "interrupted"
    assert "started" in text(only_run(workspace)/"train_demo.ipynb")
    wait_for(lambda: not psutil.pid_exists(pid), "the kernel outlived the command", 60)


def test_a_pipe_on_stdin_does_not_overwrite_the_source(workspace):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "print('from the file')")
    other = notebook(workspace/"other.ipynb", PARAMS, "print('from the pipe')")
    before = nb.read_bytes()
    r = subprocess.run([sys.executable, "-m", "vitnb.experiment.cli", "run", str(nb)], input=other.read_text(), capture_output=True, text=True, timeout=400)
    assert r.returncode == 0 and "from the file" in r.stdout and nb.read_bytes() == before


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


def test_papermill_runs_this_python(workspace):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "import sys\nprint(sys.prefix)")
    r = subprocess.run([sys.executable, "-m", "papermill", str(nb), "o.ipynb"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400)
    assert r.returncode == 0 and text(workspace/"o.ipynb").strip() == sys.prefix


def index(root, body):
    (root/"nbs").mkdir()
    cells = [dict(cell_type="markdown", id="a", metadata={}, source=body)]
    (root/"nbs"/"index.ipynb").write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))


def test_readme(workspace, capfd):
    index(workspace, "# demo\n![curve](images/c.png) [settings](../settings.ini)\n<!-- experiments -->\n<!-- /experiments -->")
    exp = notebook(workspace/"nbs"/"train_demo.ipynb", PARAMS)
    nb = json.loads(exp.read_text())
    head = ["# train_demo\n> Does a|b learn?", "**Run** `x`  \n**Cost** 9 s  \n**Expect** 0.9"]
    nb["cells"] = [dict(cell_type="markdown", id=f"m{i}", metadata={}, source=s) for i,s in enumerate(head)] + nb["cells"]
    exp.write_text(json.dumps(nb))
    assert cli.main(["readme", "--check"]) == 1 and not (workspace/"README.md").exists()
    assert cli.main(["readme"]) == 0
    md = (workspace/"README.md").read_text()
    assert "](nbs/images/c.png)" in md and "](settings.ini)" in md
    assert "| [train_demo](nbs/train_demo.ipynb) | Does a\\|b learn? | `x` | 9 s | 0.9 |" in md
    assert "[train_demo](train_demo.ipynb)" in (workspace/"nbs"/"index.ipynb").read_text()
    assert cli.main(["readme", "--check"]) == 0
    exp.write_text(exp.read_text().replace("9 s", "8 s")) # a card that changed makes the README stale
    assert cli.main(["readme", "--check"]) == 1


def test_command_is_installed():
    exe = os.path.join(os.path.dirname(sys.executable), "vitnb")
    if not os.path.exists(exe): pytest.skip("vitnb is not installed in this environment, only importable")
    assert subprocess.run([exe, "run", "nowhere.ipynb"], capture_output=True, text=True).returncode == 2
    assert (repo_root(os.path.dirname(__file__))/"settings.ini").is_file()


def test_the_first_signal_is_answered_and_the_second_ends_all():
    before = signal.getsignal(signal.SIGTERM)
    answered = []
    with cli.on_signals(answered.append) as came:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
    assert came == [signal.SIGTERM, signal.SIGINT] and answered == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_passed_over_does_not_count():
    since = []
    def ignored(seconds):
        since.append(seconds)
        return seconds is not None # all but the first
    with cli.on_signals(lambda number: None, ignored) as came:
        for _ in range(3): signal.raise_signal(signal.SIGTERM)
    assert came == [signal.SIGTERM] and since[0] is None and all(s >= 0 for s in since[1:])
