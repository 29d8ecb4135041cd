"""Weights and margins that follow from the class sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_git.errors import InputError

_DEFAULT_BETA = 0.9999


def checked_counts(class_counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Class counts as a float64 vector.

    Args:
        class_counts: training images per class, `(C,)`, each 1 or more.

    Returns:
        float64 `(C,)`.

    Raises:
        InputError: not a vector, or a class without images.
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    if counts.ndim != 1 or counts.size == 0:
        raise InputError(f"class_counts has shape {counts.shape}; give one number per class")
    if not np.all(np.isfinite(counts)) or counts.min() < 1:
        index = int(np.argmin(np.where(np.isfinite(counts), counts, -np.inf)))
        raise InputError(
            f"class_counts[{index}] is {counts[index]:g}; every class needs at least one image"
        )
    return counts


def class_balanced_weights(
    class_counts: Sequence[int] | np.ndarray, beta: float = _DEFAULT_BETA
) -> np.ndarray:
    """Weights inverse to the effective number of images, `(1 - beta) / (1 - beta^n)`.

    Args:
        class_counts: training images per class, `(C,)`, each 1 or more.
        beta: in [0, 1); 0 gives ones, towards 1 the weights become proportional to 1 / n.

    Returns:
        float64 `(C,)`, rescaled to sum to C.

    Raises:
        InputError: `beta` out of range, an empty class.

    Reference: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
    equation 5.
    """
    counts = checked_counts(class_counts)
    if not 0 <= beta < 1:
        raise InputError(f"beta is {beta}; give a value of at least 0 and below 1")
    if beta == 0:
        return np.ones_like(counts)
    # expm1 keeps the digits that 1 - beta^n loses for small n
    weights = (1.0 - beta) / -np.expm1(counts * np.log(beta))
    return weights * (counts.size / weights.sum())


def inverse_frequency_weights(
    class_counts: Sequence[int] | np.ndarray, power: float = 1.0
) -> np.ndarray:
    """Weights proportional to `n^-power`.

    Args:
        class_counts: training images per class, `(C,)`, each 1 or more.
        power: finite; 0 gives ones, 1 the inverse class frequency, 1/2 its square root.

    Returns:
        float64 `(C,)`, rescaled to sum to C.

    Raises:
        InputError: `power` not finite, an empty class.

    Reference: Cui et al., CVPR 2019, section 2, on what others weighted by.
    """
    counts = checked_counts(class_counts)
    if not np.isfinite(power):
        raise InputError(f"power is {power}; give a finite number")
    logarithms = -power * np.log(counts)
    # relative to the largest: a large power must not overflow
    weights = np.exp(logarithms - logarithms.max())
    return weights * (counts.size / weights.sum())


def ldam_margins(class_counts: Sequence[int] | np.ndarray, max_margin: float = 0.5) -> np.ndarray:
    """Label-distribution-aware margins, proportional to `n^(-1/4)`.

    Args:
        class_counts: training images per class, `(C,)`, each 1 or more.
        max_margin: margin of the rarest class, in units of the cosine, above 0.

    Returns:
        float64 `(C,)`, the largest equal to `max_margin`.

    Raises:
        InputError: `max_margin` not above 0, an empty class.

    Reference: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin
    Loss", NeurIPS 2019, equation 12.
    """
    if not max_margin > 0:
        raise InputError(f"max_margin is {max_margin}; give a value above 0")
    margins = checked_counts(class_counts) ** -0.25
    return margins * (max_margin / margins.max())


def deferred_reweighting(
    class_counts: Sequence[int] | np.ndarray, epoch: int, beta: float = _DEFAULT_BETA
) -> Callable[[int], np.ndarray]:
    """Deferred re-weighting as a schedule: ones first, class-balanced weights from an epoch on.

    Hand it to `keras_git.training.Classifier(network, class_weights=schedule)`. In stock Keras,
    `loss.with_class_weights(schedule(epoch))` needs one `compile` per phase (a compiled training
    function keeps the weights it was compiled with).

    Args:
        class_counts: training images per class, `(C,)`, each 1 or more.
        epoch: the first epoch (from 0) with class-balanced weights, 0 or more.
        beta: of `class_balanced_weights`.

    Returns:
        `schedule(epoch)` giving float64 weights `(C,)`.

    Raises:
        InputError: a negative epoch, `beta` out of range, an empty class.

    Reference: Cao et al., NeurIPS 2019, algorithm 1 (DRW).
    """
    if epoch < 0:
        raise InputError(f"the epoch of re-weighting is {epoch}; give 0 or more")
    balanced = class_balanced_weights(class_counts, beta)

    def schedule(current_epoch: int) -> np.ndarray:
        return balanced.copy() if current_epoch >= epoch else np.ones_like(balanced)

    return schedule


def checked_weights(class_weights: Any) -> np.ndarray | None:
    """Class weights as a float64 vector, or None.

    Raises:
        InputError: not a vector, negative or not finite, all zero.
    """
    if class_weights is None:
        return None
    weights = np.asarray(class_weights, dtype=np.float64)
    if weights.ndim != 1 or weights.size == 0:
        raise InputError(f"class_weights has shape {weights.shape}; give one number per class")
    if not np.all(np.isfinite(weights)) or weights.min() < 0 or weights.sum() <= 0:
        raise InputError("class_weights must be finite, 0 or more, and not all 0")
    return weights
