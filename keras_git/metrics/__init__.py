"""Measures of invariance and accuracy per class."""

from __future__ import annotations

from keras_git.metrics.callback import ExpectedKLCallback
from keras_git.metrics.classification import (
    BalancedAccuracy,
    ConfusionMatrix,
    ExpectedCalibrationError,
    GroupAccuracy,
    LabelAccuracy,
    PerClassAccuracy,
    balanced_accuracy,
    class_accuracies,
    classification_report,
    confusion_matrix,
    expected_calibration_error,
    groups,
    mean_accuracy,
)
from keras_git.metrics.divergence import agreement, kl_divergence
from keras_git.metrics.expected_kl import (
    ExpectedKL,
    ExpectedKLResult,
    expected_kl,
    expected_kl_from_logits,
)

__all__ = [
    "BalancedAccuracy",
    "ConfusionMatrix",
    "ExpectedCalibrationError",
    "ExpectedKL",
    "ExpectedKLCallback",
    "ExpectedKLResult",
    "GroupAccuracy",
    "LabelAccuracy",
    "PerClassAccuracy",
    "agreement",
    "balanced_accuracy",
    "class_accuracies",
    "classification_report",
    "confusion_matrix",
    "expected_calibration_error",
    "expected_kl",
    "expected_kl_from_logits",
    "groups",
    "kl_divergence",
    "mean_accuracy",
]
