"Whatever has happened to a file, its reader gives the right value, or an error that names the file"
import errno
import io
import json
import os
import shutil
import tarfile
import zipfile
import zlib
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import scipy.io
import torch
from dicom_files import write as write_dicom
from hypothesis import HealthCheck, example, given, settings as hyp, strategies as st
from PIL import Image

from vitnb.callback.checkpoint import load_checkpoint, newest_state, save_checkpoint
from vitnb.core import atomic_write, repo_root, settings
from vitnb.data.arrays import load_pickle
from vitnb.data.companion import image_size
from vitnb.data.cube import load_cube_set
from vitnb.data.cubefile import CubeFile, close_cubes
from vitnb.data.dicom import read_dicom
from vitnb.data.download import unpack
from vitnb.data.delimited import read_frame
from vitnb.data.image import load_npy, read_image, read_map, read_native
from vitnb.data.nifti import read_nifti, save_nifti
from vitnb.data.once import scan_once
from vitnb.data.sets import load_set
from vitnb.data.source import CacheSource, build_cache
from vitnb.experiment.notebook import card, notebook_family, notebook_params, read_notebook
from vitnb.experiment.run import find_run, mark_status, new_run_dir, read_json, write_json
from vitnb.data.beside import load_beside
from vitnb.experiment.asking import read_params_file
from vitnb.experiment.card import read_card
from vitnb.experiment.folders import read_run
from vitnb.experiment.run import Run, release
from vitnb.experiment.space import read_plan
from vitnb.experiment.stored import stored_recipe
from vitnb.experiment.sweep import read_journal
from vitnb.experiment.watch import RunView, run_line
from vitnb.runfolder import left_undone
from vitnb.files import (BrokenFile, file_sums, is_whole, load_json, load_text, naming, note_sums, read_sealed,
                         write_sealed, zip_fault)
from vitnb.hub import read_weights
from vitnb.parameters import read_hyperparams
from vitnb.written import seal_tensors, sealed_line

STATE = dict(model_state_dict=dict(w=torch.full((30, 30), .5), b=torch.arange(5.)), epoch=3, config=dict(arch="a"))
CUBE = np.random.default_rng(0).integers(1, 9, (3, 4, 5)).astype(np.float32)
PIXELS = np.random.default_rng(1).integers(0, 255, (6, 7, 3), dtype=np.uint8)
NOTEBOOK = dict(cells=[
    dict(cell_type="markdown", id="a", metadata={}, source="# a\n> Why?"),
    dict(cell_type="code", id="b", metadata=dict(tags=["parameters"]), source=["tag = '' # no\n", "epochs = 3"],
         execution_count=None, outputs=[])], metadata={}, nbformat=4, nbformat_minor=5)


def text_of(value): return json.dumps(value, indent=1).encode()


def of_file(write):
    "The bytes that a writer of files makes"
    def make(folder, name):
        write(folder/name)
        return (folder/name).read_bytes()
    return make


def packed_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("a/x.txt", "b/y.txt"): file.writestr(name, name*40)


