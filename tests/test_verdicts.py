"Verdicts on histories: each symptom has one that shows it, and a healthy run has none"
import json
import math
from pathlib import Path

import numpy as np
import pytest

from vitnb.experiment.verdicts import findings, symptoms

FIRST = json.loads((Path(__file__).parent/"fixtures"/"history_first_run.json").read_text())


def rows(train, valid, accuracy=None, train_accuracy=None):
    columns = dict(train_loss=train, valid_loss=valid, accuracy=accuracy, train_accuracy=train_accuracy)
    return [{name:values[n] for name,values in columns.items() if values is not None} for n in range(len(train))]


FALLS = list(np.linspace(2, .1, 30))
TURNS = [1 + abs(n - 10)*.05 for n in range(30)] # lowest in epoch 11, then up to 1.95


def test_the_first_run_of_the_readme_suffers_from_nothing():
    "0.992 on test images: its validation loss is 14 % above its lowest, and two of 144 images are other than at its best"
    assert FIRST[-1]["valid_loss"] > 1.1*min(row["valid_loss"] for row in FIRST) and findings(FIRST, 10, 144) == {} == findings(FIRST, 10)


@pytest.mark.parametrize("history,n,want", [
    (rows(FALLS, TURNS), None, ["overfitting"]),
    (rows(FALLS, [1 + abs(n - 10)*.01 for n in range(30)]), None, []), # 19 % above its lowest: not a quarter
    (rows(FALLS, TURNS, [.5 + .015*n for n in range(30)]), 1000, []), # the loss rises because the model grows sure, and the score still rises
    (rows(FALLS, [1 + abs(n - 10)*.01 for n in range(30)], [.9]*11 + [.9 - .004*n for n in range(19)]), 1000, ["overfitting"]), # .072 lost, error .019
    (rows(FALLS, [1 + abs(n - 10)*.01 for n in range(30)], [.9]*11 + [.9 - .004*n for n in range(19)]), 50, []), # error .085
    (rows(FALLS, [1.]*30, [.7]*30, list(np.linspace(.3, .99, 30))), 500, ["overfitting"]), # far apart, and nothing more comes
    (rows(FALLS, list(np.linspace(2, 1.2, 30)), [.7]*30, list(np.linspace(.3, .99, 30))), 500, ["unfinished"]), # far apart, but still improving
    (rows(FALLS, [1.]*30, [.9]*30, list(np.linspace(.3, .99, 30))), 500, []), # .09 apart is usual
    (rows([2.]*5 + [.5]*25, TURNS), None, []), # training no longer improves either: nothing is learnt by heart
    (rows(FALLS, [1.4 + .4*(n%2) for n in range(30)]), None, []), # swings, and rises on average by nothing
    (rows([.69, .5, .4, .4, .4, .4], [.6, .5, .45, .45, .45, .45], [.6, .8, .95, .95, .95, .95]), 100, [])])
def test_validation_has_to_suffer(history, n, want): assert symptoms(history, 10, n) == want


@pytest.mark.parametrize("classes,accuracy,want", [(2, .95, []), (2, .58, ["underfitting"]), (2, .52, ["diverging"]), (10, .2, ["underfitting"]), (10, .35, []), (100, .15, ["underfitting"]), (100, .4, [])])
def test_underfitting_is_measured_from_chance_level(classes, accuracy, want):
    flat = [2, 1.5, 1.2, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1]
    assert symptoms(rows(flat, flat, [accuracy]*9), classes, 200) == want


def test_who_knows_the_training_images_does_not_underfit():
    flat = [2, 1.5, 1.2, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1]
    assert symptoms(rows(flat, flat, [.2]*9, [.9]*9), 10, 200) == []


@pytest.mark.parametrize("classes,accuracy,want", [(2, .5, ["diverging"]), (2, .7, []), (10, .1, ["diverging"]), (10, .16, ["underfitting"])])
def test_chance_level_of_two_classes_is_not_seven_of_ten(classes, accuracy, want):
    stood = [math.log(classes)]*4
    assert symptoms(rows(stood, stood, [accuracy]*4), classes, 200) == want


@pytest.mark.parametrize("seed", range(40))
def test_noise_of_few_validation_images_is_no_verdict(seed):
    "A model that is right in nine of ten, counted on 144 other images each epoch"
    random = np.random.default_rng(seed)
    accuracy = [random.binomial(144, .9)/144 for _ in range(40)]
    loss = [.3 + random.normal(0, .02) for _ in range(40)]
    assert symptoms(rows(list(np.linspace(2, .1, 40)), loss, accuracy, list(np.linspace(.4, .99, 40))), 10, 144) == []
