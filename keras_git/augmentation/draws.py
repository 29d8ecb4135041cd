"""Random draws of a training step, one per image, on the device."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy import special

from keras_git import backend

_POINTS = 2048


def uniform(seed: Any, number: Any, *shape: int) -> Any:
    """float32 draws `(number, *shape)` from U[0, 1); replicas of a model get their own rows.

    Args:
        seed: a `keras.random.SeedGenerator`.
        number: of rows; may be a tensor.
    """
    return backend.rows_of_replica(
        lambda rows: keras.random.uniform((rows, *shape), dtype="float32", seed=seed), number
    )


def integers(seed: Any, number: Any, below: int, *shape: int) -> Any:
    """int32 draws `(number, *shape)` from 0..below - 1."""
    drawn = ops.floor(uniform(seed, number, *shape) * float(below))
    return ops.cast(ops.minimum(drawn, float(below - 1)), "int32")  # the product may round up


def permutation(seed: Any, number: Any) -> Any:
    """A random order of `number` rows, int32."""
    return ops.cast(ops.argsort(uniform(seed, number)), "int32")


def _power(alpha: float) -> float:
    return min(alpha, 32.0)  # higher ones leave the range of float32


@functools.lru_cache(maxsize=32)
def _lower_quantiles(alpha: float) -> np.ndarray:
    """(2 q)^alpha of quantiles q of Beta(alpha, alpha), evenly from 0 to the median.

    Near 0 the distribution function is proportional to q^alpha: of its power, linear interpolation
    is right there too.
    """
    quantiles = special.betaincinv(alpha, alpha, np.linspace(0.0, 0.5, _POINTS + 1))
    return ((2.0 * quantiles) ** _power(alpha)).astype(np.float32)


def beta(seed: Any, number: Any, alpha: float) -> Any:
    """float32 draws `(number,)` from Beta(alpha, alpha).

    By the quantile function, interpolated between 4097 exact quantiles. `keras.random.beta` is no
    way: on TensorFlow it does not compile by XLA, and for alpha = 0.01 has too small a variance,
    since its gamma variates underflow.
    """
    drawn = uniform(seed, number)
    place = ops.minimum(drawn, 1.0 - drawn) * (2.0 * _POINTS)
    below = ops.minimum(ops.floor(place), float(_POINTS - 1))
    index = ops.cast(below, "int32")
    table = ops.convert_to_tensor(_lower_quantiles(float(alpha)))
    low, high = ops.take(table, index), ops.take(table, index + 1)
    value = low + (place - below) * (high - low)
    value = 0.5 * ops.power(value, 1.0 / _power(alpha))
    return ops.where(drawn < 0.5, value, 1.0 - value)
