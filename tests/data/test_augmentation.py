"""Crop and flip against a loop over single images; numpy and TensorFlow give the same bytes."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs TensorFlow")
@pytest.mark.parametrize("setting", SETTINGS)
@given(seed=st.integers(0, 10_000), channels=st.sampled_from([1, 3]))
def test_tensorflow_gives_the_same_bytes(setting, seed, channels):
    import tensorflow as tf

    batch = images(5, channels)
    parameters = setting.parameters(np.random.default_rng(seed), len(batch))
    expected = setting.apply_numpy(batch, parameters)
    result = setting.apply_tensorflow(tf.constant(batch), tuple(map(tf.constant, parameters)))
    np.testing.assert_array_equal(result.numpy(), expected)


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
