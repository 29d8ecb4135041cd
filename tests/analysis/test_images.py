"""Labelled images from all kinds of sources."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_git.analysis import pixel_embedding, sample_images
from keras_git.errors import InputError


def _data(number=40):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (number, 4, 4, 3), np.uint8), np.arange(number) % 4


class _Batches(keras.utils.PyDataset):
    def __init__(self, images, labels):
        super().__init__()
        self._images, self._labels = images, labels

    def __len__(self):
        return 5

    def __getitem__(self, index):
        part = slice(8 * index, 8 * index + 8)
        return self._images[part], self._labels[part]


def test_all_sources_give_the_same():
    images, labels = _data()
    expected = sample_images((images, labels), images_per_class=6, seed=3)
    assert np.bincount(expected.labels).tolist() == [6] * 4
    loader = [(images[i : i + 8], labels[i : i + 8]) for i in range(0, 40, 8)]
    first = [(b.transpose(0, 3, 1, 2), y) for b, y in loader]  # as PyTorch has them
    for data in (_Batches(images, labels), loader, first, iter(loader)):
        found = sample_images(data, images_per_class=6, seed=3)
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)
    other = sample_images((images, labels), images_per_class=6, seed=4)
    assert other.content_hash() != expected.content_hash()
    assert len(sample_images((images, labels))) == 40


@pytest.mark.parametrize(("side", "block"), [(12, 1), (32, 2), (50, 3)])
def test_pixels_are_an_embedding(side, block):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, side, side, 1), np.uint8)
    sample = sample_images((images, np.arange(300) % 3))
    embedding = pixel_embedding(sample).predict(sample.images, verbose=0)
    cells = side // block
    cut = sample.images[:, : cells * block, : cells * block, 0].astype(float)
    expected = cut.reshape(300, cells, block, cells, block).mean(axis=(2, 4)).reshape(300, -1)
    np.testing.assert_allclose(embedding, expected - expected.mean(axis=0), atol=1e-2)


def test_ranges():
    images, labels = _data()
    assert sample_images((images, labels)).highest == 255
    assert sample_images((images.astype(np.float64), labels)).highest == 255
    assert sample_images((images / 255, labels)).highest == 1
    with pytest.raises(InputError, match="range from"):
        sample_images((images / 127.5 - 1, labels))
    with pytest.raises(InputError, match="labels have dtype"):
        sample_images((images, ["cat"] * len(images)))
    with pytest.raises(InputError, match="seed is -1"):
        sample_images((images, labels), seed=-1)
    with pytest.raises(InputError, match="have no images"):
        sample_images([])
    with pytest.raises(InputError, match="give"):
        sample_images(3)
