"""The seams hold: systems that vitnb does not know train, resume, share and predict like its own; and what breaks one is seen

Each `check_...` is what a test and the mutants that it must catch have in common.
"""
import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import seam_systems as systems
import seam_worker as worker
import torch
import torch.nn.functional as F
from seam_systems import SETS, degrees_off, found, make

import vitnb.data.work
import vitnb.learner.core
import vitnb.metrics.base
from vitnb.callback.base import TrainCallback
from vitnb.callback.checkpoint import Checkpoints, load_checkpoint, restore_weights
from vitnb.callback.ema import EMACallback
from vitnb.callback.record import StepRecorder
from vitnb.data.loader import image_loaders
from vitnb.data.mix import draw_plan
from vitnb.drawings import draw_predictions
from vitnb.launch import Ranks
from vitnb.learner.core import run_callbacks, vit_learner
from vitnb.learner.loop import VitLearner
from vitnb.learner.predict import predict_split
from vitnb.learner.trained import load_run
from vitnb.learner.tta import predict_tta
from vitnb.losses.objective import TaskObjective, make_objective
from vitnb.metrics.classify import bootstrap_interval
from vitnb.metrics.report import task_report
from vitnb.models.protocol import models
from vitnb.task import Categorical, ClassMap, Column, Ordinal, Value
from vitnb.testing import differences

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LABELLED = [k for k in SETS if k != "twins"]
EPOCHS = 8


