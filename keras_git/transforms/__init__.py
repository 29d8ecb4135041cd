"""Nuisance transformations: batched, seeded on the host, the same on every backend."""

from __future__ import annotations

from typing import Any

from keras_git.errors import InputError
from keras_git.transforms import nuisances
from keras_git.transforms.base import Compose, Identity, Transform
from keras_git.transforms.generator import GeneratorTransform
from keras_git.transforms.geometric import HorizontalFlip, Rotation, Shift
from keras_git.transforms.photometric import (
    BackgroundIntensity,
    Brightness,
    Contrast,
    DilationErosion,
    GreyLevel,
)

NAMES: dict[str, type[Transform]] = {
    transform.name: transform
    for transform in (
        BackgroundIntensity,
        Brightness,
        Contrast,
        DilationErosion,
        GreyLevel,
        HorizontalFlip,
        Identity,
        Rotation,
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
    "NAMES",
    "BackgroundIntensity",
    "Brightness",
    "Compose",
    "Contrast",
    "DilationErosion",
    "GeneratorTransform",
    "GreyLevel",
    "HorizontalFlip",
    "Identity",
    "Rotation",
    "Shift",
    "Transform",
    "get",
    "nuisances",
]
