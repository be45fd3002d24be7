"`vitnb readme`: pages from notebooks"
import json

from command_helpers import PARAMS, notebook, workspace

from vitnb.experiment import cli


def index(root, body):
    (root/"nbs").mkdir()
    cells = [dict(cell_type="markdown", id="a", metadata={}, source=body)]
    (root/"nbs"/"index.ipynb").write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))


def test_readme(workspace, capfd):
    index(workspace, "# demo\n![curve](images/c.png) [settings](../settings.ini)\n<!-- experiments -->\n<!-- /experiments -->")
    exp = notebook(workspace/"nbs"/"train_demo.ipynb", PARAMS)
    nb = json.loads(exp.read_text())
    head = ["# train_demo\n> Does a|b learn?", "**Run** `x`  \n**Cost** 9 s  \n**Expect** 0.9"]
    nb["cells"] = [dict(cell_type="markdown", id=f"m{i}", metadata={}, source=s) for i,s in enumerate(head)] + nb["cells"]
    exp.write_text(json.dumps(nb))
    assert cli.main(["readme", "--check"]) == 1 and not (workspace/"README.md").exists()
    assert cli.main(["readme"]) == 0
    md = (workspace/"README.md").read_text()
    assert "](nbs/images/c.png)" in md and "](settings.ini)" in md
    assert "| [train_demo](nbs/train_demo.ipynb) | Does a\\|b learn? | `x` | 9 s | 0.9 |" in md
    assert "[train_demo](train_demo.ipynb)" in (workspace/"nbs"/"index.ipynb").read_text()
    assert cli.main(["readme", "--check"]) == 0
    exp.write_text(exp.read_text().replace("9 s", "8 s")) # a card that changed makes the README stale
    assert cli.main(["readme", "--check"]) == 1
