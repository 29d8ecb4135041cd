"""What an audit found: frozen records, arrays over classes."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keras_git.errors import InputError
from keras_git.files import write_atomically

FORMAT_VERSION = 1


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
        ekld_standard_error: of both parts below together (clustered by image), nats.
        ekld_sampling_error: the part that more draws per image would shrink, nats.
        consistency: fraction of draws with an unchanged prediction, 0..1.
        consistency_standard_error: its standard error, clustered by image.
        accuracy: accuracy on transformed images, 0..1.
        accuracy_standard_error: its standard error, clustered by image.
        num_samples: draws per image, int64 (C,).
        groups: `{"many" | "medium" | "few": {"ekld": ..., "consistency": ..., "accuracy": ...}}`,
            means over the classes of a group, each with its `..._standard_error`; a group without
            classes is left out.
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

    def __post_init__(self) -> None:
        _freeze(self)

    @property
    def ekld_image_error(self) -> np.ndarray:
        """The part of the standard error that only more images would shrink, nats, (C,)."""
        squares = self.ekld_standard_error**2 - self.ekld_sampling_error**2
        return np.sqrt(np.maximum(squares, 0.0))


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

    def __post_init__(self) -> None:
        _freeze(self)


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
        group_accuracy_standard_error: the same with their standard errors, where known.
        accuracy_trend: accuracy against class size.
        measurements: one per condition, in the order of the ladder.
        examples: of the worst classes.
        evaluations: images that went through the model, draws counted one by one.
        evaluations_saved: those with one number of draws for all classes of a condition, that of
            the class that needed most, less those that were made; negative where the trial and the
            rounds cost more than they spared, 0 without a precision.
        ekld_resolution: eKLD below it is what rounding makes of an invariant model, nats.
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
    group_accuracy_standard_error: Mapping[str, float] = field(default_factory=dict)
    ekld_resolution: float = 1e-6

    def __post_init__(self) -> None:
        _freeze(self)


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

    def __post_init__(self) -> None:
        _freeze(self)

    def to_table(self) -> list[dict[str, Any]]:
        """One row per model, condition and class, plain values, NaN where there is none.

        Columns: model, transform, strength, unit, condition, class, class_name, class_count,
        num_images, num_samples, ekld, ekld_standard_error, ekld_sampling_error, ekld_image_error,
        consistency, consistency_standard_error, accuracy, accuracy_standard_error,
        original_accuracy.
        """
        rows = []
        for model in self.models:
            for measurement in model.measurements:
                condition = measurement.condition
                for number, name in enumerate(self.class_names):
                    row: dict[str, Any] = {
                        "model": model.name,
                        "transform": condition.transform,
                        "strength": condition.strength,
                        "unit": condition.unit,
                        "condition": condition.label,
                        "class": number,
                        "class_name": name,
                        "class_count": int(self.class_counts[number]),
                        "num_images": int(self.num_images[number]),
                        "num_samples": int(measurement.num_samples[number]),
                    }
                    for measure in _COLUMNS:
                        row[measure] = float(getattr(measurement, measure)[number])
                    row["original_accuracy"] = float(model.per_class_accuracy[number])
                    rows.append(row)
        return rows

    def to_json(self, path: str | Path) -> Path:
        """Writes everything to one JSON file that `from_json` reads; NaN becomes null.

        Returns:
            The path.

        Raises:
            OSError: the file cannot be written; what was there is kept.
        """
        content = {"format_version": FORMAT_VERSION, **_plain(self)}
        return _write(Path(path), json.dumps(content, indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> AuditResult:
        """Reads what `to_json` wrote.

        Raises:
            InputError: no such file, or one that is not an audit of this format.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text("utf-8"))
            version = content.get("format_version")
            if version == FORMAT_VERSION:
                return _result(content)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not the JSON file of an audit ({error!r:.100})") from error
        raise InputError(f"{path} has format {version!r}, this version reads {FORMAT_VERSION}")

    def to_csv(self, path: str | Path) -> Path:
        """Writes `to_table` as a CSV file; cells without a value are empty.

        Returns:
            The path.
        """
        text = io.StringIO()
        rows = self.to_table()
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})
        return _write(Path(path), text.getvalue())

    def to_html(self, path: str | Path) -> Path:
        """Writes the report, one self-contained HTML file, for people.

        Returns:
            The path.
        """
        from keras_git import report

        report.write_html(self, path)
        return Path(path)

    def plot(self, folder: str | Path, file_format: str = "png") -> list[Path]:
        """Draws eKLD against class size and accuracy per class; see `keras_git.report.pictures`.

        Returns:
            The files.

        Raises:
            InputError: an unknown picture format, or nothing was measured.
        """
        from keras_git import report

        return report.pictures(self, folder, file_format)


