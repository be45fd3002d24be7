"Synthetic leaves: a function of seed and index, with damage where the model of the leaf says"
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitnb.data.leafmodel import LEAF_CLASSES, leaf_reflectance, synthetic_leaves
from vitnb.data.split import group_split


def test_a_photograph_is_a_function_of_seed_and_index():
    few,many = synthetic_leaves(5, 32, 3),synthetic_leaves(20, 32, 3)
    for a,b in zip(few, many): assert np.array_equal(a, b[:5])
    assert not np.array_equal(synthetic_leaves(5, 32, 4).images, few.images)


def test_damage_to_cells_shows_in_the_infrared_and_hardly_in_colour():
    one = np.ones((1,1))
    healthy,damaged,pale = (leaf_reflectance(dict(chlorophyll=c*one), s*one)[:,0,0] for c,s in ((1,1), (1,.5), (.67,1)))
    assert (damaged/healthy)[4] < .6 and (damaged/healthy)[:3].min() > .9
    assert pale[3] - healthy[3] > .05 and pale[4] == healthy[4] # the red edge sees lost chlorophyll, the infrared does not


def test_lesions_lie_where_the_infrared_changes():
    o = synthetic_leaves(140, 32)
    for name in ("Bacterial Blight", "Leaf Hopper Jassids", "Curl Virus"):
        rows = o.labels == LEAF_CLASSES.index(name)
        nir,ill = o.spectral[rows,1],o.lesions[rows]
        leaf = o.images[rows][...,1] > 1.15*o.images[rows][...,0] # green, so that soil counts for nothing
        assert nir[leaf & (ill > .7)].mean() < .8*nir[leaf & (ill < .1)].mean(), name
    assert not o.lesions[o.labels == 2].any() and o.lesions.max() <= 1 and not o.early[o.labels == 2].any()


def spread(x):
    "Quantiles of each channel and of its differences, (N,D)"
    flat = np.quantile(x.reshape(*x.shape[:2], -1), np.linspace(0, 1, 11), axis=2)
    steps = [np.quantile(np.abs(x[...,k:] - x[...,:-k]).reshape(*x.shape[:2], -1), [.5,.8,.95], axis=2) for k in (1, 3)]
    return np.concatenate([flat, *steps]).transpose(1,2,0).reshape(len(x), -1)


def test_the_spectral_image_carries_what_colours_lack():
    "A linear classifier on simple statistics, other plants in the test: early cases are found with it and not without it"
    o = synthetic_leaves(420, 48)
    rgb = o.images.transpose(0,3,1,2)/255.
    both = np.concatenate([rgb, o.spectral], 1)
    right = dict(rgb=[], spectral=[], both=[])
    early = []
    for seed in range(3):
        parts = group_split(o.plants, dict(train=.6, test=.4), o.labels, seed)
        a,b = parts["train"],parts["test"]
        early.append(o.early[b])
        for name,x in dict(rgb=rgb, spectral=o.spectral, both=both).items():
            f = spread(x)
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(f[a], o.labels[a])
            right[name].append(model.predict(f[b]) == o.labels[b])
    score = {k:np.mean(np.concatenate(v)) for k,v in right.items()}
    hard = {k:np.mean(np.concatenate(v)[np.concatenate(early)]) for k,v in right.items()}
    assert .4 < score["rgb"] < .8 and score["both"] > score["rgb"] + .15 and score["both"] > score["spectral"], score
    assert hard["both"] > hard["rgb"] + .35, hard
