"""Labelled images from wherever they are, batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_git.data import ImageDataset, Splits, load
from keras_git.errors import InputError

_KINDS = (
    "(images, labels), an ImageDataset, Splits, a folder, an .npz file, a dataset name, a "
    "tf.data.Dataset or a keras.utils.PyDataset"
)
SPLITS = ("test", "train", "validation", "invariance")
Part = tuple[np.ndarray, np.ndarray]

# What tells whether a further pass gives the same images: pixels of each that are looked at, and
# images to one number that is remembered.
_PIXELS_COMPARED = 16
_IMAGES_PER_CODE = 256
_END = 2**64 - 1  # stands for a group of images: the end of the pass


class _Order:
    """Compares a pass over a stream with the first one, at 8 bytes per 256 images.

    Args:
        codes: of the groups of images that were complete in an earlier pass; is continued.
    """

    def __init__(self, codes: dict[int, tuple[int, int]]) -> None:
        self._codes = codes
        self._position = 0
        self._code = np.uint64(0)

    def add(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Takes the next images."""
        flat = images.reshape(len(images), -1)
        places = np.linspace(0, flat.shape[1] - 1, _PIXELS_COMPARED).astype(np.int64)
        pixels = (flat[:, places].astype(np.float64) * 64).astype(np.int64).astype(np.uint64)
        # Integers that wrap around: sums do not depend on how images are cut into pieces
        weights = np.arange(1, _PIXELS_COMPARED + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        values = (pixels * weights).sum(axis=1, dtype=np.uint64)
        values += labels.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        start = 0
        while start < len(labels):
            inside = self._position % _IMAGES_PER_CODE
            stop = min(start + _IMAGES_PER_CODE - inside, len(labels))
            turns = np.arange(inside, inside + stop - start, dtype=np.uint64) * np.uint64(2)
            part = (values[start:stop] * (turns + np.uint64(1))).sum(dtype=np.uint64)
            self._code = np.add(self._code, part, dtype=np.uint64)
            self._position += stop - start
            if self._position % _IMAGES_PER_CODE == 0:
                self._compare(self._position // _IMAGES_PER_CODE)
                self._code = np.uint64(0)
            start = stop

    def finish(self) -> None:
        """Takes note of the end of the pass."""
        self._compare(_END)

    def _compare(self, group: int) -> None:
        _expect(self._codes, group, (self._position, int(self._code)))


def _expect(codes: dict[int, tuple[int, int]], group: int, found: tuple[int, int]) -> None:
    if codes.setdefault(group, found) != found:
        raise InputError(
            "the data come in another order, or with other pixels, in each pass: give them "
            "without random augmentation and without shuffling (or with "
            "reshuffle_each_iteration=False)"
        )


class LabelledImages:
    """Images and labels that can be gone through several times, a piece at a time.

    Args:
        pieces: `pieces(size)` starts a new pass over `(images, labels)` in pieces of any size,
            about `size`.
        name: for reports.
        num_classes: C, or None if the source does not say.
        class_names: C names, or none.
        class_counts: training images per class, `(C,)`, or None if the source has no training set.
        indexed: `(images, labels)` arrays, if the source is made of such: passes over some of the
            images then read no others.
        notes: what else a report should say of the source.
    """

    def __init__(
        self,
        pieces: Callable[[int], Iterator[Part]] | None,
        name: str,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
        class_counts: np.ndarray | None = None,
        indexed: Sequence[Part] = (),
        notes: dict[str, Any] | None = None,
    ) -> None:
        self._pieces, self._indexed = pieces, list(indexed)
        self.name, self.num_classes = name, num_classes
        self.class_names, self.class_counts = tuple(class_names), class_counts
        self.notes = notes or {}
        self.images_per_class: int | None = None
        self._codes: dict[int, tuple[int, int]] = {}

    @property
    def num_images(self) -> int | None:
        """Images of one pass, as far as that is known beforehand."""
        labels = self.labels
        if labels is None or not self.num_classes:
            return None
        counts = np.bincount(labels, minlength=self.num_classes)
        if self.images_per_class is not None:
            counts = np.minimum(counts, self.images_per_class)
        return int(counts.sum())

    def sample(self, number: int) -> np.ndarray:
        """At most `number` images `(N, H, W, C)`: spread evenly over arrays, the first of a stream.

        Raises:
            InputError: there are no images, or they cannot be used.
        """
        if not self._indexed:
            images, _, _ = next(self.blocks(number), (None, None, None))
            if images is None:
                raise InputError("the data have no images")
            return images
        sizes = [len(labels) for _, labels in self._indexed]
        if not sum(sizes):
            raise InputError("the data have no images")
        chosen = np.unique(np.linspace(0, sum(sizes) - 1, number).astype(np.int64))
        parts = []
        for (images, _), start in zip(self._indexed, np.cumsum([0, *sizes]), strict=False):
            own = chosen[(chosen >= start) & (chosen < start + len(images))] - start
            if len(own):
                parts.append(_images(np.asarray(images[own])))
        return np.concatenate(parts)

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, int64 (N,); None for a stream."""
        if not self._indexed:
            return None
        return np.concatenate([labels for _, labels in self._indexed])

    def order(self) -> np.ndarray:
        """What is known of the order of a stream, uint64 `(G, 3)`, for `expect_order`."""
        rows = [(group, *code) for group, code in self._codes.items()]
        return np.array(rows, np.uint64).reshape(-1, 3)

    def expect_order(self, order: np.ndarray) -> None:
        """Passes must go on to give what an earlier process saw.

        Args:
            order: what `order` was there, uint64 `(G, 3)`.

        Raises:
            InputError: they gave something else already.
        """
        for group, position, code in order.tolist():
            _expect(self._codes, group, (position, code))

    def raw(self, size: int) -> Iterator[Part]:
        """One pass over images and labels as the source has them, unchecked, in pieces."""
        if self._pieces is not None:
            yield from self._pieces(size)
        for images, labels in self._indexed:
            for start in range(0, len(labels), size):
                yield images[start : start + size], labels[start : start + size]

    def content_hash(self) -> str:
        """SHA-256 (hex) of all labels and pixels, in one pass."""
        digest = hashlib.sha256()
        for images, labels, _ in self.blocks(1000):
            digest.update(repr((images.shape, images.dtype.str)).encode())
            digest.update(labels.astype("<i8").tobytes())
            digest.update(np.ascontiguousarray(images).tobytes())
        return digest.hexdigest()

    def blocks(
        self, batch_size: int, classes: np.ndarray | None = None, skip: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """One pass.

        Args:
            batch_size: images per block; the last block may be smaller.
            classes: bool (C,), the classes wanted; None for all.
            skip: images of these classes to leave out at the start; arrays are not read there.

        Yields:
            `(images, labels, positions)`: uint8 or float32 `(B, H, W, C)`, int64 `(B,)` and the
            position of each image in the data, int64 `(B,)`.

        Raises:
            InputError: images or labels that cannot be used.
        """
        waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        number = 0
        for piece in self._chosen(batch_size, classes, skip):
            waiting.append(piece)
            number += len(piece[1])
            while number >= batch_size:
                joined = _joined(waiting)
                yield _cut(joined, 0, batch_size)
                waiting = [_cut(joined, batch_size, number)]
                number -= batch_size
        if number:
            yield _joined(waiting)

    def _chosen(
        self, size: int, classes: np.ndarray | None, skip: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Pieces without the classes that are not wanted and the images that are too many."""
        taken = np.zeros(self.num_classes or 0, np.int64)
        position = 0
        source: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]
        if self._indexed:
            source, skip = self._indexed_pieces(classes, size, skip), 0
        else:
            source = self._streamed(size)
        for images, labels, positions in source:
            if positions is None:
                positions = np.arange(position, position + len(labels))
            position += len(labels)
            keep = np.ones(len(labels), bool)
            if self.num_classes:
                if len(labels) and labels.max() >= self.num_classes:
                    raise InputError(
                        f"label {labels.max()} in the data: the classifier has "
                        f"{self.num_classes} classes, so labels must be 0..{self.num_classes - 1}"
                    )
                if classes is not None:
                    keep &= classes[labels]
                if self.images_per_class is not None and not self._indexed:
                    keep &= taken[labels] + _occurrence(labels) < self.images_per_class
                    taken += np.bincount(labels, minlength=self.num_classes)
            if skip:
                first = np.flatnonzero(keep)[:skip]
                keep[first] = False
                skip -= len(first)
            if keep.any():
                whole = bool(keep.all())
                yield (
                    images if whole else images[keep],
                    labels if whole else labels[keep],
                    positions if whole else positions[keep],
                )

    def _indexed_pieces(
        self, classes: np.ndarray | None, size: int, skip: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        labels = np.concatenate([labels for _, labels in self._indexed])
        wanted = np.ones(len(labels), bool)
        if self.num_classes and labels.max(initial=0) < self.num_classes:
            if self.images_per_class is not None:
                wanted &= _occurrence(labels) < self.images_per_class
            if classes is not None:
                wanted &= classes[labels]
        wanted[np.flatnonzero(wanted)[:skip]] = False
        start = 0
        for images, own in self._indexed:
            chosen = np.flatnonzero(wanted[start : start + len(own)])
            for first in range(0, len(chosen), size):
                index = chosen[first : first + size]
                yield _images(np.asarray(images[index])), own[index], start + index
            start += len(own)

    def _streamed(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, None]]:
        if self._pieces is None:
            return
        order = _Order(self._codes)
        for images, labels in self._pieces(size):
            images = _images(images)
            labels = _labels(labels, len(images))
            order.add(images, labels)
            yield images, labels, None
        order.finish()


def _occurrence(labels: np.ndarray) -> np.ndarray:
    """How often the label of each place came before that place."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first = np.searchsorted(ordered, ordered)
    result = np.empty(len(labels), np.int64)
    result[order] = np.arange(len(labels)) - first
    return result


def _joined(
    pieces: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if len(pieces) == 1:
        return pieces[0]
    shapes = {images.shape[1:] for images, _, _ in pieces}
    if len(shapes) > 1:
        raise InputError(f"images have different shapes {sorted(shapes)}; resize them to one size")
    images, labels, positions = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return images, labels, positions


def _cut(
    piece: tuple[np.ndarray, np.ndarray, np.ndarray], start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images, labels, positions = (part[start:stop] for part in piece)
    return images, labels, positions


def _images(images: np.ndarray) -> np.ndarray:
    """uint8 or float32 (N, H, W, C), checked to be grey levels."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(
            f"images have shape {images.shape}; give (N, H, W, C) with 1 or 3 channels"
        )
    if images.dtype == np.uint8 or not images.size:
        return images
    if images.dtype.kind not in "iuf":
        raise InputError(f"images have dtype {images.dtype}; give uint8 or float grey levels")
    images = images.astype(np.float32)
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 255) or 0 < high <= 1:
        raise InputError(
            f"images range from {low:g} to {high:g}; give grey levels 0..255 and name the scaling "
            "the model wants as preprocess (--preprocess)"
        )
    return images


