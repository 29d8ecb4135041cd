"""Sets of transformations whose role in data and in a network is measured."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras_git.analysis.operations import Step, family_step, function_step, transform_step
from keras_git.errors import InputError
from keras_git.transforms import Transform
from keras_git.transforms.affine import affine_matrix, composed, visible_fraction
from keras_git.transforms.policy_operations import (
    SIGNED,
    PolicyOperation,
    canonical,
    operation_value,
    policy_parts,
    search_names,
)

# Side of the images for which the paper gives translations in pixels.
_PAPER_SIDE = 224
_SHEARS = (0.0, -17.8, 22.75, -35.6, 45.5, -53.4, 68.25, -71.2, -89.0, 91.0)
_ROTATIONS = (0.0, -27.0, 45.0, -54.0, -81.0, 90.0, -108.0, -135.0, 135.0, 180.0)
_SHIFTS = tuple(np.linspace(0, _PAPER_SIDE, 10).tolist())
_DOWN = tuple(np.linspace(1, 0, 10).tolist())
_UP = tuple(np.linspace(1, 2, 10).tolist())

# Magnitudes by index 0..9: degrees, pixels of an image of side 224, factors, bits, thresholds.
PAPER_MAGNITUDES: dict[str, tuple[float, ...]] = {
    "shearX": _SHEARS,
    "shearY": _SHEARS,
    "translateX": _SHIFTS,
    "translateY": _SHIFTS,
    "rotate": _ROTATIONS,
    "scale_zoom_out": tuple(np.linspace(1, 0.28, 10).tolist()),
    "scale_zoom_in": tuple(np.linspace(1, 3.5, 10).tolist()),
    "posterize": (8, 7, 6, 5, 4, 4, 3, 2, 1, 0),
    "decrease_contrast": _DOWN,
    "increase_contrast": _UP,
    "solarize": _DOWN,
    "decrease_brightness": _DOWN,
    "increase_brightness": _UP,
}
GEOMETRIC = tuple(PAPER_MAGNITUDES)[:7]
_AFFINE_ARGUMENTS = {
    "shearX": "shear_x",
    "shearY": "shear_y",
    "translateX": "translate_x",
    "translateY": "translate_y",
    "rotate": "rotate",
    "scale_zoom_out": "scale",
    "scale_zoom_in": "scale",
    "scale": "scale",
}
# Operations whose magnitude may have the other sign
_SIGNED = ("shearX", "shearY", "translateX", "translateY", "rotate")
_IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def operation_step(operation: str, magnitude: float) -> Step:
    """The step of one of the paper's operations on tensors.

    Args:
        operation: a key of `PAPER_MAGNITUDES`, or "scale".
        magnitude: degrees, pixels, factor, bits or threshold.

    Raises:
        InputError: an unknown operation.
    """
    if operation in _AFFINE_ARGUMENTS:
        matrix = affine_matrix(**{_AFFINE_ARGUMENTS[operation]: float(magnitude)})
        return family_step("affine", matrix=matrix, fill=0.0)
    if operation.endswith(("_contrast", "_brightness")):
        towards_mean = float(operation.endswith("_contrast"))
        return family_step("blend", factor=magnitude, towards_mean=towards_mean)
    if operation == "solarize":
        return family_step("solarize", threshold=magnitude)
    if operation == "posterize":
        return family_step("posterize", step=2.0 ** (8 - magnitude))
    raise InputError(f"operation {operation!r} is unknown; use one of {list(PAPER_MAGNITUDES)}")


@dataclass(frozen=True, eq=False)
class Candidate:
    """One transformation at one magnitude.

    Attributes:
        transform: name in tables; several magnitudes may share it.
        magnitude: in the unit of the transformation, None for one without.
        index: place among the magnitudes of its transformation.
        operation: what it does, whatever the magnitude: by this, factors and invariance are
            brought together.
        steps: applied in this order.
        flipped: the candidate with the other sign, None if there is none.
    """

    transform: str
    magnitude: float | None
    index: int
    operation: str
    steps: tuple[Step, ...]
    flipped: Callable[[], Candidate] | None = None

    @property
    def name(self) -> str:
        """Name that is unique in its set."""
        if self.magnitude is None or " with magnitude" in self.transform:
            return self.transform
        return f"{self.transform} {self.magnitude:g}"

    @property
    def key(self) -> Any:
        """Equal for candidates that one compiled function serves."""
        return tuple((step.key, step.identity() if step.plain else None) for step in self.steps)

    @property
    def unchanged(self) -> bool:
        """Whether it is known to leave all images as they are."""
        return all(_does_nothing(step) for step in self.steps)

    def identity(self) -> Any:
        """Equal for two candidates that do the same."""
        return tuple(step.identity() for step in self.steps)

    def visible_fraction(self, height: int, width: int) -> float:
        """Part of the output that shows the image and no fill, NaN where it is not known."""
        shown = 1.0
        for step in self.steps:
            shown *= _visible(step, height, width)
        return shown


def _does_nothing(step: Step) -> bool:
    if step.key == "affine":
        return bool((step.numbers["matrix"] == _IDENTITY).all())
    if step.key == "blend":
        return float(step.numbers["factor"]) == 1.0
    transform = step.transform
    return isinstance(transform, PolicyOperation) and (
        canonical(transform.operation, transform.magnitude) is None
    )


def _visible(step: Step, height: int, width: int) -> float:
    if step.key == "affine":
        return visible_fraction(step.numbers["matrix"].astype(float), height, width)
    if isinstance(step.key, str):
        return 1.0
    if step.transform is None or not step.transform.deterministic:
        return math.nan
    return _visible_in_policy(step.transform, height, width)


def _visible_in_policy(transform: Transform, height: int, width: int) -> float:
    if not isinstance(transform, PolicyOperation):
        return math.nan
    numbers = transform.sample(1, np.random.default_rng(0))
    if "matrix" in numbers:
        a, b, c, d, e, f = (float(value) for value in numbers["matrix"][0])
        matrix = np.array([[a, b, c * width], [d, e, f * height]])
    elif "along_x" in numbers:
        x, y = (float(numbers[name][0]) for name in ("along_x", "along_y"))
        # the corner at the top left stays where it is
        matrix = np.array([[1.0, x, x * height / 2], [y, 1.0, y * width / 2]])
    else:
        return 1.0
    return visible_fraction(matrix, height, width)


def _size(image_size: Any) -> tuple[int, int]:
    sides = (image_size, image_size) if np.ndim(image_size) == 0 else tuple(image_size)[:2]
    if len(sides) != 2 or not all(int(side) == side and side > 0 for side in sides):
        raise InputError(f"image_size is {image_size!r}; give a side or (height, width) in pixels")
    return int(sides[0]), int(sides[1])


class TransformSet:
    """An ordered set of candidates: transformations at magnitudes.

    Made by one of `paper_invariance`, `paper_search`, `geometric` and `custom`.

    Args:
        candidates: of different names.
        image_size: (height, width) that the set was made for, None if it suits all.
        title: for reports.

    Raises:
        InputError: no candidate, or two of one name.
    """

    def __init__(
        self,
        candidates: Iterable[Candidate],
        image_size: tuple[int, int] | None = None,
        title: str = "custom",
    ) -> None:
        self.candidates: tuple[Candidate, ...] = tuple(candidates)
        self.image_size, self.title = image_size, title
        if not self.candidates:
            raise InputError("the set has no transformation; give at least one")
        keys = [(c.transform, c.magnitude, c.index) for c in self.candidates]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise InputError(f"transformation {twice[0]!r} is given twice; use different names")

    # ------------------------------------------------------------------ makers

    @classmethod
    def paper_invariance(cls, image_size: int | Sequence[int]) -> TransformSet:
        """The 13 transformations at 10 magnitudes of the paper's invariance measure.

        Index 0 of each is the identity but for posterize (8 bits of 100 x) and solarize (threshold
        1: white becomes black). Translations are scaled by side / 224, so that index 9 moves
        everything out of the frame. Some magnitudes leave little of the image: see
        `visible_fraction`.

        Args:
            image_size: side or (height, width), pixels.

        Returns:
            130 candidates.

        Reference: Bouchacourt et al., NeurIPS 2021.
        """
        height, width = _size(image_size)
        sides = {"translateX": width / _PAPER_SIDE, "translateY": height / _PAPER_SIDE}
        ladders = {
            operation: [value * sides.get(operation, 1.0) for value in values]
            for operation, values in PAPER_MAGNITUDES.items()
        }
        return cls(_operations(ladders), (height, width), "paper_invariance")

    @classmethod
    def geometric(
        cls,
        image_size: int | Sequence[int],
        *,
        rotate: Sequence[float] = (-60, -30, -15, 15, 30, 60),
        translate: Sequence[float] = (-0.25, -0.125, 0.125, 0.25),
        scale: Sequence[float] = (0.5, 0.7, 1.4, 2.0),
        shear: Sequence[float] = (-30, -15, 15, 30),
    ) -> TransformSet:
        """Rotations, shifts, zooms and shears, each one bilinear resampling with black outside.

        Args:
            image_size: side or (height, width), pixels.
            rotate: degrees, clockwise.
            translate: parts of the side, right and down.
            scale: factors; above 1 zooms in.
            shear: degrees, along x and along y.

        Returns:
            The candidates `rotate`, `translateX`, `translateY` (magnitudes in pixels), `scale`,
            `shearX` and `shearY`.
        """
        height, width = _size(image_size)
        ladders: dict[str, list[float]] = {
            "rotate": list(rotate),
            "translateX": [value * width for value in translate],
            "translateY": [value * height for value in translate],
            "scale": list(scale),
            "shearX": list(shear),
            "shearY": list(shear),
        }
        return cls(_operations(ladders), (height, width), "geometric")

    @classmethod
    def paper_search(cls, dedupe: bool = True, *, subpolicies: bool = False) -> TransformSet:
        """The candidates of the paper's search for factors: operations of AutoAugment's policies.

        They work on 8-bit images; those with two directions have the sign +, see `both_signs`.

        Args:
            dedupe: only the first of candidates that do the same.
            subpolicies: also the pairs of operations.

        Returns:
            48 candidates (63 without `dedupe`), 49 more or fewer with `subpolicies`.

        Reference: Bouchacourt et al., NeurIPS 2021; Cubuk et al., CVPR 2019.
        """
        names = search_names(dedupe=dedupe, subpolicies=subpolicies)
        return cls([_policy_candidate(name, 1) for name in names], None, "paper_search")

    @classmethod
    def custom(cls, transforms: Mapping[str, Any]) -> TransformSet:
        """Transformations of your own.

        Args:
            transforms: by name, one of: a function of float32 images `(N, H, W, C)` in [0, 1],
                written with `keras.ops`, that gives the same shape; a pair (function, magnitudes)
                of a function of images and one of the magnitudes; a `keras_git` transformation.

        Raises:
            InputError: something else, or an empty list of magnitudes.
        """
        if not isinstance(transforms, Mapping):
            raise InputError(f"transforms are {transforms!r}; give a mapping of names to functions")
        found: list[Candidate] = []
        for name, given in transforms.items():
            name = str(name)
            if isinstance(given, Transform):
                found.append(Candidate(name, None, 0, name, (transform_step(given),)))
                continue
            magnitudes: list[float | None] = [None]
            if callable(given):
                function = given
            elif isinstance(given, (tuple, list)) and len(given) == 2 and callable(given[0]):
                function, magnitudes = given[0], [float(value) for value in given[1]]
            else:
                raise InputError(
                    f"transformation {name!r} is {given!r}; give a function of images, a pair "
                    "(function, magnitudes), or a transformation of keras_git"
                )
            if not magnitudes:
                raise InputError(f"transformation {name!r} has no magnitude; give at least one")
            found += [
                Candidate(name, value, index, name, (function_step(name, function, value),))
                for index, value in enumerate(magnitudes)
            ]
        return cls(found)

    # ------------------------------------------------------------------ what is in it

    def __len__(self) -> int:
        return len(self.candidates)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)

    def __repr__(self) -> str:
        return f"TransformSet({self.title!r}, {len(self)} candidates)"

    @property
    def names(self) -> list[str]:
        """A name for each candidate."""
        return [candidate.name for candidate in self.candidates]

    @property
    def transforms(self) -> list[str]:
        """Names of the transformations, each once, in order."""
        return list(dict.fromkeys(candidate.transform for candidate in self.candidates))

    @property
    def magnitudes(self) -> list[float | None]:
        """The magnitude of each candidate."""
        return [candidate.magnitude for candidate in self.candidates]

    def visible_fraction(self, image_size: int | Sequence[int] | None = None) -> np.ndarray:
        """Part of each candidate's output that shows the image and no fill.

        Where it is near 0 all images look alike, and invariance is low whatever the network does.

        Args:
            image_size: side or (height, width); by default that of the set.

        Returns:
            float64 `(T,)`, 0..1, NaN where it is not known (functions of your own).

        Raises:
            InputError: no size is known.
        """
        size = self.image_size if image_size is None else _size(image_size)
        if size is None:
            raise InputError("the set suits images of all sizes: give image_size")
        return np.array([candidate.visible_fraction(*size) for candidate in self.candidates])

    # ------------------------------------------------------------------ other sets

    def _with(self, candidates: Iterable[Candidate]) -> TransformSet:
        return TransformSet(candidates, self.image_size, self.title)

    def filter(
        self,
        names: str | Iterable[str] | Callable[[Candidate], bool] | None = None,
        *,
        indices: Iterable[int] | None = None,
        min_visible: float | None = None,
    ) -> TransformSet:
        """The candidates that are wanted.

        Args:
            names: names of candidates, transformations or operations; or a function of a
                `Candidate` that says whether it stays.
            indices: places among the magnitudes of a transformation.
            min_visible: least `visible_fraction`; candidates for which it is not known stay.

        Raises:
            InputError: an unknown name, or nothing is left.
        """
        chosen = list(self.candidates)
        if callable(names):
            chosen = [candidate for candidate in chosen if names(candidate)]
        elif names is not None:
            wanted = {names} if isinstance(names, str) else set(names)
            known = {x for c in chosen for x in (c.name, c.transform, c.operation)}
            if wanted - known:
                raise InputError(f"{sorted(wanted - known)[0]!r} is not in the set of {self.names}")
            chosen = [c for c in chosen if wanted & {c.name, c.transform, c.operation}]
        if indices is not None:
            places = set(indices)
            chosen = [candidate for candidate in chosen if candidate.index in places]
        if min_visible is not None:
            if self.image_size is None:
                raise InputError("the set suits images of all sizes: min_visible needs one")
            size = self.image_size
            chosen = [c for c in chosen if not c.visible_fraction(*size) < min_visible]
        return self._with(chosen)

    def compose(self, first: Any, second: Any = None) -> TransformSet:
        """Candidates one after the other; two affine ones become one resampling.

        Args:
            first: name of the candidate that is applied first; or another set.
            second: name of the candidate that is applied second; None if `first` is a set.

        Returns:
            This set with the composition of the two as one more candidate; for a set, all
            compositions of a candidate of this set and one of the other.

        Raises:
            InputError: an unknown name, or sets for images of different sizes.
        """
        if isinstance(first, TransformSet):
            sizes = {self.image_size, first.image_size} - {None}
            if len(sizes) > 1:
                raise InputError(f"the sets are for images of sizes {sorted(sizes, key=str)}")
            pairs = [_composition(a, b) for a in self for b in first]
            size = next(iter(sizes), None)
            return TransformSet(pairs, size, f"{self.title} then {first.title}")
        found = []
        for name in (first, second):
            one = next((c for c in self.candidates if c.name == name), None)
            if one is None:
                raise InputError(f"{name!r} is not in the set of {self.names}")
            found.append(one)
        return self._with([*self.candidates, _composition(*found)])

    def both_signs(self) -> TransformSet:
        """The set with the other direction of each candidate that has one, right after it.

        Names of operations of policies then tell the direction, as `ClassPolicy` reads them:
        "shearX with magnitude 4, sign +".
        """
        have = {candidate.identity() for candidate in self.candidates}
        found: list[Candidate] = []
        for candidate in self.candidates:
            other = candidate.flipped() if candidate.flipped is not None else None
            if other is not None and other.transform.endswith(", sign -"):
                candidate = replace(candidate, transform=f"{candidate.transform}, sign +")
            found.append(candidate)
            if other is not None and other.identity() not in have:
                have.add(other.identity())
                found.append(other)
        return self._with(found)


def _operations(ladders: Mapping[str, Sequence[float]]) -> list[Candidate]:
    return [
        _operation(operation, float(value), index)
        for operation, values in ladders.items()
        for index, value in enumerate(values)
    ]


def _operation(operation: str, magnitude: float, index: int) -> Candidate:
    flipped = None
    if operation in _SIGNED and magnitude:
        flipped = functools.partial(_operation, operation, -magnitude, index)
    steps = (operation_step(operation, magnitude),)
    return Candidate(operation, magnitude, index, operation, steps, flipped)


def _policy_candidate(name: str, sign: int) -> Candidate:
    parts = policy_parts(name)
    steps = []
    for operation, place, _ in parts:
        turned = operation in SIGNED or operation == "rotate"
        steps.append(transform_step(PolicyOperation(operation, place, sign if turned else None)))
    signed = [operation in SIGNED or operation == "rotate" for operation, _, _ in parts]
    magnitude = None
    index = 0
    if len(parts) == 1:
        operation, index, _ = parts[0]
        magnitude = operation_value(operation, index) * (sign if signed[0] else 1)
        if operation in ("autocontrast", "equalize", "invert"):
            magnitude = None
    flipped = None
    if any(signed) and sign > 0:
        flipped = functools.partial(_policy_candidate, name, -1)
    operation = "+".join(dict.fromkeys(operation for operation, _, _ in parts))
    shown = name if sign > 0 else f"{name}, sign -"
    return Candidate(shown, magnitude, index, operation, tuple(steps), flipped)


def _composition(first: Candidate, second: Candidate) -> Candidate:
    steps: list[Step] = list(first.steps)
    for step in second.steps:
        last = steps[-1]
        if last.key == step.key == "affine" and float(last.numbers["fill"]) == float(
            step.numbers["fill"]
        ):
            matrix = composed(last.numbers["matrix"], step.numbers["matrix"])
            fill = float(step.numbers["fill"])
            steps[-1] = family_step("affine", matrix=matrix, fill=fill)
        else:
            steps.append(step)
    name = f"{first.name} + {second.name}"
    return Candidate(name, None, 0, f"{first.operation}+{second.operation}", tuple(steps))
