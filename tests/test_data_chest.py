"Scored films by name and from a table, what is refused, and that no person of a DICOM header goes anywhere"
import json
import logging
from pathlib import Path

import dicom_files
import numpy as np
import pandas as pd
import pytest
import tiny_heads
import torch
from PIL import Image

from vitnb.data.chest import CSI_UNKNOWN, ZONE_FLIP, ZONES, chest_set, csi_task, load_chest, pneumonia_patient
from vitnb.data.filmset import FilmSet
from vitnb.data.sets import load_set, sets
from vitnb.data.thorax import synthetic_films
from vitnb.learner.core import run_callbacks, vit_learner
from vitnb.learner.predict import predict

LOADING = dict(device="cpu", workers=0, bs=4)
MADE = synthetic_films(24, 32)
SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    for name in ("data", "cache", "outputs"): monkeypatch.setenv(f"VITNB_{name.upper()}_PATH", str(tmp_path/name))
    monkeypatch.setenv("VITNB_HEADLESS", "1")


@pytest.fixture
def tiny():
    with tiny_heads.known() as name: yield name


def table(folder, n=24, films=24, write=None, extra=None, name="scores.csv", patient=lambda i: f"p{i//2}"):
    "A csv of n films of which so many are there"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(films):
        if write: write(folder/f"{i:04}.dcm", MADE.images[i])
        else: Image.fromarray(MADE.images[i]).save(folder/f"{i:04}.png")
    frame = pd.DataFrame([dict(zip(ZONES, s)) for s in MADE.scores[:n].tolist()])
    frame.insert(0, "FileID", [f"{i:04}" for i in range(n)])
    frame["patient"] = [patient(i) for i in range(n)]
    for column,values in (extra or {}).items(): frame[column] = values
    frame.to_csv(folder/name, sep=";", index=False)
    return folder/name


