"""Factors of variation, invariance against magnitude, and the two against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_git.errors import InputError
from keras_git.plots.figures import (
    COLOURS,
    GRID_COLOUR,
    TEXT_COLOUR,
    drawable,
    method_style,
    plain,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from keras_git.analysis import FactorTable, LineUpResult

# False discovery rate below which a cell has a dot
_FOUND = 0.05


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine())


def _done(figure: Figure, path: str | Path | None) -> Any:
    return figure if path is None else save(figure, path)


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, fontsize=12, color=TEXT_COLOUR, x=0.01, ha="left")


def _label(transform: str, magnitude: float) -> str:
    text = (
        transform.replace(" with magnitude ", " ")
        .replace(", sign -", " \u2212")
        .replace(", sign +", " +")
    )
    if math.isfinite(magnitude) and " with magnitude" not in transform:
        text = f"{text} {magnitude:g}"
    return drawable(text, "transformation")


def factor_heat_map(
    table: FactorTable, path: str | Path | None = None, *, column: str = "", most: int = 60
) -> Any:
    """Draw classes by transformations, coloured by the score, a dot where q is below 0.05.

    Args:
        table: Factors of variation.
        path: Picture file; None to get the Matplotlib figure.
        column: What to draw; the default is net gain, or gain where there is no control.
        most: Most transformations, those with the largest absolute means.

    Returns:
        The path written, or the figure.

    Raises:
        InputError: An unknown column, no numbers, or an unknown picture format.
    """
    if not column:
        column = "net_gain" if np.isfinite(table["net_gain"]).any() else "gain"
    if column not in table.COLUMNS or column in table.TEXTS:
        raise InputError(f"column is {column!r}; use one of {', '.join(table.COLUMNS[4:])}")
    values, q = table.matrix(column), table.matrix("q_value")
    if not np.isfinite(values).any():
        raise InputError(f"the table has no numbers in {column!r}")
    with np.errstate(invalid="ignore"):
        size = np.abs(np.nan_to_num(values)).mean(axis=0)
    chosen = np.sort(np.argsort(-size, kind="stable")[:most])
    values, q = values[:, chosen], q[:, chosen]
    labels = [_label(*table.candidates[index]) for index in chosen]
    names = [drawable(name, f"class {i}") for i, name in enumerate(table.class_names)]
    figure = _figure(2.2 + 0.24 * len(labels), 1.9 + 0.27 * len(names))
    axes = figure.subplots()
    middle = 0.5 if column == "share" else 0.0
    high = float(np.nanmax(np.abs(values - middle))) or 1.0
    drawn = axes.imshow(
        values, cmap="RdBu_r", vmin=middle - high, vmax=middle + high, aspect="auto"
    )
    rows, columns = np.nonzero(q < _FOUND)
    axes.scatter(columns, rows, s=9, color="black", linewidths=0)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7, color=TEXT_COLOUR)
    axes.set_yticks(range(len(names)), names, fontsize=8, color=TEXT_COLOUR)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.03, pad=0.01)
    bar.set_label(column.replace("_", " "), fontsize=9, color=TEXT_COLOUR)
    bar.ax.tick_params(labelsize=8, colors=TEXT_COLOUR)
    _title(figure, "Which transformations make images of a class more alike (dot: q < 0.05)")
    return _done(figure, path)


def factor_bars(table: FactorTable, path: str | Path | None = None, *, k: int = 5) -> Any:
    """Draw the best transformations of each class with their confidence intervals.

    Args:
        table: Factors of variation.
        path: Picture file; None to get the Matplotlib figure.
        k: Transformations per class.

    Returns:
        The path written, or the figure.

    Raises:
        InputError: No numbers, or an unknown picture format.
    """
    best = table.top(k)
    if not best:
        raise InputError("the table has no transformation to draw")
    net = math.isfinite(best[0]["net_gain"])
    value, low, high = ("net_gain", "net_lo", "net_hi") if net else ("gain", "gain_lo", "gain_hi")
    labels = list(dict.fromkeys(row["class_id"] for row in best))
    columns = min(5, len(labels))
    lines = math.ceil(len(labels) / columns)
    figure = _figure(3.1 * columns, 0.6 + lines * (0.7 + 0.22 * k))
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for axes in grid.ravel()[len(labels) :]:
        axes.set_visible(False)
    for place, (axes, label) in enumerate(zip(grid.ravel(), labels, strict=False)):
        own = [row for row in best if row["class_id"] == label]
        values = np.array([row[value] for row in own])
        spread = np.array([[r[value] - r[low], r[high] - r[value]] for r in own]).T
        spread = np.nan_to_num(spread).clip(min=0)
        axes.barh(range(len(own)), values, color=COLOURS[0], height=0.65, alpha=0.85)
        axes.errorbar(
            values, range(len(own)), xerr=spread, fmt="none", ecolor=TEXT_COLOUR, linewidth=1
        )
        names = [_label(row["transform"], row["magnitude"]) for row in own]
        axes.set_yticks(range(len(own)), names)
        axes.invert_yaxis()
        name = drawable(str(own[0]["class_name"]), f"class {place}")
        axes.set_title(name, fontsize=10, color=TEXT_COLOUR, loc="left")
        plain(axes)
        axes.tick_params(labelsize=7)
        axes.grid(False, axis="y")
        axes.axvline(0, color="#AAAAAA", linewidth=0.8)
    figure.supxlabel(value.replace("_", " "), fontsize=9, color=TEXT_COLOUR)
    _title(figure, "Best transformations of each class")
    return _done(figure, path)


def factor_ridge(table: FactorTable, path: str | Path | None = None) -> Any:
    """Draw the spread of the scores of all classes, one line for each operation.

    Args:
        table: Factors of variation.
        path: Picture file; None to get the Matplotlib figure.

    Returns:
        The path written, or the figure.

    Raises:
        InputError: No numbers, or an unknown picture format.
    """
    groups: dict[str, list[float]] = {}
    for row in table.rows:
        score = table.score_of(row)
        if math.isfinite(score):
            groups.setdefault(table.operation(row["transform"]), []).append(score)
    if not groups:
        raise InputError("the table has no numbers to draw")
    order = sorted(groups, key=lambda name: float(np.median(groups[name])), reverse=True)
    every = np.concatenate([groups[name] for name in order])
    low, high = float(every.min()), float(every.max())
    margin = 0.1 * (high - low) or 0.01
    places = np.linspace(low - margin, high + margin, 200)
    width = max((high - low) / 30, 1e-6)
    figure = _figure(7.0, 1.0 + 0.38 * len(order))
    axes = figure.subplots()
    for place, name in enumerate(order):
        values = np.array(groups[name])
        heights = np.exp(-(((places[:, None] - values) / width) ** 2) / 2).sum(axis=1)
        heights = 0.9 * heights / heights.max()
        base = -place
        axes.fill_between(places, base, base + heights, color=COLOURS[0], alpha=0.35, linewidth=0)
        axes.plot(places, base + heights, color=COLOURS[0], linewidth=1)
    axes.set_yticks([-i for i in range(len(order))], [drawable(n, "operation") for n in order])
    plain(axes)
    axes.axvline(0, color="#AAAAAA", linewidth=0.8)
    axes.set_xlabel("score of each class and magnitude", fontsize=9, color=TEXT_COLOUR)
    _title(figure, "Factors over all classes")
    return _done(figure, path)


def invariance_bands(
    table: Any, path: str | Path | None = None, *, transforms: Sequence[str] | None = None
) -> Any:
    """Draw invariance (or equivariance) against magnitude, a panel for each transformation.

    For each model a line with the confidence interval as a dark band and, where the table has
    them, the quartiles of single images as a light one. Crosses mark magnitudes that leave less
    than a fifth of the image visible.

    Args:
        table: Of `measure_invariance`, `measure_equivariance` or `compare`.
        path: Picture file; None to get the Matplotlib figure.
        transforms: The transformations to draw; all by default.

    Returns:
        The path written, or the figure.

    Raises:
        InputError: Nothing to draw, or an unknown picture format.
    """
    value = "invariance" if "invariance" in table.COLUMNS else "equivariance"
    rows = [row for row in table.rows if row.get("class_id", -1) == -1]
    lines = list(dict.fromkeys((row["model"], row["layer"]) for row in rows))
    several = len({layer for _, layer in lines}) > 1
    names = list(dict.fromkeys(row["transform"] for row in rows))
    if transforms is not None:
        names = [name for name in names if name in set(transforms)]
    if not names:
        raise InputError("the table has no transformation to draw")
    columns = min(4, len(names))
    height = math.ceil(len(names) / columns)
    figure = _figure(0.6 + 3.0 * columns, 0.9 + 2.3 * height)
    grid = figure.subplots(height, columns, squeeze=False, sharey=True)
    for axes in grid.ravel()[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.ravel(), names, strict=False):
        _bands(axes, [row for row in rows if row["transform"] == name], lines, value, several)
        axes.set_title(drawable(name, "transformation"), fontsize=10, color=TEXT_COLOUR, loc="left")
    grid.ravel()[0].legend(frameon=False, fontsize=8, labelcolor=TEXT_COLOUR)
    figure.supylabel(value, fontsize=10, color=TEXT_COLOUR)
    _title(figure, f"{value.capitalize()} against magnitude")
    return _done(figure, path)


def _bands(
    axes: Axes,
    rows: Sequence[Any],
    lines: Sequence[tuple[str, str]],
    value: str,
    several: bool,
) -> None:
    for index, (model, layer) in enumerate(lines):
        own = [row for row in rows if row["model"] == model and row["layer"] == layer]
        known = all(math.isfinite(row["magnitude"]) for row in own)
        monotone = known and all(
            a["magnitude"] < b["magnitude"] for a, b in zip(own, own[1:], strict=False)
        )
        if known and not monotone and not any(row["index"] != i for i, row in enumerate(own)):
            places = np.array([row["index"] for row in own], float)
        else:
            places = np.array(
                [row["magnitude"] if known else float(i) for i, row in enumerate(own)]
            )
        order = np.argsort(places, kind="stable")
        places, own = places[order], [own[i] for i in order]
        colour, marker = method_style(index)

        def column(name: str, own: Sequence[Any] = own) -> np.ndarray:
            return np.array([row.get(name, math.nan) for row in own], float)

        label = f"{model}, {layer}" if several else model
        middle = column(value)
        axes.plot(
            places,
            middle,
            color=colour,
            marker=marker,
            markersize=3.5,
            linewidth=1.6,
            label=drawable(label, f"model {index}"),
        )
        axes.fill_between(places, column("lo"), column("hi"), color=colour, alpha=0.3, linewidth=0)
        quartiles = column("q25"), column("q75")
        if np.isfinite(quartiles[0]).any():
            axes.fill_between(places, *quartiles, color=colour, alpha=0.1, linewidth=0)
        hidden = column("visible_fraction") < 0.2
        if index == 0 and hidden.any():
            axes.scatter(
                places[hidden], middle[hidden], marker="x", s=30, color="#777777", zorder=3
            )
    plain(axes)
    axes.axhline(0, color="#AAAAAA", linewidth=0.8)
    axes.set_ylim(-0.55, 1.05)


def gap_against_factor(result: LineUpResult, path: str | Path | None = None) -> Any:
    """Draw the gain in invariance against the factor, a point for each operation.

    Args:
        result: Of `lines_up`.
        path: Picture file; None to get the Matplotlib figure.

    Returns:
        The path written, or the figure.

    Raises:
        InputError: An unknown picture format.
    """
    figure = _figure(6.0, 4.6)
    axes = figure.subplots()
    axes.axhline(0, color=GRID_COLOUR, linewidth=1)
    axes.axvline(0, color=GRID_COLOUR, linewidth=1)
    for row in result.rows:
        axes.scatter(row["factor"], row["gap"], s=28, color=COLOURS[0], zorder=3)
        axes.annotate(
            drawable(str(row["transform"]), "operation"),
            (row["factor"], row["gap"]),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8,
            color=TEXT_COLOUR,
        )
    plain(axes)
    axes.set_xlabel("factor of variation: mean score over classes", fontsize=9, color=TEXT_COLOUR)
    axes.set_ylabel("invariance, trained less reference", fontsize=9, color=TEXT_COLOUR)
    _title(figure, f"rho = {result.rho:+.2f}, p = {result.p:.3f}, {len(result)} transformations")
    return _done(figure, path)
