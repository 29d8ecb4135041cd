"""Where labelled images come from: arrays, .npz files, folders, tensorflow_datasets, glyphs."""

from __future__ import annotations

import io
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_git.data.dataset import MAX_BYTES_IN_MEMORY, ImageDataset, ImageSink, Splits
from keras_git.data.glyphs import glyphs
from keras_git.data.image_folder import load_image_folder
from keras_git.data.long_tail import stratified_split
from keras_git.data.pipeline import hide_accelerators
from keras_git.errors import InputError

_TEST_SHARE = 0.2
_NPZ_LAYOUTS = (
    "x_train, y_train, x_test, y_test; images, labels; or train_jpeg, train_offsets, "
    "train_labels, test_jpeg, test_offsets, test_labels"
)


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    download: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Splits:
    """Load a dataset by name or path.

    Args:
        name: `"glyphs"`, a path that ends in `.npz`, the path of a folder of images with a `/` in
            it (`"./photos"`, see `load_image_folder`), or the name of a dataset of
            tensorflow_datasets such as `"cifar10"`.
        data_dir: folder of tensorflow_datasets; for a relative `.npz` path the folder it is looked
            for in, if it is not found as given.
        cache_dir: folder for arrays that are too large for memory.
        download: let tensorflow_datasets fetch what is not there.
        seed: decides what `"glyphs"` draws and how an `.npz` file without test images is split.
        progress: called with the number of images made or decoded so far and that of all.
        **options: for `"glyphs"` and folders, their other arguments.

    Returns:
        The splits, with complete training sets (`"glyphs"` is long-tailed from the start).

    Raises:
        InputError: if there is no such dataset or it cannot be read.
    """
    if name == "glyphs":
        return glyphs(seed=seed, progress=progress, **options)
    if not {"/", os.sep}.isdisjoint(name) and Path(name).expanduser().is_dir():
        return load_image_folder(
            name, cache_dir=cache_dir, seed=seed, progress=progress, **options
        ).splits
    if options:
        raise InputError(f"dataset {name!r} has no option {sorted(options)[0]!r}")
    if name.endswith(".npz"):
        path = Path(name)
        if not path.exists() and data_dir is not None:
            path = _folder(data_dir) / name
        return load_npz(path, seed=seed, cache_dir=cache_dir, progress=progress)
    return load_tfds(
        name, data_dir=data_dir, cache_dir=cache_dir, download=download, progress=progress
    )


def from_arrays(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int | None = None,
    class_names: tuple[str, ...] = (),
    name: str = "arrays",
) -> Splits:
    """Make splits from arrays.

    Args:
        train_images: uint8 (N, height, width) or (N, height, width, channels), 0..255, 1 or 3
            channels.
        train_labels: integers (N,) or (N, 1), 0..num_classes-1.
        test_images: the same for the test images.
        test_labels: the same for the test labels.
        num_classes: number of classes; None means the largest label plus one.
        class_names: one name per class, or none.
        name: name for logs.

    Returns:
        Splits with a training and a test set.

    Raises:
        InputError: for a wrong rank, dtype, image size or label.
    """
    arrays = [
        (_images(train_images, "training"), _labels(train_labels, "training")),
        (_images(test_images, "test"), _labels(test_labels, "test")),
    ]
    if num_classes is None:
        num_classes = 1 + max(int(labels.max(initial=0)) for _, labels in arrays)
    train, test = (
        ImageDataset(images, labels, num_classes, tuple(class_names), name)
        for images, labels in arrays
    )
    return Splits(train, test)


