"""The audit: every transformation at every strength, per class, compiled with the classifier."""

from __future__ import annotations

import copy
import dataclasses
import math
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from keras_git import transforms as kg_transforms
from keras_git.auditing.classifier import (
    Classifier,
    checked_size,
    failure,
    input_shape,
    load_classifier,
    one_line,
    open_classifier,
)
from keras_git.auditing.data import LabelledImages, open_data
from keras_git.auditing.result import AuditResult, Condition, Example, ModelAudit
from keras_git.auditing.statistics import (
    AccuracySums,
    ConditionSums,
    draws_needed,
    group_means,
    joined_draws,
    mean_of_seen,
    spearman_trend,
    wants_more,
)
from keras_git.backend import compiled
from keras_git.errors import InputError
from keras_git.metrics.draws import draws_function, prediction_function, sampled_parameters
from keras_git.transforms import (
    LADDERS,
    FunctionTransform,
    GeneratorTransform,
    Ladder,
    Transform,
    is_generator,
)
from keras_git.versions import versions

# In `transforms`, all ladders that suit the images.
DEFAULTS = "defaults"
# Images on which outputs are looked at, and on which the background is judged.
_PROBE_IMAGES = 32
_BACKGROUND_IMAGES = 256
# Strokes on a dark background: more than this part of the pixels is exactly 0.
_DARK_SHARE = 0.2
_WORST_CLASSES = 5
_EXAMPLES_PER_CLASS = 2
_EXAMPLE_DRAWS = 5
# Conditions under which a class is searched for a changed prediction.
_EXAMPLE_TRIES = 4
# Images that wait until a batch is full, all conditions of a round together.
_WAITING_BYTES = 512 << 20

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class _Planned:
    """A condition and the transformation that makes it."""

    condition: Condition
    transform: Transform


@dataclass(frozen=True)
class _Settings:
    """What is the same for all models of an audit."""

    num_samples: int
    precision: float | None
    max_samples: int
    batch_size: int
    seed: int
    num_examples: int
    progress: Progress


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

    Returns:
        What was found.

    Raises:
        InputError: a model, data, transformation or number that cannot be used.

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
    conditions, skipped = _conditions(transforms, images)
    class_names = _class_names(class_names, source.class_names, num_classes)
    counts = None
    if class_counts is not None or source.class_counts is not None:
        given = source.class_counts if class_counts is None else class_counts
        counts = _class_counts(given, num_classes)
    runs = [_ModelRun(c, source, conditions, counts, settings) for c in classifiers]
    for run in runs:
        run.measure()
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
        seconds=time.monotonic() - started,
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
) -> _Settings:
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
    return _Settings(
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


def _conditions(spec: Any, images: np.ndarray) -> tuple[list[_Planned], dict[str, str]]:
    """What is to be measured, and what is left out for a reason.

    Args:
        spec: see `audit`.
        images: some of the data, `(N, H, W, C)`.
    """
    height, width, channels = (int(size) for size in images.shape[1:])
    planned: list[_Planned] = []
    skipped: dict[str, str] = {}
    dark = float(np.mean(images == 0)) > _DARK_SHARE

    def ladder(chosen: Ladder, strengths: Sequence[float], asked: bool) -> None:
        name = chosen.name
        if chosen.needs_colour and channels != 3:
            skipped[name] = "the images have no colour"
        elif chosen.needs_dark_background and not dark and not asked:
            skipped[name] = "meant for bright strokes on a background of 0, which these are not"
        else:
            for rung in chosen.rungs((height, width, channels), strengths):
                if chosen is not LADDERS.get(name):
                    _try_out(rung.label, rung.transform, images)
                condition = Condition(name, rung.strength, rung.unit, rung.label)
                planned.append(_Planned(condition, rung.transform))

    def defaults() -> None:
        for chosen in LADDERS.values():
            ladder(chosen, (), False)

    def single(name: str, given: Any) -> None:
        if isinstance(given, Ladder):
            ladder(dataclasses.replace(given, name=name), (), True)
            return
        transform = _transform(name, given)
        _try_out(name, transform, images)
        planned.append(_Planned(Condition(name, None, "", name.replace("_", " ")), transform))

    if spec is None:
        defaults()
    elif isinstance(spec, Mapping):
        for name, transform in spec.items():
            single(str(name), transform)
    else:
        one = isinstance(spec, (str, Transform, Ladder)) or callable(spec)
        for entry in [spec] if one else spec:
            if not isinstance(entry, str):
                single(_name_of(entry), entry)
                continue
            name, *strengths = entry.split(":")
            if entry == DEFAULTS:
                defaults()
            elif name in LADDERS:
                ladder(LADDERS[name], _numbers(entry, strengths), True)
            elif not strengths and name in kg_transforms.NAMES:
                single(name, kg_transforms.get(name))
            else:
                known = dict.fromkeys([*LADDERS, *kg_transforms.NAMES])
                raise InputError(
                    f"transformation {entry!r} is unknown; use one of {', '.join(known)}, or "
                    "name:strength:strength"
                )
    if not planned:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise InputError(f"there is no transformation to measure ({reasons or 'none was given'})")
    keys = [(plan.condition.transform, plan.condition.strength) for plan in planned]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise InputError(
            f"transformation {twice[0]!r} is given twice; give a mapping with different names"
        )
    return planned, skipped


def _name_of(entry: Any) -> str:
    """The name under which a transformation without one in the arguments is reported."""
    name = getattr(entry, "name", None) or getattr(entry, "__name__", None) or type(entry).__name__
    return "function" if name == "<lambda>" else str(name)


def _transform(name: str, given: Any) -> Transform:
    """A transformation from one, from a generator or from a function."""
    if isinstance(given, Transform):
        return given
    if is_generator(given):
        return GeneratorTransform(given, name)
    if callable(given) and not isinstance(given, type):
        return FunctionTransform(given, name)
    raise InputError(
        f"transformation {name!r} is {given!r}; give a name, a function of a batch, a generator, "
        "or an instance of Transform or Ladder"
    )


def _try_out(name: str, transform: Transform, images: np.ndarray) -> None:
    """Applies somebody else's transformation to two images.

    Raises:
        InputError: it fails, changes the shape, or gives NaN.
    """
    if not isinstance(transform, Transform):
        raise InputError(f"transformation {name!r} is {transform!r}; give an instance of Transform")
    try:
        moved = ops.convert_to_numpy(transform(images[:2]))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"transformation {name!r} fails: {one_line(error)}") from error
    if moved.shape != images[:2].shape:
        raise InputError(
            f"transformation {name!r} made {moved.shape} of images of shape {images[:2].shape}; "
            "the shape must stay"
        )
    if not np.isfinite(moved).all():
        raise InputError(f"transformation {name!r} makes images that are NaN or infinite")