def packed_tar(path):
    with tarfile.open(path, "w:gz") as file:
        for name in ("a/x.txt", "b/y.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(name)*40
            file.addfile(member, io.BytesIO(name.encode()*40))


def cube_h5(path):
    with h5py.File(path, "w") as file: file["/Cube/Images"] = CUBE


def unpacked(path):
    folder = unpack(path, path.parent/"out")
    files = {str(file.relative_to(folder)):file.read_bytes() for file in folder.rglob("*.txt")}
    shutil.rmtree(folder)
    return files


def read_cube(path):
    close_cubes()
    with np.errstate(invalid="ignore", over="ignore"): return CubeFile(path, axes="chw").read()


def all_of_a_notebook(path):
    nb = read_notebook(path)
    with naming(path): return notebook_params(nb), notebook_family(nb), card(nb), nb


ENVI = b"""ENVI
samples = 5
lines = 4
bands = 3
data type = 4
interleave = bsq
byte order = 0
wavelength units = nm
wavelength = {450, 500, 550}
"""


def classic_netcdf(path):
    with scipy.io.netcdf_file(path, "w") as file:
        for name,size in zip(("band", "y", "x"), CUBE.shape): file.createDimension(name, size)
        file.createVariable("cube", "f4", ("band", "y", "x"))[:] = CUBE
        file.createVariable("wavelength", "f4", ("band",))[:] = [450, 500, 550]


def card_or_run(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitnb.experiment.card.notebook_params", lambda nb: dict(run=str(path.parent)))
        return read_card(path)


EXACT = "the value itself"
TEXT = "what an independent reader says"
ANY = "a value" # the format has no checksum, so a changed pixel is a pixel


def json_judge(raw):
    try: return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError): return None


READERS = dict( # name of the file: how it is made, how it is read, what is right
    status=("status.json", lambda *_: text_of(dict(status="failed", tag="a", n=[1, 2.5])), read_json, TEXT),
    plain=("some.json", lambda *_: text_of(dict(a=1)), load_json, TEXT),
    notebook=("train_a.ipynb", lambda *_: text_of(NOTEBOOK), all_of_a_notebook, ANY),
    best=("best_params.json", lambda *_: text_of(dict(best_params=dict(lr=.1))), read_hyperparams, ANY),
    recipe=("recipe.json", lambda *_: text_of(dict(family="densenet", arch="densenet121")),
            lambda path: stored_recipe(path.parent), ANY),
    space=("space.json", lambda *_: text_of(dict(lr=[.1, .2])), lambda path: read_plan(str(path)), ANY),
    settings=("settings.ini", lambda *_: b"# here\n[vitnb]\nworkers = 3\ndata_path = data\nseed = 7\n",
              lambda path: settings(path.parent), ANY),
    checkpoint=("last_model.pth", of_file(lambda path: save_checkpoint(STATE, path)), load_checkpoint, EXACT),
    weights=("w.pth", of_file(lambda path: save_checkpoint(STATE, path)), read_weights, EXACT),
    safetensors=("w.safetensors", of_file(lambda path: safetensors.torch.save_file(dict(w=torch.ones(40)), path)),
                 read_weights, ANY),
    export=("m.safetensors", of_file(lambda path: path.write_bytes(seal_tensors(
        safetensors.torch.save(STATE["model_state_dict"], dict(vitnb='{"arch": "a"}'))))), read_weights, EXACT),
    npy=("a.npy", of_file(lambda path: np.save(path, CUBE)), load_npy, ANY),
    native=("a.npy", of_file(lambda path: np.save(path, PIXELS)), read_native, ANY),
    label_map=("m.npy", of_file(lambda path: np.save(path, PIXELS[...,0])), read_map, ANY),
    png=("a.png", of_file(lambda path: Image.fromarray(PIXELS).save(path)), read_image, ANY),
    size=("a.jpg", of_file(lambda path: Image.fromarray(PIXELS).save(path)), image_size, ANY),
    h5=("c.h5", of_file(cube_h5), read_cube, ANY),
    cube_npy=("c.npy", of_file(lambda path: np.save(path, CUBE)), read_cube, ANY),
    mat=("c.mat", of_file(lambda path: scipy.io.savemat(path, dict(cube=CUBE))), read_cube, ANY),
    zip=("set.zip", of_file(packed_zip), unpacked, ANY), # names are not under its checksums
    tar=("set.tar.gz", of_file(packed_tar), unpacked, EXACT),
    table=("t.csv", lambda *_: "file,label\na.png,größe\nb.png,x\n".encode(), read_frame, ANY),
    params_file=("p.yaml", lambda *_: b"epochs: 3\nlr: 1e-3\naug_kw: {flip: 0.5}\n", read_params_file, ANY),
    params_json=("p.json", lambda *_: text_of(dict(epochs=3, lr=1e-3)), read_params_file, ANY),
    events=("events.jsonl", lambda *_: "".join(sealed_line(dict(t=1., event=event, epochs=3)) + "\n" for event in
            ("start", "epoch", "end")).encode(), lambda path: left_undone(path.parent), ANY),
    journal=("runs.jsonl", lambda *_: (sealed_line(dict(number=0, params=dict(lr=.1), state="finished")) + "\n").encode(),
             read_journal, ANY), # what is damaged is passed over
    view=("events.jsonl", lambda *_: (sealed_line(dict(t=1., event="epoch", epoch=1, accuracy=.5)) + "\n").encode(),
          lambda path: run_line(RunView(path.parent).read()), ANY),
    card=("card.ipynb", lambda *_: text_of({**NOTEBOOK, "metadata":dict(vitnb_card=dict(scores={}))}), card_or_run, ANY),
    envi=("e.hdr", lambda *_: ENVI, read_cube, ANY),
    classic=("c.nc", of_file(classic_netcdf), read_cube, ANY),
    wavelengths=("w.txt", lambda *_: b"# nm\n450\n500.5\n550\n", lambda path: load_beside(path, None), ANY),
    run=("params.json", lambda *_: text_of(dict(lr=.1)), lambda path: read_run(path.parent), ANY),
    pickle=("batch", of_file(lambda path: path.write_bytes(np.arange(9).dumps())), load_pickle, ANY),
    nifti=("f.nii.gz", of_file(lambda path: save_nifti(path, PIXELS[...,0].astype(np.int16))), read_nifti, ANY),
    dicom=("f.dcm", of_file(lambda path: write_dicom(path, PIXELS[...,0].astype(np.uint16))), read_dicom, ANY),
    catalogue=("c.csv", lambda *_: b"ID,label,hs_file\np1,a,x.npy\np2,b,y.npy\n",
               lambda path: load_cube_set(path), ANY))


@cache
def original(name, folder):
    file,make,_,_ = READERS[name]
    (folder/name).mkdir(parents=True)
    return make(folder/name, file)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    yield tmp_path_factory.mktemp("originals")
    original.cache_clear()


KINDS = "flip cut append insert erase fill swap empty mark".split()


@st.composite
def damages(draw):
    return draw(st.sampled_from(KINDS)), draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=12))


