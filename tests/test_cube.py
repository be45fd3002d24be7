"Sets of cubes by name, catalogue and path"
from pathlib import Path

import numpy as np
import pytest
from cube_files import CUBE, four, own_cache, rows, write_npy

from vitnb.data.cube import cube_loaders, load_cube_set
from vitnb.data.split import shared_groups

h5py = pytest.importorskip("h5py")


def test_a_corrupt_file_among_a_thousand_does_not_end_a_run_unless_asked(tmp_path):
    small = np.random.default_rng(1).random((3,4,4), dtype=np.float32)
    for i in range(1000): write_npy(tmp_path/f"c{i:03}.npy", small)
    (tmp_path/"c500.npy").write_bytes((tmp_path/"c500.npy").read_bytes()[:60])
    (tmp_path/"set.csv").write_text("ID,label,hs_file,rgb_file\n" + "".join(f"p{i//2},{'ab'[i//2%2]},c{i:03}.npy,\n" for i in range(1000)))
    s = load_cube_set(tmp_path/"set.csv", axes="chw")
    assert len(s.records) == 999 and list(s.unreadable) == ["c500.npy"] and len(list(cube_loaders(s, bs=100, normalize="none", device="cpu").train)) == 5
    with pytest.raises(ValueError, match=r"1 of 1,000 cubes.*c500.npy.*max_bad=0"): load_cube_set(tmp_path/"set.csv", axes="chw", max_bad=0)


def test_a_missing_file_is_named(tmp_path):
    f = rows(tmp_path, *four(tmp_path), "p9,b,gone.npy,")
    with pytest.raises(ValueError, match="gone.npy .the file is missing"): load_cube_set(f, axes="chw")
    assert list(load_cube_set(f, axes="chw", max_bad=.2).unreadable) == ["gone.npy"]


def test_a_wrong_band_count_is_named(tmp_path):
    lines = four(tmp_path)
    write_npy(tmp_path/"odd.npy", CUBE[:5])
    f = rows(tmp_path, *lines, "p9,a,odd.npy,")
    with pytest.raises(ValueError, match="odd.npy .it has 5 bands, the others 6"): load_cube_set(f, axes="chw")
    with pytest.raises(ValueError, match="it has 6 bands .* not 7"): load_cube_set(f, axes="chw", bands=7)
    with pytest.raises(ValueError, match="5 wavelengths .* do not fit 6 bands"): load_cube_set(f, axes="chw", wavelengths=range(400, 450, 10), max_bad=.2)


def test_a_folder_and_its_wavelengths(tmp_path):
    for k in range(12):
        d = tmp_path/"set"/"ab"[k%2]/f"patient{k}"
        d.mkdir(parents=True)
        for eye in range(2):
            with h5py.File(d/f"{eye}.h5", "w") as f:
                f["Cube/Images"] = CUBE
                f["Cube/Wavelength"] = np.arange(450, 510, 10.)
    s = load_cube_set(tmp_path/"set")
    assert s.classes == ["a","b"] and len(s.records) == 24 and s.wavelengths.tolist() == [*range(450, 510, 10)]
    assert not shared_groups(s.splits, [r.group for r in s.records])


SHARED = Path(__file__).resolve().parents[2]/"shared"/"data" # whatever the settings of this workspace say


@pytest.mark.parametrize("name,folder,bands,classes", [("indian_pines", "hsi_indian_pines_subset", 200, 4), ("jasper_ridge", "hsi_jasper_ridge", 198, 4), ("samson", "hsi_samson", 156, 3)])
def test_published_scenes(name, folder, bands, classes):
    if not (SHARED/folder).is_dir(): pytest.skip(f"{folder} is not at hand")
    s = load_cube_set(name, root=SHARED/folder)
    r = s.records[0]
    assert s.bands == bands == len(s.wavelengths) and s.n_classes == classes and (np.diff(s.wavelengths) > 0).all()
    cube = r.source.read()
    means = np.stack([cube[:,r.label_map == c].mean(1) for c in range(classes)])
    flat,y = cube.reshape(bands, -1).T,r.label_map.ravel()
    cos = flat @ means.T/np.linalg.norm(flat, axis=1)[:,None]/np.linalg.norm(means, axis=1)
    assert (cos.argmax(1)[y >= 0] == y[y >= 0]).mean() > .5, "classes and spectra fit each other only if the order of the pixels is right"


# ---------- catalogues that would let a patient into two splits

def catalogue(folder, *lines, head="ID,label,hs_file"):
    for number in range(9): np.save(folder/f"{number}.npy", np.full((3, 4, 4), number + 1, np.float32))
    (folder/"eyes.csv").write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return folder/"eyes.csv"


