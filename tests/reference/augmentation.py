"""Families of augmentation and its parts: subpolicy_ops, crops, learned_crop, foreground."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from keras import ops

from keras_git.transforms import policy_operations as policy
from keras_git.transforms import policy_transform
from tests.reference.registry import Arrays, Check

_EXACT = ("translateX", "translateY", "rotate", "posterize", "solarize", "invert", "equalize")
_NEAR_TIE = 1e-4


def _operation(image: np.ndarray, operation: str, values: np.ndarray) -> np.ndarray:
    """One image under several values of an operation."""
    parameters = policy.operation_parameters(operation, values)
    images = ops.convert_to_tensor(np.repeat(image[None], len(values), axis=0).astype("float32"))
    family = policy.FAMILIES[operation]
    return ops.convert_to_numpy(policy.apply_family(family, images, parameters))


def _ties(operation: str, value: float, shape: tuple[int, ...]) -> np.ndarray:
    """Where rounding decides which pixel is taken: rescaling onto pixel borders, shear onto the
    border of the image."""
    y, x = np.indices(shape[:2]) + 0.5
    height, width = shape[:2]
    if operation == "rescale":
        x, y = ((c - n / 2) / value + n / 2 for c, n in ((x, width), (y, height)))
        return (np.abs(x - np.round(x)) < _NEAR_TIE) | (np.abs(y - np.round(y)) < _NEAR_TIE)
    place, side = (x + value * y, width) if operation == "shearX" else (y + value * x, height)
    return (np.abs(place) < _NEAR_TIE) | (np.abs(place - side) < _NEAR_TIE)


def subpolicy_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """Operations on 8-bit images, sub-policies, and the names and values of the candidates."""
    del config
    image, names = arrays["image"], [str(name) for name in arrays["op_names"]]
    cases, expected = arrays["case_op_index_sign"], arrays.peek("output")
    values = np.array([policy.operation_value(names[o], int(i)) for o, i, _ in cases])
    factors = arrays["rescale_factor_by_index"]
    given = np.array(
        [i if names[o] == "rescale" else v for (o, i, _), v in zip(cases, values, strict=True)]
    )
    yield Check("case_value", given, "rel_each", 1e-6)
    yield Check("rescale_factor_by_index", policy.VALUES["rescale"], "rel_each", 1e-6)
    assert len(factors) == policy.MAGNITUDES

    output = np.empty_like(expected)
    for number, operation in enumerate(names):
        chosen = cases[:, 0] == number
        signed = values[chosen] * cases[chosen, 2]
        ours = _operation(image, operation, signed)
        theirs = expected[chosen]
        if operation in ("rescale", "shearX", "shearY"):
            ties = np.stack([_ties(operation, value, image.shape) for value in signed])
            ours = np.where(ties[..., None], theirs, ours)
        # One level is allowed where theirs computes with tables of integers; else none is.
        weight = 2.0 if operation in (*_EXACT, "rescale") else 1.0
        output[chosen] = theirs + weight * (ours - theirs)
    yield Check("output", output, "abs", 1.0)

    composed = []
    for name in arrays["composed_names"]:
        transform = policy_transform(str(name), sign=1)
        made = transform(image[None])
        composed.append(np.transpose(ops.convert_to_numpy(made)[0], (2, 0, 1)) / 255.0)
    # Sheared and blended levels may differ by one, and then what follows, at single pixels.
    yield Check("composed_output01_sign_plus", np.stack(composed), "quantile", 1.001 / 255)

    singles = [str(name) for name in arrays["search_single_names"]]
    _same(singles, [policy.policy_name(part) for part in policy.SINGLES])
    pairs = [str(name) for name in arrays["search_subpolicy_names"]]
    _same(pairs, [policy.policy_name(*pair) for pair in policy.SUBPOLICIES])
    listed = []
    for name in singles:
        ((operation, magnitude, _),) = policy.policy_parts(name)
        value = policy.operation_value(operation, magnitude)
        listed.append(magnitude if operation == "rescale" else value)
    yield Check("search_single_values", np.array(listed), "rel_each", 1e-6)


def _same(theirs: list[str], ours: list[str]) -> None:
    """Names are no numbers: the same set, in whatever order."""
    if sorted(theirs) != sorted(ours):
        different = set(ours) ^ set(theirs)
        raise ValueError(f"other candidates: {sorted(different)[:5]}")


FAMILIES = {"subpolicy_ops": subpolicy_family}
