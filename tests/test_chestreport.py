"The report of six-zone scores: its numbers are those of the guide's functions, JSON takes them, and its table can be read back"
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.data.zones import ZONES, csi_task
from vitnb.metrics.chest import compute_csi_average_metrics, compute_f1_metrics, one_hot_answers
from vitnb.metrics.chestreport import chest_metrics, film_table

TASK = csi_task()


def some(seed, n=12):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, 5, generator=generator).softmax(-1), torch.randint(0, 5, (n, 6), generator=generator)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 20))
def test_json_takes_every_report_and_its_numbers_are_the_functions(seed, n):
    probs,targets = some(seed, n)
    found = json.loads(json.dumps(chest_metrics(TASK, probs, targets, 1.7), allow_nan=False))
    for part,count in (("f1", compute_f1_metrics), ("csi", compute_csi_average_metrics)):
        want = count(probs, targets)
        assert found[part].keys() == want.keys()
        for name,value in want.items():
            if np.isfinite(value): assert found[part][name] == pytest.approx(value), name
            else: assert found[part][name] is None, name


def test_a_perfect_answer_scores_one_and_all_unknown_scores_nothing():
    _,targets = some(1, 40)
    perfect = chest_metrics(TASK, one_hot_answers(targets), targets)
    assert perfect["f1"]["f1_macro"] == 1 and perfect["csi"]["mae"] == 0 and perfect["ordinal"]["kappa"] == pytest.approx(1) and perfect["ahf"]["accuracy"] == 1
    silent = chest_metrics(TASK, one_hot_answers(torch.full_like(targets, 4)), targets)
    assert silent["f1"]["f1_macro"] == 0 and silent["f1"]["abstention_rate"] == 1 and silent["csi"]["mae"] is None and silent["csi"]["coverage"] == 0
    constant = chest_metrics(TASK, one_hot_answers(torch.zeros_like(targets)), targets)
    graded = [row[row < 4].float().mean().item() for row in targets if (row < 4).any()]
    assert constant["csi"]["mae"] == pytest.approx(np.mean(graded), abs=1e-6)


def test_a_temperature_changes_how_sure_and_not_what():
    probs,targets = some(2, 60)
    found = chest_metrics(TASK, probs, targets, 3.)
    plain,scaled = found["calibration"],found["calibration_scaled"]
    assert scaled["accuracy"] == plain["accuracy"] and scaled["confidence"] < plain["confidence"] and scaled["temperature"] == 3.


def test_the_index_of_a_table_is_compared_by_name():
    probs,targets = some(3, 5)
    names = ["0001", "0002", "0003", "0004", "0005"]
    csi = pd.DataFrame(dict(FileID=names[::-1], csi=[1., 1., 1., 1., 2.]))
    found = chest_metrics(TASK, one_hot_answers(torch.ones_like(targets)), targets, 1., names, csi)
    assert found["csi"]["csi_csv_n"] == 5 and found["csi"]["csi_csv_mae"] == pytest.approx(.2)


def test_the_table_has_thirty_probabilities_and_is_read_back_as_written(tmp_path):
    probs,targets = some(4, 7)
    names = [f"{i:04}" for i in range(7)]
    film_table(names, ZONES, probs, targets).to_csv(tmp_path/"t.csv", index=False)
    table = pd.read_csv(tmp_path/"t.csv", dtype=dict(FileID=str))
    assert table.FileID.tolist() == names
    columns = [name for name in table if "_p_" in name]
    assert len(columns) == 30
    assert np.allclose(table[columns].to_numpy().reshape(7, 6, 5), probs.numpy(), atol=1e-6)
    assert (table[[f"{zone}_true" for zone in ZONES]].to_numpy() == targets.numpy()).all()
    assert (table[[f"{zone}_pred" for zone in ZONES]].to_numpy() == probs.argmax(-1).numpy()).all()


def test_as_many_names_as_films():
    probs,targets = some(5, 3)
    with pytest.raises(ValueError, match="2 names for 3 films"): film_table(["a", "b"], ZONES, probs, targets)
