"How a kernel is reached: private sockets, and signals"
import json
import os
import signal
import stat
import subprocess
import sys

import pytest
from command_helpers import notebook

from vitnb.experiment.channels import kernel_channels, pass_on


def test_sockets_lie_in_a_folder_of_this_user():
    with kernel_channels() as first, kernel_channels() as second:
        folders = [os.path.dirname(options.KernelManager["connection_file"]) for options in (first, second)]
        assert folders[0] != folders[1] and all(stat.S_IMODE(os.stat(folder).st_mode) == 0o700 for folder in folders)
        assert first.KernelManager["transport"] == "ipc"
    assert not any(map(os.path.exists, folders))


def test_a_long_temporary_folder_is_no_error(tmp_path, monkeypatch):
    deep = tmp_path/("d"*100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with kernel_channels() as options: assert "transport" not in options.KernelManager


CHILD = """
import signal, sys, time
def answer(number, frame):
    print(number, flush=True)
    sys.exit(0)
for name in sys.argv[1:]: signal.signal(getattr(signal, name), answer)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("caught,comes", [(["SIGTERM", "SIGINT"], signal.SIGTERM), (["SIGINT"], signal.SIGINT)])
def test_a_signal_nobody_catches_comes_as_an_interrupt(caught, comes):
    child = subprocess.Popen([sys.executable, "-c", CHILD, *caught], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    pass_on(child.pid, signal.SIGTERM)
    assert child.communicate(timeout=120)[0] == f"{int(comes)}\n"
    pass_on(child.pid, signal.SIGTERM) # it has ended


def test_no_port_is_opened_and_forks_are_heard(tmp_path):
    "A8: the kernel and all that it starts listen nowhere on the network; what a forked process prints still comes"
    body = """import multiprocessing, os, sys, psutil
def say(): print("from the fork", flush=True)
child = multiprocessing.get_context("fork").Process(target=say)
child.start()
child.join()
me = psutil.Process()
print("ports", [c.laddr.port for process in (me, *me.children(recursive=True)) for c in process.net_connections("inet") if c.status == "LISTEN"])
print(os.getcwd())"""
    (tmp_path/"sub").mkdir()
    source = notebook(tmp_path/"sub/nb.ipynb", "n = 1", body)
    printed = []
    for place in (tmp_path, tmp_path/"sub"): # A6: and wherever it is called from, it works in the same folder
        run = [sys.executable, "-m", "vitnb.experiment.cli", "run", os.path.relpath(source, place)]
        done = subprocess.run(run, cwd=place, env={**os.environ, "VITNB_OUTPUTS_PATH":str(tmp_path/"out")}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.partition("\n")[2].partition("finished in")[0])
    assert printed[0] == printed[1] and "ports []" in printed[0] and "from the fork" in printed[0] and str(tmp_path/"sub") in printed[0]
    for status in (tmp_path/"out/nb").glob("*/status.json"): assert json.loads(status.read_text())["folder"] == str(tmp_path/"sub")


LINES = """import os, signal
from IPython import get_ipython
events = get_ipython().events
def late(result):
    events.unregister("post_run_cell", late)
    os.kill(os.getpid(), signal.SIGINT)
events.register("post_run_cell", late)
print("first")"""


def test_an_interrupt_between_two_cells_is_not_lost(tmp_path):
    "Where a kernel by itself goes on, or never answers"
    source = notebook(tmp_path/"nb.ipynb", "n = 1", LINES, "print('second')", "print('third')")
    done = subprocess.run([sys.executable, "-m", "vitnb.experiment.cli", "run", str(source)], cwd=tmp_path, timeout=120,
                          env={**os.environ, "VITNB_OUTPUTS_PATH":str(tmp_path/"out")}, capture_output=True, text=True)
    (status,) = (tmp_path/"out/nb").glob("*/status.json")
    assert "first" in done.stdout and "second" not in done.stdout, done.stderr
    assert done.returncode and json.loads(status.read_text())["status"] == "interrupted"
    (shown,) = [output for cell in json.loads((status.parent/"nb.ipynb").read_text())["cells"] for output in cell.get("outputs", []) if output["output_type"] == "error"]
    assert shown["ename"] == "KeyboardInterrupt" and len(shown["traceback"]) == 1 and "this cell did not begin" in shown["traceback"][0], "one sentence"
