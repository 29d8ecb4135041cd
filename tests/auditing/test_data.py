"""Every source of labelled images gives the same images, batch by batch."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from PIL import Image

import keras_git as kg
from keras_git.auditing import open_data
from keras_git.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (23, 6, 6, 1)).astype(np.uint8)
LABELS = np.repeat([0, 1, 2], [11, 8, 4])[RNG.permutation(23)]


class Batches(keras.utils.PyDataset):
    def __init__(self, one_hot: bool = False) -> None:
        super().__init__()
        self.labels = np.eye(3)[LABELS] if one_hot else LABELS.astype(np.float32)[:, None]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index):
        part = slice(6 * index, 6 * index + 6)
        return IMAGES[part].astype(np.float32), self.labels[part]


class Endless(keras.utils.PyDataset):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return IMAGES, LABELS


def tensorflow(kind: str):
    tf = pytest.importorskip("tensorflow")
    kg.data.pipeline.hide_accelerators()
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))
    if kind == "dictionary":
        return dataset.map(lambda x, y: {"image": x, "label": y})
    return dataset.batch(9) if kind == "batched" else dataset


def mapped(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    return kg.data.ImageDataset(images, LABELS, 3, ("a", "b", "c"))


def splits(tmp_path):
    dataset = kg.data.ImageDataset(IMAGES, LABELS, 3)
    return kg.data.Splits(dataset.take(np.arange(0, 23, 2)), dataset)


def archive(tmp_path):
    arrays = {"x_train": IMAGES[:9], "y_train": LABELS[:9], "x_test": IMAGES, "y_test": LABELS}
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


SOURCES = {
    "arrays": lambda path: (IMAGES, LABELS),
    "lists": lambda path: (IMAGES.tolist(), LABELS.tolist()),
    "three axes": lambda path: (IMAGES[..., 0], LABELS[:, None]),
    "memory map": mapped,
    "splits": splits,
    "npz": archive,
    "PyDataset": lambda path: Batches(),
    "one-hot": lambda path: Batches(one_hot=True),
    "tf.data": lambda path: tensorflow("single"),
    "tf.data batched": lambda path: tensorflow("batched"),
    "tf.data dictionary": lambda path: tensorflow("dictionary"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source(kind, tmp_path):
    source = open_data(SOURCES[kind](tmp_path))
    for _ in range(2):  # as often as wanted
        blocks = list(source.blocks(5))
        assert [len(labels) for _, labels, _ in blocks] == [5, 5, 5, 5, 3]
        images, labels, positions = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        np.testing.assert_array_equal(images, IMAGES)
        np.testing.assert_array_equal(labels, LABELS)
        np.testing.assert_array_equal(positions, np.arange(23))
    # some classes, and some images of each
    source.num_classes, source.images_per_class = 3, 5
    (chosen,) = source.blocks(50, np.array([True, False, True]))
    expected = np.sort(
        np.concatenate([np.flatnonzero(LABELS == 0)[:5], np.flatnonzero(LABELS == 2)])
    )
    np.testing.assert_array_equal(chosen[2], expected)
    np.testing.assert_array_equal(chosen[0], IMAGES[expected])
    assert source.num_images in (None, 14)


def test_an_npz_without_test_images_is_taken_whole(tmp_path):
    np.savez(tmp_path / "all.npz", images=IMAGES, labels=LABELS)
    source = open_data(tmp_path / "all.npz")
    assert sum(len(labels) for _, labels, _ in source.blocks(10)) == 23
    assert source.class_counts is None
    assert open_data(archive(tmp_path)).class_counts.sum() == 9


@pytest.mark.skipif(not hasattr(kg.data, "load_image_folder"), reason="folders cannot be read yet")
def test_folders(tmp_path):
    whole, given = tmp_path / "whole", tmp_path / "given"
    for index, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        name = f"class {label} <b>"
        for folder in (whole / name, given / ("train" if index % 2 else "test") / name):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(folder / f"{index:02}.png")
    (whole / "class 0 <b>" / "empty.png").touch()
    source = open_data(whole, wanted=(6, 6, 1))
    blocks = list(source.blocks(100))
    assert sorted(blocks[0][0].sum(axis=(1, 2, 3))) == sorted(IMAGES.sum(axis=(1, 2, 3)))
    assert source.class_counts is None and source.class_names[2] == "class 2 <b>"
    ((path, _),) = source.notes["unreadable"]
    assert path.endswith("empty.png")
    source = open_data(given, wanted=(12, 12, 3))
    ((images, labels, _),) = source.blocks(100)
    assert images.shape == (12, 12, 12, 3)
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(LABELS[::2]))
    np.testing.assert_array_equal(source.class_counts, np.bincount(LABELS[1::2]))


def test_the_audit_of_a_stream_is_that_of_arrays():
    network = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    options = {"transforms": ["brightness:9"], "num_samples": 2, "batch_size": 8}
    one, other = (
        kg.audit(network, data, **options).models[0] for data in ((IMAGES, LABELS), Batches())
    )
    np.testing.assert_array_equal(one.measurements[0].ekld, other.measurements[0].ekld)
    assert one.accuracy == other.accuracy


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES / 255, LABELS), "from 0 to 1; give grey levels"),
        ((IMAGES - 128.0, LABELS), "range from -128"),
        ((IMAGES.astype(bool), LABELS), "dtype bool"),
        ((IMAGES[..., [0, 0]], LABELS), "1 or 3 channels"),
        ((IMAGES, LABELS[:4]), "for 23 images"),
        ((IMAGES, LABELS + 0.5), "give integers"),
        ((IMAGES, LABELS - 1), "label -1"),
        ((IMAGES, np.ones((23, 3))), "one class per image"),
        ((IMAGES[:0], LABELS[:0]), "N > 0"),
        (IMAGES, "ndarray"),
        (Endless(), "never ends"),
    ],
)
def test_refused(data, message):
    with pytest.raises(InputError, match=message) as raised:
        list(open_data(data).blocks(7))
    assert "\n" not in str(raised.value)


def test_classes_must_agree():
    network = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    with pytest.raises(InputError, match="label 2 in the data: the classifier has 2 classes"):
        kg.audit(network, (IMAGES, LABELS), ["identity"])
    with pytest.raises(InputError, match="has 2 classes, the data have 3"):
        kg.audit(network, kg.data.ImageDataset(IMAGES, LABELS, 3), ["identity"])
    other = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    with pytest.raises(InputError, match="audit models of the same classes"):
        kg.audit([network, other], (IMAGES, LABELS), ["identity"])
