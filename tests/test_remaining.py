"How long the rest of a fit takes: by a clock of our own, against the seconds that the fit really took from there"
import json

import pytest

from vitnb.callback.base import TrainCallback
from vitnb.callback.checkpoint import Checkpoints
from vitnb.callback.remaining import Remaining, left_of, news_of, seconds_of, standing
from vitnb.callback.stop import EarlyStop
from vitnb.learner.core import run_callbacks
from vitnb.testing import tiny_learner


class Works(TrainCallback):
    "A batch of training takes `train` seconds (the first one `first` more), one of validation `valid`, the end of an epoch `rest`; notes each estimate"
    order = Remaining.order - .5 # the time has passed when the estimate is made
    def __init__(self, clock, train=2., valid=1., rest=0., first=0.): self.clock,self.costs,self.first,self.said = clock,(train, valid),first,[]; self.rest = rest
    def after_batch(self):
        self.clock[0] += self.costs[not self.training] + self.first
        self.first = 0.
    def before_train(self):
        if self.said: self.clock[0] += self.rest

class Notes(TrainCallback):
    "What is estimated, and when"
    order = Remaining.order + .5
    def __init__(self, clock): self.clock,self.seen = clock,[]
    def note(self, where): self.seen.append((where, self.epoch, self.clock[0], seconds_of(self.learn), left_of(self.learn)))
    def after_batch(self): self.note("train" if self.training else "valid")
    def after_epoch(self): self.note("epoch")
    def errors(self): return [(where, epoch, said - (self.seen[-1][2] - at)) for where,epoch,at,said,_ in self.seen if said is not None]


def fit(clock, epochs, notes=None, learn=None, cbs=(), **costs):
    "A fit by the clock; the batches of training an epoch, of validation, and what was noted"
    learn = learn or tiny_learner()
    notes = notes or Notes(clock)
    with learn.no_logging(): learn.fit(epochs, cbs=[Works(clock, **costs), notes, *cbs])
    return len(learn.dls.train), len(learn.dls.valid), notes


def test_once_an_epoch_has_been_seen_the_estimate_is_exact(clock):
    _,_,notes = fit(clock, 4)
    assert all(error == pytest.approx(0) for where,epoch,error in notes.errors() if epoch)
    assert notes.seen[-1][3] is None and notes.seen[-1][4] == "", "nothing is left behind the last epoch"


def test_in_the_first_epoch_a_pass_forward_counts_a_third_of_a_step(clock):
    train,valid,notes = fit(clock, 4)
    for where,_,error in [e for e in notes.errors() if e[1] == 0 and e[0] == "train"]:
        assert error == pytest.approx(4*valid*(2/3 - 1)) # the truth is half a step
    first = notes.seen[0]
    assert first[3] == pytest.approx(2*(4*train - 1) + 4*valid*2/3), "said after the very first batch"


def test_a_slow_first_batch_is_not_taken_for_the_pace(clock):
    _,_,notes = fit(clock, 3, first=100.)
    second = notes.seen[1]
    assert abs(notes.errors()[1][2]) < 10 and second[3] < 200


@pytest.mark.parametrize("every", [2, 3])
def test_epochs_that_do_not_validate_are_counted_without(clock, every):
    learn = tiny_learner(valid_every=every)
    _,_,notes = fit(clock, 7, learn=learn, valid=5.)
    seen = [error for _,epoch,error in notes.errors() if epoch >= every]
    assert seen and all(error == pytest.approx(0) for error in seen)


def test_what_goes_on_between_epochs_is_counted(clock):
    class Slow(TrainCallback):
        order = 90 # behind all files
        def after_epoch(self): clock[0] += 30
    _,_,notes = fit(clock, 5, cbs=[Slow()])
    later = [error for where,epoch,error in notes.errors() if 1 <= epoch < 4 and where != "epoch"]
    assert later and all(abs(error) <= 30 for error in later), "but for the thirty seconds behind the very last row"


