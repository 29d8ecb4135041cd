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


def test_a_bank_holds_each_image_and_variants_of_some_classes(dataset) -> None:
    skip = np.array([True, False, False, True])
    bank = kg.training.generator_bank(constant_generator(0.0), dataset, 3, skip_classes=skip)
    images, labels = bank.dataset.images, bank.dataset.labels
    np.testing.assert_array_equal(
        bank.dataset.class_counts, dataset.class_counts * np.where(skip, 1, 4)
    )
    np.testing.assert_array_equal(images[bank.first], dataset.images)
    np.testing.assert_array_equal(labels[bank.first], dataset.labels)
    assert (np.delete(images, bank.first, axis=0) == np.rint(127.5)).all()
    np.testing.assert_array_equal(bank.variants, np.where(skip[dataset.labels], 0, 3))


@pytest.mark.parametrize("name", ["instance_balanced", "class_balanced", "square_root"])
def test_draws_from_a_bank_are_those_from_the_images(dataset, name: str) -> None:
    skip = np.array([True, False, False, False])
    bank = kg.training.generator_bank(constant_generator(), dataset, 4, skip_classes=skip)
    plain = kg.data.sampler(name, dataset.labels, 3)
    varied = bank.sampler(plain, 5)
    assert len(varied) == len(plain)
    rows = np.concatenate([varied.indices(epoch) for epoch in range(30)])
    drawn = np.concatenate([plain.indices(epoch) for epoch in range(30)])
    np.testing.assert_array_equal(np.searchsorted(bank.first, rows, side="right") - 1, drawn)
    # Every variant is used, and an image with variants never as it is.
    as_it_is = bank.first[bank.variants > 0]
    assert set(rows) == set(range(len(bank.dataset))) - set(as_it_is)
    np.testing.assert_array_equal(varied.indices(7), bank.sampler(plain, 5).indices(7))


def test_draws_from_a_bank_are_variants_with_the_keep_probability(dataset) -> None:
    bank = kg.training.generator_bank(constant_generator(), dataset, 2)
    plain = kg.data.sampler("class_balanced", dataset.labels, 3)
    keep = np.array([0.0, 0.3, 0.7, 1.0])
    varied = bank.sampler(plain, 5, keep)
    rows = np.concatenate([varied.indices(epoch) for epoch in range(400)])
    drawn = np.concatenate([plain.indices(epoch) for epoch in range(400)])
    np.testing.assert_array_equal(np.searchsorted(bank.first, rows, side="right") - 1, drawn)
    variant, labels = ~np.isin(rows, bank.first), dataset.labels[drawn]
    rates = [variant[labels == label].mean() for label in range(4)]
    assert rates[0] == 0.0 and rates[3] == 1.0
    np.testing.assert_allclose(rates, keep, atol=4 * np.sqrt(0.25 / 1200))


def test_variants_differ_and_follow_the_seed(dataset) -> None:
    generator = small_networks().generator
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))

    banks = [
        kg.training.generator_bank(generator, dataset, 2, seed=s, progress=tell) for s in (0, 0, 1)
    ]
    images = [bank.dataset.images for bank in banks]
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    assert not np.array_equal(images[0][0], images[0][1])
    assert told.count((2 * len(dataset), 2 * len(dataset))) == 3


def test_an_empty_bank_is_refused(dataset) -> None:
    with pytest.raises(InputError, match="use 1 or more"):
        kg.training.generator_bank(constant_generator(), dataset, 0)
