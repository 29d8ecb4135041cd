"""What an audit measures: transformations from names, ladders, functions and generators."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_git import transforms as kg_transforms
from keras_git.auditing.classifier import one_line
from keras_git.auditing.result import Condition
from keras_git.errors import InputError
from keras_git.transforms import (
    LADDERS,
    FunctionTransform,
    GeneratorTransform,
    Ladder,
    Transform,
    is_generator,
)

# In `transforms`, all ladders that suit the images.
DEFAULTS = "defaults"
# Strokes on a dark background: more than this part of the pixels is exactly 0.
_DARK_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Planned:
    """A condition and the transformation that makes it.

    Attributes:
        condition: for reports.
        transform: what is measured.
        tried: two images as somebody else's transformation changed them, `(2, H, W, C)`; None for
            the ladders of this package.
    """

    condition: Condition
    transform: Transform
    tried: np.ndarray | None = None


def planned_conditions(spec: Any, images: np.ndarray) -> tuple[list[Planned], dict[str, str]]:
    """What is to be measured, and what is left out for a reason.

    Args:
        spec: `transforms` of `keras_git.audit`.
        images: some of the data, `(N, H, W, C)`, 0..255.

    Returns:
        The conditions in their order, at least one; and `{name: reason}` of what is left out.

    Raises:
        InputError: an unknown transformation, one that fails on these images, or none at all.
    """
    height, width, channels = (int(size) for size in images.shape[1:])
    planned: list[Planned] = []
    skipped: dict[str, str] = {}
    dark = float(np.mean(images == 0)) > _DARK_SHARE

    def ladder(chosen: Ladder, strengths: Sequence[float], asked: bool) -> None:
        name = chosen.name
        if chosen.needs_colour and channels != 3:
            skipped[name] = "the images have no colour"
        elif chosen.needs_dark_background and not dark and not asked:
            skipped[name] = "made for strokes on a black background"
        else:
            for rung in chosen.rungs((height, width, channels), strengths):
                tried = None
                if chosen is not LADDERS.get(name):
                    tried = _try_out(rung.label, rung.transform, images)
                condition = Condition(name, rung.strength, rung.unit, rung.label)
                planned.append(Planned(condition, rung.transform, tried))

    def defaults() -> None:
        for chosen in LADDERS.values():
            ladder(chosen, (), False)

    def single(name: str, given: Any) -> None:
        if isinstance(given, Ladder):
            ladder(dataclasses.replace(given, name=name), (), True)
            return
        transform = _transform(name, given)
        tried = _try_out(name, transform, images)
        condition = Condition(name, None, "", name.replace("_", " "))
        planned.append(Planned(condition, transform, tried))

    if spec is None:
        defaults()
    elif isinstance(spec, Mapping):
        for name, transform in spec.items():
            single(str(name), transform)
    else:
        one = isinstance(spec, (str, Transform, Ladder)) or callable(spec)
        for entry in [spec] if one else spec:
            if not isinstance(entry, str):
                single(_name_of(entry), entry)
                continue
            name, *strengths = entry.split(":")
            if entry == DEFAULTS:
                defaults()
            elif name in LADDERS:
                ladder(LADDERS[name], _numbers(entry, strengths), True)
            elif not strengths and name in kg_transforms.NAMES:
                single(name, kg_transforms.get(name))
            else:
                known = dict.fromkeys([*LADDERS, *kg_transforms.NAMES])
                raise InputError(
                    f"transformation {entry!r} is unknown; use one of {', '.join(known)}, or "
                    "name:strength:strength"
                )
    if not planned:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise InputError(f"there is no transformation to measure ({reasons or 'none was given'})")
    keys = [(plan.condition.transform, plan.condition.strength) for plan in planned]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise InputError(
            f"transformation {twice[0]!r} is given twice; give a mapping with different names"
        )
    return planned, skipped


def _name_of(entry: Any) -> str:
    """The name under which a transformation without one in the arguments is reported."""
    name = getattr(entry, "name", None) or getattr(entry, "__name__", None) or type(entry).__name__
    return "function" if name == "<lambda>" else str(name)


def _transform(name: str, given: Any) -> Transform:
    """A transformation from one, from a generator or from a function."""
    if isinstance(given, Transform):
        return given
    if is_generator(given):
        return GeneratorTransform(given, name)
    if callable(given) and not isinstance(given, type):
        return FunctionTransform(given, name)
    raise InputError(
        f"transformation {name!r} is {given!r}; give a name, a function of a batch, a generator, "
        "or an instance of Transform or Ladder"
    )


def _try_out(name: str, transform: Transform, images: np.ndarray) -> np.ndarray:
    """Two images as somebody else's transformation changes them, float32 `(2, H, W, C)`.

    Raises:
        InputError: it fails, changes the shape, or gives NaN.
    """
    if not isinstance(transform, Transform):
        raise InputError(f"transformation {name!r} is {transform!r}; give an instance of Transform")
    try:
        moved = ops.convert_to_numpy(transform(images[:2]))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"transformation {name!r} fails: {one_line(error)}") from error
    if moved.shape != images[:2].shape:
        raise InputError(
            f"transformation {name!r} made {moved.shape} of images of shape {images[:2].shape}; "
            "the shape must stay"
        )
    if not np.isfinite(moved).all():
        raise InputError(f"transformation {name!r} makes images that are NaN or infinite")
    return moved


def _numbers(entry: str, texts: Sequence[str]) -> list[float]:
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise InputError(
            f"transformation {entry!r}: write the strengths as numbers, name:strength:strength"
        ) from None
