"`vitnb card` and `vitnb verify`, as a shell meets them"
import pytest

from vitnb.experiment import carding
from vitnb.experiment.cli import main


@pytest.mark.parametrize("found,code,says", [(([], []), 0, "holds"), ((["scores.a: then, now"], ["torch: 1 -> 2"]), 1, "no longer holds")])
def test_the_exit_code_says_whether_it_holds(monkeypatch, capfd, found, code, says):
    asked = []
    monkeypatch.setattr(carding, "verify_card", lambda *args: asked.append(args) or found)
    assert main(["verify", "c.ipynb", "--tolerance", "0.01"]) == code and asked[0][2] == .01
    out = capfd.readouterr().out
    assert says in out and all(line in out for line in [*found[0], *found[1]])


@pytest.mark.parametrize("part", ["", "frozen"])
def test_a_run_of_several_models_is_refused_without_a_remedy_that_leads_nowhere(tmp_path, capfd, part):
    for name in ("frozen", "tuned"):
        (tmp_path/name/"checkpoints").mkdir(parents=True)
        (tmp_path/name/"checkpoints/best_model.pth").touch()
    (tmp_path/"params.json").write_text("{}")
    assert main(["card", str(tmp_path/part)]) == 2
    err = capfd.readouterr().err
    assert str(tmp_path/part) in err and "no recipe.json" in err and "give one of them" not in err


@pytest.mark.parametrize("args,says", [(["card", "nowhere"], "nowhere"), (["verify", "nowhere.ipynb"], "no notebook"),
    (["verify", "nowhere.ipynb", "--tolerance", "-1"], "--tolerance -1"), (["verify", "nowhere.ipynb", "--tolerance", "nan"], "--tolerance nan"), (["card", "nowhere", "-o", "/dev/null/card.ipynb"], "is no folder"),
    (["recover", "/nowhere"], "is not there"), (["recover", __file__], "is no notebook"), (["reopen", "/nowhere"], "no executed notebook"),
    (["watch", "--seconds", "0"], "--seconds 0"), (["watch", "--seconds", "nan"], "--seconds nan"), (["watch", "--last", "0"], "--last 0")])
def test_a_wrong_call_is_one_line_and_exit_2(capfd, args, says):
    assert main(args) == 2
    err = capfd.readouterr().err
    assert says in err and "Traceback" not in err
