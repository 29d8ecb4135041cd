"""Generator and discriminator: sizes, options, layers against numpy, bad input."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_git.errors import InputError
from keras_git.models import _blocks, discriminator, generator_networks

RNG = np.random.default_rng(1)
SMALL = {
    "width": 12,
    "num_downsamplings": 1,
    "num_residual_blocks": 2,
    "mlp_width": 64,
    "outer_kernel": 5,
    "upsampling_kernel": 3,
    "style_downsamplings": 3,
}
TINY = SMALL | {"width": 2, "num_residual_blocks": 1, "mlp_width": 4, "style_dim": 3}


def _numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize(
    ("shape", "content", "style", "decoder", "judge"),
    [
        ((32, 32, 3), 5385856, 2764936, 5754627 + 1120768, 2757057),
        ((28, 28, 1), 5379584, 2758664, 5748353 + 1120768, 2755009),
    ],
)
def test_number_of_parameters(shape, content, style, decoder, judge):
    networks = generator_networks(shape, seed=0)
    assert networks.content_encoder.count_params() == content
    assert networks.style_encoder.count_params() == style
    assert networks.decoder.count_params() == decoder
    assert networks.generator.count_params() == content + decoder
    assert discriminator(shape, seed=0).count_params() == judge


@pytest.mark.slow_on("jax")
def test_number_of_parameters_of_the_small_generator():
    networks = generator_networks((28, 28, 1), seed=0, **SMALL)
    total = networks.generator.count_params() + networks.style_encoder.count_params()
    assert round(total / 1000) == 127
    judge = discriminator((28, 28, 1), width=16, num_layers=3, seed=0)
    assert round(judge.count_params() / 1000) == 41


@pytest.mark.parametrize("padding", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize(
    ("shape", "activation"),
    [((16, 16, 1), "relu"), pytest.param((28, 20, 3), "lrelu", marks=pytest.mark.slow_on("jax"))],
)
def test_shapes_and_generator_is_decoder_of_content(padding, shape, activation):
    networks = generator_networks(shape, padding=padding, activation=activation, seed=1, **TINY)
    images = RNG.uniform(-1, 1, (2, *shape)).astype("float32")
    style = networks.style_encoder(images)
    assert style.shape == (2, 3)
    content = networks.content_encoder(images)
    assert content.shape == (2, shape[0] // 2, shape[1] // 2, 4)
    style = keras.ops.convert_to_tensor(RNG.normal(size=(2, 3)).astype("float32"))
    decoded = _numpy(networks.decoder([content, style]))
    assert decoded.shape == images.shape and np.abs(decoded).max() <= 1
    whole = _numpy(networks.generator([keras.ops.convert_to_tensor(images), style]))
    np.testing.assert_allclose(decoded, whole, atol=1e-6)
    other = networks.decoder([content, style + 1.0])
    assert np.abs(_numpy(other) - decoded).mean() > 1e-4  # the style matters


@pytest.mark.parametrize("mode", ["reflect", "replicate", "zero"])
def test_padding_and_convolution_against_numpy(mode):
    inputs = keras.Input((6, 5, 2))
    padded = keras.Model(inputs, _blocks.pad(inputs, 3, mode, "layer"))
    images = RNG.normal(size=(2, 6, 5, 2)).astype("float32")
    numpy_mode = {"reflect": "reflect", "replicate": "edge", "zero": "constant"}[mode]
    expected = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), mode=numpy_mode)
    np.testing.assert_array_equal(_numpy(padded(images)), expected)


@pytest.mark.parametrize(("kernel", "strides"), [(3, 1), (3, 2), (4, 2), (7, 1)])
def test_convolution_pads_symmetrically(kernel, strides):
    """A direct sum over the window; "same" of Keras would differ at stride 2 and even kernels."""
    size = (kernel - 1) // 2
    inputs = keras.Input((8, 8, 1))
    outputs = _blocks.convolution(
        inputs, 1, kernel, strides=strides, kernel_initializer="glorot_uniform", name="conv"
    )
    model = keras.Model(inputs, outputs)
    weights = RNG.normal(size=(kernel, kernel)).astype("float32")
    model.get_layer("conv").kernel.assign(weights[:, :, None, None])
    image = RNG.normal(size=(8, 8)).astype("float32")
    padded = np.pad(image, size)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel))
    expected = np.einsum("ijkl,kl->ij", windows, weights)[::strides, ::strides]
    np.testing.assert_allclose(
        _numpy(model(image[None, :, :, None]))[0, :, :, 0], expected, atol=1e-4
    )


def test_normalizations_against_numpy():
    inputs = keras.Input((6, 5, 3))
    x = (RNG.normal(size=(2, 6, 5, 3)) * [1, 5, 0.1] + [100, 0, -3]).astype("float32")
    instance = keras.Model(inputs, _blocks.instance_normalization(inputs))
    mean, variance = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(_numpy(instance(x)), expected, atol=2e-3)

    layer = keras.Model(inputs, _blocks.layer_normalization(inputs, 0, "norm"))
    gamma, beta = RNG.normal(size=(2, 3)).astype("float32")
    layer.get_layer("norm").kernel.assign(gamma)
    layer.get_layer("norm").bias.assign(beta)
    centred = x - x.mean((1, 2, 3), keepdims=True)
    deviation = x.reshape(2, -1).std(axis=1, ddof=1).reshape(2, 1, 1, 1)
    expected = centred / (deviation + 1e-5) * gamma + beta
    np.testing.assert_allclose(_numpy(layer(x)), expected, atol=2e-5)
    # a constant image: zero, not NaN
    np.testing.assert_allclose(_numpy(layer(np.ones_like(x)))[0, 0, 0], beta, atol=1e-5)


def test_adain_parameters_are_shift_then_scale():
    """With the last dense layer set by hand, the decoder's first block can be recomputed."""
    shift, scale = keras.Input((2,)), keras.Input((2,))
    inputs = keras.Input((4, 4, 2))
    outputs = _blocks.adaptive_instance_normalization(inputs, shift, scale)
    model = keras.Model([inputs, shift, scale], outputs)
    x = RNG.normal(size=(3, 4, 4, 2)).astype("float32")
    shifts, scales = RNG.normal(size=(2, 3, 2)).astype("float32")
    arrays = [keras.ops.convert_to_tensor(a) for a in (x, shifts, scales)]
    out = _numpy(model(arrays))
    np.testing.assert_allclose(out.mean((1, 2)), shifts, atol=1e-5)
    np.testing.assert_allclose(out.std((1, 2)), np.abs(scales), rtol=1e-3)


