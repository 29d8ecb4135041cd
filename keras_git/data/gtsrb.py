"""The German Traffic Sign Recognition Benchmark: its layouts, split by track.

The images of one track show one physical sign on the way past it and differ little, so all of
them have to be on one side of a split.

Reference: Stallkamp, Schlipsing, Salmen, Igel: "Man vs. computer: Benchmarking machine learning
algorithms for traffic sign recognition", Neural Networks 32, 2012.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_git.data import randomness
from keras_git.data.dataset import ImageDataset, Splits
from keras_git.data.image_files import read_images
from keras_git.errors import InputError

NUM_CLASSES = 43
SIZE = 32
CLASS_NAMES = (
    "limit 20", "limit 30", "limit 50", "limit 60", "limit 70", "limit 80", "end of limit 80",
    "limit 100", "limit 120", "no passing", "no passing for trucks", "priority at next crossing",
    "priority road", "yield", "stop", "no vehicles", "no trucks", "no entry", "danger",
    "curve left", "curve right", "double curve", "bumpy road", "slippery road", "road narrows",
    "road work", "traffic signals", "pedestrians", "children", "bicycles", "ice or snow",
    "wild animals", "end of all limits", "turn right", "turn left", "straight ahead",
    "straight or right", "straight or left", "keep right", "keep left", "roundabout",
    "end of no passing", "end of no passing for trucks",
)  # fmt: skip
LAYOUTS = (
    "class folders 00000, 00001, ... with images TTTTT_FFFFF.ppm (track, frame), with or without "
    "a GT-NNNNN.csv in each; or Train.csv with the columns Path and ClassId"
)

_TRAIN_FOLDERS = ("", "Final_Training/Images", "Training", "Train", "train")
_TEST_FOLDERS = ("Final_Test/Images", "Test", "test")
_TEST_FILES = ("GT-final_test.csv", "Test.csv", "test.csv")
_ENDINGS = (".ppm", ".png", ".jpg", ".jpeg", ".bmp")
_TRACK = re.compile(r"(\d+)_(\d+)\.[A-Za-z]+$")
_TRACK_GROUPS = {"validation": 0, "test": 1}


@dataclass(frozen=True)
class _Sign:
    """One annotated image."""

    path: Path
    label: int
    region: tuple[int, int, int, int] | None = None

    @property
    def track(self) -> int:
        found = _TRACK.search(self.path.name)
        if not found:
            raise InputError(
                f"{self.path} has no track in its name; training images are TTTTT_FFFFF.ppm "
                "(track, frame)"
            )
        return int(found[1])


def load_gtsrb(
    data_dir: str | Path,
    *,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    crop_to_sign: bool = False,
    image_size: int = SIZE,
    seed: int = 0,
) -> Splits:
    """Read GTSRB, or other images of tracks in one of its layouts.

    Training images, in `data_dir`, or below it in `Final_Training/Images`, `Training` or `Train`,
    each of these also inside a folder `GTSRB`:

    - class folders with an annotation `GT-NNNNN.csv` each (separator `;`, columns Filename, Roi.X1,
      Roi.Y1, Roi.X2, Roi.Y2, ClassId), images `TTTTT_FFFFF.ppm`;
    - one `Train.csv` (columns Path, ClassId and, for a crop, those of the region), paths relative
      to its folder, file names that end in `TTTTT_FFFFF` and an image format;
    - class folders whose names are the class numbers, without annotation.

    Test images: `GT-final_test.csv` or `Test.csv`, with the same columns, and its images beside it
    or in `Final_Test/Images` or `Test`. Without one, tracks of the training images are set aside.

    Images are stretched to a square, bilinear with antialiasing; the aspect ratio is not kept. How
    a file becomes an array: `keras_git.data.read_image`.

    Args:
        data_dir: the folder.
        validation_fraction: share of the tracks of every class that becomes the validation set, 0
            (none) to below 1, rounded to whole tracks; every class keeps a training track.
        test_fraction: the same for the test set where there is no annotated one.
        crop_to_sign: cut out the annotated region of the sign first. The paper uses whole images.
        image_size: height and width in pixels.
        seed: decides which tracks are set aside.

    Returns:
        Splits with uint8 RGB images (N, image_size, image_size, 3), complete (not long-tailed), in
        the order class, track, frame. `validation` is None if no track was set aside.

    Raises:
        InputError: an unknown layout, a missing folder, file or column, an image that cannot be
            read, a class without images, a region missing or outside its image, bad numbers.
    """
    for name, value in (("validation", validation_fraction), ("test", test_fraction)):
        if not 0 <= value < 1:
            raise InputError(f"{name} fraction is {value}; it must be at least 0 and below 1")
    if image_size < 1:
        raise InputError(f"image_size is {image_size}; use 1 or more")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise InputError(f"data directory {root} does not exist; create it or name another")
    roots = [root, root / "GTSRB"]
    signs = _training_signs(roots)
    tests = _test_signs(roots)
    # By the classes that are there: a wrong number may be of any size.
    present = sorted({sign.label for sign in signs})
    num_classes = len(present)
    missing = next((c for c, label in enumerate(present) if c != label), None)
    if missing is not None:
        raise InputError(
            f"class {missing} of {present[-1] + 1} has no training image in {root}; classes are "
            "numbered from 0 without gaps"
        )
    if tests and max(sign.label for sign in tests) >= num_classes:
        raise InputError(
            f"the test images have classes up to {max(s.label for s in tests)}, the training "
            f"images up to {num_classes - 1}"
        )
    if tests is None:
        signs, tests = _split(signs, test_fraction, seed, "test")
        if not tests:
            raise InputError(
                f"{root} has no annotated test images ({', '.join(_TEST_FILES[:2])}) and too few "
                "tracks to set some aside; add them or raise the test fraction"
            )
    train, validation = _split(signs, validation_fraction, seed, "validation")

    def dataset(chosen: Sequence[_Sign]) -> ImageDataset:
        return ImageDataset(
            _images(chosen, image_size, crop_to_sign),
            np.array([sign.label for sign in chosen]),
            num_classes,
            CLASS_NAMES if num_classes == NUM_CLASSES else (),
            "GTSRB",
        )

    return Splits(
        train=dataset(train),
        test=dataset(tests),
        validation=dataset(validation) if validation else None,
    )


def tracks_set_aside(
    labels: np.ndarray, tracks: np.ndarray, fraction: float, seed: int, purpose: str = "validation"
) -> np.ndarray:
    """Chooses whole tracks of every class.

    Args:
        labels: integers (N,).
        tracks: integers (N,), the track of each image; numbers count within a class.
        fraction: share of the tracks of each class, rounded to whole tracks; one always stays.
        seed: decides which tracks; each class is drawn independently.
        purpose: `"validation"` or `"test"`, which draw independently.

    Returns:
        bool (N,), True for the images of the tracks set aside.
    """
    aside = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = np.unique(tracks[labels == label])
        number = min(int(np.floor(fraction * own.size + 0.5)), own.size - 1)
        rng = randomness.generator(
            seed, randomness.GTSRB_TRACKS, _TRACK_GROUPS[purpose], int(label)
        )
        chosen = rng.permutation(own)[:number]
        aside |= (labels == label) & np.isin(tracks, chosen)
    return aside


def _split(
    signs: list[_Sign], fraction: float, seed: int, purpose: str
) -> tuple[list[_Sign], list[_Sign]]:
    labels = np.array([sign.label for sign in signs])
    tracks = np.array([sign.track for sign in signs])
    aside = tracks_set_aside(labels, tracks, fraction, seed, purpose)
    return (
        [sign for sign, out in zip(signs, aside, strict=True) if not out],
        [sign for sign, out in zip(signs, aside, strict=True) if out],
    )


def _training_signs(roots: Iterable[Path]) -> list[_Sign]:
    """The training images of the first layout that is there, by class, track and frame."""
    for root in roots:
        for name in ("Train.csv", "train.csv"):
            if (root / name).is_file():
                return _ordered(_annotated(root / name, [root]))
        for below in _TRAIN_FOLDERS:
            folder = root / below
            classes = _class_folders(folder)
            if not classes:
                continue
            signs: list[_Sign] = []
            for label, path in classes:
                found = sorted(path.glob("GT-*.csv"))
                if found:
                    signs += _annotated(found[0], [path])
                else:
                    signs += [_Sign(image, label) for image in _image_files(path)]
            if signs:
                return _ordered(signs)
    raise InputError(f"{next(iter(roots))} holds no training images of GTSRB: expected {LAYOUTS}")


def _test_signs(roots: Iterable[Path]) -> list[_Sign] | None:
    """The annotated test images, or those of class folders; None if there are none."""
    unlabelled = None
    for root in roots:
        places = [root, *(root / folder for folder in _TEST_FOLDERS), root / "Final_Test"]
        for place in places:
            for name in _TEST_FILES:
                if (place / name).is_file():
                    return _annotated(place / name, [place, *places])
            if (place / "GT-final_test.test.csv").is_file():
                unlabelled = place / "GT-final_test.test.csv"
        for folder in _TEST_FOLDERS:
            signs = [
                _Sign(image, label)
                for label, path in _class_folders(root / folder)
                for image in _image_files(path)
            ]
            if signs:
                return signs
    if unlabelled is not None:
        raise InputError(
            f"{unlabelled} has no classes; put GT-final_test.csv of the benchmark's page beside it"
        )
    return None


def _class_folders(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(int(p.name), p) for p in folder.iterdir() if p.name.isdecimal() and p.is_dir()]
    return sorted(found)


def _image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _ENDINGS)


def _ordered(signs: list[_Sign]) -> list[_Sign]:
    return sorted(signs, key=lambda sign: (sign.label, sign.track, sign.path.name))


def _annotated(path: Path, folders: Sequence[Path]) -> list[_Sign]:
    """Reads an annotation file; its images are in the first of `folders` that has the first one."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            separator = ";" if ";" in file.readline() else ","
            file.seek(0)
            rows = list(csv.DictReader(file, delimiter=separator))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); it must be a CSV file") from error
    if not rows:
        raise InputError(f"{path} has no rows")
    name = "Filename" if "Filename" in rows[0] else "Path"
    for column in (name, "ClassId"):
        if column not in rows[0]:
            raise InputError(
                f"{path} has no column {column}; it needs Filename (or Path) and ClassId"
            )
    first = rows[0][name] or ""
    folder = next((f for f in folders if (f / first).is_file()), None)
    if folder is None:
        raise InputError(f"{path} names {first!r}, which is not there; unpack the images beside it")
    region = ("Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2")
    has_region = all(column in rows[0] for column in region)
    signs = []
    for number, row in enumerate(rows, start=2):
        try:
            x1, y1, x2, y2 = (int(row[column]) for column in region) if has_region else (0,) * 4
            label = int(row["ClassId"])
            image = folder / row[name]
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        if label < 0:
            raise InputError(f"{path}, line {number}: ClassId is {label}; classes start at 0")
        signs.append(_Sign(image, label, (x1, y1, x2, y2) if has_region else None))
    return signs


def _images(signs: Sequence[_Sign], size: int, crop: bool) -> np.ndarray:
    boxes = None
    if crop:
        without = next((sign for sign in signs if sign.region is None), None)
        if without is not None:
            raise InputError(f"{without.path} has no annotated region; do not crop")
        # The annotated corners are included.
        regions = [sign.region for sign in signs if sign.region is not None]
        boxes = [(left, top, right + 1, bottom + 1) for left, top, right, bottom in regions]
    images, unreadable = read_images(
        Path(), [str(sign.path) for sign in signs], (size, size), boxes=boxes
    )
    for index, reason in unreadable.items():
        raise InputError(f"{signs[index].path} cannot be read: {reason}")
    return images