def damaged(raw, kind, share, more):
    "What has become of a file"
    place = min(int(share*len(raw)), len(raw) - 1)
    if kind == "flip": return raw[:place] + bytes([raw[place] ^ 1 << more[0] % 8]) + raw[place+1:]
    if kind == "cut": return raw[:place]
    if kind == "append": return raw + more
    if kind == "insert": return raw[:place] + more + raw[place:]
    if kind == "erase": return raw[:place] + raw[place + len(more):]
    if kind == "fill": return raw[:place] + bytes(len(more)) + raw[place + len(more):]
    if kind == "swap": return more
    return b"" if kind == "empty" else b"\xef\xbb\xbf" + raw


def same(a, b):
    if isinstance(a, dict): return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    return a == b


def judged(name, path, raw):
    "Read a damaged file and judge what came of it"
    _,_,read,right = READERS[name]
    first = read_right(name, path)
    path.write_bytes(raw)
    try: value = read(path)
    except (ValueError, OSError) as error:
        assert path.name in str(error), f"{type(error).__name__} does not name {path.name}: {error}"
        return
    if right == EXACT: assert same(first, value)
    if right == TEXT: assert value == json_judge(raw)


RIGHT = {}


def read_right(name, path):
    "What the whole file says"
    if READERS[name][3] != EXACT: return None
    if name not in RIGHT:
        path.write_bytes(original(name, path.parent.parent))
        RIGHT[name] = READERS[name][2](path)
    return RIGHT[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
@hyp(max_examples=int(os.environ.get("DAMAGES", 25)), deadline=None, derandomize="DAMAGES" not in os.environ,
     suppress_health_check=list(HealthCheck))
@given(damage=damages())
def test_a_damaged_file_is_read_rightly_or_named(originals, name, damage):
    raw = damaged(original(name, originals), *damage)
    place = originals/name/"damaged"
    place.mkdir(exist_ok=True)
    path = place/READERS[name][0]
    if name == "envi": (place/"e.dat").write_bytes(CUBE.tobytes())
    if name == "catalogue":
        for file in ("x.npy", "y.npy"): np.save(place/file, CUBE)
    judged(name, path, raw)


# ---------- caches notice a flipped bit, and heal

def cached_scan(folder): return scan_once(folder/"found.json", "key", lambda: dict(mean=[.5, .25], bad={}))


def cached_images(folder):
    image_set = load_set(folder/"set")
    source = CacheSource(build_cache(image_set, path=folder/"cache"), "train")
    return source.read(np.arange(len(source))).tolist()


def cached_cube(folder):
    close_cubes()
    return CubeFile(folder/"c.mat", axes="chw").read().tolist()


CACHES = dict(scan=cached_scan, images=cached_images, cube=cached_cube)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))
    scipy.io.savemat(tmp_path/"c.mat", dict(cube=CUBE))
    for number in range(24):
        path = tmp_path/"set"/"ab"[number % 2]/f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS ^ number).save(path)
    yield tmp_path
    close_cubes()


