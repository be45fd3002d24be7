"Pre-training on cubes: masks from the seed, exact resume, accumulation, averages, half precision, live pictures, evaluation"
import copy

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.optimizer import OptimWrapper
from tiny_spectral import TINY, pixel_learner
from tiny_spectral import masked_learner as tiny

from vitnb.callback.accumulate import Accumulate
from vitnb.callback.checkpoint import load_checkpoint
from vitnb.callback.live import MaskedLive
from vitnb.callback.masked import VALID_EPOCH, Masked, fixed_cubes, masked_view, pick_points
from vitnb.data.sample import Batch
from vitnb.exactness import assert_exact_resume
from vitnb.learner.core import run_callbacks, train_callbacks, vit_learner
from vitnb.learner.loop import VitLearner
from vitnb.learner.predict import predict_split
from vitnb.learner.spectral import evaluate_model
from vitnb.learner.tta import predict_tta
from vitnb.losses.base import add_terms, weigh
from vitnb.losses.spectral import reconstruct, voxel_mask
from vitnb.models.protocol import create_model
from vitnb.testing import differences


class Masks(Callback):
    "Write down what was removed"
    def __init__(self): self.seen = []
    def after_pred(self): self.seen.append((self.training, self.epochs_done, self.pred["mask"].clone()))
    def state_dict(self): return {}
    def load_state_dict(self, s): pass

def masks(train, **kw):
    spy = Masks()
    tiny(cbs=[spy], **kw).fit(2)
    return {e:torch.cat([m for t,d,m in spy.seen if t == train and d == e]) for e in (0, 1)}


def test_masks_are_a_function_of_seed_epoch_and_position():
    a,b = masks(True, bs=2),masks(True, bs=4)
    n = min(len(a[0]), len(b[0]))
    assert torch.equal(a[0][:n], b[0][:n]) and torch.equal(a[1][:n], b[1][:n]) # batches of any size
    assert not torch.equal(a[0], a[1]) and not torch.equal(a[0], masks(True, seed=2)[0])
    assert len({tuple(m.tolist()) for m in a[0]}) == len(a[0]) # each sample has its own

def test_validation_masks_stay():
    a = masks(False)
    assert torch.equal(a[0], a[1])
    model = create_model("spectral_mae_micro", img_size=16, in_chans=10, **TINY)
    order = model.seeded_order(1, VALID_EPOCH, np.arange(len(a[0])))
    assert torch.equal(a[0], torch.ones(order.shape).bool().scatter(1, order[:,:model.n_visible], False))

def test_it_learns():
    learn = tiny(lr=3e-3, n=24, bs=4)
    learn.fit(12)
    rows = learn.recorder.rows
    assert rows[-1]["valid_mse"] < .3*rows[0]["valid_mse"] and rows[-1]["train_loss"] < .4*rows[0]["train_loss"]

def test_the_terms_are_in_the_history_and_add_up():
    learn = tiny()
    learn.fit(1)
    row,w = learn.recorder.rows[-1],learn.objective.weights
    for part,loss in (("train", "train_loss"), ("valid", "valid_loss")):
        assert sum(w[k]*row[f"{part}_{k}"] for k in w) == pytest.approx(row[loss], rel=1e-4)

def test_masks_may_have_a_seed_of_their_own(tmp_path):
    "Training, live pictures and evaluation ask what the seed of the masks says, whatever the seed of the run is"
    pretext = dict(name="masked", seed=7)
    spies = [Masks() for _ in range(2)]
    learns = [tiny(seed=seed, n=12, cbs=[spy], pretext=pretext, metrics=None) for seed,spy in zip((1, 2), spies)]
    live = MaskedLive(share=1.)
    for o in learns: o.fit(1, cbs=[live, *run_callbacks(tmp_path/str(o.seed), tracker="none")])
    first,other = ([m for t,_,m in spy.seen] for spy in spies)
    assert all(torch.equal(a, b) for a,b in zip(first, other))
    assert torch.equal(live.masks, learns[1].model.seeded_order(7, VALID_EPOCH, range(2)))
    got = evaluate_model(tmp_path/"2", learns[1].dls.valid, device="cpu", ssim=False)
    assert got["scores"]["mse_masked"]["mean"] == pytest.approx(learns[1].recorder.rows[0]["mse_masked"], rel=1e-5)

