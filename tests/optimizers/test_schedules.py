"""Schedules against the formulas evaluated in plain Python."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_git.errors import InputError
from keras_git.optimizers import SGD, ConstantThenLinear, StepDecay, WarmUpStep


def _rates(schedule, steps):
    return np.array([float(keras.ops.convert_to_numpy(schedule(step))) for step in steps])


def test_warm_up_step_of_the_paper():
    schedule = WarmUpStep(0.1, 3)
    expected = {0: 0.02, 1: 0.04, 4: 0.1, 5: 0.1, 159: 0.1, 160: 1e-3, 179: 1e-3, 180: 1e-5}
    for epoch, rate in expected.items():
        np.testing.assert_allclose(_rates(schedule, range(3 * epoch, 3 * epoch + 3)), rate, 1e-6)


@given(st.integers(1, 50), st.integers(0, 6), st.integers(0, 2000))
def test_warm_up_step_is_constant_within_an_epoch(steps_per_epoch, warmup, step):
    schedule = WarmUpStep(0.5, steps_per_epoch, warmup, (7, 9), (0.1, 0.01))
    epoch = step // steps_per_epoch
    expected = 0.5 * (0.01 if epoch >= 9 else 0.1 if epoch >= 7 else 1.0)
    if epoch < warmup:
        expected = 0.5 * (epoch + 1) / warmup
    np.testing.assert_allclose(_rates(schedule, [step]), expected, rtol=1e-6)


def test_constant_then_linear():
    rates = _rates(ConstantThenLinear(2.0, 8), range(10))
    np.testing.assert_allclose(rates, [2, 2, 2, 2, 2, 1.5, 1.0, 0.5, 0.5, 0.5])
    assert _rates(ConstantThenLinear(2.0, 8, 1.0), [7]) == 2.0
    np.testing.assert_allclose(
        _rates(ConstantThenLinear(1.0, 4, 0.0), range(4)), [1, 0.75, 0.5, 0.25]
    )


def test_step_decay():
    rates = _rates(StepDecay(1e-4), [0, 99_999, 100_000, 299_999, 300_000])
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 5e-5, 2.5e-5, 1.25e-5], rtol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [WarmUpStep(0.3, 7, 2, (3,), (0.5,)), ConstantThenLinear(0.1, 20), StepDecay(0.1, 5, 0.3)],
    ids=lambda schedule: type(schedule).__name__,
)
def test_serialization_and_use_in_an_optimizer(schedule):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    np.testing.assert_array_equal(_rates(again, range(30)), _rates(schedule, range(30)))
    optimizer = SGD(again, momentum=0.0)
    variable = keras.Variable(np.zeros(1, "float32"))
    for _ in range(8):
        optimizer.apply([keras.ops.ones((1,))], [variable])
    total = -_rates(schedule, range(8)).sum()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), [total], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: WarmUpStep(-0.1, 3), "base"),
        (lambda: WarmUpStep(0.1, 0), "steps_per_epoch"),
        (lambda: WarmUpStep(0.1, 3, -1), "warmup_epochs"),
        (lambda: WarmUpStep(0.1, 3, 5, (10, 20), (0.1,)), "factors"),
        (lambda: WarmUpStep(0.1, 3, 5, (20, 10), (0.1, 0.2)), "increase"),
        (lambda: ConstantThenLinear(0.1, 0), "total_steps"),
        (lambda: ConstantThenLinear(0.1, 10, 1.5), "constant_fraction"),
        (lambda: StepDecay(0.1, 0), "step_size"),
        (lambda: StepDecay(0.1, 1, -1.0), "factor"),
    ],
)
def test_bad_arguments(make, word):
    with pytest.raises(InputError, match=word):
        make()
