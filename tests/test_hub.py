"Weights from files and from the hub: what is read, what is refused, and that nothing runs"
import argparse
import datetime
import hashlib
import json
import pickle
import re
import threading
from collections import Counter, OrderedDict, deque
from decimal import Decimal
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from huggingface_hub import hf_hub_download
from model_helpers import saved # noqa: F401, a fixture
from process_state import Refusing
from timm.layers import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

from vitnb.hub import hub_weights, is_hub_file, plain_names, read_weights, stored_size
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
    wrapped = {f"module.{k}":v for k,v in together.items()}
    for content in (apart, together, dict(state_dict=together), dict(state_dict=wrapped), dict(epoch=1, model=apart)):
        assert equal(load(tmp_path, content, choice="::teacher"), teacher)
    assert equal(load(tmp_path, dict(state_dict=together), choice="::state_dict.teacher"), teacher)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_broke_down_are_refused(tmp_path, value):
    state = {k:v.clone() for k,v in of_swin().state_dict().items()}
    state["head.fc.bias"][0] = value
    with pytest.raises(ValueError, match="no numbers .* in 1 of .* such as head.fc.bias"): load(tmp_path, state)


def test_safetensors_are_known_by_their_contents(tmp_path):
    m = of_swin()
    safetensors.torch.save_file({k:v.contiguous() for k,v in m.state_dict().items()}, tmp_path/"w.bin")
    assert all(torch.equal(v, m.state_dict()[k]) for k,v in read_weights(tmp_path/"w.bin").items())


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


# ------------------------------------------------------------------------------------------------- a hub whose connection breaks

WEIGHTS = {"a":torch.arange(60_000.), "b.weight":torch.ones(3, 4)}
PLACE = "/owner/name/resolve/main/own.safetensors"


class Hub(BaseHTTPRequestHandler):
    "What the hub's client asks for one large file: a HEAD with its checksum, and a GET of a range"
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass

    def head(self, status, start=0):
        self.send_response(status)
        names = {"X-Repo-Commit":"0"*40, "ETag":f'"{self.server.sha}"', "X-Linked-Size":str(len(self.server.blob)), "Accept-Ranges":"bytes"}
        if start: names["Content-Range"] = f"bytes {start}-{len(self.server.blob)-1}/{len(self.server.blob)}"
        for name,value in (names | {"Content-Length":str(len(self.server.blob) - start)}).items(): self.send_header(name, value)
        self.end_headers()

    def do_HEAD(self): self.head(200)

    def do_GET(self):
        want = self.headers.get("Range")
        self.server.asked.append(want)
        start = int(want[6:].split("-")[0]) if want else 0
        self.head(206 if start else 200, start)
        cut = self.server.breaks.pop(0) if self.server.breaks else None
        self.wfile.write(self.server.blob[start:] if cut is None else self.server.blob[start:start+cut])
        self.close_connection = True


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants, file_download
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    blob = safetensors.torch.save(WEIGHTS)
    server.__dict__.update(blob=blob, sha=hashlib.sha256(blob).hexdigest(), asked=[], breaks=[])
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path/"hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14) # a break loses the piece it falls in
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None) # between its tries the client waits a second
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    server.url = url
    yield server
    server.shutdown()
    server.server_close()


def same(found): return found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)

NAME = "hf://owner/name/own.safetensors"


def test_a_download_of_weights_that_breaks_goes_on_where_it_broke(hub):
    hub.breaks = [100_000, 50_000]
    assert same(hub_weights(NAME))
    starts = [int(want[6:-1]) for want in hub.asked if want]
    assert hub.asked[0] is None and starts and starts == sorted(starts) and 0 < starts[0] <= 100_000 # the rest, not all of it
    asked = len(hub.asked)
    assert same(hub_weights(NAME)) and len(hub.asked) == asked # from the cache


def test_a_download_of_weights_that_never_ends_says_why_and_what_to_do_and_leaves_nothing(hub, tmp_path):
    hub.breaks = [100_000, *[0]*20]
    with pytest.raises(RuntimeError) as error: hub_weights(NAME)
    message = str(error.value)
    assert "could not be had from the hub" in message and "peer closed connection without sending" in message, message
    assert f"{hub.url}{PLACE} and pass its path" in message # where to fetch it by other means
    assert not [path for path in (tmp_path/"hub").rglob("*") if path.is_file() and path.suffix == ".incomplete"]
    hub.breaks = []
    assert same(hub_weights(NAME)) # the next try is a whole one


def test_weights_with_another_checksum_are_refused_and_removed(hub, tmp_path):
    good,hub.blob = hub.blob,bytes(reversed(hub.blob))
    with pytest.raises(RuntimeError, match="its sha256 is .* and should be .*; the copy was removed"): hub_weights(NAME)
    hub.blob = good
    assert same(hub_weights(NAME)) # fetched again, not found in the cache
    copy = next(path for path in (tmp_path/"hub").rglob(hub.sha) if path.is_file())
    copy.write_bytes(good[:-1] + b"x") # a bit that flips later
    with pytest.raises(RuntimeError, match="sha256"): hub_weights(NAME)


