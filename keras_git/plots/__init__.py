"""Pictures of an experiment's results and of what a generator does."""

from __future__ import annotations

from keras_git.plots.class_plots import accuracy_per_class, ekld_against_class_size
from keras_git.plots.style_grid import style_grid

__all__ = ["accuracy_per_class", "ekld_against_class_size", "style_grid"]
