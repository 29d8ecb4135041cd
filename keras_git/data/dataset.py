"""Labelled images in memory or in a file, and the splits of one source."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging

from keras_git.errors import InputError

MAX_BYTES_IN_MEMORY = 4 << 30
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images of one size with integer labels.

    Attributes:
        images: uint8 array (num_images, height, width, channels), 0..255, 1 or 3 channels; may be
            a `numpy.memmap`, which is never read as a whole.
        labels: integer array (num_images,), 0..num_classes-1; kept as int64.
        num_classes: number of classes.
        class_names: one name per class; empty means "0", "1", ...
        name: name of the source, for logs.

    Raises:
        InputError: for images of the wrong rank or dtype, labels of the wrong shape, dtype or
            range, or a wrong number of class names.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...] = ()
    name: str = "arrays"

    def __post_init__(self) -> None:
        images, labels = self.images, np.asarray(self.labels)
        if not isinstance(images, np.ndarray):
            raise InputError(
                f"images are {type(images).__name__}; pass a numpy array (N, H, W, C) of uint8"
            )
        if images.dtype != np.uint8:
            raise InputError(
                f"images have dtype {images.dtype}; they must be uint8 with values 0..255"
            )
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise InputError(
                f"images have shape {images.shape}; they must be (N, height, width, channels) "
                "with 1 or 3 channels"
            )
        if images.shape[0] == 0:
            raise InputError("the dataset has no images; at least one is needed")
        if labels.shape != images.shape[:1]:
            raise InputError(
                f"labels have shape {labels.shape}; {images.shape[0]} images need shape "
                f"({images.shape[0]},)"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise InputError(f"labels have dtype {labels.dtype}; they must be integers")
        if int(self.num_classes) < 2:
            raise InputError(f"num_classes is {self.num_classes}; it must be at least 2")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise InputError(
                f"labels run from {low} to {high}; with {self.num_classes} classes they must be "
                f"within 0..{self.num_classes - 1}"
            )
        names = tuple(self.class_names) or tuple(str(c) for c in range(self.num_classes))
        if len(names) != self.num_classes:
            raise InputError(f"{len(names)} class names for {self.num_classes} classes")
        object.__setattr__(self, "labels", labels.astype(np.int64))
        object.__setattr__(self, "num_classes", int(self.num_classes))
        object.__setattr__(self, "class_names", names)

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.images.shape[1:]
        return int(height), int(width), int(channels)

    @property
    def class_counts(self) -> np.ndarray:
        """Number of images of each class, int64 (num_classes,)."""
        return np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)

    def content_hash(self) -> str:
        """SHA-256 (hex) of the shape, the labels and every pixel, read in pieces."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        for start, stop in _chunks(self.images):
            digest.update(self.images[start:stop].tobytes())
        return digest.hexdigest()

    def take(self, indices: np.ndarray, path: str | Path | None = None) -> ImageDataset:
        """The images at `indices`, in that order.

        Args:
            indices: integer array (n,).
            path: a `.npy` file to put the images into, piece by piece, for selections that do not
                fit into memory; the result then reads from that file.

        Returns:
            A new dataset of n images.

        Raises:
            InputError: if an index is out of range or the file cannot be written.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise InputError(
                f"indices run from {indices.min()} to {indices.max()}; the dataset has "
                f"{len(self)} images"
            )
        if path is None:
            images = np.asarray(self.images[indices])
        else:
            images = _written(self.images, indices, Path(path))
        return ImageDataset(
            images, self.labels[indices], self.num_classes, self.class_names, self.name
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """What one source offers.

    Attributes:
        train: training images, full or already long-tailed.
        test: test images, used once at the end.
        validation: images for selection during training, or None.
        invariance: untransformed images on which invariance is measured, or None (then the test
            images serve).
        recognition: class-balanced training images, for a classifier that judges whether
            generated images still show their class, or None.
    """

    train: ImageDataset
    test: ImageDataset
    validation: ImageDataset | None = None
    invariance: ImageDataset | None = None
    recognition: ImageDataset | None = None

    def __post_init__(self) -> None:
        others: Sequence[tuple[str, ImageDataset | None]] = (
            ("test", self.test),
            ("validation", self.validation),
            ("invariance", self.invariance),
            ("recognition", self.recognition),
        )
        for split, dataset in others:
            if dataset is None:
                continue
            if dataset.num_classes != self.train.num_classes:
                raise InputError(
                    f"the {split} split has {dataset.num_classes} classes, the training split "
                    f"{self.train.num_classes}; they must agree"
                )
            if dataset.image_shape != self.train.image_shape:
                raise InputError(
                    f"the {split} split has images of shape {dataset.image_shape}, the training "
                    f"split {self.train.image_shape}; they must agree"
                )


class ImageSink:
    """Room for images that come piece by piece: an array or, if that is too large, a `.npy` file.

    Args:
        path: the file; None keeps any number of images in memory. It is complete or not there.
        max_bytes: largest array, in bytes, to keep in memory.
    """

    def __init__(self, path: Path | None, max_bytes: int = MAX_BYTES_IN_MEMORY) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._partial: Path | None = None

    def make(self, shape: tuple[int, ...]) -> np.ndarray:
        """A uint8 array of this shape, to be filled."""
        if self._path is None or int(np.prod(shape)) <= self._max_bytes:
            return np.empty(shape, dtype=np.uint8)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self._path.with_name(self._path.name + ".partial")
        return np.lib.format.open_memmap(self._partial, mode="w+", dtype=np.uint8, shape=shape)

    def finished(self, images: np.ndarray) -> np.ndarray:
        """The filled array, or the finished file, opened for reading."""
        if self._path is None or self._partial is None or not isinstance(images, np.memmap):
            return images
        images.flush()
        self._partial.replace(self._path)
        logging.info("images are read from %s", self._path)
        return np.load(self._path, mmap_mode="r", allow_pickle=False)

    def discard(self) -> None:
        """Removes what is unfinished."""
        if self._partial is not None:
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)


def _chunks(images: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) pairs that cover the images in pieces of a few megabytes."""
    per_image = max(int(np.prod(images.shape[1:])), 1)
    size = max(_CHUNK_BYTES // per_image, 1)
    return [(i, min(i + size, len(images))) for i in range(0, len(images), size)]


def _written(images: np.ndarray, indices: np.ndarray, path: Path) -> np.ndarray:
    """Copy a selection to a `.npy` file and open it read-only; complete or absent, never half."""
    sink = ImageSink(path, max_bytes=-1)
    try:
        target = sink.make((len(indices), *images.shape[1:]))
        for start, stop in _chunks(target):
            target[start:stop] = images[indices[start:stop]]
        return sink.finished(target)
    except OSError as error:
        sink.discard()
        raise InputError(
            f"cannot write images to {path}: {error.strerror or error}; choose a writable folder "
            "with enough space"
        ) from error
