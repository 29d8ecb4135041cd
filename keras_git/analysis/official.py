"""The measures of the original study as it computes them, for comparison with its numbers.

What `keras_git.analysis` recommends instead differs: all pairs for disjoint ones, an exact expected
baseline for one permutation, displacement cosines for alignment, sets without duplicates.

Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_git.analysis.similarity import l2_distance, unit

PERCENTILES = (5.0, 25.0, 50.0, 75.0, 95.0)
TABLE_COLUMNS = (
    "avg_similarity_change",
    "std_similarity_change",
    "avg_boost",
    "std_boost",
    "avg_decrease",
    "std_decrease",
    "avg_percent_similarity_change",
    "avg_percent_boost",
    "proportion_boosted",
    "num_boosted",
    "total_num_pairs",
)
_MIN_SHARE = 0.4
_FIXED_PROBABILITY = 0.1


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - cos along the last axis, norms at least 1e-8."""
    return 1.0 - (unit(a) * unit(b)).sum(axis=-1)


def euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b + 1e-6|, the constant added to each coordinate."""
    return l2_distance(a, b, 1e-6)


DISTANCES = {"cosine": cosine, "l2": euclidean}


def invariance(
    z: np.ndarray, transformed: np.ndarray, permutation: np.ndarray, metric: str = "cosine"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Baseline b, distance t and (b - t) / (b + 1e-8) of each image.

    Args:
        z: embeddings `(N, D)`.
        transformed: of the transformed images `(N, D)`.
        permutation: int `(N,)`: image i is compared with transformed image permutation[i].
        metric: "cosine" or "l2".

    Returns:
        Three arrays `(N,)`.
    """
    distance = DISTANCES[metric]
    baseline = distance(z, transformed[permutation])
    own = distance(z, transformed)
    return baseline, own, (baseline - own) / (baseline + 1e-8)


