"""Means over seeds, paired differences between methods, and the table that a run prints."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

SCALARS = (
    "test_accuracy",
    "balanced_accuracy",
    "many_accuracy",
    "medium_accuracy",
    "few_accuracy",
    "head_accuracy",
    "middle_accuracy",
    "tail_accuracy",
    "expected_calibration_error",
)
THIRDS = ("head", "middle", "tail")


def thirds(class_counts: Any) -> dict[str, np.ndarray]:
    """Classes by rank of size: the largest third, the middle and the smallest."""
    import keras_git as kg

    return kg.metrics.groups(np.asarray(class_counts), "thirds")


def summarize(results: dict[str, Any]) -> None:
    """Adds mean and standard deviation over seeds, eKLD by thirds, and comparisons, in place."""
    groups = thirds(results["class_counts"])
    for entry in results["methods"].values():
        for seed in entry["seeds"].values():
            for measured in seed["invariance"].values():
                values = np.array([np.nan if v is None else v for v in measured["ekld"]])
                for name, classes in groups.items():
                    seen = values[classes][np.isfinite(values[classes])]
                    measured[f"{name}_ekld"] = float(seen.mean()) if len(seen) else None
        rows = [scalars(seed) for seed in entry["seeds"].values()]
        names = list(rows[0])
        columns = {n: [r[n] for r in rows if r.get(n) is not None] for n in names}
        entry["mean"] = {n: statistics.fmean(v) if v else None for n, v in columns.items()}
        entry["std"] = {n: statistics.stdev(v) if len(v) > 1 else None for n, v in columns.items()}
    results["comparisons"] = {
        f"{method} - {base}": _paired(results["methods"][method], results["methods"][base])
        for method, base in _pairs(results["methods"])
    }


def scalars(seed: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one seed that are averaged and compared."""
    row = {name: seed[name] for name in SCALARS}
    if "selected" in seed:
        row["selected_balanced_accuracy"] = seed["selected"]["balanced_accuracy"]
    for transform, measured in seed["invariance"].items():
        for third in THIRDS:
            row[f"{third}_ekld.{transform}"] = measured[f"{third}_ekld"]
    return row


