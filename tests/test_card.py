"A card states what was found, fills the guide's checklist, and notices drift"
import copy
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from card_helpers import trained # noqa: F401, a fixture

from vitnb.experiment.card import checklist, drift, other_versions, read_card, verify_card, write_card
from vitnb.learner import rebuilt

GUIDE = ["Trained for sufficient epochs", "Validated on separate test set", "Documented hyperparameters", "Saved best checkpoint", "Tested inference speed",
         "Verified model size", "Checked for overfitting", "Evaluated on diverse data", "Documented known limitations"]


EXPORTS = {"safetensors":0., "onnx":6e-7, "torch.export":0.}


@pytest.fixture(scope="module", autouse=True)
def exported():
    "What test_evaluated.py does for real takes seconds"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuilt, "export_facts", lambda run: dict(EXPORTS))
        yield


@pytest.fixture(scope="module")
def card(trained, exported, tmp_path_factory):
    return write_card(trained[0], tmp_path_factory.mktemp("cards")/"card.ipynb", limitations="digits only")


def test_a_card_is_a_notebook_with_every_section(card, trained):
    nb = nbformat.read(card, 4)
    nbformat.validate(nb)
    text = "\n".join(cell.source for cell in nb.cells)
    for title in ("Fingerprints", "Scores", "Calibration", "Samples", "Exports", "Production checklist", "Verify"): assert f"## {title}" in text
    assert [line for line in re.findall(r"- \[[x ]\] ([^(:]+?)(?: \(\*\*not done\*\*\))?:", text)] == GUIDE
    assert text.count("**not done**") == text.count("- [ ]") >= 1 and "digits only" in text
    assert [cell.outputs[0].data["image/png"][:5] for cell in nb.cells if cell.cell_type == "code" and cell.outputs] == ["iVBOR"]
    assert "result.json has test_accuracy 0.5000" in text, "a result that is not found again is told"
    assert sorted(path.name for path in trained[0].iterdir() if path.suffix == ".ipynb") == []


def test_hostile_names_are_no_code_and_no_markup(card, trained, tmp_path, monkeypatch):
    "A class called `'''` must not end the text in the cell that holds the facts"
    facts,_ = read_card(card)
    bad = "<img src=x onerror=g()>$x$'''+evil()+'''"
    facts = {**facts, "answers":{"":bad}, "data":{**facts["data"], "name":bad}, "result":{bad:.5}}
    facts["scores"][bad] = .25
    facts["better"][bad] = "max"
    facts["split"]["images"][bad] = 3
    monkeypatch.setattr("vitnb.experiment.card.card_facts", lambda *_: facts)
    nb = nbformat.read(write_card(trained[0], tmp_path/"card.ipynb", limitations=bad), 4)
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    assert "<img" not in text and "$" not in text and text.count("onerror") == 8
    (source,) = [cell.source for cell in nb.cells if "json.loads" in cell.source]
    held = {}
    exec(source, dict(evil=lambda: pytest.fail("a name was run")), held)
    assert held["facts"] == read_card(tmp_path/"card.ipynb")[0] == facts


def test_a_card_holds_until_something_drifts(card, trained, tmp_path):
    "The same run holds, wherever it lies; other weights do not, and are named with the scores"
    import torch
    folder = tmp_path/"moved"
    shutil.copytree(trained[0], folder)
    assert verify_card(card, folder)[0] == []
    path = folder/"checkpoints/last_model.pth"
    state = torch.load(path, weights_only=True)
    state["model_state_dict"]["head.fc.weight"] *= -1
    torch.save(state, path)
    Path(f"{path}.crc32").unlink(missing_ok=True)
    found = " ".join(verify_card(card, folder)[0])
    assert "weights:" in found and "scores.test_accuracy:" in found and "data." not in found


@pytest.mark.parametrize("old,new,says", [('[ ] Evaluated on diverse data (**not done**)', '[x] Evaluated on diverse data', "Production checklist:"),
    ('"test_accuracy": 0.', '"test_accuracy": 7.', "facts:"), ("| test_accuracy | 0.", "| test_accuracy | 1.", "Scores:"), ("# a note", "# another", "")])
def test_a_card_that_was_changed_by_hand_no_longer_holds(card, trained, tmp_path, monkeypatch, old, new, says):
    monkeypatch.setattr("vitnb.experiment.card.card_facts", lambda *_: read_card(card)[0])
    nb = nbformat.read(card, 4)
    nb.cells.insert(2, nbformat.v4.new_markdown_cell("# a note"))
    path = tmp_path/"card.ipynb"
    nbformat.write(nb, path)
    assert verify_card(path, trained[0])[0] == [], "notes may be added"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    found = verify_card(path, trained[0])[0]
    assert any(line.startswith(says) for line in found) if says else found == []


