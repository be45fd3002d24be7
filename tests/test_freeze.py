"Freezing: by epoch, by depth and by hand, with norms that stand still"
import pytest
import torch
from loop_helpers import Save
from tiny_tasks import fit, weights

from vitnb.callback.base import TrainCallback
from vitnb.learner.freeze import FreezeEpochs
from vitnb.testing import tiny_learner


def moved(learn, before): return {n for n,p in learn.model.named_parameters() if not torch.equal(p, before[n])}
def copy_of(learn): return {n:p.detach().clone() for n,p in learn.model.named_parameters()}


class Watch(TrainCallback):
    "Which weights each epoch moved, and whether the statistics of norms did"
    order = 150
    def __init__(self): self.weights,self.buffers = [],[]
    def before_train(self): self.before,self.stats = copy_of(self.learn),{k:v.clone() for k,v in self.model.named_buffers()}
    def after_train(self):
        self.weights.append(moved(self.learn, self.before))
        self.buffers.append({k for k,v in self.model.named_buffers() if not torch.equal(v, self.stats[k])})


def frozen(*cbs, epochs=2, depth=-1, **kw): return tiny_learner(arch="densenet_micro", cbs=[FreezeEpochs(epochs, depth), Watch(), *cbs], **kw)


def test_the_head_is_trained_first_then_all():
    learn = frozen()
    names = {n for n,_ in learn.model.named_parameters()}
    fit(learn, 3)
    assert learn.watch.weights == [{"classifier.weight", "classifier.bias"}]*2 + [names]
    assert learn.watch.buffers[:2] == [set()]*2 and learn.watch.buffers[2], "the statistics of frozen norms stand still"
    assert all(p.requires_grad for p in learn.model.parameters())


def test_a_depth_and_what_is_frozen_by_hand():
    learn = frozen(epochs=1, depth=-2)
    learn.model.features.conv0.requires_grad_(False)
    fit(learn, 2)
    first,second = learn.watch.weights
    assert any("denseblock3" in n for n in first) and not any("denseblock2" in n for n in first)
    assert any("denseblock2" in n for n in second) and "features.conv0.weight" not in first | second
    assert [n for n,p in learn.model.named_parameters() if not p.requires_grad] == ["features.conv0.weight"]


@pytest.mark.parametrize("n", [3, 7, 10, 14, 17])
def test_freezing_goes_on_after_a_kill(n):
    save = Save(n)
    whole,rest = frozen(save, optimizer="adamw"),frozen(optimizer="adamw")
    fit(whole, 3)
    fit(rest, 3, resume=save.state)
    assert torch.equal(weights(whole), weights(rest)) and rest.watch.weights[-1] == whole.watch.weights[-1]
    with pytest.raises(ValueError, match="epochs: 2 -> 1"): fit(frozen(epochs=1), 3, resume=save.state)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_fit_leaves_nothing_frozen(error):
    class Break(TrainCallback):
        def after_pred(self):
            if self.training and self.iter == 2: raise error("stop")
    learn = frozen(Break())
    with pytest.raises(error): fit(learn, 3)
    assert all(p.requires_grad for p in learn.model.parameters())


def test_freezing_is_for_training_and_refuses_nonsense():
    learn = frozen()
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        learn.get_preds()
    assert all(p.requires_grad for p in learn.model.parameters())
    for epochs in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="whole number from 1"): FreezeEpochs(epochs)
    with pytest.raises(ValueError, match="freeze_to\\(9\\): there are"): fit(frozen(depth=9), 1)


@pytest.mark.parametrize("momentum", [0., .9])
def test_layers_that_wake_train_with_sgd(momentum):
    "In one epoch the head, then all: the weights of torch's own unfused optimiser, which takes parameters one by one"
    def run(**kw):
        learn = frozen(epochs=1, optimizer="sgd", lr=.01, opt_kw=dict(momentum=momentum)) # at .05 rounding grows to 6e-3 on some kinds of CPU
        for group in learn.opt.opt.param_groups: group.update(kw)
        learn.fit(3)
        return learn
    ours,plain = run(),run(fused=False, foreach=False)
    assert ours.opt_steps == plain.opt_steps > 3
    for a,b in zip(ours.model.parameters(), plain.model.parameters()): assert torch.allclose(a, b, atol=1e-6)
