"A finished run is evaluated again from its folder alone"
import json

import pytest
from card_helpers import trained # noqa: F401, a fixture

from vitnb.experiment.evaluated import open_evaluated


def test_a_run_of_another_kind_says_so(trained, tmp_path):
    (tmp_path/"params.json").write_text("{}")
    (tmp_path/"status.json").write_text(json.dumps(dict(status="finished")))
    with pytest.raises(ValueError, match="no recipe.json: a card is of one model"): open_evaluated(tmp_path)
    recipe = json.loads((trained[0]/"recipe.json").read_text())
    (tmp_path/"recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="no checkpoints/last_model.pth"):
        (tmp_path/"environment.json").write_text(json.dumps(dict(weights="last")))
        open_evaluated(tmp_path)
