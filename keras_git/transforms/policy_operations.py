"""The image operations of augmentation policies, batched, with the results of 8-bit images.

Fifteen operations, each with the magnitudes 0 to 9, as searched over by AutoAugment; a sub-policy
is two of them in order. Images are grey levels 0..255 in and out; each operation rounds what it
gets to whole levels and gives whole levels, as programs that store 8-bit images do.

Operations that differ in their numbers alone are one function of images and parameters (a family),
so a search over all of them compiles one function per family.

References: Cubuk et al., *AutoAugment: Learning Augmentation Policies from Data*, CVPR 2019
(operations and the ImageNet and SVHN policies); Bouchacourt, Ibrahim, Morcos, *Grounding Inductive
Biases in Natural Images*, NeurIPS 2021 (rescale, and the set of candidates).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.transforms import nuisances
from keras_git.transforms.base import Compose, Transform

MAGNITUDES = 10
_GREY_FILL = 128.0
_STEPS = np.arange(MAGNITUDES) / (MAGNITUDES - 1)

# What the magnitudes 0..9 stand for. shear: tangent; translate: part of the side; rotate: degrees;
# color, contrast, sharpness, brightness: distance of the factor from 1; posterize: bits that stay;
# solarize: first grey level that is inverted; rescale: factor.
VALUES: dict[str, np.ndarray] = {
    "shearX": 0.3 * _STEPS,
    "shearY": 0.3 * _STEPS,
    "translateX": 150 / 331 * _STEPS,
    "translateY": 150 / 331 * _STEPS,
    "rotate": 30.0 * _STEPS,
    "color": 0.9 * _STEPS,
    "posterize": np.array([8, 8, 7, 7, 6, 6, 5, 5, 4, 4], dtype=float),
    "solarize": 256.0 * (1 - _STEPS),
    "contrast": 0.9 * _STEPS,
    "sharpness": 0.9 * _STEPS,
    "brightness": 0.9 * _STEPS,
    "autocontrast": np.zeros(MAGNITUDES),
    "equalize": np.zeros(MAGNITUDES),
    "invert": np.zeros(MAGNITUDES),
    "rescale": np.array([1, 0.85, 0.7, 0.55, 0.4, 0.25, 1.625, 2.25, 2.875, 3.5]),
}
OPERATIONS = tuple(VALUES)
SIGNED = (
    "shearX", "shearY", "translateX", "translateY", "color", "contrast", "sharpness", "brightness",
)  # fmt: skip
# Where the two halves of the magnitudes go in different directions, a random magnitude "up to" one
# starts at the first of its half.
_HALVES = {"rescale": 6}

_Part = tuple[str, int]
SUBPOLICIES: tuple[tuple[_Part, _Part], ...] = (
    # AutoAugment's policy for ImageNet, each pair once
    (("posterize", 8), ("rotate", 9)),
    (("solarize", 5), ("autocontrast", 5)),
    (("equalize", 8), ("equalize", 3)),
    (("posterize", 7), ("posterize", 6)),
    (("equalize", 7), ("solarize", 4)),
    (("equalize", 4), ("rotate", 8)),
    (("solarize", 3), ("equalize", 7)),
    (("posterize", 5), ("equalize", 2)),
    (("rotate", 3), ("solarize", 8)),
    (("equalize", 8), ("posterize", 6)),
    (("rotate", 8), ("color", 0)),
    (("rotate", 9), ("equalize", 2)),
    (("equalize", 7), ("equalize", 8)),
    (("invert", 4), ("equalize", 8)),
    (("color", 4), ("contrast", 8)),
    (("rotate", 8), ("color", 2)),
    (("color", 8), ("solarize", 7)),
    (("sharpness", 7), ("invert", 8)),
    (("shearX", 5), ("equalize", 9)),
    (("color", 0), ("equalize", 3)),
    # its policy for SVHN
    (("shearX", 4), ("invert", 3)),
    (("shearY", 8), ("invert", 5)),
    (("equalize", 5), ("solarize", 6)),
    (("invert", 3), ("equalize", 3)),
    (("equalize", 1), ("rotate", 3)),
    (("shearX", 4), ("autocontrast", 3)),
    (("shearY", 5), ("solarize", 6)),
    (("invert", 6), ("autocontrast", 1)),
    (("equalize", 3), ("rotate", 3)),
    (("shearX", 4), ("solarize", 3)),
    (("shearY", 8), ("invert", 4)),
    (("equalize", 5), ("translateY", 6)),
    (("invert", 4), ("equalize", 7)),
    (("contrast", 3), ("rotate", 4)),
    (("invert", 5), ("translateY", 2)),
    (("shearY", 6), ("solarize", 8)),
    (("invert", 4), ("rotate", 4)),
    (("shearY", 7), ("translateX", 3)),
    (("shearX", 6), ("invert", 5)),
    (("solarize", 2), ("translateY", 7)),
    (("shearY", 4), ("invert", 8)),
    (("shearX", 9), ("translateY", 3)),
    (("shearY", 5), ("autocontrast", 3)),
    (("shearX", 2), ("invert", 5)),
    # rescaling
    (("rescale", 0), ("rescale", 1)),
    (("rescale", 2), ("rescale", 3)),
    (("rescale", 4), ("rescale", 5)),
    (("rescale", 6), ("rescale", 7)),
    (("rescale", 8), ("rescale", 9)),
)
SINGLES: tuple[_Part, ...] = tuple(sorted({part for pair in SUBPOLICIES for part in pair}))


def operation_value(operation: str, magnitude: int) -> float:
    """What a magnitude stands for; see `VALUES`.

    Raises:
        InputError: unknown operation, or a magnitude outside 0..9.
    """
    if operation not in VALUES:
        raise InputError(f"operation {operation!r} is unknown; use one of {', '.join(OPERATIONS)}")
    if magnitude not in range(MAGNITUDES):
        raise InputError(f"{operation}: the magnitude is {magnitude!r}; give a whole number 0 to 9")
    return float(VALUES[operation][int(magnitude)])


def canonical(operation: str, magnitude: int) -> tuple[str, float] | None:
    """Equal for two magnitudes of an operation that do the same; None where nothing is done.

    `autocontrast`, `equalize` and `invert` are the same at every magnitude, `posterize` at each
    two; the signs of an operation are not told apart.

    Raises:
        InputError: unknown operation, or a magnitude outside 0..9.
    """
    value = operation_value(operation, magnitude)
    neutral = {"posterize": 8.0, "solarize": 256.0, "rescale": 1.0}
    same = operation in ("autocontrast", "equalize", "invert")
    if not same and value == neutral.get(operation, 0.0):
        return None
    return operation, value


def lowest_magnitude(operation: str, magnitude: int) -> int:
    """The magnitude from which one "up to" `magnitude` is drawn: 0, but of `rescale` 6 to 9
    enlarge and 0 to 5 shrink, so that 6 is the lowest of those."""
    start = _HALVES.get(operation, 0)
    return start if magnitude >= start else 0


def operation_parameters(operation: str, values: Any, xp: Any = np) -> dict[str, Any]:
    """What `apply_family` needs for values of an operation, one per image.

    Args:
        operation: one of `OPERATIONS`.
        values: `(N,)`, entries of `VALUES`, negative for the other direction.
        xp: array namespace, `numpy` or `keras.ops`.

    Returns:
        float32 arrays or tensors whose first dimension is N. Geometric ones are maps from places of
        the output to places of the input: `"matrix"` (N, 6) holds a, b, c, d, e, f of
        x' = a x + b y + c W, y' = d x + e y + f H in pixels from the centre.
    """
    if xp is np:
        values = np.asarray(values, dtype=np.float64)
    zero, one = xp.zeros_like(values), xp.ones_like(values)

    def stacked(*columns: Any) -> Any:
        matrix = xp.stack(list(columns), axis=-1)
        return matrix.astype(np.float32) if xp is np else xp.cast(matrix, "float32")

    if operation == "translateX":
        return {"matrix": stacked(one, zero, values, zero, one, zero), "fill": _GREY_FILL * one}
    if operation == "translateY":
        return {"matrix": stacked(one, zero, zero, zero, one, values), "fill": _GREY_FILL * one}
    if operation == "rescale":
        inverse = 1.0 / values
        return {"matrix": stacked(inverse, zero, zero, zero, inverse, zero), "fill": zero}
    if operation == "rotate":
        radians = -values * (math.pi / 180.0)
        cosine, sine = xp.cos(radians), xp.sin(radians)
        if xp is np:
            cosine, sine = np.round(cosine, 15), np.round(sine, 15)
        matrix = stacked(cosine, sine, zero, -sine, cosine, zero)
        return {"matrix": matrix, "fill": _GREY_FILL * one}
    if operation == "shearX":
        return {"along_x": values, "along_y": zero}
    if operation == "shearY":
        return {"along_x": zero, "along_y": values}
    if operation in ("color", "contrast", "sharpness", "brightness"):
        return {"factor": 1.0 + values}
    if operation == "posterize":
        return {"step": 2.0 ** (8.0 - values)}
    if operation == "solarize":
        return {"threshold": values}
    return {}


def _column(values: Any) -> Any:
    return ops.reshape(ops.cast(values, "float32"), (-1, 1, 1, 1))


def _levels(images: Any) -> Any:
    """Whole grey levels, as an 8-bit image has."""
    return ops.clip(ops.round(ops.cast(images, "float32")), 0.0, 255.0)


def _whole(values: Any) -> Any:
    """Truncated and clipped; the slack keeps what is whole in exact arithmetic."""
    return ops.clip(ops.floor(values + nuisances.FLOAT32_SLACK), 0.0, 255.0)


def _nearest(images: Any, parameters: dict[str, Any]) -> Any:
    height, width, channels = (int(side) for side in images.shape[1:])
    x, y = nuisances.from_centre(images, ops)
    matrix = ops.cast(parameters["matrix"], "float32")
    a, b, c, d, e, f = (matrix[:, i : i + 1] for i in range(6))
    column = ops.floor(a * x + b * y + (c * width + width / 2))
    row = ops.floor(d * x + e * y + (f * height + height / 2))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = ops.clip(row, 0, height - 1) * width + ops.clip(column, 0, width - 1)
    shape = ops.shape(images)
    first = ops.arange(shape[0], dtype="int32")[:, None] * (height * width)
    table = ops.reshape(images, (-1, channels))
    moved = ops.take(table, first + ops.cast(place, "int32"), axis=0)
    fill = ops.reshape(ops.cast(parameters["fill"], "float32"), (-1, 1, 1))
    moved = ops.where(inside[..., None], moved, fill)
    return ops.reshape(moved, shape)


def _shear(images: Any, parameters: dict[str, Any]) -> Any:
    height, width = int(images.shape[1]), int(images.shape[2])
    x, y = nuisances.from_centre(images, ops)
    along_x = ops.reshape(ops.cast(parameters["along_x"], "float32"), (-1, 1))
    along_y = ops.reshape(ops.cast(parameters["along_y"], "float32"), (-1, 1))
    # measured from the corner at the top left, which stays where it is
    source_x, source_y = x + along_x * (y + height / 2), y + along_y * (x + width / 2)
    return nuisances.resampled(images, source_x, source_y, ops, fill=_GREY_FILL)


def _grey(images: Any) -> Any:
    """(N, H, W, 1): the 8-bit luminance, in whole numbers below 2^24, which float32 holds."""
    if images.shape[-1] != 3:
        return images[..., :1]
    red, green, blue = (images[..., i : i + 1] for i in range(3))
    total = 19595.0 * red + 38470.0 * green + 7471.0 * blue + 32768.0
    return ops.floor(total / 65536.0)


def _blend(base: Any, images: Any, parameters: dict[str, Any]) -> Any:
    return _whole(base + _column(parameters["factor"]) * (images - base))


def _color(images: Any, parameters: dict[str, Any]) -> Any:
    return _blend(_grey(images), images, parameters)


def _contrast(images: Any, parameters: dict[str, Any]) -> Any:
    mean = ops.mean(_grey(images), axis=(1, 2, 3), keepdims=True)
    return _blend(ops.floor(mean + 0.5), images, parameters)


def _brightness(images: Any, parameters: dict[str, Any]) -> Any:
    return _blend(ops.zeros_like(images), images, parameters)


def _sharpness(images: Any, parameters: dict[str, Any]) -> Any:
    height, width = int(images.shape[1]), int(images.shape[2])
    if height < 3 or width < 3:
        return images
    total = 4.0 * images[:, 1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            total = total + images[:, row : height - 2 + row, column : width - 2 + column]
    smooth = ops.floor(total / 13.0 + 0.5)
    rows = ops.concatenate([images[:, 1:-1, :1], smooth, images[:, 1:-1, -1:]], axis=2)
    smooth = ops.concatenate([images[:, :1], rows, images[:, -1:]], axis=1)
    return _blend(smooth, images, parameters)


def _posterize(images: Any, parameters: dict[str, Any]) -> Any:
    step = _column(parameters["step"])
    return ops.floor(images / step) * step


def _solarize(images: Any, parameters: dict[str, Any]) -> Any:
    return ops.where(images >= _column(parameters["threshold"]), 255.0 - images, images)


def _autocontrast(images: Any, parameters: dict[str, Any]) -> Any:
    del parameters
    low = ops.min(images, axis=(1, 2), keepdims=True)
    span = ops.max(images, axis=(1, 2), keepdims=True) - low
    stretched = _whole((images - low) * 255.0 / ops.maximum(span, 1.0))
    return ops.where(span > 0, stretched, images)


def _equalize(images: Any, parameters: dict[str, Any]) -> Any:
    del parameters
    height, width, channels = (int(side) for side in images.shape[1:])
    number = ops.shape(images)[0]
    rows = number * channels
    levels = ops.cast(ops.reshape(ops.transpose(images, (0, 3, 1, 2)), (rows, -1)), "int32")
    place = ops.reshape(levels + 256 * ops.arange(rows, dtype="int32")[:, None], (-1,))
    counts = ops.segment_sum(ops.ones_like(place), place, num_segments=rows * 256)
    counts = ops.reshape(counts, (rows, 256))
    top = ops.take_along_axis(counts, ops.max(levels, axis=1, keepdims=True), axis=1)
    step = (height * width - top) // 255
    before = ops.cumsum(counts, axis=1) - counts
    divisor = ops.maximum(step, 1)
    table = ops.minimum((step // 2 + before) // divisor, 255)
    table = ops.where(step > 0, table, ops.arange(256, dtype=table.dtype)[None])
    equal = ops.cast(ops.take_along_axis(table, levels, axis=1), "float32")
    return ops.transpose(ops.reshape(equal, (number, channels, height, width)), (0, 2, 3, 1))


def _invert(images: Any, parameters: dict[str, Any]) -> Any:
    del parameters
    return 255.0 - images


_FUNCTIONS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "nearest": _nearest,
    "shear": _shear,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
}
_SHARED = {
    "translateX": "nearest",
    "translateY": "nearest",
    "rotate": "nearest",
    "rescale": "nearest",
    "shearX": "shear",
    "shearY": "shear",
}
FAMILIES: dict[str, str] = {name: _SHARED.get(name, name) for name in OPERATIONS}


def apply_family(family: str, images: Any, parameters: dict[str, Any]) -> Any:
    """Transforms a batch by the function that several operations may share.

    Args:
        family: a value of `FAMILIES`.
        images: `(N, H, W, C)`, 0..255, rounded to whole levels first.
        parameters: what `operation_parameters` gives.

    Returns:
        float32 tensor of the same shape, whole levels 0..255.
    """
    return _FUNCTIONS[family](_levels(images), parameters)


@keras.saving.register_keras_serializable(package="keras_git")
class PolicyOperation(Transform):
    """One operation of an augmentation policy at one magnitude, as on 8-bit images.

    Args:
        operation: one of `OPERATIONS`.
        magnitude: 0..9, the place in `VALUES`.
        sign: 1 or -1, the direction of an operation that has two (`SIGNED`); None draws one per
            image. `rotate` is counter-clockwise with 1 and clockwise with -1; None means 1.
        up_to: draw the magnitude of each image from 0..`magnitude` (of an enlarging `rescale` from
            6 on), as in training with a policy.

    Raises:
        InputError: unknown operation, a magnitude outside 0..9, or another sign.

    Grey images `(N, H, W, 1)` are their own luminance, so that `color` leaves them as they are.

    Reference: Cubuk et al., *AutoAugment: Learning Augmentation Policies from Data*, CVPR 2019.
    """

    def __init__(
        self, operation: str, magnitude: int, sign: int | None = None, up_to: bool = False
    ) -> None:
        operation_value(operation, magnitude)
        if sign not in (None, 1, -1):
            raise InputError(f"{operation}: the sign is {sign!r}; give 1, -1 or None")
        if sign == -1 and operation not in (*SIGNED, "rotate"):
            raise InputError(f"{operation} has one direction only; leave the sign out")
        self.operation, self.magnitude = operation, int(magnitude)
        self.sign, self.up_to = sign, bool(up_to)
        self.name = f"{operation} with magnitude {self.magnitude}"
        if sign is not None:
            self.name += f", sign {'+' if sign > 0 else '-'}"

    @property
    def deterministic(self) -> bool:
        draws_sign = self.sign is None and self.operation in SIGNED
        low = lowest_magnitude(self.operation, self.magnitude)
        return not draws_sign and not (self.up_to and low < self.magnitude)

    @property
    def function_key(self) -> Any:
        return type(self), FAMILIES[self.operation]

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        index = np.full(number, self.magnitude)
        if self.up_to:
            low = lowest_magnitude(self.operation, self.magnitude)
            index = rng.integers(low, self.magnitude, number, endpoint=True)
        signs = np.ones(number) if self.sign is None else np.full(number, float(self.sign))
        if self.sign is None and self.operation in SIGNED:
            signs = rng.choice([-1.0, 1.0], number)
        drawn = operation_parameters(self.operation, VALUES[self.operation][index] * signs)
        return {key: np.asarray(value, np.float32) for key, value in drawn.items()}

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        return apply_family(FAMILIES[self.operation], images, parameters)

    def get_config(self) -> dict[str, Any]:
        return {
            "operation": self.operation,
            "magnitude": self.magnitude,
            "sign": self.sign,
            "up_to": self.up_to,
        }


_SINGLE = re.compile(r"(\w+) with magnitude (\d)")
_PAIR = re.compile(r"(\w+) and (\w+) with magnitudes (\d), (\d)")
_SIGN = re.compile(r", sign ([+-])$")


def policy_parts(name: str) -> tuple[tuple[str, int, int | None], ...]:
    """Operations, magnitudes and signs (None: random) that a name stands for, in their order.

    Args:
        name: such as `"rotate with magnitude 9"`, `"shearX with magnitude 4, sign -"` or `"equalize
            and rotate with magnitudes 4, 8"`.

    Raises:
        InputError: a name of another form, an unknown operation, or a magnitude outside 0..9.
    """
    text, sign = str(name), None
    found = _SIGN.search(text)
    if found:
        text, sign = text[: found.start()], 1 if found[1] == "+" else -1
    single, pair = _SINGLE.fullmatch(text), _PAIR.fullmatch(text)
    if single:
        parts = [(single[1], int(single[2]))]
    elif pair:
        parts = [(pair[1], int(pair[3])), (pair[2], int(pair[4]))]
    else:
        raise InputError(
            f"{name!r} is no operation of a policy; names are such as 'rotate with magnitude 9' "
            "or 'equalize and rotate with magnitudes 4, 8'"
        )
    for operation, magnitude in parts:
        operation_value(operation, magnitude)
    directed = (*SIGNED, "rotate")
    return tuple((o, m, sign if o in directed else None) for o, m in parts)


def drawn_parts(name: str) -> tuple[tuple[str, int, int, int], ...]:
    """What an augmentation draws for each part of a name.

    Args:
        name: as `policy_parts` reads it; or an operation alone, such as `"rotate"`, which means all
            of its magnitudes in both directions.

    Returns:
        Operation, least and largest magnitude, and sign (0 for one that is drawn).

    Raises:
        InputError: as `policy_parts`.
    """
    if name in OPERATIONS:
        return ((name, 0, MAGNITUDES - 1, 0 if name in (*SIGNED, "rotate") else 1),)
    return tuple(
        (
            operation,
            lowest_magnitude(operation, magnitude),
            magnitude,
            0 if sign is None and operation in SIGNED else (sign or 1),
        )
        for operation, magnitude, sign in policy_parts(name)
    )


def policy_name(*parts: tuple[str, int]) -> str:
    """The name of an operation at a magnitude, or of two in order; `policy_parts` reads it."""
    if len(parts) == 1:
        return "{} with magnitude {}".format(*parts[0])
    (first, i), (second, j) = parts
    return f"{first} and {second} with magnitudes {i}, {j}"


def policy_transform(name: str, sign: int | None = None, up_to: bool = False) -> Transform:
    """The transformation of a name that `policy_parts` reads.

    Args:
        name: of one operation or of a sub-policy.
        sign: of the operations that have two directions; None: as in the name, or random.
        up_to: see `PolicyOperation`.

    Returns:
        A `PolicyOperation`, or a `Compose` of two.

    Raises:
        InputError: a name that is none.
    """
    parts = [
        PolicyOperation(
            operation, magnitude, sign if sign and operation in SIGNED else given, up_to
        )
        for operation, magnitude, given in policy_parts(name)
    ]
    return parts[0] if len(parts) == 1 else Compose(parts, name=name)


def search_names(dedupe: bool = True, subpolicies: bool = False) -> list[str]:
    """Names of the candidates of the search for factors of variation, in a fixed order.

    Args:
        dedupe: only the first of those that do the same, and one that does nothing (`color` with
            magnitude 0, the control whose gain must be 0).
        subpolicies: also the sub-policies of two operations.

    Returns:
        48 names (63 without `dedupe`) of single operations, then those of the 49 sub-policies.

    Reference: Bouchacourt et al., NeurIPS 2021: the AutoAugment policies for ImageNet and SVHN, and
    five pairs of rescalings.
    """
    chosen: list[tuple[_Part, ...]] = [(part,) for part in SINGLES]
    if subpolicies:
        chosen += list(SUBPOLICIES)
    if dedupe:
        first: dict[Any, tuple[_Part, ...]] = {}
        for parts in chosen:
            done = [canonical(*part) for part in parts]
            key = tuple(found for found in done if found is not None)
            first.setdefault(key, parts)
        chosen = list(first.values())
    return [policy_name(*parts) for parts in chosen]
