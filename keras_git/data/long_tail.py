"""Long-tailed subsets, stratified splits and normalization statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from keras_git.data import randomness
from keras_git.data.dataset import ImageDataset, _chunks
from keras_git.errors import InputError

SELECTIONS = ("first", "random")


def long_tailed_indices(
    labels: np.ndarray,
    sizes: Sequence[int] | np.ndarray,
    selection: str = "first",
    seed: int = 0,
) -> np.ndarray:
    """Which images a long-tailed subset keeps; never the same one twice.

    Args:
        labels: integer array (N,) in canonical order.
        sizes: number of images to keep of each class.
        selection: `"first"` keeps the first occurrences in the order of `labels`, as the published
            subsets do; `"random"` draws them by `seed`, each class independently of the others.
        seed: used by `"random"` only.

    Returns:
        int64 array (sum(sizes),): class 0 first, then class 1, ...; canonical order inside a class.

    Raises:
        InputError: if a class has fewer images than asked for, or an argument is impossible.
    """
    labels = np.asarray(labels)
    sizes = np.asarray(sizes)
    if selection not in SELECTIONS:
        raise InputError(f"unknown selection {selection!r}; use one of {', '.join(SELECTIONS)}")
    if sizes.ndim != 1 or not np.issubdtype(sizes.dtype, np.integer) or (sizes < 0).any():
        raise InputError("sizes must be one non-negative integer per class")
    if labels.ndim != 1 or (labels.size and (labels.min() < 0 or labels.max() >= sizes.size)):
        raise InputError(f"labels must be a vector with values within 0..{sizes.size - 1}")
    kept = []
    for label, size in enumerate(sizes):
        members = np.flatnonzero(labels == label)
        if members.size < size:
            raise InputError(
                f"class {label} has {members.size} images, the profile asks for {size}; use "
                f"smaller class sizes"
            )
        if selection == "random":
            rng = randomness.generator(seed, randomness.SUBSET, label)
            members = np.sort(rng.permutation(members)[:size])
        kept.append(members[:size])
    return np.concatenate(kept).astype(np.int64)


def long_tail(
    dataset: ImageDataset,
    sizes: Sequence[int] | np.ndarray,
    selection: str = "first",
    seed: int = 0,
    path: str | Path | None = None,
) -> ImageDataset:
    """A long-tailed subset of a dataset; logs its class counts and content hash.

    Args:
        dataset: the complete training images.
        sizes: number of images to keep of each class, `num_classes` entries of at least 1.
        selection: `"first"` or `"random"`, see `long_tailed_indices`.
        seed: used by `"random"` only.
        path: `.npy` file for a subset that does not fit into memory.

    Returns:
        The subset, class by class.

    Raises:
        InputError: if a class would be empty or has fewer images than asked for.
    """
    sizes = np.asarray(sizes)
    if sizes.shape != (dataset.num_classes,):
        raise InputError(
            f"sizes has shape {sizes.shape}; {dataset.name} has {dataset.num_classes} classes"
        )
    if (sizes < 1).any():
        empty = _class(dataset, int(np.argmax(sizes < 1)))
        raise InputError(f"{empty} would be empty; give every class 1+")
    short = np.flatnonzero(sizes > dataset.class_counts)
    if short.size:
        raise InputError(
            f"{_class(dataset, short[0])} has {dataset.class_counts[short[0]]} images, the profile "
            f"asks for {sizes[short[0]]}; use smaller class sizes"
        )
    subset = dataset.take(long_tailed_indices(dataset.labels, sizes, selection, seed), path)
    logging.info(
        "long-tailed %s: %d images, class counts %s, content hash %s",
        dataset.name,
        len(subset),
        subset.class_counts.tolist(),
        subset.content_hash(),
    )
    return subset


def _class(dataset: ImageDataset, label: int) -> str:
    """A class as a message names it: its number, and its name if that is another."""
    name = dataset.class_names[label]
    return f"class {label}" + (f" ({name!r})" if name != str(label) else "")


def cyclic_indices(
    labels: np.ndarray,
    class_order: Sequence[int] | np.ndarray,
    class_sizes: Sequence[int] | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Base images for a set that is drawn by transforming the same images again and again.

    Output i of a class uses base image `i mod (number of base images of that class)`, so a class
    may be larger than its number of base images; each use gets fresh nuisance parameters.

    Args:
        labels: integer array (N,), labels of the base images.
        class_order: class ids in the order of the output.
        class_sizes: number of outputs for the class at each position of `class_order`.

    Returns:
        `(base_indices, output_labels)`, two int64 arrays (sum(class_sizes),).

    Raises:
        InputError: if the two lists differ in length or a class has no base image.

    Reference:
        - [Do Deep Networks Transfer Invariances Across Classes?](
          https://arxiv.org/abs/2203.09739), section 3 (Kuzushiji-49-LT).
    """
    labels = np.asarray(labels)
    if len(class_order) != len(class_sizes):
        raise InputError(f"{len(class_order)} classes in the order, {len(class_sizes)} sizes")
    base, output = [], []
    for label, size in zip(class_order, class_sizes, strict=True):
        members = np.flatnonzero(labels == label)
        if not members.size:
            raise InputError(f"class {label} has no base image; every class needs one")
        base.append(members[np.arange(size) % members.size])
        output.append(np.full(size, label, dtype=np.int64))
    return np.concatenate(base).astype(np.int64), np.concatenate(output)


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Set the same share of every class aside for validation.

    Every class keeps at least one training image; a class of one image gives none away.

    Args:
        labels: integer array (N,).
        fraction: share of each class to set aside, 0 <= fraction < 1; rounded to whole images.
        seed: decides which images; each class is drawn independently.

    Returns:
        `(training_indices, validation_indices)`, disjoint sorted int64 arrays that together are
        all of 0..N-1.

    Raises:
        InputError: if the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise InputError(f"validation fraction is {fraction}; it must be at least 0 and below 1")
    labels = np.asarray(labels)
    aside = np.zeros(labels.shape[0], dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(int(np.floor(fraction * members.size + 0.5)), members.size - 1)
        rng = randomness.generator(seed, randomness.VALIDATION, int(label))
        aside[rng.permutation(members)[:count]] = True
    return np.flatnonzero(~aside), np.flatnonzero(aside)


def stratified_group_split(
    labels: np.ndarray,
    groups: np.ndarray,
    fraction: float,
    seed: int | Sequence[int] = 0,
    *,
    keep: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Set about the same share of every class aside, and never a part of a group.

    Groups are things that were photographed several times: the frames of one object, the pictures
    of one patient. A group may hold images of several classes.

    Groups are visited in random order; one is set aside if that brings the classes in it nearer
    to their shares. A class that got nothing then gives its smallest group, if it has others. Every
    class keeps at least `keep` images, or all if it has no more; a class with more than that gives
    at least one image, if its groups allow it.

    Args:
        labels: integer array (N,).
        groups: array (N,), any values; equal ones are one group.
        fraction: share of each class to set aside, 0 <= fraction < 1.
        seed: decides which groups.
        keep: images that every class keeps, at least 1.

    Returns:
        `(kept_indices, indices_set_aside)`, disjoint sorted int64 arrays that together are
        all of 0..N-1.

    Raises:
        InputError: for a fraction not in [0, 1), or `groups` of another length than `labels`.
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    if not 0 <= fraction < 1:
        raise InputError(f"the share to set aside is {fraction}; it must be 0 to below 1")
    if labels.ndim != 1 or groups.shape != labels.shape:
        raise InputError(f"{labels.shape} labels and {groups.shape} groups; give one of each")
    everything = np.arange(labels.size, dtype=np.int64)
    if not fraction or not labels.size:
        return everything, everything[:0]
    rng = randomness.generator(seed, randomness.VALIDATION)
    totals = np.bincount(labels)
    room = np.maximum(totals - max(keep, 1), 0)
    wanted = np.minimum(np.maximum(np.floor(fraction * totals + 0.5), 1), room)
    _, group = np.unique(groups, return_inverse=True)
    number = int(group.max()) + 1
    if number == labels.size:  # no groups: as many as wanted, drawn from each class
        order = rng.permutation(labels.size)
        order = order[np.argsort(labels[order], kind="stable")]
        rank = np.arange(labels.size) - np.repeat(np.cumsum(totals) - totals, totals)
        aside = np.zeros(labels.size, dtype=bool)
        aside[order[rank < np.repeat(wanted, totals)]] = True
        return np.flatnonzero(~aside), np.flatnonzero(aside)

    pairs, counts = np.unique(group * totals.size + labels, return_counts=True)
    ends = np.searchsorted(pairs, (np.arange(number) + 1) * totals.size)
    members = [
        (pairs[start:end] % totals.size, counts[start:end])
        for start, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)
    ]
    taken = np.zeros(totals.size)
    chosen = np.zeros(number, dtype=bool)

    def possible(g: int) -> bool:
        classes, sizes = members[g]
        return bool((taken[classes] + sizes <= room[classes]).all())

    order = rng.permutation(number)
    for g in order:
        classes, sizes = members[g]
        missing, scale = wanted[classes] - taken[classes], totals[classes]
        nearer = np.sum((np.abs(missing) - np.abs(missing - sizes)) / scale) > 0
        if nearer and possible(g):
            chosen[g] = True
            taken[classes] += sizes
    for label in np.flatnonzero((wanted > 0) & (taken == 0)):
        having = [g for g in order if label in members[g][0] and possible(g)]
        if having:
            smallest = min(having, key=lambda g: members[g][1].sum())
            chosen[smallest] = True
            taken[members[smallest][0]] += members[smallest][1]
    aside = chosen[group]
    return np.flatnonzero(~aside), np.flatnonzero(aside)


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per-channel mean and population standard deviation, in units of [0, 1].

    The mean of per-image means equals the mean over all pixels, because all images have one size.
    Both numbers come from exact histograms of the 256 grey levels, so that neither the order nor
    the size of the pieces in which a file is read changes the result.

    Args:
        images: uint8 array (N, height, width, channels), may be a memmap.

    Returns:
        `(mean, std)`, float32 arrays (channels,). The std of a channel that has one value only is
        given as 1, so that a network can divide by it.

    Raises:
        InputError: for images of another rank or dtype.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or not images.shape[0]:
        raise InputError(
            f"images have shape {images.shape} and dtype {images.dtype}; statistics need a "
            "non-empty uint8 array (N, H, W, C)"
        )
    channels = images.shape[-1]
    histogram = np.zeros((channels, 256), dtype=np.int64)
    for start, stop in _chunks(images):
        piece = images[start:stop]
        for channel in range(channels):
            histogram[channel] += np.bincount(piece[..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255.0
    weights = histogram / histogram.sum(axis=1, keepdims=True)
    mean = weights @ levels
    variance = np.sum(weights * (levels[None, :] - mean[:, None]) ** 2, axis=1)
    variance[np.count_nonzero(histogram, axis=1) == 1] = 1.0
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)
