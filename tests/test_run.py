"The run folder: what is written there, by whom, and that nothing wrong gets in"
import json
import multiprocessing as mp
import os
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitnb.experiment.run import Run, as_before, mark_status, new_run_dir, plain, read_json, write_json
from vitnb.parameters import check_injected, public_params
from vitnb.runfolder import check_family, release


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    "A workspace of its own for each test"
    (tmp_path/"settings.ini").write_text("[vitnb]\noutputs_path = out\ndevice = cpu\n")
    for k in [k for k in os.environ if k.startswith("VITNB_")]: monkeypatch.delenv(k)
    monkeypatch.setenv("VITNB_WORKSPACE", str(tmp_path))
    return tmp_path


def test_folder_and_files(workspace):
    run = Run("train_demo", dict(epochs=2, lr=1e-3, tag="w4"), "w4")
    assert run.dir.parent == workspace/"out"/"train_demo"
    assert re.fullmatch(r"\d{8}-\d{6}-w4(\.\d+)?", run.dir.name)
    assert read_json(run.dir/"params.json") == dict(epochs=2, lr=1e-3, tag="w4")
    assert {p.name for p in run.dir.iterdir()} == {"params.json", "environment.json", "status.json", ".lock", ".sums"}
    assert read_json(run.dir/"status.json")["status"] == "running"
    assert run.finish(test_accuracy=np.float32(.5), test_n=np.int64(3), note=None) == dict(test_accuracy=.5, test_n=3, note=None)
    assert read_json(run.dir/"result.json") == dict(test_accuracy=.5, test_n=3, note=None)
    done = read_json(run.dir/"status.json")
    assert done["status"] == "finished" and done["seconds"] >= 0 and done["started"] <= done["ended"]


def test_cli_folder_wins(workspace, monkeypatch):
    (workspace/"mine").mkdir()
    monkeypatch.setenv("VITNB_RUN_DIR", str(workspace/"mine"))
    assert Run("train_demo", {}).dir == workspace/"mine"
    assert not (workspace/"out").exists()


def _make(root): return str(new_run_dir("train_demo", "", root))


def test_no_two_runs_share_a_folder(tmp_path):
    with mp.get_context("fork").Pool(4) as pool: dirs = pool.map(_make, [tmp_path]*40)
    assert len(set(dirs)) == 40


@pytest.mark.parametrize("bad", ["../up", "a/b", ".hidden", "two words", "a\nb", 5, "tag{x}"])
def test_bad_tag_leaves_no_folder(workspace, bad):
    with pytest.raises(ValueError, match="folder name"): Run("train_demo", {}, bad)
    assert not list((workspace/"out").glob("*/*"))


def test_device_parameter_is_the_one_recorded(workspace):
    (workspace/"settings.ini").write_text("[vitnb]\noutputs_path = out\ndevice = cuda:97\n")
    assert read_json(Run("train_demo", dict(device="cpu")).dir/"environment.json")["device"] == "cpu"
    with pytest.raises(ValueError, match="cuda:97"): Run("train_other", {})
    assert not (workspace/"out"/"train_other").exists()


def test_note_adds(workspace):
    run = Run("train_demo", {})
    run.note(data="abc")
    run.note(params=torch.tensor(3))
    env = read_json(run.dir/"environment.json")
    assert env["data"] == "abc" and env["params"] == 3 and env["device"] == "cpu"


def test_scores_are_flat(workspace):
    run = Run("train_demo", {})
    for bad in (dict(a=1), [1], np.zeros(2)):
        with pytest.raises(ValueError, match="run.save"): run.finish(score=bad)
    assert not (run.dir/"result.json").exists()
    assert read_json(run.dir/"status.json")["status"] == "running"


