"""Audits with planted answers: what a report must say is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from keras_git.auditing import AuditResult, Condition, Example, Measurement, ModelAudit, Trend

LADDERS = {
    "rotation": ((5.0, 15.0, 30.0, 60.0), "degrees"),
    "brightness": ((0.1, 0.2, 0.4), ""),
    "horizontal_flip": ((None,), ""),
}


def trend(values: np.ndarray, counts: np.ndarray) -> Trend:
    """SciPy's rank correlation, with an interval by Fisher's transformation."""
    used = np.isfinite(values)
    values, counts = values[used], counts[used]
    number = len(values)
    if number < 3 or np.ptp(values) == 0 or np.ptp(counts) == 0:
        return Trend(math.nan, math.nan, math.nan, math.nan, number)
    rho, p_value = stats.spearmanr(values, counts)
    width = 1.96 / math.sqrt(max(number - 3, 1))
    middle = np.arctanh(np.clip(rho, -0.999999, 0.999999))
    low, high = np.tanh(middle - width), np.tanh(middle + width)
    return Trend(float(rho), float(p_value), float(low), float(high), number)


def measurement(
    condition: Condition,
    ekld: np.ndarray,
    counts: np.ndarray,
    num_images: np.ndarray,
    consistency: np.ndarray | None = None,
    sampling_error: float = 0.01,
    original_accuracy: np.ndarray | float = 0.9,
) -> Measurement:
    ekld = np.where(num_images > 0, ekld, np.nan)
    if consistency is None:
        consistency = np.exp(-ekld)
    consistency = np.where(num_images > 0, consistency, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.where(num_images > 1, 1 / np.sqrt(num_images), np.nan)
        fraction = np.sqrt(consistency * (1 - consistency)) * root
    accuracy = original_accuracy * consistency
    masks = {
        "many": counts > 100,
        "medium": (counts >= 20) & (counts <= 100),
        "few": counts < 20,
    }
    groups = {}
    for name, mask in masks.items():
        mask = mask & (num_images > 0)
        if mask.any():
            groups[name] = {
                "ekld": float(ekld[mask].mean()),
                "ekld_standard_error": 0.0123,
                "consistency": float(consistency[mask].mean()),
                "accuracy": float(accuracy[mask].mean()),
            }
    return Measurement(
        condition,
        ekld=ekld,
        ekld_standard_error=0.5 * ekld * root,
        ekld_sampling_error=np.where(num_images > 0, sampling_error, np.nan),
        consistency=consistency,
        consistency_standard_error=fraction,
        accuracy=accuracy,
        accuracy_standard_error=fraction,
        num_samples=np.where(num_images > 0, 10, 0),
        groups=groups,
        trend=trend(ekld, counts),
    )


def ladder(name: str) -> list[Condition]:
    strengths, unit = LADDERS.get(name, ((1.0, 2.0, 3.0), ""))
    spoken = name.replace("_", " ")
    return [
        Condition(
            name,
            strength,
            unit,
            spoken if strength is None else f"{spoken}, up to {strength:g} {unit}".strip(),
        )
        for strength in strengths
    ]


def model(
    name: str,
    ekld: Mapping[str, np.ndarray],
    counts: np.ndarray,
    num_images: np.ndarray,
    accuracy: np.ndarray | None = None,
    **changes: object,
) -> ModelAudit:
    """A model with the eKLD given per transformation at its strongest, less when weaker."""
    if accuracy is None:
        accuracy = np.full(len(counts), 0.9)
    accuracy = np.where(num_images > 0, accuracy, np.nan)
    measurements = []
    for transform, values in ekld.items():
        steps = ladder(transform)
        for place, condition in enumerate(steps):
            measurements.append(
                measurement(
                    condition,
                    values * (place + 1) / len(steps),
                    counts,
                    num_images,
                    original_accuracy=accuracy,
                )
            )
    mean = float(np.nanmean(accuracy))
    settings = {
        "parameters": 77_537,
        "outputs": "logits",
        "accuracy": mean,
        "balanced_accuracy": mean,
        "expected_calibration_error": 0.12,
        "group_accuracy": {
            key: float(np.nanmean(accuracy[mask]))
            for key, mask in {"many": counts > 100, "few": counts < 20}.items()
            if (mask & (num_images > 0)).any()
        },
        **changes,
    }
    return ModelAudit(
        name=name,
        per_class_accuracy=accuracy,
        accuracy_trend=trend(accuracy, counts),
        measurements=tuple(measurements),
        **settings,
    )


def result(
    models: Sequence[ModelAudit],
    counts: np.ndarray,
    num_images: np.ndarray,
    names: Sequence[str] | None = None,
    **changes: object,
) -> AuditResult:
    return AuditResult(
        models=tuple(models),
        class_names=tuple(names or (f"class {i}" for i in range(len(counts)))),
        class_counts=counts,
        num_images=num_images,
        **{"data": "planted", "versions": {"keras": "3"}, **changes},
    )


def sizes(classes: int, largest: int = 5000, smallest: int = 5) -> np.ndarray:
    return np.round(np.geomspace(largest, smallest, classes)).astype(np.int64)


def examples(counts: np.ndarray, number: int, side: int = 32, channels: int = 3):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    made = []
    for i in range(number):
        colour = rng.uniform(60, 255, channels)
        shape = (np.hypot(x - 0.5, y - 0.4) < 0.3) | (abs(y - 0.8) < 0.08)
        image = (40 + shape[..., None] * colour + rng.normal(0, 8, (side, side, channels))).clip(
            0, 255
        )
        made.append(
            Example(
                ladder("rotation")[2],
                label=len(counts) - 1 - i % min(5, len(counts)),
                image=image.astype(np.uint8),
                transformed=np.rot90(image).astype(np.uint8),
                prediction=len(counts) - 1 - i % min(5, len(counts)),
                confidence=0.97,
                transformed_prediction=i % len(counts),
                transformed_confidence=0.55,
            )
        )
    return tuple(made)


def large(
    classes: int, num_models: int = 1, transformations: int = 13, num_examples: int = 0, side=32
) -> AuditResult:
    """Many classes under many conditions (three strengths each), small classes worse."""
    counts, images = sizes(classes), np.full(classes, 50)
    rng = np.random.default_rng(0)
    names = (
        "rotation shift scale horizontal_flip brightness contrast saturation hue blur noise "
        "background dilation_erosion erasing compression"
    ).split()
    models = []
    for index in range(num_models):
        rise = np.geomspace(0.05, 1, classes) * (1 - 0.25 * index)
        ekld = {
            name: rise * (0.02 + 1.6 * place / transformations) * rng.lognormal(0, 0.4, classes)
            for place, name in enumerate(names[:transformations])
        }
        accuracy = np.clip(np.linspace(0.97, 0.3 + 0.15 * index, classes)
                           + rng.normal(0, 0.05, classes), 0, 1)  # fmt: skip
        models.append(
            model(
                ("erm", "drs", "git", "ldam+drs")[index],
                ekld,
                counts,
                images,
                accuracy,
                examples=examples(counts, num_examples, side),
                evaluations=250_000,
                evaluations_saved=750_000,
            )
        )
    return result(
        models,
        counts,
        images,
        settings={"precision": 0.02, "max_samples": 100, "seed": 0, "transforms": None},
        skipped={"hue": "the images have one channel"},
    )
