"""Gradients through the statistics, and degenerate inputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_git.layers import WhitenedConv2D, WhitenedDense
from tests.layers.truth import correlated, whitening_matrix
from tests.reference.gradients import Passes


def _convolution(**options):
    layer = WhitenedConv2D(2, 2, sampling_stride=1, block_size=2, update_interval=1, **options)
    layer.build((None, 5, 5, 4))
    return layer


@pytest.mark.parametrize("norm", [None, "receptive_field"])
def test_gradients_are_those_of_finite_differences(norm):
    rng = np.random.default_rng(0)
    x = correlated(rng, (6, 5, 5, 4), 3.0)
    layer = _convolution(feature_normalization=norm)
    passes = Passes(layer, x)
    factors = rng.normal(size=(6, 4, 4, 2)).astype("float32")
    _, (x_gradient, kernel_gradient, _) = passes.gradients(x, factors)

    def value(images):
        return np.sum(factors * passes.train(images).astype("float64") ** 2)

    for _ in range(3):
        direction = rng.normal(size=x.shape)
        direction /= np.linalg.norm(direction)
        step = 0.05
        difference = value((x + step * direction).astype("float32"))
        difference -= value((x - step * direction).astype("float32"))
        expected = np.sum(x_gradient * direction)
        scale = np.linalg.norm(x_gradient) / np.sqrt(x.size)
        assert difference / (2 * step) == pytest.approx(expected, rel=0.02, abs=0.02 * scale)
    assert np.linalg.norm(kernel_gradient) > 0


def test_gradient_of_a_whitened_input_has_no_shift_and_no_scale():
    """Shifting a feature, or scaling all of them, changes nothing."""
    layer = WhitenedDense(3, iterations=14, epsilon=1e-7, update_interval=1)
    x = correlated(np.random.default_rng(1), (32, 5), 3.0)
    layer.build(x.shape)
    factors = np.random.default_rng(2).normal(size=(32, 3)).astype("float32")
    _, (gradient, *_) = Passes(layer, x).gradients(x, factors)
    size = np.abs(gradient).sum(axis=0)
    assert (np.abs(gradient.sum(axis=0)) < 1e-3 * size).all()
    centred = x - x.mean(axis=0)
    assert abs((gradient * centred).sum()) < 1e-3 * size.sum()


def test_without_differentiation_the_statistics_are_constants():
    """The gradient is then D W^T times that of the outputs."""
    layer = WhitenedDense(3, iterations=14, differentiate_statistics=False, update_interval=1)
    x = correlated(np.random.default_rng(1), (32, 5), 3.0)
    layer.build(x.shape)
    factors = np.random.default_rng(2).normal(size=(32, 3)).astype("float32")
    outputs, (gradient, *_) = Passes(layer, x).gradients(x, factors)
    _, matrix = whitening_matrix(x.astype("float64"), 1e-5)
    kernel = ops.convert_to_numpy(layer.kernel)
    expected = 2 * factors * outputs @ (matrix @ kernel).T
    np.testing.assert_allclose(gradient, expected, rtol=1e-2, atol=1e-2)


@pytest.fixture(scope="module")
def degenerate():
    """One compiled layer of each kind for all inputs."""
    keras.utils.set_random_seed(0)
    kinds = {
        "conv": {},
        "fields": {"feature_normalization": "receptive_field"},
        "sample": {"feature_normalization": "sample"},
        "converged": {"iterations": 20},
    }
    return {kind: Passes(_convolution(**o), _inputs("")) for kind, o in kinds.items()}


def _inputs(name):
    x = correlated(np.random.default_rng(3), (2, 5, 5, 4), 3.0)
    if name == "constant_channels":
        x[..., :2] = 7.0
        x[..., 3] = -1e3
    elif name == "constant":
        x[:] = 1e6
    elif name == "zeros":
        x[:] = 0.0
    elif name == "large":
        x *= 1e4
    elif name == "small":
        x *= 1e-4
    elif name == "far_mean":
        x = (x + 1e3).astype("float32")
    elif name == "one_large_channel":
        x[..., 1] *= 1e4
    elif name == "duplicates":
        x[..., 1] = x[..., 0]
    return x


DEGENERATE = (
    "constant_channels",
    "constant",
    "zeros",
    "large",
    "small",
    "far_mean",
    "one_large_channel",
    "duplicates",
)


@pytest.mark.parametrize("kind", ["conv", "fields", "sample", "converged"])
def test_degenerate_inputs(degenerate, kind):
    """8 features, 32 windows: finite values, finite gradients, of a size that training survives."""
    passes = degenerate[kind]
    for name in DEGENERATE:
        x = _inputs(name)
        outputs, gradients = passes.gradients(x, np.float32(1.0))
        assert np.isfinite(outputs).all(), name
        assert all(np.isfinite(gradient).all() for gradient in gradients), name
        assert np.abs(outputs).max() < 50, name
        if name in ("constant", "zeros") and kind != "fields":
            # centred, not scaled: what is left is the bias
            assert np.abs(outputs).max() <= 1.0, name
        if name == "zeros":
            np.testing.assert_array_equal(outputs, 0.0)
        assert np.isfinite(passes.infer(x)).all(), name
    assert all(np.isfinite(weight).all() for weight in passes.network.get_weights())


@pytest.mark.parametrize("factor", [1e4, 1e-4])
def test_scale_of_all_features_is_whitened_away(degenerate, factor):
    """The ridge is relative, so the layer sees no scale at all."""
    passes, x = degenerate["conv"], _inputs("")
    expected, ours = passes.train(x), passes.train((x * factor).astype("float32"))
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_far_mean_costs_no_accuracy(degenerate):
    """Mean 1e3, deviation 1: products are of centred rows."""
    passes, x = degenerate["conv"], _inputs("").astype("float64")
    near = passes.train(x.astype("float32"))
    far = passes.train((x + 1e3).astype("float32"))
    np.testing.assert_allclose(far, near, atol=2e-2)


@pytest.mark.parametrize("iterations", [5, pytest.param(20, marks=pytest.mark.slow_on("jax"))])
def test_batch_of_one_and_fewer_rows_than_features(iterations):
    """One row is its own mean: the output is the bias. Few rows: finite, variance at most 1."""
    layer = WhitenedDense(3, iterations=iterations, bias_initializer="ones", update_interval=1)
    layer.build((None, 12))
    rng = np.random.default_rng(5)
    for rows in (1, 3):
        x = correlated(rng, (rows, 12))
        outputs, gradients = Passes(layer, x).gradients(x, np.float32(1.0))
        assert np.isfinite(outputs).all()
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        assert all(np.abs(gradient).max() < 1e4 for gradient in gradients)
        if rows == 1:
            np.testing.assert_allclose(outputs, 1.0, atol=1e-4)
    # a pointwise convolution of a single pixel
    layer = WhitenedConv2D(3, 1, bias_initializer="ones")
    x = correlated(rng, (1, 1, 1, 4))
    layer.build(x.shape)
    np.testing.assert_allclose(Passes(layer, x).train(x), 1.0, atol=1e-4)
