"""The generator bank: what stands in it, and that draws from it are what they were."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_git as kg
from keras_git.errors import InputError
from tests.training.conftest import constant_generator, small_networks


@pytest.fixture(scope="module")
def dataset(images: np.ndarray, labels: np.ndarray) -> kg.data.ImageDataset:
    return kg.data.ImageDataset(images, labels, 4)


def test_generate_images_is_the_generator_in_grey_values(images: np.ndarray) -> None:
    generator = small_networks().generator
    styles = np.random.default_rng(1).normal(size=(12, 2)).astype("float32")
    generated = kg.training.generate_images(generator, images, styles, batch_size=5)
    expected = keras.ops.convert_to_numpy(generator([images / 127.5 - 1.0, styles]))
    np.testing.assert_allclose(generated, (expected + 1.0) * 127.5, atol=1e-2)


def test_a_bank_holds_variants_of_some_classes_and_the_others_as_they_are(dataset) -> None:
    skip = np.array([True, False, False, True])
    bank = kg.training.generator_bank(constant_generator(0.0), dataset, 3, skip_classes=skip)
    np.testing.assert_array_equal(bank.class_counts, dataset.class_counts * np.where(skip, 1, 3))
    varied = bank.images[~skip[bank.labels]]
    assert (varied == np.rint(127.5)).all()
    for label in np.flatnonzero(skip):
        np.testing.assert_array_equal(
            bank.images[bank.labels == label], dataset.images[dataset.labels == label]
        )


def test_variants_differ_and_follow_the_seed(dataset) -> None:
    generator = small_networks().generator
    banks = [kg.training.generator_bank(generator, dataset, 2, seed=s).images for s in (0, 0, 1)]
    np.testing.assert_array_equal(banks[0], banks[1])
    assert not np.array_equal(banks[0], banks[2])
    assert not np.array_equal(banks[0][0], banks[0][1])


def test_an_empty_bank_is_refused(dataset) -> None:
    with pytest.raises(InputError, match="use 1 or more"):
        kg.training.generator_bank(constant_generator(), dataset, 0)
