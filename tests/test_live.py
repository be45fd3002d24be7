"Live views: drawn from fixed samples, bounded in time and bytes, and without a trace in training"
import torch
from test_masked import state
from tiny_spectral import masked_learner as tiny

from vitnb.callback.live import MaskedLive
from vitnb.testing import differences, tiny_learner


def test_live_pictures_change_nothing_and_are_bounded(tmp_path):
    plain,shown = tiny(),tiny()
    plain.fit(3)
    shown.fit(3, cbs=[MaskedLive(tmp_path, n=2, keep=2, share=1.)])
    assert not differences(state(plain), state(shown))
    frames = sorted(p.name for p in tmp_path.glob("*.png"))
    assert frames == ["masked.png", "masked_epoch_0002.png", "masked_epoch_0003.png"]
    assert all(p.stat().st_size < 250_000 for p in tmp_path.glob("*.png"))

def test_live_pictures_take_their_share_of_the_time(tmp_path):
    learn = tiny()
    live = MaskedLive(tmp_path, share=0.)
    learn.fit(4, cbs=[live])
    assert len(list(tmp_path.glob("masked_epoch_*.png"))) <= 2 # the first, and the last, which is always drawn

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
