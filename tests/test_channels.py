"How a kernel is reached: private sockets, and signals"
import os
import signal
import stat
import subprocess
import sys

import pytest

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
