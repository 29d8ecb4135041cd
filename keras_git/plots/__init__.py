"""Pictures of an experiment's results and of what a generator does."""

from __future__ import annotations

from keras_git.plots.class_plots import accuracy_per_class, ekld_against_class_size
from keras_git.plots.factor_plots import (
    factor_bars,
    factor_heat_map,
    factor_ridge,
    gap_against_factor,
    invariance_bands,
)
from keras_git.plots.gain_plots import gain_against_class_size
from keras_git.plots.style_grid import style_grid
from keras_git.plots.training_curves import accuracy_by_learning_rate, loss_curves

__all__ = [
    "accuracy_by_learning_rate",
    "accuracy_per_class",
    "ekld_against_class_size",
    "factor_bars",
    "factor_heat_map",
    "factor_ridge",
    "gap_against_factor",
    "invariance_bands",
    "gain_against_class_size",
    "loss_curves",
    "style_grid",
]
