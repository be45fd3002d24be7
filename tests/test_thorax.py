"Synthetic films: functions of seed and number, called synthetic, and learnable by zones"
import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import f1_score

from vitnb.data.lungmask import lung_zones
from vitnb.data.thorax import Films, synthetic_films
from vitnb.data.zones import CSI_UNKNOWN


def test_a_film_is_a_function_of_seed_and_number():
    few,more = synthetic_films(4, 48), synthetic_films(7, 48)
    assert all((a == b[:4]).all() for a,b in zip(few, more))
    assert (synthetic_films(4, 48, seed=1).images != few.images).any() and isinstance(few, Films)
    assert few.images.dtype == np.uint16 and few.patients.tolist() == [0, 0, 1, 1]


def test_a_heart_lies_on_the_patients_left_and_the_right_lung_on_the_left_of_the_film():
    f = synthetic_films(60, 48)
    x = np.arange(48)
    middle = (f.lungs*x).sum((2,3))/f.lungs.sum((2,3))
    assert (middle[:,0] < 20).all() and (middle[:,1] > 27).all()
    mean = f.images[(f.scores <= 1).all(1)].mean(0)
    assert mean[28:36,28:34].mean() > mean[28:36,14:20].mean()


def test_each_level_and_the_unknown_one_occur_in_each_zone():
    counts = np.stack([np.bincount(s, minlength=5) for s in synthetic_films(300, 32).scores.T])
    assert counts.min() >= 5


def test_zones_can_be_told_from_the_brightness_of_lungs():
    "A forest on twelve brightnesses a film reaches a macro F1 of .75, where guessing the commonest has about .15; a network has more to go by"
    import torch
    f = synthetic_films(180, 48)
    zones = lung_zones(torch.from_numpy(f.lungs)).numpy()
    x = f.images/65535.
    level = np.stack([(x*zones[:,z]).sum((1,2))/zones[:,z].sum((1,2)) for z in range(6)], 1)
    spread = np.stack([np.sqrt(((x - level[:,z,None,None])**2*zones[:,z]).sum((1,2))/zones[:,z].sum((1,2))) for z in range(6)], 1)
    features = np.concatenate([level, spread, x[:,4:12,22:26].mean((1,2))[:,None]], 1)
    train = f.patients % 3 > 0
    scores = []
    for z in range(6):
        known = f.scores[~train,z] != CSI_UNKNOWN
        said = ExtraTreesClassifier(20, random_state=0).fit(features[train], f.scores[train,z]).predict(features[~train])
        scores.append(f1_score(f.scores[~train,z][known], said[known], labels=[0,1,2,3], average="macro"))
    assert np.mean(scores) > .75, scores


@pytest.mark.parametrize("kw", [dict(n=0), dict(size=16)])
def test_impossible_films_are_refused(kw):
    with pytest.raises(ValueError, match="32 pixels"): synthetic_films(**kw)
