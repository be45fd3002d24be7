"Batches of image and spectral image: what is missing, and that both stay together"
import numpy as np
import pytest
import torch
from PIL import Image
from companion_helpers import loaders, pairs

from vitnb.data.companion import CompanionSplit, companion_path, survey_companions
from vitnb.data.companionloader import companion_loaders
from vitnb.data.draws import Draws
from vitnb.data.evaluate import eval_reader
from vitnb.data.image import UnreadableImage
from vitnb.data.sets import load_set
from vitnb.data.table import ImageSet
from vitnb.models.hvit import HierarchicalViT # noqa: F401, registers hvit_micro
from vitnb.models.protocol import create_model


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("VITNB_DATA_PATH", str(tmp_path/"data"))
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))


def test_a_batch_has_two_inputs_and_the_model_is_told_their_channels(tmp_path):
    dls = loaders(pairs(tmp_path))
    b = dls.train.one_batch()
    assert b.inputs == ("image", "spectral") and len(b) == 3 and b["spectral"].shape == (4,2,8,8) and b["spectral"].dtype == torch.float32
    assert dls.model_kw == dict(img_size=8, num_classes=2, spectral_channels=2) and "has_spectral" not in b.fields
    assert all(o.inputs == ("image", "spectral") for dl in dls.loaders for o in dl)


@pytest.mark.parametrize("augment", ["light", "moderate", "aggressive", "imagenet"])
def test_both_images_are_moved_by_the_same_draws(tmp_path, augment):
    "The first spectral channel is the image's red one, and it still is wherever nothing but movement happened"
    kw = dict(color=False, cutout=0.) if augment == "aggressive" else dict(color=False) if augment == "moderate" else {}
    dls = loaders(pairs(tmp_path), augment=augment, aug_kw=kw)
    b = dls.train.one_batch()
    norm = next(t for t in dls.train.pipeline.transforms if type(t).__name__ == "SpectralNormalize")
    red = b["image"][:,0] # stats make it the stored values
    back = b["spectral"][:,0]*norm.std[0] + norm.mean[0]
    assert (red - back).abs().max() < 4.1 and red.std() > 10 # 8 bits are rounded after each step


def test_validation_is_normalised_by_the_statistics_of_train(tmp_path):
    root = pairs(tmp_path)
    all_train = np.stack([np.load(o) for o in sorted((root/"train").rglob("*.npy"))])
    known = survey_companions(load_set(root))
    assert np.allclose(known.mean, all_train.mean((0,2,3))) and np.allclose(known.std, all_train.std((0,2,3)))
    dls = loaders(root, size=12, bs=12)
    raw = np.load(root/"test"/"a"/"0_spectral.npy")[:,:,2:14]
    want = (raw - all_train.mean((0,2,3))[:,None,None])/all_train.std((0,2,3))[:,None,None]
    assert torch.allclose(dls.test.one_batch()["spectral"][0], torch.from_numpy(want).float(), atol=1e-4)


def test_the_cache_at_a_smaller_size_shrinks_both(tmp_path):
    dls = loaders(pairs(tmp_path, size=(24,32)), 8, cache=True, cache_size=12)
    fields = dls.valid.dataset.read(np.arange(3))
    assert fields["image"].shape[-2:] == fields["spectral"].shape[-2:] == (12,16)
    assert (fields["image"][:,0].float() - fields["spectral"][:,0]).abs().max() < 1


def test_workers_and_views_give_the_same_samples(tmp_path):
    root = pairs(tmp_path)
    one,two = (loaders(root, augment="light", workers=w, views=2) for w in (0, 2))
    a,b = next(iter(one.train)),next(iter(two.train))
    assert a["spectral"].shape == (4,2,2,8,8) and torch.equal(a["spectral"], b["spectral"]) and torch.equal(a["image"], b["image"])
    assert not torch.equal(a["spectral"][:,0], a["spectral"][:,1])


def test_a_reader_made_from_the_configuration_reads_what_evaluation_read(tmp_path):
    root = pairs(tmp_path)
    for optional in (False, True):
        if optional: companion_path(root/"test"/"a"/"0.png").unlink()
        dls = loaders(root, bs=12, optional=optional)
        files = [root/o for o in dls.image_set.splits["test"].items]
        got,want = eval_reader(dls.config()).read(files),dls.test.one_batch()
        assert got.inputs == want.inputs and all(torch.equal(got[k], want[k]) for k in got.inputs)
    with pytest.raises(UnreadableImage, match="no 0_spectral.npy"): eval_reader({**dls.config(), "reader":{**dls.reader, "optional":False}}).read(files[:1])
    with pytest.raises(ValueError, match="an array has no spectral file"): eval_reader(dls.config()).read([np.zeros((8,8,3), np.uint8)])


def test_a_file_of_the_wrong_size_is_an_error_that_counts_and_says_what_fits(tmp_path):
    root = pairs(tmp_path)
    for i in (1, 4): np.save(root/"valid"/"b"/f"{i}_spectral.npy", np.zeros((2,16,12), np.float32))
    with pytest.raises(ValueError, match=r"2 of 36 spectral files do not fit: 1_spectral.npy \(it is \(2, 16, 12\) and its image 12×16.*store \(C,12,16\)"): loaders(root)


@pytest.mark.parametrize("array,said", [(np.zeros((1,2,12,16)), "shape"), (np.array(["x"]), "spectral image"), (np.full((2,12,16), np.nan), "not finite"),
    (np.zeros((3,12,16)), "it has 3 channels, the others 2")])
def test_other_files_that_do_not_fit_are_errors(tmp_path, array, said):
    root = pairs(tmp_path)
    np.save(root/"train"/"a"/"0_spectral.npy", array)
    with pytest.raises(ValueError, match=said): loaders(root)


