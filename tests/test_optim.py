"Optimisers against torch's own, by hand and inside a fit, and groups that know how deep they lie"
import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastcore.basics import even_mults
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_optim import PLATEAU_MODE, PURE, Loader, Micro, MidTraining, Net, batches, fit, learner, run
from torch import nn

from vitnb.callback.rate import ScheduleLR
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import vit_learner
from vitnb.learner.freeze import FrozenNorms, frozen_norms
from vitnb.learner.optim import GradClip, GroupOptim, check_groups, decays, make_optimizer, param_depths, param_groups
from vitnb.models.protocol import create_model

# ---------------------------------------------------------------- groups

def test_rule_on_each_kind_of_parameter():
    d = decays(Net())
    yes = {"conv.weight", "narrow.weight", "attn.in_proj_weight", "attn.out_proj.weight", "experts", "head.weight"}
    assert {n for n,v in d.items() if v} == yes
    assert not d["cpb.0.weight"] # a listed module stands for its parameters
    assert decays(nn.Sequential(Net()))["0.cpb.0.weight"] is False # also inside a wrapper
    net = Net()
    net.cpbx = nn.Linear(2, 4)
    assert decays(net)["cpbx.weight"] # whole names, never a substring
    bias = nn.Module(); bias.bias_net = nn.Linear(4, 4); bias.norm_mix = nn.Linear(4, 4)
    assert decays(bias) == {"bias_net.weight":True, "bias_net.bias":False, "norm_mix.weight":True, "norm_mix.bias":False}


def test_swin_and_densenet_groups():
    timm = pytest.importorskip("timm")
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=200)
    a,b = param_groups(swin, 0.05)
    assert (len(a["params"]), len(b["params"])) == (53, 120)
    assert sum(p.numel() for p in a["params"]) == 27_585_024
    dn = timm.create_model("densenet121", num_classes=10)
    d = decays(dn)
    assert all(v == (dict(dn.named_parameters())[n].ndim > 1) for n,v in d.items())


def test_groups_are_disjoint_and_complete():
    net = Net()
    names = {id(p):n for n,p in net.named_parameters()}
    groups = param_groups(net, 0.3)
    assert [g["name"] for g in groups] == ["decay", "no_decay"] and [g["weight_decay"] for g in groups] == [0.3, 0.]
    got = [names[id(p)] for g in groups for p in g["params"]]
    assert sorted(got) == sorted(names.values())
    with pytest.raises(ValueError, match="in two parameter groups: head.bias"): check_groups([*groups, dict(params=[net.head.bias])], net)
    with pytest.raises(ValueError, match="in no parameter group"): check_groups(groups[:1], net)
    with pytest.raises(ValueError, match="not parameters of the model"): check_groups([*groups, dict(params=[torch.zeros(1)])], net)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)); tied[1].weight = tied[0].weight
    assert sum(len(g["params"]) for g in param_groups(tied)) == 3
    assert [g["name"] for g in param_groups(nn.BatchNorm1d(3))] == ["no_decay"] # an empty group is left out


# ---------------------------------------------------------------- optimisers against torch

REFERENCE = dict(
    adamw=(torch.optim.AdamW, dict(lr=2e-3, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)),
    adam=(torch.optim.Adam, dict(lr=2e-3, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)),
    sgd=(torch.optim.SGD, dict(lr=0.05, weight_decay=0.1, momentum=0.8, nesterov=True)))

@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", list(REFERENCE))
def test_training_equals_torch_stepped_by_hand(name, fused):
    cls,kw = REFERENCE[name]
    learn = learner(Net(), cbs=[])
    twin = pickle.loads(pickle.dumps(learn.model))
    learn.opt_func = make_optimizer(learn.model, name, fused=fused, **kw)
    fit(learn, 2, lr=kw["lr"])
    rest = {k:v for k,v in kw.items() if k != "weight_decay"}
    d = decays(twin)
    ref = cls([dict(params=[p for n,p in twin.named_parameters() if d[n]], weight_decay=0.1),
               dict(params=[p for n,p in twin.named_parameters() if not d[n]], weight_decay=0.)], **rest, fused=fused)
    twin.train()
    for _ in range(2):
        for x,y in batches():
            nn.functional.cross_entropy(twin(x), y).backward()
            ref.step(); ref.zero_grad()
    for (n,p),q in zip(learn.model.named_parameters(), twin.parameters()): assert torch.equal(p, q), n


