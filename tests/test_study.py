"Plans that cannot be meant are refused, and a study is joined with its own plan only"
import pytest
from search_helpers import SPACE, demo, workspace # noqa: F401, workspace is a fixture

from vitnb.experiment.study import make_plan, make_sampler, open_study
from vitnb.storage import open_storage

optuna = pytest.importorskip("optuna")


@pytest.mark.parametrize("args,message", [
    (dict(space=dict(y=[1.])), "unknown parameter 'y'"), (dict(score="test_near"), "of the test split"),
    (dict(score="zones/test_f1"), "of the test split"), (dict(better="up"), "unknown better"), (dict(pick="median"), "unknown pick"),
    (dict(params=dict(kind="a")), "given and searched"), (dict(params=dict(nap=[1])), "nap="), (dict(space=dict(tag=["a"])), "'tag' of a trial"),
    (dict(sampler=dict(name="tpee")), "did you mean 'tpe'"), (dict(pruner=dict(name="median", warmup=1)), "median cannot be made"),
    (dict(sampler=dict(name="tpe", seed="x")), "seed='x'"), (dict(picks="last"), "did you mean 'pick'")])
def test_a_plan_that_cannot_be_meant_is_refused(workspace, args, message):
    with pytest.raises(ValueError, match=message):
        make_plan(workspace/"train_demo.ipynb", **{**dict(space=SPACE, score="near", better="max"), **args})


def test_a_study_that_exists_with_another_plan_is_refused(workspace):
    open_study("s", demo(workspace), root=workspace)
    open_study("s", demo(workspace), root=workspace)
    for plan,what in [(demo(workspace, dict(SPACE, x=dict(low=0., high=3.))), "space.x.high: 4.0 -> 3.0"),
                      (demo(workspace, params=dict(nap=1.)), "params.nap: None -> 1.0"), (demo(workspace, pick="last"), "pick: 'best' -> 'last'"),
                      (demo(workspace, dict(kind=SPACE["kind"], x=SPACE["x"], bonus=SPACE["bonus"])), "order of the space")]:
        with pytest.raises(ValueError, match=what): open_study("s", plan, root=workspace)


def test_a_foreign_study_is_refused(workspace):
    optuna.create_study(study_name="s", storage=open_storage(workspace/"x.db"))
    with pytest.raises(ValueError, match="not made by vitnb search"): open_study("s", demo(workspace), workspace/"x.db", workspace)


def test_each_draw_has_a_seed_of_its_own_and_the_same_one_again():
    def first(drawn, seed=42):
        study = optuna.create_study(sampler=make_sampler(dict(name="random", seed=seed), drawn))
        return study.ask().suggest_float("x", 0, 1)
    assert len({first(n) for n in range(20)}) == 20 and first(3) == first(3) and first(3, 7) != first(3)