def _numbers(entry: str, texts: Sequence[str]) -> list[float]:
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise InputError(
            f"transformation {entry!r}: write the strengths as numbers, name:strength:strength"
        ) from None


class _ModelRun:
    """Measures one model.

    Args:
        classifier: the model.
        source: the data; `num_classes` is set.
        conditions: what to measure.
        class_counts: training images per class, or None for the numbers of audited images.
        settings: of the audit.
    """

    def __init__(
        self,
        classifier: Classifier,
        source: LabelledImages,
        conditions: Sequence[_Planned],
        class_counts: np.ndarray | None,
        settings: _Settings,
    ) -> None:
        self._classifier, self._source, self._settings = classifier, source, settings
        self._conditions, self._class_counts = conditions, class_counts
        number = classifier.num_classes
        self._accuracy = AccuracySums(number)
        self._sums = [ConditionSums(number, plan.transform.deterministic) for plan in conditions]
        self._predict = prediction_function(
            classifier.network, classifier.preprocessing, classifier.from_logits
        )
        # Held here: the cache of compiled functions may be smaller than the number of conditions
        self._measures = [
            draws_function(
                classifier.network,
                plan.transform,
                classifier.preprocessing,
                classifier.from_logits,
            )
            for plan in conditions
        ]
        known = source.num_images
        self._batch_size = min(settings.batch_size, known or settings.batch_size)
        self._appliers: dict[Any, Callable[..., Any]] = {}
        self._evaluations = 0
        self._saved = 0
        per_image = 1 + sum(self._draws(plan) for plan in conditions)
        self._planned = (known or 0) * per_image

    @property
    def num_images(self) -> np.ndarray:
        """Audited images per class, int64 (C,)."""
        return self._accuracy.num_images

    def measure(self) -> None:
        """Goes through the data: once for all conditions, then as a precision asks."""
        image_bytes = 0
        for images, labels, positions in self._source.blocks(self._batch_size):
            image_bytes = images[0].nbytes
            tensor, rows = self._on_device(images)
            original = self._original(tensor, len(labels), positions)
            self._accuracy.add(labels, original)
            # All conditions are under way before the first result is waited for
            results = [
                self._launch(index, 0, tensor, original, labels[rows], positions[rows])
                for index in range(len(self._conditions))
            ]
            for index, (plan, result) in enumerate(zip(self._conditions, results, strict=True)):
                values = self._fetched(index, result, len(labels))
                self._add(index, values, labels, self._draws(plan))
            self._report("all transformations")
        for sums in self._sums:
            sums.finish_round()
        if self._settings.precision is not None:
            self._refine(self._settings.precision, image_bytes)
            self._saved = self._one_for_all() - self._evaluations

    def _draws(self, plan: _Planned) -> int:
        return 1 if plan.transform.deterministic else self._settings.num_samples

    def _refine(self, precision: float, image_bytes: int) -> None:
        """Measures anew, with as many draws per class as the first round says are needed.

        Rounds double the number of draws; a round is one pass over the data for all conditions in
        which a class wants more.
        """
        most, seen = self._settings.max_samples, self.num_images > 0
        random = [i for i, sums in enumerate(self._sums) if not sums.deterministic]
        needed = {i: draws_needed(self._sums[i], precision) for i in random}
        for index in random:
            self._sums[index] = ConditionSums(self._classifier.num_classes)
        per_pass = max(1, _WAITING_BYTES // (2 * self._batch_size * image_bytes))
        level, stream = 0, 1  # 0 is that of the first round
        while True:
            wanted = {
                i: seen & wants_more(self._sums[i], needed[i], precision, most) for i in random
            }
            open_ = [i for i, classes in wanted.items() if classes.any()]
            if not open_:
                return
            target = min(max(2 * level, 2), most)
            for first in range(0, len(open_), per_pass):
                together = {i: wanted[i] for i in open_[first : first + per_pass]}
                self._round(together, target - level, stream)
            for index in open_:
                self._sums[index].finish_round()
            stream += math.ceil((target - level) / self._settings.num_samples)
            level = target

    def _round(self, wanted: Mapping[int, np.ndarray], draws: int, stream: int) -> None:
        """Further draws of some classes in one pass; `wanted` has the classes per condition."""
        classes = np.any(list(wanted.values()), axis=0)
        images_of = {i: int(self.num_images[own].sum()) for i, own in wanted.items()}
        self._planned += int(self.num_images[classes].sum()) + draws * sum(images_of.values())
        # Images that wait until a whole batch of them can be measured under a condition
        waiting: dict[int, list[tuple[np.ndarray, ...]]] = {index: [] for index in wanted}
        for index in wanted:
            self._sums[index].start_round()
        for images, labels, positions in self._source.blocks(self._batch_size, classes):
            tensor, rows = self._on_device(images)
            original = self._original(tensor, len(labels), positions)
            host: np.ndarray | None = None
            for index, own in wanted.items():
                chosen = own[labels]
                if chosen.all() and len(labels) == self._batch_size:
                    self._further_draws(
                        index, stream, tensor, original, labels, positions, rows, draws
                    )
                elif chosen.any():
                    if host is None:
                        host = ops.convert_to_numpy(original)[: len(labels)]
                    lane = waiting[index]
                    lane.append(tuple(p[chosen] for p in (images, host, labels, positions)))
                    while sum(len(part[2]) for part in lane) >= self._batch_size:
                        self._flush(index, lane, stream, draws)
            self._report("precision")
        for index, lane in waiting.items():
            if lane:
                self._flush(index, lane, stream, draws)
        self._report("precision")

    def _flush(
        self, index: int, lane: list[tuple[np.ndarray, ...]], stream: int, draws: int
    ) -> None:
        """Measures the first batch of the images that wait; the others go on waiting."""
        parts = [np.concatenate(columns) for columns in zip(*lane, strict=True)]
        images, original, labels, positions = (part[: self._batch_size] for part in parts)
        rest = tuple(part[self._batch_size :] for part in parts)
        lane[:] = [rest] if len(rest[2]) else []
        tensor, rows = self._on_device(images)
        self._further_draws(
            index,
            stream,
            tensor,
            ops.convert_to_tensor(original[rows]),
            labels,
            positions,
            rows,
            draws,
        )

    def _further_draws(
        self,
        index: int,
        stream: int,
        tensor: Any,
        original: Any,
        labels: np.ndarray,
        positions: np.ndarray,
        rows: np.ndarray,
        draws: int,
    ) -> None:
        """Draws of a round on a batch; more than the compiled size in several calls."""
        values: np.ndarray | None = None
        done = 0
        while done < draws:
            number = min(self._settings.num_samples, draws - done)
            result = self._launch(
                index, stream, tensor, original, labels[rows], positions[rows], number
            )
            found = self._fetched(index, result, len(labels))
            values = found if values is None else joined_draws(values, done, found, number)
            done, stream = done + number, stream + 1
        if values is not None:
            self._add(index, values, labels, draws)

    def _on_device(self, images: np.ndarray) -> tuple[Any, np.ndarray]:
        """float32 images, padded to one size (one compilation), and the rows they came from.

        Padding repeats the first image; its results are dropped.
        """
        rows = np.arange(self._batch_size)
        rows[len(images) :] = 0
        padded = images if len(images) == self._batch_size else images[rows]
        return ops.cast(ops.convert_to_tensor(padded), "float32"), rows

    def _predicted(self, tensor: Any) -> Any:
        """Log-probabilities, on the device.

        Raises:
            InputError: the model, or its preprocess function, cannot be compiled.
        """
        try:
            return self._predict(tensor)
        except InputError:
            raise
        except Exception as error:  # whatever a foreign model raises
            what = f"model {self._classifier.name!r}"
            if callable(self._classifier.preprocessing.mode):
                what += " (or its preprocess function)"
            raise failure(what, error, self._batch_size) from error

    def _original(self, tensor: Any, number: int, positions: np.ndarray) -> Any:
        """Log-probabilities of untransformed images, on the device."""
        original = self._predicted(tensor)
        bad = ~np.isfinite(ops.convert_to_numpy(original)[:number]).all(axis=1)
        if bad.any():
            raise InputError(
                f"model {self._classifier.name!r} gives NaN for image {positions[bad.argmax()]} "
                "(counted from 0): check its weights and preprocess"
            )
        self._evaluations += number
        return original

    def _launch(
        self,
        index: int,
        stream: int,
        tensor: Any,
        original: Any,
        labels: np.ndarray,
        positions: np.ndarray,
        draws: int | None = None,
    ) -> Any:
        """Starts draws of a condition on a batch."""
        plan = self._conditions[index]
        size = self._draws(plan)
        parameters = sampled_parameters(
            plan.transform, self._settings.seed, positions, size, stream
        )
        try:
            return self._measures[index](
                tensor, original, labels.astype(np.int32), parameters, np.int32(draws or size)
            )
        except InputError:
            raise
        except Exception as error:  # whatever a foreign transformation raises
            raise self._failed(plan, error) from error

    def _failed(self, plan: _Planned, error: Exception) -> InputError:
        # The model has been compiled alone before
        what = f"transformation {plan.condition.label!r} with model {self._classifier.name!r}"
        return failure(what, error, self._batch_size)

    def _fetched(self, index: int, result: Any, number: int) -> np.ndarray:
        """Sums `(4, number)` of the images that are no padding."""
        plan = self._conditions[index]
        try:
            values = ops.convert_to_numpy(result)[:, :number]
        except Exception as error:  # what ran in the background fails where it is waited for
            raise self._failed(plan, error) from error
        if not np.isfinite(values).all():
            raise InputError(
                f"model {self._classifier.name!r} gives NaN under {plan.condition.label!r}: check "
                "its weights and preprocess"
            )
        return values

    def _add(self, index: int, values: np.ndarray, labels: np.ndarray, draws: int) -> None:
        self._sums[index].add(labels, values, draws)
        self._evaluations += draws * len(labels)

    def _report(self, text: str) -> None:
        self._settings.progress(self._evaluations, max(self._planned, self._evaluations), text)

    def _one_for_all(self) -> int:
        """Evaluations with one number of draws for all classes of a condition, nothing repeated.

        That number is the one of the class that needed most, with which the precision holds for
        every class.
        """
        draws = sum(int(sums.num_samples.max()) for sums in self._sums)
        return int(self.num_images.sum()) * (1 + draws)

    def model_audit(self) -> ModelAudit:
        """The record of the model."""
        accuracy = self._accuracy
        counts = self.num_images if self._class_counts is None else self._class_counts
        per_class = accuracy.per_class
        resolution = self._classifier.ekld_resolution
        examples = tuple(self._examples()) if self._settings.num_examples else ()
        return ModelAudit(
            name=self._classifier.name,
            parameters=self._classifier.parameters,
            outputs=self._classifier.outputs,
            accuracy=accuracy.accuracy,
            balanced_accuracy=mean_of_seen(per_class),
            expected_calibration_error=accuracy.calibration_error,
            per_class_accuracy=per_class,
            group_accuracy=group_means(per_class, counts),
            group_accuracy_standard_error=accuracy.group_errors(counts),
            accuracy_trend=spearman_trend(counts, per_class),
            measurements=tuple(
                sums.measurement(plan.condition, counts, resolution)
                for plan, sums in zip(self._conditions, self._sums, strict=True)
            ),
            examples=examples,
            evaluations=self._evaluations,
            evaluations_saved=self._saved,
            ekld_resolution=resolution,
        )

    def _examples(self) -> list[Example]:
        """Changed predictions of the worst classes, under what moves each of them most."""
        ekld = np.stack([sums.mean("ekld") for sums in self._sums])
        kept = np.stack([sums.mean("consistency") for sums in self._sums])
        seen = np.flatnonzero(self.num_images > 0)
        worst = seen[np.argsort(-ekld[:, seen].mean(axis=0), kind="stable")][:_WORST_CLASSES]
        changes = (ekld > self._classifier.ekld_resolution) & (kept < 1)
        worst = worst[changes[:, worst].any(axis=0)]
        if not len(worst):
            return []
        images, labels, positions = self._images_of(worst)
        tensor, rows = self._on_device(images)
        before = ops.convert_to_numpy(self._predicted(tensor))[: len(labels)]
        self._evaluations += len(labels)
        # What a condition does to the images of all these classes, found out once
        known: dict[int, dict[int, Example]] = {}
        found: list[Example] = []
        for label in worst.tolist():
            shown: set[str] = set()
            order = np.argsort(-ekld[:, label], kind="stable")
            for index in order[changes[order, label]][:_EXAMPLE_TRIES].tolist():
                name = self._conditions[index].condition.transform
                if len(shown) == _EXAMPLES_PER_CLASS or len(found) == self._settings.num_examples:
                    break
                if name in shown:
                    continue
                if index not in known:
                    known[index] = self._changed(
                        index, tensor, images, labels, positions[rows], before
                    )
                if label in known[index]:
                    shown.add(name)
                    found.append(known[index][label])
        return found

    def _images_of(self, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first images of each class, at most one batch in all, in one pass."""
        each = np.zeros(self._classifier.num_classes, np.int64)
        each[classes] = max(1, self._batch_size // len(classes))
        left = np.minimum(each, self.num_images)
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for images, labels, positions in self._source.blocks(self._batch_size, left > 0):
            keep = np.zeros(len(labels), bool)
            for place, label in enumerate(labels.tolist()):
                keep[place] = left[label] > 0
                left[label] -= keep[place]
            parts.append((images[keep], labels[keep], positions[keep]))
            if not left.any():
                break
        images, labels, positions = (np.concatenate(part) for part in zip(*parts, strict=True))
        return (
            images[: self._batch_size],
            labels[: self._batch_size],
            positions[: self._batch_size],
        )

    def _changed(
        self,
        index: int,
        tensor: Any,
        images: np.ndarray,
        labels: np.ndarray,
        positions: np.ndarray,
        before: np.ndarray,
    ) -> dict[int, Example]:
        """Class -> an image whose prediction the condition changes, where there is one.

        Prefers a correct prediction that becomes another with much confidence.
        """
        plan, number = self._conditions[index], len(labels)
        size = self._draws(plan)
        parameters = sampled_parameters(plan.transform, self._settings.seed, positions, size)
        key = plan.transform.function_key
        if key not in self._appliers:
            self._appliers[key] = compiled(plan.transform.apply, plan.transform.variables)
        prediction = before.argmax(axis=1)
        best: dict[int, Example] = {}
        scores: dict[int, float] = {}
        for draw in range(min(size, _EXAMPLE_DRAWS)):
            drawn = {name: value[draw] for name, value in parameters.items()}
            try:
                moved = self._appliers[key](tensor, drawn)
            except Exception as error:  # measured before, so most likely for want of memory
                raise self._failed(plan, error) from error
            after = ops.convert_to_numpy(self._predicted(moved))[:number]
            self._evaluations += number
            changed = after.argmax(axis=1) != prediction
            score = changed * (np.exp(after.max(axis=1)) + (prediction == labels))
            for label in np.unique(labels).tolist():
                row = int(np.where(labels == label, score, -1.0).argmax())
                if score[row] <= scores.get(label, 0.0):
                    continue
                scores[label] = float(score[row])
                best[label] = Example(
                    condition=plan.condition,
                    label=label,
                    image=_picture(images[row]),
                    transformed=_picture(ops.convert_to_numpy(moved[row])),
                    prediction=int(prediction[row]),
                    confidence=float(np.exp(before[row].max())),
                    transformed_prediction=int(after[row].argmax()),
                    transformed_confidence=float(np.exp(after[row].max())),
                )
        return best


def _picture(image: np.ndarray) -> np.ndarray:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
