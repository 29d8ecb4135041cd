"""Windows of a convolution's input as rows, by slices: no convolution with the identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_git.errors import InputError

# Fewest positions per axis at which the careful rules take statistics.
_FEWEST_POSITIONS = 2


def sampled_every(sampling_stride: int, positions: int | None) -> int:
    """Sampling stride that leaves at least two positions of an axis, where it has them."""
    if positions is None:
        return sampling_stride
    return max(1, min(sampling_stride, (positions - 1) // (_FEWEST_POSITIONS - 1)))


def padding_sizes(
    padding: str, sizes: Sequence[Any], extents: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Zeros before and after, per axis, of the Keras paddings "valid" and "same".

    Args:
        padding: "valid" or "same".
        sizes: height and width; None where unknown.
        extents: of the window, dilation included.
        strides: of the convolution.

    Raises:
        InputError: "same" with strides and an unknown size.
    """
    if padding == "valid":
        return [(0, 0)] * len(extents)
    found = []
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        if stride == 1:
            total = extent - 1
        elif size is None:
            raise InputError(
                "padding 'same' with strides needs to know height and width of the input: give "
                "them, or pad before and use 'valid'"
            )
        else:
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        found.append((total // 2, total - total // 2))
    return found


def patches(
    images: Any,
    kernel_size: Sequence[int],
    *,
    strides: Sequence[int],
    dilation_rate: Sequence[int],
    padding: Sequence[tuple[int, int]],
    slices: int = 1,
) -> Any:
    """Windows at every stride-th position of a convolution over padded images.

    Args:
        images: `(N, H, W, C)`.
        kernel_size: height and width of the window.
        strides: pixels from one window to the next.
        dilation_rate: pixels from one tap to the next.
        padding: zeros before and after, per axis.
        slices: parts of contiguous channels in which the windows come.

    Returns:
        `(slices, N * positions, taps, C / slices)`, taps row by row.
    """
    sizes = tuple(ops.shape(images)[1:3])
    extents = [(taps - 1) * rate + 1 for taps, rate in zip(kernel_size, dilation_rate, strict=True)]
    positions = [
        (size + sum(pair) - extent) // stride + 1
        for size, pair, extent, stride in zip(sizes, padding, extents, strides, strict=True)
    ]
    channels = images.shape[-1]
    apart = all(stride >= extent for stride, extent in zip(strides, extents, strict=True))
    if apart and all(isinstance(size, int) for size in sizes):
        # Windows that do not overlap are cells of a grid: one copy, where slices make one per tap.
        (rows, columns), (down, right) = positions, strides
        # rows and columns behind the last cell; those missing belong to no window, or are padding
        missing = [
            number * stride - size - pair[0]
            for number, stride, size, pair in zip(positions, strides, sizes, padding, strict=True)
        ]
        if min(missing) < 0:
            images = images[:, : sizes[0] + min(missing[0], 0), : sizes[1] + min(missing[1], 0)]
        pads = [(pair[0], max(number, 0)) for pair, number in zip(padding, missing, strict=True)]
        if any(sum(pair) for pair in pads):
            images = ops.pad(images, ((0, 0), *pads, (0, 0)))
        cells = ops.reshape(images, (-1, rows, down, columns, right, slices, channels // slices))
        if [down, right] != extents or max(dilation_rate) > 1:
            cells = cells[:, :, : extents[0] : dilation_rate[0], :, : extents[1] : dilation_rate[1]]
        cells = ops.transpose(cells, (5, 0, 1, 3, 2, 4, 6))
        return ops.reshape(cells, (slices, -1, math.prod(kernel_size), channels // slices))
    if any(sum(pair) for pair in padding):
        images = ops.pad(images, ((0, 0), *padding, (0, 0)))
    spans = [(number - 1) * stride + 1 for number, stride in zip(positions, strides, strict=True)]
    taps = [
        images[
            :,
            row * dilation_rate[0] : row * dilation_rate[0] + spans[0] : strides[0],
            column * dilation_rate[1] : column * dilation_rate[1] + spans[1] : strides[1],
        ]
        for row in range(kernel_size[0])
        for column in range(kernel_size[1])
    ]
    joined = taps[0][:, :, :, None] if len(taps) == 1 else ops.stack(taps, axis=3)
    return sliced(ops.reshape(joined, (-1, len(taps), channels)), slices)


def sliced(windows: Any, slices: int) -> Any:
    """`(slices, M, taps, C / slices)` of windows `(M, taps, C)`."""
    taps, channels = windows.shape[1:]
    parts = ops.reshape(windows, (-1, taps, slices, channels // slices))
    return ops.transpose(parts, (2, 0, 1, 3))
