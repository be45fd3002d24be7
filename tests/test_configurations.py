"What a sweep runs: grids, random draws, names, files, and what cannot be meant"
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_helpers import workspace # noqa: F401, a fixture
from sweep_helpers import plan_of

from vitnb.experiment.configurations import configurations, grid_points, random_points, read_sweep, run_tag
from vitnb.experiment.space import check_space


def test_the_guides_grid_with_its_names():
    "As its loop writes them"
    wanted = [(dict(lr=lr, weight_decay=wd), f"lr{lr}_wd{wd}") for lr in [0.01, 0.05, 0.1] for wd in [1e-4, 1e-3, 1e-2]]
    plan = read_sweep("densenet_grid")
    assert [(params, run_tag(plan.naming, n, params)) for n,params in enumerate(configurations(plan))] == wanted


@pytest.mark.parametrize("seed", [42, 7])
def test_the_guides_random_search_with_its_names(seed):
    "The very numbers of its loop, after random.seed"
    random.seed(seed)
    wanted = [dict(lr=10**random.uniform(-4, -1), weight_decay=10**random.uniform(-5, -2), dropout=random.uniform(0, 0.3)) for _ in range(20)]
    plan = read_sweep("densenet_random", seed=seed)
    found = configurations(plan)
    assert [run_tag(plan.naming, n, params) for n,params in enumerate(found)] == [f"trial_{i}" for i in range(20)]
    for mine,theirs in zip(found, wanted, strict=True): assert mine == pytest.approx(theirs, rel=1e-12)


def test_decades_are_drawn_alike_and_within_bounds():
    values = [one["lr"] for one in random_points(check_space(dict(lr=dict(low=1e-4, high=1e-1, log=True))), 3000, 1)]
    decades = [sum(math.floor(math.log10(value)) == decade for value in values) for decade in (-4, -3, -2)]
    assert min(values) >= 1e-4 and max(values) <= 1e-1 and all(900 < n < 1100 for n in decades)


@settings(max_examples=40, deadline=None)
@given(low=st.floats(-5, 5), span=st.floats(.1, 5), step=st.floats(.05, 2), seed=st.integers(0, 99))
def test_a_draw_keeps_to_its_entry(low, span, step, seed):
    space = check_space(dict(a=dict(low=low, high=low + span), b=dict(low=low, high=low + span, step=step), c=dict(low=1, high=9), d=dict(low=2, high=64, log=True), e=["x", None]))
    for one in random_points(space, 5, seed):
        assert low <= one["a"] <= low + span and low <= one["b"] <= low + span + 1e-6 and abs((one["b"] - low)/step - round((one["b"] - low)/step)) < 1e-6
        assert type(one["c"]) is int and 1 <= one["c"] <= 9 and type(one["d"]) is int and 2 <= one["d"] <= 64 and one["e"] in ("x", None)


def test_more_runs_begin_with_the_same():
    space = check_space(dict(a=dict(low=0., high=1.), b=["x", "y"]))
    assert list(random_points(space, 9, 3))[:4] == list(random_points(space, 4, 3))


def test_a_grid_has_no_twins_of_what_does_not_act():
    space = check_space(dict(kind=["a", "b"], bonus=dict(values=[0, 1], when=dict(kind="b"))))
    assert list(grid_points(space)) == [dict(kind="a"), dict(kind="b", bonus=0), dict(kind="b", bonus=1)]


@pytest.mark.parametrize("space,more,says", [
    (dict(y=[1.]), {}, "unknown parameter 'y'"), ({}, dict(method="grid"), "must be a dictionary of parameters"), (dict(x=[]), {}, "at least one value"),
    (dict(x=dict(low=0., high=1.)), dict(method="grid"), "a grid needs values"), (dict(x=dict(low=0., high=1.)), {}, "needs a budget"),
    (dict(x=[0., 1.]), dict(runs=3), "the grid has 2"), (dict(x=[0.]), dict(name="a{y}"), "name='a{y}' has 'y'"), (dict(x=[0., 1.]), dict(name="same"), "calls 2 runs 'same'"),
    (dict(x=[0.]), dict(method="gird"), "did you mean 'grid'"), (dict(x=[0.]), dict(minutes=0), "minutes=0"), (dict(x=[0.]), dict(pruner=dict(name="median")), "does nothing for method grid"),
    (dict(x=dict(low=0., high=1.)), dict(method="random", runs=True), "runs=True"), (dict(tag=["a"]), {}, "set by the search"), (dict(x=[1.]), dict(params=dict(x=2.)), "given and searched")])
def test_what_cannot_be_meant_is_refused(workspace, space, more, says):
    from vitnb.experiment.configurations import make_sweep
    with pytest.raises(ValueError, match=says.replace("{", r"\{")): make_sweep(workspace/"train_demo.ipynb", space, "near", "max", **more)


def test_a_notebook_without_parameters_is_refused(workspace):
    import nbformat
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")]), workspace/"plain.ipynb")
    from vitnb.experiment.configurations import make_sweep
    with pytest.raises(ValueError, match="takes no parameters"): make_sweep(workspace/"plain.ipynb", dict(x=[1]), "a", "max")


def test_a_file_says_a_sweep_and_what_is_typed_wins(workspace):
    (workspace/"s.yaml").write_text("notebook: train_demo.ipynb\nspace:\n  x: [1e-1, 2.0]\nscore: near\nbetter: max\nparams:\n  epochs: 2\n  nap: 0.5\n")
    plan = read_sweep(workspace/"s.yaml", params=dict(nap=0.), minutes=3)
    assert plan.search.params == dict(epochs=2, nap=0.) and configurations(plan) == [dict(x=.1), dict(x=2.)] and plan.minutes == 3
    (workspace/"s.yaml").write_text("notebook: train_demo.ipynb\nspaec: {}\n")
    with pytest.raises(ValueError, match="did you mean 'space'"): read_sweep(workspace/"s.yaml")
    with pytest.raises(ValueError, match="is no sweep"): read_sweep("nothing")


def test_a_name_is_fit_for_a_folder(workspace):
    plan = plan_of(workspace, dict(kind=["a", "b"], x=[.5]), name="{kind}/x {x}")
    assert [run_tag(plan.naming, n, params) for n,params in enumerate(configurations(plan))] == ["a-x-0.5", "b-x-0.5"]
