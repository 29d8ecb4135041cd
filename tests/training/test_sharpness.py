"""Sharpness-aware steps: closed form on a quadratic, and state that changes once."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_git as kg
from keras_git import backend
from keras_git.errors import InputError
from tests.training.conftest import small_network


def numpy_of(tensor: object) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


@pytest.mark.parametrize("radius", [0.0, 0.5])
def test_a_step_on_a_quadratic_loss(radius: float) -> None:
    """Mean squared error of a linear network: the gradient is linear in the weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 1, 3, 1)).astype("float32")
    targets = rng.normal(size=(5, 2)).astype("float32")
    inputs = keras.Input((1, 3, 1))
    head = keras.layers.Dense(2, kernel_initializer="glorot_normal", bias_initializer="ones")
    network = keras.Model(inputs, head(keras.layers.Flatten()(inputs)))
    model = kg.training.Classifier(network, sharpness_radius=radius)
    model.compile(kg.optimizers.SGD(0.1, momentum=0.0, l2=0.3), "mse", metrics=["mae"])

    features = np.concatenate([x.reshape(5, 3), np.ones((5, 1))], axis=1)  # the bias is a row
    start = np.concatenate([w.reshape(-1, 2) for w in network.get_weights()]).astype("float64")

    def gradient(w: np.ndarray) -> np.ndarray:
        return features.T @ (features @ w - targets) * 2 / 10

    first = gradient(start)
    moved = start + radius * first / np.linalg.norm(first)
    expected = start - 0.1 * (gradient(moved) + 0.3 * start)
    residual = features @ start - targets

    history = model.fit(x, targets, batch_size=5, verbose=0).history
    found = np.concatenate([w.reshape(-1, 2) for w in network.get_weights()])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert history["loss"] == pytest.approx([np.mean(residual**2)], rel=1e-5)
    assert history["mae"] == pytest.approx([np.mean(np.abs(residual))], rel=1e-5)
    assert int(numpy_of(model.optimizer.iterations)) == 1


@pytest.mark.slow_on("jax")
def test_both_gradients_see_the_same_draws_and_the_state_moves_once() -> None:
    """With a tiny radius all is as in a plain step, which other draws of dropout would not be.

    With any radius the statistics are, since they are those of the first pass.
    """
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(8, 2, 2, 3)).astype("float32"), np.arange(8) % 3
    found = []
    statistics = []
    for radius in (0.0, 1e-5, 3.0):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((2, 2, 3))
        y = keras.layers.BatchNormalization(momentum=0.5)(inputs)
        y = keras.layers.Dropout(0.5, seed=3)(keras.layers.Flatten()(y))
        network = keras.Model(inputs, keras.layers.Dense(3)(y))
        model = kg.training.Classifier(
            network, feature_augmentation=kg.training.ISDA(0.5), sharpness_radius=radius
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(kg.optimizers.SGD(0.5), loss)
        history = model.fit(x, labels, batch_size=8, verbose=0).history
        variables = kg.training.training_variables(model)
        found.append([numpy_of(v) for group in variables.values() for v in group])
        found[-1].append(np.array(history["loss"]))
        assert numpy_of(model.feature_statistics.count).sum() == 8
        state = [*network.non_trainable_variables, *variables["feature_statistics"]]
        statistics.append([numpy_of(v) for v in state])
    for plain, *others in zip(*statistics, strict=True):
        for sharp in others:
            np.testing.assert_allclose(sharp, plain, rtol=1e-5, atol=1e-6)
    for plain, sharp in zip(*found[:2], strict=True):
        np.testing.assert_allclose(sharp, plain, rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="sharpness_radius is -1"):
        kg.training.Classifier(small_network(), sharpness_radius=-1.0)
    monkeypatch.setattr(backend, "separate_replicas", lambda: 2)
    for arguments in ({"sharpness_radius": 0.1}, {"feature_augmentation": kg.training.ISDA()}):
        model = kg.training.Classifier(small_network(), **arguments)
        with pytest.raises(InputError, match="train on one"):
            model.augment(np.zeros((2, 16, 16, 1)), np.zeros(2), None)
