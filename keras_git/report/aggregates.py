"""Means over classes and over strengths with their uncertainty, and how numbers are written."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass

import numpy as np

from keras_git.auditing import AuditResult, Condition, Measurement, ModelAudit, Trend
from keras_git.auditing.statistics import pooled_error

# Of a normal distribution: 95 % lie within this many standard errors.
WIDTH_95 = 1.96
# If none of n images shows an event, its rate is below 3 / n with 95 % confidence.
RULE_OF_THREE = 3.0
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Mean:
    """A mean over classes.

    Attributes:
        value: the mean; NaN without any class.
        standard_error: between images, the classes taken as they are; NaN if unknown.
        num_images: images it rests on, as many as an even share over the classes would need for
            the same error; infinite where their number is unknown.
    """

    value: float
    standard_error: float
    num_images: float

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % confidence interval of a fraction; infinite if unknown.

        Never below 3 / images: a hundred images that all keep their prediction do not show that
        every image would.
        """
        if not math.isfinite(self.standard_error):
            return math.inf
        return max(WIDTH_95 * self.standard_error, RULE_OF_THREE / self.num_images)


def seen(result: AuditResult) -> np.ndarray:
    """Which classes have images, bool (C,). A count of -1 stands for an unknown number."""
    return np.asarray(result.num_images) != 0


def over_classes(
    values: np.ndarray, errors: np.ndarray | None, num_images: np.ndarray, classes: np.ndarray
) -> Mean:
    """Mean of a measure over classes, each with the same weight.

    Args:
        values: per class (C,), NaN where no image was.
        errors: standard errors (C,), NaN for a class of one image; None if there are none.
        num_images: images per class (C,); -1 if unknown.
        classes: which classes enter, bool (C,).
    """
    used = classes & np.isfinite(values)
    number = int(used.sum())
    if not number:
        return Mean(math.nan, math.nan, 0.0)
    images = np.where(num_images[used] > 0, num_images[used], np.inf).astype(np.float64)
    total = number**2 / float(np.sum(1 / images)) if np.isfinite(images).any() else math.inf
    error = math.nan
    if errors is not None:
        error = pooled_error(errors[used], images)
    return Mean(float(values[used].mean()), error, total)


def ladders(model: ModelAudit) -> dict[str, list[Measurement]]:
    """Measurements by transformation, each in the order of its ladder."""
    found: dict[str, list[Measurement]] = {}
    for measurement in model.measurements:
        found.setdefault(measurement.condition.transform, []).append(measurement)
    return found


def transforms(result: AuditResult) -> list[str]:
    """All transformations of an audit, in order."""
    return list(dict.fromkeys(m.condition.transform for a in result.models for m in a.measurements))


def conditions(result: AuditResult) -> list[Condition]:
    """All conditions of an audit, in order."""
    return list(dict.fromkeys(m.condition for a in result.models for m in a.measurements))


def mean_over(measurements: list[Measurement], name: str) -> np.ndarray:
    """Mean of a measure over several measurements, per class (C,); NaN where one of them is."""
    return np.mean([getattr(m, name) for m in measurements], axis=0)


def class_ekld(model: ModelAudit) -> np.ndarray:
    """eKLD per class (C,), mean over all conditions."""
    return mean_over(list(model.measurements), "ekld")


def class_ekld_error(model: ModelAudit) -> np.ndarray:
    """An upper bound of its standard error: the conditions share images, so errors add up."""
    return mean_over(list(model.measurements), "ekld_standard_error")


def p_value(trend: Trend) -> float:
    """The p-value of a trend, not below what its number of classes can show.

    The approximation by Student's distribution gives 0 for any exact order; yet of the orders of n
    classes two (up and down) are exact: p is 2 / n! at least.
    """
    return max(trend.p_value, 2 / math.factorial(min(trend.num_classes, 20)))


# ------------------------------------------------------------------------------------ writing


def clean(name: str) -> str:
    """A class or model name fit for a line of text: one line, no control signs, not too long."""
    name = " ".join(str(name).split())
    name = "".join(
        # Cc and Cs: control signs and halves of characters (file names that are not UTF-8). Cf but
        # joiners: signs that are not seen and turn the text after them around.
        "\ufffd"
        if unicodedata.category(c) in ("Cc", "Cs")
        or (unicodedata.category(c) == "Cf" and c not in "\u200c\u200d")
        else c
        for c in name
    )
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "\u2026"


def words(name: str) -> str:
    """A transformation's name as words."""
    return clean(name.replace("_", " "))


def nats(value: float) -> str:
    """An eKLD."""
    if not math.isfinite(value):
        return "\u2013"
    if value == 0:
        return "0"
    if abs(value) < 0.0005:
        return "below 0.001"
    return f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}"


def percent(value: float, digits: int = 1) -> str:
    """A fraction."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "\u2013"


def percent_within(mean: Mean) -> str:
    """A fraction with half the width of its 95 % confidence interval, in points."""
    text = percent(mean.value)
    if math.isfinite(mean.half_width) and mean.half_width > 0:
        digits = 1 if mean.half_width < 0.0995 else 0
        text += f" \u00b1 {max(100 * mean.half_width, 0.1):.{digits}f}"
    return text


def count(value: float) -> str:
    """A whole number with commas."""
    return f"{int(value):,}"


def number_of(value: int, singular: str, plural: str | None = None) -> str:
    """`1 image`, `2 images`."""
    return f"{count(value)} {singular if value == 1 else plural or singular + 's'}"


def listed(parts: list[str], most: int = 8, separator: str = ", ") -> str:
    """`a, b and c` (or `a; b; c` for parts with commas); what is over `most` is counted."""
    if len(parts) > most:
        parts = [*parts[: most - 1], f"{len(parts) - most + 1} more"]
        last = " and "
    else:
        last = " and " if separator == ", " else separator
    return parts[0] if len(parts) == 1 else separator.join(parts[:-1]) + last + parts[-1]
