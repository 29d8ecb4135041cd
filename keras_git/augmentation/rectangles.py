"""Rectangles of whole pixels, one for each image of a batch.

A box is int32 `(N, 4)`: first row, row after the last, first column, column after the last.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_git.augmentation.draws import integers


def draw_centres(shape: Any, seed: Any) -> Any:
    """Pixels drawn uniformly, int32 `(N, 2)`: rows and columns.

    Args:
        shape: (N, H, W, C) of the images.
        seed: a `keras.random.SeedGenerator`.
    """
    rows, columns = (integers(seed, shape[0], int(side)) for side in shape[1:3])
    return ops.stack([rows, columns], axis=1)


def clipped(centres: Any, sides: Any, shape: Any) -> Any:
    """Boxes of int32 sides `(N, 2)` about centres `(N, 2)`, without what is beyond the image."""
    start = centres - sides // 2
    ends = []
    for axis in range(2):
        for end in (start[:, axis], start[:, axis] + sides[:, axis]):
            ends.append(ops.clip(end, 0, int(shape[1 + axis])))
    return ops.cast(ops.stack(ends, axis=1), "int32")


def mask(boxes: Any, shape: Any) -> Any:
    """bool `(N, H, W, 1)`: what is inside."""
    top, bottom, left, right = (boxes[:, end : end + 1] for end in range(4))
    rows = ops.arange(int(shape[1]), dtype="int32")[None]
    columns = ops.arange(int(shape[2]), dtype="int32")[None]
    of_rows = ops.logical_and(rows >= top, rows < bottom)
    of_columns = ops.logical_and(columns >= left, columns < right)
    return ops.logical_and(of_rows[:, :, None, None], of_columns[:, None, :, None])


def share(boxes: Any, shape: Any) -> Any:
    """float32 `(N,)`: the part of the image that is inside, 0..1."""
    pixels = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    return ops.cast(pixels, "float32") / float(int(shape[1]) * int(shape[2]))
