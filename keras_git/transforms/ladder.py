"""Ladders: each transformation at a few strengths, named for people.

A rung is a transformation that draws up to its strength. The rungs of one ladder differ in what
they draw alone, so one compiled function serves all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from keras_git.errors import InputError
from keras_git.transforms.base import Transform
from keras_git.transforms.degradations import JPEG, Blur, Erasing, Noise
from keras_git.transforms.geometric import HorizontalFlip, Rotation, Scale, Shift
from keras_git.transforms.photometric import (
    BackgroundIntensity,
    Brightness,
    Contrast,
    DilationErosion,
    Hue,
    Saturation,
)

# A standard deviation of much less than a pixel does nothing, however small the image.
_LEAST_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Rung:
    """One transformation at one strength.

    Attributes:
        transform: the transformation.
        strength: in `unit`; None for a transformation without strengths.
        unit: such as `"degrees"`.
        label: for people, such as `"rotation, up to 15 degrees"`.
    """

    transform: Transform
    strength: float | None
    unit: str
    label: str


@dataclasses.dataclass(frozen=True)
class Ladder:
    """A transformation and its usual strengths.

    Attributes:
        name: name of the transformation.
        strengths: weakest first; empty for a transformation that has none. With `relative`, parts
            of the smaller side of the image, else in `unit`.
        unit: unit of a strength.
        text: label of a rung, with `{}` for the strength.
        make: the transformation of a strength.
        needs_colour: whether it does nothing, or cannot be, on grey images.
        needs_dark_background: whether it is meant for strokes on a background of 0.
        relative: whether `strengths` depend on the size of the images.
        whole: whether strengths are whole numbers.
    """

    name: str
    strengths: tuple[float, ...]
    unit: str
    text: str
    make: Callable[[float], Transform]
    needs_colour: bool = False
    needs_dark_background: bool = False
    relative: bool = False
    whole: bool = False

    def rungs(
        self, image_shape: tuple[int, int, int], strengths: Sequence[float] | None = None
    ) -> tuple[Rung, ...]:
        """The rungs for images of one size.

        Args:
            image_shape: (height, width, channels).
            strengths: strengths in `unit` to use in place of the usual ones.

        Returns:
            Weakest first, as given.

        Raises:
            InputError: strengths for a transformation without any, or out of range.
        """
        if not self.strengths:
            if strengths:
                raise InputError(f"transformation {self.name!r} has no strengths to choose")
            return (Rung(self.make(0.0), None, "", self.text),)
        values = [float(value) for value in strengths or ()]
        if not all(math.isfinite(value) for value in values):
            raise InputError(f"transformation {self.name!r}: give finite numbers as strengths")
        if self.whole and any(value != int(value) for value in values):
            raise InputError(f"transformation {self.name!r}: give whole numbers of {self.unit}")
        if not values:
            side = min(image_shape[:2]) if self.relative else 1
            if self.relative and not self.whole:
                side = max(side, _LEAST_SIDE)
            values = [value * side for value in self.strengths]
            if self.whole:
                values = [float(max(round(value), 1)) for value in values]
            if self.relative:
                values = list(dict.fromkeys(round(value, 2) for value in values))
        return tuple(
            Rung(self.make(value), value, self.unit, self.text.format(f"{value:g}"))
            for value in values
        )


def _around_one(percent: float) -> tuple[float, float]:
    if not 0 <= percent <= 100:
        raise InputError(f"a strength is {percent} %; give 0 to 100")
    return 1 - percent / 100, 1 + percent / 100


LADDERS: dict[str, Ladder] = {
    ladder.name: ladder
    for ladder in (
        Ladder("rotation", (15, 45, 180), "degrees", "rotation, up to {} degrees", Rotation),
        Ladder(
            "shift",
            (1 / 16, 1 / 8, 1 / 4),
            "pixels",
            "shift, up to {} pixels",
            lambda pixels: Shift(int(pixels)),
            relative=True,
            whole=True,
        ),
        Ladder(
            "scale", (1.1, 1.25, 1.5), "times", "scale, up to {} times larger or smaller", Scale
        ),
        Ladder("horizontal_flip", (), "", "horizontal flip", lambda _: HorizontalFlip(1.0)),
        Ladder(
            "brightness",
            (16, 32, 64),
            "grey levels",
            "brightness, up to {} grey levels darker or brighter",
            Brightness,
        ),
        Ladder(
            "contrast",
            (25, 50, 75),
            "%",
            "contrast, up to {} % less or more",
            lambda percent: Contrast(*_around_one(percent)),
        ),
        Ladder(
            "saturation",
            (25, 50, 100),
            "%",
            "saturation, up to {} % less or more",
            lambda percent: Saturation(*_around_one(percent)),
            needs_colour=True,
        ),
        Ladder("hue", (15, 45, 180), "degrees", "hue, up to {} degrees", Hue, needs_colour=True),
        Ladder(
            "blur",
            (1 / 64, 1 / 32, 1 / 16),
            "pixels",
            "blur, standard deviation up to {} pixels",
            Blur,
            relative=True,
        ),
        Ladder(
            "noise",
            (8, 16, 32),
            "grey levels",
            "noise, standard deviation up to {} grey levels",
            Noise,
        ),
        Ladder(
            "background",
            (25, 50, 99),
            "grey levels",
            "background, 0 to {} grey levels",
            lambda level: BackgroundIntensity(0, int(level)),
            needs_dark_background=True,
            whole=True,
        ),
        Ladder(
            "dilation_erosion",
            (2, 3, 4),
            "pixels",
            "strokes, up to {} pixels dilated or 2 eroded",
            lambda pixels: DilationErosion(int(pixels)),
            needs_dark_background=True,
            whole=True,
        ),
        Ladder(
            "erasing",
            (10, 25, 50),
            "%",
            "erasing, up to {} % of the image",
            lambda percent: Erasing(percent / 100),
        ),
        Ladder(
            "jpeg",
            (75, 40, 10),
            "quality",
            "JPEG-like compression, quality {} to 100",
            lambda quality: JPEG(int(quality)),
            whole=True,
        ),
    )
}
