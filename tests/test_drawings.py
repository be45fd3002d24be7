"Drawings of each kind of task: what is said, what is true, what is unknown; curves by unit"
from dataclasses import dataclass
from typing import ClassVar

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from torch.nn.functional import one_hot

from vitnb.drawings import COLORS, UNKNOWN, class_colors, displayed, draw_predictions, drawings, show_bands
from vitnb.figures import png
from vitnb.task import ClassMap, MultiLabel, OneClass, Ordinal, Task, Value

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def texts(fig): return [t.get_text() for t in fig.findobj(Text) if t.get_text()]
def titled(fig): return [(ax.get_title(), ax.title.get_color()) for ax in fig.axes if ax.get_title()]
def beside(fig): return [ax for ax in fig.axes if ax.get_yticklabels() and any(t.get_text() for t in ax.get_yticklabels())]


def test_every_kind_has_a_drawing(): assert set(drawings) == {"class", "labels", "ordinal", "map", "value"}

def test_a_class_is_named_with_its_truth_where_it_is_wrong():
    task = OneClass(("cat", "dog", "fox"), unknown=-1)
    fig = draw_predictions(task, IMAGES, 3*torch.eye(3)[[0, 1, 2]], torch.tensor([0, 2, -1]))
    assert titled(fig) == [("cat 91%", COLORS["right"]), ("dog 91%\nis fox", COLORS["wrong"]), ("fox 91%\ntruth unknown", COLORS["unknown"])]

def test_mixed_targets_are_drawn_as_their_largest_class():
    fig = draw_predictions(OneClass(("cat", "dog")), IMAGES, 9*torch.eye(2), torch.tensor([[.7, .3], [.6, .4]]))
    assert [t for t,_ in titled(fig)] == ["cat 100%", "dog 100%\nis cat"]

def test_labels_have_bars_marks_and_verdicts():
    task = MultiLabel(("mould", "rust", "hole"), unknown=-1)
    fig = draw_predictions(task, IMAGES, torch.tensor([[2., -1., 1.]]), torch.tensor([[1, 1, -1]]))
    (ax,) = beside(fig)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["mould", "rust", "hole"]
    assert [b.get_width() for b in ax.patches] == pytest.approx(torch.tensor([2., -1., 1.]).sigmoid().tolist())
    assert [to_rgb(b.get_facecolor()) for b in ax.patches] == [to_rgb(COLORS[k]) for k in ("right", "wrong", "unknown")]
    assert [(t.get_text(), t.get_position()[1]) for t in ax.texts] == [("●", 0), ("●", 1), ("?", 2)]

def test_of_many_labels_the_true_ones_are_shown():
    task = MultiLabel([f"label {i}" for i in range(40)])
    true = torch.zeros(1, 40, dtype=torch.long)
    true[0, [3, 17]] = 1
    (ax,) = beside(draw_predictions(task, IMAGES, -torch.arange(40.)[None], true))
    shown = [t.get_text() for t in ax.get_yticklabels()]
    assert len(shown) == 12 and {"label 3", "label 17", "label 0"} <= set(shown)

@pytest.mark.parametrize("abstain", [False, True])
def test_levels_lie_where_they_are_said_and_where_they_are(abstain):
    task = Ordinal(("left", "right"), levels=3, unknown=9, abstain=abstain)
    said = torch.tensor([[0, 3 if abstain else 2]])
    (ax,) = beside(draw_predictions(task, IMAGES, 9.*one_hot(said, task.width), torch.tensor([[1, 9]])))
    points = [(line.get_xdata()[0], line.get_ydata()[0], line.get_mfc()) for line in ax.lines[1:]]
    assert points == [(1, 0, "none"), (0, 0, COLORS["wrong"]), (3, 1, "none"), (3 if abstain else 2, 1, COLORS["unknown"])]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1", "2", "?"]
    shade = np.asarray(ax.images[0].get_array())
    assert shade.shape == (2, 4) and np.allclose(shade.sum(1), 1)

def test_cumulative_levels_and_a_single_one_are_drawn():
    (ax,) = beside(draw_predictions(Ordinal(levels=4, cumulative=True), IMAGES, torch.tensor([[3., 1., -2.]]), torch.tensor([2])))
    assert [line.get_xdata()[0] for line in ax.lines[1:]] == [2, 2] and ax.lines[2].get_mfc() == COLORS["right"]

