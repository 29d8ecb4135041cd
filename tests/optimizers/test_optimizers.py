"""The update rules against a second implementation in numpy, and against closed forms."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_git.errors import InputError
from keras_git.optimizers import SGD, Adam

RNG = np.random.default_rng(3)


def _numpy_sgd(weight, gradients, rates, momentum, l2):
    velocity = np.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        velocity = momentum * velocity + gradient + l2 * weight
        weight = weight - rate * velocity
    return weight


def _numpy_adam(weight, gradients, rates, beta_1, beta_2, epsilon, l2):
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        gradient = gradient + l2 * weight
        first = beta_1 * first + (1 - beta_1) * gradient
        second = beta_2 * second + (1 - beta_2) * gradient**2
        corrected = first / (1 - beta_1**t)
        weight = weight - rate * corrected / (np.sqrt(second / (1 - beta_2**t)) + epsilon)
    return weight


def _run(optimizer, weight, gradients, rates):
    variable = keras.Variable(weight.astype("float32"))
    optimizer.build([variable])
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(gradient.astype("float32"))], [variable])
    return keras.ops.convert_to_numpy(variable)


@pytest.mark.parametrize(
    ("make", "oracle", "options"),
    [
        (SGD, _numpy_sgd, {"momentum": 0.9, "l2": 0.05}),
        (SGD, _numpy_sgd, {"momentum": 0.0, "l2": 0.0}),
        (Adam, _numpy_adam, {"beta_1": 0.5, "beta_2": 0.999, "epsilon": 1e-8, "l2": 0.05}),
        (Adam, _numpy_adam, {"beta_1": 0.0, "beta_2": 0.9, "epsilon": 1e-3, "l2": 0.0}),
    ],
)
def test_rule_over_a_drop_of_the_rate(make, oracle, options):
    weight, gradients = RNG.normal(size=(3, 4)), RNG.normal(size=(6, 3, 4))
    rates = [0.1, 0.1, 0.1, 0.001, 0.001, 0.001]
    expected = oracle(weight, gradients, rates, **options)
    np.testing.assert_allclose(
        _run(make(0.1, **options), weight, gradients, rates), expected, rtol=2e-5, atol=2e-6
    )


def test_a_drop_of_the_rate_acts_at_once():
    """With the rate inside the velocity the second step would still move by 0.09."""
    after = _run(SGD(0.1), np.zeros(1), np.ones((2, 1)), [0.1, 0.0])
    assert after == pytest.approx(-0.1)


def test_first_step_of_adam_is_the_sign_of_the_decayed_gradient():
    weight = np.array([1.0, -1.0, 1.0])
    after = _run(Adam(0.01, l2=0.1), weight, np.array([[0.0, 0.0, -5.0]]), [0.01])
    np.testing.assert_allclose(after, weight - 0.01 * np.array([1.0, -1.0, -1.0]), rtol=1e-6)


def test_first_step_of_adam_with_a_gradient_near_epsilon():
    after = _run(Adam(1.0), np.zeros(1), np.array([[1e-8]]), [1.0])
    np.testing.assert_allclose(after, [-0.5], rtol=1e-4)


@pytest.mark.parametrize("make", [SGD, Adam])
def test_accumulation_is_one_step_with_the_mean_gradient(make):
    weight, gradients = RNG.normal(size=5), RNG.normal(size=(4, 5))
    accumulated = _run(
        make(0.1, l2=0.01, gradient_accumulation_steps=2), weight, gradients, [0.1] * 4
    )
    plain = _run(make(0.1, l2=0.01), weight, gradients.reshape(2, 2, 5).mean(axis=1), [0.1] * 2)
    np.testing.assert_allclose(accumulated, plain, rtol=1e-5)


@pytest.mark.parametrize("make", [SGD, Adam])
def test_serialization(make):
    optimizer = make(0.25, l2=0.125, clipnorm=2.0)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert type(again) is make
    assert again.get_config() == optimizer.get_config()
    assert again.l2 == 0.125


@pytest.mark.parametrize("make", [SGD, Adam])
def test_fit_save_load_continue(make, tmp_path):
    """A compiled model resumes with its velocities or moments, under MultiOptimizer too."""

    def build():
        keras.utils.set_random_seed(1)
        dense = keras.layers.Dense
        model = keras.Sequential([keras.Input((3,)), dense(2, name="one"), dense(1, name="two")])
        optimizer = keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(make(0.01, l2=0.1), {".*one.*": make(0.02)})
        )
        model.compile(optimizer, "mse")
        return model

    x, y = RNG.normal(size=(8, 3)).astype("float32"), RNG.normal(size=(8, 1)).astype("float32")
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    whole = build()
    whole.fit(x, y, epochs=4, **options)
    part = build()
    part.fit(x, y, epochs=2, **options)
    part.save(tmp_path / "model.keras")
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    resumed.fit(x, y, epochs=2, **options)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "options", "word"),
    [
        (SGD, {"momentum": 1.0}, "momentum"),
        (SGD, {"l2": -1.0}, "l2"),
        (SGD, {"weight_decay": 0.1}, "weight_decay"),
        (Adam, {"beta_1": -0.1}, "beta_1"),
        (Adam, {"beta_2": 1.0}, "beta_2"),
        (Adam, {"epsilon": 0.0}, "epsilon"),
        (Adam, {"l2": float("nan")}, "l2"),
        (Adam, {"weight_decay": 0.1}, "weight_decay"),
    ],
)
def test_bad_arguments(make, options, word):
    with pytest.raises(InputError, match=word):
        make(**options)
