"The live panel of contrastive training"
from contrastive_worker import make, outcome, quiet_fit

from vitnb.callback.live import LiveFigure
from vitnb.callback.panel import HealthLive
from vitnb.callback.probe import Probe
from vitnb.testing import differences


def test_the_panel_is_drawn_and_the_run_does_not_notice(tmp_path):
    plain,seen = quiet_fit(make(), 2),quiet_fit(make(cbs=[HealthLive(tmp_path, n=6, share=1.)]), 2)
    assert not differences(outcome(plain)["model"], outcome(seen)["model"])
    assert not differences(plain.recorder.rows, seen.recorder.rows, ["seconds"])
    assert (tmp_path/"health.png").read_bytes()[:4] == b"\x89PNG"
    figure = seen.pretext.draw(seen, 6)
    assert figure.axes[3].images[0].get_array().shape == (6, 6)
    assert seen.pretext.collapse_value in figure.axes[0].lines[-1].get_ydata()


def test_each_epoch_has_its_frame_as_a_file_and_trackers_get_some(tmp_path, monkeypatch):
    sent,files = [],[]
    monkeypatch.setattr("vitnb.callback.panel.track_figure", lambda learn, name, figure: sent.append(learn.epoch))
    real = HealthLive.after_epoch
    monkeypatch.setattr(HealthLive, "after_epoch", lambda self: real(self) or files.append((tmp_path/"health.png").read_bytes()))
    quiet_fit(make(cbs=[HealthLive(tmp_path, n=6, share=1., keep=2)]), 4)
    assert len(set(files)) == 4 and sent == [1, 3]


def test_the_panel_and_the_probe_take_less_than_two_percent_of_a_long_run(monkeypatch):
    "At their defaults, by a clock of our own: 300 epochs of a minute, a frame takes 0.4 s; a probe reads 2 % of the images without a backward pass"
    now = [0.]
    monkeypatch.setattr("vitnb.callback.live.time.time", lambda: now[0])
    monkeypatch.setattr("vitnb.callback.live.png", lambda figure: now.__setitem__(0, now[0] + .4) or b"")
    panel = HealthLive()
    live = LiveFigure(lambda: None, share=panel.share)
    frames = 0
    for _ in range(300):
        now[0] += 60
        frames += live.update()
    assert frames == 300, "each epoch is seen"
    assert live.spent/now[0] + Probe().share/2 <= .02, "an image that is read costs less than half of two views that are trained"