def test_figure_and_save(workspace):
    from matplotlib.figure import Figure
    run,fig = Run("train_demo", {}),Figure(figsize=(1, 1))
    fig.subplots().plot([1, 2])
    small,large = run.figure(fig, "a", dpi=50).stat().st_size,run.figure(fig, "b", dpi=200).stat().st_size
    assert run.figures == run.dir/"figures" and (run.figures/"a.png").read_bytes()[:4] == b"\x89PNG"
    assert small < large
    assert json.loads(run.save("confusion", np.eye(2)).read_text()) == [[1, 0], [0, 1]]
    assert run.checkpoints.is_dir()
    with pytest.raises(ValueError): run.figure(fig, "../a")
    with pytest.raises(ValueError): run.save("a/b", {})


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    f = write_json(tmp_path/"r.json", dict(a=1))
    def full(*a, **k): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError): write_json(f, dict(a=2))
    assert read_json(f) == dict(a=1) and [p.name for p in tmp_path.iterdir() if p.suffix != ".ini"] == ["r.json"]


def test_status_keeps_its_start(tmp_path):
    a = mark_status(tmp_path, "running", name="x")
    b = mark_status(tmp_path, "failed", error="ValueError: no")
    assert b["started"] == a["started"] and b["error"] == "ValueError: no" and b["name"] == "x"


def test_repr_names_parameters_and_folder(workspace):
    md = Run("train_demo", dict(lr=.1))._repr_markdown_()
    assert "out&#47;train&#95;demo" in md and str(workspace) not in md and "| lr | <code>0.1</code> |" in md


json_like = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(), s, max_size=3), max_leaves=10)


@given(json_like)
def test_plain_is_strict_json(o):
    p = plain(o)
    assert json.loads(json.dumps(p, allow_nan=False)) == p


@given(st.dictionaries(st.text(min_size=1), json_like, max_size=5))
def test_public_params_keeps_literals(d):
    assert public_params(d) == {k: v for k,v in d.items() if not k.startswith("_") and k not in ("In", "Out")}
    assert public_params({**d, "fn": print, "arr": np.zeros(2)}).keys().isdisjoint({"fn", "arr"})


CELL = "bs = 16   # images\nlr = 1e-3 # rate\ntag = '#1' # name\nms = [1, 2] # steps\nclip = None # norm"


@pytest.mark.parametrize("given,message", [
    ("bss = 8\n", "did you mean 'bs'"), ("bs = 8.5\n", "bs=8.5 is a float"), ("bs = '8'\n", "bs='8' is a str"),
    ("ms = 3\n", "ms=3 is a int"), ("bs = True\n", "bs=True is a bool"), ("lr = \"fast\"\n", "lr='fast'")])
def test_papermill_misuse_is_an_error(given, message):
    with pytest.raises(ValueError, match=re.escape(message)): check_injected(["", CELL, f"# Parameters\n{given}"])
    with pytest.raises(ValueError, match=re.escape(message)): Run("train_demo", {"In": ["", CELL, f"# Parameters\n{given}"]})


def test_papermill_use_is_accepted():
    given = "# Parameters\nbs = 8\nlr = 1\ntag = \"a # b\"\nms = [3]\nclip = 0.5\n"
    assert check_injected(["", CELL, given]) == dict(bs=8, lr=1, tag="a # b", ms=[3], clip=.5)
    assert check_injected(["", "1 + 1", CELL]) == {}
    assert check_injected(["", "# Parameters\n" + CELL]) == {} # a person's own heading is not papermill's


def test_untagged_notebook_under_papermill_is_an_error():
    with pytest.raises(ValueError, match="tag the notebook's parameters cell"): check_injected(["", "# Parameters\nbs = 8\n", CELL])


# ---------------------------------------------------------------------------------------------- going on

def history(run, epochs): write_json(run.dir/"history.json", [dict(epoch=epoch+1) for epoch in range(epochs)])


