"The names that the quick checks know, without loading what bears them"
import subprocess
import sys

import pytest

from vitnb.experiment.names import NAMED_OPTIONS, NAMES, check_name


def test_each_choice_has_names_and_each_name_its_options():
    assert set(NAMED_OPTIONS) <= set(NAMES) and all(NAMES.values())
    for kind,table in NAMED_OPTIONS.items(): assert sorted(table) == NAMES[kind]


@pytest.mark.parametrize("field,value", [("arch", "timm/resnet18"), ("tta", "hflip+rot90"), ("tta", ["hflip"]), ("loss", dict(leaf="focal", plant=None)), ("tta", "")])
def test_names_that_are_known(field, value): check_name(field, value)


@pytest.mark.parametrize("field,value,near", [("arch", "swin_tinny", "swin_tiny"), ("schedule", "cosin", "cosine"), ("tta", "hflip+rot9", "rot90"), ("loss", dict(a="focl"), "focal")])
def test_a_name_that_nobody_knows_names_the_nearest(field, value, near):
    with pytest.raises(ValueError, match=f"did you mean '{near}'"): check_name(field, value)


def test_all_of_it_is_known_without_torch():
    code = "import sys, vitnb.experiment.cli as cli; cli.parser(); print(sorted({'torch', 'pandas', 'fastai', 'papermill', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_from_above_a_clone(tmp_path):
    (tmp_path/"vitnb").mkdir() # as a clone lies there: without an __init__.py of its own
    (tmp_path/"mine.py").write_text("from vitnb.experiment.names import NAMES; print(len(NAMES))")
    said = subprocess.run([sys.executable, tmp_path/"mine.py"], capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout.strip() == str(len(NAMES)), said.stderr
