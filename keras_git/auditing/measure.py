"""Measures one model: passes over the data, rounds for a precision, pictures of what changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_git.auditing.classifier import Classifier, failure
from keras_git.auditing.conditions import Planned
from keras_git.auditing.data import LabelledImages
from keras_git.auditing.result import Example, ModelAudit
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

_WORST_CLASSES = 5
_EXAMPLES_PER_CLASS = 2
_EXAMPLE_DRAWS = 5
# Conditions under which a class is searched for a changed prediction.
_EXAMPLE_TRIES = 4
# Images that wait until a batch is full, all conditions of a round together.
_WAITING_BYTES = 512 << 20

_FIRST_PASS, _ROUNDS, _FINISHED = range(3)
# What is kept of images that wait.
_LANE = ("images", "labels", "positions", "log_probabilities")

Progress = Callable[[int, int, str], None]
Keep = Callable[[bool], None]


@dataclass(frozen=True)
class Settings:
    """What is the same for all models of an audit."""

    num_samples: int
    precision: float | None
    max_samples: int
    batch_size: int
    seed: int
    num_examples: int
    progress: Progress


@dataclass
class _Place:
    """How far a run is.

    Attributes:
        phase: in the first pass, in the rounds for a precision, or finished.
        images: done in the pass under way.
        level: draws per image that the finished rounds made.
        stream: of the next draws; 0 is that of the first pass.
        begin: the first of the round's conditions that the pass under way measures.
        end: the one after the last; 0 between passes.
        evaluations: so far.
        planned: as far as is known.
        saved: see `ModelAudit`.
    """

    phase: int = _FIRST_PASS
    images: int = 0
    level: int = 0
    stream: int = 1
    begin: int = 0
    end: int = 0
    evaluations: int = 0
    planned: int = 0
    saved: int = 0


@dataclass(frozen=True, eq=False)
class _Batch:
    """n images on the device, padded to one size B (one compilation), and what is known of them.

    Padding repeats the first image; its results are dropped.

    Attributes:
        tensor: float32 `(B, H, W, C)`, 0..255.
        original: log-probabilities that the model gives for them, `(B, K)`, on the device.
        labels: int64 `(n,)`, without padding.
        positions: in the data, int64 `(n,)`.
        rows: which of the n images is in each row, int64 `(B,)`.
    """

    tensor: Any
    original: Any
    labels: np.ndarray
    positions: np.ndarray
    rows: np.ndarray

    @property
    def log_probabilities(self) -> np.ndarray:
        """`original` on the host and without padding, float32 `(n, K)`."""
        return ops.convert_to_numpy(self.original)[: len(self.labels)]


class ModelRun:
    """Measures one model.

    Args:
        classifier: the model.
        source: the data; `num_classes` is set.
        conditions: what to measure.
        class_counts: training images per class, or None for the numbers of audited images.
        settings: of the audit.
        image_bytes: of one image on the host.
    """

    def __init__(
        self,
        classifier: Classifier,
        source: LabelledImages,
        conditions: Sequence[Planned],
        class_counts: np.ndarray | None,
        settings: Settings,
        image_bytes: int,
    ) -> None:
        self._classifier, self._source, self._settings = classifier, source, settings
        self._plans, self._class_counts = conditions, class_counts
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
        self._image_bytes = image_bytes
        self._appliers: dict[Any, Callable[..., Any]] = {}
        self._random = [i for i, sums in enumerate(self._sums) if not sums.deterministic]
        # Draws per image that a trial says are needed, and who takes part in the round under way
        self._needed = np.zeros((len(conditions), number))
        self._wanted = np.zeros((len(conditions), number), bool)
        # Condition -> images that wait until a whole batch of them can be measured under it
        self._waiting: dict[int, list[tuple[np.ndarray, ...]]] = {}
        per_image = 1 + sum(self._draws(plan) for plan in conditions)
        self._place = _Place(planned=(known or 0) * per_image)

    @property
    def num_images(self) -> np.ndarray:
        """Audited images per class, int64 (C,)."""
        return self._accuracy.num_images

    def measure(self, keep: Keep) -> None:
        """Goes through the data: once for all conditions, then as a precision asks.

        Args:
            keep: called where `state` can be kept; with True where most is gained by it.
        """
        self._report("what was measured before")
        if self._place.phase == _FIRST_PASS:
            self._first_pass(keep)
        if self._place.phase == _ROUNDS:
            self._refine(self._settings.precision or 0.0, keep)

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs to go on from here, between two batches."""
        arrays = {"place": np.array(dataclasses.astuple(self._place), np.int64), **self._live()}
        for index, lane in self._waiting.items():
            for name, column in zip(_LANE, zip(*lane, strict=True), strict=True):
                arrays[f"waiting/{index}/{name}"] = np.concatenate(column)
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from where `state` was taken.

        Raises:
            KeyError, ValueError: an array is missing, or of another shape or type.
        """
        for name, own in self._live().items():
            if arrays[name].shape != own.shape or arrays[name].dtype != own.dtype:
                raise ValueError(f"{name} has shape {arrays[name].shape}")
            own[...] = arrays[name]
        self._place = _Place(*arrays["place"].tolist())
        waiting = sorted({int(n.split("/")[1]) for n in arrays if n.startswith("waiting/")})
        self._waiting = {
            index: [tuple(arrays[f"waiting/{index}/{name}"] for name in _LANE)] for index in waiting
        }

    def _live(self) -> dict[str, np.ndarray]:
        """The arrays that change but never their shape, themselves."""
        parts = {"accuracy": self._accuracy.state()}
        parts |= {f"condition_{i}": sums.state() for i, sums in enumerate(self._sums)}
        arrays = {"needed": self._needed, "wanted": self._wanted}
        for part, own in parts.items():
            arrays |= {f"{part}/{name}": array for name, array in own.items()}
        return arrays

    def _first_pass(self, keep: Keep) -> None:
        place = self._place
        for images, labels, positions in self._source.blocks(self._batch_size, None, place.images):
            batch = self._batch(images, labels, positions)
            self._accuracy.add(labels, batch.original)
            # All conditions are under way before the first result is waited for
            results = [self._launch(index, 0, batch) for index in range(len(self._plans))]
            for index, (plan, result) in enumerate(zip(self._plans, results, strict=True)):
                values = self._fetched(index, result, len(labels))
                self._add(index, values, labels, self._draws(plan))
            place.images += len(labels)
            keep(False)
            self._report("all transformations")
        for sums in self._sums:
            sums.finish_round()
        place.phase, place.images = _FINISHED, 0
        if self._settings.precision is not None:
            place.phase = _ROUNDS
            for index in self._random:
                self._needed[index] = draws_needed(self._sums[index], self._settings.precision)
                self._sums[index] = ConditionSums(self._classifier.num_classes)
        keep(True)

    def _draws(self, plan: Planned) -> int:
        return 1 if plan.transform.deterministic else self._settings.num_samples

    def _refine(self, precision: float, keep: Keep) -> None:
        """Measures anew, with as many draws per class as the first round says are needed.

        Rounds double the number of draws; a round is one pass over the data for all conditions in
        which a class wants more.
        """
        most, place = self._settings.max_samples, self._place
        per_pass = max(1, _WAITING_BYTES // (2 * self._batch_size * self._image_bytes))
        while True:
            if not self._wanted.any():  # else a round is under way
                self._start_round(precision)
            open_ = np.flatnonzero(self._wanted.any(axis=1)).tolist()
            if not open_:
                break
            target = min(max(2 * place.level, 2), most)
            draws = target - place.level
            while place.begin < len(open_):
                if not place.end:
                    place.end = min(place.begin + per_pass, len(open_))
                    place.planned += self._evaluations_of(open_[place.begin : place.end], draws)
                self._pass(open_[place.begin : place.end], draws, keep)
                place.begin, place.end, place.images = place.end, 0, 0
            for index in open_:
                self._sums[index].finish_round()
            place.stream += math.ceil(draws / self._settings.num_samples)
            place.level, place.begin = target, 0
            self._wanted[...] = False
            keep(True)
        place.phase = _FINISHED
        place.saved = self._one_for_all() - place.evaluations
        keep(True)

    def _start_round(self, precision: float) -> None:
        """Decides which classes get further draws under each condition."""
        seen, most = self.num_images > 0, self._settings.max_samples
        for index in self._random:
            more = wants_more(self._sums[index], self._needed[index], precision, most)
            self._wanted[index] = seen & more
            if self._wanted[index].any():
                self._sums[index].start_round()

    def _evaluations_of(self, indices: Sequence[int], draws: int) -> int:
        """Those of a pass: the images themselves, and their draws under each condition."""
        wanted = self._wanted[indices]
        return int(
            self.num_images[wanted.any(axis=0)].sum() + draws * (wanted @ self.num_images).sum()
        )

    def _pass(self, indices: Sequence[int], draws: int, keep: Keep) -> None:
        """Further draws of the classes that want them, under these conditions, in one pass."""
        place, classes = self._place, np.any(self._wanted[indices], axis=0)
        for images, labels, positions in self._source.blocks(
            self._batch_size, classes, place.images
        ):
            batch = self._batch(images, labels, positions)
            host: np.ndarray | None = None
            for index in indices:
                chosen = self._wanted[index][labels]
                if chosen.all() and len(labels) == self._batch_size:
                    self._further_draws(index, batch, draws)
                elif chosen.any():
                    if host is None:
                        host = batch.log_probabilities
                    # Until a whole batch of them can be measured under the condition
                    lane = self._waiting.setdefault(index, [])
                    lane.append(tuple(p[chosen] for p in (images, labels, positions, host)))
                    while sum(len(part[1]) for part in lane) >= self._batch_size:
                        self._flush(index, draws)
            place.images += len(labels)
            keep(False)
            self._report("precision")
        for index in list(self._waiting):
            while index in self._waiting:
                self._flush(index, draws)
        self._report("precision")

    def _flush(self, index: int, draws: int) -> None:
        """Measures the first batch of the images that wait; the others go on waiting."""
        lane = self._waiting[index]
        parts = [np.concatenate(columns) for columns in zip(*lane, strict=True)]
        first = self._batch(*(part[: self._batch_size] for part in parts))
        lane[:] = [tuple(part[self._batch_size :] for part in parts)]
        if not len(lane[0][1]):
            del self._waiting[index]
        self._further_draws(index, first, draws)

    def _further_draws(self, index: int, batch: _Batch, draws: int) -> None:
        """Draws of a round on a batch; more than the compiled size in several calls."""
        values: np.ndarray | None = None
        done, stream = 0, self._place.stream
        while done < draws:
            number = min(self._settings.num_samples, draws - done)
            result = self._launch(index, stream, batch, number)
            found = self._fetched(index, result, len(batch.labels))
            values = found if values is None else joined_draws(values, done, found, number)
            done, stream = done + number, stream + 1
        if values is not None:
            self._add(index, values, batch.labels, draws)

    def _batch(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        positions: np.ndarray,
        log_probabilities: np.ndarray | None = None,
    ) -> _Batch:
        """Brings images to the device; the model predicts for them if it has not before."""
        rows = np.arange(self._batch_size)
        rows[len(images) :] = 0
        padded = images if len(images) == self._batch_size else images[rows]
        tensor = ops.cast(ops.convert_to_tensor(padded), "float32")
        if log_probabilities is None:
            original = self._original(tensor, positions)
        else:
            original = ops.convert_to_tensor(log_probabilities[rows])
        return _Batch(tensor, original, labels, positions, rows)

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

    def _original(self, tensor: Any, positions: np.ndarray) -> Any:
        """Log-probabilities of untransformed images, on the device."""
        original, number = self._predicted(tensor), len(positions)
        bad = ~np.isfinite(ops.convert_to_numpy(original)[:number]).all(axis=1)
        if bad.any():
            raise InputError(
                f"model {self._classifier.name!r} gives NaN for image {positions[bad.argmax()]} "
                "(counted from 0): check its weights and preprocess"
            )
        self._place.evaluations += number
        return original

    def _launch(self, index: int, stream: int, batch: _Batch, draws: int | None = None) -> Any:
        """Starts draws of a condition on a batch."""
        plan = self._plans[index]
        size = self._draws(plan)
        labels = batch.labels[batch.rows].astype(np.int32)
        parameters = self._parameters(plan, batch, stream)
        try:
            return self._measures[index](
                batch.tensor, batch.original, labels, parameters, np.int32(draws or size)
            )
        except InputError:
            raise
        except Exception as error:  # whatever a foreign transformation raises
            raise self._failed(plan, error) from error

    def _parameters(self, plan: Planned, batch: _Batch, stream: int = 0) -> dict[str, np.ndarray]:
        """Of the most draws that one call makes, for all rows."""
        positions = batch.positions[batch.rows]
        number = self._draws(plan)
        return sampled_parameters(plan.transform, self._settings.seed, positions, number, stream)

    def _failed(self, plan: Planned, error: Exception) -> InputError:
        # The model has been compiled alone before
        what = f"transformation {plan.condition.label!r} with model {self._classifier.name!r}"
        return failure(what, error, self._batch_size)

    def _fetched(self, index: int, result: Any, number: int) -> np.ndarray:
        """Sums `(4, number)` of the images that are no padding."""
        plan = self._plans[index]
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
        self._place.evaluations += draws * len(labels)

    def _report(self, text: str) -> None:
        self._settings.progress(
            self._place.evaluations, max(self._place.planned, self._place.evaluations), text
        )

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
                for plan, sums in zip(self._plans, self._sums, strict=True)
            ),
            examples=examples,
            evaluations=self._place.evaluations,
            evaluations_saved=self._place.saved,
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
        batch = self._batch(images, labels, positions)
        # What a condition does to the images of all these classes, found out once
        known: dict[int, dict[int, Example]] = {}
        found: list[Example] = []
        for label in worst.tolist():
            shown: set[str] = set()
            order = np.argsort(-ekld[:, label], kind="stable")
            for index in order[changes[order, label]][:_EXAMPLE_TRIES].tolist():
                name = self._plans[index].condition.transform
                if len(shown) == _EXAMPLES_PER_CLASS or len(found) == self._settings.num_examples:
                    break
                if name in shown:
                    continue
                if index not in known:
                    known[index] = self._changed(index, batch, images)
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

    def _changed(self, index: int, batch: _Batch, images: np.ndarray) -> dict[int, Example]:
        """Class -> an image whose prediction the condition changes, where there is one.

        Prefers a correct prediction that becomes another with much confidence.
        """
        plan, labels = self._plans[index], batch.labels
        parameters = self._parameters(plan, batch)
        key = plan.transform.function_key
        if key not in self._appliers:
            self._appliers[key] = compiled(plan.transform.apply, plan.transform.variables)
        before = batch.log_probabilities
        prediction = before.argmax(axis=1)
        best: dict[int, Example] = {}
        scores: dict[int, float] = {}
        for draw in range(min(self._draws(plan), _EXAMPLE_DRAWS)):
            drawn = {name: value[draw] for name, value in parameters.items()}
            try:
                moved = self._appliers[key](batch.tensor, drawn)
            except Exception as error:  # measured before, so most likely for want of memory
                raise self._failed(plan, error) from error
            after = ops.convert_to_numpy(self._predicted(moved))[: len(labels)]
            self._place.evaluations += len(labels)
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
