"""What measures of invariance and of equivariance share: cells, tables, several models at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_git.analysis.embeddings import Embedder, EmbeddingCache
from keras_git.analysis.images import ImageSample
from keras_git.analysis.intervals import (
    benjamini_hochberg,
    jackknife_error,
    median_interval,
    sign_p,
    student_p,
    student_quantile,
)
from keras_git.analysis.tables import ResultTable, Row
from keras_git.analysis.transform_sets import Candidate, TransformSet
from keras_git.errors import InputError


@dataclass(frozen=True, eq=False)
class Cell:
    """One candidate at one layer, as measured.

    Attributes:
        each: value of each image `(N,)`, None for a measure that has none.
        whole: value of all images together.
        left_out: `whole` without each image `(N,)`.
        extra: further numbers.
    """

    each: np.ndarray | None
    whole: float
    left_out: np.ndarray
    extra: dict[str, Any]


# From embeddings of images and of transformed images, and the place of the candidate
Measure = Callable[[np.ndarray, np.ndarray, int], Cell]
Cells = dict[tuple[str, int], Cell]


def measured_cells(
    model: Any,
    sample: ImageSample,
    transforms: TransformSet,
    measure: Measure,
    *,
    layers: list[Any],
    preprocess: Any,
    batch_size: int,
    seed: int,
    cache: EmbeddingCache,
    progress: Any,
) -> tuple[dict[tuple[Any, int], Cell], float]:
    """The cells by (place of the layer, place of the candidate), and seconds of compiling.

    One forward pass per candidate serves all layers; candidates that do the same are passed once.
    """
    embedder = Embedder(
        model,
        sample,
        layers=layers,
        preprocess=preprocess,
        batch_size=batch_size,
        seed=seed,
        cache=cache,
    )
    clean = embedder.clean()
    cells: dict[tuple[Any, int], Cell] = {}
    first: dict[Any, int] = {}
    for place, candidate in enumerate(transforms):
        before = first.setdefault(candidate.identity(), place)
        if before < place:
            for layer in range(len(layers)):
                cells[layer, place] = cells[layer, before]
        else:
            moved = embedder.transformed(candidate)
            for layer, (z, zt) in enumerate(zip(clean, moved, strict=True)):
                cells[layer, place] = measure(z, zt, place)
        if progress is not None:
            progress(place + 1, len(transforms))
    return cells, embedder.seconds_compiling


def layer_list(layer: Any) -> list[Any]:
    """One layer or several as a list."""
    return list(layer) if isinstance(layer, (list, tuple)) else [layer]


def layer_name(layer: Any) -> str:
    """Name of a layer in tables."""
    return "output" if layer is None else str(layer)


def named_models(models: Any) -> dict[str, Any]:
    """Several models by name.

    Raises:
        InputError: no mapping, or fewer than two.
    """
    if not isinstance(models, Mapping) or len(models) < 2:
        raise InputError("compare needs a mapping of two names or more to models")
    return {str(name): model for name, model in models.items()}


def preprocess_of(preprocess: Any, models: Mapping[str, Any]) -> dict[str, Any]:
    """What each model takes: the same for all, or from a mapping by name (None if it has none).

    Raises:
        InputError: a mapping with the name of no model.
    """
    if not isinstance(preprocess, Mapping):
        return dict.fromkeys(models, preprocess)
    given = {str(name): how for name, how in preprocess.items()}
    unknown = sorted(set(given) - set(models))
    if unknown:
        raise InputError(f"preprocess has {unknown[0]!r}; the models are {', '.join(models)}")
    return {name: given.get(name) for name in models}


class DifferenceTable(ResultTable):
    """Differences between two models on the same images.

    Columns: `model`, `other`, `layer`, `transform`, `magnitude`, `index`, `difference` (model less
    other), `lo`, `hi`, `q_value`.
    """

    COLUMNS = (
        "model",
        "other",
        "layer",
        "transform",
        "magnitude",
        "index",
        "difference",
        "lo",
        "hi",
        "q_value",
    )
    TEXTS = ("model", "other", "layer", "transform")
    KIND = "difference table"


class ModelTable(ResultTable):
    """Rows of one or several models, layers, transformations and magnitudes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of each image, by (model, place of layer, place of candidate); not written to files
        self.cells: dict[tuple[str, int, int], Cell] = {}

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(dict.fromkeys(row["model"] for row in self.rows))

    @property
    def differences(self) -> DifferenceTable | None:
        """Paired differences between models, of `compare`; None for one model."""
        content = self.notes.get("differences")
        return None if content is None else DifferenceTable.from_dict(content)

    def of_model(self, name: str | None = None) -> Any:
        """The rows of one model.

        Raises:
            InputError: an unknown name, or no name and several models.
        """
        models = self.models
        if name is None and len(models) == 1:
            name = models[0]
        if name not in models:
            raise InputError(f"model {name!r} is not in the table; it has {models}")
        return self.select(model=name)


def candidate_columns(candidate: Candidate) -> Row:
    """What identifies a candidate in a row."""
    magnitude = math.nan if candidate.magnitude is None else float(candidate.magnitude)
    return {"transform": candidate.transform, "magnitude": magnitude, "index": candidate.index}


def paired_differences(
    cells: Mapping[tuple[str, int, int], Cell],
    models: list[str],
    layers: list[Any],
    transforms: TransformSet,
    *,
    by_median: bool,
    level: float,
) -> DifferenceTable:
    """Differences of all pairs of models, image by image.

    By medians: the median of the differences of single images, its exact interval and a sign test.
    Else: the difference of the two values, and a jackknife of it over the images.
    """
    rows: list[Row] = []
    for place_a, a in enumerate(models):
        for b in models[place_a + 1 :]:
            for layer in range(len(layers)):
                for place, candidate in enumerate(transforms):
                    one, two = cells[a, layer, place], cells[b, layer, place]
                    row = _difference(one, two, by_median, level)
                    row |= {"model": a, "other": b, "layer": layer_name(layers[layer])}
                    rows.append(row | candidate_columns(candidate))
    for row, q in zip(rows, benjamini_hochberg([row["p"] for row in rows]), strict=True):
        row["q_value"] = q
    return DifferenceTable(rows, {"n_transforms": len(transforms), "ci": level})


def _difference(one: Cell, two: Cell, by_median: bool, level: float) -> Row:
    if by_median and one.each is not None and two.each is not None:
        values = one.each - two.each
        values = values[np.isfinite(values)]
        if not len(values):
            return {"difference": math.nan, "lo": math.nan, "hi": math.nan, "p": math.nan}
        low, high = median_interval(values, level)
        middle = float(np.median(values))
        return {"difference": middle, "lo": low, "hi": high, "p": sign_p(values)}
    difference = one.whole - two.whole
    error = float(jackknife_error(one.left_out - two.left_out))
    freedom = len(one.left_out) - 1
    half = student_quantile(level, freedom) * error
    return {
        "difference": difference,
        "lo": difference - half,
        "hi": difference + half,
        "p": student_p(difference, error, freedom),
    }