def test_a_named_run_may_be_made_longer(workspace):
    asked = dict(epochs=2, lr=.1, bs=16)
    first = Run("train_demo", asked)
    history(first, 2)
    assert "a new run" in repr(first)
    first.finish(accuracy=.5)
    longer = Run("train_demo", {**asked, "epochs":4}, resume=str(first.dir))
    assert longer.dir == first.dir and longer.resumed and "2 epochs are done; epochs: 2 -> 4" in repr(longer)
    status = read_json(longer.dir/"status.json")
    assert status["changes"] == ["epochs: 2 -> 4"] and status["status"] == "running"
    assert Run("train_demo", {**asked, "epochs":4, "lr":.01, "schedule":"cosine"}, resume=str(first.dir)).changes[1:] == ["lr: 0.1 -> 0.01", "schedule: None -> 'cosine'"]


@pytest.mark.parametrize("change,says", [(dict(epochs=1), "has trained 2 epochs already"), (dict(bs=32), "bs: 16 -> 32"), (dict(epochs=4, seed=1), "seed: None -> 1")], ids=str)
def test_what_would_be_another_run_is_refused(workspace, change, says):
    asked = dict(epochs=2, lr=.1, bs=16)
    first = Run("train_demo", asked)
    history(first, 2)
    before = (first.dir/"params.json").read_bytes()
    with pytest.raises(ValueError, match=says): Run("train_demo", {**asked, **change}, resume=str(first.dir))
    assert (first.dir/"params.json").read_bytes() == before


@pytest.mark.parametrize("events,left", [
    ([("start", dict(epochs=8)), ("end", dict(complete=True))], False), ([("start", dict(epochs=8)), ("end", dict(complete=False))], True), ([("start", dict(epochs=8))], True),
    ([("start", dict(epochs=8)), ("end", dict(complete=False)), ("start", dict(epochs=8)), ("end", dict(complete=True))], False), ([], False), ([("start", {"epochs":8}), ("end", {})], False)], ids=str)
def test_a_run_whose_training_was_stopped_is_not_finished(workspace, events, left):
    run = Run("train_demo", dict(epochs=8))
    history(run, 3)
    (run.dir/"events.jsonl").write_text("".join(json.dumps(dict(t=0, event=event, **facts)) + "\n" for event,facts in events))
    run.finish(accuracy=.5, epochs=3)
    status = read_json(run.dir/"status.json")
    assert status["status"] == ("stopped" if left else "finished") and read_json(run.dir/"result.json")["epochs"] == 3
    if left: assert status["error"] == "training was stopped after 3 of 8 epochs"


def _open_and_die(root):
    os.environ["VITNB_OUTPUTS_PATH"] = str(root)
    Run("train_demo", dict(epochs=8), "w4")
    os._exit(9)


def test_killed_runs_are_said_to_be_when_the_next_one_begins(workspace):
    "One that had come to its parameters and goes on, one that had not, and one whose status is damaged"
    child = mp.get_context("fork").Process(target=_open_and_die, args=[workspace/"out"])
    child.start()
    child.join()
    (killed,) = (workspace/"out/train_demo").iterdir()
    early = new_run_dir("train_demo", "early")
    write_json(early/"status.json", dict(status="running", started="2026-01-01T00:00:00+00:00"))
    (new_run_dir("train_demo", "bad")/"status.json").write_text('{"status": ')
    other = Run("train_demo", dict(epochs=9))
    assert read_json(killed/"status.json")["status"] == read_json(early/"status.json")["status"] == "killed"
    again = Run("train_demo", dict(epochs=8), "w4", resume="auto")
    assert again.dir == killed != other.dir and read_json(killed/"status.json")["status"] == "running"


def test_what_nobody_gives_is_as_it_was(workspace):
    "A run that is named goes on with its own parameters, but for those that are given"
    first = Run("train_demo", dict(epochs=2, lr=.1, bs=16))
    longer = Run("train_demo", dict(epochs=4, lr=None, bs=None), resume=str(first.dir))
    assert longer.params == dict(epochs=4, lr=.1, bs=16) and longer.changes == ["epochs: 2 -> 4"]
    assert as_before("auto", dict(epochs=4), ["lr"]) == dict(epochs=4)
    assert as_before(str(first.dir), dict(epochs=8), dict(epochs=1, lr=1., resume="auto")) == dict(epochs=8, lr=.1)


