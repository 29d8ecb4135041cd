"""How each method does on each class: eKLD against class size, accuracy class by class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from keras_git.errors import InputError
from keras_git.plots.figures import TEXT_COLOUR, drawable, method_style, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From this many different class sizes on, single classes scatter too much to be joined by a line.
MANY_SIZES = 16


def ekld_against_class_size(results: Mapping[str, Any], path: str | Path) -> Path:
    """Draw eKLD per class against the number of training images, one panel per transformation.

    The claim this picture is for (Zhou et al., 2022): eKLD rises as classes get smaller, and less
    so with GIT. Points are classes (mean over seeds). The line joins them; with 16 different sizes
    or more it is a running mean over neighbouring sizes, about an eighth of them wide. The band is
    one standard deviation over seeds around the line or, with one seed, the standard error over
    test images.

    Args:
        results: The content of `results.json`: `class_counts` (K integers) and, for each method,
            `methods.<method>.seeds.<seed>.invariance.<transformation>.ekld` (K floats, nats; a
            class without test images is NaN or None) and `ekld_standard_error`. `dataset`, if
            given, is named in the title; `repetitions` says what seeds stand for, if not seeds.
        path: Picture file; its ending names the format (`.png`, `.pdf`, `.svg`).

    Returns:
        The path written.

    Raises:
        InputError: No eKLD in `results`, a list that does not have one entry per class, or an
            unknown picture format.

    Reference:
        Zhou, A., Tajwar, F., Robey, A., Knowles, T., Pappas, G. J., Hassani, H., Finn, C.: "Do Deep
        Networks Transfer Invariances Across Classes?", ICLR 2022, https://arxiv.org/abs/2203.09739.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    class_counts = _class_counts(results)
    transformations: list[str] = []
    for method in results["methods"].values():
        for run in method.get("seeds", {}).values():
            transformations += [
                name for name in run.get("invariance", {}) if name not in transformations
            ]
    if not transformations:
        raise InputError(
            "these results hold no eKLD to draw: no method has an entry under "
            "seeds.<seed>.invariance"
        )

    columns = 2 if len(transformations) in (2, 4) else min(3, len(transformations))
    rows = -(-len(transformations) // columns)
    figure = Figure(
        figsize=(1.0 + 4.6 * columns, 0.9 + 3.5 * rows),
        layout=ConstrainedLayoutEngine(wspace=0.04, hspace=0.05),
    )
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(transformations) :]:
        panel.set_visible(False)
    several_seeds = False
    for transformation, axes in zip(transformations, panels.flat, strict=False):
        for index, (name, method) in enumerate(results["methods"].items()):
            measured = [
                run["invariance"][transformation]
                for run in method.get("seeds", {}).values()
                if transformation in run.get("invariance", {})
            ]
            if not measured:
                continue
            several_seeds = several_seeds or len(measured) > 1
            where = f"methods.{name}: eKLD of {transformation}"
            ekld = _per_class([entry["ekld"] for entry in measured], class_counts, where)
            error = None
            if len(measured) == 1 and "ekld_standard_error" in measured[0]:
                error = _per_class([measured[0]["ekld_standard_error"]], class_counts, where)[0]
            _draw_trend(axes, class_counts, ekld, error, name, index)
        _size_axis(axes, class_counts)
        axes.set_ylim(bottom=0)
        axes.set_title(transformation.replace("_", " "), fontsize=11, color=TEXT_COLOUR, loc="left")
        axes.set_ylabel("eKLD (nats)", fontsize=10, color=TEXT_COLOUR)
        plain(axes)
    panels.flat[0].legend(frameon=False, fontsize=9, labelcolor=TEXT_COLOUR)
    repetitions = results.get("repetitions", "seeds")
    band = (
        f"standard deviation over {repetitions}" if several_seeds else "standard error over images"
    )
    figure.suptitle(
        "Invariance by class size: lower is more invariant" + _dataset_line(results),
        fontsize=13,
        color=TEXT_COLOUR,
        x=0.01,
        ha="left",
    )
    figure.supxlabel(
        f"training images per class   (points: classes; band: \N{PLUS-MINUS SIGN} one {band})",
        fontsize=10,
        color=TEXT_COLOUR,
    )
    return save(figure, path)


