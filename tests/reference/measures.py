"""Families: losses, invariance, nuisance, class_balancing, git_batches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git import losses, metrics
from keras_git.backend import StepModel
from keras_git.data import samplers
from keras_git.training import git_classifier
from keras_git.transforms import nuisances
from tests.reference.registry import Arrays, Check

_BETA = 0.9999


class _Gradient:
    """Stands in for an optimizer and keeps the gradient."""

    value: Any = None

    def apply(self, gradients: Any, variables: Any) -> None:
        self.value = gradients[0]


class _Logits(StepModel):
    """Logits as trainable variables, so that a loss can be differentiated on every backend."""

    def __init__(self, logits: np.ndarray):
        super().__init__(seed=0)
        self.logits = self.add_weight(shape=logits.shape, initializer="zeros", name="logits")
        self.logits.assign(logits)
        self.built = True
        self.compile(optimizer="sgd")
        self.optimizer.build(self.trainable_variables)


def loss_and_gradient(
    loss: keras.losses.Loss, labels: np.ndarray, logits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Value of a loss and its gradient with respect to the logits."""
    model, recorder = _Logits(logits), _Gradient()

    def objective() -> tuple[Any, dict[str, Any]]:
        value = loss(labels, ops.convert_to_tensor(model.logits))
        return value, {"loss": value}

    logs = model.minimize(objective, [model.logits], recorder)
    return ops.convert_to_numpy(logs["loss"]), ops.convert_to_numpy(recorder.value)


def losses_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    labels, counts = arrays["labels"], arrays["counts"]
    schedule = losses.deferred_reweighting(counts, 1, config.get("beta", _BETA))
    weights = {"none": None, "cb": schedule(1)}
    yield Check("class_weights_before_drw", schedule(0), "rel", 1e-6)
    yield Check("class_weights_after_drw", schedule(1), "rel", 1e-6)
    pattern = re.compile(
        r"(?P<kind>ce|focal_gamma(?P<gamma>[^/_]+)|ldam_s(?P<scale>[^/_]+)_m(?P<margin>[^/_]+))"
        r"/(?:(?P<weights>none|cb)/loss|margins)"
    )
    for key in arrays:
        match = pattern.fullmatch(key)
        if not match:
            continue
        kind = match["kind"]
        if key.endswith("/margins"):
            yield Check(key, losses.ldam_margins(counts, float(match["margin"])), "rel", 1e-6)
            continue
        class_weights = weights[match["weights"]]
        loss: losses.ClassificationLoss
        if match["gamma"]:
            loss = losses.Focal(float(match["gamma"]), class_weights)
        elif match["scale"]:
            loss = losses.LDAM(counts, float(match["margin"]), float(match["scale"]), class_weights)
        else:
            loss = losses.CrossEntropy(class_weights)
        margin_loss = isinstance(loss, losses.LDAM)
        inputs = "cosine" if margin_loss else "logits"
        value, gradient = loss_and_gradient(loss, labels, arrays[inputs])
        prefix = f"{kind}/{match['weights']}"
        yield Check(key, value, "abs", 5e-5 if margin_loss else 1e-5)
        yield Check(f"{prefix}/grad_{inputs}", gradient, "abs", 1e-4 if margin_loss else 1e-5)


def invariance_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    result = metrics.expected_kl_from_logits(arrays["orig_logits"], arrays["tfmd_logits"])
    yield Check("ekld", result.ekld, "abs", 1e-5)
    # the expected fractions are stored in float32
    yield Check("consistency", result.consistency.astype(np.float32), "exact")


def nuisance_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    images = arrays["images"]
    if "angles_degrees" in arrays:
        rotated = [nuisances.rotate(images, angle) for angle in arrays["angles_degrees"]]
        yield Check("rotated", np.stack(rotated), "abs", 1.0)
    if "background_values" in arrays:
        filled = [nuisances.set_background(images, value) for value in arrays["background_values"]]
        yield Check("background", np.stack(filled), "exact")
    for key in arrays:
        match = re.fullmatch(r"(dilate|erode)_(\d+)", key)
        if match:
            size = int(match[2])
            function = nuisances.dilate if match[1] == "dilate" else nuisances.erode
            yield Check(key, function(images, size, largest=size), "exact")


