"""Whether what a model learned to be invariant to is what varies in the data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_git.analysis import official
from keras_git.analysis.invariance import InvarianceTable
from keras_git.analysis.tables import ResultTable, Row
from keras_git.analysis.variation import FactorTable
from keras_git.auditing.statistics import spearman_trend
from keras_git.errors import InputError

STATISTICS = ("spearman", "paper_bars")
_BEST_OF_A_CLASS = 5
_MOST_LISTED = 6


class LineUpResult(ResultTable):
    """Factors against invariance gaps, a row for each operation that both have.

    Columns: `transform`, `factor` (mean score of its candidates over classes), `gap` (mean over
    magnitudes of invariance of the trained model less that of the reference), `count` (how often
    one of its candidates is among the five best of a class by share).

    Attributes:
        rho: Spearman's correlation of factor and gap; under "paper_bars" of count and gap.
        ci: its 95 % interval by Fisher's z, NaN for eight operations or fewer.
        p: of a permutation test, two-sided: of rho, or under "paper_bars" of the difference of the
            bars.
        detectable: the |rho| above which 95 % of the permutations do not come: what so few
            operations can show at all.
        bars: `{"decreases": (mean, error), "increases": (mean, error)}`: mean share of the counts
            of operations whose invariance the training lowered or raised, and standard error over
            mean, as the original study draws them.
    """

    COLUMNS = ("transform", "factor", "gap", "count")
    TEXTS = ("transform",)
    KIND = "line-up"

    @property
    def rho(self) -> float:
        return _number(self.notes["rho"])

    @property
    def ci(self) -> tuple[float, float]:
        low, high = self.notes["ci"]
        return _number(low), _number(high)

    @property
    def p(self) -> float:
        return _number(self.notes["p"])

    @property
    def detectable(self) -> float:
        return _number(self.notes["detectable"])

    @property
    def bars(self) -> dict[str, tuple[float, float]]:
        return {k: (_number(v[0]), _number(v[1])) for k, v in self.notes["bars"].items()}

    @property
    def per_transform(self) -> list[Row]:
        """The rows."""
        return self.rows

    @property
    def summary(self) -> str:
        low, high = self.ci
        interval = f" ({low:+.2f} to {high:+.2f})" if math.isfinite(low) else ""
        return (
            f"rho = {self.rho:+.2f}{interval}, p = {self.p:.3f}, over {len(self)} transformations; "
            f"with so many only |rho| above {self.detectable:.2f} can be told from chance"
        )

    def plot(self, path: str | Path | None = None, **options: Any) -> Any:
        """Draws gap against factor; see `keras_git.plots.gap_against_factor`."""
        from keras_git import plots

        return plots.gap_against_factor(self, path, **options)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def lines_up(
    factors: FactorTable,
    trained: InvarianceTable,
    reference: InvarianceTable,
    *,
    magnitudes: tuple[int, int] = (3, 7),
    statistic: str = "spearman",
    n_permutations: int = 10000,
    seed: int = 0,
) -> LineUpResult:
    """Compares the factors of variation of data with the invariance that training brought.

    Rows of both sides are brought together by operation. Operations of the search have directions
    where those of the invariance measure do: contrast and brightness by the sign of the magnitude,
    rescale by whether it enlarges.

    Args:
        factors: of `explain_variation`.
        trained: invariance of the trained model, of one model and layer.
        reference: that of the model it is compared with, such as the untrained one, with the same
            transformations.
        magnitudes: first and last place among the magnitudes of a transformation that count, both
            included; where a transformation has none of them all count.
        statistic: "spearman" (factor against gap) or "paper_bars" (counts among the best of the
            classes, by sign of the gap).
        n_permutations: of the operations, for the p-value.
        seed: of the permutations.

    Returns:
        The result.

    Raises:
        InputError: another statistic, tables of several models, or fewer than three operations in
            common.

    Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
    2021; the rank correlation and its test are this package's.
    """
    if statistic not in STATISTICS:
        raise InputError(f"statistic is {statistic!r}; use one of {', '.join(STATISTICS)}")
    try:
        first, last = (int(index) for index in magnitudes)
        ordered = first <= last
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise InputError(f"magnitudes is {magnitudes!r}; give (first place, last place)")
    gaps = _gaps(trained, reference, first, last)
    scores = _factors(factors, set(gaps), first, last)
    common = [name for name in gaps if name in scores]
    if len(common) < 3:
        raise InputError(
            f"factors and invariance have {len(common)} operations in common "
            f"({', '.join(common) or 'none'}); they need three or more: use the same TransformSet "
            "for both"
        )
    counts = _counts(factors, set(gaps))
    gap = np.array([gaps[name] for name in common])
    factor = np.array([scores[name] for name in common])
    count = np.array([float(counts[name]) for name in common])
    side = factor if statistic == "spearman" else count
    trend = spearman_trend(side, gap)
    means, errors = official.gap_bars(gap, count)
    p, detectable = _permuted(side, gap, count, statistic, n_permutations, seed)
    rows = [
        {"transform": name, "factor": scores[name], "gap": gaps[name], "count": counts[name]}
        for name in common
    ]
    return LineUpResult(
        rows,
        {
            "n_images": factors.settings.get("n_images"),
            "n_transforms": len(common),
            "statistic": statistic,
            "magnitudes": [first, last],
            "n_permutations": n_permutations,
            "seed": seed,
            "trained": trained.models,
            "reference": reference.models,
        },
        notes={
            "rho": trend.rho,
            "ci": [trend.low, trend.high],
            "p": p,
            "detectable": detectable,
            "bars": {
                "decreases": [means[0], errors[0]],
                "increases": [means[1], errors[1]],
            },
        },
    )


def _gaps(
    trained: InvarianceTable, reference: InvarianceTable, first: int, last: int
) -> dict[str, float]:
    """Mean over magnitudes of the difference in invariance, by operation."""
    sides = []
    for what, table in (("trained", trained), ("reference", reference)):
        rows = [row for row in table.rows if row["class_id"] == -1]
        if len({(row["model"], row["layer"]) for row in rows}) != 1:
            raise InputError(
                f"{what} has rows of several models or layers: choose with table.select(model=...)"
            )
        names = table.notes.get("operations", {})
        sides.append(
            {
                (names.get(row["transform"], row["transform"]), row["index"], row["magnitude"]): row
                for row in rows
            }
        )
    both: dict[str, list[tuple[int, float]]] = {}
    for key, row in sides[0].items():
        other = _same(sides[1], key)
        if other is not None:
            difference = row["invariance"] - other["invariance"]
            both.setdefault(key[0], []).append((int(key[1]), difference))
    found = {}
    for name, values in both.items():
        used = [v for index, v in values if first <= index <= last] or [v for _, v in values]
        finite = [value for value in used if math.isfinite(value)]
        if finite:
            found[name] = float(np.mean(finite))
    return found


def _same(rows: Mapping[tuple[str, int, float], Row], key: tuple[str, int, float]) -> Row | None:
    if key in rows:
        return rows[key]
    for other, row in rows.items():  # NaN magnitudes are not equal to themselves
        if other[:2] == key[:2] and math.isnan(other[2]) and math.isnan(key[2]):
            return row
    return None


def invariance_operation(operation: str, magnitude: float, known: set[str]) -> str | None:
    """The operation of the invariance measure that one of the search corresponds to.

    Args:
        operation: of the search.
        magnitude: its value: of contrast and brightness the factor less 1, of rescale the factor.
        known: operations of the invariance measure.

    Returns:
        Its name, None if there is none.
    """
    if operation in known:
        return operation
    directed = operation
    if operation in ("contrast", "brightness"):
        directed = f"{'increase' if magnitude > 0 else 'decrease'}_{operation}"
    elif operation in ("rescale", "scale"):
        directed = "scale_zoom_in" if magnitude > 1 else "scale_zoom_out"
    return directed if directed in known else None


def _operation(factors: FactorTable, row: Mapping[str, Any], known: set[str]) -> str | None:
    return invariance_operation(factors.operation(row["transform"]), row["magnitude"], known)


def _factors(factors: FactorTable, known: set[str], first: int, last: int) -> dict[str, float]:
    """Mean score over classes and candidates, by operation of the invariance measure."""
    indices = factors.notes.get("indices", {})
    values: dict[str, list[tuple[int, float]]] = {}
    for row in factors.rows:
        name = _operation(factors, row, known)
        score = factors.score_of(row)
        if name is None or not math.isfinite(score):
            continue
        shown = row["transform"]
        if shown not in indices:
            shown = f"{shown} {row['magnitude']:g}"
        values.setdefault(name, []).append((int(indices.get(shown, first)), score))
    found = {}
    for name, listed in values.items():
        used = [v for index, v in listed if first <= index <= last] or [v for _, v in listed]
        found[name] = float(np.mean(used))
    return found


def _counts(factors: FactorTable, known: set[str]) -> Counter[str]:
    """How often an operation is among the best of a class by the share that is improved."""
    counts: Counter[str] = Counter()
    for label in dict.fromkeys(row["class_id"] for row in factors.rows):
        own = [row for row in factors.rows if row["class_id"] == label]
        own = [row for row in own if math.isfinite(row["share"]) and row["self_similarity"] != 1.0]
        own.sort(key=lambda row: (-row["share"], row["transform"], repr(row["magnitude"])))
        for row in own[:_BEST_OF_A_CLASS]:
            name = _operation(factors, row, known)
            if name is not None:
                counts[name] += 1
    return counts


def _permuted(
    side: np.ndarray, gap: np.ndarray, count: np.ndarray, statistic: str, number: int, seed: int
) -> tuple[float, float]:
    """p-value, and the 95 % quantile of |rho| where the two sides have nothing to do."""
    import scipy.stats

    generator = np.random.default_rng(seed)
    orders = np.array([generator.permutation(len(gap)) for _ in range(max(number, 1))])
    if np.ptp(side) == 0 or np.ptp(gap) == 0:
        return math.nan, math.nan
    x, y = scipy.stats.rankdata(side), scipy.stats.rankdata(gap)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x @ x) * (y @ y)))
    rhos = np.abs((x * y[orders]).sum(axis=1)) / scale
    detectable = float(np.quantile(rhos, 0.95))
    seen, values = abs(float(x @ y)) / scale, rhos
    if statistic == "paper_bars":
        if not 0 < (gap > 0).sum() < len(gap):
            return math.nan, detectable
        shares = count / max(count.sum(), 1.0)

        def difference(order: np.ndarray) -> np.ndarray:
            up = gap[order] > 0
            number_up = up.sum(axis=-1)
            above = (shares * up).sum(axis=-1)
            return above / number_up - (shares.sum() - above) / (len(gap) - number_up)

        seen = abs(float(difference(np.arange(len(gap)))))
        values = np.abs(difference(orders))
    return float((1 + (values >= seen - 1e-12).sum()) / (1 + len(values))), detectable