def accuracy_per_class(results: Mapping[str, Any], path: str | Path) -> Path:
    """Draw test accuracy of every class, largest class first, above the class sizes.

    Lines are means over seeds, bands one standard deviation over seeds; the legend gives the
    balanced accuracy (mean over classes), again with its standard deviation over seeds. With 16
    classes or more the line is a running mean over neighbouring classes and the points are the
    classes.

    Args:
        results: The content of `results.json`: `class_counts` (K integers) and
            `methods.<method>.seeds.<seed>.per_class_accuracy` (K floats in 0..1; a class without
            test images is NaN or None).
        path: Picture file; its ending names the format (`.png`, `.pdf`, `.svg`).

    Returns:
        The path written.

    Raises:
        InputError: No accuracies in `results`, a list that does not have one entry per class, or
            an unknown picture format.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    class_counts = _class_counts(results)
    num_classes = len(class_counts)
    order = np.argsort(-class_counts, kind="stable")
    positions = np.arange(num_classes)
    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))

    drawn = False
    for index, (name, method) in enumerate(results["methods"].items()):
        runs = [
            run["per_class_accuracy"]
            for run in method.get("seeds", {}).values()
            if "per_class_accuracy" in run
        ]
        if not runs:
            continue
        drawn = True
        accuracy = _per_class(runs, class_counts, f"methods.{name}: per_class_accuracy")
        balanced = 100 * _mean(accuracy, axis=1)
        label = f"{name}: {np.mean(balanced):.1f}"
        if len(runs) > 1:
            label += f" \N{PLUS-MINUS SIGN} {np.std(balanced, ddof=1):.1f}"
        label += " %"
        accuracy = accuracy[:, order]
        line = _running_mean(accuracy, _window(num_classes))
        colour, marker = method_style(index)
        _draw_line(top, positions, line, None, label, colour, marker, with_markers=False)
        top.scatter(
            positions, _mean(accuracy, axis=0), s=16, color=colour, marker=marker, alpha=0.55, lw=0
        )
    if not drawn:
        raise InputError(
            "these results hold no accuracies to draw: no method has an entry "
            "seeds.<seed>.per_class_accuracy"
        )

    bottom.bar(positions, class_counts[order], width=0.85, color="#B8B8B8")
    bottom.set_yscale("log")
    bottom.set_ylim(bottom=0.6 * class_counts.min())  # the smallest class keeps a visible bar
    _plain_numbers(bottom.yaxis, class_counts)
    bottom.set_ylabel("training\nimages", fontsize=10, color=TEXT_COLOUR)
    bottom.set_xlabel("classes, largest first", fontsize=10, color=TEXT_COLOUR)
    bottom.set_xlim(-0.6, num_classes - 0.4)
    if num_classes <= 20:
        names = results.get("class_names") or [str(label) for label in range(num_classes)]
        shown = [drawable(str(names[label]), f"class {label}") for label in order]
        longest = max(map(len, shown))
        bottom.set_xticks(
            positions,
            shown,
            rotation=30 if longest > 3 else 0,
            ha="right" if longest > 3 else "center",
        )
    else:
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    top.set_ylim(-0.02, 1.02)
    top.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    top.set_ylabel("test accuracy", fontsize=10, color=TEXT_COLOUR)
    title = "Accuracy per class" + _dataset_line(results)
    top.set_title(title, fontsize=13, color=TEXT_COLOUR, loc="left")
    top.legend(
        title="balanced accuracy",
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        labelcolor=TEXT_COLOUR,
        loc="lower left",
    )
    for axes in (top, bottom):
        plain(axes)
        axes.grid(False, axis="x")
    return save(figure, path)


def _dataset_line(results: Mapping[str, Any]) -> str:
    """What the results were measured on, as a second line of a title."""
    name = drawable(str(results.get("dataset") or ""), "")
    return f"\n{name}" if name else ""


def _class_counts(results: Mapping[str, Any]) -> NDArray[np.int64]:
    if not results.get("methods") or not len(results.get("class_counts", ())):
        raise InputError(
            "these results cannot be drawn: they need class_counts and methods, as in results.json"
        )
    return np.asarray(results["class_counts"], dtype=np.int64)


def _per_class(
    values: list[Any], class_counts: NDArray[np.int64], where: str
) -> NDArray[np.float64]:
    """Stack lists over classes to (seeds, classes); None becomes NaN."""
    for entry in values:
        if len(entry) != len(class_counts):
            raise InputError(
                f"{where} has {len(entry)} entries, but there are {len(class_counts)} classes"
            )
    return np.asarray(values, dtype=np.float64)


def _mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean without NaN; NaN where nothing else is there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "Mean of empty slice" is what we want
        return np.nanmean(values, axis=axis)


def _window(length: int) -> int:
    """Odd width of the running mean over `length` neighbours; 1 leaves them as they are."""
    return 2 * (length // 16) + 1 if length >= MANY_SIZES else 1


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred mean over neighbours along the last axis, narrower (but centred) at the ends."""
    half = _half_widths(values.shape[-1], window)
    return np.stack(
        [_mean(values[..., i - h : i + h + 1], axis=-1) for i, h in enumerate(half)], axis=-1
    )


