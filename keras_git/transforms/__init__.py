"""Nuisance transformations: batched, seeded on the host, the same on every backend."""

from __future__ import annotations

from typing import Any

from keras_git.errors import InputError
from keras_git.transforms import nuisances, policy_operations
from keras_git.transforms.base import Compose, Identity, SampledTransform, Transform
from keras_git.transforms.degradations import JPEG, Blur, Erasing, Noise
from keras_git.transforms.function import FunctionTransform
from keras_git.transforms.generator import GeneratorTransform, is_generator
from keras_git.transforms.geometric import HorizontalFlip, Rotation, Scale, Shift
from keras_git.transforms.ladder import LADDERS, Ladder, Rung
from keras_git.transforms.photometric import (
    BackgroundIntensity,
    Brightness,
    Contrast,
    DilationErosion,
    GreyLevel,
    Hue,
    Saturation,
)
from keras_git.transforms.policy_operations import (
    PolicyOperation,
    policy_transform,
    search_names,
)

NAMES: dict[str, type[Transform]] = {
    transform.name: transform
    for transform in (
        BackgroundIntensity,
        Blur,
        Brightness,
        Contrast,
        DilationErosion,
        Erasing,
        GreyLevel,
        HorizontalFlip,
        Hue,
        Identity,
        JPEG,
        Noise,
        Rotation,
        Saturation,
        Scale,
        Shift,
    )
}


def get(name: str | Transform, **options: Any) -> Transform:
    """A transformation by name.

    Args:
        name: one of `NAMES`, or a transformation, which is returned as it is.
        **options: the constructor's arguments.

    Returns:
        The transformation.

    Raises:
        InputError: unknown name, unknown option, or a value that is out of range.
    """
    if isinstance(name, Transform):
        return name
    if name not in NAMES:
        raise InputError(f"transformation {name!r} is unknown; use one of {', '.join(NAMES)}")
    try:
        return NAMES[name](**options)
    except TypeError as error:
        raise InputError(f"transformation {name!r}: {error}") from error


__all__ = [
    "JPEG",
    "LADDERS",
    "NAMES",
    "BackgroundIntensity",
    "Blur",
    "Brightness",
    "Compose",
    "Contrast",
    "DilationErosion",
    "Erasing",
    "FunctionTransform",
    "GeneratorTransform",
    "GreyLevel",
    "HorizontalFlip",
    "Hue",
    "Identity",
    "Ladder",
    "Noise",
    "PolicyOperation",
    "Rotation",
    "Rung",
    "SampledTransform",
    "Saturation",
    "Scale",
    "Shift",
    "Transform",
    "get",
    "is_generator",
    "nuisances",
    "policy_operations",
    "policy_transform",
    "search_names",
]
