"""Whitened layers: what they compute, in training and inference, against a slow second way."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_git import layers
from keras_git.errors import InputError
from tests.layers.truth import (
    correlated,
    same_padding,
    whitened_convolution,
    whitening_matrix,
    windows,
)
from tests.reference.gradients import Passes

BACKEND = keras.config.backend()
SHAPE = (7, 10, 4)
# Enough iterations to converge on features of moderate condition.
CONVERGED = {"iterations": 14, "sampling_stride": 1, "update_interval": 1}

CONVOLUTIONS = {
    "same": {"filters": 5, "kernel_size": 3, "padding": "same"},
    "valid_strided": {"filters": 5, "kernel_size": 3, "strides": 2},
    "same_strided": {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"},
    "rectangular": {"filters": 3, "kernel_size": (2, 3), "padding": "same"},
    "dilated": {"filters": 3, "kernel_size": 2, "dilation_rate": (2, 3)},
    "dilated_same": {"filters": 3, "kernel_size": 3, "dilation_rate": 2, "padding": "same"},
    "grouped": {"filters": 6, "kernel_size": 3, "groups": 2, "padding": "same"},
    "depthwise": {"filters": 8, "kernel_size": 3, "groups": 4},
    "pointwise": {"filters": 3, "kernel_size": 1, "strides": 3},
    "no_bias": {"filters": 3, "kernel_size": 3, "use_bias": False},
    "relu": {"filters": 3, "kernel_size": 3, "activation": "relu"},
}
TRANSPOSED = {
    "same": {"filters": 5, "kernel_size": 3, "padding": "same", "strides": 2},
    "valid": {"filters": 5, "kernel_size": (2, 3), "activation": "relu"},
    "no_bias": {"filters": 2, "kernel_size": 2, "strides": 2, "use_bias": False},
    "output_padding": {"filters": 2, "kernel_size": 3, "strides": 2, "output_padding": 1},
    "dilated": {"filters": 2, "kernel_size": 3, "dilation_rate": 2},
}
DENSE = {
    "default": {"units": 3},
    "no_bias": {"units": 3, "use_bias": False},
    "tanh": {"units": 3, "activation": "tanh"},
}


def _network(kind, variants, shape, **whitening):
    """All variants of a layer on one input, with random biases."""
    inputs = keras.Input(shape)
    outputs = [
        kind(**options, **whitening, name=name)(inputs) for name, options in variants.items()
    ]
    network = keras.Model(inputs, outputs)
    rng = np.random.default_rng(1)
    for name in variants:
        if network.get_layer(name).bias is not None:
            bias = network.get_layer(name).bias
            bias.assign(rng.normal(size=bias.shape))
    return network


@pytest.mark.parametrize(
    ("kind", "plain", "variants", "format"),
    [
        (layers.WhitenedConv2D, keras.layers.Conv2D, CONVOLUTIONS, "channels_last"),
        (layers.WhitenedConv2D, keras.layers.Conv2D, CONVOLUTIONS, "channels_first"),
        (layers.WhitenedConv2DTranspose, keras.layers.Conv2DTranspose, TRANSPOSED, "channels_last"),
        (
            layers.WhitenedConv2DTranspose,
            keras.layers.Conv2DTranspose,
            TRANSPOSED,
            "channels_first",
        ),
        (layers.WhitenedDense, keras.layers.Dense, DENSE, None),
    ],
    ids=["conv", "conv_first", "transposed", "transposed_first", "dense"],
)
def test_a_fresh_layer_in_inference_is_the_plain_one(kind, plain, variants, format):
    shape = SHAPE if format != "channels_first" else (4, 7, 10)
    options = {"data_format": format} if format else {}
    if BACKEND != "torch" and format == "channels_first":
        # TensorFlow's CPU has no grouped or dilated ones, and JAX compiles them for long
        variants = {
            name: values
            for name, values in variants.items()
            if "groups" not in values and "dilation_rate" not in values
        }
    whitened = _network(kind, variants, shape, block_size=2, **options)
    other = _network(plain, variants, shape, **options)
    for name in variants:
        own = whitened.get_layer(name)
        weights = [own.kernel] if own.bias is None else [own.kernel, own.bias]
        other.get_layer(name).set_weights([ops.convert_to_numpy(w) for w in weights])
    x = np.random.default_rng(2).normal(size=(2, *shape)).astype("float32")
    pairs = zip(whitened.predict_on_batch(x), other.predict_on_batch(x), strict=True)
    for name, (ours, expected) in zip(variants, pairs, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5, err_msg=name)


@pytest.mark.slow_on("jax")
def test_training_output_of_convolutions():
    variants = {
        **CONVOLUTIONS,
        "two_blocks": {"filters": 3, "kernel_size": 3, "block_size": 2},
        "grouped_blocks": {"filters": 4, "kernel_size": 2, "groups": 2, "block_size": 1},
        "sampled": {"filters": 3, "kernel_size": 2, "sampling_stride": 2},
        # 2 positions per axis remain where 7 would leave one
        "sampled_too_much": {"filters": 3, "kernel_size": 2, "sampling_stride": 7},
    }
    network = _network(
        layers.WhitenedConv2D, {name: {**CONVERGED, **v} for name, v in variants.items()}, SHAPE
    )
    x = correlated(np.random.default_rng(4), (8, *SHAPE), 4.0)
    for (name, options), ours in zip(variants.items(), Passes(network, x).train(x), strict=True):
        layer = network.get_layer(name)
        expected = whitened_convolution(
            x,
            ops.convert_to_numpy(layer.kernel).astype("float64"),
            0.0 if layer.bias is None else ops.convert_to_numpy(layer.bias),
            strides=layer.strides,
            dilation=layer.dilation_rate,
            padding=layer.padding,
            groups=layer.groups,
            block=options.get("block_size"),
            sampling=options.get("sampling_stride", 1),
        )
        if options.get("activation"):
            expected = np.maximum(expected, 0)
        np.testing.assert_allclose(ours, expected, atol=3e-3, err_msg=name)


def test_training_output_of_dense_layers():
    network = _network(
        layers.WhitenedDense,
        {"one": {"units": 3, "block_size": 6}, "two": {"units": 3, "block_size": 3}},
        (4, 6),
        iterations=14,
        update_interval=1,
    )
    x = correlated(np.random.default_rng(5), (9, 4, 6), 5.0)
    ours = Passes(network, x).train(x)
    for name, block, outputs in (("one", 6, ours[0]), ("two", 3, ours[1])):
        layer = network.get_layer(name)
        kernel = ops.convert_to_numpy(layer.kernel)[None, None]
        bias = ops.convert_to_numpy(layer.bias)
        expected = whitened_convolution(x[:, :, None], kernel, bias, block=block)[:, :, 0]
        np.testing.assert_allclose(outputs, expected, atol=1e-3)


def test_training_output_of_transposed_convolutions():
    """Pixels whitened one by one, then the plain layer."""
    options = TRANSPOSED["same"] | {"filters": 2}
    network = _network(
        layers.WhitenedConv2DTranspose, {"layer": {**options, "block_size": 2, **CONVERGED}}, SHAPE
    )
    x = correlated(np.random.default_rng(6), (4, *SHAPE), 5.0)
    (ours,) = [Passes(network, x).train(x)]
    white = np.zeros(x.shape)
    for block in (slice(0, 2), slice(2, 4)):
        mean, matrix = whitening_matrix(x[..., block].reshape(-1, 2).astype("float64"), 1e-5)
        white[..., block] = (x[..., block] - mean) @ matrix
    plain = keras.layers.Conv2DTranspose(**options)
    plain.build(x.shape)
    plain.set_weights([ops.convert_to_numpy(w) for w in network.get_layer("layer").weights[:2]])
    expected = ops.convert_to_numpy(plain(white.astype("float32")))
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def _identity_convolution(**options):
    """A layer whose outputs are its whitened input features: 2 x 2 windows of 3 channels."""
    layer = layers.WhitenedConv2D(12, 2, sampling_stride=1, **options)
    layer.build((None, 6, 6, 3))
    layer.kernel.assign(np.eye(12).reshape(2, 2, 3, 12))
    return layer


def test_whitened_windows_have_covariance_identity():
    x = correlated(np.random.default_rng(7), (40, 6, 6, 3), 20.0)
    outputs = Passes(_identity_convolution(iterations=14), x).train(x).reshape(-1, 12)
    np.testing.assert_allclose(outputs.mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(np.cov(outputs.T, ddof=0), np.eye(12), atol=5e-3)


def test_default_iterations_follow_the_scalar_law():
    """At 5 iterations the covariance keeps its eigenvectors; its eigenvalues are y_5."""
    x = correlated(np.random.default_rng(7), (40, 6, 6, 3), 1000.0)
    outputs = Passes(_identity_convolution(), x).train(x).reshape(-1, 12)
    rows = windows(x.astype("float64"), (2, 2)).reshape(-1, 12)
    share = np.linalg.eigvalsh(np.cov(rows.T, ddof=0))
    share = share + 1e-5 * share.mean()
    share /= np.linalg.norm(share)
    for _ in range(5):
        share = share * ((3 - share) / 2) ** 2
    left = np.linalg.eigvalsh(np.cov(outputs.T, ddof=0))
    assert share.min() < 0.1 and share.max() > 0.99  # a case in which some are damped
    np.testing.assert_allclose(left, share, rtol=5e-2, atol=1e-4)


def test_zeros_of_the_padding_belong_to_the_data():
    """The mean of a corner tap counts the zeros outside; Keras pads at the end at stride 2."""
    layer = layers.WhitenedConv2D(2, 3, strides=2, padding="same", sampling_stride=1)
    x = np.ones((1, 6, 6, 1), "float32")
    layer.build(x.shape)
    Passes(layer, x).train(x)
    assert same_padding(6, 3, 2) == (0, 1)
    mean = ops.convert_to_numpy(layer.running()[0]).reshape(3, 3)
    np.testing.assert_allclose(mean, [[1, 1, 2 / 3], [1, 1, 2 / 3], [2 / 3, 2 / 3, 4 / 9]], 1e-6)


def test_channels_first_trains_like_channels_last():
    x = correlated(np.random.default_rng(8), (4, 6, 8, 4))
    # TensorFlow's CPU has channels-first convolutions in compiled functions alone
    compiled = {"jit_compile": True} if BACKEND == "tensorflow" else {}
    found = []
    for format in ("channels_last", "channels_first"):
        images = x if format == "channels_last" else x.transpose(0, 3, 1, 2)
        layer = layers.WhitenedConv2D(
            3, 3, strides=2, block_size=2, data_format=format, kernel_initializer="ones"
        )
        network = keras.Sequential([keras.Input(images.shape[1:]), layer])
        network.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse", **compiled)
        target = np.ones((4, *network.output_shape[1:]), "float32")
        losses = [network.train_on_batch(images, target) for _ in range(2)]
        found.append([np.array(losses), *layer.get_weights()])
    for last, first in zip(*found, strict=True):
        np.testing.assert_allclose(last, first, rtol=1e-4, atol=1e-5)


def test_unknown_height_and_width():
    layer = layers.WhitenedConv2D(3, 3, padding="same", block_size=2, activation="relu")
    network = keras.Sequential([keras.Input((None, None, 4)), layer])
    network.compile(optimizer="sgd", loss="mse")
    for size in (6, 9):
        x = correlated(np.random.default_rng(8), (4, size, size, 4))
        network.train_on_batch(x, np.zeros((4, size, size, 3), "float32"))
        assert network.predict_on_batch(x).shape == (4, size, size, 3)
    with pytest.raises(InputError, match="padding 'same' with strides needs to know height"):
        layers.WhitenedConv2D(3, 3, strides=2, padding="same").build((None, None, None, 4))


def test_a_shared_layer_takes_images_of_two_sizes():
    """Padding and sampling follow the image at hand, not the one that the layer was built with."""
    layer = layers.WhitenedConv2D(2, 3, strides=2, padding="same", **CONVERGED)
    rng = np.random.default_rng(9)
    layer.build((None, 6, 6, 2))
    for size in (6, 7):
        x = correlated(rng, (9, size, size, 2))
        kernel = ops.convert_to_numpy(layer.kernel)
        expected = whitened_convolution(x, kernel, strides=(2, 2), padding="same")
        np.testing.assert_allclose(Passes(layer, x).train(x), expected, atol=1e-3)


@pytest.mark.parametrize("field", [False, True], ids=["plain", "receptive_field"])
def test_receptive_field_standardizes_windows(field):
    """Each window less the mean, by the deviation, of 7 x 7 pixels around it, inside the image."""
    norm = "receptive_field" if field else None
    layer = layers.WhitenedConv2D(
        3, 3, padding="same", feature_normalization=norm, bias_initializer="ones", **CONVERGED
    )
    x = correlated(np.random.default_rng(10), (4, 9, 8, 2), 3.0)
    layer.build(x.shape)
    ours = Passes(layer, x).train(x)
    kernel = ops.convert_to_numpy(layer.kernel).astype("float64")
    x = x.astype("float64")
    if field:
        x -= x.mean(axis=(1, 2, 3), keepdims=True)  # padded with the mean, so to say
    found = windows(x, (3, 3), padding="same")
    if field:
        for row in range(9):
            for column in range(8):
                around = x[:, max(0, row - 3) : row + 4, max(0, column - 3) : column + 4]
                around = around.reshape(4, -1).astype("float64")
                mean = around.mean(axis=1).reshape(-1, 1, 1, 1)
                floor = 1e-2 * x.reshape(4, -1).std(axis=1, ddof=1)
                deviation = np.sqrt(around.var(axis=1) + floor**2).reshape(-1, 1, 1, 1)
                found[:, row, column] = (found[:, row, column] - mean) / deviation
    rows = found.reshape(-1, 18)
    mean, matrix = whitening_matrix(rows, 1e-5)
    expected = ((rows - mean) @ matrix @ kernel.reshape(18, 3)).reshape(4, 9, 8, 3) + 1
    np.testing.assert_allclose(ours, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: layers.WhitenedDense(2, block_size=0), "block_size is 0; give a whole number"),
        (lambda: layers.WhitenedDense(2, iterations=2.5), "iterations is 2.5; give a whole"),
        (lambda: layers.WhitenedDense(2, iterations="many"), "iterations is 'many'; give a whole"),
        (lambda: layers.WhitenedConv2D(2, 1, sampling_stride=True), "sampling_stride is True"),
        (lambda: layers.WhitenedDense(2, update_interval=-1), "update_interval is -1"),
        (lambda: layers.WhitenedDense(2, freeze_iterations=0), "freeze_iterations is 0"),
        (lambda: layers.WhitenedDense(2, epsilon=-1e-5), "epsilon is -1e-05; it must be 0 or more"),
        (lambda: layers.WhitenedDense(2, momentum=1.0), "momentum is 1.0; it must be from 0 to"),
        (
            lambda: layers.WhitenedConv2D(2, 1, feature_normalization="batch"),
            "feature_normalization is 'batch'; allowed: None, sample, l1, receptive_field",
        ),
        (
            lambda: layers.WhitenedDense(2, feature_normalization="receptive_field"),
            "which dense layers do not have; use 'sample', 'l1' or None",
        ),
        (
            lambda: layers.WhitenedConv2DTranspose(2, 1, feature_normalization="receptive_field"),
            "which transposed convolutions do not have",
        ),
        (
            lambda: layers.WhitenedDense(2, rules="new"),
            "rules is 'new'; allowed: careful, original",
        ),
        (lambda: layers.WhitenedDense(2, lora_rank=2), "neither LoRA nor quantization"),
        (
            lambda: layers.WhitenedConv2DTranspose(2, 3, rules="original").build((None, 5, 5, 3)),
            "as many filters as input channels, not 2 and 3; use rules='careful'",
        ),
        (lambda: layers.WhitenedDense(2).enable_lora(2), "no LoRA: fold the model first"),
        (lambda: _identity_convolution().quantize("int8"), "not quantized: fold the model first"),
    ],
)
def test_errors(build, message):
    with pytest.raises(InputError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
