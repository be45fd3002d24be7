"Sets of films: full depth from file to batch, options that make another set, splits by patients, masks in batches, and runs that read new films alike"
import dicom_files
import numpy as np
import pytest
import torch
from PIL import Image

from vitnb.data.chest import synthetic_chest_set
from vitnb.data.evaluate import eval_reader
from vitnb.data.filmset import FILM_SHARES, FilmSet, FilmSplit, as_films, pool_films, split_films
from vitnb.data.geometry import Flip
from vitnb.data.holdout import Split
from vitnb.data.lungmask import ZoneFlip, lung_zones
from vitnb.data.nifti import save_nifti
from vitnb.data.sets import folder_set, load_set
from vitnb.data.split import shared_groups
from vitnb.data.table import ImageSet
from vitnb.data.thorax import synthetic_films
from vitnb.data.zones import ZONE_FLIP, csi_task, film_strata

LOADING = dict(device="cpu", workers=0, bs=4)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    for name in ("data", "cache", "outputs"): monkeypatch.setenv(f"VITNB_{name.upper()}_PATH", str(tmp_path/name))
    monkeypatch.setenv("VITNB_HEADLESS", "1")


def on_disk(folder, n=12, size=32, masks=False, write=None):
    "A set of files, two films a patient"
    made = synthetic_films(n, size)
    folder.mkdir(exist_ok=True)
    for i in range(n):
        if write: write(folder/f"{i}", made.images[i])
        else: Image.fromarray(made.images[i]).save(folder/f"{i}.png")
        if not masks: continue
        (folder/"masks").mkdir(exist_ok=True)
        for side,lung in zip(("right", "left"), made.lungs[i]): Image.fromarray(255*lung.astype(np.uint8)).save(folder/f"masks/{i}_{side}_lung_mask.png")
    ends = sorted(p.name for p in folder.iterdir() if p.is_file())
    rows = [int(name.split(".")[0]) for name in ends]
    films = FilmSet("films", csi_task(), dict(train=Split(ends, made.scores[rows], made.patients[rows])), folder)
    return films,made,rows


WRITERS = dict(png=lambda p, a: Image.fromarray(a).save(f"{p}.png"), dicom=lambda p, a: dicom_files.write(f"{p}.dcm", a, 16), nifti=lambda p, a: save_nifti(f"{p}.nii.gz", a))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("cache", [True, False])
def test_sixteen_bits_come_from_the_file_into_the_batch(tmp_path, kind, cache):
    def write(path, image): WRITERS[kind](path, np.random.default_rng(0).permutation(65536)[:1024].reshape(32,32).astype(np.uint16))
    films,_,_ = on_disk(tmp_path/"films", write=write)
    films.set_options(window="full", bits=None if kind != "nifti" else 16)
    dls = split_films(films).loaders(32, augment="none", cache=cache, stats=([0.], [1.]), **LOADING)
    x = dls.train.one_batch()["image"]
    wanted = np.random.default_rng(0).permutation(65536)[:1024].reshape(32,32)
    assert (np.rint(x[0,0].double().numpy()*65535) == wanted).all() and len(x[0].unique()) == 1024


def test_another_window_is_another_set_and_another_cache(tmp_path):
    films,_,_ = on_disk(tmp_path/"films")
    prints = {films.fingerprint, films.set_options(window="full").fingerprint, films.set_options(fit="crop").fingerprint, films.set_options(low=1.).fingerprint}
    assert len(prints) == 4
    one = split_films(on_disk(tmp_path/"films")[0])
    two = split_films(on_disk(tmp_path/"films")[0].set_options(window="full"))
    x,y = [s.loaders(32, augment="none", **LOADING).valid.one_batch()["image"] for s in (one, two)]
    assert not torch.equal(x, y) and len(list((tmp_path/"cache").glob("films-*-full"))) == 2


def test_white_counts_as_one_and_statistics_lie_between(tmp_path):
    films,made,_ = on_disk(tmp_path/"films")
    films.set_options(window="full")
    mean,std = films.stats()
    assert films.white() == 65535 and abs(mean[0] - made.images.mean()/65535) < 1e-6 and abs(std[0] - made.images.std()/65535) < 1e-6
    assert len(films.stats("imagenet")[0]) == 3


