"Names of classes, files and folders that mean something to Matplotlib, Markdown or a browser are shown as they are"
import ast
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from nbconvert.filters import markdown2html

from vitnb.data.holdout import Split
from vitnb.data.table import ImageSet
from vitnb.drawings import drawings
from vitnb.escape import in_figure, in_page, in_terminal, shortened
from vitnb.experiment.advice import Advice
from vitnb.experiment.run import Run, release
from vitnb.explore.embedding import plot_features
from vitnb.figures import plot_confusion, plot_curves, show_images
from vitnb.parameters import complain
from vitnb.task import OneClass, Value

BAD = ["<script>alert(1)</script>", "cost_$5$ and $x^2$", "<img src=x onerror=alert(1)>", "a|b`c`*d*_e_[f](javascript:g)",
       "$\\notacommand$", "&lt;b&gt;", "two\nlines", "\\$", "$"]


class Page(HTMLParser):
    "The tags of a page and its text; what MathJax would look at is the text outside code"
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.seen, self.depth = set(), "", "", 0
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.depth += tag in ("code", "pre")
    def handle_endtag(self, tag): self.depth -= tag in ("code", "pre")
    def handle_data(self, data):
        self.text += data
        if not self.depth: self.seen += data


OBEYED = ["\x1b[2Jcat", "\u202egnp.exe", "a\rb", "\x9b31m", "name\udcff", "\u2067x", "\x00"]


@pytest.mark.parametrize("name", OBEYED)
def test_a_terminal_obeys_no_name(name, capsys):
    complain(f"no file {name}\nof set")
    said = capsys.readouterr().err
    assert "\nof set" in said and all(sign.isprintable() or sign == "\n" for sign in said)
    assert ast.literal_eval(f'"{in_terminal(name)}"') == name, "it can still be told which name it was"
    assert in_figure(name) == shown(in_page(name)).strip() == in_terminal(name), "nor does a page turn what follows, or a figure draw a box"


PLAIN = {"p", "strong", "code", "table", "thead", "tbody", "tr", "th", "td"}


def shown(markdown):
    page = Page(markdown2html(markdown))
    assert page.tags <= PLAIN, page.tags - PLAIN
    assert "$" not in page.seen
    return page.text


@pytest.mark.parametrize("name", BAD)
def test_a_page_shows_a_name_as_it_is(name): assert shown(in_page(name)).strip() == name


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=12))
def test_a_page_shows_any_name(name): assert shown(f"**x{in_page(name)}x**").strip() == f"x{name}x"


@pytest.mark.parametrize("name", BAD)
def test_what_notebooks_show_of_our_objects_is_harmless(tmp_path, monkeypatch, name):
    images = Split(np.zeros((4, 2, 2), np.uint8), [0, 1, 0, 1])
    assert name in shown(ImageSet(name, ["a", "b"], dict(train=images))._repr_markdown_())
    assert name in shown(Advice(arch=(name, name))._repr_markdown_())
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path))
    run = Run("demo", dict(data=name))
    release(run.dir)
    assert repr(name) in shown(run._repr_markdown_())


def texts(fig):
    "What a figure shows, after it was drawn, which fails where a formula is none"
    fig.canvas.draw()
    return [text for text in fig.findobj(Text) if text.get_text()]


def drawn(fig):
    "The texts as they are drawn: those that are no formula, without their escapes"
    found = [text._preprocess_math(text.get_text()) for text in texts(fig)]
    return [said for said,is_math in found if not is_math]


NAME = "<b>$x$"
FIGURES = dict(
    images=lambda: show_images(np.zeros((1, 4, 4, 3)), [NAME], title=NAME),
    confusion=lambda: plot_confusion(np.eye(2, dtype=int), [NAME, "b"], NAME),
    curves=lambda: plot_curves([dict(epoch=1, train_loss=1., **{NAME:.5})], metrics=[NAME], title=NAME),
    classes=lambda: drawings["class"](OneClass((NAME, "b")), torch.zeros(2, 3, 4, 4), torch.eye(2), torch.tensor([1, 0]), 2),
    values=lambda: drawings["value"](Value(names=(NAME,), unit="$"), torch.zeros(2, 3, 4, 4), torch.ones(2, 1), torch.ones(2, 1), 2),
    features=lambda: plot_features(np.eye(4), np.array([0, 1, 0, 1]), [NAME, "b"], ("pca",), NAME))


@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_names_as_they_are(name): assert any(NAME in said for said in drawn(FIGURES[name]()))


@pytest.mark.parametrize("name", BAD)
def test_any_name_can_be_drawn(name): assert name in drawn(show_images(np.zeros((1, 4, 4, 3)), [name]))


@pytest.mark.parametrize("text,most,want", [("Curl Virus", 10, "Curl Virus"), ("Curl Virus", 9, "Curl Vir…"), ("Leaf Hopper Jassids", 13, "Leaf Hopper…"), ("", 3, ""), (7, 3, "7")])
def test_a_name_that_is_cut_says_so(text, most, want): assert shortened(text, most) == want and len(want) <= most