def shuffled_columns(differences: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """Each column `c` in the order `permutations[c]`; `(N, D)` and int `(D, N)`."""
    return np.take_along_axis(differences, permutations.T, axis=0)


def alignment(
    differences: np.ndarray, column_permutations: np.ndarray, row_permutation: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much more displacements agree than those with shuffled columns.

    It does not see a perfect agreement: a constant displacement survives the shuffling, and gives
    0. The displacement cosines of `measure_equivariance` see it.

    Args:
        differences: displacements z - z' `(N, D)`.
        column_permutations: int `(D, N)`.
        row_permutation: int `(N,)`, of the partners, for both.

    Returns:
        Distances of the shuffled, of the displacements, and their difference, `(N,)` each.
    """
    shuffled = shuffled_columns(differences, column_permutations)
    baseline = cosine(shuffled, shuffled[row_permutation])
    own = cosine(differences, differences[row_permutation])
    return baseline, own, baseline - own


def invariance_gap(
    trained: np.ndarray, untrained: np.ndarray, magnitudes: tuple[int, int] = (3, 7)
) -> np.ndarray:
    """Mean over magnitudes of median(trained) - median(untrained).

    Args:
        trained: invariance of each image `(T, M, N)`.
        untrained: the same of the reference.
        magnitudes: first and last index, both included.

    Returns:
        `(T,)`.
    """
    used = slice(magnitudes[0], magnitudes[1] + 1)
    difference = np.median(trained, axis=-1) - np.median(untrained, axis=-1)
    return difference[:, used].mean(axis=1)


def gap_bars(gap: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean share of counts where invariance does not increase and where it does, and its error.

    Args:
        gap: of each transformation `(T,)`.
        counts: how often each is among the best of a class `(T,)`.

    Returns:
        Means `(2,)` (gap <= 0, gap > 0), and standard errors (ddof 1) divided by the means `(2,)`;
        NaN for a group without transformations, and for the error of one.
    """
    shares = counts / max(float(counts.sum()), 1.0)
    means, errors = np.full(2, np.nan), np.full(2, np.nan)
    for place, chosen in enumerate((gap <= 0, gap > 0)):
        own = shares[chosen]
        if len(own):
            means[place] = own.mean()
        if len(own) > 1 and own.mean() != 0:
            errors[place] = own.std(ddof=1) / np.sqrt(len(own)) / own.mean()
    return means, errors


def pairs(number: int, batch_size: int, max_pairs: int) -> np.ndarray:
    """The disjoint pairs, int `(P, 2)`: full batches in order, image k with k + batch_size / 2."""
    half = batch_size // 2
    found: list[tuple[int, int]] = []
    for start in range(0, number - batch_size + 1, batch_size):
        if len(found) >= max_pairs:
            break
        found += [(start + k, start + half + k) for k in range(half)]
    return np.array(found, np.int64).reshape(-1, 2)


def similarity_table(original: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Summary of the changes of similarity, columns `TABLE_COLUMNS`; NaN where nothing is averaged.

    Args:
        original: similarity of the pairs `(C, P)`.
        change: by each transformation `(C, T, P)`.

    Returns:
        float64 `(C, T, 11)`; standard deviations are of the population.
    """
    relative = change / original[:, None, :]

    def mean(values: np.ndarray, used: np.ndarray) -> np.ndarray:
        counts = used.sum(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(used, values, 0.0).sum(axis=-1) / counts

    def deviation(values: np.ndarray, used: np.ndarray) -> np.ndarray:
        return np.sqrt(mean((values - mean(values, used)[..., None]) ** 2, used))

    every, up, down = np.ones_like(change, bool), change > 0, change < 0
    number = np.full(change.shape[:2], change.shape[-1], float)
    return np.stack(
        [
            mean(change, every),
            deviation(change, every),
            mean(change, up),
            deviation(change, up),
            mean(change, down),
            deviation(change, down),
            mean(relative, every),
            mean(relative, up),
            up.sum(axis=-1) / number,
            up.sum(axis=-1).astype(float),
            number,
        ],
        axis=-1,
    )


def column(table: np.ndarray, name: str) -> np.ndarray:
    """A column of `similarity_table`, `(C, T)`."""
    return table[..., TABLE_COLUMNS.index(name)]


def best(scores: np.ndarray, number: int) -> np.ndarray:
    """Indices of the largest scores along the last axis; ties: the lower index; NaN last."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :number]


def kept(chosen: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Of each row's choice, those boosted in more than 0.4 of the pairs and not worse on average.

    Args:
        chosen: indices `(C, k)`.
        table: of `similarity_table`.

    Returns:
        int `(C, k)` in the order of the choice, filled up with -1.
    """
    boosted = np.take_along_axis(column(table, "num_boosted"), chosen, axis=1)
    total = np.take_along_axis(column(table, "total_num_pairs"), chosen, axis=1)
    percent = np.take_along_axis(column(table, "avg_percent_similarity_change"), chosen, axis=1)
    # from counts: 8 of 20 is not more than 0.4, whatever the rounding
    good = (10 * np.round(boosted) > round(10 * _MIN_SHARE) * np.round(total)) & (percent >= 0)
    found = np.full(chosen.shape, -1)
    for row, (own, wanted) in enumerate(zip(chosen, good, strict=True)):
        found[row, : wanted.sum()] = own[wanted]
    return found


def probabilities(choice: np.ndarray, table: np.ndarray, rule: str) -> np.ndarray:
    """Chances with which the kept operations of each class are applied, 0 where there is none.

    Args:
        choice: of `kept`, `(C, k)`.
        table: of `similarity_table`.
        rule: "uniform" (1 / n), "fixed" (0.1), or "weighted_boost" (softmax of the mean percent
            boost times the share, 0.5 for a single one).
    """
    found = np.zeros(choice.shape)
    weights = column(table, "avg_percent_boost") * column(table, "proportion_boosted")
    for row, own in enumerate(choice):
        used = own[own >= 0]
        if not len(used):
            continue
        if rule == "uniform":
            chances = np.full(len(used), 1.0 / len(used))
        elif rule == "fixed":
            chances = np.full(len(used), _FIXED_PROBABILITY)
        elif len(used) == 1:
            chances = np.array([0.5])
        else:
            raised = np.exp(weights[row, used] - weights[row, used].max())
            chances = raised / raised.sum()
        found[row, : len(used)] = chances
    return found


def across_classes(
    scores: np.ndarray, names: Sequence[str], number: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best candidates by the mean over classes; ties in alphabetical order of the names.

    Args:
        scores: `(C, T)`.
        names: of the candidates.
        number: how many.

    Returns:
        Indices and means, `(number,)` each.
    """
    means = scores.mean(axis=0)
    alphabetical = np.array(sorted(range(len(names)), key=lambda index: names[index]))
    order = alphabetical[np.argsort(-means[alphabetical], kind="stable")][:number]
    return order, means[order]


def operation_of(name: str) -> str:
    """The operation in a candidate's name: its first word."""
    return str(name).split()[0]


def factor_overlap(scores: np.ndarray, names: Sequence[str], number: int) -> np.ndarray:
    """Intersection over union of the operations among two classes' best candidates, `(C, C)`."""
    order = best(scores, number)
    sets = [{operation_of(names[index]) for index in row} for row in order]
    return np.array([[len(a & b) / len(a | b) for b in sets] for a in sets])


def factor_spearman(scores: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Rank correlation of where each operation first comes in two classes' lists, `(C, C)`."""
    import scipy.stats

    order = best(scores, scores.shape[1])
    operations = sorted({operation_of(name) for name in names})
    positions = []
    for row in order:
        listed = [operation_of(names[index]) for index in row]
        positions.append([listed.index(operation) for operation in operations])
    ranks = scipy.stats.rankdata(np.array(positions, float), axis=1)
    return np.corrcoef(ranks)


def ranks(scores: np.ndarray) -> np.ndarray:
    """1 for the largest of each row; ties share the smallest rank."""
    import scipy.stats

    return scipy.stats.rankdata(-scores, method="min", axis=-1).astype(float)


def alphabetical_ranks(names: Sequence[str]) -> np.ndarray:
    """Ranks of the operations' names in alphabetical order: what the original stores as rank."""
    import scipy.stats

    operations = [operation_of(name) for name in names]
    known = sorted(set(operations))
    places = [known.index(operation) for operation in operations]
    return scipy.stats.rankdata(places, method="min").astype(float)


def invariance_name(name: str) -> str:
    """Name in the invariance measure of a candidate of the search, as the original maps them."""
    operation, magnitude = operation_of(name), int(str(name).split()[-1])
    if operation == "rescale":
        return "scale_zoom_in"
    if operation in ("contrast", "brightness"):
        return f"{'decrease' if magnitude <= 5 else 'increase'}_{operation}"
    return operation


def summary(similarities: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean over classes of class means, and of class (population) standard deviations."""
    means: list[Any] = [values.mean() for values in similarities]
    spreads: list[Any] = [values.std() for values in similarities]
    return float(np.mean(means)), float(np.mean(spreads))
