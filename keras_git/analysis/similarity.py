"""Cosine similarity within classes, and what a transformation of one image of a pair changes.

Closed forms over all ordered pairs i != j of n images, in O(n D) time where a formula allows. u are
unit vectors of images, v of transformed images, d = v - u. A pair's change is u_i . d_j: from the
difference, an image that is left as it is changes similarity by exactly 0.

Left-out values are those of the same statistic without one image in either role, from which
`intervals.jackknife_error` makes a standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_ROWS = 512
# Norms below it count as this, so that a zero vector has similarity 0 with everything
_SMALLEST_NORM = 1e-8


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float64, along the last axis; a zero vector stays zero."""
    vectors = np.asarray(vectors, np.float64)
    norms = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return vectors / np.maximum(norms, _SMALLEST_NORM)


def mean_and_left_out(
    total: float, rows: np.ndarray, columns: np.ndarray
) -> tuple[float, np.ndarray]:
    """Mean over ordered pairs i != j from its sums, and with one image left out.

    Args:
        total: sum over all pairs.
        rows: sums over the pairs with image k in the first place `(n,)`.
        columns: sums over the pairs with image k in the second place `(n,)`.

    Returns:
        The mean, and `(n,)`: NaN where fewer than two images would be left.
    """
    n = len(rows)
    mean = total / (n * (n - 1)) if n > 1 else float("nan")
    if n < 3:
        return mean, np.full(n, np.nan)
    return mean, (total - rows - columns) / ((n - 1) * (n - 2))


