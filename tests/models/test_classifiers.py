"""Classifiers: sizes, initialization, normalization of the input, running variance, bad input."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_git.errors import InputError
from keras_git.models import call_in_training, four_conv, resnet

RNG = np.random.default_rng(0)


def _trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def _numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.mark.parametrize(
    ("shape", "classes", "depth", "linear", "cosine"),
    [
        ((32, 32, 3), 10, 20, 269722, 269712),
        ((28, 28, 1), 49, 20, 271969, 271920),
        ((32, 32, 3), 10, 32, 464154, 464144),
        ((32, 32, 3), 100, 32, 470004, 469904),
    ],
)
def test_number_of_parameters(shape, classes, depth, linear, cosine):
    assert _trainable(resnet(shape, classes, depth, seed=0)) == linear
    assert _trainable(resnet(shape, classes, depth, head="cosine", seed=0)) == cosine


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "size"), [(44, 658586), (56, 853018), (110, 1727962)])
def test_number_of_parameters_of_deep_networks(depth, size):
    assert _trainable(resnet((32, 32, 3), 10, depth, seed=0)) == size


def test_initialization_of_resnet():
    network = resnet((16, 16, 3), 10, 8, seed=4)
    kernel = _numpy(network.get_layer("classifier_stage3_block0_conv2").kernel)
    deviation = np.sqrt(2.0 / (9 * 64))
    assert kernel.std() == pytest.approx(deviation, rel=0.02)
    # a truncated normal has nothing beyond two deviations; 4.55 % of an untruncated one is there
    assert np.mean(np.abs(kernel) > 2 * deviation) == pytest.approx(0.0455, abs=0.005)
    head = network.get_layer("classifier_head")
    assert _numpy(head.kernel).std() == pytest.approx(np.sqrt(2.0 / 64), rel=0.1)
    assert 0.08 < np.abs(_numpy(head.bias)).max() <= 0.125
    kernels = [_numpy(v) for v in network.trainable_variables if v.path.endswith("kernel")]
    assert len({float(k.ravel()[0]) for k in kernels}) == len(kernels)  # a seed for each layer


def test_initialization_of_cosine_head_and_four_conv():
    kernel = _numpy(
        resnet((16, 16, 3), 10, 8, head="cosine", seed=4).get_layer("classifier_head").kernel
    )
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1.0, rtol=1e-5)
    network = four_conv((16, 16, 1), 5, width=8, seed=1)
    for block, fan_in in ((0, 9), (1, 72)):
        layer = network.get_layer(f"classifier_block{block}_conv")
        for values in (_numpy(layer.kernel), _numpy(layer.bias)):
            assert 0.5 / np.sqrt(fan_in) < np.abs(values).max() <= 1 / np.sqrt(fan_in)


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: resnet((16, 16, 1), 3, 8, width=4, seed=seed),
        lambda seed: resnet((16, 16, 1), 3, 8, width=4, head="cosine", seed=seed),
        lambda seed: four_conv((16, 16, 1), 3, width=4, seed=seed),
    ],
)
def test_seed(build):
    def weights(seed):
        return np.concatenate([values.ravel() for values in build(seed).get_weights()])

    np.testing.assert_array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))


@pytest.mark.parametrize("shape", [(16, 16, 1), (16, 20, 3)])
def test_cosine_head_is_the_cosine(shape):
    network = resnet(shape, 5, 8, head="cosine", width=4, seed=2)
    head, pool = network.get_layer("classifier_head"), network.get_layer("classifier_pool")
    head.kernel.assign(RNG.normal(size=head.kernel.shape) * 3)
    images = RNG.normal(size=(3, *shape)).astype("float32")
    features = _numpy(keras.Model(network.inputs, pool.output)(images))
    kernel = _numpy(head.kernel)
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = features @ (kernel / np.linalg.norm(kernel, axis=0))
    np.testing.assert_allclose(_numpy(network(images)), expected, atol=1e-5)


@pytest.mark.parametrize(("mean", "std"), [([0.2, 0.4, 0.6], [0.1, 0.2, 0.3]), (0.5, 0.25)])
def test_own_scaling_equals_normalized_input(mean, std):
    scaled = resnet((16, 16, 3), 3, 8, width=4, mean=mean, std=std, seed=7)
    plain = resnet((16, 16, 3), 3, 8, width=4, seed=7)
    images = RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    normalized = (images / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(
        _numpy(scaled(images)), _numpy(plain(normalized.astype("float32"))), atol=2e-5
    )


@pytest.mark.parametrize(("batch", "momentum"), [(2, 0.9), (5, 0.9)])
def test_running_variance_is_unbiased(batch, momentum):
    """Against numpy's ddof=1 on the input of the first normalization, twice in a row."""
    network = four_conv((16, 16, 1), 3, width=4, seed=3)
    layer = network.get_layer("classifier_block0_bn")
    before = keras.Model(network.inputs, layer.input)
    variance, mean = np.ones(4), np.zeros(4)
    for _ in range(2):
        images = RNG.normal(size=(batch, 16, 16, 1)).astype("float32")
        values = _numpy(before(images)).reshape(-1, 4)
        outputs = call_in_training(network, images)
        variance = momentum * variance + (1 - momentum) * values.var(axis=0, ddof=1)
        mean = momentum * mean + (1 - momentum) * values.mean(axis=0)
        np.testing.assert_allclose(_numpy(layer.moving_variance), variance, rtol=1e-5)
        np.testing.assert_allclose(_numpy(layer.moving_mean), mean, rtol=1e-4, atol=1e-6)
    biased = four_conv((16, 16, 1), 3, width=4, seed=3)
    np.testing.assert_allclose(_numpy(outputs), _numpy(biased(images, training=True)), atol=1e-5)


def test_frozen_normalization_is_left_alone():
    network = four_conv((16, 16, 1), 3, width=4, seed=3)
    network.trainable = False
    before = network.get_weights()
    call_in_training(network, RNG.normal(size=(2, 16, 16, 1)).astype("float32"))
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("build", "allowed"),
    [
        (lambda: resnet((16, 16, 3), 10, 21), "6n[+]2"),
        (lambda: resnet((16, 16, 3), 10, 2), "6n[+]2"),
        (lambda: resnet((16, 16, 3), 10, 8, head="softmax"), "linear, cosine"),
        (lambda: resnet((16, 16, 2), 10, 8), "1 or 3"),
        (lambda: resnet((4, 16, 3), 10, 8), "at least 8"),
        (lambda: resnet((16, 16), 10, 8), "height, width, channels"),
        (lambda: resnet((16, 16, 3), 1, 8), "at least 2"),
        (lambda: resnet((16, 16, 3), 10, 8, width=5), "even"),
        (lambda: resnet((16, 16, 3), 10, 8, mean=0.5), "together"),
        (lambda: resnet((16, 16, 3), 10, 8, mean=[0.5, 0.5], std=[1, 1]), "3 channels"),
        (lambda: resnet((16, 16, 3), 10, 8, mean=0.5, std=0.0), "above 0"),
        (lambda: four_conv((32, 32, 3), 10), "from 16 to 31"),
        (lambda: four_conv((15, 16, 3), 10), "from 16 to 31"),
        (lambda: four_conv((16, 16, 3), 10, width=0), "at least 1"),
    ],
)
def test_bad_arguments_name_what_is_allowed(build, allowed):
    with pytest.raises(InputError, match=allowed) as caught:
        build()
    assert "\n" not in str(caught.value)
