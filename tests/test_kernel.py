"A run in a notebook's kernel: its status is the truth when a cell fails, is stopped, or when papermill is killed"
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from types import SimpleNamespace

import psutil
import pytest
from command_helpers import PARAMS, notebook, wait_for, workspace
from jupyter_client.manager import start_new_kernel

from vitnb.kernel import STOPPING, cell_error, leave_to_parent, watch_cells, watch_parent
from vitnb.runfolder import read_json, run_status

RUN = "from vitnb.experiment.run import Run\nrun = Run('train_demo', globals(), tag, 'auto')"


def test_outside_of_a_kernel_there_is_nothing_to_watch():
    assert not watch_cells(lambda: None, lambda error: None) and not watch_parent(lambda: None)
    error = ValueError("no")
    assert cell_error(SimpleNamespace(error_in_exec=None, error_before_exec=error)) is error


def help_out(ready):
    leave_to_parent()
    ready.set()
    time.sleep(600)


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_a_helper_hears_its_parent_alone(how):
    "However it was started: what others send it passes over, and what its parent sends ends it"
    context = get_context(how)
    ready = context.Event()
    helper = context.Process(target=help_out, args=(ready,), daemon=True)
    helper.start()
    ready.wait()
    tell = f"import os\nfor number in {list(map(int, STOPPING))}: os.kill({helper.pid}, number)"
    assert subprocess.run([sys.executable, "-c", tell]).returncode == 0
    assert helper.is_alive()
    helper.terminate()
    helper.join(120)
    assert helper.exitcode == 0


def runs(workspace): return sorted((workspace/"out"/"train_demo").glob("*/status.json"))


def test_cells_in_a_kernel(workspace):
    "As a person does: a cell fails, the next one goes on, one is interrupted, the Run cell is run again, the kernel is shut down"
    manager,client = start_new_kernel(kernel_name="python3", cwd=str(workspace))
    def run(source):
        "Output and error of a cell"
        said = []
        def hear(message):
            content = message["content"]
            said.append(content.get("text", "") or content.get("data", {}).get("text/plain", "") or content.get("ename", ""))
        reply = client.execute_interactive(source, timeout=200, output_hook=hear, stop_on_error=False)
        assert reply["content"]["status"] != "aborted", f"the kernel did not run: {source}"
        return "".join(said)
    try:
        run(PARAMS)
        assert "a new run" in run(RUN + "\nrun")
        (status,) = runs(workspace)
        folder = status.parent
        assert run_status(folder)["status"] == "running"
        run("1/0")
        assert run_status(folder)["status"] == "failed" and "ZeroDivisionError" in run_status(folder)["error"]
        run("limit, names, r = 8, ['a'], {}")
        assert run_status(folder)["status"] == "running" and "error" not in run_status(folder)
        # After an error a kernel throws away what it is sent in the next instant: a person is slower, this test is not
        mark = client.execute("import time\ntime.sleep(100)", stop_on_error=False)
        time.sleep(1)
        manager.interrupt_kernel()
        client.get_shell_msg(timeout=60)
        wait_for(lambda: run_status(folder)["status"] == "interrupted", f"{mark} was interrupted")
        again = run(RUN + "\nrun")
        assert "the run goes on" in again and len(runs(workspace)) == 1, f"what later cells have set is no parameter: {again!r}"
        assert set(read_json(folder/"params.json")) == {"epochs", "lr", "tag", "clip", "mild"}
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    wait_for(lambda: read_json(folder/"status.json")["status"] == "interrupted", "the kernel was shut down")


def test_papermill_is_killed(workspace):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, RUN, "import time\ntime.sleep(300)")
    p = subprocess.Popen([sys.executable, "-m", "papermill", str(nb), str(workspace/"o.ipynb")], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (status,) = wait_for(lambda: runs(workspace) and [s for s in runs(workspace) if read_json(s).get("status") == "running"], "the notebook did not come to its Run cell")
    pid = read_json(status)["pid"]
    p.send_signal(signal.SIGKILL)
    p.wait()
    # ipykernel ends a kernel without a parent at its next look, once a second: mostly after the kernel has said so itself
    wait_for(lambda: run_status(status.parent)["status"] in ("interrupted", "killed"), "its status stayed as it was")
    assert "has ended" in run_status(status.parent)["error"]
    wait_for(lambda: not is_living(pid), "the kernel lives")


def is_living(pid): return psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"


ORPHAN = """
import os, sys, time
import vitnb.kernel
vitnb.kernel.in_kernel = lambda: True
if os.fork():
    while not os.path.exists(sys.argv[1]): time.sleep(.01)
    os._exit(0)
os.environ["JPY_PARENT_PID"] = str(os.getppid())
assert vitnb.kernel.watch_parent(lambda: open(sys.argv[2], "w").write("gone") and os._exit(0), .01)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


def test_a_kernel_hears_that_its_parent_is_gone(tmp_path):
    subprocess.run([sys.executable, "-c", ORPHAN, tmp_path/"watches", tmp_path/"heard"], check=True, timeout=120)
    wait_for((tmp_path/"heard").exists, "the end of the parent was not heard")
