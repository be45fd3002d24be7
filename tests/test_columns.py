"Columns of a table, before anything is loaded"
import subprocess
import sys

import pytest

from vitnb.experiment.recipes import check_recipe
from vitnb.learner.columns import check_columns


@pytest.mark.parametrize("given,says", [(dict(label="tags"), "column 'tags' of t.csv holds several labels an image"), (dict(label="nope"), "no column 'nope' for label"), (dict(label="kind", group="nope"), "no column 'nope' for group"),
    (dict(label="kind", weight="wieght"), "no column 'wieght' for weight"), (dict(), "which column has the labels"), (dict(label="kind"), None), (dict(label="kind", group="label"), None)])
def test_columns_are_looked_at_before_anything_is_loaded(tmp_path, given, says):
    (tmp_path/"t.csv").write_text("file,label,class,kind,tags\n1.png,a,a,b,\"['x', 'y']\"\n2.png,b,b,a,\"['x']\"\n")
    checks = (lambda: check_columns(tmp_path/"t.csv", given), lambda: check_recipe("swin", dict(data=str(tmp_path/"t.csv"), recipe="auto", **given)))
    for check in checks:
        if says is None: check()
        else:
            with pytest.raises(ValueError, match=says): check()


def test_lists_are_refused_for_one_class_only(tmp_path):
    (tmp_path/"t.csv").write_text("file,label\n1.png,\"['x', 'y']\"\n2.png,\"['x']\"\n")
    check_columns(tmp_path/"t.csv", {}, one_class=False)
    with pytest.raises(ValueError, match="holds several"): check_columns(tmp_path/"t.csv", {})


def test_looking_loads_no_torch():
    code = "import sys, vitnb.learner.columns; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