@pytest.mark.parametrize("name", CACHES)
def test_a_damaged_cache_is_noticed_and_made_again(cached, name):
    read = CACHES[name]
    right = read(cached)
    files = [path for path in cached.rglob("*") if path.is_file() and path.suffix in (".json", ".npy", ".bin", ".crc32")
             and "set" not in path.relative_to(cached).parts]
    assert files
    for number,path in enumerate(sorted(files)):
        whole = path.read_bytes()
        for kind in KINDS if name == "scan" else ("flip",): # an array's file is looked at by its checksum alone
            path.write_bytes(damaged(whole, kind, (number + .5)/len(files), b"\x07"))
            assert read(cached) == right, (path.name, kind)
        assert read(cached) == right and path.read_bytes()


def test_sums_notice_each_flipped_bit_of_every_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("vitnb.files._PIECE", 1 << 20)
    path = tmp_path/"a.bin"
    raw = np.random.default_rng(2).bytes(3*(1 << 20) + 17)
    path.write_bytes(raw)
    note_sums(path)
    assert file_sums(path)[1:] == [zlib.crc32(raw[start:start + (1 << 20)]) for start in range(0, len(raw), 1 << 20)]
    assert is_whole(path)
    for place in (0, (1 << 20) - 1, 1 << 20, len(raw) - 1):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 16]) + raw[place+1:])
        assert not is_whole(path)


def test_a_sealed_file_gives_what_was_written_or_none(tmp_path, capsys):
    path = tmp_path/"deep"/"a.json"
    assert read_sealed(path) is None and capsys.readouterr().out == ""
    write_sealed(path, dict(a=(1, 2), b={"x":None}))
    assert read_sealed(path) == dict(a=[1, 2], b={"x":None})
    path.write_text(path.read_text().replace("2", "3", 1))
    assert read_sealed(path) is None and "a.json" in capsys.readouterr().out


# ---------- no number of a run is silently another

NUMBERS = dict(result=b"0.97", params=b"0.125", history=b"0.75", columns=b"max", environment=b"abc", status=b"w4")


@pytest.fixture
def whole_run(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path))
    run = Run("demo", dict(lr=.125, tag="w4"), "w4")
    run.note(data="abc")
    write_json(run.dir/"history.json", [dict(epoch=1, accuracy=.75)])
    write_json(run.dir/"columns.json", dict(accuracy=dict(better="max")))
    run.finish(test_accuracy=.97)
    release(run.dir)
    return run.dir


