"Weights from files and from the hub: what is read, what is refused, and that nothing runs"
import pickle
from pathlib import Path

import pytest
import torch
from model_helpers import saved # noqa: F401, a fixture

from vitnb.hub import hub_weights, is_hub_file, plain_names, read_weights
from vitnb.models.protocol import create_model


@pytest.mark.parametrize("wrap", [lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k,v in s.items()},
                                  lambda s: {f"_orig_mod.{k}": v for k,v in s.items()},
                                  lambda s: {"model_state": {f"module._orig_mod.{k}": v for k,v in s.items()}}])
def test_wrapped_weights(saved, tmp_path, wrap):
    model,_ = saved
    torch.save(wrap(model.state_dict()), tmp_path/"wrapped.pth")
    state = read_weights(tmp_path/"wrapped.pth")
    assert set(state) == set(model.state_dict()) and torch.equal(state["norm.weight"], model.norm.weight)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"): create_model("swin_micro", pretrained=tmp_path/"none.pth")
    (tmp_path/"text.pth").write_text("hello")
    (tmp_path/"text.safetensors").write_text("hello")
    torch.save({"epoch": 3}, tmp_path/"empty.pth")
    torch.save([1, 2], tmp_path/"list.pth")
    for name in ("text.pth", "text.safetensors", "empty.pth", "list.pth"):
        message = "no readable weights" if name.startswith("text") else "no tensors by name"
        with pytest.raises(ValueError, match=message): create_model("swin_micro", pretrained=tmp_path/name)


class Boom:
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.write_text,(Path(self.path), "ran")


def test_code_in_a_file_does_not_run(tmp_path):
    (tmp_path/"evil.pth").write_bytes(pickle.dumps({"norm.weight": Boom(str(tmp_path/"mark"))}))
    torch.save({"norm.weight": Boom(str(tmp_path/"mark"))}, tmp_path/"evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(ValueError, match="no readable weights"): create_model("swin_micro", pretrained=tmp_path/name)
    assert not (tmp_path/"mark").exists()


def test_a_file_of_the_hub_is_fetched_once_and_read(monkeypatch, tmp_path):
    torch.save(dict(model={"module.a": torch.arange(3.)}), tmp_path/"own.pth")
    asked = []
    def download(repository, file):
        asked.append((repository, file))
        return tmp_path/"own.pth"
    monkeypatch.setattr("vitnb.hub.hf_hub_download", download)
    assert torch.equal(hub_weights("hf://owner/name/folder/own.pth")["a"], torch.arange(3.))
    assert asked == [("owner/name", "folder/own.pth")]


@pytest.mark.parametrize("name", ["hf://owner", "hf://owner/name"])
def test_a_name_without_a_file_is_refused(name):
    assert is_hub_file(name) and not is_hub_file(Path(name))
    with pytest.raises(ValueError, match="names no file of the hub"): hub_weights(name)


@pytest.mark.parametrize("state,names", [
    ({"module.a":1, "module.b":2}, {"a", "b"}), ({"module._orig_mod.module.a":1}, {"a"}), ({"module.a":1, "b":2}, {"module.a", "b"}),
    ({"head._orig_mod.a":1}, {"head.a"}), ({}, set())])
def test_the_prefixes_of_wrappers_go_where_all_names_have_them(state, names): assert set(plain_names(state)) == names
