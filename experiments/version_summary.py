"""Results of many versions of one study as one: by rank of size, with intervals and tests."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.results_folder import FORMAT_VERSION
from experiments.summary import THIRDS, paired_values, scalars, summarize, text_table, thirds

_CONFIDENCE = 0.95
_SHOWN_ACCURACIES = ("test_accuracy", "balanced_accuracy", "head_accuracy", "tail_accuracy")
_TESTED_ACCURACIES = ("balanced_accuracy", "tail_accuracy")
_P_VALUES = ("t_test", "wilcoxon")
# Differences that spread less than this part of the values are equal but for rounding.
_ROUNDING = 1e-12


def combine(versions: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """One `results.json` of all versions.

    Every version gives the sizes to other classes, so that lists over classes become lists over
    ranks, largest class first. In the place of training seeds stand versions, each the mean over
    its seeds: `methods.<method>.seeds.<version>`. Head, middle and tail are thirds of the ranks.

    Args:
        versions: version number -> content of its `results.json`, at least one.

    Returns:
        As the results of one run, with for each method `confidence_interval_95` (of the mean over
        versions, by Student's t) and `paired_tests` between each two methods (see
        `paired_tests`), where `t_test_holm` and `wilcoxon_holm` are adjusted for the number of
        pairs of methods, for each measure by itself; `versions` holds what belongs to one version.
    """
    first = next(iter(versions.values()))
    order = np.asarray(first["class_order"])
    sizes = np.asarray(first["class_counts"])[order].tolist()
    groups = thirds(sizes)
    methods: dict[str, Any] = {}
    for key in first["methods"]:
        entries = {}
        for version, results in sorted(versions.items()):
            seeds = list(results["methods"][key]["seeds"].values())
            entry = _by_rank(_mean_of(seeds), np.asarray(results["class_order"]))
            per_class = np.array([np.nan if v is None else v for v in entry["per_class_accuracy"]])
            for name, ranks in groups.items():
                seen = per_class[ranks][np.isfinite(per_class[ranks])]
                entry[f"{name}_accuracy"] = float(seen.mean()) if len(seen) else None
            entries[str(version)] = entry
        methods[key] = {"seeds": entries}
    combined = {
        "format_version": FORMAT_VERSION,
        "dataset": first["dataset"],
        "nuisance": first["nuisance"],
        "transformed_class_rank": first["transformed_class_rank"],
        "repetitions": "versions",
        "num_versions": len(versions),
        "class_counts": sizes,
        "class_names": [f"rank {rank}" for rank in range(len(sizes))],
        "generator": None,
        "methods": methods,
        "versions": {
            str(version): {
                "class_order": results["class_order"],
                "generator": results["generator"],
                "seconds": results["seconds"],
            }
            for version, results in sorted(versions.items())
        },
    }
    summarize(combined)
    for entry in methods.values():
        rows = [scalars(version) for version in entry["seeds"].values()]
        entry["confidence_interval_95"] = {
            name: interval([row[name] for row in rows]) for name in rows[0]
        }
    combined["paired_tests"] = {
        f"{method} - {base}": paired_tests(methods[method], methods[base])
        for base, method in itertools.combinations(methods, 2)
    }
    _adjust(list(combined["paired_tests"].values()))
    return combined


def _adjust(pairs: Sequence[dict[str, Any]]) -> None:
    """Adds Holm's p-values: a family is one measure over all pairs of methods."""
    for measure in pairs[0] if pairs else ():
        for name in _P_VALUES:
            adjusted = holm([tests[measure][name] for tests in pairs])
            for tests, value in zip(pairs, adjusted, strict=True):
                tests[measure][f"{name}_holm"] = value


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for their number; None stays and does not count.

    Reference: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6, 1979.
    """
    known = [i for i, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = min(max(largest, (len(known) - rank) * p_values[i]), 1.0)
        adjusted[i] = largest
    return adjusted


def _mean_of(values: Sequence[Any]) -> Any:
    """Mean of equally built results over training seeds; what is no number is the first's."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, Mapping):
        common = [key for key in first if all(key in value for value in values)]
        return {key: _mean_of([value[key] for value in values]) for key in common}
    if isinstance(first, list):
        return [_mean_of(items) for items in zip(*values, strict=True)]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return float(np.mean(numbers)) if numbers else first


def _by_rank(value: Any, order: np.ndarray) -> Any:
    """Lists over classes become lists over ranks."""
    if isinstance(value, Mapping):
        return {key: _by_rank(item, order) for key, item in value.items()}
    if isinstance(value, list) and len(value) == len(order):
        return [value[label] for label in order]
    return value


def interval(values: Sequence[float | None]) -> list[float] | None:
    """95 % confidence interval of the mean by Student's t; None for fewer than two values."""
    from scipy import stats

    known = np.array([v for v in values if v is not None], dtype=np.float64)
    if len(known) < 2:
        return None
    mean, error = float(known.mean()), float(known.std(ddof=1) / np.sqrt(len(known)))
    half = float(stats.t.ppf(0.5 + _CONFIDENCE / 2, len(known) - 1)) * error
    return [mean - half, mean + half]


