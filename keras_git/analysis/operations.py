"""What changes images in a measurement: functions of a batch and of a few numbers.

Operations that differ in their numbers alone are one function, the family, which is compiled once
together with the network. Images are float32 `(N, H, W, C)` in [0, 1].

Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
2021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from keras import ops

from keras_git.transforms import Transform
from keras_git.transforms.affine import warp

# Luminance of red, green and blue
_GREY = (0.2989, 0.587, 0.114)


def blend(images: Any, parameters: dict[str, Any]) -> Any:
    """clip(f x + (1 - f) g mean, 0, 1): brightness with g = 0, contrast with g = 1.

    Args:
        images: `(N, H, W, C)`.
        parameters: `factor` f and `towards_mean` g, scalars. The mean is that of the luminance of
            an image.
    """
    factor = parameters["factor"]
    grey = images
    if images.shape[-1] == 3:
        grey = sum(images[..., i : i + 1] * weight for i, weight in enumerate(_GREY))
    mean = ops.mean(grey, axis=(1, 2, 3), keepdims=True)
    return ops.clip(factor * images + (1.0 - factor) * parameters["towards_mean"] * mean, 0.0, 1.0)


def solarize(images: Any, parameters: dict[str, Any]) -> Any:
    """1 - x where x is at least `threshold`."""
    return ops.where(images >= parameters["threshold"], 1.0 - images, images)


def posterize(images: Any, parameters: dict[str, Any]) -> Any:
    """100 x cut to whole numbers, of which multiples of `step` stay (2^(8 - bits)), over 100."""
    step = parameters["step"]
    return ops.floor(ops.floor(100.0 * images) / step) * step / 100.0


def move(images: Any, parameters: dict[str, Any]) -> Any:
    """The images through the map `matrix`, with `fill` outside."""
    return warp(images, parameters["matrix"], parameters["fill"])


FAMILIES: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "affine": move,
    "blend": blend,
    "solarize": solarize,
    "posterize": posterize,
}


@dataclass(frozen=True, eq=False)
class Step:
    """A function of images with its numbers.

    Attributes:
        key: hashable; steps of equal key are one function of images and numbers.
        function: from float32 `(N, H, W, C)` in [0, 1] and a dictionary of tensors to the same.
        numbers: the same for all images.
        transform: a `keras_git` transformation, which draws numbers for each image; None if all
            are in `numbers`.
        plain: the numbers have to be Python numbers: one compilation for each of them.
    """

    key: Any
    function: Callable[[Any, dict[str, Any]], Any]
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    transform: Transform | None = None
    plain: bool = False

    @property
    def variables(self) -> list[Any]:
        """Keras variables that the function reads."""
        if self.transform is not None:
            return self.transform.variables
        return list(getattr(self.function, "variables", None) or [])

    def identity(self) -> Any:
        """Equal for two steps that do the same, hashable."""
        numbers = tuple(
            (name, value.shape, value.tobytes()) for name, value in sorted(self.numbers.items())
        )
        return self.key, numbers, self.transform


def family_step(family: str, **numbers: Any) -> Step:
    """A step of one of `FAMILIES`."""
    values = {name: np.asarray(value, np.float32) for name, value in numbers.items()}
    return Step(family, FAMILIES[family], values)


def transform_step(transform: Transform) -> Step:
    """A step of a transformation of this package, whose images are grey levels 0..255."""

    def function(images: Any, parameters: dict[str, Any]) -> Any:
        return transform.apply(images * 255.0, parameters) / 255.0

    return Step(transform.function_key, function, {}, transform)


def function_step(name: str, function: Callable[..., Any], magnitude: float | None) -> Step:
    """A step of somebody's function of images, or of images and a magnitude."""
    if magnitude is None:
        return Step((name, id(function)), lambda images, numbers: function(images))
    numbers = {"magnitude": np.asarray(magnitude, np.float32)}
    return Step(
        (name, id(function)),
        lambda images, numbers: function(images, numbers["magnitude"]),
        numbers,
    )
