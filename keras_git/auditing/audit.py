"""The audit: every transformation at every strength, per class, compiled with the classifier."""

from __future__ import annotations

import copy
import math
import numbers
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_git.auditing.checkpoint import Checkpoint, Identity
from keras_git.auditing.classifier import (
    Classifier,
    checked_size,
    input_shape,
    load_classifier,
    open_classifier,
)
from keras_git.auditing.conditions import planned_conditions
from keras_git.auditing.data import LabelledImages, open_data
from keras_git.auditing.measure import ModelRun, Progress, Settings
from keras_git.auditing.result import AuditResult
from keras_git.errors import InputError
from keras_git.versions import versions

# Images on which outputs are looked at, and on which the background is judged.
_PROBE_IMAGES = 32
_BACKGROUND_IMAGES = 256


def audit(
    model: Any,
    data: Any,
    transforms: Any = None,
    *,
    class_counts: Sequence[int] | np.ndarray | None = None,
    preprocess: Any = None,
    outputs: str | Sequence[str] = "auto",
    num_samples: int = 10,
    precision: float | None = None,
    max_samples: int = 100,
    batch_size: int = 250,
    seed: int = 0,
    names: Sequence[str] | None = None,
    images_per_class: int | None = None,
    progress: Progress | None = None,
    resize: bool | int | tuple[int, int] | None = None,
    split: str = "test",
    data_dir: str | None = None,
    cache_dir: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    num_examples: int = 8,
    checkpoint: str | Path | None = None,
) -> AuditResult:
    """Measures to what a classifier is invariant, class by class, and how that goes with size.

    For every transformation at every strength: the expected KL divergence between the predictions
    for an image and for its transformed versions (eKLD), the consistency of predictions, and the
    accuracy on transformed images; each per class with its standard error, by groups of classes,
    and (eKLD) as a trend against class size.

    A transformation is applied, the classifier called and the sums taken in one compiled function;
    transformed images never come back to the host, and all strengths of a transformation share one
    compilation. Data are read batch by batch and only sums per class are kept, so memory depends
    neither on the number of images nor on that of draws. The draws are those of
    `keras_git.metrics.expected_kl`: functions of `seed` and the position of an image, the same for
    all models, strengths and backends.

    Args:
        model: a Keras classifier, a function, the path of a `.keras` file, or several of them as a
            sequence or a mapping by name.
        data: labelled images, grey levels 0..255: `(images, labels)`, an `ImageDataset`, `Splits`,
            a folder, an `.npz` file, the name of a dataset, a `tf.data.Dataset` or a
            `keras.utils.PyDataset`; see `keras_git.auditing.data.open_data`.
        transforms: None for all ladders that suit the images (`keras_git.transforms.LADDERS`), or
            a sequence of names (`"rotation"`; with strengths of your own `"rotation:30:90"`;
            `"defaults"` for what None stands for), `Ladder`s, `Transform`s, functions of a batch
            (see `FunctionTransform`) and generators (see `GeneratorTransform`), or a mapping of
            names to the last four.
        class_counts: training images per class `(C,)`, against which trends and groups are taken.
            By default those of the data's training split or, if there is none, the numbers of
            images that are audited.
        preprocess: what happens to grey levels 0..255 before the model: None or "none" (the model
            scales them itself), "0_1", "minus1_1", "caffe", "tf", "torch", a function of a batch;
            or a sequence with one of these per model.
        outputs: "logits", "probabilities", "auto" (found out), or a sequence with one per model.
            Logits are exact; probabilities that underflow to 0 make eKLD a lower bound.
        num_samples: draws per image; with a precision, those of a trial.
        precision: if given, each class gets as many draws per image as bring the sampling error of
            its eKLD to this (nats). The trial tells how many; it is not part of the result, since
            a class whose trial misses rare large divergences would look certain and low at once
            (`keras_git.auditing.statistics.draws_needed`).
        max_samples: most draws per image under a precision, the trial not counted.
        batch_size: images per call.
        seed: seed of the draws, 0 or more.
        names: names of the models; by default those of files and of Keras models.
        images_per_class: use only the first images of each class.
        progress: called with (evaluations done, evaluations planned, what is measured). Rounds for
            a precision add to the plan as they turn out to be needed.
        resize: True to resize images to what the model takes, (height, width), or one side.
        split: split of data that have several: "test", "train", "validation", "invariance"; see
            `keras_git.auditing.data.open_data`.
        data_dir: folder of tensorflow_datasets, or of a relative `.npz` path.
        cache_dir: where images of a folder or of tensorflow_datasets are kept that do not fit into
            memory.
        class_names: names of the classes where the data have none.
        num_examples: most pictures of changed predictions per model; 0 for none.
        checkpoint: file (`.npz`) that is written while the audit is under way, at most every 30
            seconds, for all models together, and read if it is there: the same call then continues
            an interrupted audit, and ends in the same result. It stays, so that the call after the
            last answers at once; delete it when the result is kept. The file of another audit
            (other models, data, transformations, settings that decide results, or versions of the
            software) is refused, not overwritten.

    Returns:
        What was found.

    Raises:
        InputError: a model, data, transformation or number that cannot be used; a checkpoint that
            is damaged, of another audit, or cannot be written.

    Reference: Zhou et al., "Do Deep Networks Transfer Invariances Across Classes?", ICLR 2022,
    section 3.
    """
    started = time.monotonic()
    settings = _checked(
        num_samples,
        precision,
        max_samples,
        batch_size,
        seed,
        images_per_class,
        num_examples,
        progress,
    )
    models = _named_models(model, names)
    wanted = next((shape for _, m in models if (shape := input_shape(m))), None)
    if resize is not None and not isinstance(resize, bool):
        resize = checked_size(resize)
        wanted = (*resize, *(wanted or (None,))[-1:])
    # A copy: what is set here must not stay in data that belong to the caller
    source = copy.copy(
        open_data(data, split=split, data_dir=data_dir, wanted=wanted, cache_dir=cache_dir)
    )
    source.images_per_class = images_per_class

    # The same images whatever the batch size, as results must not depend on it
    images = source.sample(_BACKGROUND_IMAGES)
    probe = images[:: math.ceil(len(images) / _PROBE_IMAGES)]
    classifiers = [
        open_classifier(m, name, probe, preprocess=how, outputs=kind, resize=resize)
        for (name, m), how, kind in zip(
            models,
            _per_model("preprocess", preprocess, len(models)),
            _per_model("outputs", outputs, len(models)),
            strict=True,
        )
    ]
    num_classes = _common_classes(classifiers, source)
    source.num_classes = num_classes
    conditions, skipped = planned_conditions(transforms, images)
    class_names = _class_names(class_names, source.class_names, num_classes)
    counts = None
    if class_counts is not None or source.class_counts is not None:
        given = source.class_counts if class_counts is None else class_counts
        counts = _class_counts(given, num_classes)
    image_bytes = images[0].nbytes
    runs = [ModelRun(c, source, conditions, counts, settings, image_bytes) for c in classifiers]
    kept = None
    if checkpoint is not None:
        identity = Identity(classifiers, conditions, source, images, settings)
        kept = Checkpoint(checkpoint, identity, source, runs)
    for run in runs:
        run.measure(kept.keep if kept is not None else lambda now: None)
    num_images = runs[0].num_images
    return AuditResult(
        models=tuple(run.model_audit() for run in runs),
        class_names=class_names,
        class_counts=num_images if counts is None else counts,
        num_images=num_images,
        data=source.name,
        skipped=skipped,
        settings={
            "num_samples": settings.num_samples,
            "precision": settings.precision,
            "max_samples": settings.max_samples,
            "batch_size": settings.batch_size,
            "seed": settings.seed,
            "images_per_class": images_per_class,
            "split": split,
            "class_counts": "audited images" if counts is None else "training images",
            "preprocess": {c.name: _described(c.preprocessing.mode) for c in classifiers},
            "resize": {
                c.name: None if c.preprocessing.size is None else list(c.preprocessing.size)
                for c in classifiers
            },
            **source.notes,
        },
        versions=versions(),
        seconds=time.monotonic() - started + (0.0 if kept is None else kept.seconds_before),
    )


