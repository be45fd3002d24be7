"Weights from files and from the hub: what is read, what is refused, and that nothing runs"
import argparse
import datetime
import pickle
import re
from collections import Counter, OrderedDict, deque
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from model_helpers import saved # noqa: F401, a fixture

from vitnb.hub import hub_weights, is_hub_file, plain_names, read_weights
from vitnb.models.protocol import create_model, load_weights
from vitnb.models.swin import swin, timms_names


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


# ------------------------------------------------------------------------------------------------- checkpoints of other tools

def of_swin(n=10): return create_model("swin_micro", img_size=16, num_classes=n)

def load(tmp_path, content, **kw):
    choice = kw.pop("choice", "")
    torch.save(content, tmp_path/"w.pth")
    return create_model("swin_micro", pretrained=f"{tmp_path/'w.pth'}{choice}", **{"img_size":16, "num_classes":10, **kw})

def equal(a, b): return all(torch.equal(p, q) for p,q in zip(a.state_dict().values(), b.state_dict().values()))

class Config(dict): "A class that the file names, and the reader must not need"


OTHERS = [argparse.Namespace(lr=.1, at=Path("x")), np.int64(3), np.float64(.5), np.arange(3), np.random.default_rng(0).bit_generator.state, datetime.date(2026, 1, 1),
          OrderedDict(a=1), {1, 2}, slice(3), Decimal("1.5"), Counter("ab"), torch.optim.SGD, partial(int, base=2)]

@pytest.mark.parametrize("other", OTHERS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("begin", ["", "model.", "net.backbone."])
def test_what_else_a_checkpoint_holds_does_not_matter(tmp_path, other, begin):
    m = of_swin()
    state = {begin + k:v for k,v in m.state_dict().items()} | ({"criterion.weight":torch.ones(3)} if begin else {})
    found = load(tmp_path, dict(state_dict=state, epoch=3, other=other, optimizer=dict(state={0:dict(step=torch.ones(1))})))
    assert equal(found, m) and found.load_report.prefix == begin and found.load_report.dropped == (["criterion.weight"] if begin else [])


@pytest.mark.parametrize("other", [Config(a=1), deque([1])], ids=lambda o: type(o).__name__)
def test_containers_that_torch_does_not_fill_are_named(tmp_path, other):
    with pytest.raises(ValueError, match=f"no readable weights .*it holds objects of .*{type(other).__name__}"): load(tmp_path, dict(state_dict=of_swin().state_dict(), other=other))


def test_the_weights_of_swa(tmp_path):
    m = of_swin()
    found = load(tmp_path, torch.optim.swa_utils.AveragedModel(m).state_dict())
    assert equal(found, m) and found.load_report.dropped == ["n_averaged"] and "under 'module.'" in str(found.load_report)


@pytest.mark.parametrize("averaged", ["state_dict_ema", "model_ema"])
def test_of_averaged_and_last_weights_it_is_said_which_and_either_can_be_had(tmp_path, averaged, capsys):
    last,mean = of_swin(),of_swin()
    content = {"state_dict":last.state_dict(), averaged:mean.state_dict()}
    assert equal(load(tmp_path, content), mean)
    assert f"w.pth ({averaged}, averaged weights; state_dict there too, as 'w.pth::state_dict')" in capsys.readouterr().out
    assert equal(load(tmp_path, content, choice="::state_dict"), last) and "w.pth (state_dict)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no 'state_dic': did you mean 'state_dict'"): load(tmp_path, content, choice="::state_dic")


def test_two_networks_in_one_file_are_asked_about(tmp_path):
    student,teacher = of_swin(),of_swin()
    apart = dict(student=student.state_dict(), teacher=teacher.state_dict(), epoch=1)
    with pytest.raises(ValueError, match="weights under student and teacher; choose one: 'w.pth::student'"): load(tmp_path, apart)
    together = {f"{name}.{k}":v for name,m in dict(student=student, teacher=teacher).items() for k,v in m.state_dict().items()}
    with pytest.raises(ValueError, match="under student. and teacher.: choose one"): load(tmp_path, together)
    for content in (apart, together): assert equal(load(tmp_path, content, choice="::teacher"), teacher)


def test_a_whole_model_is_refused_with_its_class(tmp_path):
    with pytest.raises(ValueError, match="whole object .vitnb.models.swin.SwinTransformer., whose code would have to run"): load(tmp_path, of_swin())


def test_the_file_of_torchvisions_densenet_of_2017(tmp_path):
    "Names with a dot, and no counters"
    m = create_model("densenet_micro", num_classes=3)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", k):v for k,v in m.state_dict().items() if "num_batches" not in k}
    torch.save(old, tmp_path/"d.pth")
    found = create_model("densenet_micro", num_classes=3, pretrained=tmp_path/"d.pth")
    assert all(torch.equal(v, found.state_dict()[k]) for k,v in m.state_dict().items()) and found.load_report.fresh == []


def test_torchvisions_swin_computes_the_same_under_timms_names(tmp_path):
    theirs = torchvision.models.SwinTransformer([4, 4], 24, [1, 2, 1], [1, 2, 4], [7, 7], num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path/"s.pth")
    ours = swin(112, 5, window_size=7, embed_dim=24, depths=(1, 2, 1), num_heads=(1, 2, 4)).eval()
    report = load_weights(ours, read_weights(tmp_path/"s.pth"), adapt=timms_names)
    x = torch.randn(2, 3, 112, 112)
    with torch.no_grad(): assert torch.allclose(theirs(x), ours(x), atol=1e-5) and not report.fresh and not report.dropped


@pytest.mark.parametrize("have, want", [(3, 1), (3, 4), (1, 3), (1, 5), (4, 1), (4, 4)])
def test_other_channels_are_summed_or_repeated(tmp_path, have, want):
    m = of_swin() if have == 3 else create_model("swin_micro", img_size=16, num_classes=10, in_chans=have)
    found = load(tmp_path, m.state_dict(), in_chans=want)
    grey = torch.rand(2, 1, 16, 16)
    if 1 in (have, want): # a grey image, once or in every channel, gets the same answer
        with torch.no_grad(): assert torch.allclose(m.eval()(grey.expand(-1, have, -1, -1)), found.eval()(grey.expand(-1, want, -1, -1)), atol=1e-5)
    assert (found.load_report.adapted == []) == (have == want)


@pytest.mark.parametrize("have, want", [(4, 3), (13, 4)])
def test_channels_that_nobody_can_match_are_refused(tmp_path, have, want):
    m = create_model("swin_micro", img_size=16, num_classes=10, in_chans=have)
    with pytest.raises(ValueError, match=f"filters are for {have} channels, .* with {want}: give in_chans={have}"): load(tmp_path, m.state_dict(), in_chans=want)