def class_balancing_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    beta, milestone = config.get("beta", _BETA), int(config.get("milestone", 160))
    epochs = {"before": milestone - 1, "after": milestone}
    for counts_key in [key for key in arrays if key.endswith("/counts")]:
        name = counts_key.removesuffix("/counts")
        counts = arrays[counts_key]
        margins = losses.ldam_margins(counts, config.get("max_m", 0.5))
        yield Check(f"{name}/ldam_margins", margins, "rel_each", 1e-6)
        labels = np.repeat(np.arange(len(counts)), counts)
        shuffle = samplers.InstanceBalanced(labels)
        balanced = samplers.ClassBalanced(labels)
        rules = {
            "Resample": samplers.EffectiveNumber(labels, beta=beta),
            "ResampleSimple": balanced,
            "DRS_Simple": samplers.Deferred(shuffle, balanced, milestone),
        }
        schedules = {
            "Reweight": losses.deferred_reweighting(counts, 0, beta),
            "DRW": losses.deferred_reweighting(counts, milestone, beta),
        }
        for phase, epoch in epochs.items():
            for rule, sampler in rules.items():
                key = f"{name}/{rule}/{phase}/class_sampling_prob"
                yield Check(key, sampler.class_probabilities(epoch), "rel_each", 1e-6)
            for rule, schedule in schedules.items():
                key = f"{name}/{rule}/{phase}/class_weights"
                yield Check(key, schedule(epoch), "rel_each", 1e-6)


def git_batches_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    for key in arrays:
        match = re.fullmatch(r"keep_prob/([^/]+)", key)
        if match:
            counts, threshold = arrays[f"{key}/counts"], arrays[f"{key}/threshold"]
            yield Check(key, git_classifier.keep_probability(counts, float(threshold)), "abs", 1e-6)
    batches = sorted({key.split("/")[0] for key in arrays if re.match(r"batch\d+/", key)})
    for batch in batches:
        mean, deviation = (
            arrays[name].astype(np.float64).reshape(1, 1, 1, -1)
            for name in ("norm_mean", "norm_std")
        )
        generated = arrays[f"{batch}/generated_raw"].astype(np.float64).transpose(0, 2, 3, 1)
        # [-1, 1] -> grey levels -> [0, 1] -> normalized, as the networks do it
        normalized = ((generated + 1.0) * 127.5 / 255.0 - mean) / deviation
        sources = arrays[f"{batch}/y_source"]
        keep = None
        if int(arrays[f"{batch}/weighted"]):
            keep = arrays[f"{batch}/keep_mask"].astype(bool)
        else:
            arrays[f"{batch}/keep_mask"]  # an input that such a batch does not use
        images, labels = git_classifier.mix(
            ops.convert_to_tensor(arrays[f"{batch}/x_main"].transpose(0, 2, 3, 1)),
            ops.convert_to_tensor(arrays[f"{batch}/y_main"].astype(np.int32)),
            ops.convert_to_tensor(normalized.astype(np.float32)),
            ops.convert_to_tensor(sources.astype(np.int32)),
            float(arrays[f"{batch}/gen_frac"]),
            None if keep is None else ops.convert_to_tensor(keep),
        )
        mixed = ops.convert_to_numpy(images).transpose(0, 3, 1, 2)
        yield Check(f"{batch}/x_mixed", mixed, "abs", 1e-6)
        yield Check(f"{batch}/y_mixed", ops.convert_to_numpy(labels), "exact")
        if f"{batch}/keep_prob" in arrays:
            threshold = float(config.get("threshold_in_batches", 20))
            kept = git_classifier.keep_probability(arrays["batch_counts"], threshold)
            yield Check(f"{batch}/keep_prob", kept[sources], "abs", 1e-6)


FAMILIES = {
    "losses": losses_family,
    "invariance": invariance_family,
    "nuisance": nuisance_family,
    "class_balancing": class_balancing_family,
    "git_batches": git_batches_family,
}