def paired_tests(method: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Whether two methods differ, version by version.

    Returns:
        For each number of a version: `n`, `mean_difference` (method - base), its
        `confidence_interval_95`, and two-sided p-values `t_test` (paired t) and `wilcoxon` (signed
        rank, which with n versions cannot be below 2 ** (1 - n)); None where n is too small or all
        differences are equal but for rounding.
    """
    from scipy import stats

    tested = {}
    for name, values in paired_values(method, base).items():
        differences = np.array([a - b for a, b in values], dtype=np.float64)
        t_test = wilcoxon = None
        scale = max((abs(value) for pair in values for value in pair), default=0.0)
        if len(differences) > 1 and np.std(differences) > _ROUNDING * scale:
            t_test = float(stats.ttest_1samp(differences, 0.0).pvalue)
            wilcoxon = float(stats.wilcoxon(differences).pvalue)
        tested[name] = {
            "n": len(differences),
            "mean_difference": float(differences.mean()) if len(differences) else None,
            "confidence_interval_95": interval(differences.tolist()),
            "t_test": t_test,
            "wilcoxon": wilcoxon,
        }
    return tested


def rank_rows(
    columns: Sequence[str], rows: Sequence[dict[str, Any]], results: Mapping[str, Any]
) -> tuple[list[str], list[dict[str, Any]]]:
    """`per_class.csv` of combined results: version, rank and class instead of seed and class."""
    renamed = []
    for row in rows:
        version, rank = row["seed"], row["class"]
        label = results["versions"][version]["class_order"][rank]
        rest = {name: value for name, value in row.items() if name not in ("seed", "class")}
        renamed.append({**rest, "version": version, "rank": rank, "class": label})
    rest_columns = [name for name in columns if name not in ("method", "seed", "class")]
    return ["method", "version", "rank", "class", *rest_columns], renamed


def summary_rows(results: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of `summary.csv`: each measure of each method, over the versions."""
    columns = ["method", "measure", "versions", "mean", "low_95", "high_95"]
    rows = []
    for method, entry in results["methods"].items():
        for measure, mean in entry["mean"].items():
            low, high = entry["confidence_interval_95"][measure] or (None, None)
            values = [scalars(version)[measure] for version in entry["seeds"].values()]
            rows.append(
                {
                    "method": method,
                    "measure": measure,
                    "versions": sum(value is not None for value in values),
                    "mean": mean,
                    "low_95": low,
                    "high_95": high,
                }
            )
    return columns, rows


def paired_test_rows(results: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of `paired_tests.csv`."""
    columns = ["methods", "measure", "versions", "mean_difference", "low_95", "high_95"]
    columns += [f"{name}{suffix}" for name in _P_VALUES for suffix in ("", "_holm")]
    rows = []
    for pair, tests in results["paired_tests"].items():
        for measure, test in tests.items():
            low, high = test["confidence_interval_95"] or (None, None)
            rows.append(
                {
                    "methods": pair,
                    "measure": measure,
                    "versions": test["n"],
                    "low_95": low,
                    "high_95": high,
                    **{name: test[name] for name in columns if name in test},
                }
            )
    return columns, rows


def table(results: Mapping[str, Any]) -> str:
    """What a run prints: means with 95 % intervals over versions, and the tests."""
    first = next(iter(next(iter(results["methods"].values()))["seeds"].values()))
    transforms, number = list(first["invariance"]), results["num_versions"]
    rank = results["transformed_class_rank"]
    only = "" if rank is None else f" of the class at rank {rank} only"
    parts = [
        f"{results['dataset']}, {results['nuisance'].replace('_', ' ')}{only}; {number} "
        f"version{'s' if number > 1 else ''}: mean +- half of the 95 % confidence interval; head, "
        "middle, tail = thirds of the classes by size"
    ]
    shown = ["accuracy, %", *(name.removesuffix("_accuracy") for name in _SHOWN_ACCURACIES)]
    rows = [
        [key, *(_cell(entry, name, 100.0, 1) for name in _SHOWN_ACCURACIES)]
        for key, entry in results["methods"].items()
    ]
    parts.append(text_table([shown, *rows]))
    for transform in transforms:
        rows = [
            [key, *(_cell(entry, f"{third}_ekld.{transform}", 1.0, 3) for third in THIRDS)]
            for key, entry in results["methods"].items()
        ]
        parts.append(text_table([[f"eKLD, nats: {transform}", *THIRDS], *rows]))
    rows = []
    for pair, tests in results["paired_tests"].items():
        for name in (*_TESTED_ACCURACIES, *(f"tail_ekld.{t}" for t in transforms)):
            test = tests[name]
            if test["t_test"] is not None:
                accuracy = name in _TESTED_ACCURACIES
                difference = test["mean_difference"] * (100 if accuracy else 1)
                rows.append(
                    [
                        pair,
                        name,
                        str(test["n"]),
                        f"{difference:+.1f} points" if accuracy else f"{difference:+.3f} nats",
                        f"{test['t_test']:.2g}",
                        f"{test['t_test_holm']:.2g}",
                        f"{test['wilcoxon']:.2g}",
                        f"{test['wilcoxon_holm']:.2g}",
                    ]
                )
    heading = ["paired over versions", "", "n", "difference", "p, t-test", "Holm"]
    heading += ["p, Wilcoxon", "Holm"]
    parts.append(text_table([heading, *rows]) if rows else "one version: no paired tests")
    return "\n\n".join(parts)


def _cell(entry: Mapping[str, Any], name: str, factor: float, digits: int) -> str:
    mean, limits = entry["mean"].get(name), entry["confidence_interval_95"].get(name)
    if mean is None:
        return "-"
    text = f"{factor * mean:.{digits}f}"
    if limits is not None:
        text += f" +-{factor * (limits[1] - limits[0]) / 2:.{digits}f}"
    return text
