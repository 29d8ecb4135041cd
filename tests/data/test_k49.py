"""K49-LT: the archives, and the construction of the paper's versions."""

from __future__ import annotations

import hashlib
import shutil

import keras
import numpy as np
import pytest

from keras_git.data import ImageDataset, K49LongTail, Splits, k49, k49_class_order, load_k49
from keras_git.errors import InputError

PER_CLASS = 10


def archives(seed: int = 0) -> dict[str, np.ndarray]:
    """A miniature of Kuzushiji-49; every image has its number in the first pixels."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, number in (("train", PER_CLASS), ("test", 2)):
        labels = rng.permutation(np.repeat(np.arange(49, dtype=np.uint8), number))
        images = rng.choice(np.array([0, 0, 200], np.uint8), (len(labels), 28, 28))
        numbers = np.arange(len(labels))
        images[:, 0, 0], images[:, 0, 1] = 101 + numbers // 100, 101 + numbers % 100
        arrays |= {f"k49-{split}-imgs.npz": images, f"k49-{split}-labels.npz": labels}
    return arrays


def write(folder, **changes) -> None:
    for name, array in (archives() | changes).items():
        np.savez_compressed(folder / name, array)


def identity(images: np.ndarray) -> np.ndarray:
    """The number of each image, which neither a background nor an order changes."""
    return (images[:, 0, 0, 0].astype(int) - 101) * 100 + images[:, 0, 1, 0] - 101


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("k49")
    write(path)
    return path


@pytest.fixture(scope="module")
def source(folder) -> Splits:
    return load_k49(folder)


def test_the_archives_are_read_as_they_are(source, monkeypatch, folder):
    arrays = archives()
    np.testing.assert_array_equal(source.train.images[..., 0], arrays["k49-train-imgs.npz"])
    np.testing.assert_array_equal(source.test.labels, arrays["k49-test-labels.npz"])
    assert source.train.class_names[:3] == ("あ", "い", "う") and source.train.num_classes == 49
    assert len(set(source.train.class_names)) == 49
    assert source.train.name == source.test.name == "font-drawn stand-in for Kuzushiji-49"
    monkeypatch.setattr(k49, "OFFICIAL_SIZES", (49 * PER_CLASS, 98))
    assert load_k49(folder).train.name == "Kuzushiji-49"


LABELS = archives()["k49-train-labels.npz"]
IMAGES = archives()["k49-train-imgs.npz"]


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("k49-train-imgs.npz", IMAGES.astype(np.float32), "float32"),
        ("k49-train-imgs.npz", IMAGES.reshape(len(IMAGES), -1), r"\(N, 28, 28\)"),
        ("k49-test-imgs.npz", IMAGES[:7], r"need integers \(7,\)"),
        ("k49-train-labels.npz", LABELS[:-1], "need integers"),
        ("k49-train-labels.npz", LABELS.astype(np.float32), "float32"),
        ("k49-train-labels.npz", np.where(LABELS == 3, 49, LABELS), "within 0..48"),
        ("k49-train-labels.npz", np.where(LABELS == 3, 4, LABELS), "no image of class 3"),
        ("k49-test-labels.npz", np.array([{"an": "object"}], dtype=object), "cannot read"),
    ],
)
def test_other_arrays_are_refused(tmp_path, name, array, words):
    write(tmp_path, **{name: array})
    with pytest.raises(InputError, match=words) as error:
        load_k49(tmp_path)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_k49(tmp_path / "nowhere")
    with pytest.raises(InputError, match="k49-train-imgs.npz is not there"):
        load_k49(tmp_path)
    write(tmp_path)
    path = tmp_path / "k49-train-imgs.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot read"):
        load_k49(tmp_path)
    np.savez(path, images=IMAGES)
    with pytest.raises(InputError, match="one array arr_0"):
        load_k49(tmp_path)
    with open(path, "wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(InputError, match="cannot read"):
        load_k49(tmp_path)


def test_the_download_checks_every_file(tmp_path, folder, monkeypatch):
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in k49.FILES}
    asked = []

    def get_file(name, origin, cache_dir, cache_subdir, file_hash, hash_algorithm):
        asked.append((origin, file_hash, hash_algorithm))
        shutil.copy(folder / name, cache_dir)

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    with pytest.raises(InputError, match="did not arrive whole"):  # not the official bytes
        load_k49(tmp_path / "new", download=True)
    assert asked == [
        (
            "http://codh.rois.ac.jp/kmnist/dataset/k49/k49-train-imgs.npz",
            "7ac088b20481cf51dcd01ceaab89d821",
            "md5",
        )
    ]
    assert not list((tmp_path / "new").iterdir())
    monkeypatch.setattr(k49, "FILES", md5)
    assert len(load_k49(tmp_path / "new", download=True).test) == 98
    asked.clear()
    load_k49(tmp_path / "new", download=True)
    assert not asked  # all there
    own = tmp_path / "new" / "k49-test-labels.npz"
    np.savez(own, np.zeros(3))
    before = own.read_bytes()
    with pytest.raises(InputError, match="is not the official file"):
        load_k49(tmp_path / "new", download=True)
    assert own.read_bytes() == before

    def no_network(*arguments, **options):
        raise Exception("URL fetch failure on somewhere\nmore lines")

    monkeypatch.setattr(keras.utils, "get_file", no_network)
    with pytest.raises(InputError, match="cannot be downloaded: URL fetch failure") as error:
        load_k49(tmp_path / "other", download=True)
    assert "\n" not in str(error.value)


def test_sizes_and_split_have_the_papers_numbers():
    """On a set of the size of the official one, of images of a single pixel."""
    labels = np.arange(232_365) % 49
    train = ImageDataset(np.zeros((len(labels), 1, 1, 1), np.uint8), labels, 49)
    source = Splits(train, train.take(np.arange(49)))
    study = K49LongTail(source, "background")
    version = study.version(0)
    counts = version.splits.train.class_counts[version.class_order]
    assert counts[:10].tolist() == [4800, 1200, 533, 300, 192, 133, 97, 75, 59, 48]
    assert counts.sum() == 7822 and (counts[28:] == 5).all() and counts[27] > 5
    assert len(version.splits.validation) == 46_473
    other = K49LongTail(source, "background", alpha=1.02)
    assert other.sizes[:3].tolist() == [4800, 2366, 1565] and other.sizes.sum() == 20_771


def test_a_version_is_the_papers_construction(source):
    """Against the same, image by image."""
    study = K49LongTail(source, "background", largest=30, alpha=1.0, smallest=4, seed=5)
    version = study.version(3)
    train, before = version.splits.train, version.untransformed
    held_out = identity(version.splits.invariance.images)
    assert len(held_out) == len(set(held_out)) == 98  # 20 % of 490
    base = [i for i in range(490) if i not in set(held_out)]
    at = 0
    for rank, label in enumerate(version.class_order):
        size = max(int(30 / (rank + 1)), 4)
        own = {i for i in base if source.train.labels[i] == label}
        used = identity(before.images[at : at + size])
        assert (train.labels[at : at + size] == label).all()
        assert set(used) <= own and len(set(used)) == min(size, len(own))
        np.testing.assert_array_equal(used, used[np.arange(size) % len(own)])  # cycled
        at += size
    assert at == len(train)
    np.testing.assert_array_equal(before.images, source.train.images[identity(before.images)])
    # Every image has one background, and each use of a base image has its own.
    values = []
    for new, old in zip(train.images, before.images, strict=True):
        (value,) = set(new[old == 0])
        np.testing.assert_array_equal(new[old != 0], old[old != 0])
        values.append(int(value))
    assert 0 <= min(values) < 10 and 90 < max(values) <= 99
    assert len(set(values[:30])) > 15


def test_versions_are_functions_of_seed_and_number(source):
    one = K49LongTail(source, "dilation_erosion", largest=8, seed=1)
    two = K49LongTail(source, "dilation_erosion", largest=8, seed=1)
    two.version(0)  # what was made before changes nothing
    first, again = one.version(4), two.version(4)
    assert first.splits.train.content_hash() == again.splits.train.content_hash()
    orders = {tuple(k49_class_order(v, seed)) for v in range(5) for seed in (0, 1)}
    assert len(orders) == 10
    assert all(sorted(order) == list(range(49)) for order in orders)
    other = one.version(5)
    assert other.splits.train.content_hash() != first.splits.train.content_hash()
    for split in ("test", "validation", "invariance"):  # shared by all versions
        assert getattr(other.splits, split) is getattr(first.splits, split)
    assert other.splits.test.content_hash() == two.version(0).splits.test.content_hash()
    changed = K49LongTail(source, "dilation_erosion", largest=8, seed=2).version(4).splits
    assert changed.test.content_hash() != first.splits.test.content_hash()


@pytest.mark.parametrize("nuisance", k49.NUISANCES)
def test_validation_and_test_are_transformed_and_their_originals_kept(source, nuisance):
    splits = K49LongTail(source, nuisance, largest=8).version(0).splits
    held_out, changed = splits.invariance, splits.validation
    np.testing.assert_array_equal(held_out.labels, changed.labels)
    np.testing.assert_array_equal(splits.test.labels, source.test.labels)
    for old, new in ((held_out.images, changed.images), (source.test.images, splits.test.images)):
        moved = np.mean([(a != b).any() for a, b in zip(old, new, strict=True)])
        assert moved > 0.7  # an erosion of size 1 and a background of 0 change nothing
    assert splits.train.images.dtype == np.uint8


def test_one_transformed_class(source):
    full = K49LongTail(source, "rotation", largest=12).version(2)
    single = K49LongTail(source, "rotation", largest=12, transformed_class_rank=1).version(2)
    train, before = single.splits.train, single.untransformed
    of_rank = train.labels == single.class_order[1]
    np.testing.assert_array_equal(train.images[~of_rank], before.images[~of_rank])
    np.testing.assert_array_equal(train.images[of_rank], full.splits.train.images[of_rank])
    assert (train.images[of_rank] != before.images[of_rank]).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(before.images, full.untransformed.images)
    assert single.splits.test.content_hash() == full.splits.test.content_hash()


def test_few_base_images(source):
    study = K49LongTail(source, "background", largest=30, base_images=3)
    one, two = study.version(0), study.version(1)
    for label in range(49):
        used = identity(one.untransformed.images[one.untransformed.labels == label])
        assert len(set(used)) == min(3, len(used))
    assert set(identity(one.untransformed.images)) != set(identity(two.untransformed.images))


def test_a_balanced_set_to_judge_generated_images(source):
    study = K49LongTail(source, "grey_level", largest=8, recognition_per_class=3)
    recognition = study.version(0).splits.recognition
    assert recognition.class_counts.tolist() == [3] * 49
    assert K49LongTail(source, "grey_level", largest=8).version(0).splits.recognition is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nuisance": "blur"}, "unknown nuisance 'blur'"),
        ({"validation_fraction": 0.0}, "validation fraction"),
        ({"validation_fraction": 0.9999}, "cannot be split"),
        ({"transformed_class_rank": 49}, "0 .the largest class. to 48"),
        ({"base_images": 0}, "base_images"),
        ({"alpha": -1.0}, "alpha"),
        ({"recognition_per_class": -1}, "recognition_per_class"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments(source, options, words):
    with pytest.raises(InputError, match=words):
        K49LongTail(source, **{"nuisance": "rotation", **options})


def test_classes_that_run_out(source):
    with pytest.raises(InputError, match="fewer than 11"):
        K49LongTail(source, "background", base_images=11).version(0)
    few = source.train.take(np.flatnonzero(source.train.labels != 7))
    with pytest.raises(InputError, match="class 7 has no base image"):
        K49LongTail(Splits(few, source.test), "background").version(0)
    with pytest.raises(InputError, match="seed"):
        K49LongTail(source, "background").version(-1)


@pytest.mark.slow
def test_the_standin(data_folder):
    source = load_k49(data_folder / "k49_standin")
    assert source.train.name == "font-drawn stand-in for Kuzushiji-49"
    version = K49LongTail(source, "background").version(0)
    assert len(version.splits.train) == 7822
    assert len(version.splits.validation) == 5880 and len(version.splits.test) == 4900