def environment(**kw):
    "Of a process that finds this checkout and these systems, with one thread; what a launcher may have left is taken out"
    path = os.pathsep.join([str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {k: v for k,v in os.environ.items() if not k.startswith("ACCELERATE_") and k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**own, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "VITNB_RANK_TIMEOUT": "240", "PYTHONWARNINGS": "ignore", **kw}


for registry,key,_ in systems.OWN: del registry[key] # tests of other files count what vitnb itself has registered


@pytest.fixture(scope="module", autouse=True)
def registered():
    "The systems are known while this file is tested"
    for registry,key,value in systems.OWN: registry[key] = value
    yield
    for registry,key,_ in systems.OWN: del registry[key]


class Trained(SimpleNamespace): "A Learner, and the folder of its run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A whole run of a system, made when it is asked for"
    runs,root = {},tmp_path_factory.mktemp("seams")
    def get(name):
        if name not in runs:
            learn = make(name, root/f"{name}_files")
            learn.progress.file = root/name/"figures"/"curves.png"
            learn.fit(EPOCHS, cbs=run_callbacks(root/name, tracker="tensorboard"))
            runs[name] = Trained(learn=learn, folder=root/name)
        return runs[name]
    return get


@pytest.fixture
def best(trained):
    "The same with the weights of its best epoch"
    def get(name):
        run = trained(name)
        restore_weights(run.learn.model, load_checkpoint(run.folder/"checkpoints"/"best_model.pth"))
        run.learn.model.eval()
        return run
    return get

# ---------------------------------------------------------------------------------------------- a run leaves what every run leaves

DIRECTIONS = dict(
    wards={"valid_loss": "min", "zones/mae": "min", "zones/within_one": "max", "tissue/iou": "max", "zones/mae_ema": "min", "zones/train_accuracy": "max", "tissue/valid_loss": "min"},
    twins=dict(valid_loss="min", found="max", found_ema="max", train_contrast="min"), ages=dict(mae="min", r2="max", mae_ema="min", train_mae="min"),
    signs=dict(average_precision="max", exact="max"), winds=dict(degrees_off="min", degrees_off_ema="min", train_degrees_off="min", valid_tips="min"))
MONITORS = dict(wards="valid_loss", twins="found", ages="mae", signs="average_precision", winds="degrees_off")


@pytest.mark.parametrize("name", SETS)
def test_every_column_of_the_history_is_declared(trained, name):
    run = trained(name)
    columns = json.loads((run.folder/"columns.json").read_text())
    rows = json.loads((run.folder/"history.json").read_text())
    assert len(rows) == EPOCHS and not set(rows[-1]) - set(columns) - {"epoch", "step", "seconds"}
    assert {k: columns[k]["better"] for k in DIRECTIONS[name]} == DIRECTIONS[name]
    assert not [k for k in columns if k in rows[-1] and rows[-1][k] is None]


@pytest.mark.parametrize("name", SETS)
def test_a_run_is_watched_and_tracked(trained, name):
    run = trained(name)
    assert (run.folder/"figures"/"curves.png").stat().st_size > 5000
    assert len(list(run.folder.rglob("events.out*"))) == 1
    events = [json.loads(line)["event"] for line in (run.folder/"events.jsonl").read_text().splitlines()]
    assert events.count("epoch") == EPOCHS and {"start", "steps", "end"} <= set(events)


class Forced(TrainCallback):
    "Write given values into the history in place of what was measured"
    order = 55 # the recorder has closed the row, nobody has read it
    def __init__(self, column, values): self.column,self.values = column,values
    def after_epoch(self): self.recorder.rows[-1][self.column] = self.values[self.epoch]


def check_best_epoch(name, folder):
    "The epoch that is kept is the best by the declared direction, though neither the first nor the last"
    learn = make(name, folder/"files")
    values,better = [2., 1., 3., 2.],DIRECTIONS[name][MONITORS[name]]
    files = Checkpoints(folder/"checkpoints")
    learn.fit(4, cbs=[Forced(MONITORS[name], values), files])
    assert files.column.name == MONITORS[name] and files.best_epoch == (2 if better == "min" else 3)


@pytest.mark.parametrize("name", ["wards", "twins", "ages"])
def test_the_best_epoch_is_the_best_by_declaration(name, tmp_path): check_best_epoch(name, tmp_path)

# ---------------------------------------------------------------------------------------------- scores by hand

def wards_by_hand(preds, targets):
    "Scores of zones and tissue, entry by entry"
    off,near,right,found,true,said = [],[],[],np.zeros(3),np.zeros(3),np.zeros(3)
    for p,y in zip(preds["zones"], targets["zones"]):
        for logits,level in zip(p, y):
            if level == -1: continue
            off.append(abs(int(logits.argmax()) - int(level)))
            near.append(off[-1] <= 1)
            right.append(off[-1] == 0)
    for p,y in zip(preds["tissue"].argmax(1).flatten().tolist(), targets["tissue"].flatten().tolist()):
        if y == 255: continue
        true[y] += 1
        said[p] += 1
        found[y] += p == y
    return {"zones/mae": np.mean(off), "zones/within_one": np.mean(near), "zones/accuracy": np.mean(right), "tissue/iou": (found/(true + said - found)).mean()}


def by_hand(name, preds, y):
    "Scores of a system by its definition"
    if name == "wards": return wards_by_hand(preds, y)
    if name == "twins": return dict(found=torch.cat([found(z) for z in preds]).float().mean().item())
    if name == "ages":
        error = (preds - y)[~y.isnan()]
        return dict(mae=error.abs().mean().item(), rmse=error.square().mean().sqrt().item())
    if name == "signs": return dict(exact=((preds > 0) == (y > 0)).all(1).float().mean().item())
    said = torch.atan2(preds[:,1], preds[:,0]).rad2deg()
    return dict(degrees_off=degrees_off(said, y)[~y.isnan()].mean().item())


def loss_by_hand(name, preds, y, learn):
    "The validation loss by its definition: a mean over what is known, weighed"
    if name == "twins": return np.average([contrast(z).item() for z in preds], weights=[len(z) for z in preds])
    if name == "ages": return torch.log(torch.cosh((preds - y)[~y.isnan()])).mean().item()
    if name == "signs": return F.binary_cross_entropy_with_logits(preds, y.float(), pos_weight=torch.tensor([1., 2., 3.])).item()
    if name == "winds":
        known = ~y.isnan()
        tips = torch.stack([y.deg2rad().cos(), y.deg2rad().sin()], 1)
        return ((preds - tips).square().sum(1)[known].mean() + .1*(preds.norm(dim=1) - 1).square()[known].mean()).item()
    w = weights_by_hand(learn)
    zones = F.cross_entropy(preds["zones"].flatten(0, 1), y["zones"].flatten(), w["zones"], ignore_index=-1)
    return (2*zones + F.cross_entropy(preds["tissue"], y["tissue"].long(), w["tissue"], ignore_index=255)).item()


def contrast(z):
    "NT-Xent, pair by pair"
    total = 0.
    for i in range(len(z)):
        near = torch.stack([z[i] @ z[j]/.2 for j in range(len(z)) if j != i])
        total = total + near.logsumexp(0) - z[i] @ z[i ^ 1]/.2
    return total/len(z)


def weights_by_hand(learn):
    "N/(K n_k) of each task's known entries"
    out = {}
    for k,unknown in dict(zones=-1, tissue=255).items():
        y = np.asarray(learn.dls.train.dataset.targets[k]).astype(int).ravel()
        n = np.array([(y == c).sum() for c in range(3)])
        out[k] = torch.tensor(n.sum()/(3*n), dtype=torch.float32)
    return out


def predictions(learn, dl):
    "What the model says of a loader, batch by batch, and the targets"
    preds,targets = [],[]
    with torch.no_grad():
        for b in dl:
            x = b["image"]
            preds.append(learn.model(x.flatten(0, 1) if x.ndim == 5 else x))
            targets.append(b.get("target"))
    join = lambda parts: {k: torch.cat([o[k] for o in parts]) for k in parts[0]} if isinstance(parts[0], dict) else torch.cat(parts)
    return (preds, None) if targets[0] is None else (join(preds), join(targets))


def check_scores(name, folder, learn=None):
    "Loss and scores of a validation are those of a loop written by hand"
    if learn is None:
        learn = make(name, folder/"files", engine={})
        learn.fit(1)
    values = dict(zip(("valid_loss", *(m.name for m in learn.metrics)), map(float, learn.validate())))
    learn.model.eval()
    valid = learn.dls.valid
    valid.set_epoch(0)
    preds,targets = predictions(learn, valid)
    for k,v in by_hand(name, preds, targets).items(): assert values[k] == pytest.approx(v, rel=2e-5, abs=1e-6), k
    assert values["valid_loss"] == pytest.approx(loss_by_hand(name, preds, targets, learn), rel=2e-5)


@pytest.mark.parametrize("name", SETS)
def test_scores_equal_a_loop_written_by_hand(trained, name, tmp_path): check_scores(name, tmp_path, trained(name).learn)

# ---------------------------------------------------------------------------------------------- a step by hand

class Spy(TrainCallback):
    "Keep the batches as they are at some place in the order of callbacks"
    def __init__(self, order): self.order,self.seen = order,[]
    def before_batch(self):
        if self.training: self.seen.append(self.learn.batch)


class Die(Exception): pass


class DieAt(TrainCallback):
    "Die at the end of a batch of an epoch, after all others have seen it"
    order = 190
    def __init__(self, epoch, batch): self.at = epoch,batch
    def after_batch(self):
        if self.training and (self.epoch, self.iter) == self.at: raise Die


def first_step(name, folder, **kw):
    "A Learner after one step of two batches, its weights before it, and the batches before and after mixing"
    plain,mixed = Spy(0),Spy(1000)
    kw = {**dict(optimizer="sgd", lr=.1, weight_decay=0., opt_kw=dict(momentum=0.), schedule="constant"), **kw}
    learn = make(name, folder/"files", cbs=[plain, mixed], engine=dict(mixup=.4, cutmix=1., mix_mode="pair", accumulate=2), **kw)
    before = copy.deepcopy(learn.model)
    with pytest.raises(Die): learn.fit(1, cbs=[DieAt(0, 1)])
    return learn, before, plain.seen, mixed.seen


def masses(y, n, unknown): return y if y.is_floating_point() else torch.stack([(y == c).float() for c in range(n)], -1)
def joined(batches, k=None): return torch.cat([b["target"] if k is None else b["target"][k] for b in batches])


def soft_cross_entropy(pred, y, w): return -(y*w*pred.log_softmax(-1)).sum()/(y*w).sum()


def whole_loss(name, model, batches, learn):
    "The loss of all batches of a step as one, by definition"
    pred = model(torch.cat([b["image"] for b in batches]))
    if name == "wards":
        w = weights_by_hand(learn)
        zones = torch.cat([masses(b["target"]["zones"], 3, -1) for b in batches])
        tissue = torch.cat([masses(b["target"]["tissue"], 3, 255) for b in batches])
        return 2*soft_cross_entropy(pred["zones"], zones, w["zones"]) + soft_cross_entropy(pred["tissue"].movedim(1, -1), tissue, w["tissue"])
    if name == "ages":
        y = joined(batches)
        return torch.log(torch.cosh((pred - y)[~y.isnan()])).mean()
    if name == "signs":
        y = joined(batches)[...,1]
        return F.binary_cross_entropy_with_logits(pred, y, pos_weight=torch.tensor([1., 2., 3.]))
    y = joined(batches)
    known = ~y.isnan().any(1)
    return (pred[known] - y[known]).square().sum(1).mean() + .1*(pred[known].norm(dim=1) - 1).square().mean()


def check_step(name, folder):
    "Two accumulated batches, mixed, weighed, with unknown entries and maps, make the step of the whole batch"
    learn,model,_,batches = first_step(name, folder)
    assert len(batches) == 2
    whole_loss(name, model, batches, learn).backward()
    for (k,p),q in zip(model.named_parameters(), learn.model.parameters()):
        assert torch.allclose(p - .1*p.grad, q, rtol=1e-5, atol=2e-6), k


@pytest.mark.parametrize("name", LABELLED)
def test_an_accumulated_step_is_that_of_the_whole_batch(name, tmp_path): check_step(name, tmp_path)


def mixed_by_hand(name, batch, plan):
    "Images and targets, pixel by pixel and entry by entry"
    x,y = batch["image"],batch["target"]
    b,_,h,w = x.shape
    own = torch.ones(b, h, w)
    for i,row in enumerate(plan.box.tolist()):
        if plan.has_box[i]: own[i,row[0]:row[1],row[2]:row[3]] = 0
        else: own[i] = float(np.float32(plan.lam[i]))
    lam = torch.from_numpy(plan.lam.astype(np.float32))
    average = lambda t, share: share*t + (1 - share)*t.flip(0)
    rows = lambda t: lam.view(-1, *[1]*(t.ndim-1))
    image = average(x, own[:,None])
    if name == "wards":
        zones,tissue = masses(y["zones"], 3, -1),masses(y["tissue"], 3, 255)
        return image, dict(zones=average(zones, rows(zones)), tissue=average(tissue, own[...,None]))
    if name == "signs": return image, average(masses(y, 2, None), rows(masses(y, 2, None)))
    if name == "winds": y = torch.stack([y.deg2rad().cos(), y.deg2rad().sin()], -1)
    return image, average(y, rows(y))


def check_mixing(name, folder):
    "What is trained on is what MixUp and CutMix make of it by hand: a map is mixed as its pixels are"
    learn,_,plain,mixed = first_step(name, folder)
    for i,(a,b) in enumerate(zip(plain, mixed)):
        plan = draw_plan(len(a["image"]), tuple(a["image"].shape[-2:]), learn.seed, 0, i, mixup=.4, cutmix=1., mode="pair")
        assert plan.has_box.any() and not plan.has_box.all(), "the case needs both"
        image,target = mixed_by_hand(name, a, plan)
        assert torch.allclose(image, b["image"], atol=1e-5)
        said = b["target"]
        if name == "wards": said = {k: masses(v, 3, None) for k,v in said.items()}
        pairs = [(target[k], said[k]) for k in target] if isinstance(target, dict) else [(target, said)]
        for t,s in pairs: assert torch.allclose(t, s, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", LABELLED)
def test_images_and_targets_are_mixed_alike(name, tmp_path): check_mixing(name, tmp_path)


def check_flips(name, folder):
    "A flipped image has the targets of the flipped scene"
    learn = make(name, folder/"files", loader_kw=dict(augment="basic"))
    dl,seen = learn.dls.train,0
    plain = dl.new(pipeline=learn.dls.valid.pipeline)
    idx = np.arange(16)
    a,b = plain.make_batch(idx, 0),dl.make_batch(idx, 0)
    for i in range(16):
        flipped = torch.allclose(a["image"][i].flip(-1), b["image"][i], atol=1e-6)
        assert flipped or torch.allclose(a["image"][i], b["image"][i], atol=1e-6)
        seen += flipped
        if name == "winds":
            y = a["target"][i]
            assert torch.allclose(b["target"][i], (180 - y) % 360 if flipped else y, equal_nan=True, atol=1e-3)
            continue
        zones,tissue = a["target"]["zones"][i],a["target"]["tissue"][i]
        assert torch.equal(b["target"]["zones"][i], zones.flip(0) if flipped else zones)
        assert torch.equal(b["target"]["tissue"][i], tissue.flip(-1) if flipped else tissue)
    assert 0 < seen < 16


@pytest.mark.parametrize("name", ["wards", "winds"])
def test_targets_move_with_their_images(name, tmp_path): check_flips(name, tmp_path)

# ---------------------------------------------------------------------------------------------- views of one sample

def check_twins(folder):
    "Two views have other draws and lie beside each other; a step is that of the loss of the whole batch by hand"
    spy = Spy(1000)
    learn = make("twins", folder, engine={}, cbs=[spy], optimizer="sgd", lr=.1, weight_decay=0., opt_kw=dict(momentum=0.), schedule="constant")
    before = copy.deepcopy(learn.model)
    with pytest.raises(Die): learn.fit(1, cbs=[DieAt(0, 0)])
    (batch,) = spy.seen
    assert batch["image"].shape == (32, 3, 8, 8)
    plain = learn.dls.train.new(pipeline=learn.dls.test.pipeline, views=1).make_batch(batch["index"], 0)["image"]
    shift = lambda x: (x.repeat_interleave(2, 0) - batch["image"])[...,2:-2,2:-2]
    assert not torch.equal(batch["image"][::2], batch["image"][1::2])
    assert shift(plain).abs().mean() < shift(plain.roll(1, 0)).abs().mean(), "the views are of the samples that the index names"
    contrast(before(batch["image"])).backward()
    for p,q in zip(before.parameters(), learn.model.parameters()): assert torch.allclose(p - .1*p.grad, q, atol=2e-6)


def test_two_views_make_the_step_of_the_whole_batch(tmp_path): check_twins(tmp_path)


def test_a_loss_of_the_whole_batch_is_not_accumulated(tmp_path):
    with pytest.raises(ValueError, match="depends on the whole batch here \\(Twins\\)"): make("twins", tmp_path, engine=dict(accumulate=2)).fit(1)


def test_a_pretext_names_its_views_and_methods():
    data = systems.twins()
    dls = image_loaders(data, bs=16, augment="seam_views", views=2)
    assert vit_learner(dls, "seam_twins", pretext="seam_twins").dls.valid.one_batch()["image"].shape == (16, 2, 3, 8, 8)
    with pytest.raises(ValueError, match="needs a model with project, which SeamNet has not"): vit_learner(dls, "seam_net", pretext="seam_twins")
    with pytest.raises(ValueError, match="give 3 views of an image and 2 are asked for"): vit_learner(image_loaders(data, bs=16, views=3), "seam_twins", pretext="seam_twins")
    with pytest.raises(ValueError, match="'seam_twins' has none"): vit_learner(dls, "seam_twins", pretext="seam_twins", class_weights=True)


def test_validation_sees_the_same_views_each_time(trained):
    learn = trained("twins").learn
    assert list(learn.validate()) == list(learn.validate())

# ---------------------------------------------------------------------------------------------- kills

def outcome(learn, folder):
    ema = next(cb for cb in learn.cbs if isinstance(cb, EMACallback))
    weights = dict(model=dict(learn.model.state_dict()), opt=learn.opt.opt.state_dict(), ema=dict(ema.module.state_dict()))
    return dict(weights, rows=learn.recorder.rows, steps=learn.recorder.steps,
                best=load_checkpoint(folder/"checkpoints"/"best_model.pth")["best_epoch"])


def journey(name, files, folder, kills, epochs=3):
    "A run that dies at each of `kills` and goes on in a new Learner"
    for at in [*kills, None]:
        learn = make(name, files)
        cbs = run_callbacks(folder, every_n_steps=1, tracker="none")
        if at is None: learn.fit(epochs, cbs=cbs, resume="auto")
        else:
            with pytest.raises(Die): learn.fit(epochs, cbs=[*cbs, DieAt(*at)], resume="auto")
            next(cb for cb in cbs if isinstance(cb, Checkpoints)).writer.join()
    return outcome(learn, folder)


def check_resume(name, folder):
    "Killed inside an epoch, inside a group of accumulated batches and after an epoch's last step: the same bits"
    kills = [(0, 2), (1, 1), (2, 3)] # batches are grouped by two: a group of which one batch is done, a step, and the end of an epoch
    whole = journey(name, folder/"files", folder/"whole", [])
    assert not differences(whole, journey(name, folder/"files", folder/"cut", kills), ["seconds"])


@pytest.mark.parametrize("name", SETS)
def test_a_killed_run_ends_with_the_same_bits(name, tmp_path): check_resume(name, tmp_path)

# ---------------------------------------------------------------------------------------------- views of an image

def tta_by_hand(name, model, x):
    "The mean of what is said of the image and of its mirror image, brought back"
    with torch.no_grad(): a,b = model(x),model(x.flip(-1))
    if name == "wards":
        zones = (a["zones"].softmax(-1) + b["zones"].softmax(-1)[:,[1, 0]])/2
        return dict(zones=zones, tissue=(a["tissue"].softmax(1) + b["tissue"].softmax(1).flip(-1))/2)
    if name == "ages": return (a + b)/2
    if name == "signs": return (a.sigmoid() + b.sigmoid())/2
    return F.normalize(F.normalize(a, dim=1) + F.normalize(b, dim=1)*torch.tensor([-1., 1.]), dim=1)


def check_tta(name, folder, learn=None):
    "Views are averaged as probabilities, zones, maps and directions brought back"
    learn = make(name, folder/"files") if learn is None else learn
    said,_ = predict_tta(learn, "test", "flip")
    _,_,x = predict_split(learn, "test", images=True)
    true = tta_by_hand(name, learn.model.eval(), x)
    pairs = [(said[k], true[k]) for k in true] if isinstance(true, dict) else [(said, true)]
    for s,t in pairs: assert torch.allclose(s, t, atol=2e-5)


@pytest.mark.parametrize("name", LABELLED)
def test_views_are_brought_back_and_averaged(best, name, tmp_path): check_tta(name, tmp_path, best(name).learn)


@pytest.mark.parametrize("name", LABELLED)
def test_a_system_is_drawn(best, name):
    learn = best(name).learn
    b = learn.dls.test.one_batch()
    with torch.no_grad(): preds = learn.model(b["image"])
    for _,task,p,y in learn.tasks.split(preds, b["target"]): assert draw_predictions(task, b["image"], p, y, 4).axes

# ---------------------------------------------------------------------------------------------- a fresh process

FRESH = """
import pickle, sys
import torch
torch.set_num_threads(1)
import seam_systems
from vitnb.learner.predict import predict
found = {k: (list(predict(run, items, use="trained")), list(predict(run, items, tta=tta, use="trained")) if tta else None) for k,(run,items,tta) in pickle.load(open(sys.argv[1], "rb")).items()}
pickle.dump(found, open(sys.argv[2], "wb"))
"""


@pytest.fixture(scope="module")
def fresh(trained, tmp_path_factory):
    "What a process that has only the run folders says of the test images"
    jobs,folder = {},tmp_path_factory.mktemp("fresh")
    for name in SETS:
        run,data = trained(name),trained(name).learn.dls.image_set
        items = data.split("test").items
        items = [str(data.root/o) for o in items] if name == "winds" else [np.asarray(o) for o in items]
        jobs[name] = str(run.folder),items,"flip" if name != "twins" else ""
    (folder/"jobs").write_bytes(pickle.dumps(jobs))
    done = subprocess.run([sys.executable, "-c", FRESH, str(folder/"jobs"), str(folder/"found")], env=environment(), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads((folder/"found").read_bytes())


def probabilities(rows, k=""): return torch.stack([torch.as_tensor(r[f"{k}/probabilities" if k else "probabilities"]) for r in rows])


@pytest.mark.parametrize("name", LABELLED)
def test_a_fresh_process_predicts_the_same(fresh, best, name):
    "From the run folder alone, with and without views"
    learn = best(name).learn
    for rows,(probs,_) in zip(fresh[name], [predict_split(learn, "test"), predict_tta(learn, "test", "flip")]):
        if name == "wards":
            for k in ("zones", "tissue"): assert torch.allclose(probabilities(rows, k), probs[k], atol=1e-5)
            assert rows[0]["zones/prediction"] == dict(zip(("left", "right"), probs["zones"][0].argmax(-1).tolist()))
        elif name == "ages": assert np.allclose([r["prediction"]["age"] for r in rows], probs[:,0], atol=1e-5)
        else: assert torch.allclose(probabilities(rows), probs, atol=1e-5)
    if name == "signs": assert fresh[name][0][0]["prediction"] == [k for k,p in zip(("rale", "wheeze", "rub"), predict_split(learn, "test")[0][0]) if p > .5]


def test_a_fresh_process_gives_features(fresh, best):
    learn = best("twins").learn
    rows,_ = fresh["twins"]
    with torch.no_grad(): z = torch.cat([learn.model(b["image"]) for b in learn.dls.test])
    assert torch.allclose(torch.stack([torch.as_tensor(r["features"]) for r in rows]), z, atol=1e-5)


@pytest.mark.parametrize("registry,key,name,says", [(models, "seam_net", "ages", "the run has the model 'seam_net'"),
    (systems.losses, "log_cosh", "ages", "the run has the loss 'log_cosh'"), (systems.tasks, "direction", "winds", "the run has the kind of task 'direction'"),
    (systems.readers, "seam_raw", "winds", "unknown reader 'seam_raw'"), (systems.pretexts, "seam_twins", "twins", "the run has the pretext task 'seam_twins'")])
def test_what_is_not_imported_is_named(trained, monkeypatch, registry, key, name, says):
    folder = trained(name).folder # while the names are there
    monkeypatch.delitem(registry, key)
    with pytest.raises(ValueError, match=says + ".*import the module that registers it"): load_run(folder)

# ---------------------------------------------------------------------------------------------- above chance

SCORES = dict(wards=dict(zones=["mae", "accuracy"], tissue=["iou", "accuracy"]), ages={"": ["mae", "r2"]}, signs={"": ["average_precision", "exact"]}, winds={"": ["degrees_off"]})


@pytest.mark.parametrize("name", LABELLED)
def test_a_system_is_better_than_chance_with_intervals_apart(best, name):
    "Chance: the same predictions, given to other samples"
    learn = best(name).learn
    found,y = predictions(learn, learn.dls.test)
    for task,scores in SCORES[name].items():
        p,t = (found[task], y[task]) if task else (found, y)
        kw = dict(raw=True, draws=500)
        own,chance = (task_report(learn.tasks[task], o, t, **kw)["scores"] for o in (p, p.roll(1, 0)))
        for k in scores:
            lower = own[k]["better"] == "min"
            assert own[k]["hi"] < chance[k]["lo"] if lower else own[k]["lo"] > chance[k]["hi"], (k, own[k], chance[k])


def test_twins_find_each_other_more_often_than_by_chance(best):
    learn = best("twins").learn
    preds,_ = predictions(learn, learn.dls.valid)
    hits,other = torch.cat([found(z) for z in preds]),torch.cat([found(z[torch.randperm(len(z))]) for z in preds])
    assert bootstrap_interval(hits.float())[1] > bootstrap_interval(other.float())[2]

# ---------------------------------------------------------------------------------------------- two ranks

@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "What two ranks find, all in one launch"
    out = tmp_path_factory.mktemp("ranks")
    own = environment()
    with pytest.MonkeyPatch.context() as m:
        for k in os.environ.keys() - own.keys(): m.delenv(k)
        for k,v in own.items(): m.setenv(k, v)
        with open(out/"log", "w") as log, Ranks([sys.executable, str(HERE/"seam_worker.py"), str(out)], 2, logs=dict.fromkeys(range(2), log)) as ranks: codes = ranks.wait()
    assert codes == [0, 0], (out/"log").read_text()[-4000:]
    return [torch.load(out/f"rank{r}.pth", weights_only=True) for r in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    "The same in one process"
    done,root = {},tmp_path_factory.mktemp("one")
    def get(name, epochs=2):
        if (name, epochs) not in done: done[name, epochs] = worker.train(name, root, epochs)
        return done[name, epochs]
    return get


def check_ranks(a, b):
    "Weights, average, losses and every column of the history, to rounding"
    for k in ("model", "ema"):
        for name,t in a[k].items(): assert torch.allclose(t, b[k][name], rtol=1e-4, atol=1e-5), (k, name)
    assert a["losses"] == pytest.approx(b["losses"], rel=1e-4)
    for x,y in zip(a["rows"], b["rows"], strict=True):
        assert x.keys() == y.keys()
        for k in x.keys() - {"seconds"}: assert x[k] == pytest.approx(y[k], rel=2e-4, abs=1e-5), k


@pytest.mark.parametrize("name", SETS)
def test_two_ranks_are_one(two, one, name):
    assert not differences(two[0][name]["model"], two[1][name]["model"])
    check_ranks(one(name), two[0][name])


def test_a_killed_run_of_two_ranks_goes_on(two):
    assert not differences(two[0]["wards"], two[0]["killed"], ["seconds"])

# ---------------------------------------------------------------------------------------------- mutants

def counted(self, target):
    "Unknown entries as the first level"
    return torch.where(target == self.unknown, 0, target).flatten() if not target.is_floating_point() else target.flatten(0, 1), None


def mixed_as_numbers(self, target, plan):
    own,other = plan.weights(target.shape[-2:], target.device),target.flip(0)
    number = torch.lerp(other.float(), target.float(), own).round().long()
    return torch.where((target == self.unknown) | (other == self.unknown), self.unknown, number)


def first_task_only(self, pred, batch):
    name,task,p,y = next(self.tasks.split(pred, batch["target"]))
    target,known = task.entries(y)
    return {f"{name}/{k}": v for k,v in self.loss_of(name).terms(task.rows(p, y), target, known).items()}


def reversed_(self, value, best, by=0.): return best is None or (value > best if self.better == "min" else value < best)


def clamped(task, pred, target): return task.decode(task.rows(pred, target)).reshape(len(target), -1), target.long().clamp(0, 2).reshape(len(target), -1)
def first_level(self, y): return y if y.is_floating_point() else F.one_hot(y.long().clamp(0, self.n-1), self.n).float()
def mean_logits(self, preds): return torch.stack(list(preds)).mean(0)
def all_alike(tasks, loss, weights, *rest): return make_objective(tasks, loss, None, *rest)
def nothing(self, *args): return None
def unchanged(self, y, *args): return y


MUTANTS = dict( # what is broken: where, its name, what takes its place, the check that must fail, on which system
    direction_reversed       = (Column, "improves", reversed_, check_best_epoch, "ages"),
    direction_of_a_pretext   = (Column, "improves", reversed_, check_best_epoch, "twins"),
    unknown_counted          = (Ordinal, "entries", counted, check_scores, "wards"),
    unknown_counted_in_steps = (Ordinal, "encode", first_level, check_mixing, "wards"),
    unknown_pixels_counted   = (ClassMap, "encode", first_level, check_mixing, "wards"),
    unknown_value_counted    = (Value, "known", nothing, check_step, "ages"),
    unknown_scored           = (vitnb.metrics.base, "answers", clamped, check_scores, "wards"),
    permutation_left_out     = (Ordinal, "move_back", unchanged, check_tta, "wards"),
    map_not_turned_back      = (ClassMap, "move_back", unchanged, check_tta, "wards"),
    zones_not_flipped        = (Ordinal, "move", unchanged, check_flips, "wards"),
    views_averaged_as_logits = (Ordinal, "average", mean_logits, check_tta, "wards"),
    map_mixed_as_numbers     = (ClassMap, "mix", mixed_as_numbers, check_mixing, "wards"),
    targets_not_mixed        = (Categorical, "mix", lambda self, y, plan: self.encode(y), check_mixing, "signs"),
    second_task_dropped      = (TaskObjective, "terms", first_task_only, check_step, "wards"),
    second_task_not_scored   = (TaskObjective, "terms", first_task_only, check_scores, "wards"),
    class_weights_ignored    = (vitnb.learner.core, "count_weights", lambda counts, never=(): torch.ones(len(counts)), check_step, "wards"),
    task_weights_ignored     = (vitnb.learner.core, "make_objective", all_alike, check_step, "wards"),
    batches_divided_alone    = (VitLearner, "whole_counts", nothing, check_step, "ages"),
    recorder_not_restored    = (StepRecorder, "load_state_dict", nothing, check_resume, "signs"),
    average_not_restored     = (EMACallback, "load_state_dict", nothing, check_resume, "ages"),
    views_alike              = (vitnb.data.work, "view_index", lambda idx, n, view, views: idx, lambda name, folder: check_twins(folder), "twins"))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_caught(mutant, tmp_path, monkeypatch):
    "Each check above fails where what it checks is broken; that it holds otherwise is the tests above"
    where,name,other,check,system = MUTANTS[mutant]
    monkeypatch.setattr(where, name, other)
    with pytest.raises(AssertionError): check(system, tmp_path)


def test_the_share_of_a_rank_that_is_dropped_is_seen(two, one):
    with pytest.raises(AssertionError): check_ranks(one("wards", 1), two[0]["dropped"])
