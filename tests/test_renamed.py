"Names of yesterday: one table, through which recipes, -p and papermill's parameters go"
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.experiment.cli import parse_params
from vitnb.callback.checkpoint import Checkpoints
from vitnb.callback.limit import NaNWatch
from vitnb.experiment.recipes import resolve
from vitnb.experiment.run import Run
from vitnb.experiment.stored import stored_recipe
from vitnb.learner.core import run_callbacks
from vitnb.parameters import check_injected
from vitnb.renamed import new_name, rename, renamed, upgrade


@pytest.fixture
def table():
    "The recipe table, which afterwards is as it was"
    before = renamed["recipe"]
    renamed["recipe"] = []
    yield renamed["recipe"]
    renamed["recipe"] = before


@pytest.fixture
def lr(table): rename("learning_rate", "lr", "0.2", "as optimisers call it")


NAMES = st.sampled_from("abcdefgh")


@settings(max_examples=200, deadline=None)
@given(chain=st.lists(NAMES, unique=True, min_size=2, max_size=6), order=st.randoms(use_true_random=False), fields=st.dictionaries(NAMES, st.integers()))
def test_upgrading_twice_is_upgrading_once_and_no_value_is_lost(chain, order, fields):
    "For every chain of names, in whatever order its links were entered, and every dictionary"
    links = list(zip(chain, chain[1:]))
    order.shuffle(links)
    renamed["tried"] = []
    for old,new in links: rename(old, new, "0.2", f"{old} to {new}", where="tried")
    try:
        if len(fields.keys() & set(chain)) > 1:
            with pytest.raises(ValueError, match="is given too"): upgrade(fields, "tried", say=None)
            return
        once = upgrade(fields, "tried", say=None)
        assert upgrade(once, "tried", say=None) == once
        assert once == {chain[-1] if k in chain else k:v for k,v in fields.items()}
    finally: del renamed["tried"]


def is_free(name): return not any(name in entry.old for entry in renamed["recipe"]) # hypothesis tries the code's constants too


@settings(max_examples=50, deadline=None)
@given(fields=st.dictionaries(st.text(max_size=5).filter(is_free), st.integers()))
def test_names_that_no_table_knows_stay(fields):
    assert upgrade(fields) == fields and upgrade(fields) is not fields


def test_one_line_says_what_was_changed(lr, capsys):
    rename("smoothing", "label_smoothing", "0.3", "of labels")
    assert upgrade(dict(smoothing=.1, learning_rate=1e-3, bs=4)) == dict(label_smoothing=.1, lr=1e-3, bs=4)
    (line,) = capsys.readouterr().out.splitlines()
    assert "'learning_rate' is now 'lr' (since 0.2: as optimisers call it)" in line and "'smoothing' is now 'label_smoothing'" in line
    upgrade(dict(bs=4))
    assert capsys.readouterr().out == ""


def test_a_function_may_make_one_field_of_several_or_several_of_one(table):
    rename("betas", lambda o: dict(beta1=o["betas"][0], beta2=o["betas"][1]), "0.2", "one by one")
    rename(("height", "width"), lambda o: dict(size=(o.get("height"), o.get("width"))), "0.2", "both or none")
    assert upgrade(dict(betas=(.9, .95), height=3), say=None) == dict(beta1=.9, beta2=.95, size=(3, None))
    rename("gone", lambda o: {}, "0.2", "nobody used it")
    with pytest.raises(ValueError, match="its value would be lost"): upgrade(dict(gone=1))


def test_only_named_fields_are_looked_into(lr):
    given = dict(more=dict(learning_rate=1), model_kw=dict(learning_rate=2))
    assert upgrade(given, inside=["more"], say=None) == dict(more=dict(lr=1), model_kw=dict(learning_rate=2))


def test_what_the_caller_has_is_no_old_name(lr):
    assert upgrade(dict(learning_rate=1), known=["learning_rate", "lr"]) == dict(learning_rate=1)


@pytest.mark.parametrize("old,new,says", [("lr", "learning_rate", "ends nowhere"), ("a", "a", "ends nowhere"), ("learning_rate", "rate", "renamed already"),
                                          (("a", "b"), "c", "give a function")])
def test_entries_that_could_not_be_followed_are_refused(lr, old, new, says):
    with pytest.raises(ValueError, match=says): rename(old, new, "0.9", "a mistake")
    assert new_name("learning_rate") == "lr" and len(renamed["recipe"]) == 1


