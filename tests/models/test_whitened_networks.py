"""Residual networks: the wide ones, and both kinds with whitened convolutions."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_git as kg
from keras_git.errors import InputError
from keras_git.layers import WhitenedConv2D, fold
from keras_git.models import resnet, wide_resnet

SMALL = {"width": 2, "seed": 1}


def _trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.slow_on("jax")
def test_number_of_parameters_of_resnet_18():
    """Published: 11,689,512 with 1000 classes and the large stem."""
    small = _trainable(wide_resnet((32, 32, 3), 10))
    assert small == 11_173_962
    # the large stem has 7 * 7 instead of 3 * 3 taps, the head 990 classes more
    assert small + 3 * 64 * (49 - 9) + 990 * 513 == 11_689_512


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "size"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_number_of_parameters_on_imagenet(depth, size):
    assert _trainable(wide_resnet((224, 224, 3), 1000, depth)) == size


@pytest.mark.slow_on("jax")
def test_stems():
    def maps(shape, stem, **options):
        network = wide_resnet(shape, 3, stem=stem, **SMALL, **options)
        return network.get_layer("classifier_pool").input.shape[1:]

    assert maps((32, 32, 3), "small") == (4, 4, 16)
    assert maps((32, 48, 3), "large") == (1, 2, 16)
    assert maps((95, 96, 1), "auto") == (12, 12, 16)  # 96 pixels on both sides for the large one
    assert maps((96, 97, 1), "auto", depth=50) == (3, 4, 64)


def test_whitening_takes_the_place_of_batch_normalization():
    """One whitened convolution with bias for each pair; the rest has the same names."""
    for build, depth in ((resnet, 8), (wide_resnet, 18)):
        plain = build((16, 16, 3), 3, depth, **SMALL)
        whitened = build((16, 16, 3), 3, depth, whitening={"block_size": 8}, **SMALL)
        names = [layer.name for layer in plain.layers]
        kinds = {layer.name: layer for layer in whitened.layers}
        convs = [v for v in whitened.layers if isinstance(v, WhitenedConv2D)]
        norms = [v for v in plain.layers if isinstance(v, keras.layers.BatchNormalization)]
        assert len(convs) == len(norms) and all(v.use_bias and v.block_size == 8 for v in convs)
        assert set(kinds) <= set(names) | {v.name for v in whitened.operations}
        for conv in convs:  # one seed, one start
            ours, theirs = (
                np.asarray(keras.ops.convert_to_numpy(n.get_layer(conv.name).kernel))
                for n in (whitened, plain)
            )
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("norm", [None, "sample"])
def test_a_whitened_network_trains_and_folds(norm):
    """Through the project's classifier: its call in training finds no batch normalization."""
    network = resnet(
        (16, 16, 3),
        3,
        8,
        mean=0.5,
        std=0.25,
        whitening={"block_size": 8, "iterations": 3},
        feature_normalization=norm,
        **SMALL,
    )
    model = kg.training.Classifier(network)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kg.optimizers.SGD(0.1), loss)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (8, 16, 16, 3)).astype("float32")
    labels = np.arange(8) % 3
    losses = [float(model.train_on_batch(images, labels)) for _ in range(6)]
    assert losses[-1] < losses[0]
    stem = network.get_layer("classifier_stem_conv")
    assert int(keras.ops.convert_to_numpy(stem.statistics.updates)) == 6
    expected = network.predict_on_batch(images)
    np.testing.assert_allclose(fold(network).predict_on_batch(images), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 50])
def test_a_wide_whitened_network_trains(depth):
    network = wide_resnet((16, 16, 3), 3, depth, whitening={"block_size": 4}, **SMALL)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(0.05), loss)
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
    losses = [float(network.train_on_batch(images, np.arange(8) % 3)) for _ in range(4)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: wide_resnet((32, 32, 3), 10, 20), "depth is 20; allowed: 18, 34, 50"),
        (lambda: wide_resnet((32, 32, 3), 1), "num_classes is 1; it must be at least 2"),
        (lambda: wide_resnet((32, 32, 3), 10, stem="tiny"), "allowed: auto, small, large"),
        (lambda: wide_resnet((16, 32, 3), 10, stem="large"), "at least 32"),
        (lambda: wide_resnet((32, 32, 2), 10), "1 or 3"),
        (lambda: wide_resnet((32, 32, 3), 10, width=0), "at least 1"),
        (
            lambda: wide_resnet((32, 32, 3), 10, feature_normalization="sample"),
            "belongs to whitened convolutions: give whitening=True too",
        ),
        (
            lambda: resnet((32, 32, 3), 10, 8, feature_normalization="l1"),
            "belongs to whitened convolutions",
        ),
        (
            lambda: resnet((32, 32, 3), 10, 8, whitening=True, feature_normalization="batch"),
            "feature_normalization is 'batch'; allowed: None, sample",
        ),
        (lambda: resnet((32, 32, 3), 10, 8, whitening={"blocks": 3}), "any of block_size, diff"),
        (lambda: resnet((32, 32, 3), 10, 8, whitening=None), "whitening is None; allowed: True"),
        (lambda: resnet((32, 32, 3), 10, 8, whitening={"iterations": 0}), "iterations is 0"),
    ],
)
def test_bad_arguments_name_what_is_allowed(build, message):
    with pytest.raises(InputError, match=message):
        build()
