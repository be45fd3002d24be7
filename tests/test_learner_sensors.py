"A Learner of several sensors"
from test_callback_sensors import model_of, sensors

from vitnb.learner.sensors import sensor_learner
from vitnb.losses.reflectance import ReflectanceLoss
from vitnb.testing import differences


def test_two_runs_of_one_seed_are_the_same(sensors, tmp_path):
    def run(seed):
        learn = sensor_learner(model_of(sensors), sensors, ReflectanceLoss(), 5, 1e-3, seed=seed, noise=1., path=tmp_path)
        learn.progress.plot,learn.logger = False,lambda *a: None
        learn.fit(1)
        return learn.model.state_dict()
    first,second,other = run(3),run(3),run(4)
    assert not differences(first, second) and differences(first, other)
