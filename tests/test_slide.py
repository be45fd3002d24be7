"A model of windows that answers for a whole scene, and maps of what it says"
import numpy as np
import pandas as pd
import pytest
import torch
from cube_files import own_cache
from PIL import Image

from vitnb.data.cube import CubeArray, cube_loaders, scene_set
from vitnb.data.slide import scene_tasks, slide
from vitnb.learner.core import vit_learner
from vitnb.learner.predict import predict
from vitnb.learner.sheet import write_answers
from vitnb.task import ClassMap, OneClass, Ordinal, Tasks

BANDS = 4


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(0)
    cube = rng.random((BANDS,24,20), dtype=np.float32) + .1
    cube[:,3,4] = np.nan
    return scene_set("own", CubeArray(cube), rng.integers(0, 3, (24,20)), block=4, guard=0), cube


def learner(cubes, window, label_of, head, label="class", patch=1):
    dls = cube_loaders(cubes, bs=8, window=window, label=label, label_of=label_of, patch_size=(patch,2), workers=0, device="cpu")
    kw = dict(patch_size=(patch,2), head=head, embed_dim=16, num_heads=2, depth=1)
    return vit_learner(dls, "spectral_mae_micro", kw, device="cpu", precision="fp32")


def slowly(learn, cube, window):
    "The answer for each pixel that has a whole window around it, one at a time"
    half = window//2
    found = {}
    for row in range(half, cube.shape[1] - half):
        for column in range(half, cube.shape[2] - half):
            part = cube[:,row-half:row-half+window,column-half:column-half+window]
            found[row,column] = predict(learn, [part])[0]
    return found


@pytest.mark.parametrize("window,label_of,head", [(1, "center", "middle"), (3, "center", "middle"), (3, "window", "pool")])
def test_each_pixel_gets_the_class_of_the_window_around_it(scene, window, label_of, head):
    cubes,cube = scene
    cube = cube[:,:8,:7]
    learn = learner(cubes, window, label_of, head)
    answer, = predict(learn, [cube])
    assert answer["prediction"].shape == cube.shape[1:] and answer["probabilities"].shape == (2, *cube.shape[1:])
    assert np.allclose(answer["probabilities"].sum(0), 1, atol=1e-5) and answer["prediction"][3,4] == -1
    want = slowly(learn, cube, window)
    assert len(want) >= 30
    for (row,column),one in want.items():
        assert np.allclose(answer["probabilities"][:,row,column], one["probabilities"], atol=1e-5)
        if (row,column) != (3, 4): assert learn.tasks.only.says(answer["prediction"][row,column]) == one["prediction"]


@pytest.mark.parametrize("head,patch", [("pixel", 1), ("patch", 2)])
def test_maps_of_windows_lie_side_by_side(scene, head, patch):
    cubes,cube = scene
    learn = learner(cubes, 4, None, head, "pixels", patch)
    whole, = predict(learn, [cube[:,:10,:8]])
    for top,left,own in ((0, 0, 4), (4, 4, 2), (6, 4, 4)): # the last windows end where the scene does, and cover others
        part, = predict(learn, [cube[:,top:top+4,left:left+4]])
        want = part["probabilities"].repeat(patch, 1).repeat(patch, 2)
        assert np.allclose(whole["probabilities"][:,top:top+own,left:left+4], want[:,:own], atol=1e-5)


def test_a_map_and_a_csv(scene, tmp_path):
    cubes,cube = scene
    write_answers(predict(learner(cubes, 3, "center", "middle"), [cube], tta="flip"), tmp_path/"a.csv")
    row = pd.read_csv(tmp_path/"a.csv").iloc[0]
    shown = np.array(Image.open(tmp_path/row["prediction"]))
    assert shown.shape == (24,20) and shown[3,4] == 255 and set(np.unique(shown)) <= {0, 1, 255}
    assert np.load(tmp_path/row["probabilities"]).shape == (2,24,20)


def test_only_what_is_said_of_windows_is_said_of_scenes():
    windows,cubes = (OneClass(("a", "b"), unknown=unknown) for unknown in (-100, None))
    maps = ClassMap(("a", "b"), unknown=-100)
    assert scene_tasks(Tasks.of(windows), 3, (9, 9)).only.names == ("a", "b")
    assert scene_tasks(Tasks({"x":windows, "y":maps}), (3, 5), (9, 9)) is not None
    for task,window,size in ((cubes, 3, (9,9)), (windows, 3, (3,3)), (windows, None, (9,9)), (windows, 5, (4,9)), (Ordinal(levels=3), 3, (9,9))):
        assert scene_tasks(Tasks.of(task), window, size) is None
    assert scene_tasks(Tasks(), 3, (9, 9)) is None


def test_a_larger_cube_is_no_scene_of_cubes(scene):
    cubes,cube = scene
    learn = learner(cubes, 4, "cube", "pool") if len(cubes.classes) > 1 else learner(cubes, 4, "window", "pool")
    learn.tasks = Tasks.of(OneClass(("class 1", "class 2")))
    with pytest.raises(ValueError, match="window by window by a model of the class of windows"): predict(learn, [cube])


def test_several_tasks_slide_together():
    x = torch.rand(2, 3, 5, 6)
    found = slide(lambda part: dict(a=part.mean((2, 3)), b=part.amax((2, 3))), x, (3, 1), bs=7)
    assert torch.allclose(found["b"][:,:,1:-1], torch.stack([x[:,:,:-2], x[:,:,1:-1], x[:,:,2:]]).amax(0))
    assert found["a"].shape == x.shape