def _labels(labels: np.ndarray, number: int) -> np.ndarray:
    """int64 (N,) from integers, (N, 1) or one-hot rows."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    elif labels.ndim == 2 and np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all():
        labels = labels.argmax(axis=1)
    if labels.shape != (number,):
        raise InputError(
            f"labels have shape {labels.shape} for {number} images; give one class per image"
        )
    if labels.dtype.kind not in "iu" and not (
        labels.dtype.kind == "f" and (labels == np.round(labels)).all()
    ):
        raise InputError(f"labels have dtype {labels.dtype}; give integers")
    labels = labels.astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise InputError(f"label {labels.min()} in the data; labels are 0 or more")
    return labels


def _of_datasets(
    parts: Sequence[ImageDataset], train: ImageDataset | None, name: str, **notes: Any
) -> LabelledImages:
    return LabelledImages(
        None,
        name,
        num_classes=parts[0].num_classes,
        class_names=parts[0].class_names,
        class_counts=None if train is None else train.class_counts,
        indexed=[(part.images, part.labels) for part in parts],
        notes=notes,
    )


def _of_splits(splits: Splits, split: str) -> LabelledImages:
    part = getattr(splits, split)
    if part is None:
        raise InputError(f"the data have no {split} split; use one of {', '.join(SPLITS)}")
    return _of_datasets([part], splits.train, part.name)


def _of_path(
    data: str,
    split: str,
    data_dir: str | None,
    wanted: tuple[int | None, ...] | None,
    cache_dir: str | Path | None,
) -> LabelledImages:
    path = Path(data).expanduser()
    if path.is_dir():
        return _of_folder(path, split, wanted, cache_dir)
    if data.endswith(".npz"):
        whole = _whole_npz(path, data_dir, cache_dir)
        if whole is not None:
            return LabelledImages(None, path.stem, indexed=[whole])
    return _of_splits(load(data, data_dir=data_dir, cache_dir=cache_dir), split)


def _of_folder(
    path: Path,
    split: str,
    wanted: tuple[int | None, ...] | None,
    cache_dir: str | Path | None,
) -> LabelledImages:
    """The given split of a folder or, where nobody has said which images are for testing, all."""
    # Imported here: only a folder needs Pillow
    from keras_git.data.image_folder import class_file_counts, load_class_folder, split_folders

    height, width, channels = wanted or (None, None, None)
    size = (int(height), int(width)) if height and width else None
    parts = split_folders(path)
    folder = path
    if parts is not None:
        if split == "test" and split not in parts and "validation" in parts:
            split = "validation"
        if split not in parts:
            raise InputError(
                f"folder {path} has no {split} images, only {' and '.join(parts)}: name one of "
                "these as split (--split)"
            )
        folder = parts[split]
    dataset, unreadable = load_class_folder(
        folder, image_size=size, colour="grey" if channels == 1 else "rgb", cache_dir=cache_dir
    )
    notes: dict[str, Any] = {
        "unreadable": [list(entry) for entry in unreadable],
        "image_size": list(dataset.image_shape[:2]),
    }
    if size is None:
        notes["image_size_chosen"] = True
    name = path.resolve().name
    if parts is None:
        return _of_datasets([dataset], None, name, **notes)
    sizes = class_file_counts(parts["train"])
    strange = [name for name in dataset.class_names if name not in sizes]
    if strange:
        raise InputError(
            f"class {strange[0]!r} of {folder} has no folder in {parts['train']}: rename or remove "
            "it"
        )
    names = tuple(sizes)
    number_of = np.array([names.index(name) for name in dataset.class_names])
    return LabelledImages(
        None,
        name,
        num_classes=len(names),
        class_names=names,
        class_counts=np.array(list(sizes.values()), np.int64),
        indexed=[(dataset.images, number_of[dataset.labels])],
        notes={**notes, "split": split},
    )


def _whole_npz(path: Path, data_dir: str | None, cache_dir: str | Path | None) -> Part | None:
    """All images of a file that has `images` and `labels` and no splits, else None."""
    from keras_git.data.sources import MAX_BYTES_IN_MEMORY, read_member

    if not path.exists() and data_dir is not None:
        path = Path(data_dir).expanduser() / path
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "images" not in archive.files or "labels" not in archive.files:
                return None
            if any(key.startswith(("x_", "train_", "test_")) for key in archive.files):
                return None
            cache = None if cache_dir is None else Path(cache_dir)
            images, labels = (
                read_member(archive, key, cache, MAX_BYTES_IN_MEMORY)
                for key in ("images", "labels")
            )
    except Exception:  # whatever is wrong with the file, `load` says it in a line
        return None
    return images, _labels(labels, len(images))


def pair(element: Any) -> Part:
    """Images and labels of an element of a stream, as numpy arrays."""
    if isinstance(element, dict) and {"image", "label"} <= element.keys():
        images, labels = element["image"], element["label"]
    elif isinstance(element, (tuple, list)) and len(element) >= 2:
        images, labels = element[:2]
    else:
        raise InputError("the data give no pairs (images, labels)")
    if isinstance(images, (dict, tuple, list)):
        raise InputError("the data give several inputs per example; one image is needed")
    return np.asarray(images), np.asarray(labels)


def _of_tensorflow(data: Any) -> LabelledImages:
    if int(data.cardinality()) == -1:
        raise InputError("the tf.data.Dataset never ends; use data.take(n)")
    single = _is_single(data.element_spec)

    def pieces(size: int) -> Iterator[Part]:
        for element in data.batch(size) if single else data:
            yield pair(element)

    return LabelledImages(pieces, "tf.data")


def _is_single(spec: Any) -> bool:
    """Whether the elements of a tf.data.Dataset are single examples, not batches."""
    image = label = None
    if isinstance(spec, dict):
        image, label = spec.get("image"), spec.get("label")
    elif isinstance(spec, (tuple, list)) and len(spec) >= 2:
        image, label = spec[:2]
    shapes = [getattr(part, "shape", None) for part in (image, label)]
    ranks = [getattr(shape, "rank", None) for shape in shapes]
    if ranks[0] != 3:
        return ranks[0] == 2  # a grey image without a channel axis
    if ranks[1] != 1:
        return ranks[1] == 0
    # One colour image with a one-hot label, or a batch of grey images (N, H, W) with labels (N,)
    pixels, classes = (list(shape) for shape in shapes if shape is not None)
    return pixels[-1] in (1, 3) or pixels[0] != classes[0]


def _of_pydataset(data: Any) -> LabelledImages:
    number = data.num_batches
    if number is None:
        raise InputError("the PyDataset never ends; give it a length")

    def pieces(size: int) -> Iterator[Part]:
        del size
        for index in range(number):
            yield pair(data[index])

    return LabelledImages(pieces, type(data).__name__)


def open_data(
    data: Any,
    *,
    split: str = "test",
    data_dir: str | None = None,
    wanted: tuple[int | None, ...] | None = None,
    cache_dir: str | Path | None = None,
) -> LabelledImages:
    """Opens any source of labelled images.

    Args:
        data: `(images, labels)` arrays, an `ImageDataset`, `Splits`, the path of a folder with one
            sub-folder per class or of an `.npz` file, the name of a dataset (see
            `keras_git.data.load`), a finite `tf.data.Dataset` or `keras.utils.PyDataset` of
            `(images, labels)`, batched or not, the same in every pass.
        split: which split of data that have several. A folder with `train` but without `test`
            gives its validation images for "test"; a folder of classes and an `.npz` file of
            `images` and `labels` are taken as a whole.
        data_dir: folder of tensorflow_datasets, or of a relative `.npz` path.
        wanted: (height, width, channels) that the classifier takes; decides how the files of a
            folder are read.
        cache_dir: where images of a folder or of tensorflow_datasets are kept that do not fit into
            memory.

    Returns:
        The images. Labels are 0 or more; images are grey levels 0..255.

    Raises:
        InputError: an unknown source, one without end, or one that cannot be read.
    """
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
    if isinstance(data, LabelledImages):
        return data
    if isinstance(data, ImageDataset):
        return _of_datasets([data], None, data.name)
    if isinstance(data, Splits):
        return _of_splits(data, split)
    if isinstance(data, (str, Path)):
        return _of_path(str(data), split, data_dir, wanted, cache_dir)
    if isinstance(data, keras.utils.PyDataset):
        return _of_pydataset(data)
    if hasattr(data, "element_spec") and hasattr(data, "cardinality"):
        return _of_tensorflow(data)
    if isinstance(data, (tuple, list)) and len(data) == 2:
        try:
            images, labels = (
                part if isinstance(part, np.ndarray) else np.asarray(part) for part in data
            )
        except ValueError as error:
            raise InputError(
                "images or labels are lists of unequal lengths; give images of one size (N, H, W, "
                "C), or resize them to one"
            ) from error
        if images.ndim not in (3, 4) or len(images) == 0:
            raise InputError(f"images have shape {images.shape}; give (N, H, W, C), N > 0")
        return LabelledImages(None, "arrays", indexed=[(images, _labels(labels, len(images)))])
    raise InputError(f"data is a {type(data).__name__}; give {_KINDS}")
