"""Labelled images in memory: of each class as many as are wanted, chosen by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_git.auditing.data import LabelledImages, open_data, pair
from keras_git.data import ImageDataset, Splits
from keras_git.errors import InputError

_BATCH = 1000


@dataclass(frozen=True, eq=False)
class ImageSample:
    """Images that are measured.

    Attributes:
        images: uint8 or float32 `(N, H, W, C)`.
        labels: int64 `(N,)`.
        highest: 255 if values are grey levels 0..255, 1 if they are in [0, 1].
        class_names: names of the classes 0, 1, ...
        name: of the data.
    """

    images: np.ndarray
    labels: np.ndarray
    highest: float
    class_names: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)."""
        return int(self.images.shape[1]), int(self.images.shape[2])

    @property
    def classes(self) -> np.ndarray:
        """The labels that occur, ascending."""
        return np.unique(self.labels)

    def class_name(self, label: int) -> str:
        """Name of a class, its number if it has none."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def content_hash(self) -> str:
        """SHA-256 (hex) of pixels and labels."""
        digest = hashlib.sha256(repr((self.images.shape, self.images.dtype.str)).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        return digest.hexdigest()


def _batches(data: Any, split: str, data_dir: str | None) -> tuple[Iterator[Any], str, Any]:
    """Batches of raw images and labels, name, and class names."""
    known = (
        isinstance(data, (LabelledImages, ImageDataset, Splits, str, Path))
        or isinstance(data, keras.utils.PyDataset)
        or (hasattr(data, "element_spec") and hasattr(data, "cardinality"))
    )
    if (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and not isinstance(data[0], (tuple, list))
    ):
        images, labels = np.asarray(data[0]), np.asarray(data[1])
        if images.ndim not in (3, 4) or len(images) == 0:
            raise InputError(f"images have shape {images.shape}; give (N, H, W, C), N > 0")
        if len(images) != len(labels):
            raise InputError(f"{len(images)} images have {len(labels)} labels; give one for each")
        return iter([(images, labels)]), "arrays", ()
    if known:
        source = open_data(data, split=split, data_dir=data_dir)
        return source.raw(_BATCH), source.name, source.class_names
    if isinstance(data, Iterable):
        return map(pair, data), type(data).__name__, ()
    raise InputError(
        f"data is a {type(data).__name__}; give (images, labels), a path, a dataset, or an "
        "iterable of batches (images, labels)"
    )


def _labels(labels: np.ndarray, number: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "uifb":
        raise InputError(f"labels have dtype {labels.dtype}; give one whole number per image")
    if labels.ndim == 2:
        labels = labels[:, 0] if labels.shape[1] == 1 else labels.argmax(axis=1)
    if labels.shape != (number,) or (labels.size and (labels != np.round(labels)).any()):
        raise InputError(f"labels have shape {labels.shape}; give one whole number per image")
    if labels.size and labels.min() < 0:
        raise InputError(f"label {labels.min()} in the data; labels are 0 or more")
    return labels.astype(np.int64)


def _standing(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) from grey images without channels, or with channels first (PyTorch)."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4:
        raise InputError(f"images have shape {images.shape}; give (N, H, W, C)")
    if images.dtype.kind not in "uif":
        raise InputError(f"images have dtype {images.dtype}; give uint8 or float")
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def sample_images(
    data: Any,
    *,
    images_per_class: int | None = None,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    split: str = "test",
    data_dir: str | None = None,
) -> ImageSample:
    """Reads labelled images, and of each class at most so many.

    Which images of a class are taken depends on the seed and on their places in the data, not on
    how the data come in batches. They stay in the order of the data.

    Args:
        data: `(images, labels)`; an `ImageDataset` or `Splits`; a folder, `.npz` file or dataset
            name (see `keras_git.auditing.open_data`); a `tf.data.Dataset` or
            `keras.utils.PyDataset`; a PyTorch `DataLoader` or another iterable of batches `(images,
            labels)`. Images are uint8, or float in [0, 1] or 0..255.
        images_per_class: most images of a class; None for all.
        seed: 0 or more, decides which.
        class_names: where the data have none.
        split: of data that have several.
        data_dir: folder of tensorflow_datasets, or of a relative `.npz` path.

    Returns:
        The sample.

    Raises:
        InputError: data that cannot be used.
    """
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed is {seed!r}; give a whole number of 0 or more")
    if isinstance(data, ImageSample):
        return data
    if images_per_class is not None and not (
        images_per_class > 0 and images_per_class == int(images_per_class)
    ):
        raise InputError(f"images_per_class is {images_per_class!r}; give a whole number above 0")
    batches, name, names = _batches(data, split, data_dir)
    generator = np.random.default_rng(int(seed))
    kept: dict[int, list[tuple[float, int, np.ndarray]]] = {}
    position = 0
    for images, labels in batches:
        labels = _labels(labels, len(images))
        if not len(labels):
            continue
        keys = generator.random(len(labels))
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            if images_per_class is not None:
                own = own[np.argsort(keys[own], kind="stable")[:images_per_class]]
            part = _standing(np.asarray(images[np.sort(own)]))
            places = np.sort(own)
            entries = kept.setdefault(int(label), [])
            entries += [
                (float(keys[place]), position + int(place), image)
                for place, image in zip(places, part, strict=True)
            ]
            if images_per_class is not None:
                entries.sort(key=lambda entry: entry[0])
                del entries[images_per_class:]
        position += len(labels)
    every = _in_order(kept)
    if not every:
        raise InputError("the data have no images")
    shapes = {image.shape for _, _, image in every}
    if len(shapes) > 1:
        raise InputError(f"images have different shapes {sorted(shapes)}; resize them to one size")
    array = np.stack([image for _, _, image in every])
    highest = 255.0
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 255):
            raise InputError(
                f"images range from {low:g} to {high:g}; give uint8, or float in [0, 1] or 0..255: "
                "what a model wants in their place is said by preprocess"
            )
        highest = 1.0 if high <= 1 else 255.0
    chosen = tuple(str(n) for n in (class_names if class_names is not None else names))
    return ImageSample(
        array, np.array([label for _, label, _ in every], np.int64), highest, chosen, name
    )


def _in_order(
    kept: dict[int, list[tuple[float, int, np.ndarray]]],
) -> list[tuple[int, int, np.ndarray]]:
    """(place, label, image), by place."""
    every = [
        (place, label, image) for label, entries in kept.items() for _, place, image in entries
    ]
    return sorted(every, key=lambda entry: entry[0])
