"Gradient caching: a contrastive step in chunks is the step of the whole batch, and keeps the activations of one chunk"
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contrastive_worker import ARCHS, TWO, make, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tasks import Die, DieAt, classes, fit, task_learner

from vitnb.learner.core import run_callbacks
from vitnb.learner.gradcache import GradCache, InChunks, run_chunks
from vitnb.learner.loop import SingleProcess
from vitnb.losses.contrastive import NTXentLoss
from vitnb.models.protocol import create_model
from vitnb.testing import differences

RANDOM = dict(ARCHS["hvit_micro"], drop_path_rate=.3, drop_rate=.2, proj_drop_rate=.1, attn_drop_rate=.1)


def quiet_fit(learn, n=1, **kw):
    with learn.no_bar(): learn.fit(n, **kw)
    return learn


def gradient(model, forward, images, seed=3, temperature=.5):
    "Of NT-Xent of two views, which lie beside each other"
    model.zero_grad()
    torch.manual_seed(seed)
    z = forward(images)
    NTXentLoss(temperature)(z[0::2], z[1::2]).backward()
    return [p.grad.clone() for p in model.parameters()]


def cached(model, images, chunk, seed=3):
    "The three steps of the paper, one after the other; the state of the generator is kept for each chunk"
    model.zero_grad()
    torch.manual_seed(seed)
    parts,states = images.split(2*chunk),[]
    with torch.no_grad():
        z = []
        for part in parts:
            states.append(torch.get_rng_state())
            z.append(model(part))
    z = torch.cat(z).requires_grad_()
    NTXentLoss(.5)(z[0::2], z[1::2]).backward()
    for part,u,state in zip(parts, z.grad.split(2*chunk), states):
        torch.set_rng_state(state)
        (model(part)*u).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def chunked(model, n, chunk, *inputs): return lambda images: run_chunks(model.forward, n, np.arange(n), chunk, images, *inputs)


def near(a, b, most=1e-5): return all((x - y).abs().max() <= most*max(1., y.abs().max()) for x,y in zip(a, b, strict=True))


@settings(max_examples=8, deadline=None)
@given(chunk=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_gradient_is_that_of_the_paper_and_of_the_whole_batch(chunk, seed):
    torch.manual_seed(seed)
    model,images = create_model("hvit_micro", num_classes=6, **dict(ARCHS["hvit_micro"], drop_path_rate=0.)),torch.randn(16, 3, 16, 16)
    ours = gradient(model, chunked(model, 8, chunk), images)
    assert near(ours, cached(model, images, chunk), 1e-6), "the same sums in the same order"
    assert near(ours, gradient(model, model, images)), "other sums: rounding was up to 1.8e-6 over a hundred seeds"


@pytest.mark.parametrize("kw", [RANDOM, dict(TWO, drop_path_rate=.3, dfca_drop=.3)])
def test_dropout_drop_path_and_missing_spectra_are_those_of_the_whole_batch(kw):
    model = create_model("hvit_micro", num_classes=6, **kw).train()
    images = torch.randn(20, model.in_chans, 16, 16)
    whole = gradient(model, model, images)
    for chunk in (1, 3, 10): assert near(gradient(model, chunked(model, 10, chunk), images), whole)
    assert not near(gradient(model, model, images, seed=4), whole, .01), "there is something to get wrong"
    torch.manual_seed(3)
    model(images)
    after = torch.get_rng_state()
    gradient(model, chunked(model, 10, 3), images)
    assert torch.equal(torch.get_rng_state(), after), "nor do the draws behind the step change"


def test_a_second_pass_with_other_dropout_would_be_seen():
    "The reference replays the state; without that its gradient is another"
    model,images = create_model("hvit_micro", num_classes=6, **RANDOM).train(),torch.randn(16, 3, 16, 16)
    good,states = cached(model, images, 2),torch.set_rng_state
    assert near(good, cached(model, images, 2))
    try:
        torch.set_rng_state = lambda state: None
        assert not near(cached(model, images, 2), good, .01)
    finally: torch.set_rng_state = states


def test_negatives_come_from_the_whole_batch():
    "A09: orthonormal pairs, temperature 0.5; two batches of 4 are another loss"
    layer = torch.nn.Linear(8, 8, bias=False)
    with torch.no_grad(): layer.weight.copy_(torch.eye(8))
    pairs = torch.eye(8).repeat_interleave(2, 0)
    loss = lambda z: NTXentLoss(.5)(z[0::2], z[1::2]).item()
    assert loss(run_chunks(layer, 8, np.arange(8), 4, pairs)) == pytest.approx(math.log(1 + 14*math.exp(-2)), abs=1e-5)
    assert loss(layer(pairs[:8])) == pytest.approx(math.log(1 + 6*math.exp(-2)), abs=1e-5)


def test_a_fit_ends_as_without():
    "Several steps, groups, averaged weights; 16 images do not divide by 5"
    kw = dict(model_kw=RANDOM, pretext=dict(temperature=.3, use_groups=True), groups=True)
    plain,ours = (outcome(quiet_fit(make(**kw, chunk=c))) for c in (None, 5))
    for a,b in ((plain["model"], ours["model"]), (plain["ema"][0], ours["ema"][0])): assert all(torch.allclose(a[k], b[k], atol=2e-6) for k in a)
    assert plain["losses"] == pytest.approx(ours["losses"], rel=1e-5)
    for k,v in plain["rows"][-1].items(): assert k == "seconds" or v == pytest.approx(ours["rows"][-1][k], rel=1e-3, abs=1e-5), k


def test_half_precision_has_the_same_gradient_to_its_rounding():
    model,images = create_model("hvit_micro", num_classes=6, **RANDOM).train(),torch.randn(16, 3, 16, 16)
    def half(forward):
        with torch.autocast("cpu", torch.bfloat16): return torch.cat([g.flatten() for g in gradient(model, forward, images)])
    whole,parts = half(model),half(chunked(model, 8, 3))
    assert F.cosine_similarity(whole, parts, dim=0) > .99 and whole.dtype == parts.dtype == torch.float32


def test_a_killed_run_goes_on_exactly(tmp_path):
    whole = outcome(quiet_fit(make(model_kw=RANDOM, chunk=5)))
    cbs = lambda: run_callbacks(tmp_path, every_n_steps=1, tracker="none")
    with pytest.raises(Die): quiet_fit(make(model_kw=RANDOM, chunk=5), cbs=[*cbs(), DieAt(2)], resume="auto")
    got = outcome(quiet_fit(make(model_kw=RANDOM, chunk=5), cbs=cbs(), resume="auto"))
    assert not differences({k: whole[k] for k in ("model", "opt", "ema", "losses")}, {k: got[k] for k in ("model", "opt", "ema", "losses")})


def test_the_graph_of_a_step_keeps_the_images_alone():
    model,images = create_model("hvit_micro", num_classes=6, **ARCHS["hvit_micro"]).train(),torch.randn(64, 3, 16, 16)
    def kept(forward):
        seen = {}
        def note(t):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t): out = forward(images)
        return out.requires_grad*sum(seen.values())
    assert kept(chunked(model, 32, 2)) == images.nbytes < .5*kept(model), "the images themselves, and nothing that a layer made of them"