def test_sgd_is_l2_and_adamw_is_decoupled_by_closed_form():
    for name,want in (("sgd", 2 - .1*(0.5 + .3*2)), ("adamw", 2*(1 - .1*.3) - .1*1.)):
        lin = nn.Linear(2, 2, bias=False)
        nn.init.constant_(lin.weight, 2.)
        opt = make_optimizer(lin, name, lr=.1, weight_decay=.3, **(dict(momentum=0.) if name == "sgd" else dict(eps=0.)))
        lin.weight.grad = torch.full((2,2), .5)
        opt.step()
        torch.testing.assert_close(lin.weight.detach(), torch.full((2,2), want))


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_decay_per_group_in_mid_training(fused):
    learn,spy = learner(),MidTraining()
    learn.opt_func = make_optimizer(learn.model, "adamw", lr=1e-3, weight_decay=.05, fused=fused)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3, cbs=spy)
    assert len(spy.seen) == 6 and all([(n, wd) for n,wd,_ in s] == [("decay", .05), ("no_decay", 0.)] for s in spy.seen)
    spy.seen.clear()
    fit(learn, 1, lr=1e-3, wd=.2, cbs=spy) # fastai sends one wd to all groups
    assert [(n, wd) for n,wd,_ in spy.seen[3]] == [("decay", .2), ("no_decay", 0.)]
    assert all(type(lr) is float for s in spy.seen for *_,lr in s)


def test_stock_wrapper_has_the_habit_we_cure():
    w = OptimWrapper(opt=torch.optim.AdamW(param_groups(Net(), .05)))
    w.set_hyper("wd", .2)
    assert [g["weight_decay"] for g in w.opt.param_groups] == [.2, .2]


@pytest.mark.parametrize("name,option,value", [(n, o, v) for n,d in dict(
    adamw=dict(lr=.02, weight_decay=.5, betas=(.5, .6), eps=.1), adam=dict(lr=.02, weight_decay=.5, betas=(.5, .6), eps=.1),
    sgd=dict(lr=.02, weight_decay=.5, momentum=.3, nesterov=True)).items() for o,v in d.items()])
def test_each_option_acts(name, option, value):
    def after(**kw):
        torch.manual_seed(0); net = Net()
        opt = make_optimizer(net, name, **kw)
        for x,y in batches(3): nn.functional.cross_entropy(net(x), y).backward(); opt.step(); opt.zero_grad()
        return net.head.weight.detach()
    assert not torch.allclose(after(), after(**{option:value}), rtol=1e-6, atol=1e-9)
    assert make_optimizer(Net(), name, **{option:value}).opt.param_groups[0][option] == value


def test_optimizer_bad_input():
    net = Net()
    with pytest.raises(ValueError, match="unknown optimizer 'adamww': did you mean 'adamw'"): make_optimizer(net, "adamww")
    with pytest.raises(ValueError, match="adamw has no option 'momentum'"): make_optimizer(net, momentum=.9)
    with pytest.raises(ValueError, match="sgd has no option 'betas'"): make_optimizer(net, "sgd", betas=(.9, .99))
    with pytest.raises(ValueError, match="in no parameter group"): make_optimizer(net, groups=[dict(params=[net.head.weight])])
    with pytest.raises(ValueError, match="unknown hyper-parameter 'lrr'.*did you mean 'lr'"): make_optimizer(net).set_hyper("lrr", 1.)
    with pytest.raises(ValueError, match="does not say which parameters lie deep"): make_optimizer(net).freeze_to(-1)
    own = make_optimizer(net, groups=[dict(params=list(net.parameters()), weight_decay=.01)])
    assert own.opt.param_groups[0]["weight_decay"] == .01


def test_fused_is_chosen_where_it_is_supported():
    assert make_optimizer(Net()).opt.param_groups[0]["fused"] is True
    assert make_optimizer(Net(), fused=False).opt.param_groups[0]["fused"] is False
    assert make_optimizer(nn.Linear(2, 2, device="meta")).opt.param_groups[0]["fused"] is False


# ---------------------------------------------------------------- depth

class Deep(nn.Sequential):
    "Four depths with weights and biases each, and batch norms in two of them"
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)),
                         nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), nn.Flatten(), nn.Linear(32, 3))
    def group_matcher(self, coarse=False): return dict(stem=r"^0", blocks=r"^([12])\.")

DEPTH = {"0":0, "1":1, "2":2, "4":3} # of Deep, by the beginning of the name