def load_npz(
    path: str | Path,
    *,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    max_bytes: int = MAX_BYTES_IN_MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> Splits:
    """Read an `.npz` file; pickled objects in it are refused.

    Three layouts are known:

    - `x_train`, `y_train`, `x_test`, `y_test`: images and labels as for `from_arrays`.
    - `images`, `labels`: a fifth of every class becomes the test set, chosen by `seed`.
    - `{train,test}_jpeg`, `{train,test}_offsets`, `{train,test}_labels`: compressed images, all
      bytes joined in one uint8 array; image i is `jpeg[offsets[i]:offsets[i + 1]]`, in any format
      that Pillow opens.

    Args:
        path: the file.
        seed: decides about the split of the second layout.
        cache_dir: where an array of more than `max_bytes` becomes a `.npy` file that is read in
            place; None allows arrays of any size in memory.
        max_bytes: largest array, in bytes, to keep in memory.
        progress: called with the number of images decoded so far and that of all.

    Returns:
        Splits with a training and a test set.

    Raises:
        InputError: if the file is not there, cannot be read, has another layout or holds images
            or labels that cannot be used.
    """
    path = Path(path)
    cache = None if cache_dir is None else Path(cache_dir)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give the path of an .npz file")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path} is not an .npz file; save it with numpy.savez")
        with archive:
            arrays = {key: read_member(archive, key, cache, max_bytes) for key in archive}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile,
            zlib.error) as error:  # fmt: skip
        # RuntimeError: an archive with a password, or of a compression that Python does not know.
        raise InputError(
            f"cannot read {path}: {_one_line(error)}; it must be an .npz file of plain arrays"
        ) from error
    keys = set(arrays)
    if {"x_train", "y_train", "x_test", "y_test"} <= keys:
        return from_arrays(
            arrays["x_train"],
            arrays["y_train"],
            arrays["x_test"],
            arrays["y_test"],
            name=path.stem,
        )
    if {f"{s}_{part}" for s in ("train", "test") for part in ("jpeg", "offsets", "labels")} <= keys:
        parts: list[np.ndarray] = []
        done, total = 0, sum(arrays[f"{split}_offsets"].size - 1 for split in ("train", "test"))
        for split in ("train", "test"):

            def advance(decoded: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + decoded, total)

            target = ImageSink(cache and cache / f"{path.stem}_{split}.npy", max_bytes)
            jpeg, offsets = arrays[f"{split}_jpeg"], arrays[f"{split}_offsets"]
            parts += [_decoded(jpeg, offsets, path, target, advance), arrays[f"{split}_labels"]]
            done += offsets.size - 1
        return from_arrays(*parts, name=path.stem)
    if {"images", "labels"} <= keys:
        images = _images(arrays["images"], "all")
        labels = _labels(arrays["labels"], "all")
        num_classes = 1 + int(labels.max(initial=0))
        whole = ImageDataset(images, labels, num_classes, (), path.stem)
        train, test = stratified_split(labels, _TEST_SHARE, seed)
        if not test.size:
            raise InputError(f"{path} has too few images per class to set test images aside")
        if isinstance(images, np.memmap) and cache is not None:
            places = [cache / f"{path.stem}_{split}.npy" for split in ("train", "test")]
            return Splits(whole.take(train, places[0]), whole.take(test, places[1]))
        return Splits(whole.take(train), whole.take(test))
    raise InputError(
        f"{path} has the keys {', '.join(sorted(keys)) or 'none'}; known layouts: {_NPZ_LAYOUTS}"
    )


