"An export is the model: every kind of run as safetensors, and ONNX where it is installed"
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from stored_runs import IMAGE_KINDS, fit, registered # noqa: F401
from tiny_heads import TinyHeads
from torch import nn

from vitnb.core import need
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import vit_learner
from vitnb.learner.export import export_run, export_safetensors, largest_difference, sample_batch
from vitnb.learner.predict import predict
from vitnb.learner.trained import load_run
from vitnb.models.protocol import create_model, models, register_model


@pytest.mark.parametrize("kind", [*IMAGE_KINDS, "cubes", "pixels"])
def test_safetensors_predict_in_place_of_the_run(runs, tmp_path, kind):
    folder,_,rows = runs[kind]
    file = tmp_path/"model.safetensors"
    assert export_run(folder, file) == {file:0.}
    said = predict(file, f"{folder}/new_*", device="cpu")
    assert len(said) == len(rows) > 0
    for got,want in zip(said, rows):
        assert got.keys() == want.keys()
        for name in want: # float sums of batches of other sizes
            if isinstance(want[name], np.ndarray): assert np.allclose(got[name], want[name], atol=1e-5)
            elif not isinstance(want[name], float): assert got[name] == want[name]


def test_the_average_is_exported_as_the_average(runs, tmp_path):
    folder = runs["class"][0]
    checkpoint = torch.load(folder/"checkpoints"/"best_model.pth", weights_only=True)
    checkpoint["ema_state_dict"] = {name:w*2 for name,w in checkpoint["model_state_dict"].items()}
    torch.save(checkpoint, tmp_path/"with_average.pth")
    export_run(tmp_path/"with_average.pth", tmp_path/"m.safetensors")
    run = load_run(tmp_path/"m.safetensors", "cpu")
    assert run.weights == "ema" and "average" in run.says
    for name,w in run.model.state_dict().items(): assert torch.equal(w, checkpoint["ema_state_dict"][name])
    with pytest.raises(ValueError, match="averaged weights only"): load_run(tmp_path/"m.safetensors", "cpu", use="trained")
    export_run(tmp_path/"with_average.pth", tmp_path/"t.safetensors", use="trained")
    assert load_run(tmp_path/"t.safetensors", "cpu").weights == "trained"


def test_the_file_says_its_configuration_and_anybody_can_read_it(runs, tmp_path):
    export_run(runs["class"][0], tmp_path/"m.safetensors")
    with safe_open(tmp_path/"m.safetensors", "pt") as file: said = json.loads(file.metadata()["vitnb"])
    assert said["config"]["arch"] == "tiny_heads" and len(said["config"]["tasks"][""]["names"]) == 10 and said["config"]["normalize"]["mean"]
    assert (tmp_path/"m.safetensors").stat().st_mode & 0o044, "others may read it, as any file that is written here"


