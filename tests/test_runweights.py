"Which file of a run has the weights, and which runs somebody may have meant"
import re
import subprocess
import sys

import pytest

from vitnb.runweights import find_checkpoint


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A workspace with one run and one file"
    (tmp_path/"settings.ini").write_text("[vitnb]\n")
    monkeypatch.setenv("VITNB_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path/"out"))
    monkeypatch.chdir(tmp_path)
    for name in ("a_run", "b_run"):
        (tmp_path/"out"/"train_x"/name/"checkpoints").mkdir(parents=True)
        (tmp_path/"out"/"train_x"/name/"checkpoints"/"best_model.pth").touch()
    return tmp_path


@pytest.mark.parametrize("path", ["out/train_x/a_rum", "out/nothing", "nothing", "out/train_x/a_run/checkpoints/none/x.pth"])
def test_a_path_that_leads_nowhere_names_the_nearest_runs(home, path):
    with pytest.raises(FileNotFoundError, match=rf"no run and no checkpoint {re.escape(path)}; the nearest runs: ") as e: find_checkpoint(path)
    near = str(e.value).split("runs: ")[1].split(", ")
    assert near[0].endswith("train_x/a_run") and near[1].endswith("train_x/b_run") or path in ("nothing", "out/nothing") and len(near) == 2


def test_a_mistyped_file_of_a_run_names_the_file(home):
    from vitnb.learner.trained import load_run
    with pytest.raises(FileNotFoundError, match="did you mean 'best_model.pth'"): load_run("out/train_x/a_run/checkpoints/bets_model.pth")


def test_where_there_is_no_run_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path/"out"))
    deep = tmp_path/"a"/"b"/"c" # runs of other tests are not near
    deep.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"there is no run near it or in .*out: train one, or give a \.pth file"): find_checkpoint(deep/"nothing")


@pytest.mark.parametrize("files,says", [
    ({"notes.txt": "mine"}, "it is not the folder of a run; the nearest runs: .*a_run"), # of another program
    ({"params.json": "{}", "status.json": '{"status": "running"}'}, "its run is 'killed' and wrote no checkpoint yet: let it train"),
    ({"params.json": "{}"}, "its run wrote no checkpoint yet"),
    ({"params.json": "{}", "checkpoints/checkpoint_time_limit.pth": ""}, "give one of its files: .*checkpoint_time_limit.pth"),
    ({"params.json": "{}", "tuned/checkpoints/best_model.pth": ""}, "it trained several times; give one of them: .*c/tuned"),
    ({"best_model.pth": ""}, "give one of its files: .*best_model.pth")])
def test_a_folder_without_best_and_last_weights_says_what_it_is(home, files, says):
    folder = home/"out"/"train_x"/"c"
    for name,text in files.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_text(text)
    with pytest.raises(FileNotFoundError, match=rf"c holds no checkpoints/best_model.pth or last_model.pth; {says}"): find_checkpoint(folder)


def test_a_folder_of_runs_names_its_runs(home):
    with pytest.raises(FileNotFoundError, match="not the folder of a run; the nearest runs: .*a_run"): find_checkpoint(home/"out"/"train_x")


@pytest.mark.parametrize("command,says", [(["predict", "nowhere", "a.png"], "there is no run and no checkpoint nowhere; "), (["export", "nowhere", "-o", "a.onnx"], "there is no run and no checkpoint nowhere; "),
    (["card", "nowhere"], "there is no run and no checkpoint nowhere; "), (["predict", "RUN", "gone.png", "none*.png"], "no file matches 'none*.png'; look at"), (["predict", "RUN", "here", "--bs", "0"], "--bs 0 must be a whole"),
    (["predict", "RUN", "here", "--tta", "flop"], "unknown tta 'flop'"), (["export", "RUN", "-o", "a.txt"], "unknown ending of an export '.txt'")])
def test_a_wrong_call_is_told_before_torch_is_loaded(home, command, says):
    (home/"here").mkdir()
    command = [part.replace("RUN", "out/train_x/a_run") for part in command]
    code = f"import sys; from vitnb.experiment.cli import main; code = main({command!r}); print(code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"] and done.stderr.startswith(f"vitnb {command[0]}: {says}")
