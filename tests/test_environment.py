"What a run says of its machine"
import pytest
import torch

from vitnb.environment import environment


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path/"settings.ini").write_text("[vitnb]\ndevice = cpu\n")
    monkeypatch.setenv("VITNB_WORKSPACE", str(tmp_path))
    return tmp_path


def test_environment(workspace):
    env = environment()
    assert env["device"] == "cpu" and env["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert env["threads"] == torch.get_num_threads() and env["python"]
    assert env["commit"] is None and env["dirty"] is None # this workspace is no repository


def test_environment_names_the_commit_and_whether_it_is_dirty(workspace):
    import subprocess
    git = lambda *a: subprocess.run(["git", "-C", str(workspace), "-c", "user.name=n", "-c", "user.email=e", *a], check=True, capture_output=True, text=True)
    git("init")
    git("add", "settings.ini")
    git("commit", "-m", "first")
    env = environment()
    assert env["commit"] == git("rev-parse", "HEAD").stdout.strip() and env["dirty"] is False
    with (workspace/"settings.ini").open("a") as f: f.write("# changed\n")
    assert environment()["dirty"] is True
