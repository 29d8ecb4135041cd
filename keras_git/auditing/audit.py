"""The audit: every transformation at every strength, per class, compiled with the classifier."""

from __future__ import annotations

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
    input_shape,
    load_classifier,
    open_classifier,
)
from keras_git.auditing.data import LabelledImages, open_data
from keras_git.auditing.result import AuditResult, Condition, Example, ModelAudit
from keras_git.auditing.statistics import (
    AccuracySums,
    ConditionSums,
    group_means,
    mean_of_seen,
    spearman_trend,
)
from keras_git.backend import compiled
from keras_git.errors import InputError
from keras_git.metrics.draws import draws_function, prediction_function, sampled_parameters
from keras_git.transforms import LADDERS, Transform
from keras_git.versions import versions

# Images on which outputs are looked at and the background is judged.
_PROBE_IMAGES = 32
# Strokes on a dark background: more than this part of the pixels is exactly 0.
_DARK_SHARE = 0.2
_WORST_CLASSES = 5
_EXAMPLES_PER_CLASS = 2
_EXAMPLE_DRAWS = 5

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
    resize: bool | tuple[int, int] | None = None,
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
            a sequence of names (`"rotation"`; with strengths of your own `"rotation:30:90"`) and
            of transformations, or a mapping of names to transformations.
        class_counts: training images per class `(C,)`, against which trends and groups are taken.
            By default those of the data's training split or, if there is none, the numbers of
            images that are audited.
        preprocess: what happens to grey levels 0..255 before the model: None or "none" (the model
            scales them itself), "0_1", "minus1_1", "caffe", "tf", "torch", a function of a batch;
            or a sequence with one of these per model.
        outputs: "logits", "probabilities", "auto" (found out), or a sequence with one per model.
            Logits are exact; probabilities that underflow to 0 make eKLD a lower bound.
        num_samples: draws per image; with a precision, draws per round.
        precision: if given, further rounds of draws until the sampling error of the eKLD of each
            class is at most this (nats). Only classes that are still above it go on.
        max_samples: most draws per image under a precision.
        batch_size: images per call.
        seed: seed of the draws, 0 or more.
        names: names of the models; by default those of files and of Keras models.
        images_per_class: use only the first images of each class.
        progress: called with (evaluations done, evaluations planned, what is measured). Rounds for
            a precision add to the plan as they turn out to be needed.
        resize: True to resize images to what the model takes, or (height, width).
        split: split of data that have several: "test", "train", "validation", "invariance".
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
    source = open_data(data, split=split, data_dir=data_dir, wanted=wanted, cache_dir=cache_dir)
    source.images_per_class = images_per_class

    images, labels, _ = next(source.blocks(min(settings.batch_size, 250)), (None, None, None))
    if images is None or labels is None:
        raise InputError("the data have no images")
    probe = images[:_PROBE_IMAGES]
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
    precision: float | None,
    max_samples: int,
    batch_size: int,
    seed: int,
    images_per_class: int | None,
    num_examples: int,
    progress: Progress | None,
) -> _Settings:
    for name, value, least in (
        ("num_samples", num_samples, 1),
        ("max_samples", max_samples, 1),
        ("batch_size", batch_size, 1),
        ("images_per_class", images_per_class, 1),
        ("seed", seed, 0),
        ("num_examples", num_examples, 0),
    ):
        if value is not None and (int(value) != value or value < least):
            raise InputError(f"{name} is {value}; give a whole number of {least} or more")
    if precision is not None:
        if not precision > 0:
            raise InputError(f"precision is {precision}; give a sampling error above 0 (nats)")
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

    def ladder(name: str, strengths: Sequence[float], asked: bool) -> None:
        chosen = LADDERS[name]
        if chosen.needs_colour and channels != 3:
            skipped[name] = "the images have no colour"
        elif chosen.needs_dark_background and not dark and not asked:
            skipped[name] = "meant for bright strokes on a background of 0, which these are not"
        else:
            for rung in chosen.rungs((height, width, channels), strengths):
                condition = Condition(name, rung.strength, rung.unit, rung.label)
                planned.append(_Planned(condition, rung.transform))

    def single(name: str, transform: Any) -> None:
        if not isinstance(transform, Transform):
            raise InputError(
                f"transformation {name!r} is {transform!r}; give a name or an instance of Transform"
            )
        try:
            moved = ops.convert_to_numpy(transform(images[:2]))
        except InputError:
            raise
        except Exception as error:  # a function of somebody else's
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"transformation {name!r} fails: {text[:200]}") from error
        if not np.isfinite(moved).all():
            raise InputError(f"transformation {name!r} makes images that are NaN or infinite")
        planned.append(_Planned(Condition(name, None, "", name.replace("_", " ")), transform))

    if spec is None:
        for name in LADDERS:
            ladder(name, (), False)
    elif isinstance(spec, Mapping):
        for name, transform in spec.items():
            single(str(name), transform)
    else:
        for entry in [spec] if isinstance(spec, (str, Transform)) else spec:
            if not isinstance(entry, str):
                single(getattr(entry, "name", type(entry).__name__), entry)
                continue
            name, *strengths = entry.split(":")
            if name in LADDERS:
                ladder(name, _numbers(entry, strengths), True)
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
        known = source.num_images
        self._batch_size = min(settings.batch_size, known or settings.batch_size)
        self._appliers: dict[Any, Callable[..., Any]] = {}
        self._evaluations = 0
        per_image = 1 + sum(self._draws(plan) for plan in conditions)
        self._planned = (known or 0) * per_image

    @property
    def num_images(self) -> np.ndarray:
        """Audited images per class, int64 (C,)."""
        return self._accuracy.num_images

    def measure(self) -> None:
        """Goes through the data: once for all conditions, then as a precision asks."""
        for images, labels, positions in self._source.blocks(self._batch_size):
            tensor, rows = self._on_device(images)
            original = self._original(tensor, len(labels), positions)
            self._accuracy.add(labels, original)
            # All conditions are under way before the first result is waited for
            results = [
                self._launch(plan, 0, tensor, original, labels[rows], positions[rows])
                for plan in self._conditions
            ]
            for plan, sums, result in zip(self._conditions, self._sums, results, strict=True):
                self._collect(plan, sums, result, labels, self._draws(plan))
            self._report("all transformations")
        for sums in self._sums:
            sums.finish_round()
        if self._settings.precision is not None:
            for plan, sums in zip(self._conditions, self._sums, strict=True):
                self._refine(plan, sums)

    def _draws(self, plan: _Planned) -> int:
        return 1 if plan.transform.deterministic else self._settings.num_samples

    def _refine(self, plan: _Planned, sums: ConditionSums) -> None:
        """Rounds of draws for the classes whose sampling error is above the precision."""
        settings = self._settings
        number = 0
        while True:
            too_large = np.nan_to_num(sums.sampling_error()) > (settings.precision or 0.0)
            wanted = too_large & (sums.num_samples < settings.max_samples)
            if not wanted.any():
                return
            number += 1
            # The same for all wanted classes, which have taken part in every round
            left = settings.max_samples - int(sums.num_samples[wanted].max())
            draws = min(settings.num_samples, left)
            self._planned += int(sums.num_images[wanted].sum()) * (draws + 1)
            sums.start_round()
            for images, labels, positions in self._source.blocks(self._batch_size, wanted):
                tensor, rows = self._on_device(images)
                original = self._original(tensor, len(labels), positions)
                result = self._launch(
                    plan, number, tensor, original, labels[rows], positions[rows], draws
                )
                self._collect(plan, sums, result, labels, draws)
                self._report(plan.condition.label)
            sums.finish_round()

    def _on_device(self, images: np.ndarray) -> tuple[Any, np.ndarray]:
        """float32 images, padded to one size (one compilation), and the rows they came from.

        Padding repeats the first image; its results are dropped.
        """
        rows = np.arange(self._batch_size)
        rows[len(images) :] = 0
        padded = images if len(images) == self._batch_size else images[rows]
        return ops.cast(ops.convert_to_tensor(padded), "float32"), rows

    def _original(self, tensor: Any, number: int, positions: np.ndarray) -> Any:
        """Log-probabilities of untransformed images, on the device."""
        original = self._predict(tensor)
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
        plan: _Planned,
        number: int,
        tensor: Any,
        original: Any,
        labels: np.ndarray,
        positions: np.ndarray,
        draws: int | None = None,
    ) -> Any:
        """Starts the draws of round `number` on a batch."""
        classifier, settings = self._classifier, self._settings
        size = self._draws(plan)
        # The first round draws what expected_kl draws
        seed = [settings.seed] if number == 0 else [settings.seed, number]
        parameters = sampled_parameters(plan.transform, seed, positions.tolist(), size)
        measure = draws_function(
            classifier.network, plan.transform, classifier.preprocessing, classifier.from_logits
        )
        return measure(
            tensor, original, labels.astype(np.int32), parameters, np.int32(draws or size)
        )

    def _collect(
        self, plan: _Planned, sums: ConditionSums, result: Any, labels: np.ndarray, draws: int
    ) -> None:
        values = ops.convert_to_numpy(result)[:, : len(labels)]
        if not np.isfinite(values).all():
            raise InputError(
                f"model {self._classifier.name!r} gives NaN under {plan.condition.label!r}: check "
                "its weights and preprocess"
            )
        sums.add(labels, values, draws)
        self._evaluations += draws * len(labels)

    def _report(self, text: str) -> None:
        self._settings.progress(self._evaluations, max(self._planned, self._evaluations), text)

    def _saved(self) -> int:
        """Evaluations that one number of draws for all would have needed, less those made.

        The precision holds for all classes and transformations with as many draws everywhere as
        the one that needed most; without a precision nothing is saved.
        """
        random = [s for s in self._sums if not s.deterministic]
        if self._settings.precision is None or not random:
            return 0
        most = max(int(sums.num_samples.max()) for sums in random)
        return int(
            sum(
                (sums.num_images * (most - sums.num_samples))[sums.num_images > 0].sum()
                for sums in random
            )
        )

    def model_audit(self) -> ModelAudit:
        """The record of the model."""
        accuracy = self._accuracy
        counts = self.num_images if self._class_counts is None else self._class_counts
        per_class = accuracy.per_class
        return ModelAudit(
            name=self._classifier.name,
            parameters=self._classifier.parameters,
            outputs=self._classifier.outputs,
            accuracy=accuracy.accuracy,
            balanced_accuracy=mean_of_seen(per_class),
            expected_calibration_error=accuracy.calibration_error,
            per_class_accuracy=per_class,
            group_accuracy=group_means(per_class, counts),
            accuracy_trend=spearman_trend(counts, per_class),
            measurements=tuple(
                sums.measurement(plan.condition, counts)
                for plan, sums in zip(self._conditions, self._sums, strict=True)
            ),
            examples=tuple(self._examples()),
            evaluations=self._evaluations,
            evaluations_saved=self._saved(),
        )

    def _examples(self) -> list[Example]:
        """Changed predictions of the worst classes, under what moves each of them most."""
        ekld = np.stack([sums.mean("ekld") for sums in self._sums])
        seen = np.flatnonzero(self.num_images > 0)
        worst = seen[np.argsort(-ekld[:, seen].mean(axis=0), kind="stable")][:_WORST_CLASSES]
        found: list[Example] = []
        for label in worst.tolist():
            shown: set[str] = set()
            for index in np.argsort(-ekld[:, label], kind="stable").tolist():
                plan = self._conditions[index]
                enough = len(shown) == _EXAMPLES_PER_CLASS
                if enough or len(found) == self._settings.num_examples or ekld[index, label] <= 0:
                    break
                if plan.condition.transform in shown:
                    continue
                example = self._example(plan, label)
                if example is not None:
                    shown.add(plan.condition.transform)
                    found.append(example)
        return found

    def _example(self, plan: _Planned, label: int) -> Example | None:
        """An image of a class whose prediction the transformation changes, if there is one.

        Looks at the first batch of the class; prefers a correct prediction that becomes another
        with much confidence.
        """
        wanted = np.arange(self._classifier.num_classes) == label
        images, _, positions = next(self._source.blocks(self._batch_size, wanted))
        tensor, rows = self._on_device(images)
        number = len(images)
        before = ops.convert_to_numpy(self._predict(tensor))[:number]
        prediction = before.argmax(axis=1)
        parameters = sampled_parameters(
            plan.transform,
            [self._settings.seed],
            positions[rows].tolist(),
            min(self._draws(plan), _EXAMPLE_DRAWS),
        )
        key = plan.transform.function_key
        if key not in self._appliers:
            self._appliers[key] = compiled(plan.transform.apply, plan.transform.variables)
        apply = self._appliers[key]
        best: Example | None = None
        best_score = 0.0
        for draw in range(min(self._draws(plan), _EXAMPLE_DRAWS)):
            moved = apply(tensor, {name: value[draw] for name, value in parameters.items()})
            after = ops.convert_to_numpy(self._predict(moved))[:number]
            changed = after.argmax(axis=1) != prediction
            score = changed * (np.exp(after.max(axis=1)) + (prediction == label))
            row = int(score.argmax())
            if score[row] <= best_score:
                continue
            best_score = float(score[row])
            best = Example(
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
