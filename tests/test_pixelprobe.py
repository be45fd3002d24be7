"Descriptions of pixels against slow loops, and the probe"
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vitnb.data.cube import cube_loaders, load_cube_set, scene_set
from vitnb.data.cubefile import CubeArray
from vitnb.data.cubepixels import pixel_loaders
from vitnb.learner.core import vit_learner
from vitnb.learner.pixelprobe import choose_labelled, class_mean_accuracy, fit_head, mean_spectrum, pixel_tokens, probe, reduce_features
from vitnb.models.protocol import create_model


@pytest.mark.parametrize("radius", [0, 1])
def test_tokens_of_a_pixel_are_averaged_over_all_windows_that_hold_it(radius):
    torch.manual_seed(0)
    model = create_model("spectral_mae_micro", img_size=3, patch_size=(1, 2), wavelengths=[500., 510, 520, 530]).eval()
    x,valid = torch.rand(2, 4, 7, 7),torch.rand(2, 1, 7, 7) > .2
    valid[:,:,3,3] = True
    got = pixel_tokens(model, x, valid, 3, block=1, radius=radius)
    for b in range(2):
        sums,count = 0,0
        for top,left in np.ndindex(5, 5):
            with torch.no_grad():
                tokens, = model.forward_intermediates(x[b:b+1,:,top:top+3,left:left+3], [1], norm=True, output_fmt="NLC", intermediates_only=True)
            for r,c in np.ndindex(3, 3):
                if max(abs(top+r-3), abs(left+c-3)) <= radius and valid[b,0,top+r,left+c]: sums,count = sums + tokens.view(2, 3, 3, -1)[:,r,c],count + 1
        assert torch.allclose(got[b], (sums/count).flatten(), atol=1e-5)


def test_mean_spectra_leave_out_what_is_not_valid():
    x,valid = torch.rand(1, 3, 5, 5),torch.ones(1, 1, 5, 5).bool()
    valid[0,0,2,1] = False
    assert torch.equal(mean_spectrum(x, valid, [1])[0], x[0,:,2,2])
    weights,total,count = [1, 2, 1],0,0
    for r,c in np.ndindex(3, 3):
        w = weights[r]*weights[c]*float(valid[0,0,r+1,c+1])
        total,count = total + w*x[0,:,r+1,c+1],count + w
    assert torch.allclose(mean_spectrum(x, valid, weights)[0], total/count, atol=1e-6)


def test_labelled_pixels_are_so_many_of_each_class_and_decided_by_the_seed():
    y = np.repeat([0, 3, 5], [20, 30, 40])
    known = choose_labelled(y, 7, (1, 2))
    assert np.bincount(y[known]).tolist() == [7, 0, 0, 7, 0, 7] and len(set(known)) == 21
    assert np.array_equal(known, choose_labelled(y, 7, (1, 2))) and not np.array_equal(known, choose_labelled(y, 7, (1, 3)))


def test_features_are_scaled_as_a_whole_and_learned_on_training_pixels():
    rng = np.random.default_rng(0)
    a,b = rng.normal(size=(50, 6))*[9, 5, 3, 1, 1, 1],rng.normal(size=(20, 6))
    p,q = reduce_features(a, b, 3)
    assert p.shape == (50, 3) and q.shape == (20, 3) and p.std() == pytest.approx(1) and p.std(0)[0] > 2*p.std(0)[2] # not whitened
    both,_ = reduce_features(a, b*100, 3)
    assert np.allclose(p, both)


def test_the_probe_finds_classes_where_there_are_some():
    rng = np.random.default_rng(0)
    y,z = np.repeat([0, 1], 30),np.repeat([0, 1], 40)
    def features(y, gap): return rng.normal(size=(len(y), 5)) + gap*y[:,None]
    rows = probe(dict(clear=features(y, 5.), noise=features(y, 0.)), y, dict(clear=features(z, 5.), noise=features(z, 0.)), z, [10], 2, (0,))
    by = {k:np.mean([r["accuracy"] for r in rows if r["features"] == k]) for k in ("clear", "noise")}
    assert by["clear"] > .95 and .2 < by["noise"] < .8 and len(rows) == 4


def test_accuracy_is_over_classes():
    assert class_mean_accuracy(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1])) == .5


@pytest.mark.parametrize("n", [2, 4])
def test_the_head_begins_as_logistic_regression_on_the_networks_features(n):
    labels = np.random.default_rng(0).integers(0, min(n, 3), (24,24)) # of four classes one has no sample
    land = scene_set("land", CubeArray((np.random.default_rng(1).random((6,24,24))*.1 + .2*labels).astype("f4")), labels + 1, {i+1:f"c{i}" for i in range(min(n, 3))}, block=8, guard=0)
    land.pixel_classes += ["none of them"]*(n - min(n, 3))
    dls,_ = pixel_loaders(land, 3, 6, 20, patch_size=(1,3), normalize="zscore", bs=4, augment="flip", device="cpu", workers=0)
    learn = vit_learner(dls, "spectral_mae_micro", dict(patch_size=(1,3), head="middle"), seed=1, device="cpu", precision="fp32")
    frozen = {name:weight.clone() for name,weight in learn.model.named_parameters() if not name.startswith("head.")}
    fit_head(learn, strength=.5)
    assert all(torch.equal(weight, frozen[name]) for name,weight in learn.model.named_parameters() if name in frozen)
    x,y = (torch.cat(part) for part in zip(*[(b["image"], b["target"]) for b in dls.train.new(shuffle=False, drop_last=False, pipeline=dls.valid.pipeline)]))
    with torch.no_grad(): features,probs = learn.model.forward_head(learn.model.forward_features(x), pre_logits=True).double(),learn.model(x).softmax(1)
    by_hand = LogisticRegression(C=.5, max_iter=500).fit((features - features.mean(0))/features.std(correction=0), y)
    known = by_hand.predict_proba((features - features.mean(0))/features.std(correction=0))
    assert np.allclose(probs[:,:known.shape[1]], known, atol=1e-3) and (n < 4 or probs[:,3].max() < 1e-2)


def test_a_head_that_is_no_probe_is_refused():
    cubes = load_cube_set(n=12, size=8, bands=6)
    dls = cube_loaders(cubes, label="pixels", bs=2, patch_size=(2,3), device="cpu", workers=0)
    learn = vit_learner(dls, "spectral_mae_micro", dict(patch_size=(2,3), head="pixel"), seed=1, device="cpu", precision="fp32")
    with pytest.raises(ValueError, match="needs a linear head and one class a sample.*train it from random weights"): fit_head(learn)