def test_the_embedded_set_is_a_set_by_name_and_called_synthetic(monkeypatch):
    asked = []
    monkeypatch.setattr("vitnb.data.chest.synthetic_films", lambda n, size, seed: asked.append((n, size)) or synthetic_films(n//10, size//3, seed))
    monkeypatch.setattr("vitnb.data.chest.range", lambda n: range(n//10), raising=False)
    assert "chest_synthetic" in sets and "cxr_pneumonia" in sets
    s = load_set("chest_synthetic")
    assert isinstance(s, FilmSet) and s.name == "chest_synthetic" and set(s.splits) == {"train", "valid", "test"}
    assert s.tasks.only == csi_task() and sum(map(len, s.splits.values())) == 60 and asked == [(600, 96)]
    groups = [set(v.groups.tolist()) for v in s.splits.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert all(name.startswith("synthetic-") for name in s.names("test"))


def test_a_batch_has_six_scores_a_film_and_the_model_is_told():
    films = load_chest(n=40, size=32)
    dls = films.loaders(**LOADING)
    x,y = dls.train.one_batch()
    assert x.shape == (4,1,32,32) and y.shape == (4,6) and y.dtype == torch.int64 and 0 <= y.min() and y.max() <= CSI_UNKNOWN
    assert dls.model_kw == dict(img_size=32, num_classes=(6,5), in_chans=1)


def test_seven_tenths_train_and_the_rest_is_halved():
    parts = [len(part) for part in load_chest(n=240, size=32).splits.values()]
    assert sum(parts) == 240 and all(abs(n/240 - share) < .05 for n,share in zip(parts, (.7, .15, .15)))


def test_a_table_and_its_films(tmp_path):
    films = chest_set(table(tmp_path/"films"), patient="patient", window="full")
    for name in films.splits:
        for i,film in enumerate(films.names(name)):
            assert (films.read(name, i)[...,0] == MADE.images[int(film)]).all()
            assert films.split(name).labels[i].tolist() == MADE.scores[int(film)].tolist()
            assert film == f"{int(film):04}"
    assert films.report.rows == 24 and not films.report.lines() and films.csi is None


def test_the_films_may_lie_elsewhere_and_the_table_be_a_frame(tmp_path):
    path = table(tmp_path/"films")
    frame = pd.read_csv(path, sep=";", dtype=dict(FileID=str))
    found = chest_set(frame, tmp_path/"films", patient="patient", name="mine")
    assert found.name == "mine" and sum(map(len, found.splits.values())) == 24
    with pytest.raises(ValueError, match="lies nowhere"): chest_set(frame)


def test_listed_films_that_are_absent_are_counted_or_refused(tmp_path, capsys):
    path = table(tmp_path/"films", films=20)
    found = chest_set(path, patient="patient")
    assert sum(map(len, found.splits.values())) == 20 and found.report.absent == ["0020", "0021", "0022", "0023"]
    assert "4 rows have no film and are left out, such as 0020" in capsys.readouterr().out
    with pytest.raises(ValueError, match="4 of 24 films are not below"): chest_set(path, patient="patient", absent="error")


def test_masks_that_are_absent_are_refused_when_the_table_is_read(tmp_path):
    path = table(tmp_path/"films", n=7, films=7)
    (tmp_path/"films"/"masks").mkdir()
    for i in range(6):
        for side,lung in zip(("right", "left"), MADE.lungs[i]): Image.fromarray(lung).save(tmp_path/"films"/"masks"/f"{i:04}_{side}_lung_mask.png")
    with pytest.raises(ValueError, match="1 of 7 films of scores have no two masks in the folder 'masks'.*0006"): chest_set(path, patient="patient", masks="masks")
    assert sum(map(len, chest_set(path, patient="patient", masks="masks", exclude=["0006"]).splits.values())) == 6


def test_what_does_not_fit_is_refused_before_anything_is_read(tmp_path):
    path = table(tmp_path/"films", films=1)
    frame = pd.read_csv(path, sep=";", dtype=str)
    for change,text in ((frame.drop(columns="left_inf"), "no column 'left_inf'"), (pd.concat([frame, frame[:1]]), "is in rows"), (frame.assign(patient=""), "has no patient")):
        with pytest.raises(ValueError, match=text): chest_set(change, tmp_path/"films", patient="patient")
    with pytest.raises(ValueError, match="give sep=';'"): chest_set(path, sep=",", patient="patient")
    with pytest.raises(ValueError, match="unknown separator"): chest_set(path, sep="-")
    with pytest.raises(ValueError, match="cells are no score"): chest_set(frame.assign(left_inf="7"), tmp_path/"films", odd="error")
    with pytest.raises(ValueError, match="unknown absent"): chest_set(path, absent="drop")
    with pytest.raises(ValueError, match="did you mean 'window'"): chest_set(path, widow="full")


def test_a_film_that_cannot_be_read_is_left_out_and_counted(tmp_path, capsys):
    path = table(tmp_path/"films", write=lambda p, a: dicom_files.write(p, a, 16))
    report = dicom_files.dataset(MADE.images[3], 16)
    del report.PixelData
    report.save_as(tmp_path/"films"/"0003.dcm", enforce_file_format=True)
    films = chest_set(path, patient="patient", max_bad=.1)
    films.loaders(32, **LOADING)
    assert list(films.unreadable) == ["0003.dcm"] and "no pixel data" in films.unreadable["0003.dcm"]
    assert "1 of 24 files of scores cannot be read" in capsys.readouterr().out


def test_a_column_of_splits_is_kept_and_must_not_share_a_patient(tmp_path):
    names = ["train"]*16 + ["valid"]*4 + ["test"]*4
    found = chest_set(table(tmp_path/"films", extra=dict(part=names)), patient="patient", split="part")
    assert [len(found.splits[k]) for k in ("train", "valid", "test")] == [16, 4, 4]
    with pytest.raises(ValueError, match="is in train and in valid"):
        chest_set(table(tmp_path/"more", extra=dict(part=["train"]*15 + ["valid"]*5 + ["test"]*4)), patient="patient", split="part")


def test_the_mean_of_the_table_is_kept_by_name_and_is_no_target(tmp_path):
    known = MADE.scores != 4
    mean = (MADE.scores*known).sum(1)/np.maximum(known.sum(1), 1)
    found = chest_set(table(tmp_path/"films", extra=dict(csi=mean.round(3))), patient="patient")
    assert found.csi["0005"] == mean.round(3)[5] and found.report.csi_differs == 0 and list(found.tasks) == [""]


def test_excluded_films_do_not_come(tmp_path):
    found = chest_set(table(tmp_path/"films"), patient="patient", exclude=["0001", "0007"])
    assert found.report.excluded == 2 and not {"0001", "0007"} & {n for k in found.splits for n in found.names(k)}


def test_by_name_by_path_and_mistakes(tmp_path):
    path = table(tmp_path/"data"/"films")
    assert load_chest("films/scores.csv", patient="patient").names("test") == chest_set(path, patient="patient").names("test")
    assert max(np.bincount(load_chest(n=60, size=32, limit=2).split("train").labels[:,0])) < 30
    with pytest.raises(ValueError, match="no table at"): load_chest("nowhere.csv")
    with pytest.raises(ValueError, match="no option 'window'"): load_chest(window="full")
    with pytest.raises(ValueError, match="does nothing for a table"): load_chest(path, root=tmp_path)
    with pytest.raises(ValueError, match="whole number from 1"): load_chest(limit=0)
    with pytest.raises(ValueError, match="cxr_pneumonia is not at"): load_chest("cxr_pneumonia")


def test_a_mirrored_film_has_the_scores_of_the_other_side():
    films = load_chest(n=40, size=32)
    dls = films.loaders(augment="basic", aug_kw=dict(flip=1.), stats=([0.], [1.]), **LOADING)
    b = dls.train.one_batch()
    part = films.split("train")
    assert all(y.tolist() == part.labels[i][list(ZONE_FLIP)].tolist() for y,i in zip(b["target"], b["index"]))


def pneumonia(root, n=8):
    for part in ("train", "test"):
        for name,pattern in (("NORMAL", "IM-{:04}-0001.jpeg"), ("PNEUMONIA", "person{}_virus_7.jpeg")):
            (root/part/name).mkdir(parents=True)
            for i in range(n): Image.fromarray((MADE.images[i] >> 8).astype(np.uint8)).save(root/part/name/pattern.format(i))
    return root


@pytest.mark.parametrize("load", [load_set, lambda p: load_chest("cxr_pneumonia", p, window="full"), lambda p: load_set("cxr_pneumonia", p)])
def test_films_with_one_diagnosis_are_divided_by_person(tmp_path, load):
    films = load(pneumonia(tmp_path/"set"))
    assert isinstance(films, FilmSet) and films.classes == ["NORMAL", "PNEUMONIA"] and sum(map(len, films.splits.values())) == 32
    who = [{pneumonia_patient(item) for item in part.items} for part in films.splits.values()]
    assert not who[0] & who[1] and not who[0] & who[2] and not who[1] & who[2]


@pytest.mark.skipif(not (SHARED/"cxr_pneumonia.zip").is_file(), reason="the films of ../shared/data are not there")
def test_the_published_films_have_a_thousand_persons():
    import zipfile
    names = [n for n in zipfile.ZipFile(SHARED/"cxr_pneumonia.zip").namelist() if n.endswith(".jpeg")]
    assert len(names) == 1395 and all(pneumonia_patient(n) != n for n in names) and len({pneumonia_patient(n) for n in names}) > 900


def all_text(folder):
    "Bytes of every file below a folder, with its name"
    return {path:path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_name_and_no_identifier_of_a_header_leaves_the_file(tmp_path, tiny, capfd, caplog, recwarn):
    "Read, cached, shown, trained, predicted, and once broken: the person is in the DICOM files and nowhere else"
    from matplotlib import pyplot as plt
    caplog.set_level(logging.DEBUG)
    path = table(tmp_path/"films", write=lambda p, a: dicom_files.write(p, a, 16), patient=lambda i: f"Quxley {i//2}")
    (tmp_path/"films"/"0002.dcm").write_bytes((tmp_path/"films"/"0002.dcm").read_bytes()[:-300])
    films = chest_set(path, patient="patient", max_bad=.2)
    dls = films.loaders(32, augment="film", stats=([.5], [.25]), **LOADING)
    run = tmp_path/"outputs"/"run"
    learn = vit_learner(dls, tiny, device="cpu", precision="fp32", seed=1)
    learn.fit(1, cbs=run_callbacks(run, tracker="none"))
    dls.train.show_batch()
    plt.savefig(run/"batch.svg")
    plt.close("all")
    found = predict(run, [films.path("test", 0)], device="cpu")
    (run/"predictions.json").write_text(json.dumps([str(row) for row in found]))
    written = {p:data for p,data in all_text(tmp_path).items() if p.parent != tmp_path/"films"}
    assert any(p.suffix == ".bin" for p in written) and any(p.suffix == ".pth" for p in written) and (run/"history.csv") in written
    said = "".join([*capfd.readouterr(), caplog.text, *(str(w.message) for w in recwarn), repr(films), films._repr_markdown_(), str(films.unreadable), str(films.report)])
    assert "0002.dcm" in said # the broken film is named by its file
    for secret in dicom_files.SECRETS:
        assert secret not in said, secret
        assert not [str(p) for p,data in written.items() if secret.encode() in data or secret in p.name]
        assert secret.encode() in (tmp_path/"films"/"0000.dcm").read_bytes() or secret in path.read_text()
