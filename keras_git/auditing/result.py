"""What an audit found: frozen records, arrays over classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Condition:
    """One transformation at one strength.

    Attributes:
        transform: name of the transformation, such as `"rotation"`.
        strength: its strength in `unit`, or None for one without a ladder.
        unit: what the strength is measured in, such as `"degrees"`; `""` for a bare number.
        label: for people, such as `"rotation, up to 30 degrees"`.
    """

    transform: str
    strength: float | None
    unit: str
    label: str


@dataclass(frozen=True)
class Trend:
    """Spearman's rank correlation of a measure with class size.

    Attributes:
        rho: -1..1; negative means that small classes have the larger values. NaN where it is not
            defined (fewer than three classes, or one of the two is constant).
        p_value: two-sided, 0..1.
        low: lower end of the 95 % confidence interval of `rho`.
        high: upper end.
        num_classes: classes that entered.
    """

    rho: float
    p_value: float
    low: float
    high: float
    num_classes: int


@dataclass(frozen=True, eq=False)
class Measurement:
    """One model under one condition; float64 arrays over the C classes, NaN where no image was.

    Attributes:
        condition: what was done to the images.
        ekld: expected KL divergence, nats.
        ekld_standard_error: between images (clustered by image), nats.
        ekld_sampling_error: the part of the error that more draws per image would shrink, nats.
        consistency: fraction of draws with an unchanged prediction, 0..1.
        consistency_standard_error: its standard error, clustered by image.
        accuracy: accuracy on transformed images, 0..1.
        accuracy_standard_error: its standard error, clustered by image.
        num_samples: draws per image, int64 (C,).
        groups: `{"many" | "medium" | "few": {"ekld": ..., "consistency": ..., "accuracy": ...}}`,
            means over the classes of a group; a group without classes is left out.
        trend: of the eKLD against class size.
    """

    condition: Condition
    ekld: np.ndarray
    ekld_standard_error: np.ndarray
    ekld_sampling_error: np.ndarray
    consistency: np.ndarray
    consistency_standard_error: np.ndarray
    accuracy: np.ndarray
    accuracy_standard_error: np.ndarray
    num_samples: np.ndarray
    groups: Mapping[str, Mapping[str, float]]
    trend: Trend


@dataclass(frozen=True, eq=False)
class Example:
    """An image whose prediction a transformation changes.

    Attributes:
        condition: the transformation.
        label: class of the image.
        image: uint8 (H, W, C), 1 or 3 channels, 0..255, before any preprocessing.
        transformed: the same, transformed.
        prediction: predicted class of the image.
        confidence: its probability, 0..1.
        transformed_prediction: predicted class of the transformed image.
        transformed_confidence: its probability, 0..1.
    """

    condition: Condition
    label: int
    image: np.ndarray
    transformed: np.ndarray
    prediction: int
    confidence: float
    transformed_prediction: int
    transformed_confidence: float


@dataclass(frozen=True, eq=False)
class ModelAudit:
    """All that was measured on one model.

    Attributes:
        name: of the model, unique in the audit.
        parameters: number of weights.
        outputs: `"logits"` or `"probabilities"`, as found or told.
        accuracy: 0..1, on the untransformed images.
        balanced_accuracy: mean over the classes seen, 0..1.
        expected_calibration_error: 0..1.
        per_class_accuracy: float64 (C,).
        group_accuracy: `{"many" | "medium" | "few": accuracy}`.
        accuracy_trend: accuracy against class size.
        measurements: one per condition, in the order of the ladder.
        examples: of the worst classes.
        evaluations: images that went through the model, draws counted one by one.
        evaluations_saved: further ones that the precision made unnecessary; 0 without one.
    """

    name: str
    parameters: int
    outputs: str
    accuracy: float
    balanced_accuracy: float
    expected_calibration_error: float
    per_class_accuracy: np.ndarray
    group_accuracy: Mapping[str, float]
    accuracy_trend: Trend
    measurements: tuple[Measurement, ...]
    examples: tuple[Example, ...] = ()
    evaluations: int = 0
    evaluations_saved: int = 0


@dataclass(frozen=True, eq=False)
class AuditResult:
    """What an audit found.

    Attributes:
        models: one record per model, in the order given.
        class_names: C names.
        class_counts: int64 (C,), class sizes of the training data, against which trends are taken.
        num_images: int64 (C,), images per class that were measured.
        data: name of the data.
        skipped: transformations that were left out, with the reason.
        settings: arguments of the audit.
        versions: of the software.
        seconds: of the whole audit.
    """

    models: tuple[ModelAudit, ...]
    class_names: tuple[str, ...]
    class_counts: np.ndarray
    num_images: np.ndarray
    data: str
    skipped: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
