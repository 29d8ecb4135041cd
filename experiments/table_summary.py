"""From the cells of a results table to the content of `table.json`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import keras_git as kg
from experiments.cells import Cell, Group, Matrix, entry
from experiments.published import (
    compare,
    context,
    find,
    has_values,
    setting_differences,
    unusual_settings,
)
from experiments.results_folder import FORMAT_VERSION
from experiments.suites import Suite
from experiments.summary import SCALARS, thirds
from keras_git.errors import InputError
from keras_git.recipes import Recipe

# Cells of one dataset and imbalance ratio were trained and measured on the same images.
_SAME_DATA = ("content_hash", "test_content_hash", "invariance_content_hash")
_BASELINE = "erm"


def collect(
    matrix: Matrix,
    suite: Suite,
    groups: Sequence[Group],
    planned: Sequence[Cell],
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of `table.json`: everything planned and everything there is.

    Args:
        matrix: settings, folders and commands of the cells.
        suite: for the page.
        groups: the tables, in order.
        planned: cells of the call; those that are not there are listed as missing.
        overrides: as given on the command line, for the page.

    Raises:
        InputError: a cell of other settings, or cells of one table that have other data.
    """
    versions: dict[str, set[str]] = {}
    revisions: set[str] = set()
    tables = []
    for group in groups:
        cells = [cell for cell in planned if cell.group == group]
        cells += [cell for cell in matrix.found([group]) if cell not in cells]
        tables.append(_table(matrix, group, cells, versions, revisions))
    config = matrix.base
    known = [t for t in tables if has_values(t["dataset"])]
    return {
        "format_version": FORMAT_VERSION,
        "suite": suite.name,
        "description": suite.description,
        "overrides": list(overrides),
        "has_published_values": bool(known),
        "unusual_settings": unusual_settings(config) if known else [],
        "settings": matrix.settings(),
        "versions": {name: sorted(values) for name, values in sorted(versions.items())},
        "git_revisions": sorted(revisions),
        "tables": tables,
    }


def _table(
    matrix: Matrix,
    group: Group,
    cells: Sequence[Cell],
    versions: dict[str, set[str]],
    revisions: set[str],
) -> dict[str, Any]:
    states = {cell: matrix.state(cell) for cell in cells}
    made_of: dict[str, dict[str, Cell]] = {name: {} for name in _SAME_DATA}
    generators: set[str] = set()
    first: Mapping[str, Any] = {}
    quality = None
    for cell, (state, results) in states.items():
        if state == "missing":
            continue
        stored = matrix.folder(cell).read_config()
        for name, found in made_of.items():
            found.setdefault(str(stored.get(name)), cell)
            if len(found) > 1:
                one, other = found.values()
                raise InputError(
                    f"the cells {one} and {other} are of other data ({name} differs): remove the "
                    "folder of the wrong one"
                )
        for name, value in stored["versions"].items():
            versions.setdefault(name, set()).add(str(value))
        if stored.get("git_revision"):
            revisions.add(stored["git_revision"])
        if stored["settings"].get("generator"):
            generators.add(stored["settings"]["generator"])
            quality = quality or results.get("generator")
        first = first or results
    methods = list(dict.fromkeys(cell.method for cell in cells))
    rows = [_row(matrix, group, m, {c: states[c] for c in cells if c.method == m}) for m in methods]
    baseline = next((row for row in rows if row["method"] == _BASELINE), None)
    for row in rows:
        row["to_erm"] = None
        if baseline is not None and row is not baseline:
            row["to_erm"] = paired(_errors(row), _errors(baseline))
    return {
        "dataset": group.data,
        "imbalance_ratio": group.imbalance_ratio,
        "images": first.get("dataset"),
        "class_counts": first.get("class_counts"),
        "class_names": first.get("class_names"),
        **{name: next(iter(found), None) for name, found in made_of.items()},
        "generator": quality,
        "generators": sorted(generators),
        "rows": rows,
        "context": [value.as_dict() for value in context(group.data, group.imbalance_ratio)],
        "missing": [str(c) for c, (state, _) in states.items() if state == "missing"],
        "failed": {str(c): r["failed"] for c, (s, r) in states.items() if s == "failed"},
    }


