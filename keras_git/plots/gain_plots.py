"""What an augmentation brings to each class, against the size of the class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_git.errors import InputError
from keras_git.plots.figures import TEXT_COLOUR, drawable, method_style, plain, save


def gain_against_class_size(results: Mapping[str, Any], ratio: str, path: str | Path) -> Path:
    """Draw the gain of accuracy of each class over no augmentation, one line per augmentation.

    Bars are one standard error over seeds. Classes of one size stand side by side, in their order.

    Args:
        results: content of `results.json` of `experiments.augmentation_parts`: `class_counts`,
            `class_names` and `gains`, whose entries hold `gain` (K floats, 0..1) and
            `standard_error` (K floats or None) for each part.
        ratio: key of `class_counts` and `gains`, such as "100".
        path: picture file; its ending names the format (`.png`, `.pdf`, `.svg`).

    Returns:
        The path written.

    Raises:
        InputError: no gain of that ratio, or an unknown picture format.
    """
    from matplotlib.figure import Figure

    found = results.get("gains", {}).get(ratio)
    if not found:
        raise InputError(f"these results hold no gains of the imbalance ratio {ratio} to draw")
    counts = np.asarray(results["class_counts"][ratio])
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    sizes_differ = len(np.unique(counts)) == len(counts)
    order = np.argsort(counts, kind="stable") if sizes_differ else np.arange(len(counts))
    base = counts[order].astype(float) if sizes_differ else np.arange(len(counts), dtype=float)
    for index, (part, entry) in enumerate(found.items()):
        colour, marker = method_style(index)
        aside = (index - (len(found) - 1) / 2) * 0.03
        place = base * 10**aside if sizes_differ else base + 4 * aside
        error = entry["standard_error"]
        axes.errorbar(
            place,
            100 * np.asarray(entry["gain"])[order],
            yerr=None if error is None else 100 * np.asarray(error)[order],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.2 if sizes_differ else 0,
            elinewidth=0.8,
            label=drawable(part, f"part {index + 1}"),
        )
    axes.axhline(0.0, color=TEXT_COLOUR, linewidth=0.8)
    axes.set_ylabel("gain of accuracy, percentage points", color=TEXT_COLOUR)
    if sizes_differ:
        axes.set_xscale("log")
        axes.set_xlabel("training images of the class", color=TEXT_COLOUR)
    else:
        names = [drawable(str(n), str(c)) for c, n in enumerate(results["class_names"])]
        axes.set_xticks(base, names, rotation=45, ha="right")
    plain(axes)
    axes.legend(frameon=False, fontsize=9)
    title = f"Gain over no crop, {results.get('dataset', '')}, imbalance ratio {ratio}"
    axes.set_title(drawable(title, "Gain over no crop"), color=TEXT_COLOUR, fontsize=11)
    return save(figure, path)