@pytest.mark.parametrize("kind", ["several", pytest.param("cubes", marks=pytest.mark.slow)])
def test_onnx_says_what_the_model_says_for_any_number_of_images(runs, tmp_path, kind, capsys):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = runs[kind][0]
    found = export_run(folder, tmp_path/"m.onnx", sample=f"{folder}/new_*" if kind == "several" else None)
    assert 0 <= found[tmp_path/"m.onnx"] < 1e-4 and "largest difference" in capsys.readouterr().out
    run = load_run(folder, "cpu")
    inputs = sample_batch(run, bs=5)
    session = onnxruntime.InferenceSession(str(tmp_path/"m.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    said = dict(zip(names, session.run(names, {one.name:part.numpy() for one,part in zip(session.get_inputs(), inputs)})))
    with torch.no_grad(): want = {name:part for name,part in run.model(*inputs).items() if isinstance(part, torch.Tensor)}
    assert largest_difference(said, want) < 1e-4
    assert json.loads(session.get_modelmeta().custom_metadata_map["vitnb"])["config"]["arch"] == run.config["arch"]


class Tied(TinyHeads):
    "Two convolutions with one weight"
    def __init__(self, **kw):
        super().__init__(**kw)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.again.weight = self.trunk[2].weight

    def forward_features(self, x): return self.again(self.trunk(x))
    def forward(self, x): return self.forward_head(self.forward_features(x))
    def group_matcher(self, coarse=False): return dict(stem=r"^trunk", blocks=r"^(?:again|heads)")


@pytest.fixture
def tied():
    register_model("tied_heads", Tied)
    yield "tied_heads"
    del models["tied_heads"]


def test_a_weight_that_is_shared_is_shared_again(tmp_path, tied):
    dls = image_loaders(load_set("digits", limit=4), bs=8, augment="none", seed=1, device="cpu", workers=0)
    learn = fit(tmp_path, vit_learner(dls, tied, seed=1, device="cpu", precision="fp32", lr=1e-2))
    file = tmp_path/"m.safetensors"
    assert export_run(tmp_path, file) == {file:0.}
    for path in (tmp_path, file):
        model = load_run(path, "cpu").model
        assert model.again.weight is model.trunk[2].weight and torch.equal(model.again.weight, learn.model.trunk[2].weight)


@pytest.mark.parametrize("spoil", [lambda w: w + 1e-2, lambda w: w*torch.nan], ids=["other", "nan"])
def test_what_is_not_the_model_is_not_written(runs, tmp_path, monkeypatch, spoil):
    file = tmp_path/"m.safetensors"
    file.write_text("an older export")
    def spoilt(run, path):
        with torch.no_grad(): weights = {name:w.clone() for name,w in run.model.state_dict().items()}
        run.model.load_state_dict({name:spoil(w) if w.is_floating_point() else w for name,w in weights.items()})
        export_safetensors(run, path)
        run.model.load_state_dict(weights)
    monkeypatch.setattr("vitnb.learner.export.export_safetensors", spoilt)
    with pytest.raises(ValueError, match="m.safetensors was not written: the export differs from the model by"): export_run(runs["class"][0], file)
    assert file.read_text() == "an older export" and list(tmp_path.iterdir()) == [file]


def test_without_onnx_the_pip_line_is_told_and_nothing_is_written(runs, tmp_path, monkeypatch):
    def nothing(module, extra=""):
        if module.startswith("onnx"): return need("not_installed_anywhere", extra)
        return need(module, extra)
    monkeypatch.setattr("vitnb.learner.export.need", nothing)
    with pytest.raises(ImportError, match=r'pip install "vitnb\[export\]"'): export_run(runs["class"][0], tmp_path/"both")
    assert not list(tmp_path.iterdir())


def test_a_difference_is_the_largest_of_all_outputs():
    one = dict(a=torch.zeros(3), b=torch.tensor([0., -2.]))
    assert largest_difference(one, dict(a=torch.zeros(3), b=torch.tensor([0., 1.]))) == 3.
    with pytest.raises(ValueError, match="the export gives"): largest_difference(one, dict(a=torch.zeros(3)))


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_broken_export_is_an_error_with_its_name(tmp_path, content):
    (tmp_path/"broken.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="broken.safetensors"): load_run(tmp_path/"broken.safetensors", "cpu")


@pytest.mark.parametrize("model_kw,streams", [(dict(img_size=64, in_chans=5, spectral_channels=2), [3, 2]), (dict(img_size=64), [3])])
def test_a_sample_has_the_streams_of_the_model(model_kw, streams):
    "`in_chans` counts all channels, those of a second image too"
    model = create_model("hvit_micro", num_classes=2, **model_kw).eval()
    run = SimpleNamespace(model=model, config=dict(model_kw=model_kw, transforms=None), path="run")
    inputs = sample_batch(run, bs=3)
    assert [part.shape for part in inputs] == [(3, wide, 64, 64) for wide in streams] and model(*inputs).shape == (3, 2)
