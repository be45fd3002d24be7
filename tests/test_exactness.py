"The proof of exact resume: what it asks of a run, and what it finds"
import os
import subprocess
import sys
from threading import Thread

import psutil
import pytest

from vitnb.exactness import Warm, assert_exact_resume


def test_the_proof_wants_checkpoints(warm):
    with pytest.raises(ValueError, match="wrote no checkpoint"): assert_exact_resume(lambda folder: 1, warm=warm)
    with pytest.raises(RuntimeError, match="(?s)failed before anything was killed.*division"): assert_exact_resume(lambda folder: 1/0, warm=warm)
    with pytest.raises(FileNotFoundError): assert_exact_resume("no_such_script.py", warm=warm)


def test_a_script(warm, tmp_path):
    f = tmp_path/"train.py"
    f.write_text("import sys\nfrom vitnb.testing import tiny_fit\ntiny_fit(sys.argv[1], epochs=2)\n")
    assert assert_exact_resume(f, kills=1, warm=warm)["identical"] == 1


def test_a_proof_ends_while_a_fork_holds_its_pipe():
    "Loader processes are forks: they hold all that was open, so that a closed pipe says nothing"
    warm = Warm()
    reading,writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        os.close(writing)
        os.read(reading, 1) # until the test has seen its end
        os._exit(0)
    closing = Thread(target=warm.close, daemon=True)
    closing.start()
    closing.join(30)
    ended = not closing.is_alive()
    os.close(writing)
    os.waitpid(holder, 0)
    assert ended and warm.process.returncode == 0


LONG = """
import time
from pathlib import Path
from vitnb.exactness import Warm
def wait(folder): time.sleep(600)
Warm().run(wait, Path({!r}))
"""


@pytest.mark.slow # imports torch twice
def test_a_proof_that_is_killed_leaves_no_run_behind(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", LONG.format(str(tmp_path/"run"))], start_new_session=True)
    while len(started := psutil.Process(owner.pid).children(recursive=True)) < 2: assert owner.poll() is None # the warm process, and its fork that runs
    owner.kill()
    owner.wait()
    assert not psutil.wait_procs(started, timeout=30)[1]