def _described(mode: Any) -> str:
    return mode if isinstance(mode, str) else str(getattr(mode, "__name__", type(mode).__name__))


def _checked(
    num_samples: int,
    precision: Any,
    max_samples: int,
    batch_size: int,
    seed: int,
    images_per_class: int | None,
    num_examples: int,
    progress: Progress | None,
) -> Settings:
    # Whatever a caller gave, annotations or not
    numbers_given: list[tuple[str, Any, int]] = [
        ("num_samples", num_samples, 1),
        ("max_samples", max_samples, 1),
        ("batch_size", batch_size, 1),
        ("images_per_class", images_per_class, 1),
        ("seed", seed, 0),
        ("num_examples", num_examples, 0),
    ]
    for name, value, least in numbers_given:
        if value is None and name == "images_per_class":
            continue
        if not isinstance(value, numbers.Real) or not float(value) >= least or float(value) % 1:
            raise InputError(f"{name} is {value!r}; give a whole number of {least} or more")
    if precision is not None:
        if not isinstance(precision, numbers.Real) or not 0 < float(precision) < math.inf:
            raise InputError(f"precision is {precision!r}; give a sampling error above 0 (nats)")
        precision = float(precision)
        if num_samples < 2:
            raise InputError("a precision needs num_samples of 2 or more: one draw has no spread")
        if max_samples < num_samples:
            raise InputError(
                f"max_samples is {max_samples}; give at least num_samples, {num_samples}"
            )
    return Settings(
        int(num_samples),
        precision,
        int(max_samples),
        int(batch_size),
        int(seed),
        int(num_examples),
        progress or (lambda done, planned, text: None),
    )


