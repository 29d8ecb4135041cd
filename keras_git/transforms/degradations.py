"""Transformations that take information away: blur, noise, erasing, JPEG-like compression."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.transforms.base import SampledTransform

# Quantization steps at quality 50, luminance and chrominance, row = vertical frequency.
# Reference: ITU-T Recommendation T.81 (1992), tables K.1 and K.2.
_LUMINANCE_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)
# RGB to YCbCr with the full range of JFIF (ITU-T T.871).
_TO_YCBCR = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.5],
        [0.5, -0.587 / 1.402, -0.114 / 1.402],
    ]
)


def _column(values: Any) -> Any:
    """One value per image, shaped to broadcast against images."""
    return ops.reshape(ops.cast(values, "float32"), (-1, 1, 1, 1))


@keras.saving.register_keras_serializable(package="keras_git")
class Blur(SampledTransform):
    """Gaussian blur; beyond its border the image is continued by its mirror image.

    Args:
        max_sigma: standard deviations are uniform in [0, max_sigma), pixels.

    Raises:
        InputError: `max_sigma` outside 0..100.
    """

    name = "blur"

    def __init__(self, max_sigma: float = 1.0) -> None:
        if not 0 <= max_sigma <= 100:
            raise InputError(f"max_sigma is {max_sigma}; give pixels from 0 to 100")
        self.max_sigma = float(max_sigma)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"sigma": rng.uniform(0.0, self.max_sigma, number).astype(np.float32)}

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        images = ops.cast(images, "float32")
        sigma = ops.reshape(ops.cast(parameters["sigma"], "float32"), (-1, 1, 1))
        # A product of matrices per axis, whose size does not depend on sigma: one compilation
        rows = _gaussian_matrix(sigma, int(images.shape[1]))
        columns = _gaussian_matrix(sigma, int(images.shape[2]))
        images = ops.einsum("nij,njwc->niwc", rows, images)
        return ops.clip(ops.einsum("nij,nhjc->nhic", columns, images), 0.0, 255.0)

    def get_config(self) -> dict[str, Any]:
        return {"max_sigma": self.max_sigma}


def _gaussian_matrix(sigma: Any, size: int) -> Any:
    """`(N, size, size)`: weight of pixel j in blurred pixel i; rows sum to 1."""
    to, source = np.indices((size, size))
    # the pixel itself, and its mirror images at the two borders
    distances = (to - source, to + source + 1, 2 * size - 1 - to - source)
    precision = 0.5 / ops.maximum(sigma, 1e-3) ** 2
    weights = sum(
        ops.exp(-precision * ops.convert_to_tensor((distance**2).astype(np.float32)))
        for distance in distances
    )
    return weights / ops.sum(weights, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable(package="keras_git")
class Noise(SampledTransform):
    """Adds independent Gaussian noise to every pixel and channel and clips to 0..255.

    The host draws a seed per image; the noise of a pixel is a hash of that seed and its place, so
    it is the same on every backend and nothing of the size of an image is sent to the device.

    Args:
        max_sigma: standard deviations are uniform in [0, max_sigma), grey levels.

    Raises:
        InputError: `max_sigma` outside 0..255.
    """

    name = "noise"

    def __init__(self, max_sigma: float = 16.0) -> None:
        if not 0 <= max_sigma <= 255:
            raise InputError(f"max_sigma is {max_sigma}; give grey levels from 0 to 255")
        self.max_sigma = float(max_sigma)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {
            "sigma": rng.uniform(0.0, self.max_sigma, number).astype(np.float32),
            "seed": rng.integers(-(2**31), 2**31, number).astype(np.int32),
        }

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        images = ops.cast(images, "float32")
        size = int(np.prod(images.shape[1:]))
        noise = standard_normal(parameters["seed"], size)
        noise = ops.reshape(noise, (-1, *images.shape[1:]))
        return ops.clip(images + _column(parameters["sigma"]) * noise, 0.0, 255.0)

    def get_config(self) -> dict[str, Any]:
        return {"max_sigma": self.max_sigma}


def standard_normal(seeds: Any, size: int) -> Any:
    """`size` numbers from N(0, 1) for each seed, the same on every backend.

    Args:
        seeds: int32 `(N,)`.
        size: numbers per seed.

    Returns:
        float32 `(N, size)`: Box and Muller's transformation of hashed counters.
    """
    seeds = ops.reshape(ops.cast(seeds, "int32"), (-1, 1))
    counters = ops.convert_to_tensor(np.arange(size, dtype=np.int32)[None])
    first = _hashed(counters + _hashed(seeds))
    second = _hashed(ops.bitwise_xor(first, 0x5BD1E995))
    radius = ops.sqrt(-2.0 * ops.log(_uniform(first)))
    return radius * ops.cos((2.0 * math.pi) * _uniform(second))


def _hashed(values: Any) -> Any:
    """The 32-bit finalizer of MurmurHash3 (Appleby, 2011), in wrapping int32 arithmetic."""
    values = ops.bitwise_xor(values, _shifted_right(values, 16))
    values = values * -2048144789  # 0x85EBCA6B
    values = ops.bitwise_xor(values, _shifted_right(values, 13))
    values = values * -1028477387  # 0xC2B2AE35
    return ops.bitwise_xor(values, _shifted_right(values, 16))


def _shifted_right(values: Any, bits: int) -> Any:
    """A shift that fills up with zeros, where that of int32 copies the sign."""
    return ops.bitwise_and(ops.bitwise_right_shift(values, bits), (1 << (32 - bits)) - 1)


def _uniform(bits: Any) -> Any:
    """float32 inside (0, 1) from the upper 23 bits of int32."""
    return (ops.cast(_shifted_right(bits, 9), "float32") + 0.5) * (1.0 / (1 << 23))


@keras.saving.register_keras_serializable(package="keras_git")
class Erasing(SampledTransform):
    """Covers a random rectangle with one random grey level.

    Args:
        max_area: the covered part of the image is uniform in [0, max_area), 0..1; sides have a
            ratio log-uniform in 1/2..2, as far as the image goes.

    Raises:
        InputError: `max_area` outside 0..1.

    Reference: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020.
    """

    name = "erasing"

    def __init__(self, max_area: float = 0.25) -> None:
        if not 0 <= max_area <= 1:
            raise InputError(f"max_area is {max_area}; give a part from 0 to 1")
        self.max_area = float(max_area)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        area = rng.uniform(0.0, self.max_area, number)
        ratio = 2.0 ** rng.uniform(-1.0, 1.0, number)
        # In parts of the sides; a rectangle that would be longer than a side becomes wider
        height = np.minimum(np.maximum(np.sqrt(area * ratio), area), 1.0)
        width = np.divide(area, height, out=np.zeros(number), where=height > 0)
        drawn = {
            "height": height,
            "width": width,
            "top": rng.random(number) * (1.0 - height),
            "left": rng.random(number) * (1.0 - width),
            "level": rng.integers(0, 256, number),
        }
        return {name: values.astype(np.float32) for name, values in drawn.items()}

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        images = ops.cast(images, "float32")
        covered: Any = True
        for axis, (start, length) in ((1, ("top", "height")), (2, ("left", "width"))):
            size = int(images.shape[axis])
            centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
            shape = (1, -1, 1, 1) if axis == 1 else (1, 1, -1, 1)
            place = ops.convert_to_tensor(centres.reshape(shape))
            first = _column(parameters[start])
            inside = (place >= first) & (place < first + _column(parameters[length]))
            covered = inside if axis == 1 else covered & inside
        return ops.where(covered, _column(parameters["level"]), images)

    def get_config(self) -> dict[str, Any]:
        return {"max_area": self.max_area}


@keras.saving.register_keras_serializable(package="keras_git")
class JPEG(SampledTransform):
    """What the quantization of JPEG leaves of an image, computed on the device.

    Colour images go through YCbCr without chroma subsampling. Blocks of 8 x 8 pixels are
    transformed (DCT-II), rounded to multiples of the standard's steps at a quality, and
    transformed back; images whose sides are no multiples of 8 are continued by their last pixels.

    Args:
        min_quality: qualities are uniform in min_quality..100, whole numbers, on the scale of the
            Independent JPEG Group (1 worst, 100 almost lossless).

    Raises:
        InputError: `min_quality` outside 1..100 or fractional.

    Reference: ITU-T Recommendation T.81 (1992), annexes A.3 and K.1.
    """

    name = "jpeg"

    def __init__(self, min_quality: int = 40) -> None:
        if min_quality not in range(1, 101):
            raise InputError(f"min_quality is {min_quality}; give a whole number from 1 to 100")
        self.min_quality = int(min_quality)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        drawn = rng.integers(self.min_quality, 100, number, endpoint=True)
        return {"quality": drawn.astype(np.int32)}

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        images = ops.cast(images, "float32")
        height, width, channels = (int(size) for size in images.shape[1:])
        rows, columns = -(-height // 8), -(-width // 8)
        colour = channels == 3
        planes = _mixed(images, _TO_YCBCR) if colour else images
        if colour:  # chroma is centred at 0 already
            planes = planes - ops.convert_to_tensor(np.array([128.0, 0.0, 0.0], np.float32))
        else:
            planes = planes - 128.0
        for axis, size, padded in ((1, height, 8 * rows), (2, width, 8 * columns)):
            if size != padded:  # ops.pad has no edge mode on PyTorch
                planes = ops.take(planes, np.minimum(np.arange(padded), size - 1), axis=axis)
        blocks = ops.reshape(planes, (-1, rows, 8, columns, 8, channels))

        basis = ops.convert_to_tensor(_dct_matrix().astype(np.float32))
        blocks = ops.einsum("fi,nriskc->nrfskc", basis, blocks)
        blocks = ops.einsum("gk,nrfskc->nrfsgc", basis, blocks)
        steps = self._steps(parameters["quality"], channels)
        blocks = ops.round(blocks / steps) * steps
        blocks = ops.einsum("gk,nrfsgc->nrfskc", basis, blocks)
        blocks = ops.einsum("fi,nrfskc->nriskc", basis, blocks)

        planes = ops.reshape(blocks, (-1, 8 * rows, 8 * columns, channels))
        planes = planes[:, :height, :width]
        if colour:
            planes = planes + ops.convert_to_tensor(np.array([128.0, 0.0, 0.0], np.float32))
            planes = _mixed(planes, np.linalg.inv(_TO_YCBCR))
        else:
            planes = planes + 128.0
        return ops.clip(ops.round(planes), 0.0, 255.0)

    def _steps(self, quality: Any, channels: int) -> Any:
        """Quantization steps `(N, 1, 8, 1, 8, channels)` of the IJG's quality scale."""
        quality = ops.reshape(ops.cast(quality, "float32"), (-1, 1, 1, 1, 1, 1))
        percent = ops.where(
            quality < 50, ops.floor(5000.0 / ops.maximum(quality, 1.0)), 200.0 - 2.0 * quality
        )
        tables = [_LUMINANCE_STEPS] + [_CHROMINANCE_STEPS] * (channels - 1)
        base = np.stack(tables, axis=-1).astype(np.float32)[None, None, :, None]
        steps = ops.floor((ops.convert_to_tensor(base) * percent + 50.0) / 100.0)
        return ops.clip(steps, 1.0, 255.0)

    def get_config(self) -> dict[str, Any]:
        return {"min_quality": self.min_quality}


def _mixed(images: Any, matrix: np.ndarray) -> Any:
    """Each output channel a sum of input channels; `matrix` is (out, in).

    Written as sums: reduced-precision matrix units would round.
    """
    parts = [images[..., i] for i in range(matrix.shape[1])]
    return ops.stack(
        [sum(float(w) * part for w, part in zip(row, parts, strict=True)) for row in matrix],
        axis=-1,
    )


def _dct_matrix() -> np.ndarray:
    """The orthonormal DCT-II of 8 numbers, (frequency, place)."""
    frequency, place = np.indices((8, 8))
    matrix = 0.5 * np.cos((2 * place + 1) * frequency * math.pi / 16)
    matrix[0] /= math.sqrt(2)
    return matrix
