"A small run and the scalars that it has written"
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitnb.learner.core import run_callbacks
from vitnb.testing import tiny_learner


def read(folder):
    acc = EventAccumulator(str(folder/"tensorboard"), size_guidance=dict(scalars=0)).Reload()
    return {k:[(e.step, e.value) for e in acc.Scalars(k)] for k in acc.Tags()["scalars"]}


def fit(folder, epochs=2, **kw):
    learn = tiny_learner(clip=1.)
    learn.fit(epochs, cbs=run_callbacks(folder, tracker="tensorboard", **kw))
    return learn, read(folder)
