"""Class-size profiles of long-tailed training sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_git.errors import InputError

PROFILES = ("exponential", "step", "zipf", "counts", "balanced")
DEFAULT_ZIPF_SMALLEST = 5


def exponential_sizes(num_classes: int, largest: float, factor: float) -> np.ndarray:
    """Class sizes that fall geometrically from the first class to the last.

    `n_c = trunc(largest * factor ** (c / (num_classes - 1)))` in double precision; truncated, not
    rounded, as in the published class counts.

    Args:
        num_classes: number of classes.
        largest: size of class 0; may be fractional (total images / classes).
        factor: size of the last class divided by that of the first, in (0, 1].

    Returns:
        int64 array (num_classes,).

    Reference:
        - [Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss](
          https://arxiv.org/abs/1906.07413), section 4.
    """
    positions = np.arange(num_classes, dtype=np.float64) / max(num_classes - 1, 1)
    return np.trunc(largest * np.float64(factor) ** positions).astype(np.int64)


def step_sizes(num_classes: int, largest: float, factor: float) -> np.ndarray:
    """A first half of full classes, a second half cut to `trunc(largest * factor)`.

    With an odd number of classes the middle one belongs to the small half.

    Args:
        num_classes: number of classes.
        largest: size of the classes in the first half.
        factor: size of a small class divided by that of a large one, in (0, 1].

    Returns:
        int64 array (num_classes,).

    Reference:
        - [Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss](
          https://arxiv.org/abs/1906.07413), section 4.
    """
    sizes = np.full(num_classes, int(largest), dtype=np.int64)
    sizes[num_classes // 2 :] = int(largest * factor)
    return sizes


def zipf_sizes(num_classes: int, largest: float, alpha: float, smallest: int) -> np.ndarray:
    """Class sizes that follow a power law of the rank, never below `smallest`.

    `n_r = max(trunc(largest * r ** -alpha), smallest)` for the rank r = 1, 2, ...

    Args:
        num_classes: number of classes.
        largest: size of the class of rank 1.
        alpha: exponent of the power law, positive.
        smallest: lower bound of every size.

    Returns:
        int64 array (num_classes,), largest first.

    Reference:
        - [Do Deep Networks Transfer Invariances Across Classes?](
          https://arxiv.org/abs/2203.09739), section 3 (Kuzushiji-49-LT).
    """
    ranks = np.arange(1, num_classes + 1, dtype=np.float64)
    return np.maximum(np.trunc(largest * ranks ** -float(alpha)), smallest).astype(np.int64)


def class_sizes(
    profile: str,
    num_classes: int,
    largest: float | None = None,
    *,
    imbalance_ratio: float | None = None,
    smallest: int | None = None,
    alpha: float | None = None,
    counts: Sequence[int] | None = None,
) -> np.ndarray:
    """Number of training images per class under a named profile.

    Args:
        profile: `"exponential"` (geometric from class 0 to the last), `"step"` (a large and a small
            half), `"zipf"` (power law of the rank), `"counts"` (given explicitly) or `"balanced"`.
        num_classes: number of classes, at least 2.
        largest: size of the largest class (class 0); not used by `"counts"`.
        imbalance_ratio: largest size divided by the smallest, at least 1 (`"exponential"`,
            `"step"`; there either this or `smallest` is needed).
        smallest: size of the smallest class; for `"zipf"` the lower bound of every size (default
            5).
        alpha: exponent of the power law (`"zipf"`).
        counts: the sizes themselves (`"counts"`), `num_classes` integers.

    Returns:
        int64 array (num_classes,), every entry at least 1.

    Raises:
        InputError: for an unknown profile, a missing or impossible argument, or when the profile
            leaves a class empty.
    """
    if profile not in PROFILES:
        raise InputError(f"unknown profile {profile!r}; use one of {', '.join(PROFILES)}")
    if int(num_classes) != num_classes or num_classes < 2:
        raise InputError(f"num_classes is {num_classes}; it must be an integer of at least 2")
    num_classes = int(num_classes)
    if profile == "counts":
        sizes = _explicit(counts, num_classes)
    else:
        if largest is None or not np.isfinite(largest) or largest < 1:
            raise InputError(f"largest is {largest}; profile {profile!r} needs a size of 1 or more")
        if profile == "balanced":
            sizes = np.full(num_classes, int(largest), dtype=np.int64)
        elif profile == "zipf":
            if alpha is None or not np.isfinite(alpha) or alpha <= 0:
                raise InputError(f"alpha is {alpha}; profile 'zipf' needs a positive exponent")
            bound = DEFAULT_ZIPF_SMALLEST if smallest is None else int(smallest)
            sizes = zipf_sizes(num_classes, largest, alpha, bound)
        else:
            factor = _factor(profile, largest, imbalance_ratio, smallest)
            rule = exponential_sizes if profile == "exponential" else step_sizes
            sizes = rule(num_classes, largest, factor)
            if smallest is not None:
                # largest * (smallest / largest) may round to just below the integer asked for.
                sizes = np.maximum(sizes, int(smallest))
    empty = np.flatnonzero(sizes < 1)
    if empty.size:
        names = ", ".join(str(c) for c in empty[:5]) + (", ..." if empty.size > 5 else "")
        raise InputError(
            f"profile {profile!r} leaves class {names} empty (sizes from {sizes.max()} to "
            f"{sizes.min()}); use a smaller imbalance ratio or a larger largest class"
        )
    return sizes


def _explicit(counts: Sequence[int] | None, num_classes: int) -> np.ndarray:
    if counts is None:
        raise InputError("profile 'counts' needs counts: one size per class")
    values = np.asarray(counts)
    if values.ndim != 1 or values.shape[0] != num_classes:
        raise InputError(
            f"counts has shape {values.shape}; it must hold one size for each of the "
            f"{num_classes} classes"
        )
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"counts has dtype {values.dtype}; class sizes must be integers")
    return values.astype(np.int64)


def _factor(
    profile: str, largest: float, imbalance_ratio: float | None, smallest: int | None
) -> float:
    if (imbalance_ratio is None) == (smallest is None):
        raise InputError(
            f"profile {profile!r} needs either imbalance_ratio or smallest; received "
            f"imbalance_ratio={imbalance_ratio}, smallest={smallest}"
        )
    if imbalance_ratio is not None:
        if not np.isfinite(imbalance_ratio) or imbalance_ratio < 1:
            raise InputError(f"imbalance_ratio is {imbalance_ratio}; it must be 1 or more")
        return 1.0 / float(imbalance_ratio)
    if smallest is None or not 1 <= smallest <= largest:
        raise InputError(f"smallest is {smallest}; it must be between 1 and largest ({largest})")
    return float(smallest) / float(largest)
