"""Accuracy per class and per group of classes, and calibration.

The functions take arrays or tensors and can be traced; the Keras metrics are thin wrappers that add
up their sums over batches. `result()` of a metric is a scalar (so that it can be logged), vectors
come from methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.losses.labels import label_indices
from keras_git.losses.weights import checked_counts

GROUP_SCHEMES = ("thresholds", "thirds")


def confusion_matrix(labels: Any, outputs: Any, num_classes: int, sample_weight: Any = None) -> Any:
    """Counts of (label, prediction) pairs.

    Args:
        labels: integers `(N,)` or `(N, 1)`, 0..num_classes-1.
        outputs: logits or probabilities `(N, K)`; the prediction is the arg-max.
        num_classes: C, with K <= C.
        sample_weight: `(N,)` weights instead of counts, or None.

    Returns:
        float32 tensor `(C, C)`: row = label, column = prediction.
    """
    labels = ops.cast(ops.reshape(ops.convert_to_tensor(labels), (-1,)), "int32")
    predictions = ops.cast(ops.argmax(ops.convert_to_tensor(outputs), axis=-1), "int32")
    weights = ops.ones_like(labels, dtype="float32")
    if sample_weight is not None:
        weights = ops.reshape(ops.cast(sample_weight, "float32"), (-1,))
    counts = ops.segment_sum(
        weights, labels * num_classes + predictions, num_segments=num_classes * num_classes
    )
    return ops.reshape(counts, (num_classes, num_classes))


def class_accuracies(matrix: Any) -> Any:
    """Accuracy (recall) per class from a confusion matrix.

    Args:
        matrix: `(C, C)`, row = label.

    Returns:
        float32 tensor `(C,)`, 0..1, NaN for classes without examples.
    """
    matrix = ops.cast(matrix, "float32")
    totals = ops.sum(matrix, axis=1)
    seen = totals > 0
    return ops.where(seen, ops.diagonal(matrix) / ops.where(seen, totals, 1.0), float("nan"))


def mean_accuracy(accuracies: Any, members: Any = None) -> Any:
    """Mean of accuracies per class, leaving out classes without examples.

    Args:
        accuracies: `(C,)`, NaN for classes without examples.
        members: `(C,)` weights 0 or 1 that choose a group of classes, or None for all.

    Returns:
        Scalar tensor, 0..1; NaN if no class of the group has examples.
    """
    accuracies = ops.convert_to_tensor(accuracies)
    chosen = ops.cast(ops.logical_not(ops.isnan(accuracies)), "float32")
    if members is not None:
        chosen = chosen * ops.cast(members, "float32")
    total = ops.sum(ops.where(chosen > 0, accuracies, 0.0))
    number = ops.sum(chosen)
    return ops.where(number > 0, total / ops.maximum(number, 1.0), float("nan"))


def balanced_accuracy(matrix: Any) -> Any:
    """Unweighted mean of the accuracies of all classes that have examples (scalar tensor)."""
    return mean_accuracy(class_accuracies(matrix))


def groups(
    class_counts: Sequence[int] | np.ndarray,
    scheme: str = "thresholds",
    *,
    many: int = 100,
    few: int = 20,
) -> dict[str, np.ndarray]:
    """Groups of classes by the number of their training images.

    Args:
        class_counts: training images per class, `(C,)`, each 1 or more.
        scheme: "thresholds": "many" (more than `many` images), "medium" (`few` to `many`), "few"
            (fewer than `few`); "thirds": "head", "middle", "tail" by rank, ties in class order,
            the larger parts first if C is not a multiple of 3.
        many: upper threshold.
        few: lower threshold, at most `many`.

    Returns:
        Name -> class indices, int64, ascending; a group may be empty.

    Raises:
        InputError: unknown scheme, thresholds in the wrong order, an empty class.

    Reference: Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019,
    section 5 (many-, medium- and few-shot classes).
    """
    counts = checked_counts(class_counts)
    if scheme == "thresholds":
        if few > many:
            raise InputError(f"few is {few} and many is {many}; give few <= many")
        masks = {
            "many": counts > many,
            "medium": (counts >= few) & (counts <= many),
            "few": counts < few,
        }
        return {name: np.flatnonzero(mask) for name, mask in masks.items()}
    if scheme == "thirds":
        by_size = np.array_split(np.argsort(-counts, kind="stable"), 3)
        return {
            name: np.sort(classes)
            for name, classes in zip(("head", "middle", "tail"), by_size, strict=True)
        }
    raise InputError(f"grouping {scheme!r} is unknown; use one of {', '.join(GROUP_SCHEMES)}")


def calibration_bins(
    labels: Any,
    outputs: Any,
    num_bins: int = 15,
    from_logits: bool = True,
    sample_weight: Any = None,
) -> Any:
    """Sums over equal-width bins of the confidence, (0, 1/M], (1/M, 2/M], ...

    Args:
        labels: integers `(N,)` or `(N, 1)`.
        outputs: `(N, K)` logits, or probabilities.
        num_bins: M.
        from_logits: False for probabilities.
        sample_weight: `(N,)` or None.

    Returns:
        float32 tensor `(3, M)`: number of examples, sum of confidences, number of correct ones.
    """
    labels = ops.cast(ops.reshape(ops.convert_to_tensor(labels), (-1,)), "int32")
    outputs = ops.cast(ops.convert_to_tensor(outputs), "float32")
    probabilities = ops.softmax(outputs, axis=-1) if from_logits else outputs
    confidence = ops.max(probabilities, axis=-1)
    correct = ops.cast(ops.cast(ops.argmax(outputs, axis=-1), "int32") == labels, "float32")
    weights = ops.ones_like(confidence)
    if sample_weight is not None:
        weights = ops.reshape(ops.cast(sample_weight, "float32"), (-1,))
    index = ops.cast(ops.ceil(confidence * num_bins), "int32") - 1
    index = ops.clip(index, 0, num_bins - 1)
    # A dense sum, not a scatter, whose order (and rounding) may change from run to run on a GPU
    inside = ops.one_hot(index, num_bins, dtype="float32")
    sums = [
        ops.sum(inside * ops.expand_dims(values, 1), axis=0)
        for values in (weights, weights * confidence, weights * correct)
    ]
    return ops.stack(sums)


def calibration_error(bins: Any) -> Any:
    """Expected calibration error from `calibration_bins`: a scalar tensor, 0..1."""
    bins = ops.convert_to_tensor(bins)
    return ops.sum(ops.abs(bins[2] - bins[1])) / ops.maximum(ops.sum(bins[0]), 1e-12)


def expected_calibration_error(
    labels: Any, outputs: Any, num_bins: int = 15, from_logits: bool = True
) -> float:
    """Expected calibration error: mean gap between accuracy and confidence over the bins.

    Args:
        labels: integers `(N,)`.
        outputs: `(N, K)` logits, or probabilities.
        num_bins: number of equal-width bins of the confidence, 1 or more.
        from_logits: False for probabilities.

    Returns:
        0..1.

    Raises:
        InputError: `num_bins` below 1.

    Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    _check_at_least_one("num_bins", num_bins)
    return float(calibration_error(calibration_bins(labels, outputs, num_bins, from_logits)))


