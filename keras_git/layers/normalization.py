"""Normalization by a sample's own statistics: no parameters, the same in training and inference."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_git.errors import InputError

# Keeps the gradient of a square root finite where the variance is 0.
_TINY = 1e-30


def _axes(x: Any) -> tuple[int, ...]:
    """All features of a sample; of sequences and vectors, those of the last axis."""
    return tuple(range(1, len(x.shape))) if len(x.shape) > 3 else (-1,)


def centred(x: Any) -> Any:
    """Less the mean over the features of a sample."""
    axes = _axes(x)
    x = x - ops.mean(x, axis=axes, keepdims=True)
    # And what rounding leaves of it, or a constant sample would be divided by that.
    return x - ops.mean(x, axis=axes, keepdims=True)


def deviation_of(x: Any) -> Any:
    """Unbiased standard deviation of centred features over those of a sample."""
    axes = _axes(x)
    variance = ops.mean(ops.square(x), axis=axes, keepdims=True) * _unbiasing(x, axes)
    # Not ops.maximum, which computes float64 in float32 on PyTorch.
    return ops.sqrt(variance + _TINY)


def _unbiasing(x: Any, axes: tuple[int, ...]) -> Any:
    """n / (n - 1) for n features, also where a size is unknown; 1 for a single feature."""
    sizes = [x.shape[axis] for axis in axes]
    if None not in sizes:
        number = math.prod(sizes)
        return number / max(number - 1, 1)
    number = ops.sum(ops.ones_like(x[:1]))
    return number / ops.maximum(number - 1.0, 1.0)


def sample_normalized(x: Any, epsilon: float) -> Any:
    """See `SampleNormalization`."""
    x = centred(x)
    return x / (deviation_of(x) + epsilon)


def l1_normalized(x: Any, epsilon: float) -> Any:
    """See `L1Normalization`."""
    return x / (ops.mean(ops.absolute(x), axis=_axes(x), keepdims=True) + epsilon)


class SampleStatisticsLayer(keras.layers.Layer):
    """A layer without weights that computes in float32 (or float64) and keeps the dtype."""

    def __init__(self, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not epsilon >= 0:
            raise InputError(f"epsilon is {epsilon!r}; it must be 0 or more")
        self.epsilon = float(epsilon)

    def call(self, inputs: Any) -> Any:
        return self.normalized(inputs)

    def normalized(self, inputs: Any) -> Any:
        """The output for tensors, or symbolically as plain operations."""
        wide = "float64" if self.compute_dtype == "float64" else "float32"
        return ops.cast(self._normalized(ops.cast(inputs, wide)), self.compute_dtype)

    def _normalized(self, x: Any) -> Any:
        raise NotImplementedError

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("keras_git")
class SampleNormalization(SampleStatisticsLayer):
    """Subtracts the mean of all features of a sample and divides by their standard deviation.

    ``(x - mean) / (std + epsilon)`` with the unbiased std; no parameters. Images `(N, H, W, C)`
    (either data format) are normalized over all their entries, inputs of up to three axes over the
    last one. Unchanged when the input is scaled or shifted, up to epsilon.

    Args:
        epsilon: added to the standard deviation, in units of the input.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        InputError: a negative epsilon.

    Reference: Ye et al., "Exploiting Invariance in Training Deep Neural Networks", 2021.
    """

    def __init__(self, epsilon: float = 1e-7, **kwargs: Any) -> None:
        super().__init__(epsilon, **kwargs)

    def _normalized(self, x: Any) -> Any:
        return sample_normalized(x, self.epsilon)


@keras.saving.register_keras_serializable("keras_git")
class L1Normalization(SampleStatisticsLayer):
    """Divides by the mean absolute value of all features of a sample.

    ``x / (mean |x| + epsilon)``, not centred; no parameters. The features are those of
    `SampleNormalization`. Unchanged when the input is scaled, up to epsilon.

    Args:
        epsilon: added to the mean absolute value, in units of the input.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        InputError: a negative epsilon.

    Reference: Ye et al., "Exploiting Invariance in Training Deep Neural Networks", 2021.
    """

    def __init__(self, epsilon: float = 1e-7, **kwargs: Any) -> None:
        super().__init__(epsilon, **kwargs)

    def _normalized(self, x: Any) -> Any:
        return l1_normalized(x, self.epsilon)


def box_sum(maps: Any, window: int) -> Any:
    """Sums over a window around each pixel, zeros outside the map.

    Args:
        maps: `(N, H, W, 1)`.
        window: side in pixels; an even one acts as the next odd one.

    Returns:
        `(N, H, W, 1)`.
    """
    half = window // 2
    if half == 0:
        return maps
    side = 2 * half + 1
    padded = ops.pad(maps, ((0, 0), (half, half), (half, half), (0, 0)))
    # one axis after the other: 2 k additions per pixel instead of k * k
    for size in ((side, 1), (1, side)):
        padded = side * _pooled(padded, size)
    return padded


def _pooled(maps: Any, size: tuple[int, int]) -> Any:
    options: dict[str, Any] = {"padding": "valid", "data_format": "channels_last"}
    if isinstance(maps, keras.KerasTensor):
        # The operation alone is saved with lists for tuples, which JAX does not take.
        return keras.layers.AveragePooling2D(size, 1, dtype=maps.dtype, **options)(maps)
    return ops.average_pool(maps, size, 1, **options)


def resized(maps: Any, height: int, width: int) -> Any:
    """Bilinear, half-pixel centres, no antialiasing."""
    if tuple(maps.shape[1:3]) == (height, width):
        return maps
    return ops.image.resize(
        maps,
        (height, width),
        interpolation="bilinear",
        antialias=False,
        data_format="channels_last",
    )


def box_moments(images: Any, window: int) -> tuple[Any, Any, Any]:
    """Mean, variance and number of pixels in the window around each pixel, all channels.

    Args:
        images: `(N, H, W, C)`, centred: a large mean would cancel the variance.
        window: side in pixels.

    Returns:
        Each `(N, H, W, 1)`, the number `(1, H, W, 1)`; pixels outside do not count.
    """
    number = box_sum(ops.ones_like(images[:1, :, :, :1]), window)
    mean = box_sum(ops.mean(images, axis=-1, keepdims=True), window) / number
    square = box_sum(ops.mean(ops.square(images), axis=-1, keepdims=True), window) / number
    return mean, ops.relu(square - ops.square(mean)), number


@keras.saving.register_keras_serializable("keras_git")
class ReceptiveFieldNormalization(SampleStatisticsLayer):
    """Normalizes each pixel by mean and deviation of its neighbourhood, at several scales.

    At each scale, mean and standard deviation of all channels over a square window around every
    pixel; the local gain and offset that they give are smoothed over the same window and applied,
    and the next scale works on the result. The first scale, if its window is below 3 pixels,
    normalizes the sample as a whole. Large windows work on a reduced copy.

    With the default `relative_epsilon`, scaling the input changes nothing.

    Args:
        min_scale: smallest window, as a part of the longer side.
        max_scale: largest window, as a part of the longer side.
        rate: factor from one scale to the next, above 1.
        epsilon: added to the variance of a window.
        relative_epsilon: whether epsilon is a part of the sample's variance, or in squared units
            of the input, as in the original program.
        subsample: factor by which large windows are reduced; 1 for never.
        coarse_to_fine: from the largest window to the smallest, or the other way.
        data_format: "channels_last" or "channels_first"; by default Keras' setting.
        **kwargs: of `keras.layers.Layer`.

    Input: `(N, H, W, C)` of known height and width, or `(N, C, H, W)`; the output has its shape.

    Raises:
        InputError: impossible scales, rate, epsilon or subsample, or unknown height or width.

    Reference: Ye et al., "Exploiting Invariance in Training Deep Neural Networks", 2021.
    """

    def __init__(
        self,
        min_scale: float = 0.05,
        max_scale: float = 0.2,
        rate: float = 4.0,
        epsilon: float = 1e-3,
        relative_epsilon: bool = True,
        subsample: int = 3,
        coarse_to_fine: bool = True,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon, **kwargs)
        if not 0 < min_scale <= max_scale <= 1:
            raise InputError(
                f"min_scale is {min_scale!r} and max_scale {max_scale!r}; give 0 < min_scale <= "
                "max_scale <= 1"
            )
        if not rate > 1:
            raise InputError(f"rate is {rate!r}; it must be above 1")
        if int(subsample) != subsample or subsample < 1:
            raise InputError(f"subsample is {subsample!r}; give a whole number of 1 or more")
        self.min_scale, self.max_scale, self.rate = float(min_scale), float(max_scale), float(rate)
        self.relative_epsilon, self.subsample = bool(relative_epsilon), int(subsample)
        self.coarse_to_fine = bool(coarse_to_fine)
        self.data_format = data_format or keras.config.image_data_format()

    def build(self, input_shape: Any) -> None:
        sides = input_shape[2:] if self.data_format == "channels_first" else input_shape[1:3]
        if len(input_shape) != 4 or None in sides:
            raise InputError(
                f"the input of {self.name} has shape {tuple(input_shape)}; give images (N, H, W, "
                "C) of known height and width"
            )
        self.built = True

    @property
    def scales(self) -> list[float]:
        """Window sizes as parts of the longer side, in the order of their application."""
        found = []
        if self.coarse_to_fine:
            scale = self.max_scale
            while scale >= self.min_scale:
                found.append(scale)
                scale /= self.rate
        else:
            scale = self.min_scale
            while scale <= self.max_scale:
                found.append(scale)
                scale *= self.rate
        return found

    def _normalized(self, x: Any) -> Any:
        first = self.data_format == "channels_first"
        if first:
            x = ops.transpose(x, (0, 2, 3, 1))
        x = centred(x)  # which the scales do anyway; this keeps digits
        height, width = x.shape[1:3]
        for number, scale in enumerate(self.scales):
            window = int(max(height, width) * scale)
            if number == 0 and window < 3:
                x = x / (deviation_of(x) + self._epsilon_of(x, squared=False))
            else:
                x = self._at_scale(x, window)
        return ops.transpose(x, (0, 3, 1, 2)) if first else x

    def _epsilon_of(self, x: Any, squared: bool = True) -> Any:
        if not self.relative_epsilon:
            return self.epsilon
        deviation = deviation_of(centred(x))
        return self.epsilon * (ops.square(deviation) if squared else deviation) + _TINY**0.5

    def _at_scale(self, x: Any, window: int) -> Any:
        height, width = x.shape[1:3]
        small, side = x, window
        if (
            self.subsample > 1
            and min(height, width) > 10 * self.subsample
            and window > 5 * self.subsample
        ):
            small = resized(x, height // self.subsample, width // self.subsample)
            side = window // self.subsample
        mean, variance, number = box_moments(small, side)
        gain = 1.0 / ops.sqrt(variance + self._epsilon_of(x))
        gain, offset = (
            resized(box_sum(values, side) / number, height, width)
            for values in (gain, -mean * gain)
        )
        return x * gain + offset

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "min_scale": self.min_scale,
            "max_scale": self.max_scale,
            "rate": self.rate,
            "relative_epsilon": self.relative_epsilon,
            "subsample": self.subsample,
            "coarse_to_fine": self.coarse_to_fine,
            "data_format": self.data_format,
        }
