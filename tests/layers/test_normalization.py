"""Normalization by a sample's own statistics, against numpy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_git import layers
from keras_git.errors import InputError
from keras_git.layers.normalization import box_moments, box_sum
from tests.reference.gradients import Passes

RNG = np.random.default_rng(0)


def _numpy(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (4, 7, 6), (4, 9)])
def test_sample_and_l1(shape):
    """Images over all features, sequences and vectors over the last axis."""
    x = RNG.normal(2.0, 3.0, shape).astype("float32")
    axes = (1, 2, 3) if len(shape) == 4 else -1
    mean, deviation = x.mean(axes, keepdims=True), x.std(axes, ddof=1, keepdims=True)
    ours = _numpy(layers.SampleNormalization()(x))
    np.testing.assert_allclose(ours, (x - mean) / deviation, rtol=1e-4, atol=1e-5)
    size = np.abs(x).mean(axes, keepdims=True)
    np.testing.assert_allclose(_numpy(layers.L1Normalization()(x)), x / size, rtol=1e-5)
    ours = _numpy(layers.SampleNormalization(epsilon=2.0)(x))
    np.testing.assert_allclose(ours, (x - mean) / (deviation + 2), rtol=1e-4, atol=1e-5)


def test_one_feature_and_unknown_sizes():
    assert (
        _numpy(layers.SampleNormalization()(np.full((3, 1), 5.0, "float32"))).tolist() == [[0]] * 3
    )
    network = keras.Sequential([keras.Input((None, None, 2)), layers.SampleNormalization()])
    x = RNG.normal(size=(2, 4, 5, 2)).astype("float32")
    outputs = network.predict_on_batch(x)
    assert outputs.std((1, 2, 3), ddof=1) == pytest.approx(1, abs=1e-5)


def test_box_sums_and_moments_are_those_of_the_pixels_inside():
    x = RNG.normal(1.0, 1.0, (2, 6, 5, 3)).astype("float32")
    maps = x[..., :1]
    for window, half in ((1, 0), (3, 1), (4, 2), (21, 10)):
        sums = _numpy(box_sum(ops.convert_to_tensor(maps), window))
        mean, variance, number = map(_numpy, box_moments(ops.convert_to_tensor(x), window))
        for row in range(6):
            for column in range(5):
                rows = slice(max(0, row - half), row + half + 1)
                columns = slice(max(0, column - half), column + half + 1)
                inside = maps[:, rows, columns]
                np.testing.assert_allclose(sums[:, row, column, 0], inside.sum((1, 2, 3)), 1e-5)
                assert number[0, row, column, 0] == pytest.approx(inside[0].size)
                pixels = x[:, rows, columns].reshape(2, -1).astype("float64")
                np.testing.assert_allclose(mean[:, row, column, 0], pixels.mean(1), rtol=1e-6)
                np.testing.assert_allclose(variance[:, row, column, 0], pixels.var(1), atol=1e-4)


def test_receptive_field_of_one_scale_by_loops():
    """A window of 4 (5) of 20 pixels; gain and offset are smoothed over the same window."""
    layer = layers.ReceptiveFieldNormalization(min_scale=0.2, max_scale=0.2, epsilon=0.1)
    assert layer.scales == [0.2]
    x = RNG.normal(1.0, 2.0, (2, 20, 8, 3)).astype("float64")

    def boxed(values):
        found = np.zeros((2, 20, 8))
        for row in range(20):
            for column in range(8):
                part = values[:, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
                found[:, row, column] = part.reshape(2, -1).mean(axis=1)
        return found

    mean, square = boxed(x), boxed(x**2)
    epsilon = 0.1 * x.reshape(2, -1).var(axis=1, ddof=1).reshape(2, 1, 1)
    gain = 1 / np.sqrt(square - mean**2 + epsilon)
    gain, offset = boxed(gain), boxed(-mean * gain)
    expected = x * gain[..., None] + offset[..., None]
    ours = _numpy(layer(x.astype("float32")))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    first = layers.ReceptiveFieldNormalization(0.2, 0.2, epsilon=0.1, data_format="channels_first")
    ours = _numpy(first(x.astype("float32").transpose(0, 3, 1, 2))).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_scales():
    make = layers.ReceptiveFieldNormalization
    np.testing.assert_allclose(make().scales, [0.2, 0.05])
    np.testing.assert_allclose(make(coarse_to_fine=False).scales, [0.05, 0.2])
    np.testing.assert_allclose(make(0.1, 0.4, rate=2).scales, [0.4, 0.2, 0.1])
    np.testing.assert_allclose(make(0.1, 0.35, rate=2).scales, [0.35, 0.175])


@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
@pytest.mark.parametrize(
    "layer",
    [
        layers.SampleNormalization,
        layers.L1Normalization,
        lambda: layers.ReceptiveFieldNormalization(min_scale=0.2, max_scale=0.4),
    ],
    ids=["sample", "l1", "field"],
)
def test_constant_samples(layer, value):
    """Centred layers give 0, not the rounding of the mean divided by itself."""
    layer = layer()
    x = np.full((2, 9, 9, 3), value, "float32")
    outputs, gradients = Passes(layer, x).gradients(x, np.float32(1.0))
    expected = 1.0 if value and isinstance(layer, layers.L1Normalization) else 0.0
    np.testing.assert_allclose(outputs, expected, atol=1e-2)
    assert np.isfinite(gradients[0]).all()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_dtypes(policy):
    if policy == "float64" and keras.config.backend() == "jax":
        pytest.skip("no float64 in this process")
    x = RNG.normal(50.0, 1.0, (2, 9, 9, 3))
    for kind in (layers.SampleNormalization, layers.L1Normalization):
        outputs = kind(dtype=policy)(x)
        dtype = keras.backend.standardize_dtype(outputs.dtype)
        assert dtype == ("float64" if policy == "float64" else "bfloat16")
        expected = _numpy(kind()(x.astype("float32")))
        if policy == "float64":
            np.testing.assert_allclose(_numpy(outputs), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: layers.SampleNormalization(epsilon=-1), "epsilon is -1; it must be 0 or more"),
        (lambda: layers.L1Normalization(epsilon=float("nan")), "epsilon is nan"),
        (
            lambda: layers.ReceptiveFieldNormalization(min_scale=0),
            "give 0 < min_scale <= max_scale",
        ),
        (
            lambda: layers.ReceptiveFieldNormalization(0.3, 0.2),
            "min_scale is 0.3 and max_scale 0.2",
        ),
        (lambda: layers.ReceptiveFieldNormalization(rate=1), "rate is 1; it must be above 1"),
        (lambda: layers.ReceptiveFieldNormalization(subsample=0), "subsample is 0; give a whole"),
        (
            lambda: layers.ReceptiveFieldNormalization(subsample=1.5),
            "subsample is 1.5; give a whole",
        ),
        (
            lambda: layers.ReceptiveFieldNormalization(name="norm").build((None, None, 5, 3)),
            "the input of norm has shape .None, None, 5, 3.; give images .N, H, W, C. of known",
        ),
        (
            lambda: layers.ReceptiveFieldNormalization().build((None, 5)),
            "give images .N, H, W, C. of known height and width",
        ),
    ],
)
def test_errors(build, message):
    with pytest.raises(InputError, match=message):
        build()
