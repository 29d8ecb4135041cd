"""Transformations of grey levels and strokes: what the paper's K49 study calls nuisances."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.transforms import nuisances
from keras_git.transforms.base import Transform


@keras.saving.register_keras_serializable(package="keras_git")
class BackgroundIntensity(Transform):
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
class DilationErosion(Transform):
    """Thicker or thinner strokes; see `nuisances.dilate` and `nuisances.erode`.

    With probability 0.6 a dilation of 2, 3 or 4 pixels, else an erosion of 1 (the identity) or 2.

    Reference: Zhou et al., ICLR 2022, Kuzushiji-49 with dilation and erosion.
    """

    name = "dilation_erosion"

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return nuisances.sample_dilation_erosion(number, rng)

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        return nuisances.dilate_erode(images, parameters["dilate"], parameters["erode"], ops)


@keras.saving.register_keras_serializable(package="keras_git")
class GreyLevel(Transform):
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
class Brightness(Transform):
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
        delta = ops.reshape(ops.cast(parameters["delta"], "float32"), (-1, 1, 1, 1))
        return ops.clip(images + delta, 0.0, 255.0)

    def get_config(self) -> dict[str, Any]:
        return {"max_delta": self.max_delta}


@keras.saving.register_keras_serializable(package="keras_git")
class Contrast(Transform):
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
        factor = ops.reshape(ops.cast(parameters["factor"], "float32"), (-1, 1, 1, 1))
        mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
        return ops.clip(mean + factor * (images - mean), 0.0, 255.0)

    def get_config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}