def deep_learner(name="adamw", n=6, **kw):
    learn = learner(Deep(), n=n, cbs=FrozenNorms())
    learn.opt_func = make_optimizer(learn.model, name, **kw)
    return learn

def rates(learn):
    "Learning rate of each parameter by name"
    rate = {p:g["lr"] for g in learn.opt.opt.param_groups for p in g["params"]}
    return {n:rate[p] for n,p in learn.model.named_parameters()}

def depth_rates(learn):
    "One rate a depth; all parameters of a depth must have it"
    found = {}
    for n,r in rates(learn).items(): found.setdefault(DEPTH[n[0]], set()).add(r)
    assert all(len(v) == 1 for v in found.values()), found
    return [found[d].pop() for d in sorted(found)]

class Rates(Callback):
    "The rate of each depth at each step"
    order = 100
    def __init__(self): self.seen = []
    def before_step(self): self.seen.append(depth_rates(self.learn))


def test_depth_comes_from_the_group_matcher():
    assert param_depths(Deep()) == {n:DEPTH[n[0]] for n,_ in Deep().named_parameters()}
    assert set(param_depths(Net()).values()) == {0}


@settings(max_examples=30, deadline=None)
@given(low=st.floats(1e-7, 1e-2), high=st.floats(1e-7, 1.))
def test_a_slice_is_geometric_from_the_stem_to_the_head(low, high):
    learn = deep_learner(); learn.create_opt()
    learn.opt.set_hyper("lr", slice(low, high))
    got = depth_rates(learn)
    assert got[0] == pytest.approx(low) and got[-1] == high
    np.testing.assert_allclose(got, np.geomspace(low, high, 4), rtol=1e-9)
    assert {g["weight_decay"] for g in learn.opt.opt.param_groups if "no_decay" in g["name"]} == {0.}


def test_what_else_fastai_takes_for_a_rate():
    learn = deep_learner(); learn.create_opt()
    learn.opt.set_hyper("lr", slice(1e-2))
    assert depth_rates(learn) == [1e-3, 1e-3, 1e-3, 1e-2]
    learn.opt.set_hyper("lr", [1e-4, 2e-4, 3e-4, 4e-4])
    assert depth_rates(learn) == [1e-4, 2e-4, 3e-4, 4e-4]
    learn.opt.set_hyper("lr", np.array([5e-4]*2)) # what `fit_one_cycle` makes of two equal groups
    assert depth_rates(learn) == [5e-4]*4
    learn.opt.set_hyper("lr", 1e-3)
    assert depth_rates(learn) == [1e-3]*4
    for bad in (slice(0, 1e-3), slice(-1e-3), slice(1e-3, None), slice(1e-4, 1e-3, 2)):
        with pytest.raises(ValueError, match="must have positive ends and no step"): learn.opt.set_hyper("lr", bad)
    with pytest.raises(ValueError, match="3 values for 4 depths"): learn.opt.set_hyper("lr", [1., 2., 3.])
    with pytest.raises(ValueError, match="goes by depth, and this model does not say"): make_optimizer(Net()).set_hyper("lr", slice(1e-5, 1e-3))
    assert [h["lr"] for h in make_optimizer(Deep(), lr=slice(1e-4, 1e-1)).hypers][::2] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])


def test_without_a_wish_there_are_two_groups():
    learn = deep_learner(); fit(learn, 1, lr=1e-3, cbs=ScheduleLR("cosine"))
    assert [g["name"] for g in learn.opt.opt.param_groups] == ["decay", "no_decay"]
    fit(learn, 1, lr=slice(1e-5, 1e-3), cbs=ScheduleLR("cosine"))
    assert [g["name"] for g in learn.opt.opt.param_groups] == [f"depth{d}.{k}" for d in range(4) for k in ("decay", "no_decay")]
    assert check_groups(learn.opt.opt.param_groups, learn.model)


class WithToken(Deep):
    "A network with a token that its matcher may forget"
    def __init__(self, forgets):
        super().__init__()
        self.reg_token = nn.Parameter(torch.zeros(4))
        self.forgets = forgets
    def group_matcher(self, coarse=False):
        found = super().group_matcher(coarse)
        return found if self.forgets else found | dict(stem=r"^0|reg_token")


