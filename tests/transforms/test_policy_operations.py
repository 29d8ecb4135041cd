"""Operations of augmentation policies: against Pillow, closed forms, and what does nothing."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from PIL import Image, ImageEnhance, ImageOps

from keras_git.errors import InputError
from keras_git.transforms import (
    Compose,
    PolicyOperation,
    policy_operations,
    policy_transform,
    search_names,
)

MAGNITUDES = st.integers(0, 9)


def _images(seed, number=3, side=16, channels=3):
    rng = np.random.default_rng(seed)
    # few levels and a gradient: histograms with gaps, images that are no noise
    levels = rng.integers(0, 256, 12)
    images = levels[rng.integers(0, 12, (number, side, side, channels))]
    images[:, :, : side // 2] = images[:, :, : side // 2] // 2 + 20
    return images.astype(np.uint8)


def _applied(transform, images, seed=0):
    return ops.convert_to_numpy(transform(images, seed))


def _pillow(images, function):
    return np.stack([np.asarray(function(Image.fromarray(image))) for image in images])


@pytest.mark.slow_on("jax")
@given(seed=st.integers(0, 2**16), magnitude=MAGNITUDES)
def test_levels_are_those_of_pillow(seed, magnitude):
    images = _images(seed)
    bits = int(policy_operations.operation_value("posterize", magnitude))
    threshold = policy_operations.operation_value("solarize", magnitude)
    for operation, function in (
        ("posterize", lambda image: ImageOps.posterize(image, bits)),
        ("solarize", lambda image: ImageOps.solarize(image, threshold)),
        ("equalize", ImageOps.equalize),
        ("invert", ImageOps.invert),
    ):
        ours = _applied(PolicyOperation(operation, magnitude), images)
        np.testing.assert_array_equal(ours, _pillow(images, function), err_msg=operation)


@given(seed=st.integers(0, 2**16), magnitude=MAGNITUDES, sign=st.sampled_from([-1, 1]))
def test_enhancements_are_those_of_pillow_to_one_level(seed, magnitude, sign):
    images = _images(seed)
    factor = 1 + sign * policy_operations.operation_value("color", magnitude)
    for operation, enhancement in (
        ("color", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("sharpness", ImageEnhance.Sharpness),
        ("brightness", ImageEnhance.Brightness),
    ):
        ours = _applied(PolicyOperation(operation, magnitude, sign), images)
        theirs = _pillow(images, lambda image, e=enhancement: e(image).enhance(factor))
        np.testing.assert_allclose(ours, theirs, atol=1, err_msg=operation)
    stretched = _applied(PolicyOperation("autocontrast", 5), images)
    np.testing.assert_allclose(stretched, _pillow(images, ImageOps.autocontrast), atol=1)


@pytest.mark.slow_on("jax")
def test_translation_by_whole_pixels_is_a_shift_of_the_array():
    images = _images(0, side=10)
    parameters = policy_operations.operation_parameters("translateX", np.array([0.3, -0.2, 0.0]))
    moved = ops.convert_to_numpy(policy_operations.apply_family("nearest", images, parameters))
    np.testing.assert_array_equal(moved[0, :, :7], images[0, :, 3:])
    np.testing.assert_array_equal(moved[0, :, 7:], 128)
    np.testing.assert_array_equal(moved[1, :, 2:], images[1, :, :8])
    np.testing.assert_array_equal(moved[1, :, :2], 128)
    np.testing.assert_array_equal(moved[2], images[2])


@pytest.mark.slow_on("jax")
def test_a_quarter_turn_is_a_transpose_and_a_flip():
    images = _images(1, number=1)
    parameters = policy_operations.operation_parameters("rotate", np.array([90.0]))
    turned = ops.convert_to_numpy(policy_operations.apply_family("nearest", images, parameters))
    np.testing.assert_array_equal(turned[0], np.rot90(images[0]))


def test_rescaling_there_and_back_restores_the_centre():
    images = np.kron(_images(2, side=8), np.ones((1, 4, 4, 1))).astype(np.float32)
    parameters = [
        policy_operations.operation_parameters("rescale", np.full(3, factor))
        for factor in (0.5, 2.0)
    ]
    small = policy_operations.apply_family("nearest", images, parameters[0])
    assert np.all(ops.convert_to_numpy(small)[:, :8] == 0)
    back = ops.convert_to_numpy(policy_operations.apply_family("nearest", small, parameters[1]))
    np.testing.assert_array_equal(back, images)


@pytest.mark.parametrize("operation", policy_operations.OPERATIONS)
def test_what_is_neutral_changes_nothing(operation):
    images = _images(3)
    for magnitude in range(10):
        if policy_operations.canonical(operation, magnitude) is None:
            changed = _applied(PolicyOperation(operation, magnitude), images)
            np.testing.assert_array_equal(changed, images)


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("operation", policy_operations.OPERATIONS)
def test_one_grey_channel_and_rectangles(operation):
    images = _images(4, channels=1)[:, :12]
    ours = _applied(PolicyOperation(operation, 9), images)
    assert ours.shape == images.shape and ours.min() >= 0 and ours.max() <= 255
    np.testing.assert_array_equal(ours, np.round(ours))


@pytest.mark.slow_on("jax")
def test_candidates_of_the_search():
    assert len(search_names(False)) == 63 and len(search_names(False, True)) == 112
    names = search_names()
    assert len(names) == 48
    transforms = [policy_transform(name, sign=1) for name in names]
    images = _images(5, number=2, side=32)
    results = [_applied(transform, images).tobytes() for transform in transforms]
    assert len(set(results)) == 48  # all of them do something else
    assert results.count(images.astype(np.float32).tobytes()) == 1  # and one does nothing


def test_draws_repeat_and_stay_up_to_the_magnitude():
    drawn = PolicyOperation("rotate", 4, up_to=True).sample(200, np.random.default_rng(0))
    again = PolicyOperation("rotate", 4, up_to=True).sample(200, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn["matrix"], again["matrix"])
    degrees = np.degrees(np.arctan2(-drawn["matrix"][:, 1], drawn["matrix"][:, 0]))
    expected = policy_operations.VALUES["rotate"][:5]
    np.testing.assert_allclose(np.unique(degrees.round(3)), expected, atol=1e-2)
    enlarging = PolicyOperation("rescale", 8, up_to=True).sample(100, np.random.default_rng(0))
    assert enlarging["matrix"][:, 0].max() < 1
    signs = PolicyOperation("shearX", 9).sample(100, np.random.default_rng(0))["along_x"]
    np.testing.assert_allclose(np.unique(signs), [-0.3, 0.3], rtol=1e-6)
    assert PolicyOperation("shearX", 9, 1).deterministic
    assert not PolicyOperation("shearX", 9).deterministic


def test_names_are_read_back():
    transform = policy_transform("shearX and equalize with magnitudes 5, 9", sign=-1)
    assert isinstance(transform, Compose)
    assert [part.operation for part in transform.transforms] == ["shearX", "equalize"]
    assert transform.transforms[0].sign == -1 and transform.transforms[1].sign is None
    single = PolicyOperation("translateY", 3, -1)
    assert policy_transform(single.name) == single
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(single))
    assert restored == single
    assert PolicyOperation("rotate", 9).function_key == PolicyOperation("rescale", 3).function_key


@pytest.mark.parametrize("name", ["rotate", "swirl with magnitude 3", "rotate with magnitude 12"])
def test_bad_names_are_refused(name):
    with pytest.raises(InputError):
        policy_transform(name)
    with pytest.raises(InputError):
        PolicyOperation("rotate", 10)
    with pytest.raises(InputError):
        PolicyOperation("equalize", 1, sign=-1)
