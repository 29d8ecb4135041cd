"""To what an embedding is invariant, by transformation and magnitude."""

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
    check_level,
    jackknife_error,
    median_interval,
    student_quantile,
)
from keras_git.analysis.tables import ALL_CLASSES, Row
from keras_git.analysis.transform_sets import TransformSet
from keras_git.analysis.variation import check_set_size
from keras_git.errors import InputError

METRICS = ("cosine", "l2")
BASELINES = ("expected", "derangement", "paper")
REDUCTIONS = ("median", "ratio_of_means")


def expected_invariance(
    z: np.ndarray, transformed: np.ndarray, metric: str = "cosine"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Baseline b, distance t and 1 - t / b of each image, with the exact expected baseline.

    b_i is the mean distance of image i to all other transformed images: the mean of what all
    pairings without fixed points give.

    Args:
        z: embeddings `(N, D)`, N > 1.
        transformed: of the transformed images `(N, D)`.
        metric: "cosine" (1 - cos, in O(N D)) or "l2" (Euclidean, in O(N^2 D)).

    Returns:
        Three arrays `(N,)`; the last is NaN where b is 0.
    """
    if metric == "cosine":
        u, v = similarity.unit(z), similarity.unit(transformed)
        baseline = similarity.expected_cosine_baseline(u, v)
        own = similarity.cosine_distance(z, transformed)
    else:
        a, b = np.asarray(z, np.float64), np.asarray(transformed, np.float64)
        baseline = similarity.distance_sums(a, b)[0] / (len(a) - 1)
        own = similarity.l2_distance(a, b)
    return baseline, own, _ratio(own, baseline)


def _ratio(own: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    # Rounding leaves about 1e-16 where all embeddings coincide, and then there is no invariance
    usable = baseline > 1e-12
    return np.where(usable, 1.0 - own / np.where(usable, baseline, 1.0), np.nan)


def ratio_with_left_out(
    z: np.ndarray, transformed: np.ndarray, metric: str = "cosine"
) -> tuple[float, np.ndarray]:
    """1 - mean t / mean b over all images, and without each image in both roles, `(N,)`."""
    n = len(z)
    if metric == "cosine":
        u, v = similarity.unit(z), similarity.unit(transformed)
        own = similarity.cosine_distance(z, transformed)
        diagonal = (u * v).sum(axis=1)
        rows = (n - 1) - (u @ v.sum(axis=0) - diagonal)
        columns = (n - 1) - (v @ u.sum(axis=0) - diagonal)
    else:
        a, b = np.asarray(z, np.float64), np.asarray(transformed, np.float64)
        own = similarity.l2_distance(a, b)
        rows, columns = similarity.distance_sums(a, b)
    mean, left_out = similarity.mean_and_left_out(float(rows.sum()), rows, columns)
    without = (own.sum() - own) / max(n - 1, 1)
    if not mean > 1e-12:
        return math.nan, np.full(n, np.nan)
    return float(1 - own.mean() / mean), 1 - without / left_out


def invariance_cell(
    z: np.ndarray,
    transformed: np.ndarray,
    place: int,
    *,
    metric: str = "cosine",
    baseline: str = "expected",
    seed: int = 0,
) -> Cell:
    """Invariance of one candidate.

    Args:
        z: embeddings `(N, D)`.
        transformed: of transformed images `(N, D)`.
        place: of the candidate, decides the permutation together with the seed.
        metric: "cosine" or "l2".
        baseline: "expected", "derangement" or "paper".
        seed: of permutations.
    """
    n = len(z)
    if baseline == "expected":
        far, own, each = expected_invariance(z, transformed, metric)
        whole, left_out = ratio_with_left_out(z, transformed, metric)
        extra = {"baseline": far, "own": own}
        return Cell(each, whole, left_out, extra)
    generator = np.random.default_rng([seed, place])
    if baseline == "paper":
        order = generator.permutation(n)
        far, own, each = official.invariance(z, transformed, order, metric)
    else:
        order = similarity.derangement(n, generator)
        distance = similarity.METRICS[metric]
        far, own = distance(z, np.asarray(transformed)[order]), distance(z, transformed)
        each = _ratio(own, far)
    whole, left_out = _ratio_of_means(own, far)
    return Cell(each, whole, left_out, {"baseline": far, "own": own})


def _ratio_of_means(own: np.ndarray, far: np.ndarray) -> tuple[float, np.ndarray]:
    if not far.mean() > 1e-12 or len(own) < 2:
        return math.nan, np.full(len(own), np.nan)
    return float(1 - own.mean() / far.mean()), 1 - (own.sum() - own) / (far.sum() - far)


class InvarianceTable(ModelTable):
    """Invariance by model, layer, transformation and magnitude.

    Columns: `model`, `layer`, `transform`, `magnitude` (NaN for none), `index` (place among the
    magnitudes of the transformation), `class_id` (-1: all), `class_name`, `n_images`, `invariance`
    (1 is invariant, 0 no closer than to another image), `lo`, `hi`, `median`, `q25`, `q75` (of
    single images), `ratio_of_means` (1 - mean distance / mean baseline), `distance`, `baseline`
    (means), `visible_fraction` (part of the pixels that show the image: where it is small all
    images look alike, and invariance is low whatever the network does; NaN if not known).
    """

    COLUMNS = (
        "model",
        "layer",
        "transform",
        "magnitude",
        "index",
        "class_id",
        "class_name",
        "n_images",
        "invariance",
        "lo",
        "hi",
        "median",
        "q25",
        "q75",
        "ratio_of_means",
        "distance",
        "baseline",
        "visible_fraction",
    )
    TEXTS = ("model", "layer", "transform", "class_name")
    KIND = "invariance table"

    def plot(self, path: str | Path | None = None, **options: Any) -> Any:
        """Draws invariance against magnitude, a panel per transformation, a band per model.

        Args:
            path: picture file; None to get the Matplotlib figure.
            **options: of `keras_git.plots.invariance_bands`.
        """
        from keras_git import plots

        return plots.invariance_bands(self, path, **options)


def measure_invariance(
    model: Any,
    data: Any,
    transforms: TransformSet,
    *,
    layer: Any = None,
    metric: str = "cosine",
    baseline: str = "expected",
    reduce: str = "median",
    per_class: bool = False,
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
) -> InvarianceTable:
    """Measures how much closer an image is to its transformed version than to other images.

    For image i with embedding z_i: 1 - t_i / b_i, t_i the distance to its own transformed version
    and b_i the expected distance to the transformed version of another image. Transformations act
    on pixels, before any normalization. One pass over the images as they are and one for each
    candidate that does something new.

    Args:
        model: see `explain_variation`, as are the arguments not named here.
        data: labelled images.
        transforms: the candidates.
        layer: a layer, or a list of layers, which cost no further passes.
        metric: "cosine" or "l2".
        baseline: "expected" (exact mean over all other images), "derangement" (one random pairing
            without fixed points), or "paper" (one random permutation, fixed points included, with
            the constants of the original; see `keras_git.analysis.official`).
        reduce: "median" of single images with an exact interval from order statistics, or
            "ratio_of_means" with a jackknife interval.
        per_class: rows for each class too, against the baseline of all images.
        ci: level of the intervals.
        name: of the model, in the table.

    Returns:
        The table.

    Raises:
        InputError: as `explain_variation`; fewer than three images.

    Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
    2021, section 3.
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
    return invariance_of_models(
        {name: model},
        sample,
        transforms,
        layer=layer,
        metric=metric,
        baseline=baseline,
        reduce=reduce,
        per_class=per_class,
        ci=ci,
        batch_size=batch_size,
        seed=seed,
        cache=cache,
        preprocess=preprocess,
        progress=progress,
        started=started,
    )


def invariance_of_models(
    models: Mapping[str, Any],
    sample: ImageSample,
    transforms: TransformSet,
    *,
    layer: Any = None,
    metric: str = "cosine",
    baseline: str = "expected",
    reduce: str = "median",
    per_class: bool = False,
    ci: float = 0.95,
    batch_size: int = 256,
    seed: int = 0,
    cache: Any = None,
    preprocess: Any = None,
    progress: Any = None,
    started: float | None = None,
) -> InvarianceTable:
    """`measure_invariance` of several models on the same images, with the cells of each."""
    started = time.monotonic() if started is None else started
    for what, value, known in (
        ("metric", metric, METRICS),
        ("baseline", baseline, BASELINES),
        ("reduce", reduce, REDUCTIONS),
    ):
        if value not in known:
            raise InputError(f"{what} is {value!r}; use one of {', '.join(known)}")
    if not isinstance(transforms, TransformSet):
        raise InputError(f"transforms are {transforms!r}; give a TransformSet")
    level = check_level(ci)
    check_set_size(transforms, sample.image_size)
    if len(sample) < 3:
        raise InputError(f"there are {len(sample)} images; invariance needs three or more")
    layers = layer_list(layer)
    measure = functools.partial(invariance_cell, metric=metric, baseline=baseline, seed=seed)
    kept = open_cache(cache)
    shown = [c.visible_fraction(*sample.image_size) for c in transforms]
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
                cell = cells[place_of_layer, place]
                common = {
                    "model": model_name,
                    "layer": layer_name(one),
                    **candidate_columns(candidate),
                    "visible_fraction": shown[place],
                }
                everything = {"class_id": -1, "class_name": ALL_CLASSES}
                rows.append(common | everything | _numbers(cell, None, reduce, level))
                for label in sample.classes if per_class else ():
                    own = {"class_id": int(label), "class_name": sample.class_name(int(label))}
                    chosen = sample.labels == label
                    rows.append(common | own | _numbers(cell, chosen, reduce, level))
    table = InvarianceTable(
        rows,
        {
            "n_images": len(sample),
            "n_transforms": len(transforms),
            "data": sample.name,
            "transforms": transforms.title,
            "image_size": list(sample.image_size),
            "metric": metric,
            "baseline": baseline,
            "reduce": reduce,
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


def _numbers(cell: Cell, chosen: np.ndarray | None, reduce: str, level: float) -> Row:
    """Columns of a row, of all images or of those that are chosen."""
    each = np.asarray(cell.each)
    own, far = cell.extra["own"], cell.extra["baseline"]
    whole, left_out = cell.whole, cell.left_out
    if chosen is not None:
        each, own, far = each[chosen], own[chosen], far[chosen]
        whole, left_out = _ratio_of_means(own, far)
    seen = each[np.isfinite(each)]
    q25, median, q75 = np.percentile(seen, (25, 50, 75)) if len(seen) else [math.nan] * 3
    if reduce == "median":
        value = float(median)
        low, high = median_interval(seen, level) if len(seen) else (math.nan, math.nan)
    else:
        value = whole
        width = student_quantile(level, len(left_out) - 1) * float(jackknife_error(left_out))
        low, high = value - width, value + width
    return {
        "n_images": len(each),
        "invariance": value,
        "lo": low,
        "hi": high,
        "median": float(median),
        "q25": float(q25),
        "q75": float(q75),
        "ratio_of_means": whole,
        "distance": float(own.mean()),
        "baseline": float(far.mean()),
    }
