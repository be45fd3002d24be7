"Which cells of a resumed run are skipped: only those for which nothing has changed"
import json

import pytest

from vitnb.experiment.products import Plan, made_names, products_of, used_names


def code(source, *tags): return dict(cell_type="code", source=source, metadata=dict(tags=list(tags)))


CELLS = [code("lr = 1", "parameters"), code("make a", "products:a.txt"), code("import os"), code("make b from a", "products: b.txt, c-*.txt")]


def go(folder, cells=CELLS, params=None, earlier=None, writes=None):
    "As the engine does; which cells ran, and what was said"
    lines,ran = [],[]
    plan = Plan(folder/"run", dict(cells=cells), params or dict(lr=1), folder, earlier, lines.append)
    for n,cell in enumerate(cells):
        if plan.kept(n, cell) is not None: continue
        ran.append(n)
        for name,text in (writes or {1:{"a.txt":"A"}, 3:{"b.txt":"B", "c-1.txt":"C", "c-2.txt":"D"}}).get(n, {}).items(): (folder/name).write_text(text)
        plan.done(n, cell)
    return ran, lines


@pytest.fixture
def folder(tmp_path):
    (tmp_path/"run").mkdir()
    assert go(tmp_path) == ([0, 1, 2, 3], []), "a new run runs all and says nothing"
    return tmp_path


def test_nothing_has_changed(folder):
    ran,lines = go(folder, earlier=[[]]*4)
    assert ran == [0, 2] and [line.split()[3] for line in lines] == ["skipped:"]*2


def test_without_resume_all_cells_run(folder): assert go(folder)[0] == [0, 1, 2, 3]


@pytest.mark.parametrize("change,ran,why", [
    (lambda f: (f/"a.txt").write_text("other"), [0, 1, 2], "a.txt is not as it was written"), # written again, it is what it was
    (lambda f: (f/"c-2.txt").write_text("other"), [0, 2, 3], "c-2.txt is not as"),
    (lambda f: (f/"b.txt").unlink(), [0, 2, 3], "b.txt is not there"),
    (lambda f: (f/"run"/"products.json").write_text("{"), [0, 1, 2, 3], "not JSON"),
    (lambda f: (f/"run"/"products.json").write_text('{"1": 3}'), [0, 1, 2, 3], "not come to its end")])
def test_products_that_are_not_as_they_were(folder, change, ran, why):
    change(folder)
    got,lines = go(folder, earlier=[[]]*4)
    assert got == ran and any(why in line for line in lines), lines


def test_a_product_that_comes_out_otherwise_makes_what_is_below_run(folder):
    (folder/"a.txt").unlink()
    assert go(folder, earlier=[[]]*4, writes={1:{"a.txt":"A2"}, 3:{"b.txt":"B", "c-1.txt":"C", "c-2.txt":"D"}})[0] == [0, 1, 2, 3]


@pytest.mark.parametrize("params,cells,ran", [
    (dict(lr=2), CELLS, [0, 1, 2, 3]), (dict(lr=1, resume="auto"), CELLS, [0, 2]),
    (None, [*CELLS[:2], code("import sys"), CELLS[3]], [0, 2, 3]), (None, [CELLS[0], code("make a!", "products:a.txt"), *CELLS[2:]], [0, 1, 2, 3]),
    (None, [*CELLS[:3], code("pass"), CELLS[3]], [0, 2, 3, 4])])
def test_source_parameters_and_what_is_above(folder, params, cells, ran): assert go(folder, cells, params, [[]]*5)[0] == ran


def test_papermills_own_cell_counts_for_nothing(folder):
    injected = code("# Parameters\nlr = 1", "injected-parameters")
    lines = []
    plan = Plan(folder/"run", dict(cells=CELLS), dict(lr=1), folder, [["p"], ["a"], ["i"], ["b"]], lines.append)
    assert [plan.kept(n, cell) for n,cell in enumerate([CELLS[0], injected, *CELLS[1:]])] == [None, None, ["a"], None, ["b"]]


def test_a_cell_whose_variables_are_needed_runs(tmp_path):
    (tmp_path/"run").mkdir()
    cells = [code("model = 1", "products:a.txt"), code("print(model)")]
    for earlier,ran in ((None, [0, 1]), ([[]]*2, [0, 1])):
        got,lines = go(tmp_path, cells, earlier=earlier, writes={0:{"a.txt":"A"}})
        assert got == ran
    assert "cells below use model" in lines[0]


def test_a_promise_that_is_not_kept_is_told(tmp_path):
    (tmp_path/"run").mkdir()
    _,lines = go(tmp_path, CELLS, writes={1:{"z.txt":""}})
    assert any("has not written a.txt" in line for line in lines) and "1" not in json.loads((tmp_path/"run"/"products.json").read_text() if (tmp_path/"run"/"products.json").exists() else "{}")


def test_names():
    assert made_names("import a.b as c\nfrom d import e\ndef f(): pass\nclass G: pass\nfor h in (): i += 1") == {"c", "e", "f", "G", "h", "i"}
    assert "x" in used_names("%time y = f(x)") and "y" in made_names("%time y = f(x)") and "x" in used_names("x = (") and used_names("y = x") == {"x"} and products_of(code("")) == []
