"""Whether similarity in an embedding means anything: within against across classes, rotations."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_git.analysis import similarity
from keras_git.analysis.embeddings import Embedder, open_cache
from keras_git.analysis.images import sample_images
from keras_git.analysis.intervals import check_level, jackknife_error, student_quantile
from keras_git.analysis.operations import Step, move
from keras_git.analysis.tables import ResultTable, Row
from keras_git.errors import InputError
from keras_git.transforms.affine import affine_matrix

_LADDER = (5.0, 90.0)


class CheckTable(ResultTable):
    """Mean cosine similarities, one row per comparison.

    Columns: `comparison` ("within class", "across classes", "image with itself"), `condition`
    ("none", "rotated at random", "rotated alike", "rotated by 5 degrees", ...), `similarity`, `lo`,
    `hi`, `n_images`.
    """

    COLUMNS = ("comparison", "condition", "similarity", "lo", "hi", "n_images")
    TEXTS = ("comparison", "condition")
    KIND = "similarity checks"

    def similarity(self, comparison: str, condition: str = "none") -> float:
        """The value of a row, NaN if there is none."""
        for row in self.rows:
            if row["comparison"] == comparison and row["condition"] == condition:
                return float(row["similarity"])
        return math.nan

    @property
    def warning(self) -> str:
        """What is wrong with the embedding, empty if nothing is."""
        for condition in dict.fromkeys(row["condition"] for row in self.rows):
            within = self.similarity("within class", condition)
            across = self.similarity("across classes", condition)
            if math.isfinite(within) and math.isfinite(across) and within <= across:
                where = "" if condition == "none" else f" ({condition})"
                return (
                    f"images of a class are not more alike ({within:.4f}) than images of different "
                    f"classes ({across:.4f}) in this embedding{where}: what transformations do to "
                    "their similarity says little"
                )
        return ""

    @property
    def passed(self) -> bool:
        """Whether images of a class are more alike than others, in all conditions."""
        return not self.warning


def _groups(labels: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _pair_rows(
    vectors: Sequence[np.ndarray], labels: np.ndarray, condition: str, level: float
) -> list[Row]:
    """Within and across, means over several sets of vectors of the same images."""
    groups = _groups(labels)
    found = np.array([similarity.class_pair_means(one, groups) for one in vectors])
    half = student_quantile(level, max(len(labels) - len(groups), 1))
    rows = []
    for place, comparison in ((0, "within class"), (2, "across classes")):
        value, error = found[:, place].mean(), found[:, place + 1].mean()
        rows.append(_row(comparison, condition, value, half * error, len(labels)))
    return rows


def _row(comparison: str, condition: str, value: float, width: float, number: int) -> Row:
    return {
        "comparison": comparison,
        "condition": condition,
        "similarity": float(value),
        "lo": float(value - width),
        "hi": float(value + width),
        "n_images": number,
    }


def check_of_clean(vectors: np.ndarray, labels: np.ndarray, level: float) -> CheckTable:
    """The rows that need no transformed images, from unit vectors `(N, D)`."""
    return CheckTable(
        _pair_rows([vectors], labels, "none", level),
        {"n_images": len(labels), "n_transforms": 0, "ci": level},
    )


def _rotation(degrees: np.ndarray) -> Step:
    matrices = np.stack([affine_matrix(rotate=float(angle)) for angle in degrees])
    numbers = {
        "matrix": matrices.astype(np.float32),
        "fill": np.zeros(len(degrees), np.float32),
    }
    return Step("rotation of each", _rotate, numbers)


def _rotate(images: Any, numbers: dict[str, Any]) -> Any:
    return move(images, {"matrix": numbers["matrix"], "fill": 0.0})


def similarity_checks(
    model: Any,
    data: Any,
    *,
    layer: str | int | None = None,
    images_per_class: int | None = 64,
    num_angles: int = 4,
    ci: float = 0.95,
    batch_size: int = 256,
    seed: int = 0,
    cache: Any = None,
    preprocess: Any = None,
    split: str = "test",
    data_dir: str | None = None,
) -> CheckTable:
    """Looks whether cosine similarity in an embedding agrees with what people would say.

    Images of a class should be more alike than images of different classes: as they are, each
    rotated by an angle of its own, and all rotated by the same angle. An image should be more like
    itself rotated by 5 degrees than by 90.

    Args:
        model: see `explain_variation`, as are the arguments not named here.
        data: labelled images.
        layer: the embedding.
        images_per_class: most images of a class.
        num_angles: of the common rotations, over which is averaged.
        ci: level of the intervals.
        batch_size: images per call.
        seed: of images and angles.
        cache: of embeddings.
        preprocess: what the model takes.
        split: of data that have several.
        data_dir: folder of the data.

    Returns:
        The table; `UserWarning` where within is not above across.

    Raises:
        InputError: as `explain_variation`.

    Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
    2021 (the conditions; all pairs in place of some, and the intervals, are this package's).
    """
    started = time.monotonic()
    level = check_level(ci)
    if num_angles < 1:
        raise InputError(f"num_angles is {num_angles!r}; give 1 or more")
    sample = sample_images(
        data, images_per_class=images_per_class, seed=seed, split=split, data_dir=data_dir
    )
    embedder = Embedder(
        model,
        sample,
        layers=[layer],
        preprocess=preprocess,
        batch_size=batch_size,
        seed=seed,
        cache=open_cache(cache),
    )
    number = len(sample)
    clean = similarity.unit(embedder.clean()[0])
    rows = _pair_rows([clean], sample.labels, "none", level)
    generator = np.random.default_rng([seed, 9])

    def rotated(degrees: np.ndarray) -> np.ndarray:
        return similarity.unit(embedder.moved(_rotation(degrees))[0])

    own_angles = rotated(generator.uniform(0, 360, number))
    rows += _pair_rows([own_angles], sample.labels, "rotated at random", level)
    angles = generator.integers(0, 360, num_angles)
    alike = [rotated(np.full(number, angle)) for angle in angles]
    rows += _pair_rows(alike, sample.labels, "rotated alike", level)
    half = student_quantile(level, max(number - 1, 1))
    for angle in _LADDER:
        values = (clean * rotated(np.full(number, angle))).sum(axis=1)
        error = float(jackknife_error((values.sum() - values) / max(number - 1, 1)))
        condition = f"rotated by {angle:g} degrees"
        rows.append(_row("image with itself", condition, values.mean(), half * error, number))
    table = CheckTable(
        rows,
        {
            "n_images": number,
            "n_transforms": num_angles + 1 + len(_LADDER),
            "data": sample.name,
            "layer": layer,
            "ci": level,
            "seed": seed,
            "angles": angles.tolist(),
        },
        seconds=time.monotonic() - started,
    )
    if table.warning:
        warnings.warn(table.warning, UserWarning, stacklevel=2)
    return table
