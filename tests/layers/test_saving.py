"""Configurations, files, and weights that go from one backend to another."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_git import layers
from keras_git.layers import fold
from tests.backends import OPENED_ON
from tests.layers.truth import correlated

ROOT = Path(__file__).parents[2]
SHAPE = (8, 8, 3)
CHANGED = {
    "block_size": 3,
    "epsilon": 1e-4,
    "iterations": 7,
    "momentum": 0.5,
    "sampling_stride": 2,
    "update_interval": 4,
    "frozen": True,
    "freeze_iterations": 9,
    "differentiate_statistics": False,
    "feature_normalization": "l1",
    "rules": "original",
}


@pytest.mark.parametrize(
    "layer",
    [
        layers.WhitenedConv2D(4, (2, 3), strides=2, groups=2, use_bias=False, **CHANGED),
        layers.WhitenedConv2D(4, 3, dilation_rate=2, kernel_regularizer="l2"),
        layers.WhitenedConv2DTranspose(4, 3, strides=2, output_padding=1, **CHANGED),
        layers.WhitenedDense(4, activation="relu", **CHANGED),
        layers.SampleNormalization(epsilon=0.5),
        layers.L1Normalization(epsilon=0.5, dtype="mixed_bfloat16"),
        layers.ReceptiveFieldNormalization(0.1, 0.3, 2, 0.5, False, 1, False, "channels_first"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_configuration_round_trip(layer):
    config = layer.get_config()
    other = type(layer).from_config(config)
    assert other.get_config() == config
    assert keras.saving.serialize_keras_object(layer)["registered_name"].startswith("keras_git>")
    if "rules" in config:
        expected = CHANGED if config["rules"] == "original" else {}
        assert {name: config[name] for name in expected} == expected


def _network():
    """Every layer of the package, in a functional graph."""
    inputs = keras.Input(SHAPE)
    x = layers.ReceptiveFieldNormalization(min_scale=0.3, max_scale=0.5)(inputs)
    x = layers.WhitenedConv2D(4, 3, strides=2, feature_normalization="receptive_field")(x)
    x = layers.WhitenedConv2DTranspose(4, 2, strides=2, block_size=2, activation="relu")(x)
    x = layers.SampleNormalization()(x)
    x = layers.WhitenedConv2D(4, 3, padding="same", groups=2, update_interval=2)(x)
    x = layers.L1Normalization()(keras.layers.Flatten()(x))
    return keras.Model(inputs, layers.WhitenedDense(2, block_size=16)(x))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    rng = np.random.default_rng(9)
    images = correlated(rng, (8, *SHAPE), 4.0)
    targets = rng.normal(size=(8, 2)).astype("float32")
    network = _network()
    network.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse")
    for _ in range(3):
        network.train_on_batch(images, targets)
    network.save(folder / "whitened.keras")
    outputs = network.predict_on_batch(images)
    folded = fold(network)
    folded.save(folder / "folded.keras")
    np.savez(folder / "folded.npz", images=images, outputs=folded.predict_on_batch(images))
    np.savez(folder / "whitened.npz", images=images, outputs=outputs)
    return folder


@pytest.mark.parametrize("backend", OPENED_ON)
def test_files_open_on_every_backend(saved, backend, tmp_path):
    """Whitened ones after `import keras_git`; folded ones without."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"the Keras backend {backend!r} is not installed")
    script = Path(__file__).with_name("saved_layers.py")
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(saved), str(ROOT)],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len([line for line in done.stdout.splitlines() if line.startswith(backend)]) == 2


def test_weights_file(saved, tmp_path):
    """Statistics and counters are among the weights."""
    network = keras.saving.load_model(saved / "whitened.keras", compile=False)
    network.save_weights(tmp_path / "network.weights.h5")
    other = _network()
    other.load_weights(tmp_path / "network.weights.h5")
    for ours, expected in zip(other.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)
    counters = [
        int(keras.ops.convert_to_numpy(v)) for v in network.variables if v.name == "updates"
    ]
    assert sorted(counters) == [2, 3, 3, 3]