def test_spaces_and_case_make_no_other_patient_and_no_other_class(tmp_path, capsys):
    lines = ["p0 ,sick,0.npy", "p0,sick ,1.npy", "P0, well,2.npy", "p1\xa0,well,3.npy", "p1,sick,4.npy", "p2,well,5.npy",
             "cafe\u0301,well,6.npy", "caf\u00e9,sick,7.npy", ",,"]
    loaded = load_cube_set(catalogue(tmp_path, *lines), axes="chw")
    groups = {record.name:record.group for record in loaded.records}
    assert len(set(groups.values())) == 4 and len({groups[f"{n}.npy"] for n in range(3)}) == 1
    assert groups["6.npy"] == groups["7.npy"] and loaded.classes == ["sick", "well"]
    said = capsys.readouterr().out
    assert "eyes.csv" in said and "'P0'" in said


@pytest.mark.parametrize("lines, why", [
    (["p0,a,0.npy", "p1,a,./0.npy", "p2,b,1.npy"], "0.npy under patient 'p0' and 'p1'"),
    (["p0,a,0.npy", "p0,b,0.npy", "p2,b,1.npy"], "0.npy under label 'a' and 'b'"),
    (["p0,a,0.npy", "p1,,1.npy", "p2,b,2.npy"], "line 3: its label is empty"),
    (["p0,a,0.npy", " ,a,1.npy"], "line 3: its ID is empty"),
    (["p0,a,0.npy,x,y"], "line 2: it has more cells"),
    ([",,"], "no row with a cube")])
def test_a_catalogue_that_leaks_or_lacks_is_refused(tmp_path, lines, why):
    with pytest.raises(ValueError, match="eyes.csv") as said: load_cube_set(catalogue(tmp_path, *lines), axes="chw")
    assert why in str(said.value)


def test_a_cube_that_is_listed_twice_counts_once(tmp_path, capsys):
    lines = [f"p{number},a,{number}.npy" for number in range(6)]
    loaded = load_cube_set(catalogue(tmp_path, *lines, "p0,a,0.npy"), axes="chw")
    assert len(loaded.records) == 6 and "1 rows name a cube again" in capsys.readouterr().out


# ---------- files of one scene

def test_what_is_guessed_is_said_at_each_load(tmp_path, capsys):
    write_npy(tmp_path/"a.npy")
    write_npy(tmp_path/"b.npy")
    for name in ("a", "b", "a"):
        load_cube_set(tmp_path/f"{name}.npy", block=6)
        assert f"{name}.npy: axes are guessed as chw, 6 bands" in capsys.readouterr().out


@pytest.mark.parametrize("option,says", [(dict(ignore="x"), "ignore='x' must be a number"), (dict(scale="x"), "scale='x' must be above 0"), (dict(scale=-1), "scale=-1 must be"), (dict(truth="gt"), "no parts"),
    (dict(wavelengths="none.txt"), "no file in"), (dict(wavelength_unit="inch"), "unknown wavelength_unit"), (dict(thruth="x"), "did you mean 'truth'"), (dict(axes="auto", bands=7), "not 7")])
def test_options_that_cannot_be_are_refused_by_name(tmp_path, option, says):
    with pytest.raises(ValueError, match=says): load_cube_set(write_npy(tmp_path/"a.npy"), **{**dict(axes="chw", block=6), **option})


def test_prediction_reads_a_cube_as_training_did(tmp_path):
    "Scale, ignored values and the order that wavelengths chose go into the configuration of the reader"
    from vitnb.data.evaluate import eval_reader
    raw = np.round(CUBE*1e4).transpose(1,2,0).astype("i2")
    raw[:2] = -9999
    np.save(tmp_path/"a.npy", raw)
    s = load_cube_set(tmp_path/"a.npy", wavelengths=np.linspace(400, 900, 6), scale=1e-4, ignore=-9999, block=6, guard=1)
    dls = cube_loaders(s, bs=1, window=6, normalize="zscore", device="cpu", workers=0)
    (tmp_path/"other").mkdir()
    np.save(tmp_path/"other"/"b.npy", raw)
    batch = eval_reader(dls.config()).read([tmp_path/"other"/"b.npy"])
    assert batch["image"].shape == (1,6,20,16) and not batch["mask"][0,0,:2].any() and batch["mask"][0,0,2:].all()
    whole = dls.normalizer.normalize(__import__("torch").from_numpy(s.records[0].source.read()[None]))
    assert np.allclose(batch["image"][0,:,2:], whole[0,:,2:], atol=1e-5)
