"""Transformations that move pixels: rotation, scale, flip, shift."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.transforms import nuisances
from keras_git.transforms.base import SampledTransform


@keras.saving.register_keras_serializable(package="keras_git")
class Rotation(SampledTransform):
    """Rotation about the centre by a uniform angle; see `nuisances.rotate`.

    Args:
        max_degrees: angles are uniform in [-max_degrees, max_degrees), degrees.

    Raises:
        InputError: `max_degrees` outside 0..180.

    Reference: Zhou et al., ICLR 2022, Kuzushiji-49 with rotation (max_degrees = 180).
    """

    name = "rotation"

    def __init__(self, max_degrees: float = 180.0) -> None:
        if not 0 <= max_degrees <= 180:
            raise InputError(f"max_degrees is {max_degrees}; give a value from 0 to 180")
        self.max_degrees = float(max_degrees)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return nuisances.sample_rotation(number, rng, self.max_degrees)

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        return nuisances.rotate(images, parameters["degrees"], ops)

    def get_config(self) -> dict[str, Any]:
        return {"max_degrees": self.max_degrees}


@keras.saving.register_keras_serializable(package="keras_git")
class Scale(SampledTransform):
    """Zoom about the centre by a random factor; see `nuisances.scale`.

    Args:
        max_factor: factors are log-uniform in [1 / max_factor, max_factor), so enlarging and
            shrinking are equally likely.

    Raises:
        InputError: `max_factor` outside 1..10.
    """

    name = "scale"

    def __init__(self, max_factor: float = 1.25) -> None:
        if not 1 <= max_factor <= 10:
            raise InputError(f"max_factor is {max_factor}; give a value from 1 to 10")
        self.max_factor = float(max_factor)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        exponents = rng.uniform(-1.0, 1.0, number)
        return {"factor": (self.max_factor**exponents).astype(np.float32)}

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        return nuisances.scale(images, parameters["factor"], ops)

    def get_config(self) -> dict[str, Any]:
        return {"max_factor": self.max_factor}


@keras.saving.register_keras_serializable(package="keras_git")
class HorizontalFlip(SampledTransform):
    """Left-right mirror image with a probability.

    Args:
        probability: chance of a flip, 0..1.

    Raises:
        InputError: `probability` outside 0..1.
    """

    name = "horizontal_flip"

    def __init__(self, probability: float = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise InputError(f"probability is {probability}; give a value from 0 to 1")
        self.probability = float(probability)

    @property
    def deterministic(self) -> bool:
        return self.probability in (0.0, 1.0)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"flip": (rng.random(number) < self.probability).astype(np.int32)}

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        images = ops.convert_to_tensor(images)
        flip = ops.reshape(ops.convert_to_tensor(parameters["flip"]), (-1, 1, 1, 1))
        return ops.where(flip > 0, ops.flip(images, axis=2), images)

    def get_config(self) -> dict[str, Any]:
        return {"probability": self.probability}


@keras.saving.register_keras_serializable(package="keras_git")
class Shift(SampledTransform):
    """Shift by whole pixels in both directions; what comes in from outside is 0.

    Args:
        max_pixels: shifts are uniform in -max_pixels .. max_pixels, pixels.

    Raises:
        InputError: a negative or fractional `max_pixels`.
    """

    name = "shift"

    def __init__(self, max_pixels: int = 4) -> None:
        if max_pixels < 0 or int(max_pixels) != max_pixels:
            raise InputError(f"max_pixels is {max_pixels}; give a whole number of 0 or more")
        self.max_pixels = int(max_pixels)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        drawn = rng.integers(-self.max_pixels, self.max_pixels, (number, 2), endpoint=True)
        return {"down": drawn[:, 0].astype(np.int32), "right": drawn[:, 1].astype(np.int32)}

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        return nuisances.shift(images, parameters["down"], parameters["right"], ops)

    def get_config(self) -> dict[str, Any]:
        return {"max_pixels": self.max_pixels}
