"""RandAugment and AutoAugment: what they draw, what it stands for, and what they do with it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_git.augmentation import AutoAugment, RandAugment
from keras_git.augmentation.policies import (
    POLICIES,
    RAND_AUGMENT_OPERATIONS,
    SIGNED,
    rand_augment_value,
)
from keras_git.errors import InputError
from keras_git.transforms import policy_operations as policy

MANY = (8192, 8, 8, 3)


def _drawn(layer, seed=0):
    drawn = layer.draw(MANY, keras.random.SeedGenerator(seed))
    return {name: ops.convert_to_numpy(value) for name, value in drawn.items()}


def _images(number=20, side=8):
    return np.random.default_rng(0).integers(0, 256, (number, side, side, 3)).astype(np.uint8)


def test_each_image_draws_its_own_operations_uniformly():
    drawn = _drawn(RandAugment(2, 15))
    numbers = [-1, *(policy.OPERATIONS.index(name) for name in RAND_AUGMENT_OPERATIONS[1:])]
    pairs = np.zeros((14, 14))
    places = np.searchsorted(np.sort(numbers), drawn["operation"])
    assert set(drawn["operation"].ravel()) == set(numbers)
    np.add.at(pairs, tuple(places.T), 1)
    # 8192 / 196 = 41.8 of each pair: the two are independent. 5 standard deviations.
    assert np.abs(pairs - MANY[0] / 196).max() < 5 * np.sqrt(MANY[0] / 196)
    for name in RAND_AUGMENT_OPERATIONS[1:]:
        own = drawn["value"][drawn["operation"] == policy.OPERATIONS.index(name)]
        expected = rand_augment_value(name, 15)
        np.testing.assert_allclose(np.abs(own), expected, rtol=1e-6)
        share = np.mean(own < 0)
        assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(len(own)) if name in SIGNED else share == 0
    np.testing.assert_array_equal(_drawn(RandAugment(2, 15))["value"], drawn["value"])
    assert np.any(_drawn(RandAugment(2, 15), seed=1)["value"] != drawn["value"])


@given(magnitude=st.floats(0, 30))
def test_magnitudes_are_even_parts_of_the_ranges(magnitude):
    part = magnitude / 30
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert rand_augment_value(name, magnitude) == pytest.approx(0.9 * part)
    assert rand_augment_value("rotate", magnitude) == pytest.approx(30 * part)
    assert rand_augment_value("shearX", magnitude) == pytest.approx(0.3 * part)
    assert rand_augment_value("translateY", magnitude) == pytest.approx(150 / 331 * part)
    assert rand_augment_value("solarize", magnitude) == pytest.approx(256 * (1 - part))
    bits = rand_augment_value("posterize", magnitude)
    assert bits == int(bits) and abs(bits - (8 - 4 * part)) <= 0.5 + 1e-9


@pytest.mark.slow_on("jax")
def test_magnitude_0_changes_nothing():
    images = _images()
    names = [n for n in RAND_AUGMENT_OPERATIONS[1:] if n not in ("autocontrast", "equalize")]
    layer = RandAugment(1, 0)
    operation = np.resize([policy.OPERATIONS.index(name) for name in names], (20, 1))
    value = np.resize([rand_augment_value(name, 0) for name in names], (20, 1))
    parameters = {"operation": operation.astype(np.int32), "value": value.astype(np.float32)}
    changed = layer.transform(images.astype(np.float32), parameters)
    np.testing.assert_array_equal(ops.convert_to_numpy(changed), images)


@pytest.mark.slow_on("jax")
def test_only_training_changes_images_and_a_seed_repeats_it():
    images = _images()
    layer, again = RandAugment(seed=3), RandAugment(seed=3)
    kept = layer(images)
    assert keras.backend.standardize_dtype(kept.dtype) == "float32"
    np.testing.assert_array_equal(ops.convert_to_numpy(kept), images)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(images, training=False)), images)
    first = ops.convert_to_numpy(layer(images, training=True))
    assert first.dtype == np.float32 and first.shape == images.shape
    assert np.any(first != images)
    np.testing.assert_array_equal(ops.convert_to_numpy(again(images, training=True)), first)
    given = again.augment(images, keras.random.SeedGenerator(3))
    np.testing.assert_array_equal(ops.convert_to_numpy(given), first)


def test_a_sub_policy_is_drawn_for_each_image_and_its_parts_by_their_probabilities():
    drawn = _drawn(AutoAugment())
    expected = np.zeros(len(policy.OPERATIONS))
    for pair in POLICIES["cifar10"]:
        for name, probability, _ in pair:
            expected[policy.OPERATIONS.index(name)] += probability / 25
    counts = np.array([np.sum(drawn["operation"] == i) for i in range(len(policy.OPERATIONS))])
    variance = MANY[0] * np.maximum(expected, 1e-9) * 2
    assert np.all(np.abs(counts - MANY[0] * expected) <= 5 * np.sqrt(variance))
    assert counts.sum() < drawn["operation"].size
    # pairs in one image are those of a sub-policy, at its magnitudes, in its order
    known = {
        tuple((policy.OPERATIONS.index(n), float(np.float32(policy.VALUES[n][m]))) for n, _, m in p)
        for p in POLICIES["cifar10"]
    }
    both = np.all(drawn["operation"] >= 0, axis=1)
    found = {
        tuple((int(o), float(abs(v))) for o, v in zip(*row, strict=True))
        for row in zip(drawn["operation"][both], drawn["value"][both], strict=True)
    }
    # 24 sub-policies: one has a part of probability 0
    assert found <= known and len(found) == len(known) - 1
    done = drawn["operation"] >= 0
    negative = np.unique(drawn["operation"][done & (drawn["value"] < 0)])
    directed = {name for pair in POLICIES["cifar10"] for name, _, m in pair if m > 0} & set(SIGNED)
    assert {policy.OPERATIONS[o] for o in negative} == directed


def test_the_policy_is_well_formed():
    (pairs,) = POLICIES.values()
    assert len(pairs) == 25 and len(set(pairs)) == 25
    for name, probability, magnitude in (part for pair in pairs for part in pair):
        assert name in policy.OPERATIONS and name != "rescale"
        assert 0 <= probability <= 1 and magnitude in range(10)


@pytest.mark.slow_on("jax")
def test_auto_augment_changes_images_and_keeps_levels():
    images = _images(64)
    changed = ops.convert_to_numpy(AutoAugment().augment(images, keras.random.SeedGenerator(0)))
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 255
    share = np.mean(np.any(changed != images, axis=(1, 2, 3)))
    assert 0.4 < share < 1.0
    np.testing.assert_array_equal(changed, np.round(changed))


@pytest.mark.parametrize(
    "layer", [RandAugment(3, 12.5, seed=5, name="own"), AutoAugment("cifar10", seed=5)]
)
def test_layers_are_saved(layer):
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(restored) is type(layer) and restored.get_config() == layer.get_config()
    assert restored.seed == 5


def test_bad_arguments_are_refused():
    for arguments in ({"num_operations": -1}, {"num_operations": 1.5}, {"magnitude": 31}):
        with pytest.raises(InputError):
            RandAugment(**arguments)
    with pytest.raises(InputError, match="cifar10"):
        AutoAugment("imagenet21k")
    with pytest.raises(InputError, match="shape"):
        RandAugment().augment(np.zeros((8, 8, 3), np.float32), keras.random.SeedGenerator(0))
