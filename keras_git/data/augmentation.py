"""Random crop and flip, decided on the host and applied to a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

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
        number, height, width, channels = images.shape
        if self.crop and self.padding:
            p = self.padding
            padded = np.zeros((number, height + 2 * p, width + 2 * p, channels), images.dtype)
            padded[:, p : p + height, p : p + width] = images
            # All crops as views whose rows are contiguous: one indexing copies whole rows.
            rows = padded.reshape(number, height + 2 * p, (width + 2 * p) * channels)
            windows = np.lib.stride_tricks.sliding_window_view(
                rows, (height, width * channels), (1, 2)
            )[:, :, ::channels]
            picked = windows[np.arange(number), offsets[:, 0], offsets[:, 1]]
            images = picked.reshape(number, height, width, channels)
        else:
            images = np.array(images)
        if self.flip:
            flipped = np.flatnonzero(flips)
            originals = images[flipped]
            mirrored = np.empty_like(originals)
            for channel in range(channels):  # several times faster than all channels at once
                mirrored[..., channel] = originals[:, :, ::-1, channel]
            images[flipped] = mirrored
        return images

    def apply(self, images: Any, parameters: tuple[Any, Any]) -> Any:
        """The same with `keras.ops`, on any backend and device; equal byte for byte.

        Args:
            images: (n, H, W, C) of any dtype, which is kept.
            parameters: `(offsets, flips)` as drawn by `parameters`, as tensors.
        """
        offsets, flips = parameters
        height, width, channels = images.shape[1:]
        number = ops.shape(images)[0]
        padding = self.padding if self.crop else 0
        if not padding and not self.flip:
            return images
        rows = ops.arange(height, dtype="int32")[None, :]
        columns = ops.arange(width, dtype="int32")[None, :]
        if self.flip:  # a flip is the same crop with the columns counted backwards
            columns = ops.where(flips[:, None], width - 1 - columns, columns)
        if padding:
            offsets = ops.cast(offsets, "int32") - padding
            rows, columns = rows + offsets[:, :1], columns + offsets[:, 1:]
        # One gather of pixels; what lies in the padding is read anywhere and zeroed.
        pixels = (
            ops.arange(number, dtype="int32")[:, None, None] * (height * width)
            + ops.clip(rows, 0, height - 1)[:, :, None] * width
            + ops.clip(columns, 0, width - 1)[:, None, :]
        )
        flat = ops.reshape(images, (-1, channels))
        taken = ops.take(flat, ops.reshape(pixels, (-1,)), axis=0)
        taken = ops.reshape(taken, (-1, height, width, channels))
        if padding:
            inside = ((rows >= 0) & (rows < height))[:, :, None, None] & (
                (columns >= 0) & (columns < width)
            )[:, None, :, None]
            taken = taken * ops.cast(inside, taken.dtype)
        return taken
