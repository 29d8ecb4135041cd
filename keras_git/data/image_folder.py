"""A folder of images, one sub-folder per class."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging

from keras_git.data.dataset import ImageDataset, Splits
from keras_git.data.image_files import (
    Progress,
    check_colour,
    fits_into_memory,
    read_images,
    remove_left_over,
    sample_sizes,
)
from keras_git.data.long_tail import stratified_group_split
from keras_git.errors import InputError

LARGEST_DEFAULT_SIDE = 64
SMALLEST_DEFAULT_SIDE = 16
_SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}
# Files that data sets keep beside their images, such as lists of boxes: no image, no damage.
_IGNORED_ENDINGS = (".txt", ".csv", ".json", ".xml", ".md")
_PART = "part_of_"
_LAYOUTS = "DIR/class/file or DIR/{train,val,test}/class/file"


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """What a folder of images holds.

    Attributes:
        splits: the images; class names are those of the sub-folders, in the order of `sorted`.
        unreadable: (path relative to the folder, reason) of every file that was skipped.
        files: for `"train"`, `"test"` and, if there is one, `"validation"` the paths relative to
            the folder, in the order of the images.
    """

    splits: Splits
    unreadable: tuple[tuple[str, str], ...]
    files: Mapping[str, tuple[str, ...]]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the sub-folders."""
        return self.splits.train.class_names


@dataclass(frozen=True, eq=False)
class _Listing:
    """Files of one folder of class folders, sorted by class, then by path."""

    class_names: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    unreadable: tuple[tuple[str, str], ...]


