"papermill's engine `vitnb`: what is kept of what cells give, and how a run ends"
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
from command_helpers import notebook, wait_for
from papermill.engines import papermill_engines

from vitnb.experiment import client as room
from vitnb.experiment.engine import Engine, undone_params
from vitnb.experiment.salvage import journal_of

ROOT = Path(__file__).resolve().parents[1]
COMMAND = """
import sys
from papermill.engines import papermill_engines
from vitnb.experiment.engine import Engine
papermill_engines.register("vitnb", Engine) # as the entry point of an installed vitnb does
from papermill.cli import papermill
papermill(["--engine", "vitnb", "--no-progress-bar", *sys.argv[1:]])
"""


@pytest.fixture(autouse=True)
def entered(monkeypatch, tmp_path):
    papermill_engines.register("vitnb", Engine)
    monkeypatch.chdir(tmp_path)


def run(source, output, **params):
    return papermill.execute_notebook(str(source), str(output), params, engine_name="vitnb", progress_bar=False)


def whole(path):
    nb = nbformat.read(path, 4)
    nbformat.validate(nb)
    return nb


def test_the_engine_is_an_entry_point():
    "papermill finds it by name in an installed vitnb"
    lines = (ROOT/"pyproject.toml").read_text().partition('entry-points."papermill.engine"]\n')[2].splitlines()
    name,_,place = lines[0].partition(" = ")
    module,_,attribute = place.strip('"').partition(":")
    assert name == "vitnb" and getattr(import_module(module), attribute) is Engine


def test_no_text_is_made_twice_under_vitnb_run(tmp_path, monkeypatch):
    "papermill writes what the engine gives back; where `vitnb run` holds the folder it is told nothing of a run that went well"
    texts = []
    writes = nbformat.writes
    monkeypatch.setattr(nbformat, "writes", lambda nb, *args, **kwargs: texts.append(len(nb.cells)) or writes(nb, *args, **kwargs))
    source = notebook(tmp_path/"a.ipynb", "print('x'*1000)", tags=())
    options = dict(engine_name="vitnb", progress_bar=False)
    assert len(papermill.execute_notebook(str(source), "own.ipynb", **options).cells) == 1 and texts == [1]
    assert papermill.execute_notebook(str(source), "held.ipynb", run_dir=tmp_path, **options).cells == [] and texts == [1, 0]
    assert whole("held.ipynb").cells[0].outputs == whole("own.ipynb").cells[0].outputs


MANY = """
import sys, time
from IPython.display import clear_output, display
for i in range(20000): print("line", i)
for i in range(300): print(f"bar {i}", end="\\r", file=sys.stderr)
print("bar full", file=sys.stderr)
"""
FRAMES = """
from IPython.display import HTML
handle = display(HTML("frame 0"), display_id=True)
print("between")
for i in range(1, 30): handle.update(HTML(f"frame {i}"))
for i in range(10):
    clear_output(wait=True) if i == 5 else None
    print("cleared" if i < 5 else "kept", i)
"""
FLOOD = "for i in range(2500): display(dict([('text/plain', f'{i} ' + 'x'*2000)]), raw=True)" # more than a socket's queue takes by itself
PICTURE = "from IPython.display import Image\nimport os\nImage(os.urandom(400_000), format='png')"
EXIT = "import sys\nprint('before the end')\nsys.exit(0)"


def test_what_is_kept_of_what_cells_give(tmp_path, monkeypatch):
    "Lines, bars, frames, a picture, an end in order: one kernel, and nothing left behind"
    source = notebook(tmp_path/"in.ipynb", "n = 1", MANY, FRAMES, PICTURE, FLOOD, "handle.update(HTML('changed from below'))", EXIT, "1/0")
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(room, "_LONGEST", 20) # for the last output of a cell: else the test would wait for a day
    run(source, tmp_path/"out.ipynb", n=2)
    cells = whole(tmp_path/"out.ipynb").cells
    many,frames,picture = cells[2].outputs,cells[3].outputs,cells[4].outputs
    assert {o.name:o.text for o in many} == dict(stdout="".join(f"line {i}\n" for i in range(20000)), stderr="bar full\n")
    assert [o.get("text") for o in frames] == ["".join(f"kept {i}\n" for i in range(5, 10))]
    link = picture[0].data["text/markdown"]
    assert "image/png" not in picture[0].data and (tmp_path/link[link.index("(")+1:-1]).stat().st_size == 400_000
    assert [o.data["text/plain"].split()[0] for o in cells[5].outputs] == [str(i) for i in range(2500)], "no output is lost under load"
    assert [c.metadata.papermill.status for c in cells[-2:]] == ["completed", "skipped"] and cells[-2].outputs[0].text == "before the end\n"
    assert not journal_of(tmp_path/"out.ipynb").exists() and len(os.listdir("/proc/self/fd")) <= before + 3
    assert {p.name for p in tmp_path.iterdir()} == {"in.ipynb", "out.ipynb", "out_files"}


