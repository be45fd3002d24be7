"Films with one diagnosis: of folders, tables and synthetic, divided by patients, through the networks of zones"
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vitnb.data.diagnosis import CONGESTED, as_diagnosis, congestion_films, load_diagnosis
from vitnb.data.sets import load_set
from vitnb.data.thorax import synthetic_films
from vitnb.learner.core import vit_learner

MADE = synthetic_films(32, 32)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    for name in ("data", "cache", "outputs"): monkeypatch.setenv(f"VITNB_{name.upper()}_PATH", str(tmp_path/name))
    monkeypatch.setenv("VITNB_HEADLESS", "1")


def write(folder, parts=("",)):
    "Films of two classes, of persons as Kermany et al. name them"
    for part in parts:
        for name,pattern in (("NORMAL", "IM-{:04}-0001.png"), ("PNEUMONIA", "person{}_virus_7.png")):
            (folder/part/name).mkdir(parents=True)
            for i in range(12): Image.fromarray(MADE.images[i]).save(folder/part/name/pattern.format(i//2 if name == "NORMAL" else i))
    return folder


def test_synthetic_films_are_congested_above_the_first_band():
    "Against a loop over films, unknown zones left out"
    films = congestion_films(n=32, size=32)
    part = films.split("train")
    for name,(there,) in zip(part.names, part.labels):
        scores = [s for s in MADE.scores[int(name.split("-")[1])] if s != 4]
        assert there == (sum(scores)/len(scores) > CONGESTED)
    assert films.name == "congestion_synthetic" and len(part) == (MADE.scores != 4).any(1).sum()


def test_the_published_films_are_put_together_and_divided_by_person(tmp_path):
    films = load_diagnosis(write(tmp_path/"set", ("train", "test")))
    assert films.tasks.only.names == ("PNEUMONIA",) and films.reader == "film"
    groups = [set(part.groups) for part in films.splits.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    for part in films.splits.values(): assert ["PNEUMONIA" in item for item in part.items] == part.labels[:,0].astype(bool).tolist()


def test_a_table_says_patients_and_the_class_that_is_the_diagnosis(tmp_path, capsys):
    folder = write(tmp_path/"set")
    rows = [dict(image=f"{name}/{path.name}", sick=name, who=path.name.split("-")[1] if "-" in path.name else path.stem) for name in ("NORMAL", "PNEUMONIA")
            for path in sorted((folder/name).iterdir())]
    pd.DataFrame(rows).to_csv(folder/"table.csv", index=False)
    films = load_diagnosis(folder/"table.csv", positive="NORMAL", image="image", label="sick", group="who")
    assert films.tasks.only.names == ("NORMAL",) and set(films.splits) == {"train", "valid", "test"}
    assert "does not say which films" not in capsys.readouterr().out
    load_diagnosis(folder, positive="NORMAL")
    assert "does not say which films" in capsys.readouterr().out, "class folders name no patients, and that is said"


@pytest.mark.parametrize("given,says", [(dict(positive="ill"), "'ill'"), (dict(label="sick"), "would do nothing"), (dict(shares=dict(train=1.)), "must name train, valid and test")])
def test_what_cannot_be_meant_is_refused(tmp_path, given, says):
    with pytest.raises(ValueError, match=says): load_diagnosis(write(tmp_path/"set"), **given)


def test_more_classes_than_two_are_no_diagnosis():
    with pytest.raises(ValueError, match="does not have two classes"): as_diagnosis(load_set("digits", limit=2))
    with pytest.raises(ValueError, match="has one label"): load_diagnosis(n=40, size=32, positive="congested")


def test_a_network_of_zones_learns_one_label_and_its_history_has_the_area():
    films = load_diagnosis(n=80, size=32)
    dls = films.loaders(augment="film", bs=16, seed=0, device="cpu", workers=0)
    learn = vit_learner(dls, "csi_micro", dict(pool="global"), seed=0, device="cpu", lr=3e-3)
    with learn.no_bar(): learn.fit(3)
    row = learn.recorder.rows[-1]
    assert learn.model.num_classes == 1 and learn.columns["auroc"].better == "max" and .6 < row["auroc"] <= 1
    with pytest.raises(ValueError, match="pool='global'"): vit_learner(dls, "csi_micro", seed=0, device="cpu")
