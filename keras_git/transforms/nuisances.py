"""The nuisance transformations of the paper's K49 study, each formula written once.

Every function takes the array namespace as `xp`: `numpy` (the default; integer images are
computed in float64 and come back in their own dtype) or `keras.ops` (float32 images on the
backend, traceable). Grey levels are 0..255 in both cases and fractional results are truncated,
so that both give the images that an 8-bit pipeline would store.

Images are `(N, H, W)` or `(N, H, W, C)`; the shape is kept. Parameters are arrays of one value
per image, `(N,)`, or one scalar for all images.

Reference: "Do Deep Networks Transfer Invariances Across Classes?" (Zhou et al., ICLR 2022),
the Kuzushiji-49 nuisances: rotation, background intensity, dilation or erosion.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keras_git.errors import InputError

LARGEST_DILATION = 4
LARGEST_EROSION = 2
# In float32 a value that is exactly 255 in the formula may come out as 254.9999; the slack keeps
# such values from losing a grey level when they are truncated.
FLOAT32_SLACK = 1e-3


def _is_numpy(xp: Any) -> bool:
    return xp is np


def _working(images: Any, xp: Any) -> Any:
    """Images as floats: float64 in numpy, float32 on the backend."""
    if _is_numpy(xp):
        return np.asarray(images, dtype=np.float64)
    return xp.cast(images, "float32")


def _parameter(values: Any, rank: int, xp: Any) -> Any:
    """Per-image parameters shaped so that they broadcast against images of `rank`."""
    if _is_numpy(xp):
        values = np.asarray(values, dtype=np.float64)
    else:
        values = xp.cast(values, "float32")
    if len(values.shape) == 0:
        return values
    return xp.reshape(values, (-1,) + (1,) * (rank - 1))


def _truncated(values: Any, like: Any, xp: Any) -> Any:
    """Truncates grey levels to integers; numpy results return in the dtype of `like`."""
    if _is_numpy(xp):
        return np.floor(values).astype(np.asarray(like).dtype)
    return xp.floor(values + FLOAT32_SLACK)


def _check_images(images: Any) -> int:
    rank = len(images.shape)
    if rank not in (3, 4):
        raise InputError(
            f"images have shape {tuple(images.shape)}; give (N, H, W) or (N, H, W, C) arrays"
        )
    return rank


def rotate(images: Any, degrees: Any, xp: Any = np) -> Any:
    """Rotates images about their centre with a cubic kernel.

    Args:
        images: `(N, H, W)` or `(N, H, W, C)`, grey levels 0..255.
        degrees: counter-clockwise angles in degrees, `(N,)` or a scalar.
        xp: array namespace, `numpy` or `keras.ops`.

    Returns:
        Rotated images of the same shape. Pixels whose source point falls outside the image are
        0. The kernel is the cubic convolution with a = -1; overshoot is clipped to [0, 255] and
        the result truncated. Multiples of 90 degrees are exact flips and transposes.

    Raises:
        InputError: images of another rank.
    """
    numpy_like = _is_numpy(xp)
    _check_images(images)
    radians = -_parameter(degrees, 2, xp) * (math.pi / 180.0)
    cosine, sine = xp.cos(radians), xp.sin(radians)
    if numpy_like:
        # cos(90 degrees) is 6e-17 in float64; rounding makes quarter turns exact
        cosine, sine = np.round(cosine, 15), np.round(sine, 15)
    from_centre_x, from_centre_y = from_centre(images, xp)
    return resampled(
        images,
        cosine * from_centre_x + sine * from_centre_y,
        -sine * from_centre_x + cosine * from_centre_y,
        xp,
    )


def scale(images: Any, factors: Any, xp: Any = np) -> Any:
    """Enlarges or shrinks images about their centre, with the kernel of `rotate`.

    Args:
        images: `(N, H, W)` or `(N, H, W, C)`, grey levels 0..255.
        factors: above 0, `(N,)` or a scalar; 2 shows the inner half of the sides at twice the
            size, 0.5 the whole image at half the size in a frame of zeros.
        xp: array namespace, `numpy` or `keras.ops`.

    Returns:
        Images of the same shape, resampled as by `rotate`; the factor 1 is the identity. Shrinking
        does not smooth, so fine detail aliases.

    Raises:
        InputError: images of another rank.
    """
    _check_images(images)
    factors = _parameter(factors, 2, xp)
    from_centre_x, from_centre_y = from_centre(images, xp)
    return resampled(images, from_centre_x / factors, from_centre_y / factors, xp)


def from_centre(images: Any, xp: Any) -> tuple[Any, Any]:
    """x and y of all pixel centres as seen from the centre of the image, each `(1, H * W)`.

    Continuous pixel coordinates: pixel i covers [i, i + 1), its centre is at i + 0.5.
    """
    height, width = int(images.shape[1]), int(images.shape[2])
    rows, columns = np.meshgrid(
        np.arange(height) + 0.5 - height / 2, np.arange(width) + 0.5 - width / 2, indexing="ij"
    )
    if _is_numpy(xp):
        return columns.reshape(1, -1), rows.reshape(1, -1)
    # on the device of the images
    x, y = (part.reshape(1, -1).astype(np.float32) for part in (columns, rows))
    return xp.convert_to_tensor(x), xp.convert_to_tensor(y)


def resampled(images: Any, source_x: Any, source_y: Any, xp: Any, fill: float = 0.0) -> Any:
    """The image at source points: cubic convolution with a = -1, `fill` outside, truncated.

    `source_x` and `source_y` are `(N or 1, H * W)`, pixels from the centre of the image.
    """
    rank = _check_images(images)
    numpy_like = _is_numpy(xp)
    shape = images.shape if numpy_like else xp.shape(images)
    number, height, width = shape[0], int(images.shape[1]), int(images.shape[2])
    channels = int(images.shape[3]) if rank == 4 else 1
    source_x, source_y = source_x + width / 2, source_y + height / 2
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)

    source_x, source_y = source_x - 0.5, source_y - 0.5
    left, top = xp.floor(source_x), xp.floor(source_y)
    part_x, part_y = (source_x - left)[..., None], (source_y - top)[..., None]

    def integer(values: Any) -> Any:
        return values.astype(np.int64) if numpy_like else xp.cast(values, "int32")

    left, top = integer(left), integer(top)
    # One flat gather per tap: the pixels of all images in one (N * H * W, C) table
    table = xp.reshape(_working(images, xp), (-1, channels))
    first = integer(xp.arange(number))[:, None] * (height * width)

    def cubic(taps: list[Any], part: Any) -> Any:
        p1, p2, p3, p4 = taps
        inner = 2.0 * (p1 - p2) + p3 - p4 + part * (-p1 + p2 - p3 + p4)
        return p2 + part * ((p3 - p1) + part * inner)

    tap_columns = [xp.clip(left + shift, 0, width - 1) for shift in (-1, 0, 1, 2)]
    along_x = []
    for shift in (-1, 0, 1, 2):
        row = first + xp.clip(top + shift, 0, height - 1) * width
        taps = [xp.take(table, row + column, axis=0) for column in tap_columns]
        along_x.append(cubic(taps, part_x))
    value = xp.clip(cubic(along_x, part_y), 0.0, 255.0)
    value = xp.where(inside[..., None], value, xp.full_like(value, fill))
    return _truncated(xp.reshape(value, shape), images, xp)


def set_background(images: Any, values: Any, xp: Any = np) -> Any:
    """Replaces every pixel that is exactly 0 by a background grey level.

    Faint anti-aliased pixels (1 and more) stay, so strokes on a bright background get a dark
    halo; an image without zeros is unchanged and the value 0 is the identity.

    Args:
        images: `(N, H, W)` or `(N, H, W, C)`, grey levels 0..255.
        values: background grey levels, `(N,)` or a scalar, 0..255 (0..99 in the paper).
        xp: array namespace, `numpy` or `keras.ops`.

    Returns:
        Images of the same shape.

    Raises:
        InputError: images of another rank.
    """
    rank = _check_images(images)
    working = _working(images, xp)
    background = xp.zeros_like(working) + _parameter(values, rank, xp)
    return _truncated(xp.where(working == 0, background, working), images, xp)


def _extreme(images: Any, sizes: Any, xp: Any, *, largest: int, dilating: bool) -> Any:
    """Flat grey-scale maximum or minimum over a square window of its own size per image."""
    rank = _check_images(images)
    height, width = int(images.shape[1]), int(images.shape[2])
    # Pixels outside are ignored: the padding never wins (grey levels are 0..255)
    neutral = 0.0 if dilating else 255.0
    choose = xp.maximum if dilating else xp.minimum
    sizes = xp.floor(_parameter(sizes, rank, xp))
    before, after = largest // 2, (largest - 1) // 2
    start = -xp.floor(sizes / 2)
    stop = sizes - 1 + start

    result = _working(images, xp)
    # The square window is separable: first along rows, then along columns
    for axis, length in ((1, height), (2, width)):
        padding = [(0, 0)] * rank
        padding[axis] = (before, after)
        padded = xp.pad(result, padding, constant_values=neutral)
        extreme = xp.full_like(result, neutral)
        for offset in range(-before, after + 1):
            index: list[Any] = [slice(None)] * rank
            index[axis] = slice(before + offset, before + offset + length)
            used = (start <= offset) & (stop >= offset)
            shifted = padded[tuple(index)]
            extreme = xp.where(used, choose(extreme, shifted), extreme)
        result = extreme
    return _truncated(result, images, xp)


def _check_sizes(sizes: Any, largest: int, xp: Any, what: str) -> None:
    if not _is_numpy(xp) and not isinstance(sizes, (int, list, tuple, np.ndarray)):
        return  # traced values cannot be looked at; `sample` draws them in range
    values = np.asarray(sizes)
    if values.size and (values.min() < 1 or values.max() > largest):
        raise InputError(
            f"{what} window sizes range from {values.min()} to {values.max()}; "
            f"give sizes from 1 to {largest}, or a larger `largest`"
        )


def dilate(images: Any, sizes: Any, xp: Any = np, *, largest: int = LARGEST_DILATION) -> Any:
    """Grey-scale dilation: the maximum over a k x k window.

    The window covers the offsets -(k // 2) .. k - 1 - k // 2 in both axes (k=2: -1..0; k=3:
    -1..1; k=4: -2..1); pixels outside the image are ignored.

    Args:
        images: `(N, H, W)` or `(N, H, W, C)`, grey levels 0..255.
        sizes: window sizes k, `(N,)` or a scalar, 1..`largest`; 1 is the identity.
        xp: array namespace, `numpy` or `keras.ops`.
        largest: the largest size that can occur (the number of shifts that are computed).

    Returns:
        Images of the same shape.

    Raises:
        InputError: images of another rank, sizes outside 1..`largest`.
    """
    _check_sizes(sizes, largest, xp, "dilation")
    return _extreme(images, sizes, xp, largest=largest, dilating=True)


def erode(images: Any, sizes: Any, xp: Any = np, *, largest: int = LARGEST_EROSION) -> Any:
    """Grey-scale erosion: the minimum over a k x k window, the same window as `dilate`.

    Args:
        images: `(N, H, W)` or `(N, H, W, C)`, grey levels 0..255.
        sizes: window sizes k, `(N,)` or a scalar, 1..`largest`; 1 is the identity.
        xp: array namespace, `numpy` or `keras.ops`.
        largest: the largest size that can occur (the number of shifts that are computed).

    Returns:
        Images of the same shape.

    Raises:
        InputError: images of another rank, sizes outside 1..`largest`.
    """
    _check_sizes(sizes, largest, xp, "erosion")
    return _extreme(images, sizes, xp, largest=largest, dilating=False)


def grey_level(images: Any, background: Any, foreground: Any, xp: Any = np) -> Any:
    """Gives dark-background images a new background and a new stroke level.

    Computes `background + (foreground - background) * image / 255` and truncates: black becomes
    `background`, full strokes become `foreground`.

    Args:
        images: `(N, H, W)` or `(N, H, W, C)`, grey levels 0..255, background 0.
        background: grey levels `(N,)` or a scalar, 0..255.
        foreground: grey levels `(N,)` or a scalar, 0..255.
        xp: array namespace, `numpy` or `keras.ops`.

    Returns:
        Images of the same shape.

    Raises:
        InputError: images of another rank.
    """
    rank = _check_images(images)
    low, high = _parameter(background, rank, xp), _parameter(foreground, rank, xp)
    # multiplied before the division, so that integer results are exact in float64
    return _truncated(low + (high - low) * _working(images, xp) / 255.0, images, xp)


def shift(images: Any, down: Any, right: Any, xp: Any = np) -> Any:
    """Moves images by whole pixels; what comes in from outside is 0.

    Args:
        images: `(N, H, W)` or `(N, H, W, C)`, grey levels 0..255.
        down: pixels downwards (negative: upwards), `(N,)` or a scalar.
        right: pixels to the right (negative: to the left), `(N,)` or a scalar.
        xp: array namespace, `numpy` or `keras.ops`.

    Returns:
        Images of the same shape.

    Raises:
        InputError: images of another rank.
    """
    rank = _check_images(images)
    numpy_like = _is_numpy(xp)
    shape = images.shape if numpy_like else xp.shape(images)
    number, height, width = shape[0], int(images.shape[1]), int(images.shape[2])
    channels = int(images.shape[3]) if rank == 4 else 1

    def integer(values: Any) -> Any:
        return np.asarray(values).astype(np.int64) if numpy_like else xp.cast(values, "int32")

    rows, columns = np.indices((height, width)).reshape(2, 1, -1)
    source_y = integer(rows) - integer(_parameter(down, 2, xp))
    source_x = integer(columns) - integer(_parameter(right, 2, xp))
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    pixel = xp.clip(source_y, 0, height - 1) * width + xp.clip(source_x, 0, width - 1)
    table = xp.reshape(_working(images, xp), (-1, channels))
    first = integer(xp.arange(number))[:, None] * (height * width)
    value = xp.take(table, first + pixel, axis=0)
    value = xp.reshape(xp.where(inside[..., None], value, xp.zeros_like(value)), shape)
    return value.astype(np.asarray(images).dtype) if numpy_like else value


def sample_rotation(
    number: int, rng: np.random.Generator, max_degrees: float = 180.0
) -> dict[str, np.ndarray]:
    """Draws angles: `{"degrees": float32 (number,)}`, uniform in [-max_degrees, max_degrees)."""
    return {"degrees": rng.uniform(-max_degrees, max_degrees, number).astype(np.float32)}


def sample_background(
    number: int, rng: np.random.Generator, low: int = 0, high: int = 99
) -> dict[str, np.ndarray]:
    """Draws background levels: `{"values": int32 (number,)}`, uniform in low..high inclusive."""
    return {"values": rng.integers(low, high, number, endpoint=True).astype(np.int32)}


def sample_dilation_erosion(
    number: int, rng: np.random.Generator, largest: int = LARGEST_DILATION
) -> dict[str, np.ndarray]:
    """Draws `{"dilate", "erode"}` window sizes, int32 (number,); one of the two is always 1.

    With probability 0.6 a dilation of size 2 to `largest`, else an erosion of size 1 (the
    identity) or 2.
    """
    dilating = rng.random(number) < 0.6
    dilations = rng.integers(2, largest, number, endpoint=True)
    erosions = rng.integers(1, 2, number, endpoint=True)
    return {
        "dilate": np.where(dilating, dilations, 1).astype(np.int32),
        "erode": np.where(dilating, 1, erosions).astype(np.int32),
    }


def sample_grey_level(number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws `{"background", "foreground"}` levels, int32 (number,).

    The background is uniform in 0..224, the stroke level uniform in background + 30 .. 255.
    """
    background = rng.integers(0, 225, number)
    foreground = rng.integers(background + 30, 256)
    return {
        "background": background.astype(np.int32),
        "foreground": foreground.astype(np.int32),
    }


def dilate_erode(images: Any, dilate_sizes: Any, erode_sizes: Any, xp: Any = np) -> Any:
    """Dilation of size `dilate_sizes` and erosion of size `erode_sizes`; 1 leaves images alone.

    Args:
        images: `(N, H, W)` or `(N, H, W, C)`, grey levels 0..255.
        dilate_sizes: `(N,)`, 1..4.
        erode_sizes: `(N,)`, 1..2.
        xp: array namespace, `numpy` or `keras.ops`.

    Returns:
        Images of the same shape.

    Raises:
        InputError: images of another rank, sizes outside their range.
    """
    return erode(dilate(images, dilate_sizes, xp), erode_sizes, xp)
