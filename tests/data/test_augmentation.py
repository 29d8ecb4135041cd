"""Crop and flip against a loop over single images; numpy and tensors give the same bytes."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_git.data import RandomCropFlip
from keras_git.errors import InputError

SETTINGS = [
    RandomCropFlip(),
    RandomCropFlip(padding=2, flip=False),
    RandomCropFlip(crop=False),
    RandomCropFlip(crop=False, flip=False),
    RandomCropFlip(padding=0),
]


def images(number: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(2).integers(1, 256, (number, 8, 6, channels), dtype=np.uint8)


def one_by_one(batch: np.ndarray, padding: int, offsets, flips) -> np.ndarray:
    results = []
    for image, (row, column), flip in zip(batch, offsets, flips, strict=True):
        canvas = np.zeros((8 + 2 * padding, 6 + 2 * padding, image.shape[-1]), np.uint8)
        canvas[padding : padding + 8, padding : padding + 6] = image
        cut = canvas[row : row + 8, column : column + 6]
        results.append(np.fliplr(cut) if flip else cut)
    return np.stack(results)


@pytest.mark.parametrize("setting", SETTINGS)
def test_batch_equals_single_images(setting):
    batch = images()
    kept = batch.copy()
    parameters = setting.parameters(np.random.default_rng(0), len(batch))
    result = setting.apply_numpy(batch, parameters)
    np.testing.assert_array_equal(result, one_by_one(batch, setting.padding, *parameters))
    np.testing.assert_array_equal(batch, kept)  # the input is not written to
    assert result.dtype == np.uint8 and result.flags.c_contiguous


@pytest.mark.parametrize("setting", SETTINGS)
def test_tensors_on_any_backend_give_the_same_bytes(setting):
    """Many images in one call: all offsets and flips, and one compilation each on JAX."""
    batch = images(60)
    offsets, flips = setting.parameters(np.random.default_rng(1), len(batch))
    tensors = [keras.ops.convert_to_tensor(array) for array in (batch, offsets, flips)]
    for cast in ("uint8", "float32"):
        result = setting.apply(keras.ops.cast(tensors[0], cast), (tensors[1], tensors[2]))
        assert keras.backend.standardize_dtype(result.dtype) == cast
        expected = setting.apply_numpy(batch, (offsets, flips))
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(result), expected)


def test_parameters_cover_their_range_evenly():
    offsets, flips = RandomCropFlip().parameters(np.random.default_rng(1), 9000)
    assert offsets.shape == (9000, 2) and offsets.dtype == np.int32 and flips.dtype == bool
    for axis in (0, 1):
        hits = np.bincount(offsets[:, axis], minlength=9)
        assert len(hits) == 9 and (np.abs(hits - 1000) < 150).all()
    assert abs(flips.mean() - 0.5) < 0.03
    assert len({tuple(o) for o in offsets[:50]}) > 20  # per image, not per batch


def test_negative_padding():
    with pytest.raises(InputError, match="padding"):
        RandomCropFlip(padding=-1)
