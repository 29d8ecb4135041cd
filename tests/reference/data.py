"""Families of the data part: class sizes and kept images, normalization statistics."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from keras_git.data import channel_statistics, cyclic_indices, long_tailed_indices
from keras_git.data.profiles import exponential_sizes, step_sizes, zipf_sizes
from tests.reference.registry import Arrays, Check, Skip

EXACT = "exact"


def _sizes(profile: str, num_classes: int, largest: float, factor: float) -> np.ndarray:
    if profile == "exp":
        return exponential_sizes(num_classes, largest, factor)
    if profile == "step":
        # With an odd number of classes the original loses the last one.
        return step_sizes(num_classes, largest, factor)[: num_classes // 2 * 2]
    return np.full(num_classes, int(largest), dtype=np.int64)


def class_counts(arrays: Arrays, config: dict) -> Iterator[Check | Skip]:
    """Long-tailed sizes, the images that are kept, and cyclic use of base images."""
    smallest = int(config.get("smallest", 5))
    zipf_largest = float(config.get("zipf_largest", 4800))
    for key in arrays:
        if match := re.fullmatch(r"[a-z]+(\d+)_n(\d+)_([a-z]+)_([\d.e-]+)", key):
            num_classes, total = int(match[1]), int(match[2])
            sizes = _sizes(match[3], num_classes, total / num_classes, float(match[4]))
            yield Check(key, sizes, EXACT)
        elif match := re.fullmatch(r"zipf(\d+)_([\d.e-]+)", key):
            sizes = zipf_sizes(int(match[1]), zipf_largest, float(match[2]), smallest)
            yield Check(key, sizes, EXACT)
        elif match := re.fullmatch(r"(.*select/)([a-z]+)_([\d.e-]+)/indices", key):
            labels = arrays[match[1] + "labels"]
            num_classes = int(labels.max()) + 1
            sizes = _sizes(match[2], num_classes, labels.size / num_classes, float(match[3]))
            # The original takes what there is where a class has fewer images than asked for.
            available = np.bincount(labels, minlength=num_classes)[: sizes.size]
            kept = np.zeros(num_classes, dtype=np.int64)
            kept[: sizes.size] = np.minimum(sizes, available)
            yield Check(key, long_tailed_indices(labels, kept), EXACT)
        elif match := re.fullmatch(r"(.*cycle/)(base_indices|out_labels)", key):
            base, output = cyclic_indices(
                *(arrays[match[1] + name] for name in ("labels", "class_order", "class_sizes"))
            )
            yield Check(key, base if match[2] == "base_indices" else output, EXACT)


def norm_stats(arrays: Arrays, config: dict) -> Iterator[Check | Skip]:
    """Mean and standard deviation of uint8 images on [0, 1]."""
    for key in arrays:
        if not key.endswith("images"):
            continue
        images = arrays[key]
        mean, std = channel_statistics(images[..., None] if images.ndim == 3 else images)
        for name, value in (("mean", mean), ("std", std)):
            result = key[: -len("images")] + name
            if result in arrays:
                value = value.reshape(arrays.peek(result).shape)
                yield Check(result, value, "abs", 1e-5)


FAMILIES = {"class_counts": class_counts, "norm_stats": norm_stats}
