"""Small networks for the tests of training."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_git as kg

SIZE = 16


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, SIZE, SIZE, 1)).astype("uint8")


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    return np.arange(12) % 4


def small_networks(prefix: str = "generator", seed: int = 0) -> kg.models.GeneratorNetworks:
    return kg.models.generator_networks(
        (SIZE, SIZE, 1),
        width=4,
        style_dim=2,
        mlp_width=4,
        num_downsamplings=1,
        num_residual_blocks=1,
        style_downsamplings=2,
        outer_kernel=3,
        upsampling_kernel=3,
        seed=seed,
        prefix=prefix,
    )


def small_discriminator(prefix: str = "discriminator", seed: int = 0) -> keras.Model:
    return kg.models.discriminator((SIZE, SIZE, 1), width=4, num_layers=2, seed=seed, prefix=prefix)


def constant_generator(value: float = -1.0) -> keras.Model:
    """Returns the same grey value (in [-1, 1]) whatever the image and the style."""
    image, style = keras.Input((SIZE, SIZE, 1)), keras.Input((2,))
    level = keras.layers.Reshape((1, 1, 1))(keras.ops.sum(style, axis=-1, keepdims=True))
    return keras.Model([image, style], image * 0.0 + level * 0.0 + value)


def small_network(num_classes: int = 4) -> keras.Model:
    """A linear classifier of the mean grey value: enough for tests of the training around it."""
    inputs = keras.Input((SIZE, SIZE, 1))
    x = keras.layers.Rescaling(1.0 / 255.0)(inputs)
    x = keras.layers.Conv2D(3, 3, name="classifier_conv")(x)
    x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name="classifier_norm")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.ops.relu(x))
    network = keras.Model(inputs, keras.layers.Dense(num_classes, name="classifier_head")(x))
    rng = np.random.default_rng(1)
    for variable in network.trainable_variables:
        variable.assign(rng.normal(size=variable.shape).astype("float32"))
    return network
