"Notebooks to run in a workspace of their own"
import json
import os
import time

import pytest

PARAMS = "epochs = 1    # passes\nlr     = 1e-3  # peak\ntag    = ''    # added to the run folder\nclip   = None  # norm\nmild   = True  # or not"


def notebook(path, *cells, tags=("parameters",)):
    "A notebook of a few code cells, the first of them tagged"
    cells = [dict(cell_type="code", id=f"c{i}", execution_count=None, outputs=[], source=s, metadata=dict(tags=list(tags)) if i == 0 and tags else {})
             for i,s in enumerate(cells)]
    meta = dict(kernelspec=dict(name="python3", language="python", display_name="python3"))
    path.write_text(json.dumps(dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=5)))
    return path


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    (tmp_path/"settings.ini").write_text("[vitnb]\noutputs_path = out\ndevice = cpu\n")
    for k in [k for k in os.environ if k.startswith("VITNB_")]: monkeypatch.delenv(k)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text(nb): return "".join("".join(o.get("text", "")) for c in json.loads(nb.read_text())["cells"] for o in c.get("outputs", []))


def only_run(workspace, name="train_demo"):
    (d,) = (workspace/"out"/name).iterdir()
    return d


def wait_for(what, why, seconds=120):
    end = time.monotonic() + seconds
    while not (got := what()):
        assert time.monotonic() < end, why
        time.sleep(.05)
    return got
