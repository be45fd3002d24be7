"A class for each pixel: rows beside entries, patches for pixels, moves, and strata"
import numpy as np
import pytest
import torch

from vitnb.kinds.map import ClassMap

TASK = ClassMap("abc", unknown=-100)


def test_each_row_is_the_prediction_of_the_pixel_of_its_entry():
    pred,target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    target[0,1,2] = -100
    rows,(entries,known) = TASK.rows(pred, target), TASK.entries(target)
    places = [(i, y, x) for i in range(2) for y in range(4) for x in range(5)]
    for row,(i, y, x) in enumerate(places):
        assert torch.equal(rows[row], pred[i,:,y,x]) and entries[row] == target[i,y,x] and bool(known[row]) == (target[i,y,x] != -100)


def test_a_patch_answers_for_each_of_its_pixels():
    pred = torch.randn(2, 3, 2, 4)
    full = TASK.full(pred, (6, 8))
    assert torch.equal(full, pred.repeat_interleave(3, 2).repeat_interleave(2, 3)) and TASK.full(pred, (2, 4)) is pred
    with pytest.raises(ValueError, match="head='pixel'"): TASK.full(torch.randn(2, 3), (6, 8))


def test_the_score_is_that_of_a_loop_over_known_pixels():
    pred,target = torch.randn(2, 3, 2, 2), torch.randint(0, 3, (2, 4, 4))
    target[torch.rand(2, 4, 4) < .3] = -100
    hits = count = 0
    for i in range(2):
        for y in range(4):
            for x in range(4):
                if target[i,y,x] == -100: continue
                count += 1
                hits += int(pred[i,:,y//2,x//2].argmax() == target[i,y,x])
    assert [int(n) for n in TASK.score(pred, target)] == [hits, count]


@pytest.mark.parametrize("view", ["identity", "hflip", "vflip", "rot90", "rot180", "rot270"])
def test_a_map_moves_with_its_image_and_a_prediction_comes_back(view):
    target = torch.randint(0, 3, (2, 4, 4))
    pred = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    moved = TASK.move(target, view)
    pred_of_moved = torch.nn.functional.one_hot(moved, 3).movedim(-1, 1).float()
    assert torch.equal(TASK.move_back(pred_of_moved, view), pred)
    assert (view == "identity") == torch.equal(moved, target)


def test_a_view_that_cannot_be_taken_back_is_refused():
    with pytest.raises(ValueError, match="use one of identity, hflip"): TASK.move_back(torch.randn(1, 3, 4, 4), "crop")


def test_the_stratum_of_a_map_is_its_most_frequent_known_class():
    targets = np.random.default_rng(0).integers(0, 3, (20, 5, 5))
    targets[:,:2] = -100
    want = [max(range(3), key=lambda k: (m[2:] == k).sum()) for m in targets] # the first one of several
    assert TASK.strata(targets).tolist() == want


def test_probabilities_are_those_of_each_pixel_and_views_are_averaged():
    preds = [torch.randn(2, 3, 4, 4)*3 for _ in range(3)]
    want = torch.stack([pred.double().softmax(1) for pred in preds]).mean(0).float()
    assert torch.allclose(TASK.activation(TASK.average(preds)), want, atol=1e-5)
    assert torch.equal(TASK.decode(preds[0]), TASK.activation(preds[0]).argmax(1))


@pytest.mark.parametrize("target,message", [(torch.zeros(4, dtype=int), "a class for each pixel"), (torch.full((1, 2, 2), 3), "target 3 is not in 0..2"),
                                            (torch.full((1, 2, 2), -1), "unknown=-1")])
def test_targets_that_do_not_fit_are_refused(target, message):
    with pytest.raises(ValueError, match=message): TASK.check(target)


def test_maps_are_not_balanced_by_drawing():
    with pytest.raises(ValueError, match="class_weights=True"): TASK.balance(np.zeros((1, 2, 2), int))