def _named_models(model: Any, names: Sequence[str] | None) -> list[tuple[str, Any]]:
    """(unique name, opened model) of each model."""
    if isinstance(model, Mapping):
        if names is not None:
            raise InputError("names: the mapping of models has names already")
        names, model = [str(name) for name in model], list(model.values())
    several = list(model) if isinstance(model, (list, tuple)) else [model]
    if not several:
        raise InputError("there is no model; give at least one")
    if names is None:
        found = []
        for number, one in enumerate(several, 1):
            if isinstance(one, (str, Path)):
                name = Path(one).stem
            else:
                name = str(getattr(one, "name", None) or getattr(one, "__name__", "model"))
            found.append(name if name not in found else f"{name} ({number})")
        names = found
    if len(names) != len(several) or len(set(names)) < len(names):
        raise InputError(f"names are {list(names)} for {len(several)} models; give one each")
    return [
        (str(name), load_classifier(one) if isinstance(one, (str, Path)) else one)
        for name, one in zip(names, several, strict=True)
    ]


def _per_model(what: str, value: Any, number: int) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        return [value] * number
    if len(value) != number:
        raise InputError(f"{what} has {len(value)} entries for {number} models; give one, or each")
    return list(value)


def _common_classes(classifiers: Sequence[Classifier], source: LabelledImages) -> int:
    """The number of classes on which all models and the data agree."""
    first = classifiers[0]
    for other in classifiers[1:]:
        if other.num_classes != first.num_classes:
            raise InputError(
                f"model {first.name!r} has {first.num_classes} classes and {other.name!r} "
                f"{other.num_classes}; audit models of the same classes together"
            )
    if source.num_classes is not None and source.num_classes != first.num_classes:
        raise InputError(
            f"model {first.name!r} has {first.num_classes} classes, the data have "
            f"{source.num_classes}; they must agree"
        )
    return first.num_classes


def _class_names(
    given: Sequence[str] | None, found: Sequence[str], num_classes: int
) -> tuple[str, ...]:
    names = tuple(str(name) for name in (given if given is not None else found))
    names = names or tuple(str(number) for number in range(num_classes))
    if len(names) != num_classes:
        raise InputError(f"there are {len(names)} class names for {num_classes} classes")
    return names


def _class_counts(counts: Any, num_classes: int) -> np.ndarray:
    values = np.asarray(counts)
    if values.shape != (num_classes,):
        raise InputError(
            f"class_counts has shape {values.shape} for {num_classes} classes; give one number "
            "per class"
        )
    if values.dtype.kind not in "iuf" or not (values >= 0).all() or (values % 1).any():
        raise InputError("class_counts: give whole numbers of 0 or more")
    return values.astype(np.int64)
