from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from PIL import Image
from scipy import ndimage

from keras_git.errors import InputError
from keras_git.transforms import nuisances


def glyph_like(number: int, size: int = 28, seed: int = 0) -> np.ndarray:
    """Smooth blobs on a black background with anti-aliased edges and full strokes."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(number, size, size)), (0, 2, 2))
    return np.clip(noise * 2500, 0, 255).astype(np.uint8)


def on_backend(function, images, *parameters) -> np.ndarray:
    tensors = [ops.convert_to_tensor(np.asarray(p, np.float32)) for p in parameters]
    images = ops.cast(ops.convert_to_tensor(images), "float32")
    return ops.convert_to_numpy(function(images, *tensors, ops))


@pytest.mark.parametrize("size", [16, 28])
def test_rotation_is_that_of_pillow(size):
    images = glyph_like(20, size)
    angles = np.random.default_rng(1).uniform(-180, 180, 20)
    expected = [
        np.asarray(Image.fromarray(image).rotate(angle, resample=Image.Resampling.BICUBIC))
        for image, angle in zip(images, angles, strict=True)
    ]
    rotated = nuisances.rotate(images, angles)
    np.testing.assert_array_equal(rotated, expected)
    assert rotated.dtype == np.uint8
    difference = np.abs(on_backend(nuisances.rotate, images, angles) - rotated)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("turns", [-2, -1, 0, 1, 2, 4])
def test_quarter_turns_are_exact(turns):
    images = glyph_like(3)
    expected = np.rot90(images, turns, axes=(1, 2))
    np.testing.assert_array_equal(nuisances.rotate(images, 90.0 * turns), expected)
    np.testing.assert_array_equal(
        on_backend(nuisances.rotate, images, np.full(3, 90.0 * turns)), expected
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_dilation_and_erosion_are_those_of_scipy(size):
    images = glyph_like(4)
    for function, oracle, outside in (
        (nuisances.dilate, ndimage.maximum_filter, 0),
        (nuisances.erode, ndimage.minimum_filter, 255),
    ):
        # scipy centres an even window at size // 2, as the definition here
        expected = [
            oracle(image, size=(size, size), mode="constant", cval=outside) for image in images
        ]
        np.testing.assert_array_equal(function(images, size, largest=4), expected)


def test_sizes_are_per_image():
    images = glyph_like(4)
    sizes = np.array([1, 2, 3, 4])
    dilated = nuisances.dilate(images, sizes)
    np.testing.assert_array_equal(dilated[0], images[0])
    for index, size in enumerate(sizes):
        np.testing.assert_array_equal(dilated[index], nuisances.dilate(images[[index]], size)[0])
    np.testing.assert_array_equal(on_backend(nuisances.dilate, images, sizes), dilated)
    eroded = nuisances.erode(images, [1, 2, 1, 2])
    np.testing.assert_array_equal(on_backend(nuisances.erode, images, [1, 2, 1, 2]), eroded)
    both = nuisances.dilate_erode(images, sizes, [2, 1, 1, 1])
    np.testing.assert_array_equal(both[1:], dilated[1:])
    np.testing.assert_array_equal(
        on_backend(nuisances.dilate_erode, images, sizes, [2, 1, 1, 1]), both
    )


def test_background_replaces_exact_zeros_only():
    images = np.array([[[0, 1, 255]], [[0, 0, 7]]], np.uint8)
    expected = [[[9, 1, 255]], [[30, 30, 7]]]
    np.testing.assert_array_equal(nuisances.set_background(images, [9, 30]), expected)
    np.testing.assert_array_equal(on_backend(nuisances.set_background, images, [9, 30]), expected)
    np.testing.assert_array_equal(nuisances.set_background(images, 0), images)


@given(st.integers(0, 224), st.data())
def test_grey_level_is_exact_integer_arithmetic(background, data):
    foreground = data.draw(st.integers(background + 30, 255) if background < 225 else st.just(255))
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    expected = background + (foreground - background) * levels.astype(np.int64) // 255
    np.testing.assert_array_equal(nuisances.grey_level(levels, background, foreground), expected)
    on_device = on_backend(nuisances.grey_level, levels, [background], [foreground])
    np.testing.assert_array_equal(on_device, expected)


@given(st.integers(-9, 9), st.integers(-9, 9))
def test_shift(down, right):
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    padded = np.pad(image, ((0, 0), (9, 9), (9, 9), (0, 0)))
    expected = padded[:, 9 - down : 17 - down, 9 - right : 17 - right]
    np.testing.assert_array_equal(nuisances.shift(image, down, right), expected)
    np.testing.assert_array_equal(on_backend(nuisances.shift, image, [down], [right]), expected)


@pytest.mark.parametrize("function", [nuisances.rotate, nuisances.dilate, nuisances.erode])
def test_channels_are_treated_alike(function):
    images = np.stack([glyph_like(2, seed=seed) for seed in range(3)], axis=-1)
    result = function(images, [2, 1])
    assert result.shape == images.shape and result.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(result[..., channel], function(images[..., channel], [2, 1]))
    np.testing.assert_allclose(on_backend(function, images, [2, 1]), result, atol=1)


def test_draws_follow_their_distributions():
    rng = np.random.default_rng(0)
    drawn = nuisances.sample_dilation_erosion(20_000, rng)
    dilating = drawn["dilate"] > 1
    assert dilating.mean() == pytest.approx(0.6, abs=0.015)
    assert ((drawn["dilate"] == 1) & (drawn["erode"] == 1)).mean() == pytest.approx(0.2, abs=0.015)
    assert set(drawn["dilate"]) == {1, 2, 3, 4} and set(drawn["erode"]) == {1, 2}
    assert np.all(drawn["erode"][dilating] == 1)
    grey = nuisances.sample_grey_level(20_000, rng)
    assert grey["background"].min() == 0 and grey["background"].max() == 224
    assert np.all(grey["foreground"] >= grey["background"] + 30) and grey["foreground"].max() == 255
    background = nuisances.sample_background(20_000, rng)["values"]
    assert background.min() == 0 and background.max() == 99
    degrees = nuisances.sample_rotation(20_000, rng)["degrees"]
    assert abs(degrees).max() <= 180 and abs(degrees.mean()) < 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nuisances.rotate(np.zeros((3, 3)), 1.0), r"\(N, H, W\)"),
        (lambda: nuisances.set_background(np.zeros(3), 1), r"\(N, H, W\)"),
        (lambda: nuisances.grey_level(np.zeros(3), 1, 2), r"\(N, H, W\)"),
        (lambda: nuisances.shift(np.zeros(3), 1, 2), r"\(N, H, W\)"),
        (lambda: nuisances.dilate(np.zeros((1, 3, 3)), 5), "from 1 to 4"),
        (lambda: nuisances.erode(np.zeros((1, 3, 3)), [0]), "from 1 to 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
