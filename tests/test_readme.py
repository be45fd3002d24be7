"`vitnb readme`: pages from notebooks"
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_helpers import PARAMS, notebook, workspace
from data_helpers import folder

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


def test_the_table_is_in_the_order_of_use_and_its_cells_are_beginnings(workspace):
    index(workspace, "<!-- experiments: train_swin train -->\n<!-- /experiments -->")
    card = "**Run** first `a b`, or `c d`  \n**Cost** 9 s (two cores; idle); more elsewhere  \n**Expect** 0.9; on Sundays 0.8"
    for name in ("benchmark_loop", "train_demo", "train_swin", "train_xl"):
        nb = json.loads(notebook(workspace/"nbs"/f"{name}.ipynb", PARAMS).read_text())
        nb["cells"] = [dict(cell_type="markdown", id=f"m{i}", metadata={}, source=text) for i,text in enumerate([f"# {name}\n> Why?", card])] + nb["cells"]
        (workspace/"nbs"/f"{name}.ipynb").write_text(json.dumps(nb))
    assert cli.main(["readme"]) == 0
    rows = [line.strip("| ").split(" | ") for line in (workspace/"README.md").read_text().splitlines() if line.startswith("| [")]
    assert [row[0].split("]")[0][1:] for row in rows] == ["train_swin", "train_demo", "train_xl", "benchmark_loop"]
    assert rows[0][1:] == ["Why?", "`a b`", "9 s (two cores; idle)", "0.9"]


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT/"README.md").read_text()


def test_the_readme_is_a_first_hour():
    "For whom, a first run, images of one's own in five lines, predict, cubes, compare, and only then the rest"
    heads = re.findall(r"(?m)^## (.+)$", README)
    wanted = ["Install", "What it looks like", "Your own images, in five lines", "Predict", "Your own cubes", "Compare", "In JupyterLab", "Experiments"]
    assert "**For whom**" in README.split("\n## ")[0] and [next(word for word in wanted if head.startswith(word)) for head in heads if head.startswith(tuple(wanted))] == wanted
    five = re.search(r"## Your own images.*?```python\n(.*?)```", README, re.S)[1].strip().splitlines()
    assert len(five) == 5 and "predict(" in five[-1] and not any(len(cell) > 230 for line in README.splitlines() if line.startswith("| [") for cell in line.split(" | "))


def commands(text):
    "The commands of `vitnb` that a page shows, without their comments"
    blocks = [block.replace("\\\n", " ") for block in re.findall(r"```bash\n(.*?)```", text, re.S)]
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(part, comments=True)[1:] for line in lines for part in line.split("&&") if re.match(r"\s*(\.venv/bin/)?vitnb ", part)]


@pytest.mark.parametrize("argv", commands(README), ids=" ".join)
def test_every_command_of_the_readme_can_be_typed(argv, monkeypatch, tmp_path, capfd):
    "What it asks for is known; data and runs of a person's own stand in for theirs"
    if argv[0] != "run":
        assert callable(cli.parser().parse_args(argv).call)
        return
    folder(tmp_path/"photos")
    for number in range(4): np.save(tmp_path/f"{number}.npy", np.ones((8, 8, 3), np.float32))
    (tmp_path/"catalogue.csv").write_text("ID,label,hs_file\n" + "".join(f"p{number},{number % 2},{number}.npy\n" for number in range(4)))
    theirs = {"photos":tmp_path/"photos", "cubes/catalogue.csv":tmp_path/"catalogue.csv"}
    if any("RUN" in part for part in argv): theirs |= {"resume":"seed", next(part for part in argv if "RUN" in part):"1"} # there is no such run
    argv = [str(theirs.get(part, ROOT/part if part.endswith(".ipynb") else part)) for part in argv]
    assert cli.main([*argv, "--show"]) == 0, capfd.readouterr().err