def load_image_folder(
    path: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    colour: str = "rgb",
    test_share: float = 0.2,
    validation_share: float = 0.0,
    group_regex: str | None = None,
    strict: bool = False,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    max_per_class: int | None = None,
    progress: Progress | None = None,
) -> ImageFolder:
    """Read a folder of labelled images.

    Layouts: `DIR/class/file` and `DIR/{train,val,test}/class/file` (`validation` and `valid` mean
    `val`; only `train` must be there). Files may lie in further folders inside a class folder.
    Names that begin with a dot, `Thumbs.db`, and files that end in .txt, .csv, .json, .xml or .md
    are ignored. Links are followed, but no file is read twice: what is seen again in its own class
    is skipped and listed, as are files that cannot be read. How a file becomes an array:
    `keras_git.data.read_image`.

    Splits that are not given are made from the training images, by class (stratified) and seed.
    The test part of a class is `test_share` of it and at least one image if the class has two;
    the validation part leaves two at least.

    Args:
        path: the folder.
        image_size: side or (height, width) of the result; None means what `default_image_size`
            makes of the sizes found.
        colour: `"rgb"` or `"grey"`.
        test_share: share of each class that becomes test images, unless there is a `test` folder.
        validation_share: the same for validation images, of all images of the class; 0: none.
        group_regex: regular expression that is searched for in each path relative to the folder
            (in given splits: to the split's folder), with `/` between names. Its first group that
            matched, or without groups the whole match, names the group of the file, such as the
            object that several files show; images of one group are all in one split. It must match
            every file; `|(.+)` at its end makes each other file its own group.
        strict: make unreadable files an error.
        seed: of the splits.
        cache_dir: where decoded images are kept, so that the next start need not decode them, and
            from where they are read if they need more than a quarter of the memory.
        max_per_class: read so many files of each class and split only, to try something out.
        progress: called with (files done, files in all) while files are read.

    Returns:
        Splits, the skipped files, and which image is which file.

    Raises:
        InputError: there is no such folder, no class folder or only one, an empty class, classes
            that differ in case only, a test class without training images, no readable image in a
            class, a file or folder that links bring into two classes or two splits, a regular
            expression that does not match, a group in two given splits, too many images for the
            memory without a `cache_dir`; with `strict`, an unreadable file.
    """
    folder = _checked_folder(path)
    check_colour(colour)
    for name, share in (("test_share", test_share), ("validation_share", validation_share)):
        if not 0 <= share < 1:
            raise InputError(f"{name} is {share}; use 0 to below 1")
    if test_share + validation_share >= 1:
        raise InputError(
            f"test_share {test_share} and validation_share {validation_share} leave no training "
            "images; use less"
        )
    pattern = _compiled(group_regex)
    parts = _split_folders(folder)
    seen = _Seen()
    if parts is None:
        listings = {"train": _list_classes(folder, "", max_per_class, seen)}
    else:
        listings = {
            s: _list_classes(folder, name, max_per_class, seen) for s, name in parts.items()
        }
    names = _common_classes(folder, listings, parts or {})
    files = [file for listing in listings.values() for file in listing.files]
    labels = np.concatenate([_renumbered(listing, names) for listing in listings.values()])
    split_of = np.repeat(list(listings), [len(listing.files) for listing in listings.values()])
    prefixes = {s: "" if parts is None else f"{parts[s]}/" for s in listings}
    groups = _groups(files, split_of, prefixes, pattern)

    images, reasons = _images(folder, files, image_size, colour, cache_dir, progress)
    listed = [entry for listing in listings.values() for entry in listing.unreadable]
    unreadable = _report([*listed, *((files[i], why) for i, why in reasons.items())], strict, files)
    readable = np.ones(len(files), dtype=bool)
    readable[list(reasons)] = False

    chosen = {s: np.flatnonzero(readable & (split_of == s)) for s in listings}
    counts = np.bincount(labels[chosen["train"]], minlength=len(names))
    if not counts.all():
        empty = names[int(np.argmin(counts))]
        prefix = f"{prefixes['train']}{empty}/"
        first = next((entry for entry in unreadable if entry[0].startswith(prefix)), ("", ""))
        raise InputError(
            f"class {empty!r} has no readable image; the first file: {first[0]!r}: {first[1]}"
        )
    shares = {"test": test_share, "validation": validation_share}
    of_rest = 1.0
    for number, (split, share) in enumerate(shares.items()):
        if split in chosen or not share:
            continue
        pool = chosen["train"]
        kept, aside = stratified_group_split(
            labels[pool], groups[pool], share / of_rest, (seed, number), keep=1 + number
        )
        chosen["train"], chosen[split] = pool[kept], pool[aside]
        of_rest -= share
    if not len(chosen.get("test", ())):
        raise InputError(
            f"{folder} leaves no test images: use a test_share above 0, and classes or groups of "
            "two images or more"
        )
    chosen = {split: indices for split, indices in chosen.items() if len(indices)}

    everything = ImageDataset(images, labels, len(names), names, folder.resolve().name or "images")
    datasets = {s: _taken(everything, indices, cache_dir) for s, indices in chosen.items()}
    _remove_other_parts(everything, datasets.values())
    for split in ("test", "validation"):
        if split in datasets and not datasets[split].class_counts.all():
            missing = int(np.sum(datasets[split].class_counts == 0))
            logging.warning("%s: %d classes have no %s image", folder, missing, split)
    return ImageFolder(
        Splits(datasets["train"], datasets["test"], datasets.get("validation")),
        unreadable,
        {split: tuple(files[i] for i in indices) for split, indices in chosen.items()},
    )