def load_tfds(
    name: str,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    download: bool = True,
    max_bytes: int = MAX_BYTES_IN_MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> Splits:
    """Load an image classification dataset of tensorflow_datasets.

    Examples come in canonical order: by the number in their `id` feature where there is one (the
    "first n images of a class" of a long-tailed subset refers to it; tensorflow_datasets stores
    examples shuffled), else in the stored order. The features `image` and `label` are used; for
    CIFAR-100 `label` is the fine label.

    Args:
        name: name of the dataset, possibly with configuration and version (`"cifar10:3.0.2"`).
        data_dir: folder of tensorflow_datasets; None means its default folder.
        cache_dir: where a split of more than `max_bytes` becomes a `.npy` file that is read
            in place; None allows splits of any size in memory.
        download: fetch and prepare the dataset if it is not in the folder.
        max_bytes: largest split, in bytes of pixels, to keep in memory.
        progress: called with the number of images decoded so far and that of all.

    Returns:
        Splits from the source's `train` and `test` (or, without one, `validation`).

    Raises:
        InputError: if the folder is missing, the name unknown, the dataset not there and not
            to be had, or its examples are not images of one size with a label.
    """
    folder = None if data_dir is None else _folder(data_dir)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"dataset {name!r} needs tensorflow_datasets ({_one_line(error)}); install it, or use "
            "an .npz file or 'glyphs'"
        ) from error
    hide_accelerators()
    if not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)?(:[\d.*]+)?", name):
        raise InputError(f"{name!r} is neither 'glyphs', an .npz file nor a dataset name")
    where = f"in {folder}" if folder else "in the default folder of tensorflow_datasets"
    try:
        builder = tfds.builder(name, data_dir=None if folder is None else str(folder))
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(
            f"tensorflow_datasets knows no dataset {name!r}; check the name, or give 'glyphs' or "
            "an .npz file"
        ) from error
    except Exception as error:  # any failure of a foreign catalogue is the same to the user
        raise InputError(f"dataset {name!r} cannot be opened: {_one_line(error)}") from error
    if not builder.is_prepared():
        if not download:
            raise InputError(
                f"dataset {name!r} is not {where}; prepare it there or allow the download"
            )
        try:
            builder.download_and_prepare()
        except Exception as error:
            raise InputError(
                f"dataset {name!r} is not {where} and cannot be downloaded: {_one_line(error)}; "
                "check the network or prepare the dataset first"
            ) from error
    features = builder.info.features
    if features is None or "image" not in features or "label" not in features:
        raise InputError(f"dataset {name!r} has no features image and label; it cannot be used")
    if "train" not in builder.info.splits:
        raise InputError(f"dataset {name!r} has no split named train")
    held_out = next((s for s in ("test", "validation") if s in builder.info.splits), None)
    if held_out is None:
        raise InputError(f"dataset {name!r} has no split named test or validation")
    cache = None if cache_dir is None else Path(cache_dir)
    try:
        splits = []
        sizes = [builder.info.splits[split].num_examples for split in ("train", held_out)]
        for split, before in (("train", 0), (held_out, sizes[0])):

            def advance(decoded: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + decoded, sum(sizes))

            splits.append(_tfds_split(tfds, builder, split, cache, max_bytes, advance))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"dataset {name!r} {where} is damaged: {_one_line(error)}") from error
    return Splits(*splits)


def read_member(archive: Any, key: str, cache: Path | None, max_bytes: int) -> np.ndarray:
    """One array of an `.npz` file; a large one is unpacked, never read as a whole."""
    name = f"{key}.npy"
    if cache is None or archive.zip.getinfo(name).file_size <= max_bytes:
        return archive[key]
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / name
    partial = path.with_name(path.name + ".partial")
    # What an archive calls its arrays must not lead out of the folder.
    if path.resolve().parent != cache.resolve():
        raise InputError(f"array {key!r} of the .npz file has a name that is a path; rename it")
    with archive.zip.open(name) as source, open(partial, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 22)
    partial.replace(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _tfds_split(
    tfds: Any,
    builder: Any,
    split: str,
    cache: Path | None,
    max_bytes: int,
    advance: Callable[[int], None],
) -> ImageDataset:
    """One split in canonical order, in memory or as a memory-mapped file."""
    label_feature = builder.info.features["label"]
    has_id = "id" in builder.info.features
    size_known = None not in builder.info.features["image"].shape
    read = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)

    def batches(keys: tuple[str, ...], batch_size: int, **decoders: Any) -> Any:
        dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=read, **decoders)
        dataset = dataset.map(lambda example: {key: example[key] for key in keys})
        return tfds.as_numpy(dataset.batch(batch_size).prefetch(2))

    # First pass, without decoding any image: labels and ids.
    labels: list[int] = []
    ids: list[str] = []
    keys = ("label", "id") if has_id else ("label",)
    for batch in batches(keys, 1000, decoders={"image": tfds.decode.SkipDecoding()}):
        labels.extend(int(label) for label in batch["label"])
        ids.extend(text.decode() for text in batch.get("id", ()))
    if not labels:
        raise InputError(f"split {split} of {builder.name} has no examples")
    place = np.arange(len(labels))  # where each stored example belongs
    if has_id:
        place[sorted(range(len(labels)), key=lambda i: _natural(ids[i]))] = np.arange(len(labels))

    # Second pass: the pixels, each to its place.
    images: np.ndarray | None = None
    file = f"{builder.info.full_name.replace('/', '_')}_{split}.npy"
    target = ImageSink(cache and cache / file, max_bytes)
    done = 0
    for batch in batches(("image",), 500 if size_known else 1):
        pixels = batch["image"]
        if images is None:
            images = target.make((len(labels), *pixels.shape[1:]))
        if pixels.shape[1:] != images.shape[1:] or pixels.dtype != np.uint8:
            raise InputError(
                f"dataset {builder.name} has images of different sizes or types "
                f"({pixels.shape[1:]} {pixels.dtype}, {images.shape[1:]} uint8); resize them first"
            )
        images[place[done : done + len(pixels)]] = pixels
        done += len(pixels)
        advance(done)
    if images is None:
        raise InputError(f"split {split} of {builder.name} has no examples")
    ordered = np.empty(len(labels), dtype=np.int64)
    ordered[place] = labels
    return ImageDataset(
        target.finished(images),
        ordered,
        label_feature.num_classes,
        tuple(label_feature.names),
        builder.name,
    )


