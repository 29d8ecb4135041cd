"""Confidence intervals and corrections that the measures share. Arrays in numpy, float64."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from keras_git.errors import InputError


def check_level(ci: float) -> float:
    """A confidence level between 0 and 1.

    Raises:
        InputError: another number.
    """
    if not isinstance(ci, (int, float)) or not 0 < ci < 1:
        raise InputError(f"ci is {ci!r}; give a confidence level between 0 and 1, such as 0.95")
    return float(ci)


def jackknife_error(left_out: np.ndarray) -> np.ndarray:
    """Standard error from the n values with one image left out each, along the last axis.

    sqrt((n - 1) / n sum (value - mean)^2); NaN for n < 2.
    """
    number = left_out.shape[-1]
    if number < 2:
        return np.full(left_out.shape[:-1], np.nan)
    spread = ((left_out - left_out.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    return np.sqrt((number - 1) / number * spread)


@functools.lru_cache(maxsize=4096)
def student_quantile(ci: float, freedom: float) -> float:
    """Half the width of a t interval in standard errors."""
    import scipy.stats

    return float(scipy.stats.t.ppf((1 + ci) / 2, freedom)) if freedom >= 1 else math.nan


def student_p(value: float, error: float, freedom: float) -> float:
    """Two-sided p-value of a t test against 0; 1 where value and error are 0."""
    import scipy.stats

    if not math.isfinite(value) or not math.isfinite(error) or not freedom >= 1:
        return math.nan
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * scipy.stats.t.sf(abs(value) / error, freedom))


def welch_freedom(variances: Any, freedoms: Any) -> float:
    """Degrees of freedom of a sum of independent estimates (Welch and Satterthwaite)."""
    variances, freedoms = np.asarray(variances, float), np.asarray(freedoms, float)
    used = variances > 0
    if not used.any():
        return float(np.max(freedoms, initial=1.0))
    return float(variances[used].sum() ** 2 / (variances[used] ** 2 / freedoms[used]).sum())


def wilson(successes: float, trials: float, ci: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    if trials <= 0:
        return math.nan, math.nan
    import scipy.stats

    z = float(scipy.stats.norm.ppf((1 + ci) / 2))
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials)
    half *= math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


@functools.lru_cache(maxsize=4096)
def _median_ranks(number: int, ci: float) -> tuple[int, int] | None:
    import scipy.stats

    lowest = int(scipy.stats.binom.ppf((1 - ci) / 2, number, 0.5))
    # the largest k with P(X < k) within half of what may be missed
    while lowest > 0 and scipy.stats.binom.cdf(lowest - 1, number, 0.5) > (1 - ci) / 2:
        lowest -= 1
    return None if lowest < 1 else (lowest - 1, number - lowest)


def median_interval(values: np.ndarray, ci: float) -> tuple[float, float]:
    """Interval of a median between two order statistics, exact for any distribution.

    NaN where there are too few values for the level (fewer than 6 for 95 %).
    """
    ranks = _median_ranks(len(values), ci)
    if ranks is None:
        return math.nan, math.nan
    ordered = np.sort(values)
    return float(ordered[ranks[0]]), float(ordered[ranks[1]])


def sign_p(values: np.ndarray) -> float:
    """Two-sided p-value of the sign test of a median of 0; zeros are left out."""
    import scipy.stats

    above, below = int((values > 0).sum()), int((values < 0).sum())
    if above + below == 0:
        return 1.0
    return float(scipy.stats.binomtest(above, above + below).pvalue)


def benjamini_hochberg(p_values: Any) -> np.ndarray:
    """q-values: the false discovery rate at which each would be declared found.

    Args:
        p_values: any shape; NaN stay NaN and do not count.

    Reference: Benjamini and Hochberg, J. R. Statist. Soc. B 57, 1995.
    """
    p_values = np.asarray(p_values, dtype=float)
    result = np.full(p_values.shape, np.nan)
    seen = np.isfinite(p_values)
    values = p_values[seen]
    if not len(values):
        return result
    order = np.argsort(values, kind="stable")
    scaled = values[order] * len(values) / np.arange(1, len(values) + 1)
    smallest = np.minimum.accumulate(scaled[::-1])[::-1]
    found = np.empty(len(values))
    found[order] = np.minimum(smallest, 1.0)
    result[seen] = found
    return result
