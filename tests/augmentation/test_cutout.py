"""Cutout: against loops, and the area that it blanks."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_git.augmentation import Cutout
from keras_git.errors import InputError

SHAPE = (256, 9, 11, 3)


def _images():
    return np.random.default_rng(0).integers(1, 256, SHAPE).astype(np.float32)


def _cut(layer, images, seed=0):
    return ops.convert_to_numpy(layer.augment(images, keras.random.SeedGenerator(seed)))


@pytest.mark.parametrize("size", [4, 5])
def test_what_is_blanked_is_the_square_of_a_centre_within_the_image(size):
    images = _images()
    cut = _cut(Cutout(size, fill=(0.0, 100.5, 255.0)), images)
    blank = np.all(cut == np.float32([0.0, 100.5, 255.0]), axis=-1)
    np.testing.assert_array_equal(cut[~blank], images[~blank])
    squares = {}
    for row in range(SHAPE[1]):
        for column in range(SHAPE[2]):
            square = np.zeros(SHAPE[1:3], bool)
            for i in range(row - size // 2, row - size // 2 + size):
                for j in range(column - size // 2, column - size // 2 + size):
                    if 0 <= i < SHAPE[1] and 0 <= j < SHAPE[2]:
                        square[i, j] = True
            squares[square.tobytes()] = (row, column)
    centres = np.array([squares[of.tobytes()] for of in blank])
    # uniform over rows and columns: means within 5 standard errors
    for axis, side in enumerate(SHAPE[1:3]):
        error = np.sqrt((side**2 - 1) / 12 / len(centres))
        assert abs(centres[:, axis].mean() - (side - 1) / 2) < 5 * error
        assert set(centres[:, axis]) == set(range(side))


def test_probability_limits_seeds_and_saving():
    images = _images()
    np.testing.assert_array_equal(_cut(Cutout(4, 0.0), images), images)
    np.testing.assert_array_equal(_cut(Cutout(0), images), images)
    np.testing.assert_array_equal(_cut(Cutout(40), images), np.zeros_like(images))
    half = _cut(Cutout(4, 0.5), images)
    assert abs(np.mean(np.any(half == 0, axis=(1, 2, 3))) - 0.5) < 5 * 0.5 / 16
    np.testing.assert_array_equal(half, _cut(Cutout(4, 0.5), images))
    assert np.any(half != _cut(Cutout(4, 0.5), images, seed=1))
    layer = Cutout(6, 0.25, fill=(1.0, 2.0, 3.0), seed=4)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert restored.get_config() == layer.get_config() and restored.fill == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(ops.convert_to_numpy(Cutout(4)(images)), images)


def test_bad_arguments_are_refused():
    for arguments in ({"size": -1}, {"size": 2.5}, {"probability": 1.1}, {"fill": 256.0}):
        with pytest.raises(InputError):
            Cutout(**arguments)
    with pytest.raises(InputError, match="channels"):
        _cut(Cutout(4, fill=(0.0, 1.0)), _images())