def classification_report(
    labels: Any,
    logits: Any,
    class_counts: Sequence[int] | np.ndarray,
    *,
    num_bins: int = 15,
    from_logits: bool = True,
) -> dict[str, Any]:
    """All accuracies of a test set, ready for JSON.

    Args:
        labels: integers `(N,)`, 0..C-1.
        logits: `(N, C)` logits (or probabilities, see `from_logits`).
        class_counts: training images per class, `(C,)`, each 1 or more.
        num_bins: bins of the calibration error.
        from_logits: False for probabilities.

    Returns:
        `test_accuracy`, `balanced_accuracy`, `per_class_accuracy` (list), `many_accuracy`,
        `medium_accuracy`, `few_accuracy`, `head_accuracy`, `middle_accuracy`, `tail_accuracy` and
        `expected_calibration_error`, all 0..1; None for a class or group without test images. The
        accuracy of a group is the mean over its classes.

    Raises:
        InputError: shapes that do not fit, labels out of range, an empty class.
    """
    counts = checked_counts(class_counts)
    labels, logits = np.asarray(labels).reshape(-1), ops.convert_to_numpy(logits)
    num_classes = len(counts)
    if logits.shape != (len(labels), num_classes) or len(labels) == 0:
        raise InputError(
            f"{len(labels)} labels, {num_classes} class counts and logits of shape "
            f"{logits.shape} do not fit; give (N,), (C,) and (N, C), N > 0"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"labels range from {labels.min()} to {labels.max()}; give 0..{num_classes - 1}"
        )

    def plain(value: Any) -> float | None:
        value = float(value)
        return None if np.isnan(value) else value

    matrix = confusion_matrix(labels, logits, num_classes)
    # Fractions of integers, in float64: 0.3, not 0.30000001192
    counted = ops.convert_to_numpy(matrix).astype(np.float64)
    with np.errstate(invalid="ignore"):
        accuracies = np.diagonal(counted) / counted.sum(axis=1)

    def mean(classes: np.ndarray) -> float | None:
        values = accuracies[classes]
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else None

    report: dict[str, Any] = {
        "test_accuracy": float(np.trace(counted) / counted.sum()),
        "balanced_accuracy": mean(np.arange(num_classes)),
        "per_class_accuracy": [plain(value) for value in accuracies],
    }
    for scheme in GROUP_SCHEMES:
        for name, classes in groups(counts, scheme).items():
            report[f"{name}_accuracy"] = mean(classes)
    report["expected_calibration_error"] = expected_calibration_error(
        labels, logits, num_bins, from_logits
    )
    return report


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} is {value}; give 1 or more")


