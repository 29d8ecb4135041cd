"""Random crop and flip, decided on the host and applied to a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_git.errors import InputError

Parameters = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class RandomCropFlip:
    """Zero-pad, crop back to the original size at a random offset, then flip left-right.

    Offsets and flips are drawn per image. The padding is black (0), before any normalization.

    Args:
        padding: number of zero pixels added on every side.
        flip: flip half of the images left-right.
        crop: crop at random; off, the images stay where they are.

    Raises:
        InputError: if the padding is negative.

    Reference:
        - [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385),
          section 4.2.
    """

    padding: int = 4
    flip: bool = True
    crop: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise InputError(f"padding is {self.padding}; it must be 0 or more")

    def parameters(self, rng: np.random.Generator, num_images: int) -> Parameters:
        """Draw the parameters of a batch.

        Args:
            rng: numpy generator.
            num_images: number of images.

        Returns:
            `(offsets, flips)`: int32 (num_images, 2) with the row and column of the crop's corner
            in the padded image, 0..2*padding, and bool (num_images,).
        """
        offsets = rng.integers(0, 2 * self.padding + 1, size=(num_images, 2), dtype=np.int32)
        flips = rng.random(num_images) < 0.5
        if not self.crop:
            offsets[:] = self.padding
        if not self.flip:
            flips[:] = False
        return offsets, flips

    def apply_numpy(self, images: np.ndarray, parameters: Parameters) -> np.ndarray:
        """Apply drawn parameters to uint8 images (n, H, W, C); the result is a new array."""
        offsets, flips = parameters
        if self.crop and self.padding:
            p = self.padding
            height, width = images.shape[1:3]
            padded = np.pad(images, ((0, 0), (p, p), (p, p), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (1, 2))
            picked = windows[np.arange(len(images)), offsets[:, 0], offsets[:, 1]]
            images = np.ascontiguousarray(np.moveaxis(picked, 1, -1))
        else:
            images = np.array(images)
        if self.flip:
            images[flips] = images[flips, :, ::-1]
        return images

    def apply_tensorflow(self, images: Any, parameters: tuple[Any, Any]) -> Any:
        """The same on TensorFlow tensors, inside a tf.data pipeline; equal byte for byte."""
        import tensorflow as tf

        offsets, flips = parameters
        height, width = images.shape[1:3]
        if self.crop and self.padding:
            p = self.padding
            images = tf.pad(images, ((0, 0), (p, p), (p, p), (0, 0)))
            rows = offsets[:, :1] + tf.range(height, dtype=tf.int32)[None]
            images = tf.gather(images, rows, axis=1, batch_dims=1)
            columns = tf.range(width, dtype=tf.int32)[None]
            if self.flip:  # a flip is the same gather with the columns counted backwards
                columns = tf.where(flips[:, None], width - 1 - columns, columns)
            return tf.gather(images, offsets[:, 1:] + columns, axis=2, batch_dims=1)
        if self.flip:
            images = tf.where(flips[:, None, None, None], images[:, :, ::-1], images)
        return images
