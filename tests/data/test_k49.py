"""K49-LT: the archives, and the construction of the paper's versions."""

from __future__ import annotations

import hashlib
import os

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


def test_the_archives_are_read_as_they_are(source):
    arrays = archives()
    np.testing.assert_array_equal(source.train.images[..., 0], arrays["k49-train-imgs.npz"])
    np.testing.assert_array_equal(source.test.labels, arrays["k49-test-labels.npz"])
    assert source.train.class_names[:3] == ("あ", "い", "う") and source.train.num_classes == 49
    assert len(set(source.train.class_names)) == 49


def test_the_name_says_what_the_files_are(folder, tmp_path, monkeypatch):
    """By their content: four files of the official sizes may hold anything."""
    assert load_k49(folder).test.name == "images in the format of Kuzushiji-49"
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in k49.FILES}
    monkeypatch.setattr(k49, "STANDIN_FILES", md5)
    assert load_k49(folder).train.name == "font-drawn stand-in for Kuzushiji-49"
    monkeypatch.setattr(k49, "FILES", md5)
    assert load_k49(folder).train.name == "Kuzushiji-49"
    write(tmp_path, **{"k49-test-labels.npz": np.roll(archives()["k49-test-labels.npz"], 1)})
    assert load_k49(tmp_path).train.name == "images in the format of Kuzushiji-49"


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


@pytest.mark.parametrize("change", ["password", "compression"])
def test_archives_that_python_cannot_open(tmp_path, change):
    write(tmp_path)
    locked(tmp_path / "k49-test-imgs.npz", change)
    with pytest.raises(InputError, match="cannot read .*k49-test-imgs.npz") as error:
        load_k49(tmp_path)
    assert "\n" not in str(error.value)


def locked(path, change: str) -> None:
    """Says in both headers of the only file that it needs a password, or compression 99."""
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.index(signature) + flags
        if change == "password":
            content[at] |= 1
        else:
            content[at + 2 : at + 4] = (99).to_bytes(2, "little")
    path.write_bytes(content)


@pytest.fixture
def served(folder, monkeypatch):
    """The miniature in the place of the official files; `get_file` is the real one."""
    monkeypatch.setattr(k49, "URL", f"{folder.as_uri()}/")
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in k49.FILES}
    monkeypatch.setattr(k49, "FILES", md5)
    return md5


def test_what_is_missing_is_downloaded(tmp_path, folder, served, monkeypatch):
    assert k49.load_k49(tmp_path / "new", download=True).train.name == "Kuzushiji-49"
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(served)
    asked = []
    get_file = keras.utils.get_file

    def counted(name, *arguments, **options):
        asked.append(name)
        return get_file(name, *arguments, **options)

    monkeypatch.setattr(keras.utils, "get_file", counted)
    (tmp_path / "new/k49-test-imgs.npz").unlink()
    load_k49(tmp_path / "new", download=True)
    load_k49(tmp_path / "new", download=True)
    assert asked == ["k49-test-imgs.npz"]


def test_a_damaged_download_leaves_nothing_and_can_be_repeated(tmp_path, served, monkeypatch):
    right = served["k49-train-labels.npz"]
    monkeypatch.setitem(k49.FILES, "k49-train-labels.npz", "0" * 32)
    for _ in range(2):  # the second call finds no wrong file in its way
        with pytest.raises(InputError, match="k49-train-labels.npz did not arrive whole"):
            load_k49(tmp_path / "new", download=True)
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["k49-train-imgs.npz"]
    monkeypatch.setitem(k49.FILES, "k49-train-labels.npz", right)
    assert len(load_k49(tmp_path / "new", download=True).test) == 98


def test_a_killed_download_is_no_obstacle(tmp_path, served):
    for name, time in ((".download.old", 1), (".download.now", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "k49-train-imgs.npz").write_bytes(b"half")
        if time:
            os.utime(tmp_path / name / "k49-train-imgs.npz", (time, time))
            os.utime(tmp_path / name, (time, time))
    load_k49(tmp_path, download=True)
    # Perhaps of another process that is at work.
    assert [path.name for path in tmp_path.glob(".*")] == [".download.now"]


def test_a_file_of_somebody_else_is_not_replaced(tmp_path, served):
    own = tmp_path / "k49-test-labels.npz"
    np.savez(own, np.zeros(3))
    before = own.read_bytes()
    with pytest.raises(InputError, match="is not the official file"):
        load_k49(tmp_path, download=True)
    assert own.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_downloads_that_cannot_be(tmp_path, monkeypatch):
    assert k49.URL + next(iter(k49.FILES)) == (
        "http://codh.rois.ac.jp/kmnist/dataset/k49/k49-train-imgs.npz"
    )
    monkeypatch.setattr(k49, "URL", (tmp_path / "nowhere").as_uri() + "/")
    with pytest.raises(InputError, match="cannot be downloaded: ") as error:
        load_k49(tmp_path / "new", download=True)
    assert "\n" not in str(error.value) and not list((tmp_path / "new").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written .*name another folder"):
        load_k49(tmp_path / "file/below", download=True)

    def closed(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(k49.tempfile, "mkdtemp", closed)
    with pytest.raises(InputError, match="cannot be written .Permission denied"):
        load_k49(tmp_path / "new", download=True)


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