def test_the_error_of_masked_voxels_is_watched_and_minimised(tmp_path):
    learn = tiny(metrics=None)
    assert learn.monitor == "mse_masked" and learn.columns["mse_masked"].better == "min"
    assert {f"{part}_{k}" for part in ("train", "valid") for k in ("mse", "sam", "variance", "range", "group")} < set(learn.columns)
    learn.fit(3, cbs=run_callbacks(tmp_path, tracker="none"))
    best = load_checkpoint(tmp_path/"checkpoints"/"best_model.pth")["metrics"]["mse_masked"]
    assert best == min(r["mse_masked"] for r in learn.recorder.rows)

class Error(torch.nn.Module):
    "A loss of one's own: the absolute error of removed values"
    weights = dict(mae=1.)
    def terms(self, out, cube, valid):
        gone = voxel_mask(out, cube.shape[1:]) & valid
        return dict(mae=(torch.where(gone, (reconstruct(out, cube) - cube).abs(), 0.).sum(), gone.sum()))
    def counts(self, out, bands, valid): return dict(mae=(voxel_mask(out, (bands, *valid.shape[2:])) & valid).sum())

def test_a_loss_of_ones_own():
    whole,parts = tiny(bs=4, n=24, pretext=Masked(Error())),tiny(bs=2, n=24, pretext=Masked(Error()), engine=dict(accumulate=2))
    for o in (whole, parts): o.fit(2)
    a,b = (o.recorder.rows for o in (whole, parts))
    assert a[1]["train_mae"] < a[0]["train_mae"] == pytest.approx(b[0]["train_mae"], rel=1e-4) and a[0]["train_loss"] == a[0]["train_mae"]
    assert whole.config["pretext"] == dict(name="masked", norm_target=False, loss="Error")
    with pytest.raises(ValueError, match="loss='Error' must be an object with `terms`"): tiny(pretext=whole.config["pretext"])

def test_a_model_that_does_not_mask_is_an_error():
    dls = tiny().dls
    dls.model_kw = dict(img_size=16, in_chans=10)
    with pytest.raises(ValueError, match="needs a model with seeded_order, which SwinTransformer has not; use one such as spectral_mae_tiny"):
        vit_learner(dls, "swin_micro", pretext="masked", device="cpu")

def state(learn): return copy.deepcopy(dict(model=learn.model.state_dict(), rows=[{k:v for k,v in r.items() if k != "seconds"} for r in learn.recorder.rows]))

@pytest.mark.parametrize("engine", [{}, dict(accumulate=2, ema_decay=.9)], ids=str)
def test_resume_in_the_middle_of_an_epoch_is_exact(engine, tmp_path):
    whole = tiny(engine=engine)
    whole.fit(3, cbs=run_callbacks(tmp_path/"whole", monitor="valid_loss", tracker="none"))
    class Stop(Callback):
        order = 300
        def after_batch(self):
            if self.training and self.epochs_done == 1 and self.iter == 2: raise KeyboardInterrupt
    first = tiny(engine=engine)
    with pytest.raises(KeyboardInterrupt): first.fit(3, cbs=[*run_callbacks(tmp_path/"part", monitor="valid_loss", tracker="none", every_n_steps=1), Stop()])
    second = tiny(engine=engine)
    second.fit(3, cbs=run_callbacks(tmp_path/"part", monitor="valid_loss", tracker="none", every_n_steps=1), resume="auto")
    assert not differences(state(whole), state(second), ignore=("seconds",))

