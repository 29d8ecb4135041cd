"""How much place and size of the foreground vary, per class.

Coordinates are x to the right and y down. Relative ones are parts of the image's width and height.

Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
2021 (foregrounds of segmented images), with the axes named, boxes of whole pixels, and images
without foreground counted and left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from keras_git.analysis.tables import ALL_CLASSES, ResultTable, Row
from keras_git.errors import InputError

_MEASURES = ("centre_x", "centre_y", "area")
_STATISTICS = ("mean", "lo", "hi", "std", "q25", "median", "q75")


def foreground_boxes(images: Any, threshold: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """The smallest boxes around what is brighter than a threshold.

    Args:
        images: `(N, H, W)` grey images or masks.
        threshold: in the unit of the images; foreground is above it.

    Returns:
        `(boxes, valid)`: int64 `(N, 4)` of first column, first row, last column, last row, all
        inclusive, -1 without foreground; bool `(N,)`, whether there is any.

    Raises:
        InputError: images of another rank, or empty ones.
    """
    images = np.asarray(images)
    if images.ndim != 3 or not images.size:
        raise InputError(f"images or masks have shape {images.shape}; give (N, H, W)")
    found = images > threshold
    boxes = np.empty((len(images), 4), np.int64)
    for first, along in ((0, 1), (1, 2)):
        hit = found.any(axis=along)
        boxes[:, first] = hit.argmax(axis=1)
        boxes[:, first + 2] = hit.shape[1] - 1 - hit[:, ::-1].argmax(axis=1)
    valid = found.any(axis=(1, 2))
    boxes[~valid] = -1
    return boxes, valid


def centre_of_mass(images: Any) -> np.ndarray:
    """Mean place of the pixels, weighted by their value.

    Args:
        images: `(N, H, W)`, 0 or more; of a mask it is the mean place of the foreground.

    Returns:
        float64 `(N, 2)`, x and y in pixels (the first pixel's centre is 0); NaN where all is 0.
    """
    images = np.asarray(images, dtype=np.float64)
    total = images.sum(axis=(1, 2))
    x = images.sum(axis=1) @ np.arange(images.shape[2])
    y = images.sum(axis=2) @ np.arange(images.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([x, y], axis=-1) / total[:, None]


def box_centres(boxes: Any, image_sizes: Any) -> np.ndarray:
    """Midpoints of boxes relative to the image, `(N, 2)`: x and y.

    Args:
        boxes: `(N, 4)`, first column, first row, last column, last row.
        image_sizes: (height, width) or `(N, 2)`.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    sizes = np.broadcast_to(np.asarray(image_sizes, np.float64), (len(boxes), 2))
    return (boxes[:, :2] + boxes[:, 2:]) / 2 / sizes[:, ::-1]


def box_areas(boxes: Any, image_sizes: Any, inclusive: bool = True) -> np.ndarray:
    """Areas of boxes relative to the image, `(N,)`.

    Args:
        boxes: `(N, 4)`, first column, first row, last column, last row.
        image_sizes: (height, width) or `(N, 2)`.
        inclusive: the last column and row belong to the box. False: they do not, as in the paper's
            program, whose one-pixel boxes have no area.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    sizes = np.broadcast_to(np.asarray(image_sizes, np.float64), (len(boxes), 2))
    return (boxes[:, 2:] - boxes[:, :2] + float(inclusive)).prod(axis=1) / sizes.prod(axis=1)


class ForegroundTable(ResultTable):
    """Place and size of foregrounds, one row per class and one of all classes together.

    Columns: `class_id` (-1 in the row of all classes), `class_name`, `n_images`, `n_foreground`;
    of `centre_x`, `centre_y` and `area`, relative to the image: `_mean`, the ends `_lo` and `_hi`
    of its interval, `_std` (of the population), `_q25`, `_median`, `_q75`; `spread`, the root mean
    square distance of the centres from their mean, `spread_lo`, `spread_hi` (jackknife). NaN where
    there are too few.
    """

    COLUMNS = (
        "class_id",
        "class_name",
        "n_images",
        "n_foreground",
        *(f"{measure}_{statistic}" for measure in _MEASURES for statistic in _STATISTICS),
        "spread",
        "spread_lo",
        "spread_hi",
    )
    TEXTS = ("class_name",)
    KIND = "foreground table"

    @property
    def summary(self) -> str:
        """What was described, in a line."""
        images, classes = self.settings["n_images"], self.settings["n_classes"]
        return f"foregrounds of {images} images in {classes} classes"


def foreground_statistics(
    foreground: Any,
    image_sizes: Any = None,
    labels: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    threshold: float = 0.1,
    ci: float = 0.95,
) -> ForegroundTable:
    """Place and size of the foreground per class: is the position of objects really varied?

    Args:
        foreground: boxes `(N, 4)` of first column, first row, last column, last row, in pixels and
            inclusive (NaN or negative: no foreground); or masks or grey images `(N, H, W)`, whose
            foreground is above `threshold`.
        image_sizes: (height, width) of all images or `(N, 2)`; of masks it is known.
        labels: `(N,)` integers; None: one class.
        class_names: name of each label; default: the number.
        threshold: in the unit of the images.
        ci: confidence of the intervals, 0..1.

    Returns:
        The table; classes in the order of their labels, then the row of all.

    Raises:
        InputError: shapes that do not match, boxes without sizes or outside of their image.
    """
    if not 0 < ci < 1:
        raise InputError(f"ci is {ci}; give a confidence above 0 and below 1")
    given = np.asarray(foreground)
    if given.ndim == 3:
        boxes, valid = foreground_boxes(given, threshold)
        image_sizes = given.shape[1:]
    elif given.ndim == 2 and given.shape[1] == 4 and len(given):
        boxes = given.astype(np.float64)
        valid = np.isfinite(boxes).all(axis=1) & (boxes >= 0).all(axis=1)
        if image_sizes is None:
            raise InputError("boxes need image_sizes, (height, width) or one row per image")
    else:
        raise InputError(
            f"foreground has shape {given.shape}; give boxes (N, 4) or masks (N, H, W)"
        )
    sizes = np.asarray(image_sizes, dtype=np.float64)
    if sizes.shape not in ((2,), (len(boxes), 2)) or not (sizes > 0).all():
        raise InputError(
            f"image_sizes have shape {sizes.shape}; give (height, width) above 0, or one row per "
            "image"
        )
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels)
    if labels.shape != (len(boxes),) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InputError(f"labels have shape {labels.shape}; give {len(boxes)} integers from 0 on")
    if class_names is not None and len(class_names) <= labels.max():
        raise InputError(f"{len(class_names)} class_names for labels up to {labels.max()}")
    limits = np.broadcast_to(sizes, (len(boxes), 2))[:, ::-1]
    ordered = boxes[:, 2:] >= boxes[:, :2]
    bad = valid & ~(ordered & (boxes[:, 2:] < limits)).all(axis=1)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"box {first} is {boxes[first].tolist()} in an image of width and height "
            f"{limits[first].tolist()}: give first column, first row, last column, last row"
        )
    with np.errstate(invalid="ignore"):
        centres, areas = box_centres(boxes, sizes), box_areas(boxes, sizes)
    values = np.column_stack([centres, areas])
    rows = []
    classes = np.unique(labels).tolist()
    for label in [*classes, -1]:
        member = labels == label if label >= 0 else np.ones(len(labels), bool)
        name = str(class_names[label] if class_names else label) if label >= 0 else ALL_CLASSES
        row: Row = {"class_id": label, "class_name": name}
        rows.append({**row, **_described(values[member & valid], int(member.sum()), ci)})
    settings = {
        "n_images": len(labels),
        "n_classes": len(classes),
        "threshold": threshold if given.ndim == 3 else None,
        "ci": ci,
    }
    return ForegroundTable(rows, settings)


def _described(values: np.ndarray, images: int, ci: float) -> Row:
    """Statistics of `(n, 3)` centres and areas."""
    number = len(values)
    row: Row = {"n_images": images, "n_foreground": number}
    nan = math.nan
    for column, measure in enumerate(_MEASURES):
        found = dict.fromkeys(_STATISTICS, nan)
        if number:
            own = values[:, column]
            found["mean"], found["std"] = float(own.mean()), float(own.std())
            quartiles = np.percentile(own, (25, 50, 75))
            found["q25"], found["median"], found["q75"] = (float(q) for q in quartiles)
        if number > 1:
            width = _quantile(ci, number) * own.std(ddof=1) / math.sqrt(number)
            found["lo"], found["hi"] = float(own.mean() - width), float(own.mean() + width)
        row.update({f"{measure}_{name}": value for name, value in found.items()})
    row["spread"] = row["spread_lo"] = row["spread_hi"] = nan
    if number:
        spread = float(np.sqrt(values[:, :2].var(axis=0).sum()))
        row["spread"] = spread
    if number > 2:
        # leaving one out, in closed form: the others' sums of squares about their own mean
        apart = ((values[:, :2] - values[:, :2].mean(axis=0)) ** 2).sum(axis=1)
        others = (number * spread**2 - apart * number / (number - 1)) / (number - 1)
        without = np.sqrt(np.maximum(others, 0.0))
        error = math.sqrt((number - 1) / number * ((without - without.mean()) ** 2).sum())
        width = _quantile(ci, number) * error
        row["spread_lo"], row["spread_hi"] = max(spread - width, 0.0), spread + width
    return row


def _quantile(ci: float, number: int) -> float:
    return float(stats.t.ppf((1 + ci) / 2, number - 1))
