"After a failure: the notebook of a killed run, and the state before the failing cell, from a copy"
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_helpers import notebook, only_run, wait_for, workspace
from jupyter_client.manager import start_new_kernel
from test_salvage import notebook as bare, run as write

from vitnb.experiment import cli
from vitnb.experiment.journal import Journal
from vitnb.experiment.reopen import copy_run, failed_cell, run_cells
from vitnb.experiment.run import Run
from vitnb.runfolder import read_json


def files(folder): return {str(p.relative_to(folder)):(p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture
def failed(workspace, capfd):
    "A run whose second cell makes a state, and whose third fails"
    nb = notebook(workspace/"train_demo.ipynb", "n = 1\ntag = ''", "state = n + 41", "raise ValueError('no such leaf')", "print('never')")
    assert cli.main(["run", str(nb), "-p", "n", "2"]) == 1
    return only_run(workspace)


def test_the_state_before_the_failure_and_the_record_untouched(failed, capfd):
    before = files(failed)
    path,above = copy_run(failed)
    assert path.parent.parent.name == "reopened" and len(above) == 3 and "raise" not in "".join(above)
    assert not [c for c in json.loads(path.read_text())["cells"] if "papermill-error-cell-tag" in c["metadata"].get("tags", [])]
    manager,client = start_new_kernel()
    try:
        run_cells(client, above)
        assert client.execute_interactive("assert state == 43")["content"]["status"] == "ok"
        with pytest.raises(ValueError, match="cell 1 above the failed one fails now: ZeroDivisionError"): run_cells(client, ["1/0"])
    finally: manager.shutdown_kernel(now=True)
    assert files(failed) == before


def readable(path):
    "The content of a file, unless its process has ended"
    try: return path.read_bytes()
    except OSError: return b""


@pytest.mark.slow
def test_the_whole_command(failed, capfd):
    "JupyterLab has a kernel with the state; Ctrl-C ends both; run with -m slow"
    before = files(failed)
    process = subprocess.Popen([sys.executable, "-m", "vitnb.experiment.cli", "reopen", str(failed)], stdout=subprocess.PIPE, text=True)
    lines = []
    wait_for(lambda: lines.append(process.stdout.readline()) or lines[-1].startswith("open: "), "it did not come up", 100)
    assert re.match(r"open: http://127\.0\.0\.1:\d+/lab/tree/train_demo.ipynb\?token=", lines[-1])
    token = lines[-1].split("token=")[1].strip().encode()
    assert len(token) == 32 and not [p for p in Path("/proc").glob("[0-9]*/cmdline") if token in readable(p)], "all users see a command line"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 0 and files(failed) == before


@pytest.mark.parametrize("cells,at", [
    ([("ok", [])], 1), ([("completed", []), ("failed", []), ("pending", [])], 1), ([("completed", [dict(output_type="error")])], 0), ([("completed", []), ("running", [])], 1)])
def test_which_cell_has_failed(cells, at):
    nb = dict(cells=[dict(cell_type="code", metadata=dict(papermill=dict(status=status)), outputs=outputs) for status,outputs in cells])
    assert failed_cell(nb) == at


def test_recover(workspace, capfd):
    "By folder and by name; a second time there is nothing to do; a wrong place is said"
    for name in ("a", "b"):
        nb = bare(2)
        journal = Journal(workspace/f"{name}.ipynb", nb)
        write(journal, nb, 2)
        os.close(journal.descriptor)
    assert cli.main(["recover", "a.ipynb"]) == 0 and "completed a.ipynb" in capfd.readouterr().out
    assert cli.main(["recover", "."]) == 0 and capfd.readouterr().out == "completed b.ipynb\n"
    assert cli.main(["recover", "."]) == 0 and "nothing" in capfd.readouterr().out
    assert cli.main(["recover", "nowhere"]) == 2 and "nowhere is not there" in capfd.readouterr().err


def test_a_folder_that_is_no_run(workspace, capfd): assert cli.main(["reopen", "."]) == 2 and "has no executed notebook" in capfd.readouterr().err


def test_a_run_that_is_opened_in_the_copy_writes_there(failed, monkeypatch):
    path,_ = copy_run(failed)
    before = files(failed)
    monkeypatch.setenv("VITNB_RUN_DIR", str(path.parent))
    monkeypatch.setenv("VITNB_RUN_FOR", str(os.getpid()))
    run = Run("train_demo", dict(n=2, tag=""), resume="auto")
    run.save("note", [1])
    assert run.dir == path.parent and files(failed) == before and read_json(path.parent/"note.json", list) == [1]