def load_class_folder(
    path: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    colour: str = "rgb",
    strict: bool = False,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[ImageDataset, tuple[tuple[str, str], ...]]:
    """Read all images of `DIR/class/file` as one dataset, without splits.

    Args:
        path: the folder.
        image_size: as for `load_image_folder`.
        colour: `"rgb"` or `"grey"`.
        strict: make unreadable files an error.
        cache_dir: as for `load_image_folder`.
        progress: called with (files done, files in all).

    Returns:
        The images in the order of class and path, and (path, reason) of the skipped files.

    Raises:
        InputError: as `load_image_folder`.
    """
    folder = _checked_folder(path)
    check_colour(colour)
    listing = _list_classes(folder, "", None, _Seen())
    files = list(listing.files)
    images, reasons = _images(folder, files, image_size, colour, cache_dir, progress)
    unreadable = _report(
        [*listing.unreadable, *((files[i], why) for i, why in reasons.items())], strict, files
    )
    everything = ImageDataset(
        images,
        listing.labels,
        len(listing.class_names),
        listing.class_names,
        folder.resolve().name or "images",
    )
    readable = np.setdiff1d(np.arange(len(files)), list(reasons))
    taken = _taken(everything, readable, cache_dir)
    _remove_other_parts(everything, [taken])
    return taken, unreadable


def split_folders(path: str | Path) -> dict[str, Path] | None:
    """Which splits a folder of images has on disk.

    Args:
        path: the folder.

    Returns:
        `"train"`, `"validation"`, `"test"` -> their folders, as far as they are there; None if the
        folder holds classes.

    Raises:
        InputError: there is no such folder, or it holds both splits and classes.
    """
    folder = _checked_folder(path)
    parts = _split_folders(folder)
    return None if parts is None else {split: folder / name for split, name in parts.items()}


def class_file_counts(path: str | Path) -> dict[str, int]:
    """Number of files of each class of `DIR/class/file`, without reading them.

    Raises:
        InputError: as `load_image_folder`.
    """
    listing = _list_classes(_checked_folder(path), "", None, _Seen())
    counts = np.bincount(listing.labels, minlength=len(listing.class_names)).tolist()
    return dict(zip(listing.class_names, counts, strict=True))


def default_image_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size to which images of these sizes are resized if nobody says.

    The medians of height and width, made smaller until no side is above 64 (more costs time, and
    the generator takes no more), in multiples of 4 from 16; a square unless one side is a quarter
    longer than the other.

    Args:
        sizes: (height, width) of some of the images; empty means 32 x 32.

    Returns:
        (height, width).
    """
    if not len(sizes):
        return 32, 32
    height, width = np.median(np.asarray(sizes, dtype=np.float64), axis=0)
    if max(height, width) < 1.25 * min(height, width):
        height = width = math.sqrt(height * width)
    scale = min(1.0, LARGEST_DEFAULT_SIDE / max(height, width))

    def rounded(side: float) -> int:
        return max(4 * math.floor(side * scale / 4 + 0.5), SMALLEST_DEFAULT_SIDE)

    return rounded(height), rounded(width)


def _checked_folder(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}; name a folder with one sub-folder per class")
    return folder


def _compiled(group_regex: str | None) -> re.Pattern[str] | None:
    if group_regex is None:
        return None
    try:
        return re.compile(group_regex)
    except re.error as error:
        raise InputError(
            f"group_regex {group_regex!r} is no regular expression: {error}"
        ) from error


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Entries of a folder by name, without hidden ones."""
    with os.scandir(folder) as found:
        entries = [e for e in found if e.name[0] != "." and e.name.lower() not in _IGNORED]
    return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link to itself
        return False


def _folders(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in _entries(folder) if _is_folder(entry)]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error


def _split_folders(folder: Path) -> dict[str, str] | None:
    """Split -> name of its folder, or None if the folder holds classes."""
    names = _folders(folder)
    found: dict[str, str] = {}
    for name in names:
        split = _SPLIT_NAMES.get(name.lower())
        if split is not None and split in found:
            raise InputError(
                f"{folder} holds both {found[split]!r} and {name!r}, which mean the same: remove "
                "or rename one"
            )
        if split is not None:
            found[split] = name
    # A class may be called "train": splits hold folders only.
    if "train" not in found or not _folders(folder / found["train"]):
        return None
    others = [name for name in names if name not in found.values()]
    if others:
        raise InputError(
            f"{folder} holds {found['train']!r} with folders in it, and also {others[0]!r}: is it "
            f"a class or not? The layouts are {_LAYOUTS}; move it away"
        )
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


class _Seen:
    """Folders and files by what they are, not by name: links give one thing several names."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], tuple[str, str]] = {}

    def before(self, information: os.stat_result, relative: str, home: str) -> str | None:
        """The name under which the same thing was seen before in its class, or None.

        Args:
            information: of the file or folder.
            relative: its path.
            home: path of its class folder.

        Raises:
            InputError: it was seen in another class or another split.
        """
        if not information.st_ino:  # file systems without such numbers
            return None
        key = information.st_dev, information.st_ino
        place, first = self._places.setdefault(key, (home, relative))
        if place != home:
            raise InputError(
                f"{first!r} and {relative!r} are the same through a link: an image can be in one "
                "split and one class only; remove one of the two"
            )
        return None if first == relative else first


def _list_classes(folder: Path, part: str, max_per_class: int | None, seen: _Seen) -> _Listing:
    """All files below the class folders of `folder/part`."""
    root = folder / part
    unreadable: list[tuple[str, str]] = []
    above = {_identity(root), *(_identity(parent) for parent in root.resolve().parents)}
    above.add(_identity(folder))
    names = []
    for name in _folders(root):
        if _identity(root / name) in above:
            unreadable.append((_joined(part, name), "a symbolic link to a folder it lies in"))
        else:
            names.append(name)
    if not names:
        raise InputError(f"{root} has no sub-folders; the layouts are {_LAYOUTS}")
    _check_names(names, root)
    # Test and validation images may lack classes.
    if len(names) == 1 and _SPLIT_NAMES.get(part.lower(), "train") == "train":
        raise InputError(
            f"{root} has a single class, {names[0]!r}; at least two are needed (the layouts are "
            f"{_LAYOUTS})"
        )
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        home = _joined(part, name)
        walk = _Walk(folder, home, above, seen)
        walk.enter(home)
        unreadable += walk.wrong
        if not walk.files:
            raise InputError(f"class {home!r} {walk.why_empty()}")
        files += walk.files[:max_per_class]
        labels += [label] * len(walk.files[:max_per_class])
    return _Listing(tuple(names), tuple(files), np.asarray(labels, np.int64), tuple(unreadable))


class _Walk:
    """Files at and below one class folder.

    Attributes:
        files: paths relative to `folder`, in the order of names.
        wrong: (path, reason) of what could not be entered or is there already.
        ignored: number of files that are no images by their ending.
    """

    def __init__(self, folder: Path, home: str, above: set[tuple[int, int]], seen: _Seen) -> None:
        self._folder, self._home, self._above, self._seen = folder, home, above, seen
        self.files: list[str] = []
        self.wrong: list[tuple[str, str]] = []
        self.ignored = 0

    def enter(self, relative: str) -> None:
        """Adds what is at and below `relative`; no folder and no file twice."""
        try:
            information = os.stat(self._folder / relative)
            entries = _entries(self._folder / relative)
        except OSError as error:
            self.wrong.append((relative, error.strerror or str(error)))
            return
        if (information.st_dev, information.st_ino) in self._above:
            self.wrong.append((relative, "a symbolic link to a folder it lies in"))
            return
        if self._seen.before(information, relative, self._home) is not None:
            self.wrong.append((relative, "a symbolic link to a folder that is read already"))
            return
        for entry in entries:
            name = _joined(relative, entry.name)
            if _is_folder(entry):
                self.enter(name)
            elif entry.name.lower().endswith(_IGNORED_ENDINGS):
                self.ignored += 1
            else:
                self._add(entry, name)

    def _add(self, entry: os.DirEntry[str], name: str) -> None:
        first = None
        # A link to nothing, or to itself, is left to the pass that decodes.
        with contextlib.suppress(OSError):
            first = self._seen.before(entry.stat(), name, self._home)
        if first is None:
            self.files.append(name)
        else:
            self.wrong.append((name, f"the same file as {first!r}, through a link"))

    def why_empty(self) -> str:
        """What is wrong with a class without files, and what to do."""
        if self.wrong:
            path, reason = self.wrong[0]
            return f"holds no file that can be read; the first: {path!r}: {reason}"
        if self.ignored:
            return (
                f"has no images, only {self.ignored} files of text; put images into it or remove "
                "its folder"
            )
        return "is empty; put images into it or remove its folder"


def _identity(path: Path) -> tuple[int, int]:
    information = os.stat(path)
    return information.st_dev, information.st_ino


def _joined(part: str, name: str) -> str:
    return f"{part}/{name}" if part else name


def _check_names(names: Sequence[str], root: Path) -> None:
    seen: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"the name of class folder {name!r} in {root} is not valid UTF-8: rename it"
            ) from None
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise InputError(
                f"classes {seen[key]!r} and {name!r} in {root} differ only in case or in the "
                "encoding of letters: merge them or rename one"
            )
        seen[key] = name


def _common_classes(
    folder: Path, listings: Mapping[str, _Listing], parts: Mapping[str, str]
) -> tuple[str, ...]:
    names = listings["train"].class_names
    for split, listing in listings.items():
        strange = [name for name in listing.class_names if name not in names]
        if len(strange) == 1 and len(listing.class_names) == 1:
            # Tiny ImageNet: val/images/*.JPEG, its classes in a text file.
            raise InputError(
                f"{folder / parts[split]} has only the folder {strange[0]!r}, which is no class of "
                f"{parts['train']!r}: without class folders give {folder / parts['train']} as the "
                "folder, and other parts are made from it"
            )
        if strange:
            raise InputError(
                f"class {strange[0]!r} of the {split} folder is not in the train folder; every "
                "class needs training images"
            )
    return names


def _renumbered(listing: _Listing, names: tuple[str, ...]) -> np.ndarray:
    """Labels of a listing that may lack some of the classes."""
    place = np.array([names.index(name) for name in listing.class_names], np.int64)
    return place[listing.labels]


def _groups(
    files: Sequence[str],
    split_of: np.ndarray,
    prefixes: Mapping[str, str],
    pattern: re.Pattern[str] | None,
) -> np.ndarray:
    """Number of the group of each file; no group is in two given splits."""
    if pattern is None:
        return np.arange(len(files))
    numbers: dict[str, int] = {}
    home: dict[str, str] = {}
    groups = np.empty(len(files), np.int64)
    for i, (file, split) in enumerate(zip(files, split_of, strict=True)):
        match = pattern.search(file.removeprefix(prefixes[split]))
        if match is None:
            raise InputError(
                f"group_regex {pattern.pattern!r} does not match {file!r}: correct it, or end it "
                "with |(.+) to make every other file its own group"
            )
        name = next((g for g in match.groups() if g is not None), match.group(0))
        if home.setdefault(name, split) != split:
            raise InputError(
                f"group {name!r} is in both the {home[name]} and the {split} folder ({file!r}): "
                "move its images together, or correct group_regex"
            )
        groups[i] = numbers.setdefault(name, len(numbers))
    return groups


def _images(
    folder: Path,
    files: Sequence[str],
    image_size: int | tuple[int, int] | None,
    colour: str,
    cache_dir: str | Path | None,
    progress: Progress | None,
) -> tuple[np.ndarray, dict[int, str]]:
    if image_size is None:
        size = default_image_size(sample_sizes([folder / file for file in files]))
    else:
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(sides) != 2 or any(not isinstance(s, int | np.integer) or s < 1 for s in sides):
            raise InputError(f"image_size is {image_size!r}; use a side or (height, width)")
        size = (int(sides[0]), int(sides[1]))
    return read_images(folder, files, size, colour=colour, cache_dir=cache_dir, progress=progress)


def _report(
    unreadable: Sequence[tuple[str, str]], strict: bool, files: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """The skipped files, sorted; an error if all are, or any with `strict`."""
    found = tuple(sorted(unreadable))
    if not found:
        return found
    first = f"{found[0][0]!r}: {found[0][1]}"
    if strict:
        raise InputError(
            f"{len(found)} files cannot be read, first {first}; remove them, or leave strict out "
            "to skip them"
        )
    if {path for path, _ in found} >= set(files):
        raise InputError(f"none of {len(files)} files is a readable image; first {first}")
    logging.warning("%d files cannot be read and are skipped; first %s", len(found), first)
    return found


def _taken(
    everything: ImageDataset, indices: np.ndarray, cache_dir: str | Path | None
) -> ImageDataset:
    """A part of the images, in memory if all of them fit there, else in a file of its own."""
    images = everything.images
    if len(indices) == len(images) and not isinstance(images, np.memmap):
        return everything
    if cache_dir is None or fits_into_memory(images.nbytes):
        return everything.take(indices)
    source = Path(images.filename)  # type: ignore[attr-defined]
    made_of = everything.labels.tobytes() + indices.tobytes()
    made_of += repr((str(source), os.stat(source).st_mtime_ns)).encode()
    name = f"{_PART}{source.stem}_{hashlib.sha256(made_of).hexdigest()[:16]}.npy"
    path = Path(cache_dir) / name
    part = (everything.labels[indices], everything.num_classes, everything.class_names)
    try:
        cached = np.load(path, mmap_mode="r", allow_pickle=False)
        if cached.shape == (len(indices), *images.shape[1:]):
            os.utime(path)  # in use: no left-over
            return ImageDataset(cached, *part, everything.name)
    except (OSError, ValueError):
        pass
    return everything.take(indices, path)


def _remove_other_parts(everything: ImageDataset, used: Iterable[ImageDataset]) -> None:
    """Files of other splits, or of older images, would pile up in a folder that is kept."""
    if not isinstance(everything.images, np.memmap):
        return
    source = Path(everything.images.filename)  # type: ignore[arg-type]
    keep = {
        Path(part.images.filename).name  # type: ignore[arg-type]
        for part in used
        if isinstance(part.images, np.memmap)
    }
    remove_left_over(
        path for path in source.parent.glob(f"{_PART}{source.stem}_*") if path.name not in keep
    )
