"The order of the zones, their task, the grid and the strata"
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitnb.data.zones import CSI_LEVELS, CSI_UNKNOWN, ZONE_FLIP, ZONES, csi_task, film_strata, zone_grid
from vitnb.task import Tasks, make_task


def test_the_zones_stand_in_the_stated_order():
    assert ZONES == ("right_sup", "left_sup", "right_mid", "left_mid", "right_inf", "left_inf") and ZONE_FLIP == (1, 0, 3, 2, 5, 4)
    mirrored = [name.replace("right", "x").replace("left", "right").replace("x", "left") for name in ZONES]
    assert [ZONES[i] for i in ZONE_FLIP] == mirrored and len(CSI_LEVELS) == CSI_UNKNOWN == 4


def test_the_task_has_five_classes_a_zone_of_which_one_is_unknown():
    task = csi_task()
    assert task.outputs == (6, 5) and make_task(task.config()) == task and Tasks.of(task).only is task
    logits = torch.eye(5)[torch.tensor([[0, 1, 2, 3, 4, 4]])]*9
    assert task.decode(logits).tolist() == [[0, 1, 2, 3, 4, 4]]
    hits,known = task.score(logits, torch.tensor([[0, 1, 2, 3, 4, 1]]))
    assert (int(hits), int(known)) == (4, 5)


def test_a_mirror_image_exchanges_sides_and_back():
    task,target = csi_task(), torch.tensor([[0, 1, 2, 3, 4, 0]])
    assert task.move(target, "hflip").tolist() == [[1, 0, 3, 2, 0, 4]]
    pred = torch.randn(1,6,5)
    assert torch.equal(task.move_back(task.move(pred, "hflip"), "hflip"), pred)
    with pytest.raises(ValueError, match="vflip"): task.move(target, "vflip")


@given(st.integers(3, 40), st.integers(2, 40))
def test_the_grid_gives_each_pixel_one_zone_and_the_rest_to_the_last(h, w):
    grid = zone_grid(h, w)
    assert (grid.sum(0) == 1).all() and grid.any((1,2)).all()
    for z in range(6):
        rows,columns = np.where(grid[z].any(1))[0], np.where(grid[z].any(0))[0]
        assert rows[0] == z//2*(h//3) and columns[0] == z % 2*(w//2) and (len(rows) == h//3 or z//2 == 2)


def test_strata_go_by_mean_and_unknown_zones_and_are_exact_at_the_limit():
    of = lambda *s: int(film_strata(np.array([s]))[0])
    assert of(4, 4, 4, 4, 4, 4) == 9 and of(0, 0, 0, 0, 0, 0) == 0 and of(3, 3, 3, 3, 3, 3) == 6
    assert of(3, 2, 2, 2, 2, 4) == 4 # 11/5 is 2.2, and belongs below
    assert of(3, 3, 2, 2, 2, 4) == 7 and of(2, 2, 4, 4, 4, 4) == 5 and of(1, 1, 2, 4, 4, 4) == 4
