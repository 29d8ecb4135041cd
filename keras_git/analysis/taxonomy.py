"""Similarity of classes by what they are, and whether it goes with another similarity of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_git.errors import InputError

MEASURES = ("wu_palmer", "leacock_chodorow", "path")


def mantel(
    first: Any, second: Any, *, n_permutations: int = 10000, seed: int = 0
) -> tuple[float, float]:
    """Spearman's correlation of two similarity matrices over pairs of classes, and its p-value.

    Args:
        first: `(C, C)`, symmetric; the diagonal does not count.
        second: the same; NaN pairs of either are left out.
        n_permutations: of the classes of one matrix against those of the other.
        seed: of the permutations.

    Returns:
        rho, NaN where one of the two is constant; and the two-sided p-value, (1 + as extreme) /
        (1 + permutations).

    Raises:
        InputError: other shapes, fewer than four classes, or asymmetry.
    """
    import scipy.stats

    a, b = (np.asarray(matrix, dtype=float) for matrix in (first, second))
    if a.ndim != 2 or a.shape != b.shape or a.shape[0] != a.shape[1]:
        raise InputError(f"similarities have shapes {a.shape} and {b.shape}; give (C, C) both")
    if len(a) < 4:
        raise InputError(f"there are {len(a)} classes; give four or more")
    for matrix in (a, b):
        if not np.allclose(matrix, matrix.T, equal_nan=True):
            raise InputError("a similarity of classes must be symmetric")
    rows, columns = np.triu_indices(len(a), 1)
    seen = np.isfinite(a[rows, columns]) & np.isfinite(b[rows, columns])
    i, j = rows[seen], columns[seen]
    x, y = a[i, j], b[i, j]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan, math.nan
    ranks = scipy.stats.rankdata(x)
    rho = float(np.corrcoef(ranks, scipy.stats.rankdata(y))[0, 1])
    filled = np.zeros(a.shape)
    filled[i, j] = filled[j, i] = scipy.stats.rankdata(y)
    if not seen.all():  # a permutation may bring a pair that is not known: it counts as average
        missing = ~np.isfinite(a) | ~np.isfinite(b)
        filled[missing] = filled[i, j].mean()
    centred = ranks - ranks.mean()
    generator = np.random.default_rng(seed)
    extreme = 0
    for _ in range(n_permutations):
        order = generator.permutation(len(a))
        other = filled[order[i], order[j]]
        other = other - other.mean()
        scale = math.sqrt(float((centred**2).sum() * (other**2).sum()))
        value = float(centred @ other) / scale if scale else 0.0
        extreme += abs(value) >= abs(rho) - 1e-12
    return rho, (1 + extreme) / (1 + n_permutations)


def wordnet_similarity(
    classes: Sequence[str], measure: str = "wu_palmer", corpus: Any = None
) -> np.ndarray:
    """Similarity of classes in WordNet, for `FactorTable.compare_to`.

    Args:
        classes: WordNet ids such as "n02084071", which say which sense is meant, or names, of which
            the first noun sense is taken.
        measure: "wu_palmer", "leacock_chodorow" or "path".
        corpus: an object with the interface of `nltk.corpus.wordnet`; None for that one.

    Returns:
        float64 `(C, C)`, symmetric.

    Raises:
        InputError: another measure, a class that WordNet lacks, or no WordNet: `pip install nltk`
            and `nltk.download("wordnet")`, or give `compare_to` a matrix of your own.
    """
    if measure not in MEASURES:
        raise InputError(f"measure is {measure!r}; use one of {', '.join(MEASURES)}")
    if corpus is None:
        corpus = _wordnet()
    senses = [_sense(corpus, str(name)) for name in classes]
    method = {
        "wu_palmer": "wup_similarity",
        "leacock_chodorow": "lch_similarity",
        "path": "path_similarity",
    }[measure]
    found = np.full((len(senses), len(senses)), np.nan)
    for i, one in enumerate(senses):
        for j in range(i, len(senses)):
            value = getattr(one, method)(senses[j])
            found[i, j] = found[j, i] = math.nan if value is None else float(value)
    return found


def _wordnet() -> Any:
    remedy = "pip install nltk and nltk.download('wordnet'), or give a matrix of your own"
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except (ImportError, LookupError) as error:
        raise InputError(f"WordNet is not there: {remedy}") from error
    return wordnet


def _sense(corpus: Any, name: str) -> Any:
    if len(name) == 9 and name[0] == "n" and name[1:].isdigit():
        try:
            return corpus.synset_from_pos_and_offset("n", int(name[1:]))
        except Exception as error:
            raise InputError(f"WordNet has no noun {name!r}") from error
    senses = corpus.synsets(name.replace(" ", "_"), pos="n")
    if not senses:
        raise InputError(f"WordNet has no noun {name!r}: give its id (such as n02084071)")
    return senses[0]
