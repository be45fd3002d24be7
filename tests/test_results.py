"`vitnb predict` and `vitnb export`, as a shell meets them: files, output and exit codes"
import io

import pandas as pd
import pytest
from stored_runs import registered # noqa: F401

from vitnb.experiment import cli


@pytest.fixture
def photos(runs, tmp_path):
    "Two images of a run in a folder, and one that is no image"
    for n in range(2): (tmp_path/f"photo_{n}.png").write_bytes((runs["class"][0]/f"new_{n:03}.png").read_bytes())
    return tmp_path


def vitnb(capfd, *args):
    code = cli.main([*map(str, args)])
    out,err = capfd.readouterr()
    return code, out, err


def test_a_folder_becomes_a_csv(runs, photos, capfd):
    code,_,err = vitnb(capfd, "predict", runs["class"][0], photos, "-o", photos/"out.csv", "--device", "cpu")
    frame = pd.read_csv(photos/"out.csv", dtype={"prediction":str})
    assert code == 0 and frame.prediction.tolist() == [row["prediction"] for row in runs["class"][2][:2]]
    assert "weights of best_model.pth: as they were trained, epoch 1 (the best by accuracy)" in err


def test_standard_output_is_a_csv_and_nothing_else(runs, photos, capfd):
    code,out,_ = vitnb(capfd, "predict", runs["class"][0], photos, "--tta", "flip", "--device", "cpu")
    assert code == 0 and len(pd.read_csv(io.StringIO(out))) == 2


def test_a_file_without_an_answer_is_named_and_the_code_says_so(runs, photos, capfd):
    (photos/"bad.png").write_text("no image")
    code,out,err = vitnb(capfd, "predict", runs["class"][0], photos, "missing.png", "--device", "cpu")
    assert code == 3 and len(pd.read_csv(io.StringIO(out))) == 2
    for name in ("bad.png", "missing.png"): assert any(line.startswith("no answer for") and name in line for line in err.splitlines())


@pytest.mark.parametrize("args,says", [(["nowhere", "a.png"], "no run and no checkpoint nowhere"), (["RUN", "missing.png"], "Nothing is left"),
    (["RUN", "PHOTOS", "-o", "out.txt"], "end in .csv"), (["RUN", "PHOTOS", "--tta", "flop"], "unknown tta 'flop': did you mean 'flip'"), (["RUN", "PHOTOS", "--use", "ema"], "no averaged weights")])
def test_a_wrong_call_is_one_line_and_exit_2(runs, photos, capfd, args, says):
    args = [dict(RUN=runs["class"][0], PHOTOS=photos).get(a, a) for a in args]
    code,out,err = vitnb(capfd, "predict", *args, "--device", "cpu")
    assert code == 2 and says in err and "Traceback" not in err and not out


def test_an_export_predicts(runs, photos, capfd):
    assert vitnb(capfd, "export", runs["class"][0], "-o", photos/"m.safetensors")[0] == 0
    code,out,_ = vitnb(capfd, "predict", photos/"m.safetensors", photos/"photo_0.png", "--device", "cpu")
    assert code == 0 and str(pd.read_csv(io.StringIO(out), dtype=str).prediction[0]) == runs["class"][2][0]["prediction"]


def test_an_export_to_another_ending_is_refused(runs, photos, capfd):
    code,_,err = vitnb(capfd, "export", runs["class"][0], "-o", photos/"m.pt")
    assert code == 2 and "unknown ending of an export '.pt'" in err


def loads_nothing(*args, **how): raise AssertionError("a model was loaded")


@pytest.mark.parametrize("paths,says", [(["missing.png"], "no such file: missing.png"), (["a.png", "b.png"], "a.png, b.png"), (["none/*.png"], "no file matches 'none/*.png'"), (["EMPTY"], "holds no file"),
    (["TABLE"], "paths?"), (["PHOTOS", "--bs", "0"], "--bs 0 must be a whole number from 1"), (["PHOTOS", "no/*.jpg"], "no file matches"), (["~/none/*.png"], "no file matches '~/none/*.png'"), (["~/none.png"], "no such file: ~/none.png")])
def test_what_can_be_known_of_paths_is_said_before_a_model_is_loaded(runs, photos, capfd, monkeypatch, paths, says):
    (photos/"empty").mkdir()
    (photos/"table.csv").write_text("x,y\n1,2\n")
    monkeypatch.setattr("vitnb.learner.predict.load_run", loads_nothing)
    paths = [str(dict(EMPTY=photos/"empty", TABLE=photos/"table.csv", PHOTOS=photos).get(path, path)) for path in paths]
    code,out,err = vitnb(capfd, "predict", runs["class"][0], *paths)
    assert code == 2 and says in err and "Errno" not in err and not out


def test_a_missing_sample_of_an_export_is_said_before_a_model_is_loaded(runs, photos, capfd, monkeypatch):
    monkeypatch.setattr("vitnb.learner.export.load_run", loads_nothing)
    code,_,err = vitnb(capfd, "export", runs["class"][0], "-o", photos/"m.safetensors", "--sample", "missing.png")
    assert code == 2 and "no such file: missing.png" in err
