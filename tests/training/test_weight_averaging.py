"""Averaged weights against averages by numpy, and the batch statistics that belong to them."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_git as kg
from keras_git.errors import InputError
from keras_git.training import refresh_batch_normalization, use_averaged_weights


def classifier(use_ema: bool = True) -> kg.training.Classifier:
    inputs = keras.Input((1, 3, 1))
    head = keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotNormal(seed=1))
    network = keras.Model(inputs, head(keras.layers.Flatten()(inputs)))
    model = kg.training.Classifier(network)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kg.optimizers.SGD(0.5, use_ema=use_ema, ema_momentum=0.5), loss)
    return model


class Weights(keras.callbacks.Callback):
    """The weights at the end of each epoch, and the averages as the context shows them."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[list[np.ndarray]] = []
        self.averages: list[list[np.ndarray]] = []

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        network = self.model.network
        self.weights.append(network.get_weights())
        with use_averaged_weights(self.model):
            self.averages.append(network.get_weights())


def test_averages_are_used_within_the_context_and_survive_a_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(6, 1, 3, 1)).astype("float32"), np.arange(6) % 2
    options = {"batch_size": 6, "shuffle": False, "verbose": 0}
    model, seen = classifier(), Weights()
    # in two calls, as a deferred training is: Keras would go on from the averages
    model.fit(x, labels, epochs=2, callbacks=[seen], **options)
    path = tmp_path / "state.npz"
    kg.training.save_checkpoint(path, kg.training.training_variables(model), {"epoch": 2})
    model.fit(x, labels, initial_epoch=2, epochs=4, callbacks=[seen], **options)
    average = seen.weights[0]
    for weights, found in zip(seen.weights, seen.averages, strict=True):
        average = [0.5 * a + 0.5 * w for a, w in zip(average, weights, strict=True)]
        for a, b in zip(average, found, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    assert not np.allclose(seen.averages[-1][0], seen.weights[-1][0])
    for w, now in zip(seen.weights[-1], model.network.get_weights(), strict=True):
        np.testing.assert_array_equal(now, w)

    resumed, after = classifier(), Weights()
    kg.training.load_checkpoint(path, kg.training.training_variables(resumed))
    resumed.fit(x, labels, initial_epoch=2, epochs=4, callbacks=[after], **options)
    for a, b in zip(after.averages[-1], seen.averages[-1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_averages_it_says_so() -> None:
    model = classifier(use_ema=False)
    with pytest.raises(InputError, match="use_ema=True"):
        with use_averaged_weights(model):
            pass
    with pytest.raises(InputError, match="no step"):
        with use_averaged_weights(classifier()):
            pass


def test_refreshed_statistics_are_the_averages_over_batches() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (26, 4, 4, 2)).astype("uint8")  # three batches, and two left out
    inputs = keras.Input((4, 4, 2))
    scale = keras.layers.Conv2D(2, 1, use_bias=False)
    norm = keras.layers.BatchNormalization(momentum=0.9)
    inner = keras.Input((4, 4, 2))
    x = keras.Model(inner, norm(inner))(scale(inputs))  # a model within a model
    network = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    for factor in (1.0, 0.5):  # the compiled function reads weights as they are now
        kernel = factor * np.array([[1.0, 0.5], [0.0, 2.0]], "float32")
        scale.set_weights([kernel[None, None]])
        refresh_batch_normalization(network, images, batch_size=8)
        batches = (images[:24].astype("float64") @ kernel).reshape(3, 8 * 16, 2)
        mean, variance = (
            keras.ops.convert_to_numpy(v) for v in (norm.moving_mean, norm.moving_variance)
        )
        np.testing.assert_allclose(mean, batches.mean(1).mean(0), rtol=1e-5)
        np.testing.assert_allclose(variance, batches.var(1, ddof=1).mean(0), rtol=1e-5)
    assert norm.momentum == 0.9
    np.testing.assert_array_equal(scale.get_weights()[0][0, 0], kernel)
    with pytest.raises(InputError, match="0 images"):
        refresh_batch_normalization(network, images[:0])
    whitened = keras.Sequential([inputs, kg.layers.WhitenedConv2D(2, 1)])
    with pytest.raises(InputError, match="whitened"):
        refresh_batch_normalization(whitened, images)
