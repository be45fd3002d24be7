"Masks beside films: sides, zones, mirror images, and what they do to pixels"
import numpy as np
import pytest
import torch
from PIL import Image

from vitnb.data.draws import Draws
from vitnb.data.geometry import Flip
from vitnb.data.image import UnreadableImage
from vitnb.data.lungmask import MASKING, FocusLungs, ZoneFlip, film_stem, lung_paths, lung_zones, read_film_lungs, read_lungs
from vitnb.data.nifti import save_nifti
from vitnb.data.thorax import synthetic_films
from vitnb.data.transform import make_transform
from vitnb.data.zones import ZONE_FLIP, csi_task
from vitnb.task import Tasks

FILMS = synthetic_films(4, 48)


def save(folder, name="0012", film=0, swap=False, size=None, end=".png"):
    (folder/"masks").mkdir(exist_ok=True)
    Image.fromarray(FILMS.images[film]).save(folder/f"{name}.png")
    for side,lung in zip(("left", "right") if swap else ("right", "left"), FILMS.lungs[film]):
        a = lung.astype(np.uint8)*255
        if end == ".png": Image.fromarray(a if size is None else a[:size]).save(folder/f"masks/{name}_{side}_lung_mask.png")
        else: save_nifti(folder/f"masks/{name}_{side}_lung_mask{end}", a)
    return folder/f"{name}.png"


@pytest.mark.parametrize("end", [".png", ".nii.gz"])
def test_lungs_are_read_by_the_patients_sides(tmp_path, end):
    assert (read_lungs(save(tmp_path, end=end)) == FILMS.lungs[0].transpose(1,2,0)).all()


def test_masks_named_by_the_side_of_the_image_are_found_out(tmp_path):
    path = save(tmp_path, swap=True)
    with pytest.raises(UnreadableImage, match="sides='image'"): read_lungs(path)
    assert (read_lungs(path, sides="image") == FILMS.lungs[0].transpose(1,2,0)).all()
    with pytest.raises(ValueError, match="unknown sides"): read_lungs(path, sides="mine")


def test_missing_masks_and_other_sizes_are_named(tmp_path):
    path = save(tmp_path)
    (tmp_path/"masks/0012_left_lung_mask.png").unlink()
    assert lung_paths(path)[1] is None
    with pytest.raises(UnreadableImage, match="0012_left_lung_mask.png"): read_lungs(path)
    with pytest.raises(UnreadableImage, match="make them one size"): read_film_lungs(save(tmp_path, size=40), fit="none")


def zones_slowly(lungs):
    "Row by row"
    found = np.zeros((6, *lungs.shape[1:]), bool)
    for side,lung in enumerate(lungs):
        rows = [r for r in range(len(lung)) if lung[r].any()]
        for r in rows: found[2*int((r - rows[0])*3/(rows[-1] - rows[0] + 1)) + side, r] = lung[r]
    return found


def test_zones_are_thirds_of_their_own_lung():
    found = lung_zones(torch.from_numpy(FILMS.lungs)).numpy()
    assert all((zones == zones_slowly(lungs)).all() for zones,lungs in zip(found, FILMS.lungs))
    assert not lung_zones(torch.zeros(1,2,8,8, dtype=torch.bool)).any()


def fields(n=4):
    image = torch.from_numpy(FILMS.images[:n].astype(np.int32))[:,None]
    zones = lung_zones(torch.from_numpy(FILMS.lungs[:n]))
    return dict(image=image, mask=zones, target=torch.from_numpy(FILMS.scores[:n]), tasks=Tasks.of(csi_task()))


def test_a_mirrored_film_has_pixels_scores_and_masks_exchanged():
    before = fields()
    draws = Draws(0, 3, np.arange(4))
    after = ZoneFlip(.5).samples(before, draws)
    hit = Draws(0, 3, np.arange(4)).uniform() < .5
    assert 0 < hit.sum() < 4
    for i,is_hit in enumerate(hit.tolist()):
        image,mask,target = (before[name][i] for name in ("image", "mask", "target"))
        if is_hit: image,mask,target = image.flip(-1), mask.flip(-1)[list(ZONE_FLIP)], target[list(ZONE_FLIP)]
        assert torch.equal(after["image"][i], image) and torch.equal(after["mask"][i], mask) and torch.equal(after["target"][i], target)


def test_masks_of_different_sizes_are_exchanged_alike():
    whole,ragged = fields(), fields()
    for name in ("image", "mask"): ragged[name] = list(ragged[name])
    one,two = ZoneFlip(.5).samples(whole, Draws(0, 3, np.arange(4))), ZoneFlip(.5).samples(ragged, Draws(0, 3, np.arange(4)))
    assert all(torch.equal(a, b) for name in ("image", "mask") for a,b in zip(one[name], two[name]))


def test_the_plain_flip_would_leave_masks_on_the_wrong_side():
    "Why there is another one"
    after = Flip(1.).samples(fields(), Draws(0, 0, np.arange(4)))
    assert not torch.equal(after["mask"], ZoneFlip(1.).samples(fields(), Draws(0, 0, np.arange(4)))["mask"])


@pytest.mark.parametrize("masking", MASKING)
def test_masks_weigh_raw_pixels(masking):
    before = fields()
    after = FocusLungs(masking, .7).samples(before, None)
    inside = before["mask"].any(1, keepdim=True)
    weight = dict(none=torch.ones_like(inside).double(), zero=inside.double(), attention=torch.where(inside, .7, .3).double())[masking]
    assert (after["image"] - before["image"]*weight).abs().max() <= .51 and after["image"].dtype == torch.int32
    assert torch.equal(after["mask"], before["mask"])
    assert make_transform(FocusLungs(masking).config()).config() == FocusLungs(masking).config()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="did you mean 'attention'"): FocusLungs("atention")
    with pytest.raises(ValueError, match="between .5"): FocusLungs("attention", .2)
    with pytest.raises(ValueError, match="without masks"): FocusLungs("zero").samples(dict(image=torch.ones(1,1,4,4)), None)
    with pytest.raises(ValueError, match="no masks beside"): read_film_lungs(np.zeros((4,4), np.uint16))


def test_a_new_film_has_its_zones(tmp_path):
    found = read_film_lungs(save(tmp_path))
    assert found["mask"].shape == (6,48,48) and found["image"].dtype == np.int32
    assert (found["mask"] == zones_slowly(FILMS.lungs[0])).all()


def test_the_name_of_a_film_is_what_is_left_without_the_format():
    assert [film_stem(n) for n in ("a/0012.nii.gz", "7.png", "1.2.840.7", "IM1")] == ["0012", "7", "1.2.840.7", "IM1"]
