"""Generative Invariance Transfer for Keras 3.

Measures, repairs and explains what a classifier learned of the nuisances in long-tailed data.
Importing it loads the Keras backend in use and no other framework.
"""

from __future__ import annotations

from keras_git import (
    analysis,
    auditing,
    augmentation,
    data,
    distribution,
    export,
    layers,
    losses,
    metrics,
    models,
    optimizers,
    plots,
    recipes,
    report,
    training,
    transforms,
)
from keras_git.auditing import audit
from keras_git.errors import InputError

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "analysis",
    "audit",
    "auditing",
    "augmentation",
    "data",
    "distribution",
    "export",
    "layers",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "plots",
    "recipes",
    "report",
    "training",
    "transforms",
]