def test_initialization():
    networks = generator_networks((16, 16, 1), seed=5, **(SMALL | {"width": 16}))
    kernel = _numpy(networks.content_encoder.get_layer("generator_content_block0_conv0").kernel)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.03)
    norm = networks.decoder.get_layer("generator_decoder_up0_norm")
    gamma = _numpy(norm.kernel)
    assert gamma.min() >= 0 and gamma.max() <= 1 and gamma.std() > 0.1
    assert not _numpy(norm.bias).any()
    judge = discriminator((16, 16, 1), width=32, num_layers=2, seed=5)
    kernel = _numpy(judge.get_layer("discriminator_scale0_conv1").kernel)
    assert kernel.std() == pytest.approx(0.02, rel=0.03)
    assert not any(_numpy(v).any() for v in judge.weights if v.path.endswith("bias"))
    same = generator_networks((16, 16, 1), seed=5, **(SMALL | {"width": 16}))
    for a, b in zip(networks.generator.get_weights(), same.generator.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    other = generator_networks((16, 16, 1), seed=5, prefix="b", **(SMALL | {"width": 16}))
    first = networks.generator.get_weights()[0]
    assert not np.array_equal(first, other.generator.get_weights()[0])


def test_names_route_the_optimizers():
    """The optimizer of the discriminator is found by the name of the variable."""
    networks = generator_networks((16, 16, 1), seed=0, **TINY)
    judge = discriminator((16, 16, 1), width=2, num_layers=2, seed=0)
    assert all(v.path.startswith("discriminator_") for v in judge.variables)
    for network in networks:
        assert all(v.path.startswith("generator_") for v in network.variables)


def test_scales_of_the_discriminator():
    judge = discriminator((16, 20, 1), width=2, num_layers=1, num_scales=3, seed=0)
    images = RNG.normal(size=(2, 16, 20, 1)).astype("float32")
    shapes = [tuple(score.shape) for score in judge(images)]
    assert shapes == [(2, 8, 10, 1), (2, 4, 5, 1), (2, 2, 2, 1)]


def test_half_size_does_not_count_padding():
    from keras_git.models.discriminator import half_size

    inputs = keras.Input((6, 6, 1))
    model = keras.Model(inputs, half_size(inputs, "half"))
    image = RNG.normal(size=(6, 6))
    padded = np.pad(image, 1, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))[::2, ::2]
    expected = np.nanmean(windows, axis=(2, 3))
    ours = _numpy(model(image[None, :, :, None].astype("float32")))[0, :, :, 0]
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "allowed"),
    [
        (lambda: generator_networks((30, 30, 3)), "multiples of 4"),
        (lambda: generator_networks((12, 12, 3)), "from 16 to 64"),
        (lambda: generator_networks((68, 68, 3)), "from 16 to 64"),
        (lambda: generator_networks((32, 32, 2)), "1 or 3"),
        (lambda: generator_networks((16, 16, 3), num_downsamplings=4, width=2), "replicate"),
        (lambda: generator_networks((16, 16, 1), style_downsamplings=5, width=2), "larger images"),
        (lambda: generator_networks((16, 16, 1), padding="mirror"), "reflect, replicate, zero"),
        (lambda: generator_networks((16, 16, 1), activation="gelu"), "relu, lrelu"),
        (lambda: generator_networks((16, 16, 1), outer_kernel=6), "odd"),
        (lambda: generator_networks((16, 16, 1), style_dim=0), "at least 1"),
        (lambda: generator_networks((16, 16, 1), num_residual_blocks=1.5), "integer"),
        (lambda: discriminator((28, 28, 1), num_scales=2), "fewer"),
        (lambda: discriminator((32, 32, 3), num_scales=3), "fewer"),
        (lambda: discriminator((80, 80, 3)), "from 16 to 64"),
        (lambda: discriminator((16, 16, 3), num_layers=6, padding="zero"), "fewer"),
    ],
)
def test_bad_arguments_name_what_is_allowed(build, allowed):
    with pytest.raises(InputError, match=allowed) as caught:
        build()
    assert "\n" not in str(caught.value)
