"""Windows of a convolution's input as rows, by slices: no convolution with the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_git.errors import InputError

# Fewest positions per axis at which the careful rules take statistics.
_FEWEST_POSITIONS = 3


def sampled_every(sampling_stride: int, positions: int | None) -> int:
    """Sampling stride that leaves at least three positions of an axis, where it has them."""
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
) -> Any:
    """Windows at every stride-th position of a convolution over padded images.

    Args:
        images: `(N, H, W, C)`.
        kernel_size: height and width of the window.
        strides: pixels from one window to the next.
        dilation_rate: pixels from one tap to the next.
        padding: zeros before and after, per axis.

    Returns:
        `(N * positions, taps, C)`, taps row by row.
    """
    if any(sum(pair) for pair in padding):
        images = ops.pad(images, ((0, 0), *padding, (0, 0)))
    height, width = ops.shape(images)[1:3]
    spans = []
    for size, number, stride, rate in zip(
        (height, width), kernel_size, strides, dilation_rate, strict=True
    ):
        positions = (size - (number - 1) * rate - 1) // stride + 1
        spans.append((positions - 1) * stride + 1)
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
    return ops.reshape(joined, (-1, len(taps), images.shape[-1]))