def _row(
    matrix: Matrix, group: Group, method: str, states: Mapping[Cell, tuple[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    seeds = {}
    for cell, (state, results) in sorted(states.items(), key=lambda item: item[0].seed):
        if state == "finished":
            seeds[str(cell.seed)] = {
                **seed_values(entry(results, cell), results["class_counts"]),
                "folder": cell.folder.as_posix(),
                "command": matrix.command(cell),
            }
    names = list(next(iter(seeds.values()))["values"]) if seeds else []
    columns = {
        n: [v for s in seeds.values() if (v := s["values"].get(n)) is not None] for n in names
    }
    some = next(iter(states))
    config = matrix.config(some)
    value = find(method, group.data, group.imbalance_ratio)
    differences = setting_differences(value, config) if value else []
    wanted = sorted(cell.seed for cell in states)
    return {
        "method": method,
        "n": len(seeds),
        "mean": {n: statistics.fmean(v) if v else None for n, v in columns.items()},
        "std": {n: statistics.stdev(v) if len(v) > 1 else None for n, v in columns.items()},
        "published": value.as_dict() if value else None,
        "setting_differences": differences,
        "comparison": compare([s["values"]["error"] for s in seeds.values()], value, differences),
        "network": network_name(config),
        "parameters": next((s["parameters"] for s in seeds.values()), None),
        "epochs": _epochs(config, kg.recipes.get(method)),
        "augmentation": _augmentation(config, kg.recipes.get(method)),
        "batch_size": config.batch_size,
        "command": matrix.row_command(some, wanted),
        "per_class_accuracy": _mean_per_class([s["per_class_accuracy"] for s in seeds.values()]),
        "failed": [c.seed for c, (state, _) in states.items() if state == "failed"],
        "missing": [c.seed for c, (state, _) in states.items() if state == "missing"],
        "seeds": seeds,
    }


def _epochs(config: Any, recipe: Recipe) -> str:
    """Those of the training, and those of a second stage."""
    second = f" + {config.second_stage_epochs}" if recipe.second_stage is not None else ""
    return f"{config.epochs}{second}"


def _augmentation(config: Any, recipe: Recipe) -> str:
    """What images go through: that of all, and what the parts of the recipe add."""
    added = [
        name
        for name in recipe.name.split("+")
        if any(
            getattr(kg.recipes.BOOK[name], part)
            for part in ("augmentation", "cutout", "mixing", "generates")
        )
    ]
    return ", ".join([*config.augmentation.split("_"), *added])


def network_name(config: Any) -> str:
    """The classifier in words."""
    names = {"resnet": "ResNet", "wide_resnet": "wide ResNet", "four_conv": "FourConv"}
    name = names[config.architecture]
    if config.architecture != "four_conv":
        name += f"-{config.depth}"
    if config.architecture == "resnet":
        name = f"thin {name}" if config.width in (None, 16) else f"{name}, width {config.width}"
    return name + (", whitened" if config.whitening else "")


def seed_values(measured: Mapping[str, Any], class_counts: Sequence[int]) -> dict[str, Any]:
    """The numbers of one cell.

    Args:
        measured: its entry in `results.json`.
        class_counts: training images per class (C,).

    Returns:
        `values`: what is averaged over seeds: `error` in %, accuracies and calibration 0..1,
        `ekld.<transformation>` and `tail_ekld.<transformation>` in nats (means over the classes
        and over the smallest third), `minutes` of training; and what is not.
    """
    values = {"error": 100.0 * (1.0 - measured["test_accuracy"])}
    values |= {name: measured[name] for name in SCALARS}
    tail = thirds(class_counts)["tail"]
    for transform, result in measured["invariance"].items():
        ekld = np.array([np.nan if v is None else v for v in result["ekld"]], dtype=np.float64)
        for name, some in ((f"ekld.{transform}", ekld), (f"tail_ekld.{transform}", ekld[tail])):
            seen = some[np.isfinite(some)]
            values[name] = float(seen.mean()) if len(seen) else None
    values["minutes"] = measured["seconds"]["training"] / 60.0
    return {
        "values": values,
        "parameters": measured["parameters"],
        "per_class_accuracy": measured["per_class_accuracy"],
    }


def _mean_per_class(accuracies: Sequence[Sequence[float | None]]) -> list[float | None] | None:
    if not accuracies:
        return None
    table = np.asarray(accuracies, dtype=np.float64)  # None becomes NaN
    return [float(v) if np.isfinite(v) else None for v in table.mean(axis=0)]


def _errors(row: Mapping[str, Any]) -> dict[str, float]:
    return {seed: found["values"]["error"] for seed, found in row["seeds"].items()}


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, Any] | None:
    """Difference seed by seed, of the seeds that both have.

    Args:
        ours: error of each seed, %.
        theirs: the same of the method that is compared with.

    Returns:
        `n`, `mean` in points, and its `standard_error`, None for one seed; None without any.
    """
    common = [seed for seed in ours if seed in theirs]
    if not common:
        return None
    differences = [ours[seed] - theirs[seed] for seed in common]
    error = statistics.stdev(differences) / len(common) ** 0.5 if len(common) > 1 else None
    return {"n": len(common), "mean": statistics.fmean(differences), "standard_error": error}
