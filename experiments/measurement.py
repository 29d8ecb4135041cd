"""What is measured on a trained classifier and on a trained generator."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

import keras_git as kg
from experiments.classifier_training import Logits
from experiments.progress import reports
from keras_git.errors import DivergenceError, InputError


def first_per_class(labels: np.ndarray, number: int) -> np.ndarray:
    """Indices of the first `number` images of each class, in the order of the classes."""
    return np.concatenate(
        [np.flatnonzero(labels == c)[:number] for c in range(int(labels.max()) + 1)]
    )


def make_transforms(
    names: Sequence[str], generator: keras.Model | None
) -> dict[str, kg.transforms.Transform]:
    """Transformations by name; `generator` is the trained generator, left out if there is none."""
    made = {}
    for name in names:
        if name != "generator":
            made[name] = kg.transforms.get(name)
        elif generator is not None:
            made[name] = kg.transforms.GeneratorTransform(generator)
    return made


class Measurement:
    """Measures classifiers of one kind of network on the same images and the same draws.

    Args:
        config: settings of the experiment.
        test: test images.
        invariance: images that are transformed.
        class_counts: training images per class.
        transforms: transformations by name.
    """

    def __init__(
        self,
        config: Any,
        test: kg.data.ImageDataset,
        invariance: kg.data.ImageDataset,
        class_counts: np.ndarray,
        transforms: Mapping[str, kg.transforms.Transform],
    ) -> None:
        self._config, self._test = config, test
        chosen = first_per_class(invariance.labels, config.invariance_images)
        self._images, self._labels = invariance.images[chosen], invariance.labels[chosen]
        self._class_counts, self._transforms = class_counts, transforms
        self._scaled: dict[int, keras.Model] = {}

    @property
    def images_per_class(self) -> np.ndarray:
        """Images on which invariance is measured, `(C,)`."""
        return np.bincount(self._labels, minlength=self._test.num_classes)

    def accuracies(self, logits: Logits, scale: float) -> dict[str, Any]:
        """Accuracies and calibration on the test set."""
        outputs = logits(self._test.images) * scale
        if not np.isfinite(outputs).all():
            raise DivergenceError(
                "the classifier's outputs are not finite: lower --learning_rate and name a new "
                "output_dir (what was finished is kept)"
            )
        return kg.metrics.classification_report(self._test.labels, outputs, self._class_counts)

    def invariances(self, network: keras.Model, scale: float) -> dict[str, Any]:
        """eKLD and consistency per class for each transformation."""
        if scale != 1.0:
            if id(network) not in self._scaled:
                self._scaled[id(network)] = keras.Model(network.inputs, network.output * scale)
            network = self._scaled[id(network)]
        measured = {}
        for name, transform in self._transforms.items():
            with reports(f"eKLD under {name}") as progress:
                result = kg.metrics.expected_kl(
                    network,
                    self._images,
                    self._labels,
                    transform,
                    self._config.invariance_samples,
                    num_classes=self._test.num_classes,
                    batch_size=self._config.evaluation_batch_size,
                    seed=self._config.data_seed,
                    progress=progress,
                )
            measured[name] = result.to_dict()
        return measured

    def all(self, trained: Any, scale: float) -> dict[str, Any]:
        """The entry of one method and seed in `results.json`; the test set is touched only here."""
        start = time.monotonic()
        entry = self.accuracies(trained.logits, scale)
        if trained.selected is not None:
            with trained.selected_weights():
                entry["selected"] = {
                    "epoch": trained.selected_epoch,
                    **self.accuracies(trained.logits, scale),
                }
        tested = time.monotonic()
        entry["invariance"] = self.invariances(trained.network, scale)
        entry["parameters"] = int(
            sum(np.prod(v.shape) for v in trained.network.trainable_variables)
        )
        entry["seconds"] = {
            "training": trained.seconds,
            "test": tested - start,
            "invariance": time.monotonic() - tested,
        }
        return entry


def generator_quality(
    style_distance: float,
    recognized: float | None,
    recognized_real: float | None,
    thresholds: tuple[float, float],
) -> dict[str, Any]:
    """The two checks of the generator, with what they were held against.

    Args:
        style_distance: mean distance of two styles of one content, 0..1.
        recognized: part of the generated images that a classifier trained on balanced data
            recognizes, or None if there are no balanced data.
        recognized_real: the same for the images they were generated from.
        thresholds: of the distance and of the recognition.
    """
    if not np.isfinite(style_distance):
        raise InputError("the generator's images are NaN: train it again at a lower rate")
    return {
        "style_distance": style_distance,
        "style_distance_threshold": thresholds[0],
        "changes_with_style": style_distance > thresholds[0],
        "recognized": recognized,
        "recognized_threshold": thresholds[1],
        "recognized_real_images": recognized_real,
        "keeps_content": None if recognized is None else recognized >= thresholds[1],
    }