def _pairs(methods: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each method with git against the same without, also without drs; and drs against erm."""
    samplings = {"drs", "erm"}
    for key in methods:
        names = key.split("+")
        if "git" in names:
            rest = [n for n in names if n != "git"]
            for base in methods:
                other = base.split("+")
                if "git" not in other and set(other) - samplings == set(rest) - samplings:
                    yield key, base
    if "drs" in methods and "erm" in methods:
        yield "drs", "erm"


def paired_values(
    method: Mapping[str, Any], base: Mapping[str, Any]
) -> dict[str, list[tuple[float, float]]]:
    """Each number of two methods, pair by pair of what both have run (seeds or versions)."""
    rows = [
        (scalars(entry), scalars(base["seeds"][seed]))
        for seed, entry in method["seeds"].items()
        if seed in base["seeds"]
    ]
    return {
        name: [(a[name], b[name]) for a, b in rows if None not in (a[name], b.get(name))]
        for name in rows[0][0]
    }


def _paired(method: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Differences seed by seed: only one larger than its standard error counts."""
    compared = {}
    for name, pairs in paired_values(method, base).items():
        values = [a - b for a, b in pairs]
        if not values:
            compared[name] = None
            continue
        mean = statistics.fmean(values)
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        compared[name] = {
            "differences": values,
            "mean": mean,
            "standard_error": error,
            "larger_than_standard_error": None if error is None else abs(mean) > error,
        }
    return compared


def per_class_rows(results: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of `per_class.csv`: one row per method, seed and class."""
    columns = ["method", "seed", "class", "training_images", "accuracy"]
    rows = []
    for method, entry in results["methods"].items():
        for seed, measured in entry["seeds"].items():
            for label, count in enumerate(results["class_counts"]):
                row = {
                    "method": method,
                    "seed": seed,
                    "class": label,
                    "training_images": int(count),
                    "accuracy": measured["per_class_accuracy"][label],
                }
                for transform, values in measured["invariance"].items():
                    for name in ("ekld", "ekld_standard_error", "consistency"):
                        column = f"{name}.{transform}"
                        row[column] = values[name][label]
                        if column not in columns:
                            columns.append(column)
                rows.append(row)
    return columns, rows


def _percent(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + (f" +-{100 * std:.1f}" if std is not None else "")


def _nats(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.3f}" + (f" +-{std:.3f}" if std is not None else "")


def text_table(table: list[list[str]]) -> str:
    """Right-aligned columns with a rule under the first row."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(r, widths, strict=True)) for r in table]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def summary(results: Mapping[str, Any], folder: str) -> str:
    """The text that a run prints at its end."""
    methods = results["methods"]
    seeds = len(next(iter(methods.values()))["seeds"])
    parts = [f"\n{results['dataset']}: {seeds} seed(s); head, middle, tail = thirds of the classes"]
    table = [["accuracy, %", "balanced", "head", "middle", "tail"]]
    names = ["balanced_accuracy", "head_accuracy", "middle_accuracy", "tail_accuracy"]
    if all("selected_balanced_accuracy" in entry["mean"] for entry in methods.values()):
        table[0].append("balanced, selected epoch")
        names.append("selected_balanced_accuracy")
    table[0].append("ECE")
    for key, entry in methods.items():
        cells = [_percent(entry["mean"][n], entry["std"][n]) for n in names]
        error = "expected_calibration_error"
        table.append([key, *cells, _nats(entry["mean"][error], entry["std"][error])])
    parts.append(text_table(table))
    for transform in next(iter(next(iter(methods.values()))["seeds"].values()))["invariance"]:
        table = [[f"eKLD, nats: {transform}", *THIRDS]]
        for key, entry in methods.items():
            names = tuple(f"{third}_ekld.{transform}" for third in THIRDS)
            table.append([key, *(_nats(entry["mean"][n], entry["std"][n]) for n in names)])
        parts.append(text_table(table))
    for pair, compared in results["comparisons"].items():
        if "git" in pair:
            lines = [f"{pair}, seed by seed:"]
            for name in ("balanced_accuracy", "tail_accuracy"):
                lines.append(_verdict(name, compared[name], 100.0, "points", higher=True))
            for name in compared:
                if name.startswith("tail_ekld."):
                    lines.append(_verdict(name, compared[name], 1.0, "nats", higher=False))
            parts.append("\n".join(lines))
    generator = results.get("generator")
    if generator:
        text = (
            f"generator: styles change an image by {100 * generator['style_distance']:.1f} % of "
            f"the grey range (more than {100 * generator['style_distance_threshold']:.0f} % asked: "
            f"{'yes' if generator['changes_with_style'] else 'NO'})"
        )
        if generator["recognized"] is not None:
            text += (
                f"; {100 * generator['recognized']:.1f} % of its images are recognized by a "
                f"classifier trained on balanced data (at least "
                f"{100 * generator['recognized_threshold']:.0f} % asked: "
                f"{'yes' if generator['keeps_content'] else 'NO'}; real images: "
                f"{100 * generator['recognized_real_images']:.1f} %)"
            )
        parts.append(text)
    parts.append(f"results, pictures and models: {folder}")
    return "\n\n".join(parts)


def _verdict(
    name: str, compared: Mapping[str, Any] | None, factor: float, unit: str, *, higher: bool
) -> str:
    if compared is None:
        return f"  {name}: -"
    digits = 1 if factor == 100.0 else 3
    values = ", ".join(f"{factor * v:+.{digits}f}" for v in compared["differences"])
    mean, error = compared["mean"], compared["standard_error"]
    text = f"  {name}: {values}; mean {factor * mean:+.{digits}f} {unit}"
    if error is None:
        return text + " (one seed: no verdict)"
    text += f" +-{factor * error:.{digits}f}"
    if not compared["larger_than_standard_error"]:
        return text + ": undecided"
    return text + (": better" if (mean > 0) == higher else ": worse")


def print_summary(results: Mapping[str, Any], folder: str) -> None:
    print(summary(results, folder), flush=True)