def test_what_a_search_found_is_kept_with_the_run(workspace):
    "Its own file changes while the study goes on; a run that goes on keeps what it began with"
    found = dict(study_name="s", best_trial=3, best_value=.9, best_params=dict(lr=.03))
    write_json(workspace/"best_params.json", found)
    params = dict(lr=.1, epochs=2, hyperparams=str(workspace/"best_params.json"))
    run = Run("train_demo", params)
    assert run.params["lr"] == .03 and read_json(run.dir/"hyperparams.json") == found
    write_json(workspace/"best_params.json", {**found, "best_trial": 5})
    release(run.dir)
    again = Run("train_demo", params, resume=str(run.dir))
    assert again.dir == run.dir and read_json(run.dir/"hyperparams.json") == found
    assert not (Run("train_demo", dict(lr=.1, hyperparams=None)).dir/"hyperparams.json").exists()


def test_a_second_run_of_another_name_has_a_folder_of_its_own(workspace, monkeypatch):
    "The launcher's folder is that of the notebook it runs, and of the same cell run again"
    given = workspace/"out/train_demo/given"
    given.mkdir(parents=True)
    monkeypatch.setenv("VITNB_RUN_DIR", str(given))
    monkeypatch.setenv("VITNB_RUN_FOR", str(os.getpid()))
    first,second,again = [Run(name, dict(lr=1., tag="")) for name in ("train_demo", "evaluate_demo", "train_demo")]
    assert first.dir == again.dir == given and second.dir.parent == workspace/"out/evaluate_demo"


def test_a_run_that_its_kernel_leaves_for_another_is_not_running_for_ever(workspace):
    first = Run("train_demo", dict(epochs=2), "a")
    second = Run("train_demo", dict(epochs=3), "b")
    status = read_json(first.dir/"status.json")
    assert status["status"] == "interrupted" and "began another run" in status["error"] and read_json(second.dir/"status.json")["status"] == "running"
    assert Run("train_demo", dict(epochs=2), "a", "auto").dir == first.dir, "and it can be gone on with"
    assert read_json(second.dir/"status.json")["status"] == "interrupted" and read_json(first.dir/"status.json")["status"] == "running"


def test_a_run_that_is_finished_stays_so_when_another_begins_and_so_does_the_same_cell(workspace):
    first = Run("train_demo", dict(epochs=2), "a")
    first.finish(test_n=1)
    second = Run("train_demo", dict(epochs=3), "b")
    again = Run("train_demo", dict(epochs=3), "b", "auto")
    assert read_json(first.dir/"status.json")["status"] == "finished" and again.dir == second.dir and read_json(second.dir/"status.json")["status"] == "running"


def test_a_run_of_another_family_is_not_gone_on_with(workspace, tmp_path):
    "Its parameters may be the same: both train on the digits"
    (tmp_path/"other").mkdir()
    for name,content in (("params", dict(epochs=1)), ("recipe", dict(family="densenet"))): write_json(tmp_path/"other"/f"{name}.json", content)
    with pytest.raises(ValueError, match="is a run of the family 'densenet', and this notebook is of 'swin'"): Run("train_swin", dict(epochs=2), resume=str(tmp_path/"other"), family="swin")
    with pytest.raises(ValueError, match="and this notebook is of 'none'"): Run("train_demo", dict(epochs=2), resume=str(tmp_path/"other"))
    check_family(tmp_path/"other", "densenet")
    check_family(tmp_path, "swin") # of no family, or from before it had written its recipe
    assert not [path.name for path in (tmp_path/"other").iterdir() if path.suffix != ".json"]