def test_a_display_keeps_its_last_frame_and_a_dying_kernel_all_that_was(tmp_path):
    body = "from IPython.display import HTML, display\nhandle = display(HTML('frame 0'), display_id=True)\nfor i in range(1, 5): handle.update(HTML(f'frame {i}'))"
    source = notebook(tmp_path/"in.ipynb", "n = 1", body, "print('kept')", "handle.update(HTML('last'))\nimport os, time\nprint('last words', flush=True)\ntime.sleep(1)\nos.kill(os.getpid(), 9)", "2")
    with pytest.raises(Exception, match="[Kk]ernel died"): run(source, tmp_path/"out.ipynb")
    cells = whole(tmp_path/"out.ipynb").cells
    assert cells[1].outputs[0].data["text/html"] == "last" and cells[2].outputs[0].text == "kept\n" and cells[3].outputs[0].text == "last words\n"
    assert [c.metadata.papermill.status for c in cells] == ["completed"]*3 + ["failed", "pending"], "the cell in which it died has not completed"
    assert len(cells) == 5 and not journal_of(tmp_path/"out.ipynb").exists()


SLOW = """
import os, time
print("started", os.getpid(), flush=True)
try: time.sleep(300)
except KeyboardInterrupt: print("saved", flush=True)
raise KeyboardInterrupt
"""


def start(source, output):
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(source), str(output)], stderr=subprocess.PIPE, text=True)
    def printed():
        cells = json.loads(output.read_text())["cells"] if output.exists() else []
        return "".join("".join(o["text"]) for c in cells for o in c["outputs"] if "started" in "".join(o["text"]))
    return process, int(wait_for(printed, "the view shows what the cell printed", 100).split()[1])


def test_a_signal_reaches_the_kernel_first(tmp_path):
    source = notebook(tmp_path/"in.ipynb", "n = 1", SLOW, "1/0")
    process,kernel = start(source, tmp_path/"out.ipynb")
    process.send_signal(signal.SIGTERM)
    _,said = process.communicate(timeout=100)
    assert process.returncode == 143, said
    cells = whole(tmp_path/"out.ipynb").cells
    assert "saved" in str([o.get("text") for c in cells for o in c.get("outputs", [])]) and not psutil.pid_exists(kernel)


def test_killed_the_notebook_is_whole_and_the_kernel_ends(tmp_path):
    "Also where orphans come to a process that is not init"
    source = notebook(tmp_path/"in.ipynb", "n = 1", "print('finished')", SLOW)
    process,kernel = start(source, tmp_path/"out.ipynb")
    command = psutil.Process(kernel).cmdline()
    assert json.loads(Path(command[command.index("-f") + 1]).read_text())["transport"] == "ipc", "nobody else can listen"
    process.kill()
    process.wait()
    end = time.monotonic() + 6
    wait_for(lambda: not journal_of(tmp_path/"out.ipynb").exists(), "completed", 6)
    assert "finished" in str(whole(tmp_path/"out.ipynb").cells[1].outputs)
    wait_for(lambda: not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == "zombie", "the kernel outlived its parent", max(1, end - time.monotonic()))


@pytest.mark.parametrize("given,message", [(dict(nn=1), "did you mean 'n'"), (dict(n="x"), "n='x' is a str")])
def test_parameters_are_checked_before_a_kernel_starts(tmp_path, given, message):
    source = notebook(tmp_path/"in.ipynb", "n = 1", "1/0")
    with pytest.raises(ValueError, match=message): run(source, tmp_path/"out.ipynb", **given)
    assert not (tmp_path/"out.ipynb").exists()


def cell(source, *tags): return dict(cell_type="code", source=source, metadata=dict(tags=list(tags)))


@pytest.mark.parametrize("body,given,said", [
    (["a = 1\nb = a*2"], dict(a=10), ["b is computed from the default of a"]), (["a = 1\nb = a*2"], dict(b=10), []),
    (["a = 1", "a = 2"], dict(a=10), ["cell 2 assigns a again"]), (["a = 1", "if a: a = 2"], dict(a=10), []), (["a = 1", "%ls -a = ("], dict(a=10), [])])
def test_parameters_that_have_no_effect_are_said(body, given, said):
    nb = dict(cells=[cell(body[0], "parameters"), *map(cell, body[1:])])
    lines = undone_params(nb, given)
    assert len(lines) == len(said) and all(a in b for a,b in zip(said, lines))
