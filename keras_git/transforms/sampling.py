"""One bilinear resampling of a batch at places given for each image."""

from __future__ import annotations

from typing import Any

from keras import ops

OUTSIDE = ("constant", "edge", "reflect")


def bilinear(
    images: Any,
    x: Any,
    y: Any,
    *,
    fill: Any = 0.0,
    outside: str = "constant",
    window: tuple[Any, Any, Any, Any] | None = None,
) -> Any:
    """Images at places between their pixels; differentiable in images and places.

    Args:
        images: float `(N, H, W, C)`.
        x: columns, `(N, P)`, or `(1, P)` for all images, which is the cheaper way; the centre of
            the first pixel is 0.
        y: rows, of the same shape.
        fill: what is outside: a number, or `(N, C)` or `(1, C)`.
        outside: `"constant"`: `fill`, with the weight that bilinear interpolation gives to pixels
            outside; `"edge"`: the nearest pixel; `"reflect"`: mirrored at the border, which is not
            repeated.
        window: (top, left, height, width), numbers or `(N, 1)`, in the places' unit: what counts
            as the image; default: all of it.

    Returns:
        `(N, P, C)`.
    """
    height, width, channels = (int(side) for side in images.shape[1:])
    top, left, rows, columns = window if window is not None else (0.0, 0.0, height, width)
    coverage = None
    if outside == "reflect":
        x, y = _mirrored(x, left, columns), _mirrored(y, top, rows)
    elif outside == "constant":
        coverage = _inside(x - left, columns) * _inside(y - top, rows)
    x = ops.clip(ops.maximum(ops.minimum(x, left + columns - 1.0), left), 0.0, width - 1.0)
    y = ops.clip(ops.maximum(ops.minimum(y, top + rows - 1.0), top), 0.0, height - 1.0)

    before_x, before_y = ops.floor(x), ops.floor(y)
    part_x, part_y = (x - before_x)[..., None], (y - before_y)[..., None]
    column, row = ops.cast(before_x, "int32"), ops.cast(before_y, "int32")
    next_column = ops.minimum(column + 1, width - 1)
    next_row = ops.minimum(row + 1, height - 1)
    number = ops.shape(images)[0]
    shared = column.shape[0] == 1 and row.shape[0] == 1
    if shared:
        table = ops.reshape(images, (number, height * width, channels))
    else:
        table = ops.reshape(images, (-1, channels))
        first = ops.arange(number, dtype="int32")[:, None] * (height * width)

    def at(line: Any, place: Any) -> Any:
        index = line * width + place
        if shared:
            return ops.take(table, index[0], axis=1)
        return ops.take(table, first + index, axis=0)

    def along_x(line: Any) -> Any:
        one, two = at(line, column), at(line, next_column)
        return one + part_x * (two - one)

    upper = along_x(row)
    value = upper + part_y * (along_x(next_row) - upper)
    if coverage is None:
        return value
    fill = ops.cast(fill, value.dtype)
    if len(fill.shape) == 2:
        fill = fill[:, None, :]
    return fill + coverage[..., None] * (value - fill)


def _inside(place: Any, side: Any) -> Any:
    """Weight, 0..1, that interpolation gives to pixels 0..side - 1 at a place."""
    return ops.clip(ops.minimum(place + 1.0, side - place), 0.0, 1.0)


def _mirrored(place: Any, start: Any, side: Any) -> Any:
    span = ops.maximum(ops.cast(side, place.dtype) - 1.0, 1e-6)
    offset = place - start
    offset = offset - 2.0 * span * ops.floor(offset / (2.0 * span))
    return start + span - ops.abs(offset - span)
