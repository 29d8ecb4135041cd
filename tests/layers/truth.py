"""Whitening computed slowly, in numpy and float64: windows by loops, roots by eigendecomposition.

Nothing is folded into a kernel here; that is what makes it a second way.
"""

from __future__ import annotations

import itertools

import numpy as np


def whitening_matrix(rows: np.ndarray, epsilon: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (covariance + epsilon * mean variance) ** -0.5 of rows (M, F)."""
    mean = rows.mean(axis=0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    covariance += epsilon * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    return mean, (vectors / np.sqrt(values)) @ vectors.T


def same_padding(size: int, extent: int, stride: int) -> tuple[int, int]:
    """Zeros before and after: the fewest that give ceil(size / stride) windows."""
    total = max(0, (int(np.ceil(size / stride)) - 1) * stride + extent - size)
    return total // 2, total - total // 2


def windows(x, kernel_size, strides=(1, 1), dilation=(1, 1), padding="valid") -> np.ndarray:
    """All windows (N, rows, columns, kernel height, kernel width, C) of images (N, H, W, C)."""
    extents = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    if padding == "same":
        pads = [same_padding(*item) for item in zip(x.shape[1:3], extents, strides, strict=True)]
        x = np.pad(x, ((0, 0), *pads, (0, 0)))
    counts = [
        (size - e) // s + 1 for size, e, s in zip(x.shape[1:3], extents, strides, strict=True)
    ]
    found = np.zeros((len(x), *counts, *kernel_size, x.shape[-1]))
    for row, column in itertools.product(*map(range, counts)):
        for i, j in itertools.product(*map(range, kernel_size)):
            y, x_ = row * strides[0] + i * dilation[0], column * strides[1] + j * dilation[1]
            found[:, row, column, i, j] = x[:, y, x_]
    return found


def whitened_convolution(
    x,
    kernel,
    bias=0.0,
    *,
    strides=(1, 1),
    dilation=(1, 1),
    padding="valid",
    groups=1,
    block=None,
    sampling=1,
    epsilon=1e-5,
) -> np.ndarray:
    """Training output: each block of contiguous channels whitened, then multiplied."""
    found = windows(np.asarray(x, float), kernel.shape[:2], strides, dilation, padding)
    steps = [max(1, min(sampling, count - 1)) for count in found.shape[1:3]]
    each_in, each_out = kernel.shape[2], kernel.shape[3] // groups
    block = block or each_in
    outputs = np.zeros((*found.shape[:3], kernel.shape[3]))
    for group in range(groups):
        columns = slice(group * each_out, (group + 1) * each_out)
        for start in range(0, each_in, block):
            first = group * each_in + start
            part = found[..., first : first + block]
            sampled = part[:, :: steps[0], :: steps[1]]
            features = part[0, 0, 0].size
            mean, matrix = whitening_matrix(sampled.reshape(-1, features), epsilon)
            white = (part.reshape(*part.shape[:3], features) - mean) @ matrix
            weights = kernel[:, :, start : start + block, columns]
            outputs[..., columns] += white @ weights.reshape(features, each_out)
    return outputs + bias


def correlated(rng, shape, condition: float = 10.0) -> np.ndarray:
    """Normal features with a mean of about 1, mixed by a matrix of this condition number."""
    mix = change_of_basis(rng, shape[-1], condition)
    return (rng.normal(size=shape) @ mix + rng.normal(size=shape[-1])).astype("float32")


def change_of_basis(rng, size: int, condition: float) -> np.ndarray:
    """A matrix with this condition number and singular values around 1."""
    left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2))
    return left * np.geomspace(condition**0.5, condition**-0.5, size) @ right
