"""Surgery on the linear head: closed forms, what stays fixed, files."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_git.errors import InputError
from keras_git.losses import CrossEntropy, LogitAdjustment
from keras_git.models import four_conv, resnet
from keras_git.models.heads import cosine_head
from keras_git.training import (
    adjust_logits,
    begin_classifier_retraining,
    end_retraining,
    fold_weight_scaling,
    linear_head,
    tau_normalize,
    weight_scaling_network,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(8, 5)).astype("float32")
LABELS = np.arange(8) % 3
COUNTS = [60, 30, 10]


def network(use_bias=True, **options):
    inputs = keras.Input((5,))
    x = keras.layers.Dense(6, name="features")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="bn")(x))
    head = keras.layers.Dense(
        3,
        use_bias=use_bias,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.7, seed=1),
        bias_initializer=keras.initializers.RandomUniform(-0.4, 0.4, seed=2),
        name="head",
        **options,
    )
    return keras.Model(inputs, head(x), name="small")


def logits_of(model):
    # not predict: JAX compiles the operations once for all of these models, not each model
    return keras.ops.convert_to_numpy(model(IMAGES))


def weights_of(model):
    return {v.path: keras.ops.convert_to_numpy(v).copy() for v in model.variables}


def changed_by_fitting(model):
    """Names of the variables that a step of training moves."""
    before = weights_of(model)
    model.compile("sgd", loss=CrossEntropy())
    model.fit(IMAGES, LABELS, batch_size=8, epochs=1, verbose=0)
    return {path for path, value in weights_of(model).items() if (value != before[path]).any()}


def test_classifier_retraining():
    model = network()
    before = weights_of(model)
    begin_classifier_retraining(model, seed=4)
    fresh = weights_of(model)
    assert {path for path in fresh if (fresh[path] != before[path]).any()} == {
        "head/kernel",
        "head/bias",
    }
    other, same = network(), network()
    begin_classifier_retraining(other, seed=5)
    begin_classifier_retraining(same, seed=4)
    assert (weights_of(other)["head/kernel"] != fresh["head/kernel"]).any()
    np.testing.assert_array_equal(weights_of(same)["head/kernel"], fresh["head/kernel"])
    np.testing.assert_array_equal(weights_of(same)["head/bias"], fresh["head/bias"])
    # batch normalization keeps its running statistics as well
    assert changed_by_fitting(model) == {"head/kernel", "head/bias"}
    end_retraining(model)
    assert len(model.trainable_variables) == 6


@pytest.mark.slow_on("jax")
def test_fresh_heads_have_the_distribution_of_the_first():
    model = keras.Sequential(
        [
            keras.Input((50,)),
            keras.layers.Dense(
                40,
                kernel_initializer=keras.initializers.VarianceScaling(
                    2.0, "fan_in", "untruncated_normal", seed=1
                ),
                bias_initializer=keras.initializers.RandomUniform(-0.1, 0.1, seed=2),
            ),
        ]
    )
    begin_classifier_retraining(model, seed=0)
    kernel, bias = (keras.ops.convert_to_numpy(v) for v in linear_head(model).weights)
    assert kernel.std() == pytest.approx(np.sqrt(2 / 50), rel=0.05)
    assert 0.08 < np.abs(bias).max() <= 0.1
    stock = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    linear_head(stock).bias.assign([1.0, 2.0, 3.0])
    begin_classifier_retraining(stock, seed=0)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(linear_head(stock).bias), 0)


@pytest.mark.parametrize("use_bias", [True, False])
def test_weight_scaling(use_bias, tmp_path):
    model = network(use_bias)
    before = logits_of(model)
    scaled = weight_scaling_network(model)
    np.testing.assert_allclose(logits_of(scaled), before, atol=1e-6)
    assert [v.path for v in scaled.trainable_variables] == ["head_scale/kernel"]
    if use_bias:
        assert changed_by_fitting(scaled) == {"head_scale/kernel"}
        np.testing.assert_array_equal(logits_of(model), before)
    scales = np.array([0.5, 2.0, 3.0], np.float32)
    (variable,) = scaled.trainable_variables
    variable.assign(scales)
    np.testing.assert_allclose(logits_of(scaled), before * scales, atol=1e-5)
    scaled.save(tmp_path / "scaled.keras")
    opened = keras.saving.load_model(tmp_path / "scaled.keras")
    np.testing.assert_allclose(logits_of(opened), before * scales, atol=1e-5)
    with pytest.raises(InputError, match="does not scale the logits of 'small'"):
        fold_weight_scaling(opened, model)

    fold_weight_scaling(scaled, model)
    np.testing.assert_allclose(logits_of(model), before * scales, atol=1e-5)
    np.testing.assert_allclose(logits_of(scaled), before * scales, atol=1e-5)
    end_retraining(model)
    assert len(model.trainable_variables) == 5 + use_bias
    model.save(tmp_path / "folded.keras")
    opened = keras.saving.load_model(tmp_path / "folded.keras")
    np.testing.assert_allclose(logits_of(opened), before * scales, atol=1e-5)
    assert linear_head(opened).name == "head"


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_tau_normalization(tau):
    model = network()
    kernel, bias = (keras.ops.convert_to_numpy(v).copy() for v in linear_head(model).weights)
    tau_normalize(model, tau)
    new_kernel, new_bias = (keras.ops.convert_to_numpy(v) for v in linear_head(model).weights)
    norms = np.sqrt((kernel**2).sum(axis=0))
    np.testing.assert_allclose(new_kernel, kernel / norms**tau, rtol=1e-6)
    np.testing.assert_array_equal(new_bias, bias if tau == 0 else 0 * bias)
    if tau == 1:
        np.testing.assert_allclose(np.linalg.norm(new_kernel, axis=0), 1, rtol=1e-6)
    without = network(use_bias=False)
    linear_head(without).kernel.assign(np.zeros((6, 3)))
    tau_normalize(without, tau)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(linear_head(without).kernel), 0)


def test_post_hoc_logit_adjustment(tmp_path):
    model = network()
    before = logits_of(model)
    adjust_logits(model, COUNTS, tau=0)
    np.testing.assert_array_equal(logits_of(model), before)
    adjust_logits(model, COUNTS, tau=1.5)
    expected = before - 1.5 * np.log(np.array(COUNTS) / 100)
    np.testing.assert_allclose(logits_of(model), expected, atol=1e-5)
    model.save(tmp_path / "adjusted.keras")
    opened = keras.saving.load_model(tmp_path / "adjusted.keras")
    np.testing.assert_allclose(logits_of(opened), expected, atol=1e-5)
    # the other side of the loss that adjusts in training: that loss takes the shift off again
    adjusted = LogitAdjustment(COUNTS, tau=1.5)(LABELS, expected.astype(np.float32))
    plain = CrossEntropy()(LABELS, before)
    assert float(adjusted) == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.slow_on("jax")
def test_heads_of_the_networks():
    for model in (resnet((16, 16, 1), 4, 8, width=4, seed=0), four_conv((16, 16, 1), 4, width=4)):
        head = linear_head(model)
        assert head.name == "classifier_head"
        old = keras.ops.convert_to_numpy(head.kernel).copy()
        begin_classifier_retraining(model, seed=1)
        assert [v.path for v in model.trainable_variables] == [v.path for v in head.weights]
        new = keras.ops.convert_to_numpy(head.kernel)
        assert (new != old).all() and new.std() == pytest.approx(old.std(), rel=0.5)
        end_retraining(model)
        assert len(model.trainable_variables) > 10


class Trainer(keras.Model):
    """Stands for anything around a network."""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: linear_head(network(activation="softmax")), "'small' has no linear head"),
        (lambda: tau_normalize(network(), -1), "tau is -1"),
        (lambda: adjust_logits(network(), COUNTS, float("nan")), "tau is nan"),
        (lambda: adjust_logits(network(), [3, 2]), "2 entries but 'small' has 3 classes"),
        (lambda: adjust_logits(network(), [3, 2, 0]), r"class_counts\[2\]"),
        (lambda: adjust_logits(network(use_bias=False), COUNTS), "no biases"),
        (lambda: begin_classifier_retraining(network(), -1), "seed is -1"),
        (lambda: linear_head(Trainer(name="trainer")), "'trainer': give the functional"),
        (lambda: weight_scaling_network(weight_scaling_network(network())), "no linear head"),
        (lambda: fold_weight_scaling(network(), network()), "does not scale"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_cosine_heads_are_refused():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, cosine_head(inputs, 3, 0, "head"), name="cosine")
    for call in (
        linear_head,
        tau_normalize,
        weight_scaling_network,
        lambda model: begin_classifier_retraining(model, 0),
        lambda model: adjust_logits(model, COUNTS),
    ):
        with pytest.raises(InputError, match="'cosine' has no linear head"):
            call(model)
