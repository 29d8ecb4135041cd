"""Training of a classifier: plainly, re-weighted, augmented in the step, and around flat minima."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git import backend
from keras_git.errors import InputError
from keras_git.models import call_in_training
from keras_git.training.isda import ISDA, FeatureStatistics, augmented_logits, linear_head
from keras_git.transforms import Transform

ClassWeights = Sequence[float] | np.ndarray | Callable[[int], Any] | None


class _EpochStart(keras.callbacks.Callback):
    """Tells the model which epoch begins; through `self.model`, which synchronizes JAX."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.start_epoch_state(epoch)


@contextmanager
def _trained_weights_kept(optimizer: Any) -> Iterator[None]:
    """Keeps Keras from putting the averages of an optimizer with `use_ema` into the network.

    It does so at the end of `fit`, and a training in two calls would go on from the averages.
    """
    optimizer.finalize_variable_values = lambda variables: None  # in front of the method
    try:
        yield
    finally:
        del optimizer.finalize_variable_values


@keras.saving.register_keras_serializable(package="keras_git")
class Classifier(backend.AugmentedModel):
    """Stock Keras training of a network, with what needs the labels, the epoch or the gradients.

    In a training step the images pass through `transform`, `augmentation` and `mixing`, in this
    order; evaluation sees images as they are. `fit` ends with the weights that were trained, also
    where the optimizer averages them (`use_ema=True`): see `use_averaged_weights`.

    Args:
        network: a classifier from images (B, H, W, C) to logits (B, num_classes). Save this
            inner network, not the wrapper: it opens with `import keras` alone.
        class_weights: None, weights (num_classes,), or a function of the 0-based epoch that
            returns them (`keras_git.losses.deferred_reweighting`). The loss is then the weighted
            mean sum(w_y l) / sum(w_y) of the losses l of the batch. An example with mixed labels
            t has the weight sum_c t_c w_c.
        transform: transformation of the training images, or None. With one, `x` is a dictionary of
            `"images"` (B, H, W, C) in 0..255 and `"parameters"`, what `transform.sample(B, rng)`
            draws, as `keras_git.data.Stream(transform=...)` provides it.
        augmentation: one or a sequence of image policies for the whole training batch, float32
            (B, H, W, C) in 0..255. A policy has `apply(images, seed) -> images`, where seed is the
            `keras.random.SeedGenerator` of this model. Other Keras layers, such as
            `keras.layers.RandomErasing`, are called with `training=True` and draw from their own.
            On several devices of TensorFlow each draws the same for its part of the batch.
        mixing: what mixes images and labels: `mix(images, targets, seed, sources=None)` returns
            both, with targets float32 (B, num_classes), one-hot before. The compiled loss and
            metrics have to take such soft labels, as those of `keras_git.losses` and
            `keras_git.metrics.LabelAccuracy` do, and Keras' own without "sparse" in their names;
            in evaluation they see one-hot labels. With its attribute `needs_sources`, `x` is
            `{"images", "source_images", "source_labels"}`, as from
            `keras_git.data.training_data(stream, sources=...)`; sources are then the source
            images, which pass through `augmentation` too, and their one-hot labels.
        feature_augmentation: `ISDA` for a network that ends in a `keras.layers.Dense`; for integer
            labels, and so not with `mixing`.
        sharpness_radius: rho of sharpness-aware minimization, 0 or more: the gradient is taken at
            w + rho g / |g|, |g| the norm of the gradient g over all weights, and applied at w.
            Both gradients see the same batch and random draws; statistics of batch normalization
            and logs are those of the first. Doubles the time of a step. 0 is plain training.
        seed: seed of the random numbers drawn in the step.

    Data of `fit`: images (B, H, W, C), labels (B,) integers.

    Raises:
        InputError: arguments that do not fit together or to the network; in `fit`, losses or
            metrics that cannot take soft labels, or several devices of TensorFlow with mixing,
            feature_augmentation or sharpness_radius, which need the whole batch.

    Reference: Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin
    Loss*, NeurIPS 2019, section 3.3 (deferred re-weighting); Foret et al., *Sharpness-Aware
    Minimization for Efficiently Improving Generalization*, ICLR 2021, algorithm 1.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        class_weights: ClassWeights = None,
        transform: Transform | None = None,
        augmentation: Any = None,
        mixing: Any = None,
        feature_augmentation: ISDA | None = None,
        sharpness_radius: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        if transform is not None and transform.variables:
            raise InputError(f"{transform!r} has weights of its own; give one without, or None")
        if mixing is not None and feature_augmentation is not None:
            raise InputError(
                "feature_augmentation needs one label per image, mixing gives several: use one"
            )
        if not (math.isfinite(sharpness_radius) and sharpness_radius >= 0.0):
            raise InputError(f"sharpness_radius is {sharpness_radius}; use a number of 0 or more")
        self.network = network
        self.transform = transform
        self.augmentation = _policies(augmentation)
        self.mixing = mixing
        self.sharpness_radius = float(sharpness_radius)
        self.num_classes = int(network.output_shape[-1])
        self._schedule = class_weights
        self.class_weights: Any = None
        if class_weights is not None:
            self.class_weights = self.add_weight(
                shape=(self.num_classes,), initializer="ones", trainable=False, name="class_weights"
            )
            self._assign_class_weights(0)
        self.feature_augmentation = feature_augmentation
        if feature_augmentation is not None:
            self._build_feature_augmentation(feature_augmentation)
        self.built = True

    def _build_feature_augmentation(self, isda: ISDA) -> None:
        head = linear_head(self.network)
        self.feature_statistics = FeatureStatistics(self.num_classes, int(head.input.shape[-1]))
        self.feature_strength = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="feature_strength"
        )
        self.feature_strength.assign(isda.strength_at(0))
        outputs = {"logits": self.network.outputs[0], "features": head.input}
        with_features = keras.Model(self.network.inputs, outputs)
        # in a partial, where Keras does not find the layers of the network a second time
        self._call_with_features = functools.partial(call_in_training, with_features)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Logits (B, num_classes); in training with feature_augmentation a dictionary of
        `"logits"` and `"features"`, which `compute_loss` and `compute_metrics` take."""
        images = _images(inputs)
        if not training:
            return self.network(images, training=False)
        if self.feature_augmentation is not None:
            return self._call_with_features(images)
        return call_in_training(self.network, images)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        if isinstance(y_pred, dict):
            y_pred = self._augmented_logits(y, y_pred["logits"], y_pred["features"])
        y = y if self.mixing is None else self._one_hot(y)  # evaluation and building, too
        return super().compute_loss(x, y, y_pred, sample_weight, training=training)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if isinstance(y_pred, dict):
            y_pred = y_pred["logits"]
        y = y if self.mixing is None else self._one_hot(y)
        return super().compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _augmented_logits(self, y: Any, logits: Any, features: Any) -> Any:
        if self._is_soft(y):
            raise InputError("feature_augmentation needs integer labels (B,), not soft ones (B, C)")
        labels = ops.cast(ops.reshape(y, (-1,)), "int32")
        self.feature_statistics.update(features, labels)
        return augmented_logits(
            logits,
            labels,
            linear_head(self.network).kernel,
            self.feature_statistics.covariance,
            self.feature_strength,
        )

    def start_epoch_state(self, epoch: int) -> None:
        """Sets what depends on the 0-based epoch; `fit` calls it at the start of each."""
        if callable(self._schedule):
            self._assign_class_weights(epoch)
        if self.feature_augmentation is not None:
            self.feature_strength.assign(self.feature_augmentation.strength_at(epoch))

    def _assign_class_weights(self, epoch: int) -> None:
        weights = self._schedule(epoch) if callable(self._schedule) else self._schedule
        weights = np.asarray(weights, "float32")
        if weights.shape != (self.num_classes,):
            raise InputError(
                f"class weights have shape {weights.shape}; the network has "
                f"{self.num_classes} classes, so give {(self.num_classes,)}"
            )
        self.class_weights.assign(weights)

    def augment(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        sources = self._sources(x)
        if self.transform is not None:
            if not isinstance(x, dict) or "parameters" not in x:
                raise InputError(
                    "a Classifier with a transform needs {'images', 'parameters'}: make the data "
                    "with Stream(transform=...)"
                )
            x = self.transform.apply(ops.cast(x["images"], "float32"), x["parameters"])
        return self._finished(x, y, sample_weight, sources)

    def _sources(self, x: Any) -> tuple[Any, Any] | None:
        """Source images, float32, and their one-hot labels, if the mixing needs them."""
        if not getattr(self.mixing, "needs_sources", False):
            return None
        if not isinstance(x, dict) or "source_images" not in x:
            raise InputError(
                f"{type(self.mixing).__name__} needs source images: make the data with "
                "training_data(stream, sources=...)"
            )
        return ops.cast(x["source_images"], "float32"), self._one_hot(x["source_labels"])

    def _finished(self, x: Any, y: Any, sample_weight: Any, sources: Any = None) -> Any:
        """The batch after augmentation, mixing and class weights."""
        mixed = self.mixing is not None
        whole = mixed or self.feature_augmentation is not None or self.sharpness_radius
        if whole and backend.separate_replicas() > 1:
            raise InputError(
                "mixing, feature_augmentation and sharpness_radius need the whole batch, of which "
                "each device of TensorFlow sees a part: train on one, or with KERAS_BACKEND=jax"
            )
        if self.augmentation or mixed:
            x = ops.cast(_images(x), "float32")
        if self.augmentation:
            x, sources = self._augmented_images(x, sources)
        if mixed:
            if sample_weight is not None:
                raise InputError("mixing makes other examples of the batch: use class_weights")
            x, y = self.mixing.mix(x, self._one_hot(y), self.seed_generator, sources=sources)
        return x, y, self._weighted(y, sample_weight)

    def _augmented_images(self, images: Any, sources: Any) -> tuple[Any, Any]:
        # Sources together with the batch: the policies are traced once.
        together = images if sources is None else ops.concatenate([images, sources[0]])
        for policy in self.augmentation:
            if _takes_seed(policy):
                together = policy.apply(together, self.seed_generator)
            else:
                together = policy(together, training=True)
        if sources is None:
            return together, None
        batch = ops.shape(images)[0]
        return together[:batch], (together[batch:], sources[1])

    def _is_soft(self, y: Any) -> bool:
        return len(y.shape) == 2 and y.shape[-1] == self.num_classes and self.num_classes > 1

    def _one_hot(self, y: Any) -> Any:
        if self._is_soft(y):
            return ops.cast(y, "float32")
        labels = ops.cast(ops.reshape(y, (-1,)), "int32")
        return ops.one_hot(labels, self.num_classes, dtype="float32")

    def _weighted(self, y: Any, sample_weight: Any) -> Any:
        if self.class_weights is None:
            return sample_weight
        weights = ops.convert_to_tensor(self.class_weights)
        if self._is_soft(y):
            weight = ops.matmul(ops.cast(y, "float32"), weights)
        else:
            weight = ops.take(weights, ops.cast(y, "int32"))
        # Keras divides by the number of images, the weighted mean by the sum of the weights.
        (mean,) = backend.replica_mean([ops.mean(weight)])
        weight = weight / mean
        return weight if sample_weight is None else weight * sample_weight

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        if self.mixing is not None:
            _check_soft_labels(self.get_compile_config() or {})
        callbacks = callbacks if callbacks is not None else []
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(_EpochStart())
        else:
            callbacks = [_EpochStart(), *callbacks]
        if self.optimizer is None:  # Keras says so
            return super().fit(*args, callbacks=callbacks, **kwargs)
        with _trained_weights_kept(self.optimizer):
            return super().fit(*args, callbacks=callbacks, **kwargs)

    def get_config(self) -> dict[str, Any]:
        if callable(self._schedule):
            raise InputError(
                "a Classifier whose class_weights are a function cannot be saved: "
                "save model.network, which is the trained classifier"
            )
        weights = None if self._schedule is None else np.asarray(self._schedule).tolist()
        return {
            "network": keras.saving.serialize_keras_object(self.network),
            "class_weights": weights,
            "transform": _serialized(self.transform),
            "augmentation": [_serialized(policy) for policy in self.augmentation],
            "mixing": _serialized(self.mixing),
            "feature_augmentation": _serialized(self.feature_augmentation),
            "sharpness_radius": self.sharpness_radius,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Classifier:
        config = dict(config)
        objects = ("network", "generator", "transform", "mixing", "feature_augmentation")
        deserialized = functools.partial(
            keras.saving.deserialize_keras_object, custom_objects=custom_objects
        )
        for name in objects:
            if config.get(name) is not None:
                config[name] = deserialized(config[name])
        config["augmentation"] = [
            deserialized(policy) for policy in config.get("augmentation") or []
        ]
        return cls(**config)


def _images(x: Any) -> Any:
    return x["images"] if isinstance(x, dict) else x


def _policies(augmentation: Any) -> tuple[Any, ...]:
    policies = augmentation if isinstance(augmentation, (list, tuple)) else [augmentation]
    policies = [policy for policy in policies if policy is not None]
    for policy in policies:
        if not isinstance(policy, keras.layers.Layer) and not _takes_seed(policy):
            raise InputError(
                f"augmentation {policy!r} has no apply(images, seed) and is no Keras layer"
            )
    return tuple(policies)


def _takes_seed(policy: Any) -> bool:
    # not whether there is an `apply`: on PyTorch every layer has one, of functions of modules
    apply = getattr(policy, "apply", None)
    return apply is not None and "seed" in inspect.signature(apply).parameters


def _serialized(value: Any) -> Any:
    if value is None:
        return None
    if not hasattr(value, "get_config"):
        raise InputError(
            f"a Classifier with {type(value).__name__}, which has no get_config, cannot be saved: "
            "save model.network, which is the trained classifier"
        )
    return keras.saving.serialize_keras_object(value)


def _check_soft_labels(compiled: dict[str, Any]) -> None:
    """Raises InputError if losses or metrics given to `compile` take integer labels only."""
    given = [compiled.get("loss"), compiled.get("metrics"), compiled.get("weighted_metrics")]
    while given:
        item = given.pop()
        if isinstance(item, dict) and "class_name" in item:
            is_function = item["class_name"] == "function"
            item = item["config"] if is_function else item["class_name"]
        if isinstance(item, dict):
            given.extend(item.values())
        elif isinstance(item, (list, tuple)):
            given.extend(item)
        elif isinstance(item, str):
            if item.lower().startswith("sparse"):
                raise InputError(
                    f"mixing gives soft labels, which {item!r} cannot take: use a loss of "
                    "keras_git.losses and the metric keras_git.metrics.LabelAccuracy"
                )
