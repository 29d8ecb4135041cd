"""Losses: classification with long tails, and the adversarial objectives of the generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_git.errors import InputError
from keras_git.losses.adversarial import (
    ADVERSARIAL_LOSSES,
    discriminator_loss,
    generator_loss,
)
from keras_git.losses.classification import (
    LDAM,
    VS,
    BalancedSoftmax,
    ClassificationLoss,
    CrossEntropy,
    Focal,
    LogitAdjustment,
)
from keras_git.losses.weights import (
    class_balanced_weights,
    deferred_reweighting,
    inverse_frequency_weights,
    ldam_margins,
)

NAMES = (
    "cross_entropy",
    "focal",
    "ldam",
    "class_balanced",
    "balanced_softmax",
    "logit_adjustment",
    "vs",
)


def get(
    name: str, class_counts: Sequence[int] | np.ndarray | None = None, **options: Any
) -> ClassificationLoss:
    """A loss by name.

    Args:
        name: one of `NAMES`; "class_balanced" is the cross-entropy with
            `class_balanced_weights(class_counts, beta)`.
        class_counts: training images per class, `(C,)`; needed by all but "cross_entropy" and
            "focal".
        **options: further arguments of the loss (and `beta` for "class_balanced").

    Returns:
        The loss.

    Raises:
        InputError: unknown name or option, counts missing or with an empty class.
    """
    if name not in NAMES:
        raise InputError(f"loss {name!r} is unknown; use one of {', '.join(NAMES)}")
    try:
        if name == "cross_entropy":
            return CrossEntropy(**options)
        if name == "focal":
            return Focal(**options)
        if class_counts is None:
            raise InputError(f"loss {name!r} needs class_counts")
        if name == "class_balanced":
            beta = options.pop("beta", 0.9999)
            weights = class_balanced_weights(class_counts, beta)
            return CrossEntropy(weights, **{"name": name, **options})
        if name == "ldam":
            return LDAM(class_counts, **options)
        if name == "balanced_softmax":
            return BalancedSoftmax(class_counts, **options)
        if name == "vs":
            return VS(class_counts, **options)
        return LogitAdjustment(class_counts, **options)
    except TypeError as error:
        raise InputError(f"loss {name!r}: {error}") from error


__all__ = [
    "ADVERSARIAL_LOSSES",
    "LDAM",
    "NAMES",
    "VS",
    "BalancedSoftmax",
    "ClassificationLoss",
    "CrossEntropy",
    "Focal",
    "LogitAdjustment",
    "class_balanced_weights",
    "deferred_reweighting",
    "discriminator_loss",
    "generator_loss",
    "get",
    "inverse_frequency_weights",
    "ldam_margins",
]
