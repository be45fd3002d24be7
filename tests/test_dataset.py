"The fields of a sample, from arrays and from files"
import json

import numpy as np
import pytest
from data_helpers import equal, film_set, own_folders, paint, passes

from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.data.source import build_cache, CacheSource

@pytest.mark.parametrize("cache", [True, False])
def test_deep_files_are_the_arrays_they_hold(tmp_path, cache):
    arrays,files = film_set(),film_set(files=tmp_path)
    kw = dict(bs=6, augment="crop_flip", device="cpu", seed=1)
    a,b = arrays.loaders(12, **kw),files.loaders(12, cache=cache, **kw)
    for p,q in zip(a.loaders, b.loaders): assert all(equal(x.fields, y.fields) for x,y in zip(p, q)) and len(p) == len(q) > 0
    if cache: assert CacheSource(build_cache(files), "train").dtype == np.uint16 and json.loads((build_cache(files)/"meta.json").read_text())["channels"] == 5

def test_unreadable_files_are_left_out_of_both(tmp_path, capsys):
    root = paint(tmp_path/"noise")
    bad = load_set(root).path("train", 5)
    bad.write_bytes(bad.read_bytes()[:60])
    for cache in (True, False):
        s = load_set(root, max_bad=.2)
        dls = image_loaders(s, bs=8, cache=cache, device="cpu")
        assert sum(len(dl.dataset) for dl in dls.loaders) == 39 and len(passes(dls.test)) > 0
    with pytest.raises(ValueError, match="max_bad"): image_loaders(load_set(root, max_bad=.01), bs=8, device="cpu")