def test_a_resumed_fit_is_estimated_afresh_and_soon(clock, tmp_path):
    "The first half ran on a machine ten times as slow"
    learn = tiny_learner()
    class Stop(TrainCallback):
        order = 95
        def after_batch(self):
            if self.training and self.epoch == 2 and self.iter == 1: raise KeyboardInterrupt
    with learn.no_logging(), pytest.raises(KeyboardInterrupt):
        learn.fit(6, cbs=[Checkpoints(tmp_path, every_n_steps=1), Works(clock, train=20., valid=10.), Stop()])
    again,notes = tiny_learner(),Notes(clock)
    with again.no_logging(): again.fit(6, cbs=[Checkpoints(tmp_path), Works(clock), notes], resume="auto")
    at_epoch,left = notes.seen[0][1],notes.seen[0][3]
    train,valid = len(again.dls.train),len(again.dls.valid)
    assert at_epoch == 2 and left <= 2*4*train + 4*valid
    assert all(error == pytest.approx(0) for _,epoch,error in notes.errors() if epoch >= 3)


def test_early_stopping_makes_it_a_bound(clock):
    _,_,notes = fit(clock, 3, cbs=[EarlyStop(patience=5)])
    said = [text for *_,text in notes.seen if text]
    assert said and all(text.startswith("at most ") and text.endswith(" left") for text in said)
    _,_,notes = fit(clock, 3)
    assert not any("at most" in text for *_,text in notes.seen)


def test_one_estimate_reaches_the_log_the_events_and_whoever_reads_the_terminal(clock, tmp_path, capsys, caplog):
    learn = tiny_learner()
    learn.fit(3, cbs=[*run_callbacks(tmp_path), Works(clock), notes := Notes(clock)])
    said = [text for where,epoch,*_,text in notes.seen if where == "epoch" and text]
    assert len(said) == 2
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    logged = [line for line in (tmp_path/"run.log").read_text().splitlines() if " epoch " in line and "train_loss" in line]
    for lines in (printed, logged):
        lines = [line for line in lines if "train_loss" in line]
        assert [line.rpartition(", ")[2] for line in lines[:2]] == said and not lines[2].endswith("left")
    events = [json.loads(line) for line in (tmp_path/"events.jsonl").read_text().splitlines()]
    assert [e["text"] for e in events if e["event"] == "left"][-1] == said[-1]
    assert all(e["seconds"] > 0 for e in events if e["event"] == "left")


def test_a_long_epoch_says_something_now_and_then_and_a_short_one_nothing(clock, tmp_path, capsys):
    class News(TrainCallback):
        order = Remaining.order + .5
        heard = []
        def after_batch(self): self.heard += [(clock[0], news_of(self.learn))]*bool(news_of(self.learn))
    def lines(train):
        News.heard = []
        learn = tiny_learner()
        learn.fit(2, cbs=[*run_callbacks(tmp_path/str(train)), Works(clock, train=train, valid=0.), News()])
        return News.heard, [line for line in capsys.readouterr().out.splitlines() if "training: batch" in line], learn
    heard,printed,learn = lines(train=1000.)
    assert len(printed) >= 3 and [text for _,text in heard] == printed, "a batch of a quarter of an hour is said each time"
    assert printed[0].startswith(f"epoch 1/2, training: batch 1/{len(learn.dls.train)}, ") and printed[0].endswith(" left")
    assert sum("training: batch" in line for line in (tmp_path/"1000.0"/"run.log").read_text().splitlines()) == len(printed)
    _,printed,_ = lines(train=.1)
    assert printed == []


def test_the_line_counts_epochs_as_the_history_does(clock):
    learn = tiny_learner()
    fit(clock, 2, learn=learn)
    said = []
    class Says(TrainCallback):
        order = Remaining.order + .5
        def after_batch(self): said.append(standing(self.learn))
    with learn.no_logging(): learn.fit(3, cbs=[Says()])
    assert said[0].startswith("epoch 3/5, training: batch 1/") and said[-1].startswith("epoch 5/5, validating: ")


def test_the_clock_enters_no_checkpoint():
    assert Remaining().state_dict() == {}
