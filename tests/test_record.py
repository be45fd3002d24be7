"The recorder's sums: read many steps at a time, they are those of each step"
import json
from types import SimpleNamespace

import pytest
import torch
from fastai.callback.core import Callback
from tracker_stores import make, read_tensorboard
from tiny_tasks import fit, task_learner

from vitnb.callback.checkpoint import Checkpoints, snapshot
from vitnb.callback.history import EventLog, History
from vitnb.callback.steps import Curve
from vitnb.callback.record import StepRecorder
from vitnb.callback.tensorboard import TensorBoard
from vitnb.losses.objective import make_objective
from vitnb.task import ClassMap, OneClass, Ordinal, Tasks, Value
from vitnb.testing import tiny_learner

KINDS = dict(class_=OneClass("abc"), soft=OneClass("abc"), unknown=OneClass("abc", unknown=-1), map=ClassMap("abc", unknown=-1), zones=Ordinal("lr", levels=3, unknown=-1), value=Value())

def answers(seed, kind):
    "Predictions and targets of one batch"
    g = torch.Generator().manual_seed(seed)
    n = (6, 6, 4)[seed%3]
    draw = lambda *shape: torch.randint(-1 if KINDS[kind].unknown else 0, 3, (n, *shape), generator=g)
    if kind == "value": return torch.rand(n, 1, generator=g), torch.rand(n, generator=g)
    if kind == "map": return torch.rand(n, 3, 2, 2, generator=g), draw(2, 2)
    if kind == "zones": return torch.rand(n, 2, 3, generator=g), draw(2)
    return torch.rand(n, 3, generator=g), torch.rand(n, 3, generator=g) if kind == "soft" else draw()

def slow_score(kind, pred, y):
    "Right answers and answers, or errors and values, one by one"
    if kind == "value": return (pred[:,0] - y).abs().tolist()
    truth = y.argmax(-1) if kind == "soft" else y
    guess = pred.argmax(1 if kind == "map" else -1)
    return [float(a == b) for a,b in zip(guess.flatten().tolist(), truth.flatten().tolist()) if b != -1]

class _Fake(SimpleNamespace):
    "What a recorder asks of a Learner in a training batch"
    training,phase,opt_steps = True,"fit",1

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 2, 50])
def test_scores_counted_together_are_those_counted_one_by_one(kind, every):
    "Read every few steps, and interrupted by a checkpoint in between"
    objective = make_objective(Tasks.of(KINDS[kind]))
    def recorder():
        r = StepRecorder(every_n_steps=every)
        r.learn = _Fake(objective=objective, opt=SimpleNamespace(hypers=[dict(lr=.1)]), metrics=[])
        r.lrs,r.row,r._terms = [],{},{}
        return r
    mine,slow = recorder(),[]
    for i in range(9):
        pred,y = answers(i, kind)
        pred.requires_grad_()
        slow += slow_score(kind, pred, y)
        scores = objective.scores(pred, dict(target=y))
        assert not any(isinstance(v, torch.Tensor) and v.requires_grad for o in scores.values() for v in o)
        mine.learn.report = SimpleNamespace(terms={}, scores=scores, n=len(y))
        mine.after_batch()
        assert len(mine._wait) < every
        if i == 4:
            state,mine = snapshot(mine.state_dict()),recorder()
            mine.load_state_dict(state)
    mine.after_train()
    (name,) = (c.name for c in objective.score_columns())
    assert mine.row[f"train_{name}"] == pytest.approx(sum(slow)/len(slow), rel=1e-6)

def test_the_epoch_is_the_mean_of_its_steps():
    learn,pairs = make(),[]
    class Spy(Callback):
        order = 45
        def after_batch(self):
            if self.training: pairs.append((self.learn.loss.item(), (self.learn.pred.argmax(-1) == self.learn.yb[0]).float().mean().item()))
    with learn.no_logging(): learn.fit(2, cbs=Spy())
    for i,row in enumerate(learn.recorder.rows):
        loss,accuracy = (sum(o)/4 for o in zip(*pairs[4*i:4*i+4]))
        assert row["train_loss"] == pytest.approx(loss, rel=1e-6) and row["train_accuracy"] == pytest.approx(accuracy, rel=1e-6)
    smooth,slow = 0.,[]
    for k,(v,_) in enumerate(pairs, 1):
        smooth = .98*smooth + .02*v
        slow.append(smooth/(1-.98**k)) # as fastai has it; it begins anew with each epoch
        if k == 4: break
    assert torch.stack([*learn.recorder.losses])[:4].tolist() == pytest.approx(slow, rel=1e-5)

def test_a_step_in_which_nothing_is_known_has_no_loss(tmp_path):
    "It is in no record, the smoothed loss goes on, and a state can be taken"
    torch.manual_seed(0)
    y = torch.arange(24)%3
    y[8:16] = -1
    learn = task_learner(torch.randn(24, 6), y, OneClass("abc", unknown=-1), torch.nn.Linear(6, 3), bs=8)
    fit(learn, 2, cbs=[EventLog(tmp_path/"events.jsonl"), History(tmp_path), TensorBoard(tmp_path/"tensorboard"), Checkpoints(tmp_path/"checkpoints", "valid_loss")])
    assert [o["step"] for o in learn.recorder.steps] == [1, 3, 4, 6] and learn.opt_steps == len(learn.recorder.losses) == 6
    assert torch.stack([*learn.recorder.losses]).isfinite().all() and learn.recorder.losses[0] == learn.recorder.losses[1]
    assert [n for n,_ in read_tensorboard(tmp_path, "")["train/loss"]] == [1, 3, 4, 6]
    assert all(r["train_loss"] > 0 for r in json.loads((tmp_path/"history.json").read_text()))


def test_a_long_history_costs_a_checkpoint_few_tensors():
    learn = tiny_learner()
    learn.fit(1)
    learn.recorder.losses = Curve([1.]*5000, "f")
    found = []
    def count(o):
        if isinstance(o, torch.Tensor): found.append(o)
        elif isinstance(o, dict): [count(v) for v in o.values()]
        elif isinstance(o, (list, tuple)): [count(v) for v in o]
    count(learn.recorder.state_dict())
    assert len(found) < 20
