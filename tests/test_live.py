"Live views: drawn from fixed samples, bounded in time and bytes, and without a trace in training"
import json
from itertools import pairwise

import pytest
import torch
from test_masked import state
from tiny_spectral import masked_learner as tiny

from vitnb.callback.base import TrainCallback
from vitnb.callback.live import LiveFigure, LiveView, MaskedLive, is_worth_keeping
from vitnb.figures import plot_curves
from vitnb.testing import differences, tiny_learner


def test_live_pictures_change_nothing_and_are_bounded(tmp_path):
    plain,shown = tiny(),tiny()
    plain.fit(3)
    shown.fit(3, cbs=[MaskedLive(tmp_path, n=2, keep=2, share=1.)])
    assert not differences(state(plain), state(shown))
    frames = sorted(p.name for p in tmp_path.glob("*.png"))
    assert frames == ["masked.png", "masked_epoch_0002.png", "masked_epoch_0003.png"]
    assert all(p.stat().st_size < 250_000 for p in tmp_path.glob("*.png"))


def test_a_stored_picture_is_an_event_that_whoever_watches_sees(tmp_path):
    "From the callback that draws to what `vitnb watch` shows"
    from vitnb.callback.history import EventLog
    from vitnb.experiment.watch import RunView, runs_html
    tiny().fit(2, cbs=[EventLog(tmp_path/"events.jsonl"), MaskedLive(tmp_path/"figures", n=1, share=1.)])
    events = [json.loads(line) for line in (tmp_path/"events.jsonl").read_text().splitlines()]
    assert [(event["path"], event["epoch"]) for event in events if event["event"] == "picture"] == [(f"figures/masked_epoch_000{n}.png", n) for n in (1, 2)]
    view = RunView(tmp_path).read()
    assert view.picture_file() == tmp_path/"figures/masked_epoch_0002.png" and "data:image/png" in runs_html([view])

def test_live_pictures_take_their_share_of_the_time(tmp_path):
    "Four epochs within five seconds"
    learn = tiny()
    live = MaskedLive(tmp_path, share=0.)
    learn.fit(4, cbs=[live])
    assert len(list(tmp_path.glob("masked_epoch_*.png"))) <= 2 # the first, and the last, which is always drawn


@pytest.mark.parametrize("epoch", [.05, .8, 4., 5., 7., 60.])
@pytest.mark.parametrize("cost", [.1, .4, 2.])
def test_a_frame_is_at_most_five_seconds_old_or_an_epoch_where_that_is_longer(clock, monkeypatch, epoch, cost):
    monkeypatch.setattr("vitnb.callback.live.png", lambda figure: clock.__setitem__(0, clock[0] + cost) or b"")
    live = LiveFigure(lambda: None, share=0.)
    drawn,start = [],clock[0]
    while clock[0] < start + max(60, 5*epoch):
        clock[0] += epoch
        began = clock[0]
        if live.update(): drawn.append(began)
    assert all(b - a <= max(5, epoch + cost) + epoch for a,b in pairwise(drawn)) and len(drawn) >= 4
    assert all(b - a >= 5 for a,b in pairwise(drawn)), "the share is spent: not sooner"


def test_drawings_that_take_long_leave_half_of_the_time_to_training(clock, monkeypatch):
    monkeypatch.setattr("vitnb.callback.live.png", lambda figure: clock.__setitem__(0, clock[0] + 20) or b"")
    live,start = LiveFigure(lambda: None),clock[0]
    for _ in range(2000):
        clock[0] += .1
        live.update()
    assert .4 < live.spent/(clock[0] - start) < .55


def test_a_pre_training_is_seen_to_move(clock, tmp_path, monkeypatch):
    "A real fit of sixteen epochs of three seconds, in which a frame takes one: each of both figures at least every five seconds"
    from vitnb.figures import new_figure
    drawn = []
    def draws(name):
        def draw(*args):
            clock[0] += 1
            drawn.append((name, clock[0]))
            return new_figure(width=1, height=1)[0]
        monkeypatch.setattr(f"vitnb.callback.live.{name}", draw)
    for name in ("plot_curves", "plot_masked"): draws(name)
    class Works(TrainCallback):
        order = LiveView.order - 1
        def after_epoch(self): clock[0] += 3
    learn = tiny()
    learn.progress.file,learn.progress.plot = tmp_path/"curves.png",True
    learn.fit(16, cbs=[Works(), MaskedLive(tmp_path, keep=4)])
    for name in ("plot_curves", "plot_masked"):
        times = [time for which,time in drawn if which == name]
        assert len(times) >= 8 and max(b - a for a,b in pairwise(times)) <= 5 + 3 + 2, (name, len(times))
    kept = sorted(int(path.stem[-4:]) for path in tmp_path.glob("masked_epoch_*.png"))
    assert kept[-1] == 16 and len(kept) <= 4 and kept[0] >= 4


def test_the_file_of_the_curves_is_as_new_as_the_frame(tmp_path):
    live = LiveFigure(lambda: plot_curves([dict(epoch=live.frames, train_loss=1.)]), tmp_path/"curves.png", share=1.)
    seen = []
    for _ in range(3): seen += [live.update(), live.path.read_bytes()]
    assert len(set(seen)) == 4 and live.frames == 3


@pytest.mark.parametrize("n,keep", [(1, 20), (3, 2), (40, 20), (41, 20), (7, 1), (300, 20)])
def test_no_more_frames_are_kept_than_asked_for(n, keep):
    for drawn in (range(1, n + 1), range(1, n + 1, 3), range(2, n + 1, 2)):
        kept = [0]
        for done in sorted({*drawn, n}):
            if is_worth_keeping(done, kept[-1], n, keep): kept.append(done)
        assert len(kept) - 1 <= keep and kept[-1] == n

def test_live_pictures_show_the_same_cubes_and_masks_each_epoch(tmp_path, monkeypatch):
    import vitnb.callback.live as module
    views,real = [],module.masked_view
    monkeypatch.setattr(module, "masked_view", lambda *a, **kw: views.append(real(*a, **kw)) or views[-1])
    tiny().fit(2, cbs=[MaskedLive(tmp_path, share=1.)])
    assert len(views) == 2
    for k in ("true", "masked", "spectra"): assert torch.equal(views[0][k], views[1][k])
    assert views[0]["points"] == views[1]["points"] and not torch.equal(views[0]["reconstruction"], views[1]["reconstruction"])

def test_frames_reach_the_tracker(tmp_path):
    from vitnb.callback.tensorboard import TensorBoard
    class Spied(TensorBoard):
        taken = []
        def put_figure(self, name, fig, step): self.taken.append((name, step))
    learn = tiny()
    learn.fit(2, cbs=[Spied(tmp_path/"tb", tmp_path), MaskedLive(share=1.)])
    assert [n for n,_ in Spied.taken] == ["masked"]*2 and Spied.taken[-1][1] == learn.opt_steps


def test_what_the_training_says_of_itself_is_no_validation_metric():
    "The norm of the gradient would flatten the accuracy beside it"
    learn = tiny_learner(clip=1.)
    learn.fit(1)
    assert "grad_norm" in learn.recorder.rows[0]
    drawn = {text.get_text() for ax in learn.progress.curves().axes if ax.get_legend() for text in ax.get_legend().get_texts()}
    assert any("accuracy" in text for text in drawn) and not any("grad" in text for text in drawn), drawn