@pytest.mark.parametrize("dtype", [torch.long, torch.uint8])
def test_maps_have_the_colours_of_their_legend(dtype):
    task = ClassMap(("soil", "leaf", "sky"), unknown=255)
    true = torch.zeros(1, 8, 8, dtype=torch.long)
    true[0, :4] = 2
    true[0, 0, 0] = 255
    pred = torch.zeros(1, 3, 4, 4)
    pred[:,1] = 9.
    fig = draw_predictions(task, IMAGES, pred, true.to(dtype))
    image,truth,said = [ax.images[0].get_array() for ax in fig.axes]
    colors = class_colors(3)
    assert np.allclose(truth[0, 0], UNKNOWN) and np.allclose(truth[1, 1], colors[2]) and np.allclose(truth[7, 7], colors[0])
    assert said.shape == (8, 8, 3) and np.allclose(said, colors[1])
    (legend,) = fig.legends
    shown = {t.get_text():to_rgb(p.get_facecolor()) for t,p in zip(legend.get_texts(), legend.get_patches())}
    assert shown == dict(soil=to_rgb(colors[0]), leaf=to_rgb(colors[1]), sky=to_rgb(colors[2]), unknown=to_rgb(UNKNOWN))
    assert [ax.get_ylabel() for ax in fig.axes] == ["image", "truth", "prediction"]

@pytest.mark.parametrize("n", [3, 10, 20, 60])
def test_colours_of_classes_differ(n):
    assert len(np.unique(class_colors(n).round(4), axis=0)) == n
    assert np.abs(class_colors(n) - UNKNOWN).sum(1).min() > .2

def test_values_are_written_with_unit_and_truth():
    task = Value(("length", "width"), unit="mm", unknown=0)
    fig = draw_predictions(task, IMAGES, torch.tensor([[1., 2.], [3., 4.]]), torch.tensor([[1.5, 2.], [torch.nan, 4.]]))
    assert ("length 3 mm (true unknown)\nwidth 4 mm (true 4)") in texts(fig)
    length,width = [ax for ax in fig.axes if ax.get_xlabel() == "true (mm)"]
    assert list(length.lines[0].get_xdata()) == [1.5] and list(width.lines[0].get_xdata()) == [2, 4]
    assert "1 unknown, not shown" in texts(fig)

def test_a_value_without_a_name_and_a_target_of_one_dimension():
    fig = draw_predictions(Value(), IMAGES, torch.tensor([[1.], [2.]]), torch.tensor([1., 2.5]))
    assert "2 (true 2.5)" in texts(fig)

@pytest.mark.parametrize("task,pred,target", [
    (OneClass("abc"), torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])), (MultiLabel("abc"), torch.randn(6, 3), torch.ones(6, 3, dtype=torch.long)),
    (Ordinal("ab", levels=3), torch.randn(6, 2, 3), torch.ones(6, 2, dtype=torch.long)), (Value(), torch.randn(6, 1), torch.randn(6)),
    (ClassMap("abc"), torch.randn(6, 3, 8, 8), torch.ones(6, 8, 8, dtype=torch.long))])
def test_drawings_are_closed_figures_of_few_bytes_for_any_number_of_images(task, pred, target):
    for n in (1, 2, 5):
        fig = draw_predictions(task, IMAGES, pred, target, n)
        assert len(png(fig)) < 200_000
    assert not matplotlib.pyplot.get_fignums()

def test_a_kind_made_from_another_is_drawn_like_it_until_it_has_its_own():
    @dataclass(frozen=True)
    class Grade(OneClass): kind:ClassVar[str] = "grade"

    task = Grade(("a", "b"))
    args = IMAGES, torch.eye(2), torch.tensor([0, 1])
    assert [t for t,_ in titled(draw_predictions(task, *args))] == ["a 73%", "b 73%"]
    drawings["grade"] = lambda *o: "mine"
    try: assert draw_predictions(task, *args) == "mine"
    finally: del drawings["grade"]

def test_a_kind_without_a_drawing_is_named():
    class Odd(Task):
        kind = "odd"
        defaults = dict(loss="none", metrics=("none",), monitor="none")
    with pytest.raises(ValueError, match="unknown drawing 'odd'"): draw_predictions(Odd(), IMAGES, IMAGES, IMAGES)


# ---------------------------------------------------------------- images

def test_any_number_of_channels_is_shown():
    for channels,bands in ((1, (0,)), (2, (0,)), (3, (0, 1, 2)), (5, (4, 2, 0)), (30, (29, 15, 0))):
        assert show_bands(channels) == bands
        (shown,) = displayed(torch.rand(1, channels, 6, 7))
        assert shown.shape == ((6, 7) if len(bands) == 1 else (6, 7, 3))
    (chosen,) = displayed(x := torch.rand(1, 5, 6, 7), (1, 3, 4))
    assert np.allclose(chosen, x[0, [1, 3, 4]].permute(1, 2, 0))
    assert [o.shape for o in displayed([torch.rand(3, 4, 5), torch.rand(3, 6, 7)])] == [(4, 5, 3), (6, 7, 3)]

def test_values_in_range_stay_and_others_are_stretched():
    x = torch.rand(1, 3, 6, 6)
    assert np.allclose(displayed(x)[0], x[0].permute(1, 2, 0))
    assert np.allclose(displayed((255*x).round().to(torch.uint8))[0], displayed(x)[0], atol=.003)
    wide = displayed(40_000*x - 500)[0]
    assert wide.min() == 0 and wide.max() == 1
    assert np.isfinite(displayed(torch.full((1, 5, 4, 4), 700.))[0]).all()
