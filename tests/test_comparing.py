"`vitnb compare`, as a shell meets it"
import webbrowser

import pandas as pd
import pytest
from compare_helpers import outputs # noqa: F401, a fixture

from vitnb.experiment.cli import main


def compare(capfd, *args):
    code = main(["compare", *map(str, args)])
    out,err = capfd.readouterr()
    return code, out, err


def test_a_table_is_printed_or_written(outputs, tmp_path, capfd):
    code,out,_ = compare(capfd, outputs, "--score", "test_accuracy", "--last", 2)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["run", "lr0.2_2", "lr0.2_1"]
    code,out,_ = compare(capfd, outputs, "-o", tmp_path/"t.csv", "--figures", tmp_path/"figures", "--score", "accuracy")
    assert code == 0 and len(pd.read_csv(tmp_path/"t.csv")) == 6
    assert sorted(path.name for path in (tmp_path/"figures").iterdir()) == ["curves.png", "importance.png", "parallel.png"]


def test_pairs_are_asked_for(outputs, capfd):
    code,out,_ = compare(capfd, outputs, "--pair", "lr", "--against", "0.1", "--score", "test_accuracy")
    assert code == 0 and "0.031" in out and "True" in out


@pytest.mark.parametrize("args", [["-o", "t.csv"], ["-o", "t.md"], ["--pair", "lr", "--score", "test_accuracy"], []])
def test_what_is_passed_over_is_said_whatever_is_asked_for(outputs, tmp_path, capfd, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    (outputs/"train_a/lr0.1_0/result.json").write_text("[1, 2]")
    code,out,err = compare(capfd, outputs, *args)
    assert code == 0 and (out + err).count("lr0.1_0: result.json: ") == 1


def test_a_run_is_opened(outputs, capfd, monkeypatch):
    import nbformat
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("what was seen")]), outputs/"train_a/lr0.1_0/train_a.ipynb")
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    assert compare(capfd, outputs, "--open", "lr0.1_0")[0] == 0 and "what was seen" in open(opened[0].removeprefix("file://")).read()


@pytest.mark.parametrize("args,says", [(["nowhere"], "no runs at"), (["OUT", "--score", "acc"], "none of 6 runs"), (["OUT", "--open", "nobody"], "none of these"),
    (["OUT", "--open", "lr0.1_0"], "holds no notebook"), (["OUT", "--pair", "lr"], "--pair needs --score"), (["OUT", "-o", "x.txt"], "neither"),
    (["OUT", "--last", "-1"], "--last -1"), (["OUT", "--last", "0"], "--last 0"), (["OUT", "--better", "max"], "--better needs --score"), (["OUT", "--against", "1"], "--against needs --pair"),
    (["OUT", "--score", "test_accuracy", "--pair", "lr", "bs", "--against", "0.1"], "1 values for 2"), (["OUT", "--score", "test_accuracy", "--pair", "lrr"], "no parameter 'lrr'"),
    (["OUT", "--open", "lr0.1_0", "-o", "x.csv"], "give one of them"), (["OUT", "--figures", "FILE"], "is no folder"), (["OUT", "-o", "FILE/t.csv"], "is no folder")])
def test_a_wrong_call_is_one_line_and_exit_2(outputs, capfd, args, says):
    (outputs/"a_file").write_text("")
    code,_,err = compare(capfd, *[outputs if arg == "OUT" else arg.replace("FILE", str(outputs/"a_file")) for arg in args])
    assert code == 2 and says in err and "Traceback" not in err
