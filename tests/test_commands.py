"Searches from the command line"
import json

import pytest
from search_helpers import SPACE, workspace # noqa: F401, a fixture

from vitnb.experiment.cli import main
from vitnb.experiment.run import read_json

pytest.importorskip("optuna")


def test_a_study_from_the_command_line_to_its_best_parameters(workspace, capfd):
    "Each trial is a run folder; best_params.json is what `hyperparams` applies, all of it"
    (workspace/"space.json").write_text(json.dumps(dict(space=SPACE, score="near", better="max")))
    command = ["search", "train_demo.ipynb", "--space", "space.json", "--trials", "3", "--study", "s", "-p", "epochs", "2"]
    assert main(command) == 0
    out = capfd.readouterr().out
    best = read_json(workspace/"out/search/s/best_params.json")
    assert "study s" in out and "-p epochs 2 -p hyperparams" in out and best["study_name"] == "s" and best["n_trials"] == 3
    assert {"best_value", "best_params", "n_trials", "study_name", "optimization_time"} <= best.keys()
    lines = (workspace/"out/search/s/trials.csv").read_text().splitlines()
    assert len(lines) == 4 and (workspace/"out/search/s/history.png").is_file()
    run = workspace/"out"/best["best_run"]
    asked = {k:v for k,v in read_json(run/"params.json").items() if k in best["best_params"]}
    assert asked == best["best_params"] and read_json(run/"status.json")["status"] == "finished"
    assert best["best_value"] == max(row["near"] for row in json.loads((run/"history.json").read_text()))
    assert main(command) == 0 and len(list((workspace/"out/train_demo").iterdir())) == 3 # enough have ended: nothing more is run
    assert main(["search", "train_demo.ipynb", "--space", "space.json", "--trials", "4", "--study", "s"]) == 2
    assert "exists with another plan (params.epochs: 2 -> None)" in capfd.readouterr().err