def _half_widths(length: int, window: int) -> NDArray[np.int64]:
    """How many neighbours on each side the running mean takes at each of `length` places."""
    places = np.arange(length)
    return np.minimum(window // 2, np.minimum(places, places[::-1]))


def _draw_trend(
    axes: Axes,
    class_counts: NDArray[np.int64],
    values: NDArray[np.float64],
    error: NDArray[np.float64] | None,
    label: str,
    index: int,
) -> None:
    """Points per class, and a line with a band over the different class sizes."""
    colour, marker = method_style(index)
    sizes = np.unique(class_counts)
    by_size = np.stack([_mean(values[:, class_counts == size], axis=1) for size in sizes], axis=1)
    window = _window(len(sizes))
    band = None
    if error is not None:
        # Classes of one size have independent test images: their mean's variance is the sum of
        # theirs over the squared number of them; the same again for neighbours in the window.
        variance = [
            np.nansum(error[class_counts == size] ** 2) / np.sum(class_counts == size) ** 2
            for size in sizes
        ]
        widths = 2 * _half_widths(len(sizes), window) + 1
        band = np.sqrt(_running_mean(np.asarray(variance), window) / widths)
    line = _running_mean(by_size, window)
    _draw_line(axes, sizes, line, band, label, colour, marker, with_markers=window == 1)
    if window > 1 or len(sizes) < len(class_counts):
        axes.scatter(
            class_counts, _mean(values, axis=0), s=16, color=colour, marker=marker, alpha=0.45, lw=0
        )


def _draw_line(
    axes: Axes,
    x: NDArray[np.int64],
    seeds: NDArray[np.float64],
    band: NDArray[np.float64] | None,
    label: str,
    colour: str,
    marker: str,
    *,
    with_markers: bool,
) -> None:
    """Mean over the first axis of `seeds`, with `band` or the deviation over seeds around it."""
    line = _mean(seeds, axis=0)
    if band is None and len(seeds) > 1:
        band = np.std(seeds, axis=0, ddof=1)
    if band is not None:
        # Neither eKLD nor accuracy can be negative.
        lower = np.maximum(line - band, 0)
        axes.fill_between(x, lower, line + band, color=colour, alpha=0.18, lw=0)
    axes.plot(
        x,
        line,
        color=colour,
        marker=marker,
        markevery=1 if with_markers or len(x) == 1 else [],  # the legend shows it in any case
        markersize=5,
        linewidth=2,
        label=label,
    )


def _size_axis(axes: Axes, class_counts: NDArray[np.int64]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(0.85 * class_counts.min(), 1.18 * class_counts.max())
    _plain_numbers(axes.xaxis, class_counts)


def _plain_numbers(axis: Any, class_counts: NDArray[np.int64]) -> None:
    """Label a logarithmic axis with 1, 10, 100; with 1, 2, 5, 10 where the range is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    decades = np.log10(class_counts.max() / class_counts.min())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.6 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
