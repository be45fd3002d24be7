"Intervals over trainings and samples together, against the words of the paper and against what they promise"
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.metrics.classify import bootstrap_interval
from vitnb.metrics.crossed import crossed_interval


def slow(values, trainings, samples, n, seed):
    "Owen's section 4 in loops: draw trainings, draw samples, and let each answer count as often as both came up"
    generator = np.random.default_rng(seed)
    names = [sorted(set(trainings)), sorted(set(samples))]
    drawn = [generator.multinomial(len(o), np.full(len(o), 1/len(o)), size=n) for o in names]
    means = []
    for of_trainings, of_samples in zip(*drawn):
        total, number = 0., 0.
        for value, training, sample in zip(values, trainings, samples):
            weight = of_trainings[names[0].index(training)]*of_samples[names[1].index(sample)]
            total += weight*value
            number += weight
        if number: means.append(total/number)
    return float(np.mean(values)), *np.quantile(means, [.025, .975])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.floats(-1, 1)), min_size=1, max_size=30), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_it_is_what_the_loops_say(rows, seed):
    "Also where a training has no answer on a sample, or several"
    trainings, samples, values = zip(*rows)
    want = slow(values, trainings, samples, 40, seed)
    np.testing.assert_allclose(crossed_interval(values, trainings, samples, n=40, seed=seed), want, atol=1e-9)


def test_the_order_of_answers_and_what_things_are_called_change_nothing():
    generator = np.random.default_rng(0)
    training, sample = (o.ravel() for o in np.indices((4, 30)))
    values = generator.random(120)
    order = generator.permutation(120)
    named = np.array(["a", "b", "c", "d"])[training]
    one = crossed_interval(values, training, sample)
    np.testing.assert_allclose(crossed_interval(values[order], named[order], sample[order]), one, atol=1e-12)


def test_a_single_training_leaves_the_bootstrap_over_samples():
    hits = np.random.default_rng(0).random(500) < .7
    crossed = crossed_interval(hits, np.zeros(500), np.arange(500), n=20_000)
    np.testing.assert_allclose(crossed, bootstrap_interval(hits, n=20_000), atol=.002)


def test_copies_with_one_name_are_one_sample():
    "Each image ten times: the interval is as wide as without copies, not narrower by the root of ten"
    hits = np.random.default_rng(0).random(50) < .6
    plain = crossed_interval(hits, np.zeros(50), np.arange(50))
    copied = crossed_interval(np.repeat(hits, 10), np.zeros(500), np.repeat(np.arange(50), 10))
    np.testing.assert_allclose(copied, plain, atol=1e-9)


def test_it_covers_what_it_says():
    "Luck of trainings and of samples: of 95 % intervals at least 90 % hold the truth, where those over all answers alike do not"
    generator = np.random.default_rng(0)
    training, sample = (o.ravel() for o in np.indices((8, 40)))
    held = dict(crossed=0, alike=0)
    for _ in range(100):
        values = (generator.normal(0, 1, 8)[:,None] + generator.normal(0, 1, 40) + generator.normal(0, 1, (8, 40))).ravel()
        for name, (_, low, high) in dict(crossed=crossed_interval(values, training, sample, n=400), alike=bootstrap_interval(values, n=400)).items():
            held[name] += low <= 0 <= high
    assert held["crossed"] >= 90 and held["alike"] < 60, held


@pytest.mark.parametrize("wrong,says", [
    (dict(values=[1, 0], trainings=[0], samples=[0, 1]), "2 values of 1 trainings and 2 samples"),
    (dict(values=[], trainings=[], samples=[]), "one answer at least"),
    (dict(values=[1], trainings=[0], samples=[0], level=1.), "level=1.0"),
    (dict(values=[1], trainings=[0], samples=[0], n=0), "n=0")])
def test_what_cannot_be_is_an_error(wrong, says):
    with pytest.raises(ValueError, match=says): crossed_interval(**wrong)
