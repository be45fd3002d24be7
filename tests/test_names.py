"The names that stand as text are those that the rooms register, and no options are missing"
import subprocess
import sys

import pytest

from vitnb.data.augment import augments
from vitnb.data.cube import cube_sets
from vitnb.data.cubeaugment import cube_augments
from vitnb.data.sets import is_known, sets
from vitnb.experiment.names import NAMED_OPTIONS, NAMES, check_name
from vitnb.learner.options import OPTIONS, options_of
from vitnb.learner.views import view_sets, views
from vitnb.models.protocol import list_models


def registered(field):
    if field == "arch": return list_models()
    if field == "data":
        is_known("a name that brings all rooms in")
        return {*sets, *cube_sets}
    if field == "augment": return {*augments, *cube_augments}
    if field == "tta": return {*views, *view_sets}
    return set(OPTIONS[field][0])


@pytest.mark.parametrize("field", NAMES)
def test_each_name_that_a_room_registers_stands_there_and_no_other(field): assert sorted(NAMES[field]) == sorted(registered(field))


@pytest.mark.parametrize("kind", NAMED_OPTIONS)
def test_the_options_are_those_that_are_taken(kind):
    assert NAMED_OPTIONS[kind] == {name:list(options_of(kind, name)) for name in OPTIONS[kind][0]}


@pytest.mark.parametrize("field,value", [("arch", "timm/resnet18"), ("tta", "hflip+rot90"), ("tta", ["hflip"]), ("loss", dict(leaf="focal", plant=None)), ("tta", "")])
def test_names_that_are_known(field, value): check_name(field, value)


@pytest.mark.parametrize("field,value,near", [("arch", "swin_tinny", "swin_tiny"), ("schedule", "cosin", "cosine"), ("tta", "hflip+rot9", "rot90"), ("loss", dict(a="focl"), "focal")])
def test_a_name_that_nobody_knows_names_the_nearest(field, value, near):
    with pytest.raises(ValueError, match=f"did you mean '{near}'"): check_name(field, value)


def test_all_of_it_is_known_without_torch():
    code = "import sys, vitnb.experiment.cli as cli; cli.parser(); print(sorted({'torch', 'pandas', 'fastai', 'papermill', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
