"""Argument checks shared by the optimizers."""

from __future__ import annotations

import math
from typing import Any

from keras_git.errors import InputError


def check_fraction(name: str, value: float) -> float:
    """Raises InputError unless 0 <= value < 1."""
    if not 0.0 <= value < 1.0:
        raise InputError(f"{name} is {value!r}; it must be at least 0 and below 1")
    return float(value)


def check_l2(value: float) -> float:
    """Raises InputError unless value is finite and not negative."""
    if not (math.isfinite(value) and value >= 0.0):
        raise InputError(f"l2 is {value!r}; it must be a finite number of at least 0")
    return float(value)


def check_no_decoupled_decay(options: dict[str, Any]) -> None:
    """Raises InputError for weight_decay: next to l2 it would silently mean something else."""
    if options.get("weight_decay"):
        raise InputError("weight_decay is decoupled in Keras; use l2 for decay in the gradient")