def framed(folder, kind):
    "Six films of 40×28 pixels, bare or with padding of four kinds around them"
    rng = np.random.default_rng(3)
    folder.mkdir()
    for i in range(6):
        film = rng.integers(1000 + 100*i, 3000, (40,28)).astype(np.int16)
        wide = np.pad(film, (2 + i, 3), constant_values=-2000 if kind == "declared" else 0)
        tags = dict(PixelPaddingValue=-2000) if kind == "declared" else {}
        if kind in ("bare", "declared"): dicom_files.write(folder/f"{i}.dcm", film if kind == "bare" else wide, 16, PixelRepresentation=1, **tags)
        elif kind == "png": Image.fromarray(wide.astype(np.uint16)).save(folder/f"{i}.png")
        else: save_nifti(folder/f"{i}.nii.gz", wide)
    names = sorted(p.name for p in folder.iterdir())
    return FilmSet(kind, csi_task(), dict(train=Split(names, np.zeros((6,6), np.int64))), folder)


@pytest.mark.parametrize("fit", ["letterbox", "none"])
@pytest.mark.parametrize("kind", ["declared", "png", "nifti"])
def test_a_padded_film_is_normalised_as_the_bare_one(tmp_path, kind, fit):
    bare,padded = framed(tmp_path/"bare", "bare").set_options(fit=fit),framed(tmp_path/kind, kind).set_options(fit=fit)
    films = [bare.set_options(fit="none").read("train", i)[...,0] for i in range(6)]
    pixels = [int(value) for film in films for row in film for value in row] # one by one
    mean = sum(pixels)/len(pixels)
    std = (sum((value - mean)**2 for value in pixels)/len(pixels))**.5
    bare.set_options(fit=fit)
    for found in (bare.stats(), padded.stats()): assert np.allclose([found[0][0]*65535, found[1][0]*65535], [mean, std], rtol=1e-9)
    for i,film in enumerate(films):
        image,valid = padded.read_valid("train", i)
        assert (padded.read("train", i) == image).all() # training reads without the mask
        assert (image[valid].ravel() == film.ravel()).all() and image[~valid].max(initial=0) == 0
    if kind != "declared": # counted as image, it moves both
        assert abs(padded.set_options(frame="image").stats()[0][0]*65535 - mean) > 1000


def test_the_letterbox_of_films_that_are_arrays_and_of_a_plain_table_is_no_image(tmp_path):
    made = np.random.default_rng(0).integers(1, 65536, (6,20,12)).astype(np.uint16)
    arrays = FilmSet("arrays", csi_task(), dict(train=FilmSplit(made, np.zeros((6,6), np.int64), names=range(6))))
    assert np.allclose(arrays.stats(), [[made.mean()/65535], [made.std()/65535]])
    for i in range(6): Image.fromarray(made[i]).save(tmp_path/f"{i}.png")
    plain = ImageSet("plain", None, dict(train=Split([f"{i}.png" for i in range(6)])), tmp_path, reader="film")
    shown = np.stack([plain.read_valid("train", i)[0][:,4:16,0] for i in range(6)]) # 20×12 in 20×20
    for films in (arrays, plain): assert (films.read("train", 0) == films.read_valid("train", 0)[0]).all()
    assert np.allclose(plain.stats(), [[shown.mean()], [shown.std()]])


def test_statistics_of_three_channels_make_three_of_the_one(tmp_path):
    films = split_films(on_disk(tmp_path/"films")[0])
    dls = films.loaders(32, stats="imagenet", augment="film", **LOADING)
    b = dls.train.one_batch()
    assert b["image"].shape[1] == 3 and "in_chans" not in dls.model_kw
    undone = dls.train.normalizer.undo(b["image"])
    assert (undone[:,0] - undone[:,2]).abs().max() < 1e-2
    assert films.loaders(32, **LOADING).model_kw["in_chans"] == 1


