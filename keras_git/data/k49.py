"""Kuzushiji-49 with a long tail and a known nuisance (K49-LT), the paper's controlled study.

Every image is changed by one draw of a nuisance whose truth is known, so that the invariance a
classifier should learn is known exactly. The study is repeated over *versions* that differ in which
class gets which size.

Reference: Zhou et al., "Do Deep Networks Transfer Invariances Across Classes?", ICLR 2022,
section 3. Data: Clanuwat et al., "Deep Learning for Classical Japanese Literature", 2018,
http://codh.rois.ac.jp/kmnist/.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_git import transforms
from keras_git.data import randomness
from keras_git.data.dataset import ImageDataset, Splits
from keras_git.data.image_files import remove_left_over
from keras_git.data.long_tail import cyclic_indices
from keras_git.data.profiles import class_sizes
from keras_git.data.sources import _one_line
from keras_git.errors import InputError
from keras_git.transforms import nuisances

NUM_CLASSES = 49
SIZE = 28
URL = "http://codh.rois.ac.jp/kmnist/dataset/k49/"
# File name -> MD5 of the official file.
FILES = {
    "k49-train-imgs.npz": "7ac088b20481cf51dcd01ceaab89d821",
    "k49-train-labels.npz": "44a8e1b893f81e63ff38d73cad420f7a",
    "k49-test-imgs.npz": "d352e201d846ce6b94f42c990966f374",
    "k49-test-labels.npz": "4da6f7a62e67a832d5eb1bd85c5ee448",
}
# The same of the stand-in on which this project is developed: characters drawn from fonts.
STANDIN_FILES = {
    "k49-train-imgs.npz": "a45067e32cd965117c41b19d6f8afef6",
    "k49-train-labels.npz": "e2b55af2fb0eba1cae25d02c4d5cc167",
    "k49-test-imgs.npz": "4f0c765681a28aa3b07093af715cab42",
    "k49-test-labels.npz": "dca31b648b347e7c8e06565f76352ac6",
}
OFFICIAL_NAME = "Kuzushiji-49"
STANDIN_NAME = "font-drawn stand-in for Kuzushiji-49"
OTHER_NAME = "images in the format of Kuzushiji-49"
CLASS_NAMES = tuple(
    "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわゐゑをんゝ"
)
NUISANCES = ("rotation", "background", "dilation_erosion", "grey_level")

_DOWNLOADS = ".download."
_CHUNK = 500
_TRAIN, _VALIDATION, _TEST, _RECOGNITION = 0, 1, 2, 3
_APPLY: dict[str, Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray]] = {
    "rotation": lambda x, p: nuisances.rotate(x, p["degrees"]),
    "background": lambda x, p: nuisances.set_background(x, p["values"]),
    "dilation_erosion": lambda x, p: nuisances.dilate_erode(x, p["dilate"], p["erode"]),
    "grey_level": lambda x, p: nuisances.grey_level(x, p["background"], p["foreground"]),
}


def load_k49(data_dir: str | Path, *, download: bool = False) -> Splits:
    """Read the four files of Kuzushiji-49, or others in the same format.

    Args:
        data_dir: folder of `k49-{train,test}-{imgs,labels}.npz`, each with one array `arr_0`:
            images uint8 (N, 28, 28), 0..255, labels integers (N,), 0..48.
        download: fetch what is not there (about 75 MB in all) and check the MD5 of all four.

    Returns:
        Splits of the complete, untransformed sets, images (N, 28, 28, 1). Their name says what
        results are measured on, by the MD5 of all four files: `OFFICIAL_NAME`, `STANDIN_NAME`, or
        `OTHER_NAME` for anything else.

    Raises:
        InputError: a missing, damaged or other file, images or labels of another shape, type or
            range, a class without images; with `download`, no connection, a wrong MD5 or a folder
            that cannot be written.
    """
    folder = Path(data_dir).expanduser()
    if download:
        _download(folder)
    elif not folder.is_dir():
        raise InputError(f"data directory {folder} does not exist; create it or name another")
    arrays = [_array(folder / name) for name in FILES]
    sets: list[tuple[np.ndarray, np.ndarray]] = []
    for split, images, labels in (
        ("train", arrays[0], arrays[1]),
        ("test", arrays[2], arrays[3]),
    ):
        if images.dtype != np.uint8 or images.shape[1:] != (SIZE, SIZE):
            raise InputError(
                f"{folder / f'k49-{split}-imgs.npz'} holds {images.dtype} {images.shape}; "
                f"K49 images are uint8 (N, {SIZE}, {SIZE})"
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise InputError(
                f"{folder / f'k49-{split}-labels.npz'} holds {labels.dtype} {labels.shape}; "
                f"{len(images)} images need integers ({len(images)},)"
            )
        sets.append((images[..., None], labels))
    name = _name(folder)
    train, test = (
        ImageDataset(images, labels, NUM_CLASSES, CLASS_NAMES, name) for images, labels in sets
    )
    for split, dataset in (("train", train), ("test", test)):
        missing = np.flatnonzero(dataset.class_counts == 0)
        if missing.size:
            raise InputError(
                f"{folder / f'k49-{split}-labels.npz'} has no image of class {missing[0]}; all "
                f"{NUM_CLASSES} classes are needed"
            )
    return Splits(train, test)


def _name(folder: Path) -> str:
    """What the four files are, by their content: files of the same sizes may be anything."""
    found = {name: _md5(folder / name) for name in FILES}
    if found == FILES:
        return OFFICIAL_NAME
    return STANDIN_NAME if found == STANDIN_FILES else OTHER_NAME


def _download(folder: Path) -> None:
    """Fetches what is not there; a file is in its place whole and checked, or not at all."""
    missing = []
    for name, md5 in FILES.items():
        path = folder / name
        if not path.exists():
            missing.append(name)
        # It may be somebody's own: it is not replaced.
        elif _md5(path) != md5:
            raise InputError(
                f"{path} is not the official file (MD5 {_md5(path)}, not {md5}); remove it, or "
                "leave out the download to use it as it is"
            )
    if not missing:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_left_over(folder.glob(f"{_DOWNLOADS}*"))
        # `get_file` writes to the final name from the first byte on, and leaves wrong bytes there.
        workspace = Path(tempfile.mkdtemp(prefix=_DOWNLOADS, dir=folder))
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}); name another folder"
        ) from error
    try:
        for name in missing:
            _fetch(name, workspace)
            os.replace(workspace / name, folder / name)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _fetch(name: str, workspace: Path) -> None:
    path = workspace / name
    try:
        keras.utils.get_file(
            name,
            URL + name,
            cache_dir=str(workspace.absolute()),
            cache_subdir="",
            file_hash=FILES[name],
            hash_algorithm="md5",
        )
    except Exception as error:  # any failure of the network is the same to the user
        if not path.is_file():
            raise InputError(
                f"{URL + name} cannot be downloaded: {_one_line(error)}; check the network, or "
                f"put the file into {workspace.parent}"
            ) from error
    if not path.is_file() or _md5(path) != FILES[name]:
        raise InputError(
            f"{URL + name} did not arrive whole (its MD5 is not {FILES[name]}); try again"
        )


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(
            f"{path} is not there; K49 needs {', '.join(FILES)} (the download fetches them)"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive["arr_0"]
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, RuntimeError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        raise InputError(
            f"cannot read {path}: {_one_line(error)}; it must be an .npz file with one array arr_0"
        ) from error


def k49_class_order(version: int, seed: int = 0) -> np.ndarray:
    """The class at each rank of size, largest first: int64 (49,), a function of (seed, version)."""
    rng = randomness.generator(seed, randomness.K49_CLASS_ORDER, version)
    return rng.permutation(NUM_CLASSES).astype(np.int64)


@dataclass(frozen=True, eq=False)
class K49Version:
    """One version of K49-LT.

    Attributes:
        splits: `train`, long-tailed and transformed; `validation` and `test`, transformed, with the
            class frequencies of the source, the same in every version; `invariance`, the
            validation images before their transformation; `recognition`, see `K49LongTail`.
        untransformed: the images of `splits.train` in the same order before their transformation,
            for an oracle that transforms anew in every step.
        class_order: the class at each rank of size, largest first, int64 (49,).
    """

    splits: Splits
    untransformed: ImageDataset
    class_order: np.ndarray


class K49LongTail:
    """Makes the versions of K49-LT for one nuisance.

    - The training images are shuffled and split into base and validation images.
    - The class at rank r = 1..49 has `max(trunc(largest * r ** -alpha), smallest)` images: its
      base images in their order, again from the first when they are used up, each use changed by
      its own draw of the nuisance.
    - Validation and test images are changed by one draw each, which all versions share.

    Args:
        source: complete, untransformed sets, from `load_k49`.
        nuisance: `"rotation"` (any angle), `"background"` (pixels of value 0 become 0..99),
            `"dilation_erosion"`, or, not in the paper, `"grey_level"`.
        alpha: exponent of the class sizes; the paper uses 2.0 and 1.02.
        largest: images of the largest class.
        smallest: lower bound of the class sizes.
        validation_fraction: part of the training images that becomes the validation set, in (0, 1).
        transformed_class_rank: rank, 0 (largest class) to 48, of the only class whose training
            images are transformed; None transforms all. Validation and test are transformed
            all the same: it asks whether an invariance learnt on one class moves to others.
        base_images: base images per class, drawn anew in each version, of which all images of a
            class are made (the published "theta-lt" variant uses 5), so that class size limits
            only the number of different nuisance parameters; None uses all.
        recognition_per_class: transformed base images of each class in the balanced set
            `recognition` (fewer if a class has fewer); 0 leaves it out.
        seed: decides the split, the orders and all draws.

    Raises:
        InputError: an unknown nuisance, or a number out of range.

    Reference: Zhou et al., ICLR 2022, section 3 and appendix. The published class orders are not
    known (their random numbers were not seeded), nor is their split.
    """

    def __init__(
        self,
        source: Splits,
        nuisance: str,
        *,
        alpha: float = 2.0,
        largest: int = 4800,
        smallest: int = 5,
        validation_fraction: float = 0.2,
        transformed_class_rank: int | None = None,
        base_images: int | None = None,
        recognition_per_class: int = 0,
        seed: int = 0,
    ) -> None:
        if nuisance not in NUISANCES:
            raise InputError(f"unknown nuisance {nuisance!r}; use one of {', '.join(NUISANCES)}")
        if not 0 < validation_fraction < 1:
            raise InputError(
                f"validation fraction is {validation_fraction}; it must be above 0 and below 1"
            )
        if transformed_class_rank is not None and not 0 <= transformed_class_rank < NUM_CLASSES:
            raise InputError(
                f"transformed_class_rank is {transformed_class_rank}; use 0 (the largest class) to "
                f"{NUM_CLASSES - 1}"
            )
        if base_images is not None and base_images < 1:
            raise InputError(f"base_images is {base_images}; use 1 or more")
        if recognition_per_class < 0:
            raise InputError(f"recognition_per_class is {recognition_per_class}; use 0 or more")
        self.sizes = class_sizes("zipf", NUM_CLASSES, largest, alpha=alpha, smallest=smallest)
        self.nuisance = nuisance
        self._source, self._seed = source, seed
        self._rank, self._base_images = transformed_class_rank, base_images
        self._recognition_per_class = recognition_per_class
        number = len(source.train)
        shuffled = randomness.generator(seed, randomness.K49_SPLIT).permutation(number)
        # Part of the images to keep, rounded down; the slack is for 0.8 * 232365 in binary.
        kept = int(np.floor(number * (1.0 - validation_fraction) + 1e-6))
        if not 0 < kept < number:
            raise InputError(f"{number} images cannot be split into training and validation")
        self._base, self._held_out = shuffled[:kept], shuffled[kept:]

    @property
    def transform(self) -> transforms.Transform:
        """The true nuisance."""
        return transforms.get(self.nuisance)

    def version(self, version: int) -> K49Version:
        """Makes version 0, 1, ...; the paper has 30.

        Raises:
            InputError: a negative number, or a class without base images.
        """
        source, seed = self._source.train, self._seed
        order = k49_class_order(version, seed)
        base = self._base
        if self._base_images is not None:
            chosen = []
            for label in range(NUM_CLASSES):
                members = base[source.labels[base] == label]
                if members.size < self._base_images:
                    raise InputError(
                        f"class {label} has {members.size} base images, fewer than "
                        f"{self._base_images}"
                    )
                rng = randomness.generator(seed, randomness.K49_BASE_IMAGES, version, label)
                chosen.append(rng.permutation(members)[: self._base_images])
            base = np.concatenate(chosen)
        used, labels = cyclic_indices(source.labels[base], order, self.sizes)
        untransformed = source.take(base[used])
        images = untransformed.images.copy()
        for rank, label in enumerate(order):
            if self._rank is None or rank == self._rank:
                members = np.flatnonzero(labels == label)
                rng = self._rng(_TRAIN, version, int(label))
                images[members] = self._transformed(untransformed.images[members], rng)
        splits = Splits(
            train=replace(untransformed, images=images),
            test=self._test,
            validation=self._validation,
            invariance=self._untransformed_validation,
            recognition=self._recognition,
        )
        return K49Version(splits, untransformed, order)

    def _rng(self, *position: int) -> np.random.Generator:
        return randomness.generator(self._seed, randomness.K49_NUISANCE, *position)

    def _transformed(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One draw for each image, in pieces that stay in the processor's cache."""
        drawn: dict[str, Any] = self.transform.sample(len(images), rng)
        result = np.empty_like(images)
        for start in range(0, len(images), _CHUNK):
            piece = slice(start, start + _CHUNK)
            parameters = {name: values[piece] for name, values in drawn.items()}
            result[piece] = _APPLY[self.nuisance](images[piece], parameters)
        return result

    @functools.cached_property
    def _test(self) -> ImageDataset:
        test = self._source.test
        return replace(test, images=self._transformed(test.images, self._rng(_TEST)))

    @functools.cached_property
    def _untransformed_validation(self) -> ImageDataset:
        return self._source.train.take(self._held_out)

    @functools.cached_property
    def _validation(self) -> ImageDataset:
        held_out = self._untransformed_validation
        images = self._transformed(held_out.images, self._rng(_VALIDATION))
        return replace(held_out, images=images)

    @functools.cached_property
    def _recognition(self) -> ImageDataset | None:
        labels = self._source.train.labels[self._base]
        number = min(self._recognition_per_class, int(np.bincount(labels).min()))
        if not number:
            return None
        members = [np.flatnonzero(labels == c)[:number] for c in range(NUM_CLASSES)]
        chosen = self._source.train.take(self._base[np.concatenate(members)])
        images = self._transformed(chosen.images, self._rng(_RECOGNITION))
        return replace(chosen, images=images)
