"""The dataset container: validation, hash, selection, files larger than memory."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from keras_git.data import ImageDataset, Splits
from keras_git.errors import InputError


def example(number: int = 12, num_classes: int = 3, channels: int = 1) -> ImageDataset:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (number, 6, 4, channels), dtype=np.uint8)
    return ImageDataset(images, np.arange(number) % num_classes, num_classes)


def test_properties():
    dataset = example()
    assert len(dataset) == 12
    assert dataset.image_shape == (6, 4, 1)
    assert dataset.class_counts.tolist() == [4, 4, 4]
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.labels.dtype == np.int64
    # A class without images still counts.
    assert ImageDataset(dataset.images, dataset.labels, 4).class_counts.tolist() == [4, 4, 4, 0]


def test_hash_is_over_shape_labels_and_pixels():
    dataset = example()
    expected = hashlib.sha256(
        repr(dataset.images.shape).encode()
        + dataset.labels.astype("<i8").tobytes()
        + dataset.images.tobytes()
    ).hexdigest()
    assert dataset.content_hash() == expected
    for change in ("pixel", "label", "order"):
        images, labels = dataset.images.copy(), dataset.labels.copy()
        if change == "pixel":
            images[-1, -1, -1, 0] ^= 1
        elif change == "label":
            labels[3] = (labels[3] + 1) % 3
        else:
            images, labels = images[::-1], labels[::-1]
        assert ImageDataset(images, labels, 3).content_hash() != expected


def test_hash_does_not_depend_on_the_pieces(monkeypatch):
    dataset = example(50)
    whole = dataset.content_hash()
    monkeypatch.setattr("keras_git.data.dataset._CHUNK_BYTES", 100)
    assert dataset.content_hash() == whole


def test_take_in_memory_and_through_a_file(tmp_path, monkeypatch):
    dataset = example()
    picked = dataset.take(np.array([7, 2, 2]))
    np.testing.assert_array_equal(picked.images, dataset.images[[7, 2, 2]])
    assert picked.labels.tolist() == [1, 2, 2]
    monkeypatch.setattr("keras_git.data.dataset._CHUNK_BYTES", 24)
    filed = dataset.take(np.array([7, 2, 2]), tmp_path / "new" / "part.npy")
    assert isinstance(filed.images, np.memmap)
    assert filed.content_hash() == picked.content_hash()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["part.npy"]
    # From a file to a file.
    again = filed.take(np.array([2, 0]), tmp_path / "again.npy")
    np.testing.assert_array_equal(again.images, dataset.images[[2, 7]])


def test_take_of_missing_images_and_to_an_impossible_place(tmp_path):
    with pytest.raises(InputError, match="12"):
        example().take(np.array([12]))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        example().take(np.array([1]), tmp_path / "file" / "x.npy")


IMAGES = np.zeros((4, 5, 5, 1), np.uint8)
LABELS = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "num_classes", "names", "words"),
    [
        (IMAGES.tolist(), LABELS, 2, (), "numpy array"),
        (IMAGES.astype(np.float32), LABELS, 2, (), "float32"),
        (IMAGES[..., 0], LABELS, 2, (), "shape"),
        (np.zeros((4, 5, 5, 2), np.uint8), LABELS, 2, (), "1 or 3 channels"),
        (IMAGES[:0], LABELS[:0], 2, (), "no images"),
        (IMAGES, LABELS[:3], 2, (), "4 images"),
        (IMAGES, LABELS.astype(np.float64), 2, (), "integers"),
        (IMAGES, LABELS + 1, 2, (), "from 1 to 2"),
        (IMAGES, LABELS - 1, 2, (), "from -1"),
        (IMAGES, LABELS * 0, 1, (), "num_classes"),
        (IMAGES, LABELS, 2, ("a",), "class names"),
    ],
)
def test_bad_datasets(images, labels, num_classes, names, words):
    with pytest.raises(InputError, match=words) as error:
        ImageDataset(images, labels, num_classes, names)
    assert "\n" not in str(error.value)


def test_splits_must_agree():
    train = example()
    Splits(train, example(6), validation=example(3))
    with pytest.raises(InputError, match="test split has 4 classes"):
        Splits(train, example(8, num_classes=4))
    with pytest.raises(InputError, match="recognition split has images"):
        Splits(train, train, recognition=example(6, channels=3))
