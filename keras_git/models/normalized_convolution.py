"""The unit of the residual networks: a convolution with batch normalization, or a whitened one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_git.errors import InputError
from keras_git.layers import Whitened, WhitenedConv2D
from keras_git.models import _blocks

BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5

# Those of `WhitenedConv2D` that are not the network's own.
_ARGUMENTS = {
    name
    for name, parameter in inspect.signature(Whitened.__init__).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
} - {"feature_normalization"}

Whitening = bool | Mapping[str, Any]
# (x, filters, kernel_size, strides, name of the convolution, name of the normalization) -> x
Unit = Callable[[Any, int, int, int, str, str], Any]


def batch_normalization(x: Any, name: str) -> Any:
    """Batch normalization with the conventions of the original (momentum .9, epsilon 1e-5)."""
    return keras.layers.BatchNormalization(
        momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, name=name
    )(x)


def convolution_unit(
    whitening: Whitening, feature_normalization: str | None, seed: int | None
) -> Unit:
    """What a network uses for all its convolutions.

    Args:
        whitening: False for a plain convolution without bias and batch normalization behind it;
            True, or arguments of `WhitenedConv2D`, for a whitened convolution with bias alone.
        feature_normalization: of the whitened convolutions.
        seed: of the kernels, N(0, 2 / fan_in).

    Raises:
        InputError: a feature normalization without whitening, or an unknown argument.
    """
    if whitening is False and feature_normalization is not None:
        raise InputError(
            f"feature_normalization is {feature_normalization!r}, which belongs to whitened "
            "convolutions: give whitening=True too"
        )
    options = dict(whitening) if isinstance(whitening, Mapping) else {}
    if not isinstance(whitening, (bool, Mapping)) or set(options) - _ARGUMENTS:
        raise InputError(
            f"whitening is {whitening!r}; allowed: True, False, or a mapping with any of "
            f"{', '.join(sorted(_ARGUMENTS))}"
        )

    def plain(x: Any, filters: int, size: int, strides: int, name: str, norm: str) -> Any:
        x = _blocks.convolution(
            x,
            filters,
            size,
            strides=strides,
            use_bias=False,
            kernel_initializer=_blocks.he_normal(seed, name),
            name=name,
        )
        return batch_normalization(x, norm)

    def whitened(x: Any, filters: int, size: int, strides: int, name: str, norm: str) -> Any:
        del norm
        return _blocks.convolution(
            x,
            filters,
            size,
            strides=strides,
            kernel_initializer=_blocks.he_normal(seed, name),
            name=name,
            layer=WhitenedConv2D,
            feature_normalization=feature_normalization,
            **options,
        )

    return plain if whitening is False else whitened
