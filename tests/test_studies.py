"What the notebooks that compare can be asked beyond their parameters cells"
import pytest

from vitnb.experiment.recipes import families, recipes, resolve
from vitnb.experiment.studies import register_study


def another(value):
    "Of the same type"
    if isinstance(value, bool): return not value
    if isinstance(value, (int, float)): return value + 1
    return value[:1] if isinstance(value, list) else "another"


@pytest.mark.parametrize("family", ["finetune", "scenes"])
def test_every_recipe_of_a_study_resolves_and_a_given_field_wins(family):
    given = dict(data="eyes") if family == "finetune" else {}
    for name in recipes[family].names():
        for field,value in resolve(family, name, given).items():
            if field == "family": continue
            asked = another(value)
            assert resolve(family, name, {**given, field:asked})[field] == asked, field


def test_the_published_scenes_differ_in_what_the_paper_needs_and_in_nothing_else():
    here,there = resolve("scenes", "synthetic", {}), resolve("scenes", "published", {})
    changed = {field for field in here if here[field] != there[field]}
    assert changed == set("sources target patch_size n_splits width steps bs probe_steps neighborhood_radius".split())


def test_the_sets_of_a_comparison_have_budgets_of_their_own_and_one_way_to_train():
    here = resolve("comparison", "digits", {})
    own = set("data groups head img_size cache_size views augment labels pretrainings pretrain_epochs pretrain_bs steps bs".split())
    for name in recipes["comparison"].names():
        there = resolve("comparison", name, dict(data="a folder"))
        assert {field for field in here if here[field] != there[field]} <= own
    with pytest.raises(ValueError, match="needs data"): resolve("comparison", "leaves", {})


def test_old_names_of_a_study_are_accepted():
    said = resolve("scenes", "synthetic", dict(dealings=7, reach=2))
    assert said.n_splits == 7 and said.neighborhood_radius == 2


def test_a_study_of_ones_own_has_its_fields_and_no_others(monkeypatch):
    for table in (families, recipes):
        for name in list(table.names()): monkeypatch.setitem(table, name, table[name]) # what is added is taken away again
    try:
        register_study("colours", shown="hue epochs", fields=dict(shade=.5), recipes=dict(plain={}, dark=dict(shade=.9)))
        assert resolve("colours", "dark", {}).shade == .9 and resolve("colours", "plain", dict(hue="red")).hue == "red"
        with pytest.raises(ValueError, match="did you mean 'dark'"): recipes["colours"]["darc"]
    finally:
        for table in (families, recipes): table.pop("colours", None)
