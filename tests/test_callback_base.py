"Callbacks know the phase and remember nothing unless they say so"
import pytest
from fastai.callback.core import Callback
from loop_helpers import spy, tiny

from vitnb.callback.base import PHASES

ACTIONS = dict(validate=lambda learn: learn.validate(), predict=lambda learn: learn.get_preds(), lr_find=lambda learn: learn.lr_find(num_it=4, show_plot=False), fit=lambda learn: learn.fit(1))

@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("mine", [None, ("lr_find",), ("fit", "lr_find"), PHASES], ids=str)
def test_a_callback_is_called_in_its_phases_only(phase, mine, tmp_path):
    cb = spy(**(dict(phases=mine) if mine else {}))
    learn = tiny(cb, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): ACTIONS[phase](learn)
    assert bool(cb.seen) == (phase in (mine or ("fit",))) and {p for _,p in cb.seen} <= {phase}
    assert learn.phase == "fit" # what a Learner is for when it does nothing


def test_fastais_callbacks_are_called_in_every_phase(tmp_path):
    class Foreign(Callback):
        def before_fit(self): seen.append(self.learn.phase)
    seen,learn = [],tiny(Foreign(), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        for act in ACTIONS.values(): act(learn)
    assert seen == ["validate", "predict", "lr_find", "fit"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_phase_ends_with_an_error(error):
    class Break(Callback):
        def before_batch(self): raise error("stop")
    learn = tiny()
    for act in (ACTIONS["validate"], ACTIONS["predict"], ACTIONS["fit"]):
        with pytest.raises(error), learn.no_bar(), learn.no_logging(), learn.added_cbs([Break()]): act(learn)
        assert learn.phase == "fit"
