"""`report.html` of an experiment: its methods as the models of an audit, seeds averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_git.auditing import AuditResult, Condition, Measurement, ModelAudit
from keras_git.auditing.statistics import group_means, spearman_trend
from keras_git.errors import InputError
from keras_git.report import Finding, write_html

_GROUPS = ("many", "medium", "few")
# What is compared seed by seed: name in results.json, in words, factor, unit, digits, more is good.
_COMPARED = (
    ("balanced_accuracy", "accuracy (mean over the classes)", 100.0, "points", 1, True),
    ("tail_accuracy", "accuracy on the smallest third of classes", 100.0, "points", 1, True),
)


def from_results(
    results: Mapping[str, Any],
    *,
    settings: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> AuditResult:
    """The content of `results.json` as the result of an audit, one model per method.

    Measures are means over seeds. Their standard error has two parts: between images, the mean over
    seeds (all seeds are measured on the same images), and between seeds, the standard deviation
    over the root of their number. Accuracy on transformed images is not part of these results: NaN.

    Args:
        results: as written by a finished experiment, with `class_counts` and `methods`.
        settings: for the last section of the report.
        versions: the same.

    Returns:
        The result. `num_images` is -1, which the report takes for unknown, in results without
        `images_per_class`.

    Raises:
        InputError: `results` are not those of a finished experiment.
    """
    try:
        counts = np.asarray(results["class_counts"], dtype=np.int64)
        methods = {key: list(entry["seeds"].values()) for key, entry in results["methods"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "these results cannot be reported: they need class_counts and methods, as in the "
            "results.json of a finished experiment"
        ) from error
    if not methods or not all(methods.values()):
        raise InputError("these results hold no finished training: run the experiment to its end")
    number = len(counts)
    models = tuple(_model(key, runs, counts) for key, runs in methods.items())
    images = results.get("images_per_class")
    if images is None:
        empty = np.all([np.isnan(model.per_class_accuracy) for model in models], axis=0)
        images = np.where(empty, 0, -1)
    return AuditResult(
        models=models,
        class_names=tuple(results.get("class_names") or (f"class {i}" for i in range(number))),
        class_counts=counts,
        num_images=np.asarray(images, dtype=np.int64),
        data=str(results.get("dataset", "")),
        settings=dict(settings or {}),
        versions=dict(versions or {}),
    )


def _model(key: str, runs: Sequence[Mapping[str, Any]], counts: np.ndarray) -> ModelAudit:
    accuracy, _ = _over_seeds([run["per_class_accuracy"] for run in runs])
    groups = {name: _mean([run.get(f"{name}_accuracy") for run in runs]) for name in _GROUPS}
    return ModelAudit(
        name=key,
        parameters=int(runs[0].get("parameters", 0)),
        outputs="logits",
        accuracy=_mean([run["test_accuracy"] for run in runs]),
        balanced_accuracy=_mean([run["balanced_accuracy"] for run in runs]),
        expected_calibration_error=_mean([run["expected_calibration_error"] for run in runs]),
        per_class_accuracy=accuracy,
        group_accuracy={name: value for name, value in groups.items() if np.isfinite(value)},
        accuracy_trend=spearman_trend(counts, accuracy),
        measurements=tuple(
            _measurement(name, [run["invariance"][name] for run in runs], counts)
            for name in runs[0]["invariance"]
            if all(name in run["invariance"] for run in runs)
        ),
    )


def _measurement(name: str, runs: Sequence[Mapping[str, Any]], counts: np.ndarray) -> Measurement:
    none = np.full(len(counts), np.nan)
    values = {}
    for measure in ("ekld", "consistency"):
        error = f"{measure}_standard_error"
        values[measure], values[error] = _over_seeds(
            [run[measure] for run in runs], [run.get(error, none) for run in runs]
        )
    groups: dict[str, dict[str, float]] = {}
    for measure in ("ekld", "consistency"):
        for group, mean in group_means(values[measure], counts).items():
            groups.setdefault(group, {})[measure] = mean
    return Measurement(
        condition=Condition(name, None, "", name.replace("_", " ")),
        **values,
        ekld_sampling_error=none,
        accuracy=none,
        accuracy_standard_error=none,
        num_samples=np.zeros(len(counts), np.int64),
        groups=groups,
        trend=spearman_trend(counts, values["ekld"], ModelAudit.ekld_resolution),
    )


def _over_seeds(
    values: Sequence[Any], errors: Sequence[Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds per class, and its standard error: of the images and of the seeds."""
    table = np.asarray(values, dtype=np.float64)  # None becomes NaN
    between_images = np.zeros(table.shape[1])
    if errors is not None:
        between_images = np.asarray(errors, dtype=np.float64).mean(axis=0)
    between_seeds = np.zeros(table.shape[1])
    if len(table) > 1:
        between_seeds = table.std(axis=0, ddof=1) / np.sqrt(len(table))
    return table.mean(axis=0), np.hypot(between_images, between_seeds)


def _mean(values: Sequence[float | None]) -> float:
    numbers = [float(value) for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else float("nan")


def seed_findings(results: Mapping[str, Any]) -> list[Finding]:
    """What holds seed by seed, which is more than class by class: trainings differ."""
    number = max(len(entry["seeds"]) for entry in results["methods"].values())
    of_versions = results.get("repetitions") == "versions"
    title = "From version to version" if of_versions else "From training to training"
    if number < 2:
        one = "One version was run" if of_versions else "Each method was trained once"
        another = "version" if of_versions else "training"
        return [
            Finding(title, (f"{one}. How much another {another} would differ was not measured.",))
        ]
    if of_versions:
        over = "versions, which give the class sizes to other classes"
        one_by_one, all_of_them = "Version by version", "versions"
    else:
        over = "trainings per method with different seeds"
        one_by_one, all_of_them = "Seed by seed", "seeds"
    lines = [
        f"All numbers are means over {number} {over}. {one_by_one}, mean difference \u00b1 its "
        f"standard error over the {all_of_them} (a difference within its standard error is "
        "undecided):"
    ]
    for pair, compared in results.get("comparisons", {}).items():
        parts = []
        names = list(_COMPARED)
        names += [
            (name, f"eKLD under {name.partition('.')[2].replace('_', ' ')} on the smallest third",
             1.0, "nats", 3, False)
            for name in compared
            if name.startswith("tail_ekld.")
        ]  # fmt: skip
        for name, spoken, factor, unit, digits, higher in names:
            values = compared.get(name)
            if not values or values.get("standard_error") is None:
                continue
            mean, error = factor * values["mean"], factor * values["standard_error"]
            verdict = "undecided"
            if values["larger_than_standard_error"]:
                verdict = "better" if (mean > 0) == higher else "worse"
            parts.append(f"{spoken} {mean:+.{digits}f} \u00b1 {error:.{digits}f} {unit}, {verdict}")
        if parts:
            method, _, base = pair.partition(" - ")
            lines.append(f"{method} against {base}: {'; '.join(parts)}.")
    return [Finding(title, tuple(lines))]


def write_report(
    results: Mapping[str, Any],
    path: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Writes the report of a finished experiment: the audit's, for its methods.

    Args:
        results: the content of `results.json`.
        path: of the HTML file.
        settings: for the last section.
        versions: the same.

    Returns:
        The path.

    Raises:
        InputError: `results` are not those of a finished experiment.
    """
    result = from_results(results, settings=settings, versions=versions)
    title = f"{', '.join(m.name for m in result.models)} on {result.data or 'these data'}"
    return write_html(result, path, title=title, notes=seed_findings(results))