def _correct(labels: Any, outputs: Any) -> Any:
    """1 where the arg-max is the label, else 0: float32 `(B,)`."""
    predictions = ops.cast(ops.argmax(outputs, axis=-1), "int32")
    return ops.cast(ops.equal(predictions, label_indices(labels, outputs.shape[-1])), "float32")


@keras.saving.register_keras_serializable(package="keras_git")
class LabelAccuracy(keras.metrics.MeanMetricWrapper):
    """Fraction of predictions that are the label, for integer and soft labels alike.

    Updated with labels, integers `(B,)` or `(B, 1)` or probabilities `(B, C)` (the largest is the
    label, the first of equals), and logits or probabilities `(B, C)`; `InputError` for others.

    Args:
        name: name of the metric.
        dtype: of its sums; None for that of Keras.
    """

    def __init__(self, name: str = "accuracy", dtype: Any = None) -> None:
        super().__init__(_correct, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}


@keras.saving.register_keras_serializable(package="keras_git")
class ConfusionMatrix(keras.metrics.Metric):
    """Confusion matrix; `result()` is the overall accuracy, `matrix()` the counts.

    Args:
        num_classes: number of classes C, 1 or more.
        name: name of the metric.
        **kwargs: further arguments of `keras.metrics.Metric`.

    Raises:
        InputError: `num_classes` below 1.
    """

    def __init__(self, num_classes: int, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name or "confusion_matrix", **kwargs)
        _check_at_least_one("num_classes", num_classes)
        self.num_classes = int(num_classes)
        shape = (self.num_classes, self.num_classes)
        self.counts = self.add_variable(shape, "zeros", dtype="float32", name="counts")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch: labels `(B,)` or `(B, 1)`, logits or probabilities `(B, C)`."""
        self.counts.assign_add(confusion_matrix(y_true, y_pred, self.num_classes, sample_weight))

    def result(self) -> Any:
        """Fraction of correct predictions, 0..1."""
        counts = ops.convert_to_tensor(self.counts)
        return ops.sum(ops.diagonal(counts)) / ops.maximum(ops.sum(counts), 1e-12)

    def matrix(self) -> np.ndarray:
        """Counts so far, float32 `(C, C)`, row = label, column = prediction."""
        return ops.convert_to_numpy(self.counts)

    def per_class(self) -> np.ndarray:
        """Accuracy per class so far, float32 `(C,)`, NaN for classes without examples."""
        return ops.convert_to_numpy(class_accuracies(self.counts))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_classes": self.num_classes}


@keras.saving.register_keras_serializable(package="keras_git")
class BalancedAccuracy(ConfusionMatrix):
    """Unweighted mean over classes of the accuracy per class (`per_class()` gives them).

    Classes without examples are left out; `result()` is 0 before the first update. Arguments as
    for `ConfusionMatrix`.
    """

    def __init__(self, num_classes: int, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, name=name or "balanced_accuracy", **kwargs)

    def result(self) -> Any:
        """Balanced accuracy, 0..1."""
        return _zero_if_unseen(balanced_accuracy(self.counts))


@keras.saving.register_keras_serializable(package="keras_git")
class PerClassAccuracy(ConfusionMatrix):
    """Accuracy of one class; `per_class()` gives those of all.

    Args:
        num_classes: number of classes C, 1 or more.
        class_id: the class whose accuracy `result()` returns; None: the mean over the classes.
        name: name of the metric.
        **kwargs: further arguments of `keras.metrics.Metric`.

    Raises:
        InputError: `class_id` outside 0..num_classes-1.
    """

    def __init__(
        self,
        num_classes: int,
        class_id: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if class_id is not None and not 0 <= class_id < num_classes:
            raise InputError(f"class_id is {class_id}; give None or 0..{num_classes - 1}")
        default = "per_class_accuracy" if class_id is None else f"accuracy_class_{class_id}"
        super().__init__(num_classes, name=name or default, **kwargs)
        self.class_id = class_id

    def result(self) -> Any:
        """Accuracy of the class, 0..1; 0 before it was seen."""
        accuracies = class_accuracies(self.counts)
        if self.class_id is None:
            return _zero_if_unseen(mean_accuracy(accuracies))
        return _zero_if_unseen(accuracies[self.class_id])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "class_id": self.class_id}


@keras.saving.register_keras_serializable(package="keras_git")
class GroupAccuracy(ConfusionMatrix):
    """Mean accuracy over the classes of one group (many, medium, few, head, middle, tail).

    Args:
        class_counts: training images per class, `(C,)`, each 1 or more.
        group: "many", "medium" or "few" (thresholds), "head", "middle" or "tail" (thirds).
        many: see `groups`.
        few: see `groups`.
        name: name of the metric, by default `<group>_accuracy`.
        **kwargs: further arguments of `keras.metrics.Metric`.

    Raises:
        InputError: unknown group, an empty class, thresholds in the wrong order.
    """

    def __init__(
        self,
        class_counts: Sequence[int] | np.ndarray,
        group: str = "few",
        *,
        many: int = 100,
        few: int = 20,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        counts = checked_counts(class_counts)
        found = {
            **groups(counts, "thresholds", many=many, few=few),
            **groups(counts, "thirds"),
        }
        if group not in found:
            raise InputError(f"group {group!r} is unknown; use one of {', '.join(found)}")
        super().__init__(len(counts), name=name or f"{group}_accuracy", **kwargs)
        self.class_counts = counts
        self.group, self.many, self.few = group, int(many), int(few)
        self.classes = found[group]

    def result(self) -> Any:
        """Mean accuracy of the group, 0..1; 0 if none of its classes was seen."""
        members = np.zeros(self.num_classes, np.float32)
        members[self.classes] = 1.0
        accuracies = class_accuracies(self.counts)
        return _zero_if_unseen(mean_accuracy(accuracies, ops.convert_to_tensor(members)))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["num_classes"]
        counts = self.class_counts.tolist()
        own = {"class_counts": counts, "group": self.group, "many": self.many, "few": self.few}
        return {**config, **own}


@keras.saving.register_keras_serializable(package="keras_git")
class ExpectedCalibrationError(keras.metrics.Metric):
    """Expected calibration error over equal-width bins of the confidence.

    Args:
        num_bins: number of bins, 1 or more.
        from_logits: False if predictions are probabilities.
        name: name of the metric.
        **kwargs: further arguments of `keras.metrics.Metric`.

    Raises:
        InputError: `num_bins` below 1.

    Reference: Guo et al., ICML 2017, equation 3.
    """

    def __init__(
        self,
        num_bins: int = 15,
        from_logits: bool = True,
        name: str = "expected_calibration_error",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        _check_at_least_one("num_bins", num_bins)
        self.num_bins, self.from_logits = int(num_bins), bool(from_logits)
        self.bins = self.add_variable((3, self.num_bins), "zeros", dtype="float32", name="bins")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch: labels `(B,)` or `(B, 1)`, predictions `(B, C)`."""
        sums = calibration_bins(y_true, y_pred, self.num_bins, self.from_logits, sample_weight)
        self.bins.assign_add(sums)

    def result(self) -> Any:
        """Expected calibration error, 0..1."""
        return calibration_error(self.bins)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "num_bins": self.num_bins, "from_logits": self.from_logits}


def _zero_if_unseen(value: Any) -> Any:
    return ops.where(ops.isnan(value), 0.0, value)
