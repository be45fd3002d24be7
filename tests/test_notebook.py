"What can be read of a notebook without running it"
import pytest
from test_parameters import FAMILIES, opened

from vitnb.experiment.notebook import notebook_askable, notebook_family, notebook_params, read_notebook
from vitnb.parameters import parse_params


@pytest.mark.parametrize("notebook", FAMILIES)
def test_a_notebook_shows_a_part_of_what_it_can_be_asked(notebook):
    nb,shown,family = opened(notebook)
    assert notebook_family(nb) == FAMILIES[notebook]
    assert len(shown) <= 20 and shown.keys() <= family.everything().keys()
    assert len(family.beyond(shown)) > len(shown)


def test_what_a_family_that_is_not_known_here_may_be_asked_its_kernel_decides():
    cell = dict(source="tag = ''\nlr = None", metadata=dict(tags=["parameters"]))
    nb = dict(cells=[cell, dict(source="%time 1\nRun(", metadata={}), dict(source="run = Run('a', {}, family='ferns')", metadata={})])
    assert notebook_family(nb) == "ferns"
    assert parse_params([["fronds", "3"]], notebook_params(nb), notebook_askable(nb, ["fronds"])) == dict(fronds=3)


@pytest.mark.parametrize("content,says", [
    ('{"nbformat": 3, "worksheets": []}', "format 3, and format 4 is needed; convert it: jupyter nbconvert"), ('{"nbformat": 4}', "it has no cells"), ("[]", "holds a list"), ("null", "NoneType"),
    ('{"cells": [', "not JSON"), ('{"cells": [{"cell_type": "code"}]}', "cell 1"), ('{"cells": [3]}', "cell 1"), ('{"cells": {}}', "no cells"), ("", "not JSON"), ("\ufeff{", "not JSON"),
    ('{"cells": [{"source": [1], "metadata": {}}]}', "cell 1"), ('{"cells": [{"source": "", "metadata": []}]}', "cell 1"), ("[" * 100000, "not JSON"),
    ('{"cells": [], "metadata": 3}', "metadata"), ('{"cells": [{"source": "", "outputs": null}]}', "cell 1"), ('{"cells": [{"source": "", "outputs": [3]}]}', "cell 1")])
def test_what_is_no_notebook_is_named(tmp_path, content, says):
    (tmp_path/"odd.ipynb").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"odd.ipynb.*{says}"): read_notebook(tmp_path/"odd.ipynb")


def test_a_wrong_name_is_answered_with_the_nearest_three(tmp_path):
    for name in ("train_swin", "train_swan", "train_spin", "train_spun", "far"): (tmp_path/f"{name}.ipynb").write_text("{}")
    with pytest.raises(ValueError) as caught: read_notebook(tmp_path/"train_swi.ipynb")
    assert str(caught.value).count(".ipynb") == 4 and "train_swin.ipynb" in str(caught.value) and "far" not in str(caught.value)
    with pytest.raises(ValueError, match="did you mean .*train_swin.ipynb"): read_notebook(tmp_path/"train_swin")


def test_cells_without_metadata_or_tags_are_read(tmp_path):
    (tmp_path/"bare.ipynb").write_text('{"cells": [{"cell_type": "code", "source": "x = 1"}, {"cell_type": "code", "source": ["y = 2"], "metadata": {"tags": null}}]}')
    assert notebook_params(read_notebook(tmp_path/"bare.ipynb")) == {}
