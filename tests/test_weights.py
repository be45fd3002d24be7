"Averaged weights: tested where an average runs, kept in the checkpoint, chosen by a column and by `predict`"
import json

import pytest
import torch

from vitnb.callback.checkpoint import load_checkpoint, weights_of
from vitnb.experiment.recipes import resolve, run_args
from vitnb.experiment.stored import stored_recipe
from vitnb.learner.core import load_model
from vitnb.learner.predict import predict, predict_split
from vitnb.learner.trained import load_run, put_weights
from vitnb.testing import differences, tiny_fit

EMA = dict(engine=dict(ema_decay=.9), epochs=3)


def weights(model): return {k:v.clone() for k,v in model.state_dict().items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, tiny_fit(folder, **EMA)


def test_the_average_is_tested_where_one_runs(run, capsys):
    folder,learn = run
    trained,average = weights(learn.model),weights(learn.ema.module)
    assert differences(trained, average)
    try:
        assert put_weights(learn) == "ema" and "moving average" in capsys.readouterr().out
        assert not differences(weights(learn.model), average)
        probs,_ = predict_split(learn, "test")
    finally: learn.model.load_state_dict(trained)
    assert put_weights(learn, "last") == "last" and not differences(weights(learn.model), trained)
    assert not torch.equal(predict_split(learn, "test")[0], probs)


def test_without_an_average_the_last_epoch_is(tmp_path):
    learn = tiny_fit(tmp_path, epochs=1)
    before = weights(learn.model)
    assert put_weights(learn) == "last" and not differences(weights(learn.model), before)
    with pytest.raises(ValueError, match="train with ema_decay"): put_weights(learn, "ema")
    with pytest.raises(ValueError, match="did you mean 'best'"): put_weights(learn, "bestt")
    assert "ema_state_dict" not in load_checkpoint(tmp_path/"checkpoints/last_model.pth")


@pytest.mark.parametrize("monitor,kind", [("accuracy", "model_state_dict"), ("accuracy_ema", "ema_state_dict")])
def test_the_best_epoch_may_be_chosen_by_the_average(tmp_path, monitor, kind):
    learn = tiny_fit(tmp_path, run_kw=dict(monitor=monitor), **EMA)
    best = load_checkpoint(tmp_path/"checkpoints/best_model.pth")
    assert best["monitor"] == monitor and best["best"] == max(row[monitor] for row in learn.recorder.rows)
    assert put_weights(learn, "best", tmp_path/"checkpoints") == "best"
    assert not differences(weights(learn.model), dict(best[kind]))


def test_the_file_has_both(run):
    folder,learn = run
    last = load_checkpoint(folder/"checkpoints/last_model.pth")
    assert not differences(dict(last["ema_state_dict"]), weights(learn.ema.module)) and not differences(dict(last["model_state_dict"]), weights(learn.model))
    for use,name in (("trained", "trained"), ("ema", "ema"), ("auto", "ema")): assert weights_of(last, use)[1] == name
    assert weights_of(dict(model_state_dict={}), "auto")[1] == "trained"
    with pytest.raises(ValueError, match="no averaged weights"): weights_of(dict(model_state_dict={}), "ema")
    with pytest.raises(ValueError, match="did you mean 'trained'"): weights_of(last, "train")
    path = folder/"checkpoints/last_model.pth"
    assert load_model(path).weights == "trained" and not differences(weights(load_model(path, use="auto")), weights(learn.ema.module))


def test_predict_chooses_and_says_which(run, capsys):
    folder,learn = run
    path,images = folder/"checkpoints/last_model.pth",[torch.randint(0, 255, (8, 8), generator=torch.Generator().manual_seed(n), dtype=torch.uint8).numpy() for n in range(4)]
    found = predict(path, images)
    assert found.weights == "ema" and "the average (ema)" in capsys.readouterr().out
    trained = predict(path, images, use="trained")
    assert trained.weights == "trained" and any((a["probabilities"] != b["probabilities"]).any() for a,b in zip(found, trained))
    loaded = load_run(path, use="trained")
    assert predict(loaded, images).weights == "trained"
    with pytest.raises(ValueError, match="loaded with the weights 'trained'"): predict(loaded, images, use="ema")


def test_recipes_choose_the_weights_and_the_column(tmp_path):
    r = resolve("swin", "digits", {})
    assert r.use is None and run_args(r)["monitor"] is None
    assert run_args(resolve("swin", "digits", dict(monitor="accuracy_ema")))["monitor"] == "accuracy_ema"
    (tmp_path/"recipe.json").write_text(json.dumps(dict(r, use="last")))
    assert stored_recipe(tmp_path).use == "last", "a run of before"
