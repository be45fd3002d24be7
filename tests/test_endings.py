"Exit codes and words for the end of a run"
import signal
from types import SimpleNamespace

import pytest
from command_helpers import notebook, only_run, text, workspace

from vitnb.experiment import cli
from vitnb.experiment.endings import outcome_of
from vitnb.runfolder import read_json


def error(name, value=""): return SimpleNamespace(ename=name, evalue=value)


@pytest.mark.parametrize("what,signals,end", [
    (error("ValueError"), [], (1, "failed")), (error("SystemExit", "3"), [], (3, "failed")), (error("SystemExit", "no disk"), [], (1, "failed")),
    (error("SystemExit", "256"), [], (1, "failed")), (error("TrainingStopped", "time (exit code 75)"), [], (75, "stopped")),
    (error("KeyboardInterrupt"), [signal.SIGTERM], (143, "interrupted")), (error("KeyboardInterrupt"), [signal.SIGUSR1], (75, "interrupted")), (error("ValueError"), [signal.SIGINT], (130, "ended by a signal"))])
def test_every_end_has_its_code(what, signals, end): assert outcome_of(what, signals) == end


@pytest.mark.parametrize("last,code,status", [("import sys\nsys.exit(0)", 0, "finished"), ("import sys\nsys.exit(3)", 3, "failed"), ("quit()", 0, "finished"), ("%%bash\nexit 3", 1, "failed")])
def test_a_cell_that_ends_the_program(workspace, capfd, last, code, status):
    "In order: the run is finished; with a number: that is the command's; what is below never runs"
    path = notebook(workspace/"train_demo.ipynb", "n = 1", "print('first')", last, "print('never')")
    assert cli.main(["run", str(path)]) == code
    run = only_run(workspace)
    assert read_json(run/"status.json")["status"] == status and "first" in text(run/"train_demo.ipynb") and "never" not in text(run/"train_demo.ipynb")