def pair_mean(first: np.ndarray, second: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of first_i . second_j over ordered pairs i != j, and with one image left out; O(n D)."""
    own = (first * second).sum(axis=1)
    rows = first @ second.sum(axis=0) - own
    columns = second @ first.sum(axis=0) - own
    return mean_and_left_out(float(rows.sum()), rows, columns)


def pair_share(first: np.ndarray, second: np.ndarray) -> tuple[float, np.ndarray, int]:
    """Share of ordered pairs i != j with first_i . second_j > 0, in blocks of rows.

    Returns:
        The share, the shares with one image left out `(n,)`, and the number of pairs that are tied
        at exactly 0.
    """
    n = len(first)
    rows, columns = np.zeros(n), np.zeros(n)
    ties = 0
    for start in range(0, n, _ROWS):
        block = first[start : start + _ROWS] @ second.T
        places = np.arange(len(block))
        block[places, start + places] = -1.0
        above = block > 0
        rows[start : start + _ROWS] = above.sum(axis=1)
        columns += above.sum(axis=0)
        ties += int((block == 0).sum())
    share, left_out = mean_and_left_out(float(rows.sum()), rows, columns)
    return share, left_out, ties


def chosen_pairs_mean(
    values: np.ndarray, i: np.ndarray, j: np.ndarray, number: int
) -> tuple[float, np.ndarray]:
    """Mean over pairs that are listed, and with one image left out, `(number,)`.

    Args:
        values: of the pairs `(m,)`.
        i: first images `(m,)`.
        j: second images `(m,)`.
        number: of images.
    """
    total, count = values.sum(), len(values)
    sums = np.bincount(i, values, number) + np.bincount(j, values, number)
    counts = np.bincount(i, minlength=number) + np.bincount(j, minlength=number)
    mean = float(total / count) if count else float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        return mean, (total - sums) / (count - counts)


def single_pairs_variance(values: np.ndarray, i: np.ndarray, j: np.ndarray, number: int) -> float:
    """Variance of a mean over listed pairs if the pairs were independent.

    Leaving out single images leaves out each pair twice, and so counts this once too often: little
    of the whole with all pairs, half of it with disjoint ones. (i, j) and (j, i) are one pair.

    Args:
        values: of the pairs `(m,)`.
        i: first images `(m,)`.
        j: second images `(m,)`.
        number: of images.

    Reference: Aronow, Samii, Assenova, "Cluster-robust variance estimation for dyadic data",
    Political Analysis 23, 2015.
    """
    if not len(values):
        return float("nan")
    _, pair = np.unique(np.minimum(i, j) * number + np.maximum(i, j), return_inverse=True)
    sums = np.bincount(pair.ravel(), values - values.mean())
    return float((sums**2).sum()) / len(values) ** 2


def disjoint_pairs(number: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """floor(number / 2) pairs of which no image is in two, drawn at random."""
    order = generator.permutation(number)
    half = number // 2
    return order[:half], order[half : 2 * half]


def random_pairs(
    number: int, pairs: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """At most `pairs` different ordered pairs i != j, drawn at random."""
    every = number * (number - 1)
    drawn = generator.choice(every, min(pairs, every), replace=False)
    i, rest = np.divmod(drawn, max(number - 1, 1))
    return i, rest + (rest >= i)


def class_pair_means(
    vectors: np.ndarray, groups: list[np.ndarray]
) -> tuple[float, float, float, float]:
    """Mean cosine within classes and across classes, every class or pair of classes alike.

    Args:
        vectors: unit vectors `(N, D)`.
        groups: indices of the images of each class, at least two in one class.

    Returns:
        Within, its standard error, across, its standard error: from leaving out single images,
        stratified by class. NaN where it is not defined.
    """
    sums = np.stack([vectors[own].sum(axis=0) for own in groups])
    sizes = np.array([len(own) for own in groups], float)
    means = sums / sizes[:, None]
    several = [k for k, own in enumerate(groups) if len(own) > 1]
    within, within_variance = [], 0.0
    for k in several:
        mean, left_out = pair_mean(vectors[groups[k]], vectors[groups[k]])
        within.append(mean)
        within_variance += float(_square(left_out))
    number = len(groups)
    across = across_error = float("nan")
    if number > 1:
        total = means.sum(axis=0)
        across = float((total @ total - (means * means).sum()) / (number * (number - 1)))
        variance = 0.0
        for k, own in enumerate(groups):
            if len(own) < 2:
                variance = float("nan")
                break
            others = total - means[k]
            moved = (sums[k] - vectors[own]) / (sizes[k] - 1)
            changes = 2 * (moved - means[k]) @ others / (number * (number - 1))
            variance += float(_square(changes))
        across_error = float(np.sqrt(variance))
    if not within:
        return float("nan"), float("nan"), across, across_error
    error = float(np.sqrt(within_variance)) / len(within)
    return float(np.mean(within)), error, across, across_error


def _square(left_out: np.ndarray) -> Any:
    n = left_out.shape[-1]
    return (n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()


def cosine_of_moved(u: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Cosines of u and u + moved, `(N,)`, each of length 1 or 0; exactly 1 for no move at all.

    0 where one of the two is zero.
    """
    one_is_zero = u.any(axis=1) != (u + moved).any(axis=1)
    return np.where(one_is_zero, 0.0, 1.0 - (moved * moved).sum(axis=1) / 2)


# ------------------------------------------------------------------ distances to other images


def cosine_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|u - v|^2 / 2 of unit vectors, along the last axis; 1 where one of them is zero."""
    u, v = unit(a), unit(b)
    none = ~(np.any(u, axis=-1) & np.any(v, axis=-1))
    return np.where(none, 1.0, ((u - v) ** 2).sum(axis=-1) / 2)


def l2_distance(a: np.ndarray, b: np.ndarray, shift: float = 0.0) -> np.ndarray:
    """Euclidean distance along the last axis, of a - b + shift."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64) + shift
    return np.sqrt((difference**2).sum(axis=-1))


def expected_cosine_baseline(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """b_i: mean over j != i of 1 - u_i . v_j, `(N,)`, in O(N D); u and v of length 1 or 0."""
    n = len(u)
    return 1.0 - (u @ v.sum(axis=0) - (u * v).sum(axis=1)) / (n - 1)


def distance_sums(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the Euclidean distances |a_i - b_j| over j != i and over i != j, `(N,)` each."""
    n = len(a)
    rows, columns = np.zeros(n), np.zeros(n)
    squares = (b * b).sum(axis=1)
    for start in range(0, n, _ROWS):
        part = a[start : start + _ROWS]
        squared = (part * part).sum(axis=1)[:, None] + squares - 2 * part @ b.T
        distance = np.sqrt(np.maximum(squared, 0.0))
        places = np.arange(len(part))
        distance[places, start + places] = 0.0
        rows[start : start + _ROWS] = distance.sum(axis=1)
        columns += distance.sum(axis=0)
    return rows, columns


def derangement(number: int, generator: np.random.Generator) -> np.ndarray:
    """A random permutation without a fixed place, `(number,)`, all such equally likely."""
    if number < 2:
        raise ValueError("a derangement needs two places")
    while True:
        order = generator.permutation(number)
        if not (order == np.arange(number)).any():
            return order


Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]
METRICS: dict[str, Metric] = {"cosine": cosine_distance, "l2": l2_distance}
