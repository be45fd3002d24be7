"Maps of features keep what they promise"
import numpy as np
import pytest

from vitnb.explore.embedding import map_features, plot_features


def test_figures_are_drawn():
    features = np.random.default_rng(0).normal(size=(20, 8))
    assert len(plot_features(features, np.arange(20) % 3, "abc").axes) == 2 and plot_features(features).axes


def test_maps_of_features_go_by_direction_and_by_the_seed():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 6))
    scaled = features*rng.uniform(.1, 9, (30, 1))
    for how in ("pca", "tsne"): assert np.allclose(map_features(features, how), map_features(scaled, how), atol=1e-3), how
    assert np.allclose(map_features(features, "tsne", 1), map_features(features, "tsne", 1))
    with pytest.raises(ValueError, match="give 4 or more"): map_features(features[:3])


def test_neighbours_stay_neighbours():
    "Three heaps far apart: on both maps the nearest point is one of the same heap"
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = 6*np.eye(3, 12)[labels] + rng.normal(size=(60, 12))/2
    for how in ("pca", "tsne"):
        points = map_features(features, how)
        far = np.linalg.norm(points[:,None] - points[None], axis=-1) + np.eye(60)*1e9
        assert (labels[far.argmin(1)] == labels).all(), how
