"Running a notebook: failures, signals and what is left behind"
import signal
import subprocess
import sys
import time

import psutil
import pytest
from command_helpers import PARAMS, notebook, only_run, text, workspace

from vitnb import kernel
from vitnb.experiment import cli
from vitnb.kernel import STOPPING
from vitnb.runfolder import hold, read_json, release


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


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption(workspace, sig, heard):
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
    assert p.returncode == 128 + sig, err
    assert "interrupted after" in err and read_json(only_run(workspace)/"status.json")["status"] == "interrupted"
    assert "started" in text(only_run(workspace)/"train_demo.ipynb")
    wait_for(lambda: not psutil.pid_exists(pid), "the kernel outlived the command", 60)


def test_a_pipe_on_stdin_does_not_overwrite_the_source(workspace):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "print('from the file')")
    other = notebook(workspace/"other.ipynb", PARAMS, "print('from the pipe')")
    before = nb.read_bytes()
    r = subprocess.run([sys.executable, "-m", "vitnb.experiment.cli", "run", str(nb)], input=other.read_text(), capture_output=True, text=True, timeout=400)
    assert r.returncode == 0 and "from the file" in r.stdout and nb.read_bytes() == before


def test_papermill_runs_this_python(workspace):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "import sys\nprint(sys.prefix)")
    r = subprocess.run([sys.executable, "-m", "papermill", str(nb), "o.ipynb"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400)
    assert r.returncode == 0 and text(workspace/"o.ipynb").strip() == sys.prefix


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_is_answered_and_the_second_ends_all(number, monkeypatch, heard):
    before = signal.getsignal(number)
    answered = []
    with cli.on_signals(answered.append) as came:
        for _ in range(3): signal.raise_signal(number) # as a queue, and whoever it has told
        monkeypatch.setattr(kernel, "AT_ONCE", 0.)
        with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
    assert came == [number, signal.SIGINT] and answered == [number] and signal.getsignal(number) is before


def test_a_signal_that_is_passed_over_does_not_count():
    since = []
    def ignored(seconds):
        since.append(seconds)
        return seconds is not None # all but the first
    with cli.on_signals(lambda number: None, ignored) as came:
        for _ in range(3): signal.raise_signal(signal.SIGTERM)
    assert came == [signal.SIGTERM] and since[0] is None and all(s >= 0 for s in since[1:])


RUN = "from vitnb.experiment.run import Run\nrun = Run('train_demo', globals(), tag, resume)"
INNER = """
import subprocess, sys
inner = "from vitnb.experiment.run import Run; print(Run('train_inner', {}).dir)"
said = subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True)
(run.dir/"inner").write_text(said.stdout + said.stderr)
"""
WAIT = "import time\nfrom pathlib import Path\nwhile not Path('go').exists(): time.sleep(.05)"


def test_two_launches_of_one_folder(workspace, capfd):
    "The second is refused and leaves nothing; a run in a cell has a folder of its own; killed, the folder is free when its kernel is gone"
    nb = notebook(workspace/"train_demo.ipynb", PARAMS + "\nresume = 'never' # or a folder", RUN, INNER, WAIT)
    first = subprocess.Popen([sys.executable, "-m", "vitnb.experiment.cli", "run", str(nb)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    said = lambda: "".join(f.read_text() for f in workspace.glob("out/train_demo/*/inner"))
    assert "out/train_inner/" in wait_for(said, "the notebook did not come to its third cell")
    d = only_run(workspace)
    def files(): return {p.name:p.read_bytes() for p in d.iterdir() if p.is_file() and ".ipynb" not in p.name} # that grows
    before = files()
    capfd.readouterr()
    assert cli.main(["run", str(nb), "-p", "resume", str(d)]) == 2
    assert f"in use by process {first.pid}" in capfd.readouterr().err
    assert files() == before and read_json(d/"status.json")["status"] == "running"
    pid = read_json(d/"status.json")["pid"]
    first.kill()
    first.wait()
    assert hold(d) and not (psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"), "the folder was free while its kernel lived"
    release(d)
    assert read_json(d/"status.json")["status"] == "interrupted"
    (workspace/"go").touch()
    assert cli.main(["run", str(nb), "-p", "resume", str(d)]) == 0
    assert "the run goes on" not in capfd.readouterr().err and read_json(d/"status.json")["status"] == "finished"
