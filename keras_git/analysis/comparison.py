"""Several models on the same images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from keras_git.analysis.cells import layer_list, named_models, paired_differences
from keras_git.analysis.equivariance import equivariance_of_models
from keras_git.analysis.images import sample_images
from keras_git.analysis.intervals import check_level
from keras_git.analysis.invariance import invariance_of_models
from keras_git.analysis.transform_sets import TransformSet
from keras_git.errors import InputError

MEASURES = ("invariance", "equivariance")


def compare(
    models: Mapping[str, Any],
    data: Any,
    transforms: TransformSet,
    *,
    measure: str = "invariance",
    ci: float = 0.95,
    images_per_class: int | None = 256,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    split: str = "test",
    data_dir: str | None = None,
    **options: Any,
) -> Any:
    """Measures several models on the same images, and their differences image by image.

    Args:
        models: at least two, by name, such as `{"trained": m1, "untrained": m0}`.
        data: labelled images; see `measure_invariance`, as are the arguments not named here.
        transforms: the candidates.
        measure: "invariance" or "equivariance".
        ci: level of the intervals.
        **options: of `measure_invariance` or `measure_equivariance`; `preprocess` may be a mapping
            by model.

    Returns:
        An `InvarianceTable` or `EquivarianceTable` with rows of all models; its `differences` hold
        each earlier model less each later one, with paired intervals. Under invariance by medians
        that is the median of the differences of single images; else the difference of the values,
        with a jackknife over images.

    Raises:
        InputError: fewer than two models, another measure, or as the measures.
    """
    started = time.monotonic()
    known = named_models(models)
    if measure not in MEASURES:
        raise InputError(f"measure is {measure!r}; use one of {', '.join(MEASURES)}")
    level = check_level(ci)
    sample = sample_images(
        data,
        images_per_class=images_per_class,
        seed=seed,
        class_names=class_names,
        split=split,
        data_dir=data_dir,
    )
    run: Any = invariance_of_models if measure == "invariance" else equivariance_of_models
    table = run(known, sample, transforms, ci=level, seed=seed, started=started, **options)
    by_median = options.get("reduce", "median") == "median" and measure == "invariance"
    differences = paired_differences(
        table.cells,
        list(known),
        layer_list(options.get("layer")),
        transforms,
        by_median=by_median or options.get("score") == "paper_alignment",
        level=level,
    )
    table.notes["differences"] = differences.to_dict()
    table.seconds = time.monotonic() - started
    return table
