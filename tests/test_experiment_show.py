"`vitnb run --show`: the resolved recipe, and nothing else"
from pathlib import Path

import pytest
from command_helpers import PARAMS, notebook, workspace

from vitnb.experiment import cli
from vitnb.experiment.notebook import notebook_params, read_notebook
from vitnb.experiment.recipes import resolve

NBS = Path(__file__).resolve().parents[1]/"nbs"


def shown(capfd, *args):
    code = cli.main(["run", *map(str, args), "--show"])
    said = capfd.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("name,family,recipe,given", [("train_swin", "swin", "digits", dict(epochs=3)), ("pretrain_spectral", "spectral", "retina", dict(data="x.csv")), ("train_chest", "chest", "csi", dict(data="x.csv")),
                                                      ("finetune_hvit", "hvit_finetune", "leaves", {}), ("finetune_spectral", "finetune", "eyes", dict(normalize="log"))])
def test_every_field_stands_there_as_the_run_would_have_it(workspace, capfd, name, family, recipe, given):
    (workspace/"x.csv").write_text("ID,label,hs_file\np0,a,c.npy\n") # data that is not there is refused before
    (workspace/"c.npy").touch()
    given = {key:str(workspace/value) if value == "x.csv" else value for key,value in given.items()}
    args = [word for key,value in given.items() for word in ("-p", key, value)]
    if name != "finetune_spectral": args += ["-p", "recipe", recipe]
    code,out,err = shown(capfd, NBS/f"{name}.ipynb", *args)
    assert code == 0, err
    fields = {key.strip():value for key,value in (line.split(" = ", 1) for line in out.splitlines() if " = " in line)}
    want = resolve(family, recipe, {**notebook_params(read_notebook(NBS/f"{name}.ipynb")), **given})
    assert all(fields[key].split("  #")[0] == repr(value) for key,value in want.items())
    assert all(fields[key].endswith("# given") for key in given) and not (workspace/"out").exists(), "no folder is made"


def test_a_wrong_field_is_refused_as_the_run_would(workspace, capfd):
    assert shown(capfd, NBS/"train_swin.ipynb", "-p", "epoch", "3")[0] == 2
    code,_,err = shown(capfd, NBS/"train_swin.ipynb", "-p", "gamma", ".5")
    assert code == 2 and "gamma" in err, "a field that the recipe does not use"


def test_a_notebook_without_recipes_shows_its_parameters(workspace, capfd):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "1/0")
    code,out,_ = shown(capfd, nb, "-p", "epochs", "7")
    assert code == 0 and "epochs = 7  # given" in out and "lr     = 0.001" in out
    nb = notebook(workspace/"train_mine.ipynb", PARAMS, 'run = Run("train_mine", globals(), family="mine")')
    assert "entered by the notebook itself" in shown(capfd, nb)[2]


def test_devices_are_refused_where_there_are_none(workspace, capfd):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "1/0")
    assert cli.main(["run", str(nb), "--devices", "0,1"]) == 2 and "not on this machine" in capfd.readouterr().err
    assert not (workspace/"out").exists()
