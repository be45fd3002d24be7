"What a card says is held against what was written into it; drift of facts is in test_card.py, on a real card"
import copy
import json

import pytest

from vitnb.experiment.drift import changed_parts, drift, part_sums

FACTS = dict(scores=dict(accuracy=.91, loss=0., low=-0., tiny=1e-7, n=80, none=None), export=dict(onnx="not done: gone"), ok=True)
CELLS = [dict(metadata={}, source="# Card of a run\n\n> ?"), dict(metadata=dict(tags=["parameters"]), source="run = '/there'"),
         dict(metadata={}, source="## Scores\n\n| accuracy | 0.91 |"), dict(metadata={}, source="import json\nfacts = 1")]
SUMS = part_sums(CELLS, FACTS)


def as_jupyter_saves(value):
    "JavaScript has one kind of number: 0.0 and -0.0 come back as 0, 80.0 as 80"
    if isinstance(value, dict): return {name:as_jupyter_saves(value[name]) for name in sorted(value, reverse=True)}
    return int(value) if isinstance(value, float) and value == int(value) else value


def test_what_changes_no_statement_holds():
    moved = [*CELLS[::-1], dict(metadata={}, source="a note of mine"), dict(metadata={}, source="run = '/elsewhere'")]
    moved[2] = {**CELLS[1], "source":"run = '/elsewhere'"}
    facts = json.loads(json.dumps(as_jupyter_saves(FACTS)))
    assert facts["scores"]["loss"] == 0 and isinstance(facts["scores"]["loss"], int), "as it is in the file"
    assert changed_parts(moved, facts, json.loads(json.dumps(SUMS))) == []


def ways():
    "Each number, text and flag changed, each fact taken out, each part changed or taken out, and each checksum"
    for group,facts in FACTS.items():
        for name in facts if isinstance(facts, dict) else ():
            for value in (None, .92, "x", True, 10**400, float("nan")):
                if value is not FACTS[group][name]: yield "facts", lambda c, f, s, at=(group, name, value): f[at[0]].update({at[1]:at[2]})
            yield "facts", lambda c, f, s, at=(group, name): f[at[0]].pop(at[1])
    yield "facts", lambda c, f, s: f.update(ok=False)
    yield "facts", lambda c, f, s: f.update(ok=1)
    yield "Scores", lambda c, f, s: c[2].update(source=c[2]["source"].replace("0.91", "0.97"))
    yield "Scores", lambda c, f, s: c.pop(2)
    yield "import json", lambda c, f, s: c[3].update(source="")
    yield "facts", lambda c, f, s: s["cells"].pop("Scores")
    for damaged in (None, [], "x", 3): yield "Scores", lambda c, f, s, damaged=damaged: s["cells"].update(Scores=damaged)
    for damaged in (None, [], "x", 3): yield "no checksums", lambda c, f, s, damaged=damaged: s.update(cells=damaged)
    yield "facts", lambda c, f, s: s.pop("facts")


@pytest.mark.parametrize("says,change", ways())
def test_each_change_is_named(says, change):
    cells,facts,sums = copy.deepcopy((CELLS, FACTS, SUMS))
    change(cells, facts, sums)
    found = changed_parts(cells, facts, sums)
    assert found and any(says in line for line in found), found


@pytest.mark.parametrize("sums", [None, [], "x", {}, dict(facts="00000000")])
def test_a_card_without_checksums_proves_nothing(sums): assert "write it again" in changed_parts(CELLS, FACTS, sums)[0]


@pytest.mark.parametrize("name,old,new,is_drift", [("answers", {"":"cat, dog"}, {"":"dog, cat"}, True), ("better", dict(loss="min"), dict(loss="max"), True),
    ("split", dict(images=dict(test=80)), dict(images=dict(test=79)), True), ("size", dict(parameters=10), dict(parameters=11), True),
    ("size", dict(ms_image_bs1=1.), dict(ms_image_bs1=9.), False), ("training", dict(state="finished"), dict(state="stopped"), False)])
def test_what_the_model_is_must_be_the_same(name, old, new, is_drift): assert bool(drift({name:old}, {name:new})) == is_drift