def test_weights_of_timm_are_compared_with_their_checksum_too(hub, monkeypatch):
    blob = safetensors.torch.save(torch.nn.Linear(2, 2).state_dict())
    hub.blob,hub.sha = blob,"0"*64
    def made(name, pretrained):
        hf_hub_download("timm/densenet121.ra_in1k", "model.safetensors")
        return torch.nn.Linear(2, 2)
    monkeypatch.setattr("vitnb.hub.timm.create_model", made)
    with pytest.raises(RuntimeError, match="densenet121.ra_in1k.*its sha256 is"): hub_weights("densenet121.ra_in1k")
    hub.sha = hashlib.sha256(blob).hexdigest()
    assert set(hub_weights("densenet121.ra_in1k")) == {"weight", "bias"}


def test_a_hub_that_nobody_answers_for_says_so(hub, monkeypatch):
    from huggingface_hub import constants
    with Refusing() as port:
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        with pytest.raises(RuntimeError, match="could not be had from the hub .*check the network and HF_HUB_OFFLINE.*pass its path"): hub_weights(NAME)


@pytest.mark.parametrize("end", ["safetensors", "pth"])
@pytest.mark.parametrize("share", [0, .3, .9999])
def test_a_file_of_weights_that_arrived_in_part_says_so(tmp_path, end, share):
    path = tmp_path/f"part.{end}"
    if end == "pth": torch.save(WEIGHTS, path)
    else: safetensors.torch.save_file(WEIGHTS, path)
    assert same(read_weights(path))
    whole = path.read_bytes()
    path.write_bytes(whole[:int(share*len(whole))])
    with pytest.raises(ValueError, match=f"part.{end} holds no readable weights .*if it was fetched or copied, do that once more"): read_weights(path)


def test_an_address_is_no_file_of_weights():
    with pytest.raises(ValueError, match="is an address.*fetch it.*give the path"): read_weights("https://somewhere/model.safetensors")
    with pytest.raises(ValueError, match="is an address"): create_model("swin_micro", pretrained="http://somewhere/model.pth", img_size=16)


@pytest.mark.parametrize("arch,kw,tables", [
    ("swin_micro", dict(), "relative_position_bias_table"), ("spectral_mae_micro", dict(in_chans=6, patch_size=(4, 3), embed_dim=16, num_heads=2, depth=1), "pos.spatial")])
@pytest.mark.parametrize("size", [64, (64, 48), (64, 96)])
def test_tables_of_oblong_images_are_resized_where_the_file_says_their_size(tmp_path, arch, kw, tables, size):
    source,file = (48, 64),tmp_path/"w.pth"
    model = create_model(arch, img_size=source, num_classes=3, **kw)
    state = {name:torch.randn(weight.shape) if name.endswith(tables) else weight for name,weight in model.state_dict().items()}
    torch.save(dict(model=state, config=dict(arch=arch, model_kw=dict(img_size=list(source)))), file)
    assert stored_size(file) == source and stored_size(f"{file}::model") == source
    other = create_model(arch, img_size=size, num_classes=3, pretrained=file, **kw)
    found = [name for name in state if name.endswith(tables)]
    for name in found: assert torch.allclose(other.state_dict()[name], _resized(state[name], name, model, other), atol=1e-5), name
    assert found
    torch.save(state, file)
    assert stored_size(file) is None
    if size != (64, 48): # as many places, taken for the same
        with pytest.raises(ValueError, match="checkpoint of a run"): create_model(arch, img_size=size, num_classes=3, pretrained=file, **kw)


def _resized(table, name, source, model):
    "timm's own resizing, told the sides of the source"
    if name.startswith("pos."): return resample_abs_pos_embed(table, model.grid[1:], source.grid[1:], num_prefix_tokens=0)
    before,after = (one.get_submodule(name.rpartition(".")[0]) for one in (source, model))
    if before.window_size == after.window_size: return table
    return resize_rel_pos_bias_table(table, after.window_size, after.relative_position_bias_table.shape, before.window_size)


def test_an_export_says_the_size_of_its_images(tmp_path):
    said = dict(config=dict(model_kw=dict(img_size=32)))
    safetensors.torch.save_file(dict(a=torch.ones(2)), tmp_path/"a.safetensors", dict(vitnb=json.dumps(said)))
    safetensors.torch.save_file(dict(a=torch.ones(2)), tmp_path/"b.safetensors")
    assert stored_size(tmp_path/"a.safetensors") == (32, 32) and stored_size(tmp_path/"b.safetensors") is None
