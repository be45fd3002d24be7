"What can be read of a notebook without running it"
import pytest
from test_parameters import FAMILIES, opened

from vitnb.experiment.notebook import notebook_askable, notebook_family, notebook_params
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
