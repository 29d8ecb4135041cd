"""How the input features of a layer are divided into blocks that are whitened together.

A layer sees rows of ``taps x channels`` features: the kernel's window at one position, or one tap
for dense layers. A division turns rows into sets of rows, one whitening matrix each, and a kernel
into matrices with the same features, so that whitening the rows equals multiplying the matrices.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from keras import ops


def effective_block_size(block_size: int, channels: int) -> int:
    """The block size that divides the channels: `block_size`, all channels, or the common divisor.

    Args:
        block_size: as asked for, 1 or more.
        channels: C.

    Returns:
        C if block_size is not below it, else the greatest common divisor of the two.
    """
    return channels if block_size >= channels else math.gcd(block_size, channels)


class Blocks(Protocol):
    """What a division offers; S sets of F features.

    Attributes:
        num_sets: S.
        num_features: F.
        num_slices: parts of contiguous channels in which it takes windows.
    """

    num_sets: int
    num_features: int
    num_slices: int

    def rows(self, windows: Any) -> Any:
        """Rows `(S, M', F)` of windows `(slices, M, taps, channels / slices)`."""

    def split(self, kernel: Any) -> Any:
        """Matrices `(S, F, Q)` of a kernel `(taps, channels / groups, outputs)`."""

    def join(self, matrices: Any) -> Any:
        """The kernel of matrices: undoes `split`."""

    def offset(self, mean: Any, matrices: Any) -> Any:
        """What the mean `(S, F)` adds to each output, `(outputs,)`."""


class ChannelBlocks:
    """Contiguous channels with all their taps, each block with statistics of its own.

    Args:
        taps: positions of the kernel's window.
        channels: C.
        outputs: O.
        groups: of the convolution; blocks do not cross groups.
        block_size: channels per block, as asked for.
    """

    def __init__(
        self, taps: int, channels: int, outputs: int, groups: int, block_size: int
    ) -> None:
        self._taps, self._groups, self._outputs = taps, groups, outputs
        self._block = effective_block_size(block_size, channels // groups)
        self.num_channels = channels
        self.num_sets = channels // self._block
        self.num_features = taps * self._block
        self.num_slices = self.num_sets

    def spread(self, values: Any) -> Any:
        """A value per channel `(C,)` for each feature, `(S, F)`."""
        parts = ops.reshape(values, (self.num_sets, 1, self._block))
        parts = ops.tile(parts, (1, self._taps, 1))
        return ops.reshape(parts, (self.num_sets, self.num_features))

    def by_channel(self, values: Any) -> Any:
        """Mean `(C,)` of the features `(S, F)` of each channel."""
        parts = ops.reshape(values, (self.num_sets, self._taps, self._block))
        return ops.reshape(ops.mean(parts, axis=1), (-1,))

    def rows(self, windows: Any) -> Any:
        return ops.reshape(windows, (self.num_sets, -1, self.num_features))

    def split(self, kernel: Any) -> Any:
        blocks = self.num_sets // self._groups
        each = self._outputs // self._groups
        parts = ops.reshape(kernel, (self._taps, blocks, self._block, self._groups, each))
        parts = ops.transpose(parts, (3, 1, 0, 2, 4))
        return ops.reshape(parts, (self.num_sets, self.num_features, each))

    def join(self, matrices: Any) -> Any:
        blocks = self.num_sets // self._groups
        each = self._outputs // self._groups
        parts = ops.reshape(matrices, (self._groups, blocks, self._taps, self._block, each))
        parts = ops.transpose(parts, (2, 1, 3, 0, 4))
        return ops.reshape(parts, (self._taps, blocks * self._block, self._outputs))

    def offset(self, mean: Any, matrices: Any) -> Any:
        parts = ops.squeeze(mean[:, None, :] @ matrices, axis=1)
        each = self._outputs // self._groups
        parts = ops.reshape(parts, (self._groups, self.num_sets // self._groups, each))
        return ops.reshape(ops.sum(parts, axis=1), (-1,))


class InterleavedBlocks:
    """The original program's division: features dealt out like cards, one matrix for all blocks.

    Features are counted channel by channel, taps fastest; feature i belongs to block ``i mod G``.
    Blocks are stacked as further rows. With groups, each group is one set instead.

    Args:
        taps: positions of the kernel's window.
        channels: C.
        outputs: O.
        groups: of the convolution.
        block_size: channels per block, as asked for; ignored with groups.
    """

    def __init__(
        self, taps: int, channels: int, outputs: int, groups: int, block_size: int
    ) -> None:
        self._taps, self._groups, self._outputs = taps, groups, outputs
        block = channels // groups if groups > 1 else effective_block_size(block_size, channels)
        self._blocks = 1 if groups > 1 else channels // block
        self._channels = channels // groups
        self.num_sets = groups
        self.num_features = taps * block
        self.num_slices = 1

    def rows(self, windows: Any) -> Any:
        flat = ops.transpose(windows[0], (0, 2, 1))  # channel by channel
        if self._groups > 1:
            parts = ops.reshape(flat, (-1, self.num_sets, self.num_features))
            return ops.transpose(parts, (1, 0, 2))
        parts = ops.reshape(flat, (-1, self.num_features, self._blocks))
        parts = ops.transpose(parts, (0, 2, 1))
        return ops.reshape(parts, (1, -1, self.num_features))

    def split(self, kernel: Any) -> Any:
        flat = ops.reshape(
            ops.transpose(kernel, (1, 0, 2)), (self._taps * self._channels, self._outputs)
        )
        if self._groups > 1:
            each = self._outputs // self._groups
            parts = ops.reshape(flat, (self.num_features, self._groups, each))
            return ops.transpose(parts, (1, 0, 2))
        return ops.reshape(flat, (1, self.num_features, self._blocks * self._outputs))

    def join(self, matrices: Any) -> Any:
        if self._groups > 1:
            matrices = ops.transpose(matrices, (1, 0, 2))
        flat = ops.reshape(matrices, (self._channels, self._taps, self._outputs))
        return ops.transpose(flat, (1, 0, 2))

    def offset(self, mean: Any, matrices: Any) -> Any:
        parts = ops.squeeze(mean[:, None, :] @ matrices, axis=1)
        if self._groups > 1:
            return ops.reshape(parts, (-1,))
        return ops.sum(ops.reshape(parts, (self._blocks, self._outputs)), axis=0)


class SliceBlocks:
    """The original program's division of a dense layer: contiguous slices, one matrix for all.

    Args:
        channels: input features C.
        outputs: O.
        block_size: features per slice, as asked for.
    """

    def __init__(self, channels: int, outputs: int, block_size: int) -> None:
        self.num_sets = 1
        self.num_features = effective_block_size(block_size, channels)
        self.num_slices = 1
        self._blocks, self._outputs = channels // self.num_features, outputs

    def rows(self, windows: Any) -> Any:
        return ops.reshape(windows, (1, -1, self.num_features))

    def split(self, kernel: Any) -> Any:
        parts = ops.reshape(kernel, (self._blocks, self.num_features, self._outputs))
        parts = ops.transpose(parts, (1, 0, 2))
        return ops.reshape(parts, (1, self.num_features, self._blocks * self._outputs))

    def join(self, matrices: Any) -> Any:
        parts = ops.reshape(matrices, (self.num_features, self._blocks, self._outputs))
        parts = ops.transpose(parts, (1, 0, 2))
        return ops.reshape(parts, (1, self._blocks * self.num_features, self._outputs))

    def offset(self, mean: Any, matrices: Any) -> Any:
        parts = ops.squeeze(mean[:, None, :] @ matrices, axis=1)
        return ops.sum(ops.reshape(parts, (self._blocks, self._outputs)), axis=0)
