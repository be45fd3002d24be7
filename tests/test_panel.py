"The live panel of contrastive training"
from contrastive_worker import make, outcome, quiet_fit

from vitnb.callback.panel import HealthLive
from vitnb.testing import differences


def test_the_panel_is_drawn_and_the_run_does_not_notice(tmp_path):
    plain,seen = quiet_fit(make(), 2),quiet_fit(make(cbs=[HealthLive(tmp_path, n=6, share=1.)]), 2)
    assert not differences(outcome(plain)["model"], outcome(seen)["model"])
    assert not differences(plain.recorder.rows, seen.recorder.rows, ["seconds"])
    assert (tmp_path/"health.png").read_bytes()[:4] == b"\x89PNG"
    figure = seen.pretext.draw(seen, 6)
    assert figure.axes[3].images[0].get_array().shape == (6, 6)
    assert seen.pretext.collapse_value in figure.axes[0].lines[-1].get_ydata()
