"""Cutout: a square of each image is blanked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.augmentation import rectangles
from keras_git.augmentation.draws import uniform
from keras_git.augmentation.image_policy import ImagePolicy
from keras_git.errors import InputError


# Not keras.layers.RandomErasing: it draws the part of the area and the place of a rectangle that
# lies within the image. Here the centre is uniform and the border cuts the square, which the paper
# found important, as some images then lose little.
@keras.saving.register_keras_serializable(package="keras_git")
class Cutout(ImagePolicy):
    """Cutout: a square at a random place of each image becomes one grey level.

    The centre is uniform over the pixels; what lies beyond the border is cut off. A square of size
    s and centre c covers the s rows and columns from c - floor(s / 2) on.

    Args:
        size: side of the square in pixels, 0 or more.
        probability: with which an image gets one.
        fill: 0..255, one value or one per channel (such as the mean color of the data).
        seed, **kwargs: see `ImagePolicy`.

    Raises:
        InputError: an argument out of range, or as many fills as there are no channels.

    Reference: DeVries, Taylor, *Improved Regularization of Convolutional Neural Networks with
    Cutout*, 2017, section 3.2.
    """

    def __init__(
        self,
        size: int = 16,
        probability: float = 1.0,
        fill: float | Sequence[float] = 0.0,
        seed: int | None = 0,
        **kwargs: Any,
    ) -> None:
        levels = np.asarray(fill, np.float32).reshape(-1)
        if size < 0 or int(size) != size:
            raise InputError(f"size is {size}; use a whole number of pixels, 0 or more")
        if not 0.0 <= probability <= 1.0:
            raise InputError(f"probability is {probability}; use a number in 0..1")
        if not len(levels) or not np.all((levels >= 0) & (levels <= 255)):
            raise InputError(f"fill is {fill}; use grey levels in 0..255")
        super().__init__(seed=seed, **kwargs)
        self.size, self.probability = int(size), float(probability)
        self.fill = float(levels[0]) if np.ndim(fill) == 0 else tuple(levels.tolist())

    def draw(self, shape: Any, seed: Any) -> dict[str, Any]:
        """`"box"` int32 `(N, 4)`: first row, row after the last, and the same of the columns."""
        centre = rectangles.draw_centres(shape, seed)
        chosen = uniform(seed, shape[0]) < self.probability
        side = ops.where(chosen, self.size, 0)
        return {"box": rectangles.clipped(centre, ops.stack([side, side], axis=1), shape)}

    def transform(self, images: Any, parameters: dict[str, Any]) -> Any:
        channels = int(images.shape[-1])
        levels = np.asarray(self.fill, np.float32).reshape(-1)
        if len(levels) not in (1, channels):
            raise InputError(f"fill has {len(levels)} values; images have {channels} channels")
        inside = rectangles.mask(parameters["box"], ops.shape(images))
        return ops.where(inside, ops.convert_to_tensor(levels), images)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "size": self.size,
            "probability": self.probability,
            "fill": self.fill if isinstance(self.fill, float) else list(self.fill),
        }
