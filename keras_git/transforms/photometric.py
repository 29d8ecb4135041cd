"""Transformations of grey levels, colours and strokes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.transforms import nuisances
from keras_git.transforms.base import SampledTransform


def _check_colour(images: Any, name: str) -> None:
    if images.shape[-1] != 3:
        raise InputError(f"{name} needs colour images (N, H, W, 3), not {tuple(images.shape)}")


def _column(values: Any) -> Any:
    """One value per image, shaped to broadcast against images."""
    return ops.reshape(ops.cast(values, "float32"), (-1, 1, 1, 1))


@keras.saving.register_keras_serializable(package="keras_git")
class BackgroundIntensity(SampledTransform):
    """A new grey level for every pixel that is exactly 0; see `nuisances.set_background`.

    Args:
        low: smallest level, 0..255.
        high: largest level (inclusive), low..255.

    Raises:
        InputError: levels outside 0..255 or in the wrong order.

    Reference: Zhou et al., ICLR 2022, Kuzushiji-49 with background intensity (0..99).
    """

    name = "background"

    def __init__(self, low: int = 0, high: int = 99) -> None:
        if not 0 <= low <= high <= 255:
            raise InputError(f"background levels are {low}..{high}; give 0 <= low <= high <= 255")
        self.low, self.high = int(low), int(high)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return nuisances.sample_background(number, rng, self.low, self.high)

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        return nuisances.set_background(images, parameters["values"], ops)

    def get_config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}


@keras.saving.register_keras_serializable(package="keras_git")
class DilationErosion(SampledTransform):
    """Thicker or thinner strokes; see `nuisances.dilate` and `nuisances.erode`.

    With probability 0.6 a dilation of 2 to `max_dilation` pixels, else an erosion of 1 (the
    identity) or 2.

    Args:
        max_dilation: 2..4, pixels.

    Raises:
        InputError: `max_dilation` outside 2..4 or fractional.

    Reference: Zhou et al., ICLR 2022, Kuzushiji-49 with dilation and erosion.
    """

    name = "dilation_erosion"

    def __init__(self, max_dilation: int = nuisances.LARGEST_DILATION) -> None:
        if max_dilation not in range(2, nuisances.LARGEST_DILATION + 1):
            raise InputError(
                f"max_dilation is {max_dilation}; give a whole number from 2 to "
                f"{nuisances.LARGEST_DILATION}"
            )
        self.max_dilation = int(max_dilation)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return nuisances.sample_dilation_erosion(number, rng, self.max_dilation)

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        return nuisances.dilate_erode(images, parameters["dilate"], parameters["erode"], ops)

    def get_config(self) -> dict[str, Any]:
        return {"max_dilation": self.max_dilation}


@keras.saving.register_keras_serializable(package="keras_git")
class GreyLevel(SampledTransform):
    """A new background and a new stroke level, for images whose background is 0.

    The background b is uniform in 0..224, the stroke level uniform in b + 30 .. 255; see
    `nuisances.grey_level`.
    """

    name = "grey_level"

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return nuisances.sample_grey_level(number, rng)

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        return nuisances.grey_level(images, parameters["background"], parameters["foreground"], ops)


@keras.saving.register_keras_serializable(package="keras_git")
class Brightness(SampledTransform):
    """Adds one grey level to all pixels of an image and clips to 0..255.

    Args:
        max_delta: the level is uniform in [-max_delta, max_delta), grey levels.

    Raises:
        InputError: `max_delta` outside 0..255.
    """

    name = "brightness"

    def __init__(self, max_delta: float = 64.0) -> None:
        if not 0 <= max_delta <= 255:
            raise InputError(f"max_delta is {max_delta}; give grey levels from 0 to 255")
        self.max_delta = float(max_delta)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"delta": rng.uniform(-self.max_delta, self.max_delta, number).astype(np.float32)}

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        images = ops.cast(images, "float32")
        return ops.clip(images + _column(parameters["delta"]), 0.0, 255.0)

    def get_config(self) -> dict[str, Any]:
        return {"max_delta": self.max_delta}


@keras.saving.register_keras_serializable(package="keras_git")
class Contrast(SampledTransform):
    """Stretches grey levels about the mean of the image and clips to 0..255.

    Args:
        low: smallest factor, 0 or more (0: all pixels at the mean).
        high: largest factor, low or more.

    Raises:
        InputError: negative factors or factors in the wrong order.
    """

    name = "contrast"

    def __init__(self, low: float = 0.5, high: float = 1.5) -> None:
        if not 0 <= low <= high:
            raise InputError(f"contrast factors are {low}..{high}; give 0 <= low <= high")
        self.low, self.high = float(low), float(high)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"factor": rng.uniform(self.low, self.high, number).astype(np.float32)}

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        images = ops.cast(images, "float32")
        factor = _column(parameters["factor"])
        mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
        return ops.clip(mean + factor * (images - mean), 0.0, 255.0)

    def get_config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}


@keras.saving.register_keras_serializable(package="keras_git")
class Saturation(SampledTransform):
    """Stretches colours away from the grey of equal luma (ITU-R BT.601) and clips to 0..255.

    Args:
        low: smallest factor, 0 or more (0: a grey image).
        high: largest factor, low or more.

    Raises:
        InputError: negative factors, factors in the wrong order; in use, images without colour.
    """

    name = "saturation"

    def __init__(self, low: float = 0.5, high: float = 1.5) -> None:
        if not 0 <= low <= high:
            raise InputError(f"saturation factors are {low}..{high}; give 0 <= low <= high")
        self.low, self.high = float(low), float(high)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"factor": rng.uniform(self.low, self.high, number).astype(np.float32)}

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        _check_colour(images, "saturation")
        images = ops.cast(images, "float32")
        red, green, blue = (images[..., i : i + 1] for i in range(3))
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        return ops.clip(luma + _column(parameters["factor"]) * (images - luma), 0.0, 255.0)

    def get_config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}


@keras.saving.register_keras_serializable(package="keras_git")
class Hue(SampledTransform):
    """Turns the hue of all pixels by one angle, at unchanged HSV saturation and value.

    Args:
        max_degrees: angles are uniform in [-max_degrees, max_degrees), degrees on the colour
            circle (120 takes red to green).

    Raises:
        InputError: `max_degrees` outside 0..180; in use, images without colour.

    Reference: Smith, "Color gamut transform pairs", SIGGRAPH 1978 (the HSV model).
    """

    name = "hue"

    def __init__(self, max_degrees: float = 45.0) -> None:
        if not 0 <= max_degrees <= 180:
            raise InputError(f"max_degrees is {max_degrees}; give a value from 0 to 180")
        self.max_degrees = float(max_degrees)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return nuisances.sample_rotation(number, rng, self.max_degrees)

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        _check_colour(images, "hue")
        images = ops.cast(images, "float32")
        red, green, blue = (images[..., i] for i in range(3))
        value = ops.max(images, axis=-1)
        chroma = value - ops.min(images, axis=-1)
        divisor = ops.where(chroma > 0, chroma, 1.0)
        # Hue in sixths of the circle, from 0 (red) over 2 (green) and 4 (blue)
        hue = ops.where(
            value == red,
            (green - blue) / divisor,
            ops.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
        )
        hue = hue + ops.reshape(ops.cast(parameters["degrees"], "float32"), (-1, 1, 1)) / 60.0
        channels = []
        for offset in (5.0, 3.0, 1.0):
            place = hue + offset
            place = place - 6.0 * ops.floor(place / 6.0)
            ramp = ops.clip(ops.minimum(place, 4.0 - place), 0.0, 1.0)
            channels.append(value - chroma * ramp)
        return ops.stack(channels, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"max_degrees": self.max_degrees}