def test_new_films_are_read_as_those_of_the_validation(tmp_path):
    films = split_films(on_disk(tmp_path/"films", size=48)[0].set_options(low=2., fit="crop"))
    dls = films.loaders(32, augment="film", stats="imagenet", **LOADING)
    reader = eval_reader(dls.config())
    x = reader.read([films.path("valid", i) for i in range(len(films.split("valid")))])["image"]
    assert torch.equal(x[:4], dls.valid.one_batch()["image"])
    assert dls.config()["reader"]["low"] == 2.


@pytest.mark.parametrize("seed", range(50))
def test_no_patient_stands_on_two_sides(seed):
    made = SPLIT
    films = FilmSet("films", csi_task(), dict(train=FilmSplit(made.images, made.scores, made.patients, names=range(len(made.scores)))))
    parts = split_films(films, seed=seed).splits
    groups = {name:set(part.groups.tolist()) for name,part in parts.items()}
    assert not groups["train"] & groups["test"] and not groups["train"] & groups["valid"] and not groups["valid"] & groups["test"]
    assert sum(map(len, parts.values())) == len(made.scores)


SPLIT = synthetic_films(30, 32)


def test_shares_are_70_15_15_and_strata_are_shared_alike():
    rng = np.random.default_rng(0)
    scores = np.clip(rng.integers(0, 4, (600,1)) + rng.integers(-1, 2, (600,6)), 0, 3)
    scores[rng.random(scores.shape) < .1] = 4
    films = FilmSet("films", csi_task(), dict(train=FilmSplit(np.zeros((600,4,4), np.uint16), scores, np.arange(600)//2, names=range(600))))
    parts = split_films(films).splits
    for name,share in FILM_SHARES.items(): assert abs(len(parts[name])/600 - share) < .02
    whole = np.bincount(film_strata(scores), minlength=10)/600
    for part in parts.values():
        own = np.bincount(film_strata(part.labels), minlength=10)/len(part)
        assert np.abs(own - whole)[whole > .03].max() < .06


def test_the_same_seed_gives_the_same_split_and_another_another():
    def test_names(seed): return split_films(synthetic_chest_set(60, 32), seed=seed).names("test")
    assert test_names(0) == test_names(0) != test_names(1)


def test_without_patients_it_is_said(capsys):
    films = FilmSet("films", csi_task(), dict(train=FilmSplit(SPLIT.images, SPLIT.scores, names=range(30))))
    split_films(films)
    assert "may stand on two sides" in capsys.readouterr().out and len(films.splits) == 3


def test_splits_that_share_a_patient_are_refused():
    half = [FilmSplit(SPLIT.images[i:i+15], SPLIT.scores[i:i+15], SPLIT.patients[i:i+15], names=range(15)) for i in (0, 15)]
    films = FilmSet("films", csi_task(), dict(train=half[0], valid=half[1], test=half[1]))
    with pytest.raises(ValueError, match="1 patients are in train and in valid"): split_films(films)
    with pytest.raises(ValueError, match="would do nothing"): split_films(films, FILM_SHARES)
    with pytest.raises(ValueError, match="must name train, valid and test"): split_films(synthetic_chest_set(20, 32), dict(train=.5, test=.5))


def test_any_set_of_files_becomes_one_of_films_with_patients_by_name(tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path/"set"/part/name).mkdir(parents=True)
            for i in range(6): Image.fromarray(SPLIT.images[i]).save(tmp_path/"set"/part/name/f"p{i % 3}_{i}.png")
    films = pool_films(as_films(folder_set(tmp_path/"set"), lambda path: path.split("/")[-1].split("_")[0], window="full"))
    assert set(films.splits) == {"train"} and len(films.split("train")) == 24 and len(np.unique(films.split("train").groups)) == 3
    parts = split_films(films).splits
    assert not shared_groups({k:np.flatnonzero(np.isin(np.arange(3), p.groups)) for k,p in parts.items()}, np.arange(3))
    assert films.loaders(16, augment="film", bs=2, device="cpu", workers=0).model_kw == dict(img_size=16, num_classes=2, in_chans=1)


def test_a_plain_table_may_name_the_reader_too(tmp_path):
    on_disk(tmp_path/"films")
    (tmp_path/"films"/"t.csv").write_text("file,kind\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(12)))
    found = load_set(tmp_path/"films"/"t.csv", label="kind", reader="film", valid=2)
    assert found.read("train", 0).dtype == np.uint16


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("cache_size", [None, 24])
def test_masks_come_with_their_films(tmp_path, cache, cache_size):
    films,made,rows = on_disk(tmp_path/"films", masks=True)
    films = split_films(films)
    films.masks = "masks"
    if cache_size and not cache: return
    dls = films.loaders(32, augment="none", cache=cache, cache_size=cache_size, masking="zero", stats=([0.], [1.]), **LOADING)
    b = next(iter(dls.valid))
    wanted = [lung_zones(torch.from_numpy(made.lungs[int(name)])[None])[0] for name in films.names("valid")[:4]]
    same = (b["mask"] == torch.stack(wanted)[:len(b["mask"])]).float().mean()
    assert same == 1 if cache_size is None else same > .95
    assert (b["image"][~b["mask"].any(1, keepdim=True)] == 0).all() and b["image"].max() > .1


def test_masks_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    from vitnb.data import filmset
    films = split_films(on_disk(tmp_path/"films", masks=True)[0])
    films.masks = "masks"
    read = filmset.read_lungs
    calls = []
    monkeypatch.setattr(filmset, "read_lungs", lambda *a: calls.append(a) or read(*a))
    films.loaders(32, augment="none", **LOADING)
    first = len(calls)
    list(films.loaders(32, augment="none", **LOADING).train)
    assert first >= 12 and len(calls) == first
    path = tmp_path/"films/masks/0_left_lung_mask.png"
    Image.fromarray(np.asarray(Image.open(path))//2).save(path)
    films.loaders(32, augment="none", **LOADING)
    assert len(calls) > first


def test_no_recipe_mirrors_a_film_and_leaves_its_masks(tmp_path):
    films = split_films(synthetic_chest_set(40, 32))
    films.masks = "masks"
    for augment in ("basic", "light", "crop_flip", "imagenet"):
        steps = films.loaders(32, augment=augment, **LOADING).train.pipeline.transforms
        assert any(type(s) is ZoneFlip for s in steps) and not any(type(s) is Flip for s in steps)
    dls = films.loaders(32, augment="basic", aug_kw=dict(flip=1.), stats=([0.], [1.]), **LOADING)
    b = dls.train.one_batch()
    part = films.split("train")
    for x,y,m,i in zip(b["image"], b["target"], b["mask"], b["index"]):
        assert torch.equal(y, torch.from_numpy(part.labels[i][list(ZONE_FLIP)]))
        assert np.allclose(x[0].flip(-1)*65535, part.items[i], atol=.01)
        assert torch.equal(m, lung_zones(torch.from_numpy(part.lungs[i][::-1,:,::-1].copy())[None])[0])


def test_new_films_with_masks_are_read_as_those_of_the_validation(tmp_path):
    films = split_films(on_disk(tmp_path/"films", masks=True)[0])
    films.masks = "masks"
    dls = films.loaders(32, masking="attention", **LOADING)
    found = eval_reader(dls.config()).read([films.path("valid", i) for i in range(len(films.split("valid")))])
    b = dls.valid.one_batch()
    n = len(b["image"])
    assert torch.equal(found["image"][:n], b["image"]) and torch.equal(found["mask"][:n], b["mask"])


def test_masks_that_are_missing_or_not_asked_for_are_named(tmp_path):
    films = split_films(on_disk(tmp_path/"films", masks=True)[0])
    with pytest.raises(ValueError, match="needs masks"): films.loaders(32, masking="zero")
    with pytest.raises(ValueError, match="unknown masking"): films.loaders(32, masking="black")
    films.masks = "masks"
    with pytest.raises(ValueError, match="overfit_batches"): films.loaders(32, overfit_batches=1)
    (tmp_path/"films/masks/3_left_lung_mask.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 12 films.*3\.png"): films.loaders(32, **LOADING)