_MEASURES = (
    "ekld",
    "ekld_standard_error",
    "ekld_sampling_error",
    "consistency",
    "consistency_standard_error",
    "accuracy",
    "accuracy_standard_error",
)
_COLUMNS = (*_MEASURES[:3], "ekld_image_error", *_MEASURES[3:])


def _freeze(record: Any) -> None:
    """Arrays of a frozen record become copies that cannot be written to."""
    for entry in dataclasses.fields(record):
        value = getattr(record, entry.name)
        if isinstance(value, np.ndarray):
            value = value.copy()
            value.flags.writeable = False
            object.__setattr__(record, entry.name, value)


def join_results(results: Sequence[AuditResult]) -> AuditResult:
    """One result with the models of several audits of the same data, to stand side by side.

    Args:
        results: at least one; they must agree in classes, class sizes and numbers of images.

    Returns:
        The models in the order of the audits; settings that are per model joined, the others, the
        data and the versions those of the first audit; the seconds of all.

    Raises:
        InputError: no audit, audits of different data, or of models with one name.
    """
    if not results:
        raise InputError("there is no audit to join; give at least one")
    first = results[0]
    for other in results[1:]:
        same = other.class_names == first.class_names and all(
            np.array_equal(getattr(other, name), getattr(first, name))
            for name in ("class_counts", "num_images")
        )
        if not same:
            raise InputError("these audits are of different data; they cannot stand side by side")
    models = tuple(model for result in results for model in result.models)
    if len({model.name for model in models}) < len(models):
        raise InputError(f"two of the models have one name: {[model.name for model in models]}")
    settings = dict(first.settings)
    for result in results[1:]:
        for key, value in result.settings.items():
            if isinstance(value, Mapping) and isinstance(settings.get(key), Mapping):
                settings[key] = {**settings[key], **value}
    return dataclasses.replace(
        first,
        models=models,
        settings=settings,
        seconds=sum(result.seconds for result in results),
    )


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _plain(value: Any) -> Any:
    """Dictionaries, lists, numbers and texts; NaN becomes None."""
    if isinstance(value, Example):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        pictures = {name: _png(fields.pop(name)) for name in ("image", "transformed")}
        return {**_plain(fields), **pictures}
    if dataclasses.is_dataclass(value):
        plain = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Measurement):
            plain["ekld_image_error"] = _plain(value.ekld_image_error)
        return plain
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _png(image: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _image(text: str) -> np.ndarray:
    from PIL import Image

    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(text)), formats=("png",)))
    return image[..., None] if image.ndim == 2 else image


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([_number(value) for value in values], np.float64)


def _means(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: _number(value) for key, value in values.items()}


def _trend(content: Mapping[str, Any]) -> Trend:
    numbers = {name: _number(content[name]) for name in ("rho", "p_value", "low", "high")}
    return Trend(**numbers, num_classes=content["num_classes"])


def _measurement(content: Mapping[str, Any]) -> Measurement:
    return Measurement(
        condition=Condition(**content["condition"]),
        num_samples=np.array(content["num_samples"], np.int64),
        groups={name: _means(values) for name, values in content["groups"].items()},
        trend=_trend(content["trend"]),
        **{measure: _numbers(content[measure]) for measure in _MEASURES},
    )


def _example(content: Mapping[str, Any]) -> Example:
    return Example(
        **{
            **content,
            "condition": Condition(**content["condition"]),
            "image": _image(content["image"]),
            "transformed": _image(content["transformed"]),
        }
    )


def _model(content: Mapping[str, Any]) -> ModelAudit:
    numbers = ("accuracy", "balanced_accuracy", "expected_calibration_error")
    return ModelAudit(
        **{
            **content,
            **{name: _number(content[name]) for name in numbers},
            "per_class_accuracy": _numbers(content["per_class_accuracy"]),
            "group_accuracy": _means(content["group_accuracy"]),
            "group_accuracy_standard_error": _means(
                content.get("group_accuracy_standard_error", {})
            ),
            "accuracy_trend": _trend(content["accuracy_trend"]),
            "measurements": tuple(_measurement(entry) for entry in content["measurements"]),
            "examples": tuple(_example(entry) for entry in content["examples"]),
        }
    )


def _result(content: Mapping[str, Any]) -> AuditResult:
    fields = {key: value for key, value in content.items() if key != "format_version"}
    return AuditResult(
        **{
            **fields,
            "models": tuple(_model(entry) for entry in content["models"]),
            "class_names": tuple(content["class_names"]),
            "class_counts": np.array(content["class_counts"], np.int64),
            "num_images": np.array(content["num_images"], np.int64),
        }
    )


def _write(path: Path, text: str) -> Path:
    write_atomically(path, text)
    return path
