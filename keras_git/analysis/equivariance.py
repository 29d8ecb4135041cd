"""Whether a transformation moves all embeddings in the same direction."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_git.analysis import official, similarity
from keras_git.analysis.cells import (
    Cell,
    ModelTable,
    candidate_columns,
    layer_list,
    layer_name,
    measured_cells,
    preprocess_of,
)
from keras_git.analysis.embeddings import open_cache
from keras_git.analysis.images import ImageSample, sample_images
from keras_git.analysis.intervals import (
    benjamini_hochberg,
    check_level,
    jackknife_error,
    median_interval,
    sign_p,
    student_p,
    student_quantile,
)
from keras_git.analysis.tables import Row
from keras_git.analysis.transform_sets import TransformSet
from keras_git.analysis.variation import check_set_size
from keras_git.errors import InputError

SCORES = ("pair_cosine", "axis", "paper_alignment")


def pair_cosines(displacements: np.ndarray, power: int = 1) -> tuple[float, np.ndarray]:
    """Mean of cos(d_i, d_j)^power over ordered pairs i != j, and without each image.

    Power 1: 1 if all displacements are parallel, 0 for directions that have nothing to do with
    each other. Power 2: 1 if all are on one axis, 1 / D for directions that are uniform. In O(N D)
    and O(N D min(N, D)).

    Args:
        displacements: `(N, D)`; those of length 0 do not count.
        power: 1 or 2.

    Returns:
        The mean, NaN for fewer than two displacements; `(N,)`, the mean itself for an image that
        does not count.
    """
    n = len(displacements)
    moved = np.flatnonzero(np.any(displacements != 0, axis=1))
    x = similarity.unit(_rescaled(np.asarray(displacements, np.float64)[moved]))
    m = len(moved)
    if m < 2:
        return math.nan, np.full(n, np.nan)
    if power == 1:
        mean, left_out = similarity.pair_mean(x, x)
    else:
        if x.shape[1] <= m:
            rows = np.einsum("nd,nd->n", x @ (x.T @ x), x)
        else:
            rows = ((x @ x.T) ** 2).sum(axis=1)
        rows = rows - 1.0
        mean, left_out = similarity.mean_and_left_out(float(rows.sum()), rows, rows)
    every = np.full(n, mean)
    every[moved] = left_out
    return mean, every


def _rescaled(vectors: np.ndarray) -> np.ndarray:
    """The largest entry of each becomes 1: short displacements keep their direction."""
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    return vectors / np.where(largest > 0, largest, 1.0)


def equivariance_cell(
    z: np.ndarray,
    transformed: np.ndarray,
    place: int,
    *,
    score: str = "pair_cosine",
    n_null: int = 20,
    seed: int = 0,
) -> Cell:
    """Equivariance of one candidate; see `measure_equivariance`."""
    difference = np.asarray(z, np.float64) - np.asarray(transformed, np.float64)
    n, width = difference.shape
    generator = np.random.default_rng([seed, place])

    def columns() -> np.ndarray:
        return np.stack([generator.permutation(n) for _ in range(width)])

    moved = int(np.any(difference != 0, axis=1).sum())
    extra: dict[str, Any] = {
        "moved": moved,
        "length": float(np.sqrt((difference**2).sum(axis=1)).mean()),
    }
    if score == "paper_alignment":
        draws = [
            official.alignment(difference, columns(), generator.permutation(n))[2]
            for _ in range(max(n_null, 1))
        ]
        each = np.mean(draws, axis=0)
        extra["null"] = np.zeros(1)
        total = each.sum()
        return Cell(each, float(each.mean()), (total - each) / (n - 1), extra)
    power = 1 if score == "pair_cosine" else 2
    whole, left_out = pair_cosines(difference, power)
    null = []
    for _ in range(n_null if moved > 1 else 0):
        if power == 1:
            signs = generator.choice([-1.0, 1.0], (n, 1))
            null.append(pair_cosines(difference * signs)[0])
        else:
            null.append(pair_cosines(official.shuffled_columns(difference, columns()), 2)[0])
    extra["null"] = np.array(null)
    return Cell(None, whole, left_out, extra)


class EquivarianceTable(ModelTable):
    """Equivariance by model, layer, transformation and magnitude.

    Columns: `model`, `layer`, `transform`, `magnitude`, `index`, `n_images`, `n_moved` (images
    whose embedding changes), `equivariance` (the score), `lo`, `hi`, `null` (mean of the score
    where nothing is shared), `null_lo`, `null_hi` (range of its draws), `q_value` (of the score
    being the null's mean; of "paper_alignment", a median, by the sign test), `displacement` (mean
    length), `visible_fraction`.
    """

    COLUMNS = (
        "model",
        "layer",
        "transform",
        "magnitude",
        "index",
        "n_images",
        "n_moved",
        "equivariance",
        "lo",
        "hi",
        "null",
        "null_lo",
        "null_hi",
        "q_value",
        "displacement",
        "visible_fraction",
    )
    TEXTS = ("model", "layer", "transform")
    KIND = "equivariance table"

    def plot(self, path: str | Path | None = None, **options: Any) -> Any:
        """Draws equivariance against magnitude; see `keras_git.plots.invariance_bands`."""
        from keras_git import plots

        return plots.invariance_bands(self, path, **options)


def measure_equivariance(
    model: Any,
    data: Any,
    transforms: TransformSet,
    *,
    layer: Any = None,
    score: str = "pair_cosine",
    n_null: int = 20,
    ci: float = 0.95,
    images_per_class: int | None = 256,
    batch_size: int = 256,
    seed: int = 0,
    cache: Any = None,
    preprocess: Any = None,
    name: str = "model",
    class_names: Sequence[str] | None = None,
    split: str = "test",
    data_dir: str | None = None,
    progress: Any = None,
) -> EquivarianceTable:
    """Measures whether a transformation moves all embeddings alike.

    Args:
        model: see `explain_variation`, as are the arguments not named here.
        data: labelled images.
        transforms: the candidates.
        layer: a layer, or a list of layers.
        score: of the displacements d_i = z_i - z'_i: "pair_cosine", the mean cosine of two of them
            (1: f(T x) = f(x) + c; 0: nothing shared); "axis", the mean squared cosine (they share
            an axis, whatever the direction); "paper_alignment", that of the original study, which
            is 0 for f(T x) = f(x) + c too: for comparison only.
        n_null: draws of the score where nothing is shared: displacements with random signs
            ("pair_cosine"), or with every coordinate shuffled over the images on its own ("axis",
            and the baseline of "paper_alignment", averaged over the draws).
        ci: level of the intervals: jackknife over images; for "paper_alignment" exact for the
            median.
        name: of the model, in the table.

    Returns:
        The table.

    Raises:
        InputError: as `explain_variation`; fewer than three images.

    Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
    2021 (alignment).
    """
    started = time.monotonic()
    sample = sample_images(
        data,
        images_per_class=images_per_class,
        seed=seed,
        class_names=class_names,
        split=split,
        data_dir=data_dir,
    )
    return equivariance_of_models(
        {name: model},
        sample,
        transforms,
        layer=layer,
        score=score,
        n_null=n_null,
        ci=ci,
        batch_size=batch_size,
        seed=seed,
        cache=cache,
        preprocess=preprocess,
        progress=progress,
        started=started,
    )


def equivariance_of_models(
    models: Mapping[str, Any],
    sample: ImageSample,
    transforms: TransformSet,
    *,
    layer: Any = None,
    score: str = "pair_cosine",
    n_null: int = 20,
    ci: float = 0.95,
    batch_size: int = 256,
    seed: int = 0,
    cache: Any = None,
    preprocess: Any = None,
    progress: Any = None,
    started: float | None = None,
) -> EquivarianceTable:
    """`measure_equivariance` of several models on the same images, with the cells of each."""
    started = time.monotonic() if started is None else started
    if score not in SCORES:
        raise InputError(f"score is {score!r}; use one of {', '.join(SCORES)}")
    if n_null < 0 or n_null != int(n_null):
        raise InputError(f"n_null is {n_null!r}; give a whole number of 0 or more")
    if not isinstance(transforms, TransformSet):
        raise InputError(f"transforms are {transforms!r}; give a TransformSet")
    level = check_level(ci)
    check_set_size(transforms, sample.image_size)
    if len(sample) < 3:
        raise InputError(f"there are {len(sample)} images; equivariance needs three or more")
    layers = layer_list(layer)
    measure = functools.partial(equivariance_cell, score=score, n_null=n_null, seed=seed)
    kept = open_cache(cache)
    rows: list[Row] = []
    found: dict[tuple[str, int, int], Cell] = {}
    compiling = 0.0
    preprocessing = preprocess_of(preprocess, models)
    for model_name, model in models.items():
        cells, seconds = measured_cells(
            model,
            sample,
            transforms,
            measure,
            layers=layers,
            preprocess=preprocessing[model_name],
            batch_size=batch_size,
            seed=seed,
            cache=kept,
            progress=progress,
        )
        compiling += seconds
        for (place_of_layer, place), cell in cells.items():
            found[model_name, place_of_layer, place] = cell
        for place_of_layer, one in enumerate(layers):
            for place, candidate in enumerate(transforms):
                rows.append(
                    {
                        "model": model_name,
                        "layer": layer_name(one),
                        **candidate_columns(candidate),
                        "visible_fraction": candidate.visible_fraction(*sample.image_size),
                        **_numbers(cells[place_of_layer, place], level),
                    }
                )
    for row, q in zip(rows, benjamini_hochberg([row["p"] for row in rows]), strict=True):
        row["q_value"] = q
    table = EquivarianceTable(
        rows,
        {
            "n_images": len(sample),
            "n_transforms": len(transforms),
            "data": sample.name,
            "transforms": transforms.title,
            "image_size": list(sample.image_size),
            "score": score,
            "n_null": n_null,
            "ci": level,
            "seed": seed,
            "layers": [layer_name(one) for one in layers],
        },
        seconds=time.monotonic() - started,
        notes={
            "operations": {c.transform: c.operation for c in transforms},
            "seconds_compiling": compiling,
        },
    )
    table.cells = found
    return table


def _numbers(cell: Cell, level: float) -> Row:
    n = len(cell.left_out)
    null = cell.extra["null"]
    moved = cell.extra["moved"]
    known = math.isfinite(cell.whole) and np.isfinite(cell.left_out).all()
    error = float(jackknife_error(cell.left_out)) if known else math.nan
    middle = float(null.mean()) if len(null) else 0.0
    value = cell.whole
    if cell.each is not None:
        value = float(np.median(cell.each))
        low, high = median_interval(cell.each, level)
        p = sign_p(cell.each - middle) if known else math.nan
    else:
        half = student_quantile(level, max(moved - 1, 1)) * error
        low, high = value - half, value + half
        p = student_p(cell.whole - middle, error, max(moved - 1, 1))
    return {
        "n_images": n,
        "n_moved": moved,
        "equivariance": value,
        "lo": low,
        "hi": high,
        "null": middle if moved > 1 else math.nan,
        "null_lo": float(null.min()) if len(null) else math.nan,
        "null_hi": float(null.max()) if len(null) else math.nan,
        "p": p,
        "displacement": cell.extra["length"],
    }
