"Exit codes and words for the end of a run"
import signal
from types import SimpleNamespace

import pytest
from command_helpers import notebook, only_run, text, workspace

import vitnb.files
from vitnb.experiment import cli
from vitnb.experiment.endings import outcome_of, tell
from vitnb.runfolder import read_json


def error(name, value=""): return SimpleNamespace(ename=name, evalue=value)


@pytest.mark.parametrize("what,signals,end", [
    (error("ValueError"), [], (1, "failed")), (error("SystemExit", "3"), [], (3, "failed")), (error("SystemExit", "no disk"), [], (1, "failed")),
    (error("SystemExit", "256"), [], (1, "failed")), (error("TrainingStopped", "time (exit code 75)"), [], (75, "stopped")),
    (error("KeyboardInterrupt"), [signal.SIGTERM], (143, "interrupted")), (error("KeyboardInterrupt"), [signal.SIGUSR1], (75, "interrupted")), (error("ValueError"), [signal.SIGINT], (130, "ended by a signal"))])
def test_every_end_has_its_code(what, signals, end): assert outcome_of(what, signals) == end


@pytest.mark.parametrize("name,where,in_one_line", [
    ("ValueError", vitnb.files.__file__, True), ("BrokenFile", vitnb.files.__file__, True), ("UnreadableImage", vitnb.files.__file__, True), ("FileNotFoundError", vitnb.files.__file__, True),
    ("ImportError", vitnb.files.__file__, True), ("KeyError", vitnb.files.__file__, False), ("ValueError", "/elsewhere/mine.py", False), ("ValueError", None, False)])
def test_what_vitnb_refuses_is_told_in_one_line(tmp_path, capfd, name, where, in_one_line):
    "Of any other error the place is shown, which is where to look"
    frames = ["Cell In[1], line 1", *([f"File {where}:12, in read(path)"] if where else [])]
    class Failed(Exception):
        ename,evalue,traceback = name,"it is damaged",frames
        def __str__(self): return "\n".join([*frames, "it is damaged"])
    tell(tmp_path, Failed(), "failed")
    said = capfd.readouterr().err.strip()
    assert (said == f"{name}: it is damaged") == in_one_line and ("Cell In" in said) != in_one_line


@pytest.mark.parametrize("last,code,status", [("import sys\nsys.exit(0)", 0, "finished"), ("import sys\nsys.exit(3)", 3, "failed"), ("quit()", 0, "finished"), ("%%bash\nexit 3", 1, "failed")])
def test_a_cell_that_ends_the_program(workspace, capfd, last, code, status):
    "In order: the run is finished; with a number: that is the command's; what is below never runs"
    path = notebook(workspace/"train_demo.ipynb", "n = 1", "print('first')", last, "print('never')")
    assert cli.main(["run", str(path)]) == code
    run = only_run(workspace)
    assert read_json(run/"status.json")["status"] == status and "first" in text(run/"train_demo.ipynb") and "never" not in text(run/"train_demo.ipynb")