def test_an_entry_that_is_made_again_is_one(lr):
    rename("learning_rate", "lr", "0.2", "as optimisers call it")
    assert len(renamed["recipe"]) == 1


def test_a_table_has_a_name():
    with pytest.raises(ValueError, match="did you mean 'recipe'"): upgrade({}, "recipes")


# where it is used

DEFAULTS = dict(lr=None, tag="", bs=4)


def test_an_old_name_on_the_command_line_is_accepted_and_said(lr, capsys):
    rename("label", "tag", "0.2", "shorter")
    assert parse_params([["learning_rate", "1e-2"], ["label", "5"]], DEFAULTS) == dict(lr=1e-2, tag="5"), "read as the new name's type"
    assert "'learning_rate' is now 'lr'" in capsys.readouterr().err
    assert parse_params([["bs", "8"]], DEFAULTS) == dict(bs=8) and capsys.readouterr().err == ""


def test_an_old_name_beside_its_new_one_is_an_error(lr):
    with pytest.raises(ValueError, match="give 'lr' alone"): parse_params([["learning_rate", "1"], ["lr", "2"]], DEFAULTS)
    with pytest.raises(ValueError, match="give 'lr' alone"): resolve("swin", "digits", dict(learning_rate=1., lr=2.))
    with pytest.raises(ValueError, match="give it once"): resolve("swin", "digits", dict(lr=2., more=dict(learning_rate=1.)))


def test_an_old_name_of_what_a_notebook_lacks_is_still_unknown(lr):
    with pytest.raises(ValueError, match="unknown parameter 'lr'"): parse_params([["learning_rate", "1"]], dict(bs=4))


def test_an_old_name_reaches_the_recipe(lr):
    assert resolve("swin", "digits", dict(learning_rate=.5, lr=None)).lr == .5, "None is not given"
    assert resolve("swin", "digits", dict(more=dict(learning_rate=.5))).lr == .5


def test_an_old_name_through_plain_papermill(lr, tmp_path, monkeypatch, capsys):
    "Which sets the old name in the notebook: from the cell that opens the run on it is the new one"
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(tmp_path))
    history = ["", "lr = None # peak\ntag = ''", "# Parameters\nlearning_rate = 0.5\n"]
    assert check_injected(history) == dict(lr=.5)
    space = dict(In=history, lr=None, tag="", learning_rate=.5)
    run = Run("train_old", space)
    assert space["lr"] == .5 and run.params == dict(lr=.5, tag="") and "is now 'lr'" in capsys.readouterr().out


@pytest.mark.parametrize("old,new,value", [("keep_top", "keep_top_k", 3), ("checkpoint_every", "checkpoint_every_n_epochs", 5)])
def test_counts_of_checkpoints_have_their_field_s_names_and_old_ones_still_count(old, new, value):
    "As a parameter, in `more`, and as papermill hands them on"
    for given in (dict({old:value}), dict(more={old:value})):
        assert resolve("swin", "digits", given)[new] == value
    assert parse_params([(old, str(value))], {new:0}) == {new:value}
    with pytest.raises(ValueError, match=f"is now '{new}'.*is given too"): resolve("swin", "digits", {old:value, new:value + 1})


def test_a_stored_recipe_with_the_old_counts_is_read(tmp_path):
    (tmp_path/"recipe.json").write_text('{"family": "swin", "keep_top": 2, "checkpoint_every": 4}')
    stored = stored_recipe(tmp_path)
    assert (stored.keep_top_k, stored.checkpoint_every_n_epochs) == (2, 4) and "keep_top" not in stored


def test_old_keywords_still_count(tmp_path, capsys):
    "In Python as well: what people type there is kept by the same table"
    files = Checkpoints(tmp_path, every=2, steps=3, keep=4)
    assert (files.every_n_epochs, files.every_n_steps, files.keep_top_k) == (2, 3, 4)
    assert "'keep' is now 'keep_top_k'" in capsys.readouterr().out
    made = next(cb for cb in run_callbacks(tmp_path, tracker="none", steps=2, every=1, keep=2) if isinstance(cb, Checkpoints))
    assert (made.every_n_epochs, made.every_n_steps, made.keep_top_k) == (1, 2, 2)
    assert NaNWatch(every=5).every_n_steps == 5
    with pytest.raises(ValueError, match="give 'keep_top_k' alone"): Checkpoints(tmp_path, keep=4, keep_top_k=5)
    with pytest.raises(TypeError, match="unexpected keyword"): Checkpoints(tmp_path, kept=4)