def test_a_token_that_the_matcher_forgets_is_refused_where_rates_go_by_depth():
    "A12: it would fall in with the head, and get the largest rate"
    with pytest.raises(ValueError, match="lr_decay needs to know how deep 'reg_token' lies.*group_matcher of WithToken.*'stem'"): param_groups(WithToken(True), lr_decay=.5)
    scales = {id(p):g["lr_scale"] for g in param_groups(WithToken(False), lr_decay=.5) for p in g["params"]}
    assert len(scales) == len(list(WithToken(False).parameters())) and param_groups(WithToken(True))
    net = WithToken(False)
    scale = {id(p):g["lr_scale"] for g in param_groups(net, lr_decay=.5) for p in g["params"]}
    assert scale[id(net.reg_token)] == min(scale.values()) < max(scale.values())


def test_a_decoder_lies_with_the_head_whole():
    from vitnb.models.protocol import create_model
    model = create_model("spectral_mae_micro")
    scale = {id(p):g["lr_scale"] for g in param_groups(model, lr_decay=.75) for p in g["params"]}
    assert scale[id(model.decoder.mask_token)] == 1


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_100", "densenet121", "deit_tiny_distilled_patch16_224"])
def test_models_of_timm_keep_their_layers_beside_the_head(name):
    import timm
    with torch.device("meta"): model = timm.create_model(name)
    assert sum(len(g["params"]) for g in param_groups(model, lr_decay=.75)) == len(list(model.parameters()))


def test_own_groups_are_in_order_of_depth():
    net = Deep()
    opt = make_optimizer(net, groups=[dict(params=[p for n,p in net.named_parameters() if n[0] != "4"]), dict(params=list(net[4].parameters()))])
    opt.set_hyper("lr", slice(1e-5, 1e-3))
    assert [g["lr"] for g in opt.opt.param_groups] == [1e-5, 1e-3]
    opt.freeze()
    assert [p.requires_grad for p in net.parameters()] == [False]*10 + [True]*2


@pytest.mark.parametrize("name", list(REFERENCE))
def test_a_slice_trains_as_torch_with_groups_by_hand(name):
    cls,kw = REFERENCE[name]
    learn = deep_learner(name, **kw)
    twin = pickle.loads(pickle.dumps(learn.model)).train()
    fit(learn, 2, lr=slice(1e-4, 1e-1))
    rest = {k:v for k,v in kw.items() if k not in ("weight_decay", "lr")}
    lr = [*even_mults(1e-4, 1e-1, 4)[:3], 1e-1]
    ref = cls([dict(params=[p], lr=lr[DEPTH[n[0]]], weight_decay=.1*(p.ndim > 1)) for n,p in twin.named_parameters()], **rest, fused=True)
    for _ in range(2):
        for x,y in batches():
            nn.functional.cross_entropy(twin(x), y).backward()
            ref.step(); ref.zero_grad()
    for (n,p),q in zip(learn.model.named_parameters(), twin.parameters()): assert torch.equal(p, q), n