@pytest.mark.parametrize("name", NUMBERS)
def test_a_flipped_bit_of_a_run_is_told_with_its_file(whole_run, name, capsys):
    "Whoever reads the file says so once; what compares runs shows none of it"
    path = whole_run/f"{name}.json"
    raw = path.read_bytes()
    place = raw.index(NUMBERS[name]) + len(NUMBERS[name]) - 1
    path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place+1:])
    kind = list if name == "history" else dict
    for _ in range(2): assert read_json(path, kind) == json.loads(path.read_bytes())
    assert capsys.readouterr().err.count(f"{path} is not as the run wrote it") == 1
    record = read_run(whole_run)
    record.history
    assert [fault.partition(":")[0] for fault in record.faults] == [path.name]
    write_json(path, json.loads(raw)) # the run itself may write it anew
    assert read_run(whole_run).faults == []


def test_a_run_that_knows_no_checksums_is_read_as_before(whole_run):
    (whole_run/".sums").unlink()
    (whole_run/"result.json").write_text('{"test_accuracy": 0.5}')
    assert read_run(whole_run).scores == dict(test_accuracy=.5) and read_run(whole_run).faults == []


# ---------- what is said of files

def test_text_with_a_mark_and_of_another_encoding(tmp_path):
    (tmp_path/"a.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": "\xc3\xb6"}')
    (tmp_path/"b.json").write_bytes('{"a": "ö"}'.encode("utf-16"))
    (tmp_path/"c.json").write_bytes('{"a": "ö"}'.encode("latin-1"))
    assert load_json(tmp_path/"a.json") == load_json(tmp_path/"b.json") == dict(a="ö")
    with pytest.raises(BrokenFile, match="c.json is not text in UTF-8"): load_json(tmp_path/"c.json")
    (tmp_path/"d.json").write_text("["*100_000)
    with pytest.raises(BrokenFile, match="d.json is not JSON"): load_json(tmp_path/"d.json")


def test_naming_adds_the_file_once(tmp_path):
    with pytest.raises(BrokenFile, match=r"a\.json cannot be used \(KeyError"):
        with naming(tmp_path/"a.json"): dict()["x"]
    with pytest.raises(ValueError, match="^a.json has a fault$"):
        with naming(tmp_path/"a.json"): raise ValueError("a.json has a fault")
    with nullcontext(), naming(tmp_path/"a.json"): pass


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="history.json") as said:
        with atomic_write(tmp_path/"history.json"): raise OSError(errno.ENOSPC, "No space left on device")
    assert said.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [[1, 2], torch.ones(3), "text", dict(model_state_dict=[1]), {0:torch.ones(2)}])
def test_a_checkpoint_that_holds_something_else_is_named(tmp_path, value):
    path = tmp_path/"odd.pth"
    torch.save(value, path)
    with pytest.raises(ValueError, match="odd.pth"): read_weights(path)
    if not isinstance(value, dict):
        with pytest.raises(ValueError, match="odd.pth"): load_checkpoint(path)


def test_every_flipped_bit_of_a_weight_is_noticed(tmp_path):
    path = save_checkpoint(STATE, tmp_path/"a.pth")
    raw = path.read_bytes()
    start = raw.index(torch.full((30,), .5).numpy().tobytes())
    for place in range(start, start + 3600, 397):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0x40]) + raw[place+1:])
        assert torch.load(path, weights_only=True)["epoch"] == 3 # torch reads it all the same
        with pytest.raises(ValueError, match="a.pth"): load_checkpoint(path)
        with pytest.raises(ValueError, match="a.pth"): read_weights(path)
    assert zip_fault(path)


