"Figures that experiment notebooks state: those of a card against what its run computed, against the closing section, and against each other"
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT/"tests"/"fixtures"/"results").glob("*.json")) # the flat `result.json` of each run that a card is about, with its command
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?![\w.]*\d)")


def prose(notebook):
    "The card's Expect, and what follows 'What this says'"
    cells = ["".join(c["source"]) for c in json.loads((ROOT/"nbs"/notebook).read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown"]
    expect = next((text.split("**Expect**")[1] for text in cells if "**Expect**" in text), "")
    return expect, next((text for text in cells if "## What this says" in text), "")


def unfounded(text, values):
    "Decimal numbers of a text that no value gives when it is rounded as they are"
    values = list(values)
    def is_of(number): return any(abs(value - float(number)) <= .5*10**-len(number.partition(".")[2]) + 1e-6 for value in values) # 0.475 may be either
    return [number for number in NUMBER.findall(text) if not is_of(number)]


def test_a_figure_that_moved_is_found():
    assert unfounded("0.74 right (0.69 to 0.79), a gain of -0.02", [.742857, .692857, .7929, -.0219]) == []
    assert unfounded("0.75 right, 280 images, 3 of 8.", [.742857]) == ["0.75"] and unfounded("3.31 degrees", [3.3149]) == []


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_figures_of_a_card_are_those_that_its_runs_computed(path):
    kept = json.loads(path.read_text(encoding="utf-8"))
    values = [value for run in kept["runs"] for value in run["result"].values() if isinstance(value, float)]
    expect,_ = prose(f"{path.stem}.ipynb")
    assert NUMBER.search(expect) and unfounded(expect, values) == [], f"run again: {[run['command'] for run in kept['runs']]}"


STATED = [p.name for p in sorted((ROOT/"nbs").glob("*.ipynb")) if p.name.startswith(("compare_films", "compare_pretraining", "sweep_"))]

@pytest.mark.parametrize("notebook", STATED)
def test_the_figures_of_a_card_stand_in_the_closing_section(notebook):
    expect,closing = prose(notebook)
    assert unfounded(expect, map(float, NUMBER.findall(closing))) == [], "the card and the closing section say different figures"


def test_gains_of_the_table_of_pre_training_are_differences_within_their_intervals():
    lines = [line for line in prose("compare_pretraining.ipynb")[1].splitlines() if line.startswith("| ") and not line.startswith("| 20")]
    rows = [numbers for line in lines if len(numbers := NUMBER.findall(line)) == 9]
    assert len(rows) == 18
    for untrained,low,high,trained,trained_low,trained_high,gain,gain_low,gain_high in (map(float, row) for row in rows):
        assert abs(trained - untrained - gain) < .0016 # each is rounded to three digits
        assert low <= untrained <= high and trained_low <= trained <= trained_high and gain_low <= gain <= gain_high