def accumulated(folder, resume="auto"):
    "For a fork that is killed"
    learn = tiny(engine=dict(accumulate=2))
    learn.fit(3, cbs=run_callbacks(folder, monitor="valid_loss", tracker="none", every_n_steps=1), resume=resume)
    return learn

def test_a_killed_run_ends_with_the_same_bits():
    counts = assert_exact_resume(accumulated, kills=3, seed=1)
    assert counts["kills"] == 3 and counts["identical"] >= 1 and not counts["corrupt"]

def test_accumulated_batches_are_the_large_batch():
    "With SGD: Adam makes a whole step of a gradient that is nothing but rounding, such as that of the bias of a key"
    kw = dict(n=24, optimizer="sgd", lr=.05)
    a,b,first = tiny(bs=4, **kw),tiny(bs=2, engine=dict(accumulate=2), **kw),tiny(bs=4, **kw).model.state_dict()
    for o in (a, b): o.fit(1)
    assert a.opt_steps == b.opt_steps == 3
    a,b = a.model.state_dict(),b.model.state_dict()
    assert max((a[k] - first[k]).abs().max() for k in a) > 1e-2
    for k in a: assert torch.allclose(a[k], b[k], atol=2e-5), k

class Uneven(Callback):
    "Few pixels of every third cube are valid"
    order = -10 # before the masks are drawn
    def before_batch(self):
        batch = self.learn.batch
        few = torch.from_numpy(batch["index"] % 3 == 0)[:,None,None,None] & (torch.arange(16) > 2)
        self.learn.batch = batch.replace(mask=batch["mask"] & ~few)

def test_accumulated_batches_with_masks_of_other_sizes_are_the_large_batch():
    "The mean of the parts' means would be another number: a part divides by the valid voxels of the whole"
    kw = dict(n=24, optimizer="sgd", lr=.05, pretext=dict(name="masked", sam_weight=.5, group_weight=.5, norm_target=True))
    a,b,first = tiny(bs=4, cbs=[Uneven()], **kw),tiny(bs=2, cbs=[Uneven()], engine=dict(accumulate=2), **kw),tiny(bs=4, **kw).model.state_dict()
    counts = []
    class Spy(Callback):
        def after_pred(self):
            if self.training: counts.append(int(self.learn.objective.counts(self.learn.batch)["range"]))
    b.add_cb(Spy())
    for o in (a, b): o.fit(1)
    assert max(max(counts[i:i+2])/min(counts[i:i+2]) for i in range(0, len(counts), 2)) > 1.2
    rows = [o.recorder.rows[0] for o in (a, b)]
    for k in ("train_loss", "train_mse", "train_sam", "train_group"): assert rows[0][k] == pytest.approx(rows[1][k], rel=1e-5), k
    a,b = a.model.state_dict(),b.model.state_dict()
    assert max((a[k] - first[k]).abs().max() for k in a) > 1e-2
    for k in a: assert torch.allclose(a[k], b[k], atol=2e-6), k

def test_the_view_is_reflectance_on_one_scale():
    learn = tiny()
    x,valid = fixed_cubes(learn.dls.valid, 2)
    order = learn.model.seeded_order(1, VALID_EPOCH, range(2))
    view = masked_view(learn.model.train(), x, valid, order, learn.dls.normalizer, learn.dls.rgb_bands, learn.dls.wavelengths, [(8, 8), (5, 9)])
    assert learn.model.training # left as it was
    light = learn.dls.normalizer.denormalize(x)
    assert torch.allclose(view["spectra"], torch.stack([light[:,:,8,8], light[:,:,5,9]], 1)) and view["nm"] == pytest.approx(learn.dls.wavelengths.tolist())
    out = learn.model.eval()(x, order)
    gone = voxel_mask(out, x.shape[1:]) & valid
    made = learn.dls.normalizer.denormalize(reconstruct(out, x).clamp(-1, 2))
    want = torch.where(gone, (made - light).square(), 0.).sum((0, 2, 3))/gone.sum((0, 2, 3)).clamp_min(1)
    assert torch.allclose(view["band_mse"], want, rtol=1e-4)
    seen = ~gone[:,learn.dls.rgb_bands]
    assert torch.equal(view["reconstruction"][seen], view["true"][seen])