@pytest.mark.parametrize("kind", [*PURE, "plateau"])
def test_every_schedule_keeps_the_ratio_of_the_depths(kind):
    learn,spy = deep_learner(),Rates()
    cb = ScheduleLR(kind, warmup_steps=3, **PLATEAU_MODE.get(kind, {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(learn, 2, lr=slice(1e-5, 1e-2), cbs=[cb, spy])
    seen = np.array(spy.seen)
    np.testing.assert_allclose(seen[:,3], cb.plan.curve()[:12]) # the plan is that of the head
    np.testing.assert_allclose(seen/seen[:,3:], np.tile([1e-3, 1e-2, 1e-1, 1], (12, 1)), rtol=1e-9)


@pytest.mark.parametrize("call,kw", [("fit_one_cycle", dict(lr_max=slice(1e-5, 1e-2))), ("fit_flat_cos", dict(lr=slice(1e-5, 1e-2))),
                                     ("fit_one_cycle", dict(lr_max=slice(1e-5, 1e-2), reset_opt=True)), ("fit_sgdr", dict(n_cycles=1, cycle_len=2, lr_max=slice(1e-5, 1e-2)))])
def test_fastais_own_schedules_go_by_depth(call, kw):
    learn,spy = deep_learner(),Rates()
    if "reset_opt" in kw: learn.opt_func = lambda _,lr: make_optimizer(learn.model, lr=lr) # `fit` makes another, after the rates were counted
    with learn.no_bar(), learn.no_logging(): getattr(learn, call)(*(() if "n_cycles" in kw else (2,)), **kw, cbs=spy)
    seen = np.array(spy.seen)
    np.testing.assert_allclose(seen.min(1)/seen.max(1), 1e-3, rtol=1e-6)
    assert seen.max() == pytest.approx(1e-2, rel=.1)


def test_fine_tune_trains_the_head_and_then_all_by_depth():
    learn,spy = deep_learner(),Rates()
    class Keep(Callback):
        "Weights and statistics at the end of each fit"
        def __init__(self): self.states = []
        def after_fit(self): self.states.append({k:v.clone() for k,v in self.model.state_dict().items()})
    keep,before = Keep(),{k:v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(2, 1e-2, cbs=[spy, keep])
    moved = lambda a, b: {k for k in a if not torch.equal(a[k], b[k])}
    assert moved(before, keep.states[0]) == {"4.weight", "4.bias"}
    assert moved(*keep.states) == set(before)
    late = np.array(spy.seen[6:])
    np.testing.assert_allclose(late.min(1)/late.max(1), .01, rtol=1e-6)


@given(n=st.integers(-4, 3))
@settings(max_examples=8, deadline=None)
def test_freeze_to_counts_depths(n):
    learn = deep_learner()
    learn.freeze_to(n)
    first = n % 4 if n else 0
    assert {k:p.requires_grad for k,p in learn.model.named_parameters()} == {k:DEPTH[k[0]] >= first for k,_ in learn.model.named_parameters()}
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())


def test_freezing_everything_is_refused():
    for n in (4, -5):
        with pytest.raises(ValueError, match=rf"freeze_to\({n}\): there are 4 depths; give a number from -4 to 3"): make_optimizer(Deep()).freeze_to(n)


def test_lr_find_with_frozen_depths_leaves_no_trace(tmp_path):
    learn = deep_learner(n=20); learn.path = tmp_path
    fit(learn, 1, lr=slice(1e-5, 1e-3)) # the optimiser is split, and has a state
    learn.freeze()
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(): learn.lr_find(num_it=30, show_plot=False)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    assert [k for k,p in learn.model.named_parameters() if p.requires_grad] == ["4.weight", "4.bias"]
    assert np.ptp(learn.recorder.lrs) > 0


def test_layer_decay_is_timms():
    "timm's own function is the second implementation"
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    want = {id(p):g["lr_scale"] for g in param_groups_layer_decay(vit, .05, layer_decay=.7) for p in g["params"]}
    got = {id(p):g["lr_scale"] for g in param_groups(vit, .05, lr_decay=.7) for p in g["params"]}
    assert got == pytest.approx(want) and len(set(want.values())) == 14


def test_layer_decay_acts_with_every_number_and_refuses_a_slice():
    learn,spy = deep_learner(lr_decay=.5),Rates()
    assert [h["lr"] for h in learn.opt_func.hypers][::2] == [1e-3/8, 1e-3/4, 1e-3/2, 1e-3]
    cb = ScheduleLR("cosine")
    fit(learn, 2, lr=1e-2, cbs=[cb, spy])
    seen = np.array(spy.seen)
    np.testing.assert_allclose(seen.max(1), cb.plan.curve()[:12])
    np.testing.assert_allclose(seen.min(1)/seen.max(1), 1/8)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-2, cbs=spy)
    np.testing.assert_allclose(np.array(spy.seen).min(1)/np.array(spy.seen).max(1), 1/8, rtol=1e-6)
    with pytest.raises(ValueError, match="two answers to one question"): fit(learn, 1, lr=slice(1e-5, 1e-3))
    for bad in (0, 1.5, -1):
        with pytest.raises(ValueError, match="lr_decay=.* must be above 0 and at most 1"): make_optimizer(Deep(), lr_decay=bad)
    with pytest.raises(ValueError, match="leave one of groups and lr_decay out"): make_optimizer(Deep(), groups=[dict(params=list(Deep().parameters()))], lr_decay=.5)
    learn.freeze() # by stages, whatever the groups are
    assert [k for k,p in learn.model.named_parameters() if p.requires_grad] == ["4.weight", "4.bias"]


@pytest.mark.parametrize("name", list(REFERENCE))
@pytest.mark.parametrize("split", [(False, False), (False, True), (True, False), (True, True)], ids=lambda s: f"saved {s[0]} here {s[1]}")
def test_a_state_loads_whether_groups_are_split_or_not(name, split):
    def steps(net, opt, part):
        for x,y in part: nn.functional.cross_entropy(net(x), y).backward(); opt.step(); opt.zero_grad()
    torch.manual_seed(0)
    a = Deep(); opt = make_optimizer(a, name, lr=1e-2)
    b = pickle.loads(pickle.dumps(a)); new = make_optimizer(b, name, lr=.5)
    if split[0]: opt.set_hyper("lr", slice(1e-4, 1e-2))
    if split[1]: new.set_hyper("lr", slice(1e-3, .5))
    steps(a, opt, batches()[:3])
    b.load_state_dict(a.state_dict())
    new.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert new.hypers == opt.hypers
    for net,o in ((a, opt), (b, new)): steps(net, o, batches()[3:])
    assert all(torch.equal(p, q) for p,q in zip(a.parameters(), b.parameters()))


def test_splitting_in_mid_training_loses_no_momentum():
    nets = []
    for split in (False, True):
        torch.manual_seed(0)
        net = Deep(); opt = make_optimizer(net, "adamw", lr=1e-2, fused=False)
        for i,(x,y) in enumerate(batches()):
            if split and i == 3: opt.regroup(by_depth=True)
            if split and i == 5: opt.regroup(by_depth=False)
            nn.functional.cross_entropy(net(x), y).backward(); opt.step(); opt.zero_grad()
        nets.append(net)
    assert all(torch.equal(p, q) for p,q in zip(nets[0].parameters(), nets[1].parameters()))
    twin = pickle.loads(pickle.dumps(opt))
    twin.set_hyper("lr", slice(1e-5, 1e-3))
    assert sum(len(g["params"]) for g in twin.opt.param_groups) == len(list(net.parameters()))


def test_a_resumed_slice_keeps_its_ratios():
    learn,cb,spy = deep_learner(),ScheduleLR("cosine"),Rates()
    class Keep(Callback):
        order = 100
        def after_epoch(self):
            if self.epoch == 1: self.learn.kept = copy.deepcopy((cb.state_dict(), self.opt.state_dict()))
    fit(learn, 4, lr=slice(1e-5, 1e-2), cbs=[cb, spy, Keep()])
    state,opt = learn.kept
    fresh,again,rest = deep_learner(),ScheduleLR("cosine"),Rates()
    class Restore(Callback):
        order = 70
        def before_fit(self): self.opt.load_state_dict(opt); again.load_state_dict(state)
    fit(fresh, 4, lr=slice(1e-5, 1e-2), start_epoch=2, cbs=[again, Restore(), rest])
    assert rest.seen == spy.seen[12:]


class Kill(Callback):
    "Keep the state after so many steps, and end"
    order = 150
    def __init__(self, steps): self.steps = steps
    def after_batch(self):
        if not self.training or self.learn.opt_steps != self.steps: return
        self.learn.kept = copy.deepcopy(self.learn.training_state())
        raise CancelFitException

@pytest.mark.parametrize("kw,lr,n,groups", [({}, slice(1e-5, 1e-3), 0, 10), ({}, slice(1e-4, 1e-3), -2, 10), (dict(opt_kw=dict(lr_decay=.7)), 1e-3, 0, 14)],
                         ids=["slice", "slice and frozen", "layer decay"])
def test_a_run_with_depths_resumes_bit_for_bit(kw, lr, n, groups, tmp_path):
    images = load_set("digits", limit=6)
    def make():
        learn = vit_learner(image_loaders(images, bs=16, augment="shift", device="cpu"), "swin_micro", precision="fp32", device="cpu", path=tmp_path, **kw)
        learn.freeze_to(n)
        return learn
    whole,killed,resumed = make(),make(),make()
    whole.fit(3, lr=lr)
    killed.fit(3, lr=lr, cbs=Kill(5))
    resumed.fit(3, lr=lr, resume=killed.kept)
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k,v in whole.model.state_dict().items())
    assert len(resumed.opt.opt.param_groups) == groups


# ---------------------------------------------------------------- norms that are frozen

def statistics(model): return {k:v.clone() for k,v in model.named_buffers() if "running" in k or "batches" in k}

def image_batches(n=4): return [(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(i)), torch.arange(6)%3) for i in range(n)]