def test_a_compressed_part_of_a_checkpoint_is_refused(tmp_path):
    "A few bytes could fill the memory"
    plain = save_checkpoint(STATE, tmp_path/"a.pth")
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(tmp_path/"b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist(): new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match="b.pth.*is compressed"): load_checkpoint(tmp_path/"b.pth")


def test_resume_goes_on_from_the_newest_whole_file(tmp_path, capsys):
    def state(epoch): return dict(training_state=dict(epochs_done=epoch, opt_steps=epoch*5))
    for epoch in (1, 2): save_checkpoint(state(epoch), tmp_path/f"checkpoint_epoch_{epoch}.pth")
    save_checkpoint(dict(training_state=[1]), tmp_path/"odd.pth")
    path = save_checkpoint(state(3), tmp_path/"last_model.pth")
    path.write_bytes(path.read_bytes()[:-90])
    assert newest_state(tmp_path)["epochs_done"] == 2
    said = capsys.readouterr().out
    assert "last_model.pth" in said and "odd.pth" in said


@pytest.mark.parametrize("name", ["status.json", "params.json"])
@pytest.mark.parametrize("raw", [b'{"status": "run', b"[1]", b"", b"\xff\xfe\x00"])
def test_a_damaged_old_run_is_told_and_passed_over(tmp_path, capsys, name, raw):
    old,new = new_run_dir("demo", root=tmp_path), new_run_dir("demo", root=tmp_path)
    for folder in (old, new):
        write_json(folder/"params.json", dict(lr=.1))
        mark_status(folder, "failed", tag="")
    (new/name).write_bytes(raw)
    from vitnb.experiment.run import release
    found = find_run("demo", dict(lr=.1), root=tmp_path)
    release(found)
    said = capsys.readouterr().out
    assert found == old and str(new/name) in said and "passed over" in said


@pytest.mark.parametrize("raw", [b"\xef\xbb\xbf[vitnb]\nworkers = 3\n", "[vitnb]\nworkers = 3\n".encode("utf-16"),
                                 b"# gr\xf6\xdfe\n[vitnb]\nworkers = 3\n", b"[vitnb]\r\nworkers = 3\r\n"])
def test_settings_that_windows_wrote(tmp_path, raw):
    (tmp_path/"settings.ini").write_bytes(raw)
    assert settings(tmp_path).workers == 3 and repo_root(tmp_path) == tmp_path


@pytest.mark.parametrize("raw", [b"[theme]\ncolour = %red\n", b"\x00\xff\x80binary", b"key value\n\xe9", b"\x0d\xff\xfe"])
def test_settings_of_another_program_are_no_workspace(tmp_path, raw):
    (tmp_path/"settings.ini").write_bytes(raw)
    assert repo_root(tmp_path) != tmp_path


@pytest.mark.parametrize("raw", [b"[vitnb]\nworkers\n", b"[vitnb]\nworkers = 1\nworkers = 2\n", b"x = 1\n[vitnb]\n",
                                 b"[vitnb]\ndata_path = ~nobody-has-this-name/x\n", b"[vitnb]\nworkers = \xe9\n",
                                 b"[vitnb]\ndata_path = a\x00b\n"])
def test_settings_that_are_wrong_name_their_file(tmp_path, raw):
    (tmp_path/"settings.ini").write_bytes(raw)
    with pytest.raises(ValueError, match="settings.ini"): settings(tmp_path)


@pytest.mark.parametrize("nb", [[1], {}, dict(cells={}), dict(cells=[3]), dict(cells=[dict(source=3, metadata={})]),
                                dict(cells=[dict(source="", metadata=[])]), dict(worksheets=[], nbformat=3)])
def test_what_is_no_notebook_is_named(tmp_path, nb):
    (tmp_path/"train_a.ipynb").write_text(json.dumps(nb))
    with pytest.raises(ValueError, match="train_a.ipynb"): read_notebook(tmp_path/"train_a.ipynb")


def test_arrays_that_promise_more_or_less_than_they_hold(tmp_path):
    path = tmp_path/"a.npy"
    np.save(path, CUBE)
    raw = path.read_bytes()
    assert np.array_equal(load_npy(path), CUBE)
    path.write_bytes(raw + b"x")
    for read in (load_npy, read_native, read_cube):
        with pytest.raises(ValueError, match="a.npy.*1 bytes behind its array"): read(path)
    path.write_bytes(raw.replace(b"(3, 4, 5), }      ", b"(3, 4, 5000000), }"))
    with pytest.raises(ValueError, match="a.npy"): load_npy(path)
    for shape in ((0, 3), ()):
        np.save(path, np.zeros(shape))
        assert load_npy(path).shape == shape