def test_every_kind_of_drift_is_seen(card):
    facts,_ = read_card(card)
    def after(change):
        new = copy.deepcopy(facts)
        change(new)
        return [line.split(":")[0] for line in drift(facts, new)]
    assert after(lambda new: None) == []
    assert after(lambda new: new["data"].update(fingerprint="x")) == ["data.fingerprint"]
    assert after(lambda new: new["split"].update(fingerprint="x")) == ["split.fingerprint"]
    assert after(lambda new: new["scores"].update(test_accuracy=facts["scores"]["test_accuracy"] + .01)) == ["scores.test_accuracy"]
    assert after(lambda new: new["scores"].pop("test_f1_macro")) == ["scores.test_f1_macro"]
    assert after(lambda new: new["export"].update(safetensors=.1)) == ["export.safetensors"]
    assert after(lambda new: new["export"].update(safetensors="not done: gone")) == ["export.safetensors"]
    assert after(lambda new: new["size"].update(ms_image_bs1=99.)) == [], "time is no drift"
    assert after(lambda new: (new["scores"].update(test_accuracy=9.), new["calibration"].update(temperature=9.), new.update(weights="x"))) == ["weights", "calibration.temperature", "scores.test_accuracy"], "causes come first"
    less = copy.deepcopy(facts)
    del less["weights"], less["scores"]["test_accuracy"]
    assert {line.split(":")[0] for line in drift(less, facts)} == {"weights", "scores.test_accuracy"}, "what a card does not say is no proof"
    new = copy.deepcopy(facts)
    new["environment"]["now"]["torch"] = "9"
    assert other_versions(facts, new) == [f"torch: {facts['environment']['now']['torch']} -> 9"] and drift(facts, new) == []


def test_the_checklist_marks_what_was_not_done(card):
    facts,_ = read_card(card)
    good = copy.deepcopy(facts)
    good["training"] = dict(epochs=20, asked=20, state="finished", smoke=False, symptoms={})
    assert all(done for _,done,_ in checklist(good, dict(lr=1), "only digits", "also USPS: 0.9"))
    bad = copy.deepcopy(good)
    bad["training"]["symptoms"] = dict(unfinished="the loss still falls")
    bad["split"]["shared"] = 3
    bad["scores"]["train_accuracy"] = None
    done = {line:(is_done, how) for line,is_done,how in checklist(bad, {})}
    assert list(done) == GUIDE and [line for line in GUIDE if not done[line][0]] == [GUIDE[n] for n in (0, 1, 2, 6, 7, 8)]
    assert done[GUIDE[0]][1] == "the loss still falls" and "3 samples" in done[GUIDE[1]][1]
    for change,line,why in ((dict(training={**good["training"], "smoke":True}), 0, "smoke"), (dict(checkpoints=dict(tested="last_model.pth", best=False)), 3, "no best_model.pth")):
        found = checklist({**good, **change}, dict(lr=1), "only digits", "also USPS: 0.9")
        assert [n for n,(_,is_done,_) in enumerate(found) if not is_done] == [line] and why in found[line][2]


def test_what_is_no_card_says_so(tmp_path, card, trained):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path/"plain.ipynb")
    with pytest.raises(ValueError, match="is no card"): read_card(tmp_path/"plain.ipynb")
    with pytest.raises(ValueError, match="is no card"): verify_card(tmp_path/"plain.ipynb", trained[0])
    for part in ("scores", "environment"):
        nb = nbformat.read(card, 4)
        nb.metadata["vitnb_card"].update({part:{}} if part == "environment" else {part:None})
        nbformat.write(nb, tmp_path/"part.ipynb")
        with pytest.raises(ValueError, match=f"part.ipynb is damaged: it does not state {part}"): verify_card(tmp_path/"part.ipynb", trained[0])
    with pytest.raises(ValueError, match="end in .ipynb"): write_card(trained[0], tmp_path/"card.md")
    other = shutil.copytree(trained[0], tmp_path/"other")
    (other/"environment.json").write_text((other/"environment.json").read_text().replace('"data": "', '"data": "0'))
    with pytest.raises(ValueError, match="not the data that .* was trained and tested on"): write_card(other, tmp_path/"card.ipynb")
    nb = nbformat.read(card, 4)
    nb.cells[1].source = "run = '/nowhere'"
    nbformat.write(nb, tmp_path/"lost.ipynb")
    with pytest.raises(ValueError, match="which is not there"): read_card(tmp_path/"lost.ipynb")
