"The data of a run again, by its family"
from vitnb.data.diagnosis import load_diagnosis
from vitnb.data.sets import load_set
from vitnb.experiment.recipes import families
from vitnb.learner.rundata import intended_uses, load_run_data, run_data


def test_images_come_as_the_notebooks_load_them():
    kw = dict(bs=8, device="cpu")
    for smoke,limit in ((True, 8), (False, None)):
        again,dls = load_run_data(dict(family="swin", data="digits"), smoke, {}, kw)
        assert again.fingerprint == load_set("digits", limit=limit).fingerprint and dls.train.bs == 8
    other,_ = load_run_data(dict(family="of one's own", data="digits"), True, {}, kw)
    assert other.fingerprint == load_set("digits", limit=8).fingerprint, "a family that says nothing has images"


def test_films_with_a_diagnosis_are_those_of_the_run():
    "Not those that a set of images of the same name would have: other films would be in the test split"
    recipe = dict(family="films", data="congestion_synthetic", data_root=None, data_kw=dict(n=40, size=32), positive=None, split_seed=3)
    again,dls = load_run_data(recipe, False, {}, dict(bs=8, img_size=32, device="cpu"))
    assert again.fingerprint == load_diagnosis(n=40, size=32, split_seed=3).fingerprint and len(dls.test.dataset) == len(again.splits["test"])


def test_what_is_registered_is_a_family(): assert {*run_data, *intended_uses} <= {*families}