def dense_learner():
    torch.manual_seed(0)
    model = create_model("densenet_micro", img_size=8, num_classes=3)
    dls = DataLoaders(Loader(image_batches()), Loader(image_batches(1))); dls.n_inp = 1
    return Learner(dls, model, nn.CrossEntropyLoss(), opt_func=make_optimizer(model), cbs=FrozenNorms())

def moved(learn, epochs=1):
    before = statistics(learn.model)
    fit(learn, epochs, lr=1e-3)
    return {k.rpartition(".")[0] for k,v in statistics(learn.model).items() if not torch.equal(v, before[k])}

@pytest.mark.parametrize("how", ["freeze", "by hand"])
def test_a_frozen_batch_norm_does_not_move(how):
    learn = dense_learner()
    norms = {n for n,m in learn.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    if how == "freeze": learn.freeze()
    else:
        for n,p in learn.model.named_parameters(): p.requires_grad_(n.startswith("classifier"))
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    assert moved(learn, 2) == set()
    assert {k for k,v in learn.model.state_dict().items() if not torch.equal(v, before[k])} == {"classifier.weight", "classifier.bias"}
    if how == "freeze": learn.freeze_to(-2) # the last block and the norm behind it
    else: learn.model.features.denseblock3.requires_grad_(True)
    last = {n for n in norms if "denseblock3" in n or (how == "freeze" and n == "features.norm5")}
    assert moved(learn) == last
    learn.unfreeze()
    assert moved(learn) == norms # they come back

def test_freezing_in_the_middle_of_a_fit_counts_from_the_next_epoch():
    learn,seen = dense_learner(),[]
    class ByEpoch(Callback):
        order = 50
        def before_train(self):
            self.model.features.requires_grad_(self.epoch != 1)
            seen.append(statistics(self.model))
    fit(learn, 3, lr=1e-3, cbs=ByEpoch())
    seen.append(statistics(learn.model))
    same = [all(torch.equal(a[k], b[k]) for k in a) for a,b in zip(seen, seen[1:])]
    assert same == [False, True, False]

def test_norms_of_a_part_that_is_partly_trained_move():
    model = Deep()
    model[1][0].weight.requires_grad_(False) # the bias still learns
    assert frozen_norms(model) == []
    model[1][0].bias.requires_grad_(False)
    assert frozen_norms(model) == [model[1][0]]
    shared = nn.BatchNorm1d(2, affine=False)
    pair = nn.ModuleDict(dict(a=nn.Sequential(nn.Linear(2, 2), shared), b=nn.Linear(2, 2)))
    assert frozen_norms(pair) == [] # `a` trains
    pair["a"].requires_grad_(False)
    assert frozen_norms(pair) == [shared] # nothing of what surrounds it trains
    assert frozen_norms(nn.Sequential(nn.LayerNorm(2)).requires_grad_(False)) == [] # it gathers nothing

def test_mode_is_as_before_after_the_fit():
    learn = dense_learner(); learn.freeze()
    class Modes(Callback):
        order = 95
        def before_train(self): self.learn.inside = [m.training for m in self.model.modules()]
        def after_train(self): self.learn.after = {m.training for m in self.model.modules()}
    fit(learn, 1, cbs=Modes())
    assert not all(learn.inside) and any(learn.inside) and learn.after == {True}


# ---------------------------------------------------------------- state, and the Learner around it

@pytest.mark.parametrize("name", list(REFERENCE))
def test_state_dict_round_trip_goes_on_exactly(name):
    def steps(net, opt, part):
        for x,y in part: nn.functional.cross_entropy(net(x), y).backward(); opt.step(); opt.zero_grad()
    torch.manual_seed(0)
    a = Net(); opt = make_optimizer(a, name)
    steps(a, opt, batches()[:3])
    b = pickle.loads(pickle.dumps(a)); new = make_optimizer(b, name, lr=.5)
    new.load_state_dict(copy.deepcopy(opt.state_dict())) # torch would share the tensors of a state in memory
    assert new.hypers == opt.hypers
    for net,o in ((a, opt), (b, new)): steps(net, o, batches()[3:])
    assert all(torch.equal(p, q) for p,q in zip(a.parameters(), b.parameters()))


def test_a_loaded_state_does_not_bring_its_kernel_along():
    a,b = make_optimizer(Net(), fused=True),make_optimizer(Net(), fused=False)
    b.load_state_dict(a.state_dict())
    assert b.opt.param_groups[0]["fused"] is False and a.opt.param_groups[0]["fused"] is True
    with pytest.raises(ValueError, match="different number of parameter groups"): b.load_state_dict(dict(a.state_dict(), param_groups=[]))


def test_learner_saves_and_loads_the_optimiser(tmp_path):
    learn = learner(path=tmp_path)
    learn.opt_func = make_optimizer(learn.model, "adamw", weight_decay=.07)
    fit(learn, 1, lr=1e-2)
    learn.save("here", with_opt=True)
    state = {k:v["exp_avg"].clone() for k,v in learn.opt.state_dict()["state"].items()}
    fit(learn, 1, lr=1e-2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Could not load") # fastai only warns when the optimiser's state does not load
        learn.load("here", with_opt=True)
    now = learn.opt.state_dict()
    assert all(torch.equal(v, now["state"][k]["exp_avg"]) for k,v in state.items())
    assert [g["weight_decay"] for g in learn.opt.opt.param_groups] == [.07, 0.]
    assert all(type(v) in (float, int, bool, str, tuple, list, type(None)) for g in now["param_groups"] for v in g.values())


def test_zero_grad_freeze_and_clear_state():
    net = Net(); opt = make_optimizer(net)
    x,y = batches()[0]
    nn.functional.cross_entropy(net(x), y).backward(); opt.step(); opt.zero_grad()
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    opt.clear_state()
    assert not opt.opt.state
    opt.unfreeze()
    assert all(p.requires_grad for p in net.parameters())
    assert len(opt.all_params()) == len(list(net.parameters()))


def test_lr_find_works_and_leaves_no_trace(tmp_path):
    learn = learner(path=tmp_path, n=20)
    learn.opt_func = make_optimizer(learn.model, "adamw")
    before = [p.clone() for p in learn.model.parameters()]
    with learn.no_bar(): out = learn.lr_find(num_it=40, show_plot=False)
    assert 1e-7 < out.valley < 10
    assert all(torch.equal(p, q) for p,q in zip(before, learn.model.parameters()))


def test_optimiser_pickles_with_its_learner():
    learn = learner()
    learn.opt_func = make_optimizer(learn.model)
    learn.create_opt()
    twin = pickle.loads(pickle.dumps(learn.opt))
    assert isinstance(twin, GroupOptim) and twin.hypers == learn.opt.hypers


# ---------------------------------------------------------------- clipping

class Norms(Callback):
    order = GradClip.order+1
    def __init__(self): self.seen = []
    def before_step(self): self.seen.append((float(self.grad_norm), float(nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))))

@pytest.mark.parametrize("max_norm", [.01, .5, math.inf])
def test_clipping_acts_and_logs_the_norm_before(max_norm):
    def go(*cbs):
        learn = learner(); learn.opt_func = make_optimizer(learn.model, "sgd", lr=.01, momentum=0.)
        fit(learn, 1, lr=.01, cbs=list(cbs))
        return learn
    spy = Norms()
    learn = go(GradClip(max_norm), spy)
    for before,after in spy.seen: assert after == pytest.approx(min(before, max_norm), rel=1e-3)
    same = all(torch.equal(p, q) for p,q in zip(learn.model.parameters(), go().model.parameters()))
    assert same == (max_norm == math.inf)
    assert "grad_norm" not in vars(learn)

def test_clipping_sees_unscaled_gradients():
    class Scaled(Learner):
        "A Learner with a scaler of its own"
        def _backward(self): self.scaler.scale(self.loss_grad).backward()
        def _step(self): self.scaler.step(self.opt.opt); self.scaler.update()
    class Unscale(Callback):
        order = MixedPrecision.order
        def before_step(self): self.scaler.unscale_(self.opt.opt)
    spy,weights = [],[]
    for cls in (Learner, Scaled):
        learn = learner(); learn.__class__ = cls
        learn.opt_func = make_optimizer(learn.model, "sgd", lr=.1)
        if cls is Scaled: learn.scaler = torch.amp.GradScaler("cpu", init_scale=1024.)
        spy.append(Norms())
        fit(learn, 1, lr=.1, cbs=[GradClip(.5), spy[-1], *([Unscale()] if cls is Scaled else [])])
        weights.append([p.detach().clone() for p in learn.model.parameters()])
    np.testing.assert_allclose(spy[0].seen, spy[1].seen, rtol=1e-4)
    for p,q in zip(*weights): torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)

def test_clipping_leaves_micro_batches_alone():
    spy = Norms(); run(ScheduleLR("constant", .1), 1, extra=[Micro(3), GradClip(.1), spy])
    assert len(spy.seen) == 2
    for bad in (0, -1, math.nan):
        with pytest.raises(ValueError, match="must be above 0"): GradClip(bad)
