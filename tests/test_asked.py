"What a fit was asked for wins over what a state brings back, and nothing else of the state is lost"
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vitnb.callback.asked import built_numbers, changes, check_length, free_to_change, keep_asked
from vitnb.learner.optim import make_optimizer


def optimizer(**kw): return make_optimizer(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "sgd", **kw)


def asked(opt, wd=None): return dict(numbers=built_numbers(opt.opt.param_groups), wd=wd)


def test_only_what_is_asked_for_otherwise_changes():
    old,new = optimizer(weight_decay=.1, momentum=.9),optimizer(weight_decay=.3, momentum=.9)
    then,now = asked(old),asked(new)
    old.set_hyper("mom", .95) # as a schedule does
    old.set_hyper("lr", 1e-5)
    new.load_state_dict(old.opt.state_dict())
    keep_asked(new, then, now)
    decay = {group["name"]:group["weight_decay"] for group in new.opt.param_groups}
    assert decay == dict(decay=.3, no_decay=0.)
    assert all(group["momentum"] == .95 and group["lr"] == 1e-5 for group in new.opt.param_groups)


def test_a_decay_of_fit_is_asked_for_too():
    old,new = optimizer(weight_decay=.1),optimizer(weight_decay=.1)
    new.load_state_dict(old.opt.state_dict())
    keep_asked(new, asked(old), asked(new, wd=.5))
    assert {group["name"]:group["weight_decay"] for group in new.opt.param_groups} == dict(decay=.5, no_decay=0.)


def test_the_same_again_changes_nothing():
    old = optimizer(weight_decay=.1)
    old.set_hyper("wd", .7) # by a callback, in training
    new = optimizer(weight_decay=.1)
    new.load_state_dict(old.opt.state_dict())
    before = [{k:v for k,v in group.items() if k != "params"} for group in new.opt.param_groups]
    keep_asked(new, asked(optimizer(weight_decay=.1)), asked(optimizer(weight_decay=.1)))
    assert before == [{k:v for k,v in group.items() if k != "params"} for group in new.opt.param_groups]


@given(st.integers(0, 50), st.integers(0, 9), st.integers(0, 60))
def test_a_run_is_never_shorter_than_it_is(epoch, batch, n_epoch):
    done = epoch + (batch > 0)
    if n_epoch >= done: return check_length((epoch, batch), n_epoch)
    with pytest.raises(ValueError, match=f"in its epoch {done} already"): check_length((epoch, batch), n_epoch)


def test_what_a_longer_run_may_change():
    config = {"epochs":10, "training.lr":.1, "training.schedule":"cosine", "training.schedule_kw.warmup_epochs":1., "engine.EarlyStop.patience":2, "training.bs":16, "seed":1}
    new = {**config, "training.lr":.2, "training.schedule":"constant", "training.schedule_kw.warmup_epochs":2., "engine.EarlyStop.patience":5}
    assert len(changes(config, new, free_to_change(config, new))) == 4 # the same length: nothing is free
    longer,shorter = {**new, "epochs":20},{**new, "epochs":8}
    assert changes(config, longer, free_to_change(config, longer)) == []
    assert len(changes(config, shorter, free_to_change(config, shorter))) == 3 # all but the warm-up, which is a share of the length
    other = {**longer, "seed":2, "training.bs":32}
    assert changes(config, other, free_to_change(config, other)) == ["seed: 1 -> 2", "training.bs: 16 -> 32"]
