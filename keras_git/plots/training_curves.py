"""How networks learn: loss against training time, accuracy against the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_git.errors import InputError
from keras_git.plots.figures import TEXT_COLOUR, method_style, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = Mapping[str, Any]


def loss_curves(results: Mapping[str, Any], path: str | Path) -> Path:
    """Draw the training loss against seconds, a panel per imbalance ratio and batch size.

    One line per network, its learning rate the one with the lowest final loss there; lighter lines
    are the other learning rates. With several seeds a line is their mean.

    Args:
        results: `runs`, a mapping to entries with `imbalance_ratio`, `network`, `batch_size`,
            `learning_rate`, `seed`, `diverged` and `history`, a list of `{"loss", "seconds"}`.
        path: Picture file; its ending names the format (`.png`, `.pdf`, `.svg`).

    Returns:
        The path written.

    Raises:
        InputError: No runs, or an unknown picture format.
    """
    figure, panels, networks = _panels(results, "Training loss")
    for axes, runs in panels:
        for name, index in networks.items():
            by_rate = _by_rate(runs, name)
            if not by_rate:
                continue
            best = min(by_rate, key=lambda rate: _mean_losses(by_rate[rate])[-1])
            colour, marker = method_style(index)
            for rate, group in by_rate.items():
                losses = _mean_losses(group)
                seconds = np.cumsum(np.mean([_column(run, "seconds") for run in group], axis=0))
                chosen = rate == best
                axes.plot(
                    seconds,
                    losses,
                    color=colour,
                    linewidth=2.0 if chosen else 0.8,
                    alpha=1.0 if chosen else 0.35,
                    marker=marker if chosen else None,
                    markersize=4,
                    label=f"{name}, rate {rate:g}" if chosen else None,
                )
        axes.set_xlabel("seconds of training", fontsize=10, color=TEXT_COLOUR)
        axes.set_ylabel("training loss", fontsize=10, color=TEXT_COLOUR)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, labelcolor=TEXT_COLOUR)
        plain(axes)
    return save(figure, path)


def accuracy_by_learning_rate(results: Mapping[str, Any], path: str | Path) -> Path:
    """Draw balanced accuracy against the learning rate, a panel per imbalance ratio and batch size.

    Args:
        results: As in `loss_curves`, entries that did not diverge with `balanced_accuracy`; those
            that did are drawn at 0.
        path: Picture file; its ending names the format (`.png`, `.pdf`, `.svg`).

    Returns:
        The path written.

    Raises:
        InputError: No runs, or an unknown picture format.
    """
    figure, panels, networks = _panels(results, "Accuracy after training")
    for axes, runs in panels:
        for name, index in networks.items():
            by_rate = _by_rate(runs, name, diverged=True)
            rates = sorted(by_rate)
            values = [
                [100 * (0.0 if run["diverged"] else run["balanced_accuracy"]) for run in group]
                for group in (by_rate[rate] for rate in rates)
            ]
            colour, marker = method_style(index)
            means = [float(np.mean(group)) for group in values]
            axes.plot(rates, means, color=colour, marker=marker, linewidth=2.0, label=name)
            if any(len(group) > 1 for group in values):
                spread = [float(np.std(group, ddof=1)) if len(group) > 1 else 0 for group in values]
                low, high = np.subtract(means, spread), np.add(means, spread)
                axes.fill_between(rates, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate", fontsize=10, color=TEXT_COLOUR)
        axes.set_ylabel("balanced test accuracy, %", fontsize=10, color=TEXT_COLOUR)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9, labelcolor=TEXT_COLOUR)
        plain(axes)
    return save(figure, path)


def _panels(
    results: Mapping[str, Any], title: str
) -> tuple[Figure, list[tuple[Axes, list[Run]]], dict[str, int]]:
    """An empty figure, its panels with their runs, and the number of each network."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    runs: list[Run] = list(results.get("runs", {}).values())
    if not runs:
        raise InputError("these results hold no runs to draw")
    ratios = sorted({run["imbalance_ratio"] for run in runs})
    sizes = sorted({run["batch_size"] for run in runs})
    networks = {name: i for i, name in enumerate(dict.fromkeys(run["network"] for run in runs))}
    figure = Figure(
        figsize=(1.0 + 4.2 * len(sizes), 0.8 + 3.3 * len(ratios)),
        layout=ConstrainedLayoutEngine(wspace=0.04, hspace=0.05),
    )
    found = []
    grid = figure.subplots(len(ratios), len(sizes), squeeze=False)
    for row, ratio in zip(grid, ratios, strict=True):
        for axes, size in zip(row, sizes, strict=True):
            data = "balanced" if ratio == 1 else f"imbalance ratio {ratio:g}"
            axes.set_title(f"{data}, batch {size}", fontsize=11, color=TEXT_COLOUR, loc="left")
            own = [r for r in runs if r["imbalance_ratio"] == ratio and r["batch_size"] == size]
            found.append((axes, own))
    dataset = results.get("dataset")
    figure.suptitle(
        title + (f" on {dataset}" if dataset else ""),
        fontsize=13,
        color=TEXT_COLOUR,
        x=0.01,
        ha="left",
    )
    return figure, found, networks


def _by_rate(runs: Sequence[Run], name: str, diverged: bool = False) -> dict[float, list[Run]]:
    """The runs of a network by learning rate, ascending."""
    found: dict[float, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run["learning_rate"]):
        if run["network"] == name and (diverged or not run["diverged"]):
            found.setdefault(run["learning_rate"], []).append(run)
    return found


def _column(run: Run, name: str) -> list[float]:
    return [float(row[name]) for row in run["history"]]


def _mean_losses(group: Sequence[Run]) -> np.ndarray:
    return np.mean([_column(run, "loss") for run in group], axis=0)