def _natural(text: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which `train_2` comes before `train_10`."""
    parts = re.split(r"(\d+)", text)
    return tuple((1, int(p)) if p.isdigit() else (0, p) for p in parts)


def _folder(data_dir: str | Path) -> Path:
    folder = Path(data_dir).expanduser()
    try:
        if not folder.is_dir():
            raise InputError(f"data directory {folder} does not exist; create it or name another")
        next(folder.iterdir(), None)
    except OSError as error:
        raise InputError(
            f"data directory {folder} cannot be read: {error.strerror or error}"
        ) from error
    return folder


def _images(images: np.ndarray, which: str) -> np.ndarray:
    if not isinstance(images, np.ndarray):
        raise InputError(f"{which} images are {type(images).__name__}; pass a numpy array")
    if images.dtype != np.uint8:
        raise InputError(
            f"{which} images have dtype {images.dtype}; they must be uint8 with values 0..255"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise InputError(
            f"{which} images have shape {images.shape}; they must be (N, height, width) or "
            "(N, height, width, channels)"
        )
    return images


def _labels(labels: np.ndarray, which: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{which} labels have shape {labels.shape} and dtype {labels.dtype}; they must be "
            "integers (N,)"
        )
    return labels


def _decoded(
    jpeg: np.ndarray,
    offsets: np.ndarray,
    path: Path,
    target: ImageSink,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Decode joined compressed images of one size."""
    from PIL import Image, UnidentifiedImageError

    if jpeg.dtype != np.uint8 or jpeg.ndim != 1 or offsets.ndim != 1 or offsets.size < 2:
        raise InputError(f"{path}: jpeg must be a uint8 vector and offsets a vector of n + 1")
    if not np.issubdtype(offsets.dtype, np.integer) or (
        offsets[0] < 0 or (np.diff(offsets) <= 0).any() or offsets[-1] > jpeg.size
    ):
        raise InputError(f"{path}: offsets must be increasing integers within 0..{jpeg.size}")
    images: np.ndarray | None = None
    for i in range(offsets.size - 1):
        try:
            with Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())) as picture:
                image = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise InputError(f"{path}: image {i} cannot be decoded: {_one_line(error)}") from error
        if images is None:
            images = target.make((offsets.size - 1, *image.shape))
        if image.shape != images.shape[1:]:
            raise InputError(
                f"{path}: image {i} has shape {image.shape}, the first {images.shape[1:]}; all "
                "images must have one size"
            )
        images[i] = image
        advance(i + 1)
    if images is None:
        raise InputError(f"{path} has no images")
    return target.finished(images)


def _one_line(error: BaseException) -> str:
    """The first line of an error's text, for messages of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