def test_points_are_valid():
    valid = torch.zeros(2, 1, 20, 20).bool()
    valid[0,:,:12],valid[1,:,8:] = True,True
    assert all(8 <= y < 12 for y,x in pick_points(valid, (20, 20), 5))

def test_half_precision_trains():
    learn = tiny(precision="bf16", lr=3e-3)
    learn.fit(4)
    rows = learn.recorder.rows
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] and rows[-1]["train_loss"] == rows[-1]["train_loss"]

@pytest.mark.parametrize("normalize", ["none", "log", "zscore"])
def test_bounds_and_positions_come_from_the_loaders(normalize):
    learn = tiny(normalize=normalize)
    lo,hi = (torch.as_tensor(o, dtype=torch.float32).flatten() for o in (learn.dls.normalizer.lo, learn.dls.normalizer.hi))
    assert torch.equal(learn.objective.loss.low, lo) and torch.equal(learn.objective.loss.high, hi)
    assert learn.model.spectral_pos == "wavelength" and learn.model.wavelengths == pytest.approx(learn.dls.wavelengths.tolist())
    index = tiny(model_kw=dict(spectral_pos="index")).model
    assert index.spectral_pos == "index" and index.wavelengths == learn.model.wavelengths

def test_missing_bands_are_no_target():
    nm = [450. + 30*i for i in range(9)] + [850.]
    a = tiny(model_kw=dict(wavelengths=[*nm[:4], float("nan"), *nm[5:]]))
    seen = []
    class Spy(Callback):
        def after_pred(self): seen.append((self.learn.batch["image"][:,4].abs().max(), self.learn.batch["mask"].shape, self.learn.batch["mask"][:,4].any()))
    a.add_cb(Spy())
    a.fit(1)
    assert all(float(m) == 0 and s[1] == 10 and not v for m,s,v in seen) and a.recorder.rows[-1]["train_mse"] > 0

def test_dry_run_leaves_no_trace():
    a,b = tiny(),tiny()
    said = a.dry_run()
    assert said["train_loss"] > 0
    for o in (a, b): o.fit(1)
    assert not differences(state(a), state(b))

def test_pretrain_on_one_sensor_then_another(tmp_path):
    "The weights of a run fit a classifier for a camera with other bands"
    learn = tiny()
    learn.fit(1, cbs=run_callbacks(tmp_path, monitor="valid_loss", tracker="none"))
    model = create_model("spectral_mae_micro", pretrained=tmp_path/"checkpoints"/"best_model.pth", img_size=8, wavelengths=[420., 500, 555, 700, 940], num_classes=3, **TINY)
    assert model.load_report.fresh == ["head.weight", "head.bias"] and model(torch.zeros(1, 5, 8, 8)).shape == (1, 3)


# evaluation

# ---------------------------------------------------------------------------------------------- a class for each pixel

