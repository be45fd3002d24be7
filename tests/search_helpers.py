"A workspace with a notebook that pretends to train, and searches in it"
import json
import os
import subprocess
import sys

import pytest
from command_helpers import wait_for # noqa: F401

from vitnb.experiment.search import study_rows
from vitnb.experiment.study import make_plan

# A notebook that trains without training: at each of 4 epochs it writes a value that grows towards one of x, and goes on from where it was killed.
# Where it is a trial it reports and waits for the verdict, by the names of the files alone
CELLS = ["""x    = 0.    # best at 2
kind = "a"   # a or b
bonus = 0.   # acts with kind b
epochs = 4   # passes
nap  = 0.    # seconds an epoch
tag  = ""    # added to the run folder""",
"""import json, os, time
from pathlib import Path
folder = Path(os.environ["VITNB_RUN_DIR"])
if x > 5: raise ValueError(f"x={x} is too far")
def report(epoch, value):
    with (folder/"events.jsonl").open("a") as file: file.write(json.dumps(dict(t=time.time(), event="report", epoch=epoch, value=value)) + "\\n")
    while not (folder/"verdict.json").is_file() or json.loads((folder/"verdict.json").read_text())["epoch"] < epoch: time.sleep(.02)
    return json.loads((folder/"verdict.json").read_text())["why"]
class TrainingStopped(Exception): pass
(folder/"params.json").write_text(json.dumps(dict(x=x, kind=kind, bonus=bonus, tag=tag)))
(folder/"columns.json").write_text(json.dumps(dict(near=dict(better="max"))))
rows = json.loads((folder/"history.json").read_text()) if (folder/"history.json").is_file() else []
with (folder/"began.txt").open("a") as file: file.write(f"{len(rows)}\\n")
for epoch in range(len(rows) + 1, epochs + 1):
    time.sleep(nap)
    rows.append(dict(epoch=epoch, near=(bonus - (x - 2)**2)*(1 - .5**epoch)))
    (folder/"history.json").write_text(json.dumps(rows))
    why = report(epoch, rows[-1]["near"]) if "VITNB_TRIAL" in os.environ else ""
    if why: raise TrainingStopped(f"{why}; saved (exit code 76)")"""]


SPACE = dict(x=dict(low=0., high=4.), kind=["a", "b"], bonus=dict(low=0., high=1., when=dict(kind="b")))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    "A workspace with a notebook that pretends"
    (tmp_path/"settings.ini").write_text("[vitnb]\noutputs_path = out\ndevice = cpu\n")
    for k in [k for k in os.environ if k.startswith("VITNB_")]: monkeypatch.delenv(k)
    cells = [dict(cell_type="code", id=f"c{i}", execution_count=None, outputs=[], source=s, metadata=dict(tags=["parameters"] if i == 0 else []))
             for i,s in enumerate(CELLS)]
    kernel = dict(kernelspec=dict(name="python3", language="python", display_name="python3"))
    (tmp_path/"train_demo.ipynb").write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def space_file(workspace):
    (workspace/"space.json").write_text(json.dumps(dict(space=SPACE, score="near", better="max", pruner=dict(name="none"))))
    return ["--space", "space.json", "--study", "s"]


def demo(workspace, space=None, **more):
    return make_plan(workspace/"train_demo.ipynb", space or SPACE, "near", "max", **{"pruner":dict(name="none"), **more})


def drawn(study): return [{k:row[k] for k in ("x", "kind", "bonus") if k in row} for row in study_rows(study) if row["state"] == "complete"]


def start(workspace, *args):
    return subprocess.Popen([sys.executable, "-m", "vitnb.experiment.cli", "search", "train_demo.ipynb", *args], cwd=workspace,
                            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
