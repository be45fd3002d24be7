"Sets of cubes: wavelengths, windows and what is valid in them"
import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cube_files import fields, own_cache

from vitnb.core import repo_root
from vitnb.data.cube import CubeArray, cube_loaders, load_cube_set, rgb_bands, scene_set


def test_no_value_of_another_split_reaches_a_window():
    "A scene whose pixel values say which split they belong to"
    s = scene_set("s", CubeArray(np.ones((3,50,50), np.float32)), block=12, guard=2)
    g = s.records[0].split_map
    s.records[0].source = CubeArray(np.broadcast_to(g + 2, (3,50,50)).astype(np.float32)) # train 2, valid 3, test 4, nobody 1
    for augment in ("none", "basic"):
        dls = cube_loaders(s, bs=4, window=10, stride=4, jitter=3, augment=augment, aug_kw=dict(gain=0., offset=0., noise=0.) if augment == "basic" else None, normalize="none", device="cpu")
        for k,dl in enumerate(dls.loaders):
            for x,valid in map(fields, dl): assert torch.allclose(x[valid.expand_as(x)], torch.tensor(2. + k), atol=1e-4) and (x[~valid.expand_as(x)] == 0).all()


def test_missing_bands():
    s = load_cube_set(n=12, size=16)
    few = s.keep_bands([0, 5, 29])
    assert few.bands == 3 and few.wavelengths.tolist() == [450, 500, 850] and few.fingerprint != s.fingerprint
    assert np.array_equal(few.records[2].source.read(), s.records[2].source.read()[[0,5,29]])
    assert few.scan()["mean"] == pytest.approx([s.scan()["mean"][i] for i in (0, 5, 29)])
    with pytest.raises(ValueError, match="each once"): s.keep_bands([1,1])
    with pytest.raises(ValueError, match="band 0 decides"): s.keep_bands([3,4])


def test_rgb_bands_are_the_nearest():
    assert rgb_bands([*range(450, 731, 10), 850], 30) == [12,8,1]
    assert rgb_bands(None, 30) == [12,8,1] and len(set(rgb_bands(None, 5))) >= 2
    assert rgb_bands([850, 460, 570, 530], 4) == [2,3,1], "wavelengths need no order"


@pytest.mark.parametrize("how,bands,last", [("drop", 100, 499), ("pad", 105, 504)])
def test_any_number_of_bands_fits_by_an_option(how, bands, last, capsys):
    cube = np.random.default_rng(0).random((103,40,40), dtype=np.float32)
    s = scene_set("s", CubeArray(cube), block=12, guard=1, wavelengths=range(400, 503))
    with pytest.raises(ValueError, match=r"103 bands .*fit_bands='drop' .leaves out the last 3. or fit_bands='pad' .repeats the last one 2 times"): cube_loaders(s, window=8, patch_size=(4,5), device="cpu")
    dls = cube_loaders(s, window=8, patch_size=(4,5), fit_bands=how, normalize="none", device="cpu")
    x,_ = fields(dls.one_batch())
    assert x.shape[1] == bands == dls.bands == dls.model_kw["in_chans"] and dls.wavelengths[-1] == last and "103 bands are no whole number of 5" in capsys.readouterr().out
    reader = dict(dls.config()["reader"])
    from vitnb.data.image import readers
    read = readers[reader.pop("name")](cube, **reader)["image"]
    assert np.array_equal(read, cube[:100] if how == "drop" else np.concatenate([cube, cube[-1:], cube[-1:]])), "and prediction reads the same bands"
    assert s.fit_bands(103) is s
    with pytest.raises(ValueError, match="unknown fit_bands"): s.fit_bands(5, "cut")


def test_fewer_bands_than_a_token_are_padded():
    s = scene_set("s", CubeArray(np.ones((3,40,40), np.float32)), block=12, guard=1)
    with pytest.raises(ValueError, match="fewer than one group of 5; use fit_bands='pad'"): s.fit_bands(5)
    assert s.fit_bands(5, "pad").bands == 5


def test_notebooks_that_cut_cubes_into_tokens_hand_fit_bands_through():
    "The message on bands that fill no token names this option, so whoever gives a patch to loaders gives it too"
    seen = []
    for path in sorted((repo_root(Path(__file__).parent)/"nbs").glob("*.ipynb")):
        text = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
        if "cube_loaders(" not in text: continue
        calls = [{word.arg for word in call.keywords} for call in ast.walk(ast.parse(text)) if isinstance(call, ast.Call)]
        asked = [words for words in calls if {"patch_size", "bs"} <= words and "family" not in words]
        if asked: seen.append(path.stem)
        assert all("fit_bands" in words for words in asked) or ".fit_bands(" in text, path.stem
    assert {"finetune_spectral", "explore_masking", "compare_scenes"} <= set(seen)