def slow_accuracy(learn):
    "By loops over the pixels of the validation split"
    hits = n = 0
    for x,y in learn.dls.valid:
        maps = learn.model.eval()(x)
        for b,i,j in (y >= 0).nonzero().tolist():
            k = y.shape[-1]//maps.shape[-1]
            hits,n = hits + int(maps[b,:,i//k,j//k].argmax() == y[b,i,j]),n+1
    return hits/n

@pytest.mark.parametrize("head", ["pixel", "patch"])
def test_maps_of_classes_are_learnt(head):
    learn = pixel_learner(head=head, lr=3e-3)
    learn.fit(4)
    rows = learn.recorder.rows
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["accuracy"] == pytest.approx(slow_accuracy(learn), abs=1e-6)
    probs,y = predict_split(learn, "valid")
    task = learn.tasks.only
    assert probs.shape[:2] == (len(y), learn.dls.c) and probs.sum(1).allclose(torch.ones(()))
    known = y != task.unknown
    assert float((task.full(probs, y.shape[1:]).argmax(1) == y)[known].float().mean()) == pytest.approx(rows[-1]["accuracy"], abs=1e-6)

def epoch_of(learn):
    "The training batches of the first epoch"
    learn.dls.train.set_epoch(0)
    return list(learn.dls.train)

def test_a_batch_without_a_class_is_passed_over():
    learn = pixel_learner(bs=2, weight_decay=0.)
    seen,before = [],copy.deepcopy(learn.model.state_dict())
    class Blank(Callback):
        order = 0
        def before_batch(self):
            if self.training and self.iter == 0: self.learn.batch = self.learn.batch.replace(target=torch.full_like(self.learn.batch["target"], -100))
        def after_step(self):
            if self.iter == 0: seen.append(copy.deepcopy(self.model.state_dict()))
        def after_batch(self):
            if self.training and self.iter > 0: losses.append(self.loss.item())
    losses = []
    learn.fit(1, cbs=Blank())
    assert not differences(before, seen[0]), "its step has no gradient and changes nothing"
    assert learn.recorder.rows[0]["train_loss"] > 0 and np.isfinite(losses).all() and min(losses) > 0
    shares = [(y >= 0).sum().item() for _,y in epoch_of(learn)][1:]
    assert learn.recorder.rows[0]["train_loss"] == pytest.approx(np.average(losses, weights=shares), rel=1e-5), "nor does it count in the mean"

def test_maps_need_a_head_for_maps():
    with pytest.raises(ValueError, match="create the model with head='pixel' or 'patch'"): pixel_learner(head="pool").fit(1)

def test_flipped_views_of_maps_are_brought_back_and_averaged():
    learn = pixel_learner()
    probs,y = predict_tta(learn, "valid", "flip")
    x = torch.cat([b["image"] for b in learn.dls.valid])
    model = learn.model.eval()
    with torch.no_grad(): want = (model(x).softmax(1) + model(x.flip(-1)).flip(-1).softmax(1))/2
    assert torch.allclose(probs, want, atol=1e-6) and len(y) == len(x)

def test_what_maps_do_not_have():
    with pytest.raises(ValueError, match="a map has many classes and cannot be balanced"): pixel_learner().tasks.only.balance(np.zeros((2, 4, 4)))

def test_class_weights_of_maps_count_pixels():
    "By loops over the training windows; and they act as a loss with these weights given outright does"
    weighted,plain = (pixel_learner(class_weights=o, lr=3e-3) for o in (True, False))
    n = np.zeros(4)
    for y in (weighted.dls.train.dataset.read(np.array([i]))["target"] for i in range(len(weighted.dls.train.dataset))):
        for k in y.flatten().tolist():
            if k >= 0: n[k] += 1
    want = torch.tensor(n.sum()/(4*n)).float()
    assert torch.allclose(weighted.objective.loss_of("").weight, want)
    given = pixel_learner(loss_kw=dict(weight=want.tolist()), lr=3e-3)
    for o in (weighted, plain, given): o.fit(2)
    assert not differences(state(weighted), state(given)) and differences(state(weighted), state(plain))
    with pytest.raises(ValueError, match="weigh the classes twice"): pixel_learner(class_weights=True, loss_kw=dict(weight=[1.]*4))

def test_weighted_maps_in_parts_are_the_whole_batch():
    "Parts have other numbers of known pixels of each class, so only sums and counts give this"
    kw = dict(n=24, optimizer="sgd", lr=.05, class_weights=True)
    a,b = pixel_learner(bs=4, **kw),pixel_learner(bs=2, cbs=train_callbacks(accumulate=2), **kw)
    first = copy.deepcopy(a.model.state_dict())
    for o in (a, b): o.fit(1)
    a,b = a.model.state_dict(),b.model.state_dict()
    assert max((a[k] - first[k]).abs().max() for k in a) > 1e-3
    for k in a: assert torch.allclose(a[k], b[k], atol=2e-6), k


# ---------------------------------------------------------------------------------------------- sensors in turn

class InTurn:
    "Cubes of several sensors in turn, some pixels of which are no measurement, as a Learner asks for batches"
    def __init__(self, bands, n=6, bs=2):
        g = torch.Generator().manual_seed(8)
        self.bs,self.start,self.dataset = bs,0,range(n*bs)
        self.batches = [Batch(dict(image=torch.rand(bs, bands[i%len(bands)], 8, 8, generator=g), mask=torch.rand(bs, 1, 8, 8, generator=g) < .7)) for i in range(n)]
    def __len__(self): return len(self.batches)
    def to(self, device): return self
    def __iter__(self):
        first,self.start = self.start,0
        yield from self.batches[first:]


class Sensors(Masked):
    "Tells the model whose batch it is when the batch is made"
    def __init__(self, nm):
        super().__init__()
        self.nm = nm
    def prepare(self, learn, batch):
        learn.model.set_wavelengths(self.nm[learn.iter%len(self.nm)])
        return super().prepare(learn, batch)


NM = dict(other_bands=[torch.linspace(420, 780, 10), torch.linspace(500, 900, 15), torch.linspace(450, 700, 5)],
          other_places=[torch.linspace(420, 780, 10), torch.linspace(900, 1500, 10)], # as many bands: nothing would notice the wrong ones
          a_missing_band=[torch.linspace(420, 780, 10), torch.tensor([500., 520, torch.nan, 560, 580, 600, 620, 640, 660, 680])])


def sensors(nm, *cbs):
    torch.manual_seed(0)
    model = create_model("spectral_mae_micro", img_size=8, wavelengths=nm[0], **TINY)
    loader,pretext = InTurn([len(o) for o in nm]),Sensors(nm)
    dls = DataLoaders(loader, loader)
    pretext.setup(dls, model)
    learn = VitLearner(dls, model, pretext, pretext=pretext, lr=.05, opt_func=sgd, precision="fp32", seed=4, cbs=cbs)
    learn.progress.plot,learn.logger = False,lambda *a: None
    return learn


def sgd(model, lr, **kw): return OptimWrapper(list(model.parameters()), opt=torch.optim.SGD, lr=lr)


def sensors_by_hand(learn, k):
    "Each batch with its own bands, sums and counts of a group divided once"
    opt,losses,terms = learn.opt_func(learn.model, lr=.05),[],{}
    loader,pretext = learn.dls.train,learn.pretext
    learn.epochs_done,learn.training,learn.dl = 0,True,loader
    for i,batch in enumerate(loader.batches):
        learn.iter = i
        ready = pretext.prepare(learn, batch) # and at once forward: nobody has told the model of another batch
        terms = add_terms(terms, pretext.terms(learn.model.train()(*ready[:2]), ready))
        if (i+1)%k and i+1 < len(loader): continue
        loss = weigh(terms, pretext.weights)
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
        terms = {}
    return losses


@pytest.mark.parametrize("kind", NM)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_batches_of_other_sensors_add_up(kind, k):
    "A step of cubes whose bands differ in number or place: each batch meets its own model, and one count divides all"
    learn,twin = sensors(NM[kind], Accumulate(k)),sensors(NM[kind])
    with learn.no_bar(): learn.fit(1)
    losses = sensors_by_hand(twin, k)
    assert [o["loss"] for o in learn.recorder.steps] == pytest.approx(losses, rel=1e-5)
    for a,b in zip(learn.model.parameters(), twin.model.parameters()): assert torch.allclose(a, b, atol=1e-6)
