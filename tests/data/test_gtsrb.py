"""GTSRB in every layout, in miniature; what is one track stays on one side."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from keras_git.data import load_gtsrb
from keras_git.data.gtsrb import tracks_set_aside
from keras_git.errors import InputError

# Class -> frames of its tracks: unequal, as in the benchmark (one of its tracks has 29).
TRACKS = {0: (30, 29, 5, 2, 7), 1: (4, 30, 1), 2: (3, 2)}
COLUMNS = ("Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")


def picture(label: int, track: int, frame: int) -> Image.Image:
    """A sign with a border: its colour tells class, track and frame; sizes differ."""
    image = Image.new("RGB", (15 + 3 * frame, 20 + label))
    image.paste((80 * label + 10, 40 * track + 20, 7 * frame + 20), (5, 5, image.width - 5, 15))
    return image


def row(image: Image.Image, label: int, name: str, column: str) -> dict[str, object]:
    values = (image.width, image.height, 5, 5, image.width - 6, 14, label)
    return {column: name, **dict(zip(COLUMNS, values, strict=True))}


def write_csv(path: Path, rows: list[dict[str, object]], separator: str) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


def training_images():
    for label, tracks in TRACKS.items():
        for track, frames in enumerate(tracks):
            for frame in range(frames):
                yield label, track, frame, picture(label, track, frame)


def official(root: Path, annotated: bool = True, test: bool = True) -> None:
    """Final_Training/Images/00000/GT-00000.csv and Final_Test/Images/GT-final_test.csv."""
    rows: dict[int, list] = {label: [] for label in TRACKS}
    for label, track, frame, image in training_images():
        folder = root / "Final_Training/Images" / f"{label:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{track:05d}_{frame:05d}.ppm"
        image.save(folder / name)
        rows[label].append(row(image, label, name, "Filename"))
    for label, own in rows.items():
        if annotated:
            path = root / "Final_Training/Images" / f"{label:05d}" / f"GT-{label:05d}.csv"
            write_csv(path, own, ";")
    if test:
        folder = root / "Final_Test/Images"
        folder.mkdir(parents=True)
        tests = []
        for i in range(6):
            image = picture(i % 3, 9 - 5, i)
            image.save(folder / f"{i:05d}.ppm")
            tests.append(row(image, i % 3, f"{i:05d}.ppm", "Filename"))
        write_csv(folder / "GT-final_test.csv", tests, ";")


def one_csv(root: Path) -> None:
    """Train.csv and Test.csv with a column Path, file names that begin with the class."""
    rows, tests = [], []
    for label, track, frame, image in training_images():
        name = f"Train/{label}/{label:05d}_{track:05d}_{frame:05d}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
        rows.append(row(image, label, name, "Path"))
    (root / "Test").mkdir()
    for i in range(6):
        image = picture(i % 3, 4, i)
        image.save(root / f"Test/{i:05d}.png")
        tests.append(row(image, i % 3, f"Test/{i:05d}.png", "Path"))
    write_csv(root / "Train.csv", rows[::-1], ",")  # any order
    write_csv(root / "Test.csv", tests, ",")


def plain(root: Path) -> None:
    """Class folders alone, directly in the folder."""
    for label, track, frame, image in training_images():
        (root / f"{label:05d}").mkdir(exist_ok=True)
        image.save(root / f"{label:05d}" / f"{track:05d}_{frame:05d}.ppm")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name, make in (("official", official), ("one_csv", one_csv), ("plain", plain)):
        made[name] = tmp_path_factory.mktemp(name)
        make(made[name])
    (made["official"] / "nested").mkdir()
    return made


def colour(images: np.ndarray) -> np.ndarray:
    """Class and track of each image, from the colour in its middle."""
    middle = images[:, 10:14, 16].max(axis=1).astype(int)
    return np.stack([(middle[:, 0] + 30) // 80, middle[:, 1] // 40], axis=1)


def test_all_layouts_give_the_same_images(layouts):
    whole = {
        name: load_gtsrb(path, validation_fraction=0, test_fraction=0.3)
        for name, path in layouts.items()
    }
    first, second = whole["official"], whole["one_csv"]
    assert first.train.class_counts.tolist() == [73, 35, 5]
    assert first.train.image_shape == (32, 32, 3) and first.validation is None
    assert first.train.content_hash() == second.train.content_hash()
    assert first.test.content_hash() == second.test.content_hash()
    assert first.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    apart = whole["plain"]  # no test images: tracks are set aside
    assert apart.train.num_classes == 3 and len(apart.train) + len(apart.test) == 113


@pytest.mark.parametrize("layout", ["official", "one_csv", "plain"])
def test_the_frames_of_a_track_stay_together(layouts, layout):
    splits = load_gtsrb(layouts[layout], validation_fraction=0.4, test_fraction=0.3, seed=2)
    sides = [splits.train, splits.validation]
    sides += [splits.test] if layout == "plain" else []
    found = []
    for side in sides:
        pairs = colour(side.images)
        np.testing.assert_array_equal(pairs[:, 0], side.labels)
        assert set(side.labels) <= {0, 1, 2}
        found.append({tuple(pair) for pair in pairs.tolist()})
    assert not set.intersection(*found[:2])
    assert sum(map(len, found)) == len(set.union(*found)) == 10  # every track once
    assert {label for label, _ in found[0]} == {0, 1, 2}  # every class keeps a track
    again = load_gtsrb(layouts[layout], validation_fraction=0.4, test_fraction=0.3, seed=2)
    assert again.train.content_hash() == splits.train.content_hash()
    other = load_gtsrb(layouts[layout], validation_fraction=0.4, test_fraction=0.3, seed=3)
    assert other.train.content_hash() != splits.train.content_hash()


@given(
    sizes=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=7), min_size=2, max_size=4),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 9),
)
def test_tracks_set_aside_are_whole_and_of_the_right_number(sizes, fraction, seed):
    labels = np.concatenate([np.full(sum(own), c) for c, own in enumerate(sizes)])
    tracks = np.concatenate([np.repeat(np.arange(len(own)), own) for own in sizes])
    aside = tracks_set_aside(labels, tracks, fraction, seed)
    for label, own in enumerate(sizes):
        chosen = [set(aside[(labels == label) & (tracks == t)]) for t in range(len(own))]
        assert all(len(values) == 1 for values in chosen)
        number = sum(values == {True} for values in chosen)
        assert number == min(int(fraction * len(own) + 0.5), len(own) - 1)


def test_a_folder_around_everything_and_another_test_folder(tmp_path):
    official(tmp_path / "GTSRB", test=False)
    folder = tmp_path / "GTSRB/Final_Test/Images"
    folder.mkdir(parents=True)
    picture(1, 0, 0).save(folder / "00000.ppm")
    with_labels = tmp_path / "GTSRB/GT-final_test.csv"  # not beside the images
    write_csv(with_labels, [row(picture(1, 0, 0), 1, "00000.ppm", "Filename")], ";")
    splits = load_gtsrb(tmp_path)
    assert splits.test.labels.tolist() == [1]
    with_labels.rename(folder / "GT-final_test.test.csv")
    with pytest.raises(InputError, match="has no classes; put GT-final_test.csv"):
        load_gtsrb(tmp_path)


def test_the_sign_alone(layouts):
    whole, cut = (load_gtsrb(layouts["official"], crop_to_sign=c).test for c in (False, True))
    assert (whole.images == 0).any()  # the black border
    flat = cut.images.reshape(len(cut), -1, 3)
    assert (flat == flat[:, :1]).all() and (flat > 0).all()
    with pytest.raises(InputError, match="no annotated region"):
        load_gtsrb(layouts["plain"], crop_to_sign=True)


def test_a_region_outside_its_image_is_named(tmp_path):
    one_csv(tmp_path)
    edited(tmp_path, "Test.csv", ",5,5,", ",5,-1,")
    with pytest.raises(InputError, match="Test/00000.png cannot be read: the region .* not inside"):
        load_gtsrb(tmp_path, crop_to_sign=True)


def test_images_are_stretched_by_a_bilinear_filter(layouts):
    train = load_gtsrb(layouts["official"], validation_fraction=0, image_size=8).train
    expected = picture(0, 0, 3).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(train.images[3], np.asarray(expected))


def edited(root: Path, name: str, old: str, new: str) -> None:
    path = root / name
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: edited(r, "Train.csv", "ClassId", "Class"), "no column ClassId"),
        (lambda r: edited(r, "Train.csv", "Path", "File"), "no column Path"),
        (lambda r: edited(r, "Train.csv", ",2\r\n", ",two\r\n"), "line 2"),
        (lambda r: edited(r, "Test.csv", "00000.png", "none.png"), "names 'Test/none.png'"),
        (lambda r: (r / "Test.csv").write_text("Path,ClassId\n"), "no rows"),
        (lambda r: (r / "Test.csv").write_bytes(b"Path,ClassId\n\xff\xfe,1\n"), "cannot be read"),
        (lambda r: edited(r, "Test.csv", ",0\r\n", ",7\r\n"), "up to 7"),
        (lambda r: (r / "Train/1/00001_00000_00002.png").write_bytes(b""), "cannot be read"),
        (lambda r: (r / "Train/1/00001_00000_00002.png").unlink(), "cannot be read"),
        (lambda r: (r / "Train.csv").unlink(), None),
    ],
)
def test_damaged_data_are_named(tmp_path, change, words):
    one_csv(tmp_path)
    change(tmp_path)
    if words is None:  # then the class folders serve
        assert load_gtsrb(tmp_path, validation_fraction=0).train.class_counts.tolist() == [
            73,
            35,
            5,
        ]
        return
    with pytest.raises(InputError, match=words) as error:
        load_gtsrb(tmp_path)
    assert "\n" not in str(error.value)


def test_folders_that_are_something_else(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_gtsrb(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no training images"):
        load_gtsrb(tmp_path)
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000/readme.txt").touch()
    with pytest.raises(InputError, match="holds no training images"):
        load_gtsrb(tmp_path)
    picture(0, 0, 0).save(tmp_path / "00000/sign.ppm")
    with pytest.raises(InputError, match="no track in its name"):
        load_gtsrb(tmp_path)
    (tmp_path / "00000/sign.ppm").rename(tmp_path / "00000/00000_00000.ppm")
    with pytest.raises(InputError, match="too few tracks"):
        load_gtsrb(tmp_path)
    (tmp_path / "00002").mkdir()
    picture(2, 0, 0).save(tmp_path / "00002/00000_00000.ppm")
    with pytest.raises(InputError, match="class 1 of 3 has no training image"):
        load_gtsrb(tmp_path)


def test_a_wrong_class_number_costs_no_memory(tmp_path):
    one_csv(tmp_path)
    edited(tmp_path, "Train.csv", ",2\r\n", f",{10**30}\r\n")
    with pytest.raises(InputError, match="class 3 of 10000.* has no training image"):
        load_gtsrb(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
def test_images_are_read_like_those_of_any_folder(tmp_path):
    """Transparency, and a file that would be waited for without end."""
    plain(tmp_path)
    clear = Image.new("RGBA", (9, 9), (200, 0, 0, 0))
    clear.save(tmp_path / "00000/00000_00000.png")
    (tmp_path / "00000/00000_00000.ppm").unlink()
    splits = load_gtsrb(tmp_path, validation_fraction=0, test_fraction=0.3)
    images = np.concatenate([splits.train.images, splits.test.images])
    assert np.sum((images == 255).all(axis=(1, 2, 3))) == 1
    (tmp_path / "00000/00000_00000.png").unlink()
    os.mkfifo(tmp_path / "00000/00000_00000.ppm")
    with pytest.raises(InputError, match="00000_00000.ppm cannot be read: not a regular file"):
        load_gtsrb(tmp_path, validation_fraction=0, test_fraction=0.3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation_fraction": 1.0}, "validation fraction"),
        ({"test_fraction": -0.1}, "test fraction"),
        ({"image_size": 0}, "image_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments(layouts, options, words):
    with pytest.raises(InputError, match=words):
        load_gtsrb(layouts["plain"], **options)
