"Sweeps of the notebook that pretends to train, and an executor that pretends to run it"
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

from vitnb.experiment.configurations import make_sweep
from vitnb.experiment.configured import source_of


def plan_of(workspace, space=None, **more):
    return make_sweep(workspace/"train_demo.ipynb", space or dict(x=[0., 1., 2.]), "near", "max", **more)


class Pretend:
    "An executor whose runs end at once, in the way that `ends` says of the value of x; it notes what was begun"
    def __init__(self, ends=lambda x: "finished"): self.ends,self.begun = ends,[]

    def submit(self, call, notebook, params, run_dir, minutes, variables, source):
        folder,future = Path(run_dir),Future()
        if source_of(notebook) != source:
            future.set_result(call(notebook, params, run_dir, minutes, variables, source))
            return future
        self.begun.append(params)
        state = self.ends(params["x"])
        if state == "lost":
            future.set_exception(RuntimeError("the worker is gone"))
            return future
        if state != "mute":
            (folder/"params.json").write_text(json.dumps(params))
            (folder/"columns.json").write_text(json.dumps(dict(near=dict(better="max"))))
            (folder/"history.json").write_text(json.dumps([dict(epoch=1, near=-(params["x"] - 2)**2)]))
        (folder/"status.json").write_text(json.dumps(dict(status=state)))
        future.set_result(dict(state="finished" if state == "mute" else state, why=""))
        return future


def start_sweep(workspace, *args):
    return subprocess.Popen([sys.executable, "-m", "vitnb.experiment.cli", "sweep", *map(str, args)], cwd=workspace, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def began(workspace):
    "How many epochs each kernel of each run began with: [0] is a run that ran through, [0, 2] one that went on after two"
    return {path.parent.name.split("-", 2)[2]:[int(line) for line in path.read_text().split()] for path in (workspace/"out/train_demo").glob("*/began.txt")}


def kill_family(process):
    "SIGKILL to the process of the sweep alone: what it started has to find out by itself"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(.1)
