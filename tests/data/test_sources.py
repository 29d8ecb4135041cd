"""Sources: arrays, .npz files, tensorflow_datasets; and everything that can fail."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from keras_git.data import (
    class_sizes,
    from_arrays,
    load,
    load_npz,
    load_tfds,
    long_tail,
)
from keras_git.errors import InputError
from tests.data.test_k49 import locked

needs_tfds = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_datasets") is None, reason="needs tensorflow_datasets"
)


def arrays(number: int = 20, shape=(8, 8, 3)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (number, *shape), dtype=np.uint8), np.arange(number) % 4


def test_from_arrays():
    train, test = arrays(20), arrays(8)
    splits = from_arrays(*train, *test)
    np.testing.assert_array_equal(splits.train.images, train[0])
    assert splits.train.num_classes == 4 and splits.test.labels.tolist() == test[1].tolist()
    column = from_arrays(train[0], train[1][:, None], *test)  # labels as Keras stores them
    assert column.train.labels.shape == (20,)
    grey = from_arrays(*arrays(20, (8, 8)), *arrays(8, (8, 8)))
    assert grey.train.image_shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x.astype(np.float32), y), "float32"),
        (lambda x, y: (x.tolist(), y), "numpy array"),
        (lambda x, y: (x[0, 0], y), "shape"),
        (lambda x, y: (x, y + 0.5), "integers"),
        (lambda x, y: (x, y - 1), "from -1"),
        (lambda x, y: (x, np.where(y == 3, 4, y)), None),
        (lambda x, y: (x[:, :7], y), "must agree"),
    ],
)
def test_bad_arrays(change, words):
    train, test = arrays(20), arrays(8)
    if words is None:  # five classes, one of them without images: the labels are in range
        assert from_arrays(*change(*train), *test).train.num_classes == 5
        words = "from 0 to 4"
        with pytest.raises(InputError, match=words):
            from_arrays(*change(*train), *test, num_classes=4)
        return
    with pytest.raises(InputError, match=words) as error:
        from_arrays(*change(*train), *test)
    assert "\n" not in str(error.value)


def test_npz_of_four_arrays(tmp_path):
    (x, y), (u, v) = arrays(20), arrays(8)
    np.savez(tmp_path / "toy.npz", x_train=x, y_train=y, x_test=u, y_test=v)
    for splits in (load_npz(tmp_path / "toy.npz"), load("toy.npz", data_dir=tmp_path)):
        np.testing.assert_array_equal(splits.train.images, x)
        np.testing.assert_array_equal(splits.test.labels, v)
        assert splits.train.name == "toy"


def test_npz_of_images_and_labels_is_split_by_class(tmp_path):
    x, y = arrays(40)
    np.savez_compressed(tmp_path / "one.npz", images=x, labels=y)
    splits = load_npz(tmp_path / "one.npz", seed=1)
    assert splits.train.class_counts.tolist() == [8] * 4
    assert splits.test.class_counts.tolist() == [2] * 4
    both = np.concatenate([splits.train.images, splits.test.images])
    assert len(np.unique(both.reshape(40, -1), axis=0)) == 40
    other = load_npz(tmp_path / "one.npz", seed=2)
    assert other.test.content_hash() != splits.test.content_hash()


def compressed(images: np.ndarray, kind: str = "PNG") -> dict[str, np.ndarray]:
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, kind)
        files.append(buffer.getvalue())
    return {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)], dtype=np.int64),
    }


def save_compressed(path, train, test, kind="PNG", **changes):
    parts = {}
    for split, (images, labels) in {"train": train, "test": test}.items():
        parts |= {f"{split}_{k}": v for k, v in compressed(images, kind).items()}
        parts[f"{split}_labels"] = labels
    np.savez(path, **{**parts, **changes})


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_of_compressed_images(tmp_path, channels):
    train, test = arrays(20, (16, 16, channels)), arrays(8, (16, 16, channels))
    save_compressed(tmp_path / "lossless.npz", train, test)
    splits = load_npz(tmp_path / "lossless.npz")
    np.testing.assert_array_equal(splits.train.images, train[0])
    np.testing.assert_array_equal(splits.test.images, test[0])
    smooth = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None, None] * 9, (20, 16, 16, 3))
    save_compressed(tmp_path / "lossy.npz", (smooth, train[1]), (smooth[:8], test[1]), "JPEG")
    decoded = load_npz(tmp_path / "lossy.npz").train.images
    assert np.abs(decoded.astype(int) - smooth).max() <= 4


def test_npz_of_compressed_images_that_are_damaged(tmp_path):
    train, test = arrays(20, (16, 16, 3)), arrays(8, (16, 16, 3))
    path = tmp_path / "bad.npz"
    joined = compressed(train[0])
    broken = joined["jpeg"].copy()
    broken[: joined["offsets"][1]] = 0
    cases = {
        "image 0 cannot be decoded": {"train_jpeg": broken},
        "increasing": {"train_offsets": joined["offsets"][::-1]},
        "within 0": {"train_offsets": joined["offsets"] + 9},
        "uint8 vector": {"train_jpeg": joined["jpeg"].astype(np.int32)},
        "20 images": {"train_labels": train[1][:-1]},
    }
    for words, changes in cases.items():
        save_compressed(path, train, test, **changes)
        with pytest.raises(InputError, match=words):
            load_npz(path)
    two_sizes = compressed(train[0][:1])
    other = compressed(train[0][:1, :8])
    joined = {
        "train_jpeg": np.concatenate([two_sizes["jpeg"], other["jpeg"]]),
        "train_offsets": np.cumsum([0, two_sizes["jpeg"].size, other["jpeg"].size]),
        "train_labels": np.array([0, 1]),
    }
    save_compressed(path, train, test, **joined)
    with pytest.raises(InputError, match="one size"):
        load_npz(path)


def test_npz_files_that_cannot_be_used(tmp_path):
    x, y = arrays(20)
    path = tmp_path / "file.npz"
    with pytest.raises(InputError, match="is not a file"):
        load_npz(path)
    path.write_bytes(b"no archive at all")
    with pytest.raises(InputError, match="cannot read"):
        load_npz(path)
    np.savez(path, images=x, labels=y)
    path.write_bytes(path.read_bytes()[:-200])  # half a file
    with pytest.raises(InputError, match="cannot read"):
        load_npz(path)
    np.savez(path, images=np.array([{"an": "object"}], dtype=object), labels=y)
    with pytest.raises(InputError, match="cannot read"):
        load_npz(path)
    np.savez(path, pictures=x, labels=y)
    with pytest.raises(InputError, match="keys labels, pictures"):
        load_npz(path)
    np.savez(path, images=x[:4], labels=y[:4])
    with pytest.raises(InputError, match="too few"):
        load_npz(path)
    with path.open("wb") as file:
        np.save(file, x)
    with pytest.raises(InputError, match="not an .npz file"):
        load_npz(path)


@pytest.mark.parametrize("change", ["password", "compression"])
def test_archives_that_python_cannot_open(tmp_path, change):
    x, y = arrays(20)
    np.savez(tmp_path / "file.npz", images=x, labels=y)
    locked(tmp_path / "file.npz", change)
    with pytest.raises(InputError, match="cannot read") as error:
        load_npz(tmp_path / "file.npz")
    assert "\n" not in str(error.value)


def test_large_arrays_of_an_npz_file_stay_in_files(tmp_path):
    images, labels = arrays(40)
    np.savez_compressed(
        tmp_path / "four.npz", x_train=images, y_train=labels, x_test=images, y_test=labels
    )
    np.savez(tmp_path / "two.npz", images=images, labels=labels)
    save_compressed(tmp_path / "packed.npz", (images, labels), (images, labels))
    for name in ("four", "two", "packed"):
        in_memory = load_npz(tmp_path / f"{name}.npz")
        told: list[tuple[int, int]] = []
        in_files = load_npz(
            tmp_path / f"{name}.npz",
            cache_dir=tmp_path / name,
            max_bytes=1000,
            progress=lambda *report, told=told: told.append(report),
        )
        for split in ("train", "test"):
            one, other = getattr(in_memory, split), getattr(in_files, split)
            assert isinstance(other.images, np.memmap) and not isinstance(one.images, np.memmap)
            assert one.content_hash() == other.content_hash()
        assert not list((tmp_path / name).glob("*.partial"))
        assert told == ([(i, 80) for i in range(1, 81)] if name == "packed" else [])


def test_the_names_of_arrays_lead_nowhere(tmp_path):
    images, labels = arrays(40)
    outside = {"../x_train": images}
    np.savez(tmp_path / "path.npz", **outside)
    with pytest.raises(InputError, match="is a path"):
        load_npz(tmp_path / "path.npz", cache_dir=tmp_path / "cache", max_bytes=1000)
    assert not list(tmp_path.glob("x_train*"))


def test_load_chooses_the_source(tmp_path):
    splits = load(
        "glyphs", seed=2, num_classes=20, largest=3, test_per_class=2, recognition_per_class=0
    )
    assert splits.train.num_classes == 20 and splits.train.name == "glyphs"
    with pytest.raises(InputError, match="no option 'largest'"):
        load("toy.npz", largest=3)
    with pytest.raises(InputError, match="does not exist"):
        load("toy.npz", data_dir=tmp_path / "nowhere")
    with pytest.raises(InputError, match="does not exist"):
        load("cifar10", data_dir=tmp_path / "nowhere")


def test_a_file_is_not_a_data_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="data directory"):
        load_tfds("cifar10", data_dir=tmp_path / "file")


@needs_tfds
def test_datasets_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="knows no dataset 'no_such_dataset'"):
        load_tfds("no_such_dataset", data_dir=tmp_path)
    with pytest.raises(InputError, match="neither"):
        load_tfds("cifar 10", data_dir=tmp_path)
    with pytest.raises(InputError, match="allow the download"):
        load_tfds("cifar10", data_dir=tmp_path, download=False)
    import tensorflow_datasets as tfds

    def no_network(self, **options):
        raise ConnectionError("Name or service not known\nmore lines")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    with pytest.raises(InputError, match="cannot be downloaded: Name or service") as error:
        load_tfds("cifar10", data_dir=tmp_path)
    assert "\n" not in str(error.value)


@needs_tfds
def test_tfds_in_canonical_order(tmp_path):
    """A small dataset written with tfds itself, stored in an order that is not the canonical."""
    images, labels = arrays(30)
    write_tfds(tmp_path, images, labels)
    splits = load_tfds("tiny_set", data_dir=tmp_path, download=False)
    np.testing.assert_array_equal(splits.train.images, images)
    np.testing.assert_array_equal(splits.train.labels, labels)
    np.testing.assert_array_equal(splits.test.images, images[:12])
    assert splits.train.class_names == ("ant", "bee", "cat", "dog")
    filed = load_tfds("tiny_set", data_dir=tmp_path, cache_dir=tmp_path / "cache", max_bytes=5000)
    assert isinstance(filed.train.images, np.memmap)
    assert not isinstance(filed.test.images, np.memmap)  # small enough
    assert filed.train.content_hash() == splits.train.content_hash()
    assert len(list((tmp_path / "cache").iterdir())) == 1

    for record in tmp_path.glob("tiny_set/1.0.0/*.tfrecord*"):
        record.write_bytes(record.read_bytes()[:-500])
    with pytest.raises(InputError, match="damaged"):
        load_tfds("tiny_set", data_dir=tmp_path)


def write_tfds(folder, images: np.ndarray, labels: np.ndarray) -> None:
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=images.shape[1:]),
            "label": tfds.features.ClassLabel(names=["ant", "bee", "cat", "dog"]),
        }
    )
    home = folder / "tiny_set" / "1.0.0"
    home.mkdir(parents=True)
    infos = []
    for split, number in (("train", len(images)), ("test", 12)):
        info = tfds.core.SplitInfo(
            name=split,
            shard_lengths=[number],
            num_bytes=1000,
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=home, dataset_name="tiny_set", split=split, filetype_suffix="tfrecord"
            ),
        )
        infos.append(info)
        import tensorflow as tf

        path = str(home / f"tiny_set-{split}.tfrecord-00000-of-00001")
        with tf.io.TFRecordWriter(path) as writer:
            # Numbers without leading zeros: 10 must come after 9, not after 1.
            for i in np.random.default_rng(1).permutation(number):
                example = {"id": f"{split}_{i}", "image": images[i], "label": int(labels[i])}
                writer.write(features.serialize_example(features.encode_example(example)))
    tfds.folder_dataset.write_metadata(
        data_dir=home, features=features, split_infos=infos, check_data=False
    )


@pytest.mark.slow
def test_importing_the_data_part_loads_no_tensorflow():
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend == "tensorflow":
        pytest.skip("the backend is TensorFlow itself")
    code = (
        "import sys, keras_git.data as data; data.glyphs(20, 2, 1, test_per_class=1);"
        "print(sorted({'tensorflow', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@needs_tfds
def test_real_cifar10_from_both_sources(data_folder):
    """The long-tailed subset of the tfds folder is, byte for byte, the one in the .npz file."""
    splits = load("cifar10", data_dir=data_folder / "tfds", download=False)
    assert splits.train.class_counts.tolist() == [5000] * 10
    subset = long_tail(splits.train, class_sizes("exponential", 10, 5000, imbalance_ratio=100))
    other = load_npz(data_folder / "cifar10_lt_rho100_jpeg.npz")
    assert subset.content_hash() == other.train.content_hash()
    by_class = splits.test.take(np.argsort(splits.test.labels, kind="stable"))
    assert by_class.content_hash() == other.test.content_hash()
