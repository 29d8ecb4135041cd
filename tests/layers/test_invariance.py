"""What the layers are for: training does not see the basis of the features, nor their scale."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_git import layers
from keras_git.backend import compiled
from tests.layers.truth import change_of_basis

FEATURES, EXAMPLES, STEPS = 8, 128, 15


class _Regression:
    """A linear model that starts at 0 and takes steps of gradient descent on all examples."""

    def __init__(self, dtype="float32", **whitening):
        self.dtype = dtype
        whitening = {"update_interval": 1, **whitening}
        self.layer = layers.WhitenedDense(2, kernel_initializer="zeros", dtype=dtype, **whitening)
        self.model = keras.Sequential([keras.Input((FEATURES,), dtype=dtype), self.layer])
        self.model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
        self.start = self.model.get_weights()

    def losses(self, x, y):
        self.model.set_weights(self.start)
        x, y = x.astype(self.dtype), y.astype(self.dtype)
        return np.array([self.model.train_on_batch(x, y) for _ in range(STEPS)], "float64")


def _data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, FEATURES))
    y = x @ rng.normal(size=(FEATURES, 2)) + rng.normal(size=(EXAMPLES, 2))
    return x, y


def _deviation(model, condition):
    """Largest relative difference of the loss curves before and after a change of basis."""
    x, y = _data()
    changed = x @ change_of_basis(np.random.default_rng(1), FEATURES, condition) + 1.0
    before, after = model.losses(x, y), model.losses(changed, y)
    assert before[-1] < 0.3 * before[0]
    return np.max(np.abs(after - before) / before)


def test_gradient_descent_is_invariant_to_a_change_of_basis():
    """At 1000 the covariance has condition 1e6, and float32 few digits of its smallest part."""
    model = _Regression(iterations=40, epsilon=1e-12)
    for condition in (3.0, 30.0, 1000.0):
        assert _deviation(model, condition) < 1e-2, condition


@pytest.mark.skipif(keras.config.backend() == "jax", reason="no float64 in this process")
def test_gradient_descent_is_invariant_in_float64():
    model = _Regression("float64", iterations=40, epsilon=1e-12)
    for condition in (30.0, 1000.0):
        assert _deviation(model, condition) < 1e-5, condition


def test_at_the_default_settings_the_invariance_is_approximate():
    """5 iterations damp small eigenvalues: honest bounds, not a goal."""
    model = _Regression()
    assert _deviation(model, 3.0) < 0.1
    moderate, strong = _deviation(model, 30.0), _deviation(model, 300.0)
    assert 1e-3 < moderate < strong


def test_a_plain_layer_is_not_invariant():
    """The measure of the tests above can tell."""
    model = _Regression(frozen=True)
    x, y = _data()
    changed = x @ change_of_basis(np.random.default_rng(1), FEATURES, 3.0)
    before, after = model.losses(x, y), model.losses(changed, y)
    assert np.max(np.abs(after - before) / before) > 0.2


def _images():
    rng = np.random.default_rng(2)
    return (rng.uniform(0, 1, (2, 12, 10, 3)) ** 2).astype("float32")


@pytest.fixture(scope="module")
def scale_invariant():
    """All layers of the kind on one input, in inference."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 10, 3))
    outputs = {
        "sample": layers.SampleNormalization()(inputs),
        "l1": layers.L1Normalization()(inputs),
        "field": layers.ReceptiveFieldNormalization(min_scale=0.1, max_scale=0.4)(inputs),
        "fine": layers.ReceptiveFieldNormalization(coarse_to_fine=False)(inputs),
    }
    for norm in layers.FEATURE_NORMALIZATIONS:
        conv = layers.WhitenedConv2D(3, 3, padding="same", feature_normalization=norm)
        outputs[f"conv_{norm}"] = conv(inputs)
    model = keras.Model(inputs, outputs)
    for variable in model.variables:
        if variable.name in ("moving_mean", "moving_whitening"):
            noise = np.random.default_rng(3).normal(size=variable.shape)
            variable.assign(ops.convert_to_numpy(variable) + 0.1 * noise)
    function = compiled(lambda x: model(x, training=False), model.variables)
    return lambda x: {key: ops.convert_to_numpy(value) for key, value in function(x).items()}


@settings(max_examples=15)
@given(exponent=st.floats(-2, 2))
def test_scaling_an_image_changes_nothing(scale_invariant, exponent):
    images = _images()
    expected = scale_invariant(images)
    for name, outputs in scale_invariant((images * 10**exponent).astype("float32")).items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(outputs, expected[name], atol=2e-4 * scale, err_msg=name)


@settings(max_examples=10)
@given(exponent=st.floats(-1, 1), shift=st.floats(-10, 10))
def test_shifting_an_image_changes_nothing_where_it_is_centred(scale_invariant, exponent, shift):
    images = _images()
    expected = scale_invariant(images)
    moved = scale_invariant((images * 10**exponent + shift).astype("float32"))
    for name in ("sample", "conv_sample", "field"):
        scale = np.abs(expected[name]).max()
        tolerance = 2e-5 * (10 + abs(shift) / 10**exponent) * scale
        np.testing.assert_allclose(moved[name], expected[name], atol=tolerance, err_msg=name)
    assert np.abs(moved["l1"] - expected["l1"]).max() > 1e-2 or abs(shift) < 0.1 * 10**exponent


@pytest.mark.parametrize("norm", layers.FEATURE_NORMALIZATIONS)
def test_scaling_images_one_by_one_changes_no_training_step(norm):
    """The statistics of the batch see normalized images, too."""
    images = np.tile(_images(), (4, 1, 1, 1)) + np.random.default_rng(4).uniform(
        0, 0.3, (8, 12, 10, 3)
    )
    factors = np.geomspace(1e-2, 1e2, 8).reshape(8, 1, 1, 1)
    found = []
    for x in (images, images * factors):
        conv = layers.WhitenedConv2D(
            2, 3, feature_normalization=norm, kernel_initializer="ones", bias_initializer="ones"
        )
        model = keras.Sequential([keras.Input((12, 10, 3)), conv])
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
        y = np.random.default_rng(5).normal(size=(8, 10, 8, 2)).astype("float32")
        losses = [model.train_on_batch(x.astype("float32"), y) for _ in range(2)]
        found.append([np.array(losses), *conv.get_weights()])
    for plain, scaled in zip(*found, strict=True):
        np.testing.assert_allclose(scaled, plain, rtol=1e-2, atol=2e-3)
