"""Affine maps of the image plane, applied by one bilinear resampling.

A map is a matrix `(2, 3)` from a place of the output to the place of the input whose colour it
shows: x' = m00 x + m01 y + m02, y' = m10 x + m11 y + m12, in pixels from the centre of the image,
x to the right and y down, measured between pixel centres. Maps one after the other are the product
of their matrices, so that a composition resamples once.

Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
2021 (the angles of shear and the order of the parts).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from keras_git.transforms.sampling import bilinear


def affine_matrix(
    *,
    rotate: float = 0.0,
    shear_x: float = 0.0,
    shear_y: float = 0.0,
    scale: float = 1.0,
    translate_x: float = 0.0,
    translate_y: float = 0.0,
) -> np.ndarray:
    """The map that shears, rotates and scales about the centre, then moves.

    Args:
        rotate: degrees, clockwise as the image is seen.
        shear_x: angle of the shear along x, degrees, not 90.
        shear_y: angle of the shear along y, degrees, not 90.
        scale: above 0; 2 shows the inner half of the sides at twice the size.
        translate_x: pixels to the right.
        translate_y: pixels down.

    Returns:
        float64 `(2, 3)`, from output to input.
    """
    theta, p, q = (math.radians(angle) for angle in (rotate, shear_x, shear_y))
    a = math.cos(theta - q) / math.cos(q)
    b = -math.cos(theta - q) * math.tan(p) / math.cos(q) - math.sin(theta)
    c = math.sin(theta - q) / math.cos(q)
    d = -math.sin(theta - q) * math.tan(p) / math.cos(q) + math.cos(theta)
    inner = np.array([[d, -b], [-c, a]]) / scale
    inner = np.where(np.abs(inner) < 1e-15, 0.0, inner)  # quarter turns are exact
    offset = -inner @ np.array([translate_x, translate_y])
    return np.concatenate([inner, offset[:, None]], axis=1) + 0.0  # no negative zeros


def composed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The map of applying `first` and then `second` to an image, `(2, 3)`.

    An output place goes through the second map back to a place of what the first one made.
    """
    whole = np.vstack([first, [0, 0, 1]]) @ np.vstack([second, [0, 0, 1]])
    return whole[:2]


def visible_fraction(matrix: np.ndarray, height: int, width: int) -> float:
    """Part of the output that shows the image and not the fill, 0..1."""
    rows, columns = np.mgrid[:height, :width]
    x, y = columns - (width - 1) / 2, rows - (height - 1) / 2
    source_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] + (width - 1) / 2
    source_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] + (height - 1) / 2

    def inside(place: np.ndarray, side: int) -> np.ndarray:
        # the weight that bilinear interpolation gives to pixels of the image
        return np.clip(np.minimum(place + 1, side - place), 0.0, 1.0)

    return float((inside(source_x, width) * inside(source_y, height)).mean())


def warp(images: Any, matrix: Any, fill: Any = 0.0) -> Any:
    """Images seen through a map: bilinear between pixel centres, `fill` outside.

    Args:
        images: float32 `(N, H, W, C)`.
        matrix: float32 `(2, 3)` for all images (one grid, the cheaper way), or `(N, 2, 3)`.
        fill: number or scalar tensor, what is outside of the image.

    Returns:
        float32 tensor `(N, H, W, C)`.
    """
    height, width = (int(side) for side in images.shape[1:3])
    rows, columns = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32)
    x = ops.convert_to_tensor(columns - np.float32((width - 1) / 2))
    y = ops.convert_to_tensor(rows - np.float32((height - 1) / 2))
    matrix = ops.reshape(ops.cast(matrix, "float32"), (-1, 2, 3))
    m = [[matrix[:, i, j, None] for j in range(3)] for i in range(2)]
    source_x = m[0][0] * x + m[0][1] * y + m[0][2] + (width - 1) / 2
    source_y = m[1][0] * x + m[1][1] * y + m[1][2] + (height - 1) / 2
    return ops.reshape(bilinear(images, source_x, source_y, fill=fill), ops.shape(images))