def test_no_pass_is_larger_than_a_chunk_and_nothing_stays_behind():
    learn,rows = make(chunk=5, engine={}),[]
    embed = learn.model.patch_embed.forward
    learn.model.patch_embed.forward = lambda x: (rows.append((torch.is_grad_enabled(), len(x))), embed(x))[1]
    quiet_fit(learn)
    assert {n for graph,n in rows if graph} == {10, 2} and len([n for graph,n in rows if graph]) == 3*2*4, "4 chunks, twice, 3 steps"
    assert "forward" not in vars(learn.model) and type(learn.parallel) is SingleProcess


def test_an_interruption_leaves_nothing_behind():
    learn = make(chunk=5)
    with pytest.raises(Die): quiet_fit(learn, cbs=[DieAt(1)])
    assert "forward" not in vars(learn.model) and not isinstance(learn.parallel, InChunks)
    class Odd(Exception): pass
    def fail(x): raise Odd
    learn.model.patch_embed.forward = fail
    with pytest.raises(Odd): quiet_fit(learn)
    assert "forward" not in vars(learn.model) and not isinstance(learn.parallel, InChunks)


@pytest.mark.parametrize("kw,says", [
    (dict(pretext=dict(loss="byol", norm="layer")), "a sum over samples; take a smaller bs and Accumulate"), (dict(arch="densenet_micro"), "is a batch norm, whose statistics would be those of a chunk"),
    (dict(pretext=dict(norm="batch")), "head.layers.1 is a batch norm"), (dict(grad_checkpointing=True), "leave one of them out"),
    (dict(engine=dict(accumulate=2)), "take a larger bs with GradCache")])
def test_what_would_not_be_exact_is_refused(kw, says):
    with pytest.raises(ValueError, match=says): quiet_fit(make(chunk=4, **kw))


def test_a_compiled_model_is_refused():
    learn = make(chunk=4)
    learn.compiled = "reduce-overhead"
    with pytest.raises(ValueError, match="compile='reduce-overhead' would compile the model for each size of a chunk"): quiet_fit(learn)


@pytest.mark.parametrize("chunk", [0, -1, 2.5, True, None])
def test_a_chunk_is_a_whole_number(chunk):
    with pytest.raises(ValueError, match="chunk=.* must be a whole number of images from 1; for example 16"): GradCache(chunk)


def test_a_loss_of_labels_is_sent_to_accumulate():
    x = torch.randn(12, 4)
    with pytest.raises(ValueError, match="TaskObjective is a sum over samples; take a smaller bs and Accumulate"): fit(task_learner(x, torch.arange(12) % 2, classes(2), torch.nn.Linear(4, 2), GradCache(2)))