def test_a_file_that_is_no_array_is_an_error_with_its_name(tmp_path):
    root = pairs(tmp_path)
    (root/"train"/"a"/"0_spectral.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="1 of 36 spectral files do not fit: 0_spectral.npy"): loaders(root)


def test_missing_files_are_counted_and_optional_ones_are_zeros_that_say_so(tmp_path, capsys):
    root = pairs(tmp_path)
    for i in (0, 3): (root/"train"/"a"/f"{i}_spectral.npy").unlink()
    with pytest.raises(ValueError, match="2 of 36 images of .* have no spectral file, such as train/a/0.png"): loaders(root)
    dls = loaders(root, bs=12, optional=True)
    assert "2 images" in capsys.readouterr().out
    b = dls.train.one_batch()
    lacking = torch.tensor([dls.image_set.splits["train"].items[i] in ("train/a/0.png", "train/a/3.png") for i in b["index"]])
    assert torch.equal(b["has_spectral"], ~lacking) and lacking.sum() == 2
    assert (b["spectral"][lacking] == 0).all() and (b["spectral"][~lacking].flatten(1).std(1) > .1).all()


def test_the_fingerprint_of_a_run_speaks_of_the_spectral_files(tmp_path):
    "Another number of bands, or a file more, is other data; images loaded by themselves are not touched by it"
    root = pairs(tmp_path)
    prints = lambda: (load_set(root).fingerprint, loaders(root, optional=True).image_set.fingerprint)
    alone,both = prints()
    assert both != alone and prints() == (alone, both)
    companion_path(root/"valid"/"b"/"3.png").unlink()
    fewer = prints()
    assert fewer[0] == alone and fewer[1] not in (alone, both)
    for file in root.rglob("*_spectral.npy"): np.save(file, np.load(file)[:1])
    assert prints()[0] == alone and prints()[1] not in (alone, both, fewer[1])
    rng = np.random.default_rng(0)
    images,spectra = rng.integers(0, 256, (6,8,8,3), dtype=np.uint8),rng.random((6,2,8,8))
    def arrays(s): return ImageSet("arrays", ["a","b"], {k: CompanionSplit(images, [0,1]*3, spectral=s) for k in ("train", "valid", "test")})
    one,other = (companion_loaders(arrays(s), device="cpu", workers=0, bs=2).image_set for s in (spectra, spectra + 1))
    assert one.fingerprint != other.fingerprint and arrays(spectra).fingerprint == arrays(spectra + 1).fingerprint


def test_a_missing_spectral_image_is_missing_to_the_model_too(tmp_path):
    "From the file that is not there to the answer of the colours alone"
    root = pairs(tmp_path, size=(16,16))
    companion_path(root/"test"/"a"/"0.png").unlink()
    dls = loaders(root, size=16, optional=True, bs=12)
    batch = dls.test.one_batch()
    model = create_model("hvit_micro", num_classes=2, img_size=16, embed_dim=8, depths=(1,1), num_heads=(1,2), spectral_channels=2, modality_dropout=.2).eval()
    with torch.no_grad(): both,colours = model(*batch[:2]),model(batch["image"])
    there = batch["has_spectral"]
    assert there.tolist() == [False] + [True]*11
    assert torch.allclose(both[~there], colours[~there], atol=1e-6) and (both[there] - colours[there]).abs().amax(1).min() > 1e-4


def test_a_set_without_any_is_an_error_even_where_they_are_optional(tmp_path):
    root = pairs(tmp_path)
    for o in root.rglob("*.npy"): o.unlink()
    for optional in (False, True):
        with pytest.raises(ValueError, match="36 of 36 images .*load without spectral images"): loaders(root, optional=optional)


def test_options_that_would_not_act_are_refused(tmp_path):
    with pytest.raises(ValueError, match="overfit_batches"): loaders(pairs(tmp_path), overfit_batches=1)


def test_sampling_weights_survive(tmp_path):
    dls = loaders(pairs(tmp_path), sampling="balanced")
    assert dls.train.sample_weights is not None and dls.valid.sample_weights is None


def test_some_of_the_samples(tmp_path):
    data = loaders(pairs(tmp_path)).train.dataset
    few = data.take(np.array([5,2]))
    assert torch.equal(few.read(np.array([0]))["spectral"], data.read(np.array([5]))["spectral"]) and len(few) == 2
    assert len(data.new_empty()) == 0


def test_mixing_treats_both_inputs_alike(tmp_path):
    from vitnb.callback.mix import mix_images
    from vitnb.data.mix import draw_plan
    b = loaders(pairs(tmp_path)).train.one_batch()
    plan = draw_plan(4, (8,8), 0, 0, 0, cutmix=1., mixup=None)
    moved = mix_images(b["image"], plan)[:,0] != b["image"][:,0]
    assert torch.equal(moved, mix_images(b["spectral"], plan)[:,0] != b["spectral"][:,0])


def test_the_same_draws_for_both_at_different_sizes_of_image(tmp_path):
    root = pairs(tmp_path)
    for o in sorted((root/"train").rglob("1.png")): # ragged batches
        Image.open(o).resize((20,14)).save(o)
        np.save(companion_path(o), np.stack([np.array(Image.open(o))[...,0]]*2).astype(np.float32))
    dls = loaders(root, augment="light", bs=12)
    fields = dls.train.dataset.read(np.arange(12))
    assert isinstance(fields["image"], list) and isinstance(fields["spectral"], list)
    b = dls.train.pipeline(fields, Draws(0, 0, np.arange(12)))
    norm = dls.train.pipeline.transforms[-2]
    assert (b["image"][:,0] - (b["spectral"][:,0]*norm.std[0] + norm.mean[0])).abs().max() < 2
