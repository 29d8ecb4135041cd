"""Charts as inline SVG.

Own SVG and not Matplotlib's: colours come from the page's style sheet, so that one picture serves
light, dark and print; text stays text that a screen reader and a search find; points carry their
class as tooltip without a script; and a panel takes a tenth of the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from keras_git.report.markup import Markup, join, short, tag

NUM_COLOURS = 7
_DASHES = (None, "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4")
# Above this many classes a point each has no tooltip: they are drawn as one path of dots.
MANY_POINTS = 150
# Above this many different class sizes the line goes through means of neighbouring classes.
_MANY_SIZES = 16
_BINS = 10
_ERROR_BARS = 30


@dataclass(frozen=True)
class Series:
    """One model's values.

    Attributes:
        name: of the model.
        index: its place among the models, which decides colour, marker and dashes.
        values: (N,), NaN where there is none.
        errors: half widths of the error bars or of the band (N,), or None.
    """

    name: str
    index: int
    values: np.ndarray
    errors: np.ndarray | None = None


class _Panel:
    """Axes of one chart: data to picture units, ticks, labels."""

    def __init__(
        self,
        size: tuple[int, int],
        high: float,
        *,
        y_title: str,
        x_title: str,
        percent: bool = False,
        bottom: int = 44,
    ) -> None:
        self.width, self.height = size
        self.left, self.right, self.top, self.bottom = 48, 12, 26, bottom
        # A fraction has its whole range: differences look as large as they are.
        self.ticks = [0, 0.25, 0.5, 0.75, 1.0] if percent else _ticks(high)
        self.high = self.ticks[-1]
        self.titles, self.percent = (x_title, y_title), percent

    def x(self, share: float) -> float:
        """Picture unit of a place 0..1 between the left and the right end."""
        return self.left + 8 + share * (self.width - self.left - self.right - 16)

    def y(self, value: float) -> float:
        return (
            self.height - self.bottom - value / self.high * (self.height - self.top - self.bottom)
        )

    def frame(self, places: Sequence[tuple[float, str]]) -> Markup:
        """Grid, ticks at `places` (0..1, label) and titles."""
        parts = []
        step = self.ticks[1] - self.ticks[0]
        digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
        digits += round(step, digits) != round(step, 12)
        for value in self.ticks:
            height = self.y(value)
            label = f"{100 * value:.0f} %" if self.percent else f"{value:.{digits}f}"
            parts += [
                tag("line", class_="gridline" if value else "axis", x1=self.left, y1=height,
                    x2=self.width - self.right, y2=height),
                tag("text", label, x=self.left - 6, y=height + 4, text_anchor="end"),
            ]  # fmt: skip
        base = self.height - self.bottom
        for place, label in places:
            parts += [
                tag(
                    "line", class_="axis", x1=self.x(place), y1=base, x2=self.x(place), y2=base + 4
                ),
                tag("text", label, x=self.x(place), y=base + 17, text_anchor="middle"),
            ]
        parts += [
            tag("text", self.titles[1], class_="title", x=2, y=13),
            tag("text", self.titles[0], class_="title", x=self.width - self.right,
                y=self.height - 6, text_anchor="end"),
        ]  # fmt: skip
        return join(parts)

    def svg(self, content: object, title: str, description: str, class_: str = "") -> Markup:
        return tag(
            "svg",
            tag("title", title),
            tag("desc", description),
            content,
            class_=f"plot {class_}".strip(),
            viewBox=f"0 0 {self.width} {self.height}",
            role="img",
        )


def marker(index: int, x: float, y: float, radius: float = 4, *children: object) -> Markup:
    """A point of the model at `index`: circle, square, triangle or diamond, then hollow."""
    r = radius
    shape = index % 4
    style = f"{'fill' if index % 8 < 4 else 'hollow'} m{index % NUM_COLOURS}"
    if shape == 0:
        return tag("circle", *children, class_=style, cx=x, cy=y, r=r)
    if shape == 1:
        side = float(1.8 * r)
        return tag("rect", *children, class_=style, x=x - side / 2, y=y - side / 2, width=side,
                   height=side)  # fmt: skip
    corners = (
        ((0, -1.25), (1.15, 0.9), (-1.15, 0.9)) if shape == 2 else ((0, -1.3), (1.3, 0), (0, 1.3),
                                                                     (-1.3, 0))
    )  # fmt: skip
    path = "M" + "L".join(f"{short(x + dx * r)} {short(y + dy * r)}" for dx, dy in corners) + "Z"
    return tag("path", *children, class_=style, d=path)


def line(index: int, points: Sequence[tuple[float, float]], width: float = 2) -> Markup:
    """A line of the model at `index`, with its dashes."""
    path = "M" + "L".join(f"{short(x)} {short(y)}" for x, y in points)
    return tag(
        "path",
        class_=f"stroke m{index % NUM_COLOURS}",
        d=path,
        stroke_width=width,
        stroke_dasharray=_DASHES[index % len(_DASHES)],
        stroke_linejoin="round",
    )


def key(index: int) -> Markup:
    """The sign of a model in a legend."""
    return tag(
        "svg",
        line(index, [(1, 7), (33, 7)]),
        marker(index, 17, 7),
        width=34,
        height=14,
        aria_hidden="true",
    )


def against_size(
    series: Sequence[Series],
    counts: np.ndarray,
    names: Sequence[str],
    *,
    size: tuple[int, int],
    title: str,
    description: str,
    y_title: str,
    percent: bool = False,
    class_: str = "",
    tooltips: bool = True,
) -> Markup:
    """A measure per class against class size: a point per class, a line through means.

    Where all classes have one size, they stand in the order of the first model's values.
    """
    varied = counts.min() < counts.max()
    few = len(counts) * len(series) <= _ERROR_BARS
    tops = [_top(s) if few else float(np.nan_to_num(s.values).max()) for s in series]
    high = max(tops, default=1.0)
    panel = _Panel(
        size,
        high,
        y_title=y_title,
        x_title="class size, images (logarithmic)" if varied else "classes, in order",
        percent=percent,
    )
    if varied:
        low, top = (math.log10(max(float(c), 0.5)) for c in (counts.min(), counts.max()))
        shares = (np.log10(np.maximum(counts, 0.5)) - low) / (top - low)
        places = [
            ((math.log10(v) - low) / (top - low), f"{v:,}")
            for v in _log_ticks(low, top, 7 if size[0] > 500 else 4)
        ]
    else:
        order = np.argsort(-np.nan_to_num(series[0].values, nan=-1.0), kind="stable")
        shares = np.empty(len(counts))
        shares[order] = np.linspace(0, 1, len(counts)) if len(counts) > 1 else 0.5
        places = []
    parts: list[object] = [panel.frame(places)]
    dodge = 5.0 if few else 0.0  # models side by side, so that error bars do not cover each other
    many = len(counts) > MANY_POINTS
    lines: list[object] = []
    for place, one in enumerate(series):
        shift = dodge * (place - (len(series) - 1) / 2)
        usable = np.isfinite(one.values)
        xs = [panel.x(float(s)) + shift for s in shares]
        ys = [panel.y(float(v)) if u else 0.0 for v, u in zip(one.values, usable, strict=True)]
        if many:
            path = "".join(
                f"M{short(xs[i])} {short(ys[i])}h0" for i in np.flatnonzero(usable).tolist()
            )
            parts.append(
                tag("path", class_=f"dots m{one.index % NUM_COLOURS}", d=path, stroke_width=3.5,
                    stroke_linecap="round", stroke_opacity="0.4")
            )  # fmt: skip
        else:
            for i in np.flatnonzero(usable).tolist():
                if few and one.errors is not None and math.isfinite(float(one.errors[i])):
                    ends = [
                        panel.y(max(float(one.values[i] + sign * one.errors[i]), 0.0))
                        for sign in (-1, 1)
                    ]
                    parts.append(
                        tag("path", class_=f"stroke m{one.index % NUM_COLOURS}",
                            d=f"M{short(xs[i])} {short(ends[0])}V{short(ends[1])}",
                            stroke_opacity="0.6")
                    )  # fmt: skip
                tip = None
                if tooltips:
                    value = f"{100 * one.values[i]:.1f} %" if percent else f"{one.values[i]:.3f}"
                    tip = tag("title", f"{one.name}, {names[i]} ({counts[i]:,} images): {value}")
                radius = 4.5 if few else 3.2
                parts.append(marker(one.index, xs[i], ys[i], radius, tip))
        if varied:
            points = _means_by_size(shares, one.values)
            if len(points) > 1:
                coordinates = [(panel.x(s) + shift, panel.y(v)) for s, v in points]
                if many:  # an edge in the colour of the page, to be seen among the dots
                    path = "M" + "L".join(f"{short(x)} {short(y)}" for x, y in coordinates)
                    lines.append(tag("path", class_="edge", d=path, stroke_width=5))
                lines.append(line(one.index, coordinates, 2.2 if many else 1.6))
    return panel.svg([parts, lines], title, description, class_)


def ladder(
    series: Sequence[Series],
    steps: Sequence[str],
    *,
    title: str,
    description: str,
    y_title: str,
    x_title: str,
    percent: bool = False,
) -> Markup:
    """A measure against the strength of a transformation, with a 95 % band; steps are even.

    The first value of each series is that of the untransformed images.
    """
    high = max((_top(one) for one in series), default=1.0)
    panel = _Panel((330, 210), high, y_title=y_title, x_title=x_title, percent=percent)
    shares = np.linspace(0, 1, len(steps)) if len(steps) > 1 else np.array([0.5])
    # Labels that would touch are thinned from the end, which is the one most asked for.
    room = max(1, math.ceil(len(steps) * (max(map(len, steps)) * 6.5 + 8) / 260))
    places = [
        (float(s), label if (len(steps) - 1 - i) % room == 0 else "")
        for i, (s, label) in enumerate(zip(shares, steps, strict=True))
    ]
    parts: list[object] = [panel.frame(places)]
    for one in series:
        usable = np.flatnonzero(np.isfinite(one.values)).tolist()
        points = [(panel.x(float(shares[i])), panel.y(float(one.values[i]))) for i in usable]
        if not points:
            continue
        if one.errors is not None:
            limit = 1.0 if percent else panel.high
            errors = np.where(np.isfinite(one.errors), one.errors, 0.0)
            upper = [
                (panel.x(float(shares[i])), panel.y(min(float(one.values[i] + errors[i]), limit)))
                for i in usable
            ]
            lower = [
                (panel.x(float(shares[i])), panel.y(max(float(one.values[i] - errors[i]), 0.0)))
                for i in reversed(usable)
            ]
            path = "M" + "L".join(f"{short(x)} {short(y)}" for x, y in upper + lower) + "Z"
            parts.append(tag("path", class_=f"fill m{one.index % NUM_COLOURS}", d=path,
                             fill_opacity="0.18"))  # fmt: skip
        parts.append(line(one.index, points))
        for i, (x, y) in zip(usable, points, strict=True):
            value = f"{100 * one.values[i]:.1f} %" if percent else f"{one.values[i]:.3f}"
            parts.append(marker(one.index, x, y, 3.4, tag("title", f"{one.name}: {value}")))
    return panel.svg(parts, title, description)


def _top(one: Series) -> float:
    """The largest value with its error; 0 without any."""
    errors = np.zeros(len(one.values)) if one.errors is None else np.nan_to_num(one.errors)
    return float(np.max(np.nan_to_num(one.values) + errors, initial=0.0))


def both_widths(draw: Callable[..., Markup], **arguments: object) -> Markup:
    """A chart for wide pages and one for phones, of which the style sheet shows one: text in a
    picture that is scaled down to a phone could not be read."""
    return join(
        [
            draw(size=(880, 380), class_="wide", **arguments),
            draw(size=(360, 280), class_="narrow", tooltips=False, **arguments),
        ]
    )


def _means_by_size(shares: np.ndarray, values: np.ndarray) -> list[tuple[float, float]]:
    """Means over classes of one size or, with many sizes, over tenths of the classes."""
    usable = np.isfinite(values)
    shares, values = shares[usable], values[usable]
    sizes = np.unique(shares)
    if len(sizes) <= _MANY_SIZES:
        return [(float(s), float(values[shares == s].mean())) for s in sizes]
    order = np.argsort(shares, kind="stable")
    return [
        (float(shares[part].mean()), float(values[part].mean()))
        for part in np.array_split(order, _BINS)
    ]


def _ticks(high: float) -> list[float]:
    """From 0 to at least `high`, three to six steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > 0:
        return [0.0, 0.5, 1.0]
    power = 10.0 ** math.floor(math.log10(high))
    for step in (0.2, 0.25, 0.5, 1.0, 2.0):
        number = math.ceil(high / (step * power) - 1e-9)
        if number <= 5:
            return [i * step * power for i in range(max(number, 1) + 1)]
    return [0.0, high]


def _log_ticks(low: float, high: float, most: int) -> list[int]:
    """Whole numbers 1, 2, 5, 10, ... between two powers of ten, at most `most` of them."""
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [
            factor * 10**power
            for power in range(max(math.floor(low), 0), math.ceil(high) + 1)
            for factor in factors
            if low - 1e-9 <= math.log10(factor * 10**power) <= high + 1e-9
        ]
        if 2 <= len(values) <= most:
            return values
    ends = sorted({max(round(10**low), 1), round(10**high)})
    return ends if high - low < 1 or len(values) < 2 else values
