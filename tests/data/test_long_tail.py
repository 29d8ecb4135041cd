"""Subsets, splits and statistics, each against a second, slower way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_git.data import (
    ImageDataset,
    channel_statistics,
    cyclic_indices,
    long_tail,
    long_tailed_indices,
    stratified_split,
)
from keras_git.errors import InputError

label_lists = st.lists(st.integers(0, 3), min_size=8, max_size=80).map(
    lambda labels: np.array([0, 1, 2, 3, *labels])
)


@given(labels=label_lists, share=st.floats(0.1, 1.0), seed=st.integers(0, 99))
def test_subsets_keep_what_was_asked_for_and_nothing_twice(labels, share, seed):
    sizes = np.maximum((np.bincount(labels) * share).astype(int), 1)
    first = long_tailed_indices(labels, sizes)
    drawn = long_tailed_indices(labels, sizes, "random", seed)
    for indices in (first, drawn):
        assert len(set(indices.tolist())) == sizes.sum() == len(indices)
        np.testing.assert_array_equal(labels[indices], np.repeat(np.arange(4), sizes))
    # First means: walking through the list, take what still fits.
    left, expected = sizes.copy(), [[] for _ in range(4)]
    for i, label in enumerate(labels):
        if left[label]:
            left[label] -= 1
            expected[label].append(i)
    assert first.tolist() == sum(expected, [])


def test_random_selection_follows_the_seed_class_by_class():
    labels = np.repeat(np.arange(3), 30)
    one = long_tailed_indices(labels, [10, 10, 10], "random", seed=1)
    np.testing.assert_array_equal(one, long_tailed_indices(labels, [10, 10, 10], "random", seed=1))
    assert (one != long_tailed_indices(labels, [10, 10, 10], "random", seed=2)).any()
    fewer = long_tailed_indices(labels, [3, 10, 10], "random", seed=1)
    np.testing.assert_array_equal(fewer[3:], one[10:])  # other classes stay
    assert set(fewer[:3]) <= set(one[:10])  # a smaller class is part of the larger one


def test_long_tail_of_a_dataset_logs_counts_and_hash(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr("absl.logging.info", lambda text, *a: messages.append(text % a))
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    dataset = ImageDataset(images, np.arange(40) % 4, 4, name="toy")
    subset = long_tail(dataset, [8, 4, 2, 1])
    assert subset.class_counts.tolist() == [8, 4, 2, 1]
    np.testing.assert_array_equal(subset.images[:8], images[0:32:4])
    assert "[8, 4, 2, 1]" in messages[0] and subset.content_hash() in messages[0]
    filed = long_tail(dataset, [8, 4, 2, 1], path=tmp_path / "subset.npy")
    assert isinstance(filed.images, np.memmap) and filed.content_hash() == subset.content_hash()


@pytest.mark.parametrize(
    ("sizes", "options", "words"),
    [
        ([11, 1], {}, "class 0 has 10 images"),
        ([1, 0], {}, "class 1 would be empty"),
        ([1, 1, 1], {}, "2 classes"),
        ([1, 1], {"selection": "last"}, "first, random"),
        ([1, 1], {"selection": "random", "seed": -1}, "seed"),
    ],
)
def test_impossible_subsets(sizes, options, words):
    dataset = ImageDataset(np.zeros((20, 4, 4, 1), np.uint8), np.arange(20) % 2, 2)
    with pytest.raises(InputError, match=words):
        long_tail(dataset, sizes, **options)


def test_cyclic_indices_go_round_the_base_images():
    base, labels = cyclic_indices(np.array([1, 0, 1, 1, 0]), [1, 0], [5, 1])
    assert base.tolist() == [0, 2, 3, 0, 2, 1]
    assert labels.tolist() == [1, 1, 1, 1, 1, 0]
    with pytest.raises(InputError, match="class 2 has no base image"):
        cyclic_indices(np.array([0, 1]), [2], [3])
    with pytest.raises(InputError, match="sizes"):
        cyclic_indices(np.array([0, 1]), [0, 1], [3])


@given(labels=label_lists, fraction=st.floats(0.0, 0.95), seed=st.integers(0, 99))
def test_stratified_split_is_a_partition_that_leaves_no_class_empty(labels, fraction, seed):
    train, validation = stratified_split(labels, fraction, seed)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([train, validation])), np.arange(len(labels))
    )
    total, kept = np.bincount(labels), np.bincount(labels[train], minlength=4)
    assert (kept >= 1).all()
    assert (np.abs((total - kept) - fraction * total) <= 1.0).all()
    repeated = stratified_split(labels, fraction, seed)
    np.testing.assert_array_equal(train, repeated[0])


def test_stratified_split_of_single_images_and_bad_fractions():
    train, validation = stratified_split(np.array([0, 1, 2, 2]), 0.9)
    assert len(validation) == 1 and validation[0] in (2, 3)
    for fraction in (1.0, -0.1):
        with pytest.raises(InputError, match="fraction"):
            stratified_split(np.array([0, 1]), fraction)


@pytest.mark.parametrize("channels", [1, 3])
def test_channel_statistics_equal_the_definition(channels, monkeypatch):
    rng = np.random.default_rng(1)
    images = (rng.random((37, 9, 7, channels)) ** 2 * 256).astype(np.uint8)
    scaled = images / 255.0
    mean_of_means = scaled.mean(axis=(1, 2)).mean(axis=0)
    deviation = np.sqrt(((scaled - mean_of_means) ** 2).mean(axis=(0, 1, 2)))
    monkeypatch.setattr("keras_git.data.dataset._CHUNK_BYTES", 500)
    mean, std = channel_statistics(images)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, mean_of_means, rtol=1e-6)
    np.testing.assert_allclose(std, deviation, rtol=1e-6)


def test_channel_statistics_reject_floats():
    with pytest.raises(InputError, match="float64"):
        channel_statistics(np.zeros((2, 4, 4, 1)))


def test_a_channel_of_one_value_can_be_divided_by_its_std():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    images[..., 2] = 37
    mean, std = channel_statistics(images)
    assert mean[2] == np.float32(37 / 255) and std[2] == 1
    np.testing.assert_allclose(std[:2], (images[..., :2] / 255).std(axis=(0, 1, 2)), rtol=1e-6)


def test_a_class_without_enough_images_is_named():
    images = np.zeros((6, 8, 8, 1), np.uint8)
    dataset = ImageDataset(images, np.array([0, 0, 0, 1, 1, 1]), 2, ("cat", "dog"))
    with pytest.raises(InputError, match=r"class 1 \('dog'\) has 3 images.* asks for 4"):
        long_tail(dataset, [2, 4])
    with pytest.raises(InputError, match=r"class 0 \('cat'\) would be empty"):
        long_tail(dataset, [0, 3])
