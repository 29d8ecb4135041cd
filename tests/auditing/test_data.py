"""Every source of labelled images gives the same images, batch by batch."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from PIL import Image

import keras_git as kg
from keras_git.auditing import LabelledImages, open_data
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
    if kind.startswith("grey"):  # without an axis for channels
        dataset = dataset.map(lambda x, y: (x[..., 0], y))
    if kind == "one-hot":
        dataset = dataset.map(lambda x, y: (tf.repeat(x, 3, -1), tf.one_hot(y, 3)))
    return dataset.batch(9) if "batched" in kind else dataset


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
    "tf.data grey": lambda path: tensorflow("grey"),
    "tf.data grey batched": lambda path: tensorflow("grey batched"),
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
    streamed = kind.startswith(("tf.data", "PyDataset", "one-hot"))
    assert source.num_images == (None if streamed else 5 + 5 + 4)


class Watched(np.ndarray):
    """Remembers which images were read."""

    read: list = []

    def __getitem__(self, index):
        if isinstance(index, np.ndarray):
            Watched.read += index.tolist()
        return np.asarray(self)[index]


@pytest.mark.parametrize("kind", ["arrays", "stream"])
@pytest.mark.parametrize("classes", [None, np.array([True, False, True])])
@pytest.mark.parametrize("per_class", [None, 3])
def test_a_pass_that_skips_goes_on_as_if_it_had_not(kind, classes, per_class):
    data = (IMAGES.view(Watched), LABELS) if kind == "arrays" else Batches()
    source = open_data(data)
    source.num_classes, source.images_per_class = 3, per_class
    whole = list(source.blocks(4, classes))
    positions = np.concatenate([block[2] for block in whole])
    for number in range(len(whole) + 1):
        Watched.read = []
        rest = list(source.blocks(4, classes, 4 * number))
        assert len(rest) == max(len(whole) - number, 0)
        for one, other in zip(rest, whole[number:], strict=True):
            for found, expected in zip(one, other, strict=True):
                np.testing.assert_array_equal(found, expected)
        if kind == "arrays":
            assert Watched.read == positions[4 * number :].tolist()


def test_one_hot_labels_of_single_colour_images():
    images, labels, _ = next(open_data(tensorflow("one-hot")).blocks(50))
    assert images.shape == (23, 6, 6, 3)
    np.testing.assert_array_equal(labels, LABELS)


def test_a_sample_is_spread_over_arrays(tmp_path):
    """What decides which transformations suit the images is not their first batch."""
    images = np.arange(100, dtype=np.uint8)[:, None, None, None].repeat(2, 1)
    source = open_data((images, np.zeros(100, np.int64)))
    np.testing.assert_array_equal(source.sample(5)[:, 0, 0, 0], [0, 24, 49, 74, 99])
    assert len(source.sample(500)) == 100
    assert len(open_data(Batches()).sample(7)) == 7


def shuffled(order):
    class Shuffled(Batches):
        passes = 0

        def __getitem__(self, index):
            if index == 0:
                Shuffled.passes += 1
            images, labels = np.concatenate([IMAGES] * 30), np.concatenate([LABELS] * 30)
            order_of_pass = order(np.random.default_rng(Shuffled.passes), len(labels))
            part = order_of_pass[200 * index : 200 * index + 200]
            return images[part], labels[part]

    return open_data(Shuffled())


def test_a_stream_that_shuffles_is_refused():
    """Positions would stand for other images in each pass."""
    source = shuffled(lambda rng, number: rng.permutation(number))
    next(source.blocks(10))  # a look at the first images is no pass
    with pytest.raises(InputError, match="another order, or with other pixels, in each pass"):
        for size in (100, 70):
            list(source.blocks(size))
    still = shuffled(lambda rng, number: np.arange(number))
    for size in (100, 70, 1000):  # however it is cut
        assert sum(len(labels) for _, labels, _ in still.blocks(size)) == 690
    augmented = LabelledImages(
        lambda size: iter([(RNG.integers(0, 9, (5, 4, 4)), np.zeros(5, int))]), "x"
    )
    list(augmented.blocks(3))
    with pytest.raises(InputError, match="random augmentation"):
        list(augmented.blocks(3))


def test_an_npz_without_test_images_is_taken_whole(tmp_path):
    np.savez(tmp_path / "all.npz", images=IMAGES, labels=LABELS)
    source = open_data(tmp_path / "all.npz")
    assert sum(len(labels) for _, labels, _ in source.blocks(10)) == 23
    assert source.class_counts is None
    assert open_data(archive(tmp_path)).class_counts.sum() == 9


def drawn(folder, classes, number=2):
    for label in classes:
        (folder / label).mkdir(parents=True)
        for index in range(number):
            Image.fromarray(IMAGES[index, ..., 0]).save(folder / label / f"{index}.png")


def test_the_split_of_a_folder_is_the_one_asked_for(tmp_path):
    drawn(tmp_path / "a" / "Train", "xyz", 5)
    drawn(tmp_path / "a" / "val", "yz", 1)
    for split in ("validation", "test"):  # no test images: those of validation
        source = open_data(tmp_path / "a", split=split, wanted=(6, 6, 1))
        ((_, labels, _),) = source.blocks(50)
        assert labels.tolist() == [1, 2] and source.class_names == ("x", "y", "z")
        assert source.class_counts.tolist() == [5, 5, 5]
        assert source.notes["split"] == "validation" and source.notes["image_size"] == [6, 6]
    ((_, labels, _),) = open_data(tmp_path / "a", split="train").blocks(50)
    assert np.bincount(labels).tolist() == [5, 5, 5]
    drawn(tmp_path / "b" / "TRAIN", "xy")
    with pytest.raises(InputError, match="has no test images, only train: name one"):
        open_data(tmp_path / "b")
    drawn(tmp_path / "b" / "Test", "xq")
    with pytest.raises(InputError, match="class 'q' of .*Test has no folder in .*TRAIN"):
        open_data(tmp_path / "b")


def test_data_for_an_audit_alone_need_no_second_image_of_a_class(tmp_path):
    drawn(tmp_path / "folder", "xyz", 1)
    source = open_data(tmp_path / "folder")
    ((images, labels, _),) = source.blocks(50)
    assert labels.tolist() == [0, 1, 2] and source.class_counts is None
    # the model takes any size, so one is chosen and said
    assert source.notes["image_size"] == list(images.shape[1:3])
    assert source.notes["image_size_chosen"]
    np.savez(tmp_path / "one.npz", images=IMAGES[:3], labels=np.arange(3))
    ((images, labels, _),) = open_data(tmp_path / "one.npz").blocks(50)
    np.testing.assert_array_equal(images, IMAGES[:3])


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
        (([IMAGES[0].tolist(), IMAGES[1, :3].tolist()], [0, 1]), "lists of unequal lengths"),
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
