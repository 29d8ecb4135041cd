"""The divisions into blocks: sizes, and that whitening by the identity is the plain product."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from keras_git.layers.blocks import (
    ChannelBlocks,
    InterleavedBlocks,
    SliceBlocks,
    effective_block_size,
)
from keras_git.layers.patches import sliced


@pytest.mark.parametrize(
    ("block_size", "channels", "expected"),
    [(64, 3, 3), (64, 64, 64), (64, 128, 64), (16, 24, 8), (5, 12, 1), (24, 60, 12)],
)
def test_effective_block_size(block_size, channels, expected):
    assert effective_block_size(block_size, channels) == expected


@pytest.mark.parametrize(
    ("blocks", "taps", "groups"),
    [
        (ChannelBlocks(4, 12, 6, 1, 4), 4, 1),
        (ChannelBlocks(4, 12, 6, 3, 2), 4, 3),
        (InterleavedBlocks(4, 12, 6, 1, 3), 4, 1),
        (InterleavedBlocks(4, 12, 6, 3, 64), 4, 3),
        (SliceBlocks(12, 6, 4), 1, 1),
    ],
    ids=["channels", "channels_grouped", "interleaved", "interleaved_grouped", "slices"],
)
def test_rows_times_matrices_is_patches_times_kernel(blocks, taps, groups):
    rng = np.random.default_rng(0)
    patches, kernel = rng.normal(size=(5, taps, 12)), rng.normal(size=(taps, 12 // groups, 6))
    matrices = blocks.split(ops.convert_to_tensor(kernel.astype("float32")))
    assert matrices.shape[:2] == (blocks.num_sets, blocks.num_features)
    np.testing.assert_allclose(ops.convert_to_numpy(blocks.join(matrices)), kernel, rtol=1e-6)
    rows = blocks.rows(sliced(ops.convert_to_tensor(patches.astype("float32")), blocks.num_slices))
    assert rows.shape[0] == blocks.num_sets and rows.shape[2] == blocks.num_features
    # the same row for all: its offset is the layer's output without bias
    first = np.broadcast_to(patches[:1], patches.shape).astype("float32")
    if blocks.num_features * blocks.num_sets == taps * 12:
        mean = ops.mean(
            blocks.rows(sliced(ops.convert_to_tensor(first), blocks.num_slices)), axis=1
        )
        each = np.split(kernel, groups, axis=-1)
        parts = np.split(patches[0], groups, axis=-1)
        expected = [np.einsum("tc,tco->o", p, k) for p, k in zip(parts, each, strict=True)]
        offset = ops.convert_to_numpy(blocks.offset(mean, matrices))
        np.testing.assert_allclose(offset, np.concatenate(expected), rtol=1e-4, atol=1e-5)
