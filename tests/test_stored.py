"The recipe that a run was trained with"
import json

import pytest
from test_recipes import ALL, FORMAT1, resolved

from vitnb.experiment.recipes import families, learner_args
from vitnb.experiment.stored import stored_recipe
from vitnb.renamed import upgrade


@pytest.mark.parametrize("family,name", ALL)
def test_a_stored_recipe_is_the_recipe(tmp_path, family, name):
    r = resolved(family, name, bs=3)
    (tmp_path/"recipe.json").write_text(json.dumps(r))
    assert json.dumps(stored_recipe(tmp_path)) == json.dumps(r)


@pytest.mark.parametrize("name,family", [("swin", "swin"), ("densenet", "densenet"), ("spectral", "spectral")])
def test_a_recipe_of_format_1_is_one_of_today(name, family):
    "All that the file says stands, but for zeros that meant the model's own default"
    old,r = json.loads((FORMAT1/name/"recipe.json").read_text()),stored_recipe(FORMAT1/name)
    assert r.family == family and r.keys() == families[family].fields.keys()
    assert {k:v for k,v in upgrade(old, say=None).items() if r[k] != v} == {k:0. for k in ("drop_path", "dropout") if old.get(k) == 0}
    args = learner_args(r)
    assert args["arch"] == old["arch"] and args["lr"] == old["lr"] and not args["pretrained"]
    assert set(args["model_kw"]) >= set(old["model_kw"] or {}) and args["model_kw"].get("drop_path_rate") == (old.get("drop_path") or None)


def test_what_is_no_recipe_of_a_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="notebooks that train write it"): stored_recipe(tmp_path)
    for text,says in ((dict(arch="leaf_net"), "names no family"), (dict(family="leaves"), "register_family"), (dict(family="swin", epoch=3), "did you mean 'epochs'")):
        (tmp_path/"recipe.json").write_text(json.dumps(text))
        with pytest.raises(ValueError, match=says): stored_recipe(tmp_path)
