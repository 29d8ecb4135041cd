"""Expected KL divergence (eKLD): how far predictions move when an image is transformed.

For an image x and a random transformation T the measure is `KL(p(.|x) || p(.|T x))` in nats,
averaged per class over images and draws of T; 0 means an invariant classifier. Consistency is the
fraction of draws with an unchanged arg-max. Original and transformed are the same image.

Reference: Zhou et al., "Do Deep Networks Transfer Invariances Across Classes?", ICLR 2022,
section 3 (equation of eKLD).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.metrics.divergence import agreement, kl_divergence
from keras_git.metrics.draws import draws_function, prediction_function, sampled_parameters
from keras_git.transforms import Transform


@dataclasses.dataclass(frozen=True, eq=False)
class ExpectedKLResult:
    """Invariance per class.

    All fields are arrays `(C,)`. Classes without images are NaN; standard errors need two images.

    Attributes:
        ekld: expected KL divergence, nats, 0 or more; float64.
        ekld_standard_error: its standard error, clustered by image: the draws of one image are
            not independent, so it is the standard deviation of the per-image means over the root
            of the number of images.
        consistency: fraction of draws with an unchanged prediction, 0..1.
        consistency_standard_error: its standard error, clustered by image.
        num_images: images per class, int64.
        num_samples: draws of the transformation per image (a number).
    """

    ekld: np.ndarray
    ekld_standard_error: np.ndarray
    consistency: np.ndarray
    consistency_standard_error: np.ndarray
    num_images: np.ndarray
    num_samples: int

    @property
    def mean_ekld(self) -> float:
        """Mean over the classes that have images, nats."""
        return _mean_of_seen(self.ekld, self.num_images)

    @property
    def mean_consistency(self) -> float:
        """Mean over the classes that have images, 0..1."""
        return _mean_of_seen(self.consistency, self.num_images)

    def to_dict(self) -> dict[str, list[float | None]]:
        """The four measures as lists over classes, None where there is no value (for JSON)."""
        names = ("ekld", "ekld_standard_error", "consistency", "consistency_standard_error")
        return {
            name: [
                None if np.isnan(value) else float(value) for value in getattr(self, name).tolist()
            ]
            for name in names
        }


def _mean_of_seen(values: np.ndarray, num_images: np.ndarray) -> float:
    seen = num_images > 0
    return float(values[seen].mean()) if seen.any() else float("nan")


def _mean_and_error(
    values: np.ndarray, labels: np.ndarray, num_images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per-class mean of per-image values and its standard error."""
    num_classes = len(num_images)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(labels, values, num_classes) / num_images
        # deviations from the mean, not E[x^2] - E[x]^2, which cancels
        squares = np.bincount(labels, (values - mean[labels]) ** 2, num_classes)
        error = np.sqrt(squares / (num_images - 1) / num_images)
    return mean, np.where(num_images > 1, error, np.nan)


def _result(
    divergence: np.ndarray,
    consistent: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    num_samples: int,
) -> ExpectedKLResult:
    num_images = np.bincount(labels, minlength=num_classes).astype(np.int64)
    ekld, ekld_error = _mean_and_error(divergence, labels, num_images)
    consistency, consistency_error = _mean_and_error(consistent, labels, num_images)
    return ExpectedKLResult(
        ekld, ekld_error, consistency, consistency_error, num_images, num_samples
    )


def expected_kl_from_logits(original_logits: Any, transformed_logits: Any) -> ExpectedKLResult:
    """eKLD and consistency from logits that are already there.

    Args:
        original_logits: `(C, B, K)`: B images of each of C classes.
        transformed_logits: `(C, B, S, K)`: S draws of the transformation of the same images.

    Returns:
        The result over C classes.

    Raises:
        InputError: shapes that do not fit each other.
    """
    original = ops.convert_to_tensor(original_logits)
    transformed = ops.convert_to_tensor(transformed_logits)
    first, second = tuple(original.shape), tuple(transformed.shape)
    if len(first) != 3 or len(second) != 4 or second[:2] + second[3:] != first or 0 in second:
        raise InputError(
            f"logits have shapes {first} and {second}; give (C, B, K) and (C, B, S, K), not empty"
        )
    original = ops.expand_dims(original, 2)
    divergence = ops.sum(kl_divergence(original, transformed), axis=2)
    # Divided on the host in float64: counts are exact in float32, their quotients are not
    consistent = ops.sum(agreement(original, transformed), axis=2)
    num_samples = second[2]
    return _result(
        ops.convert_to_numpy(divergence).astype(np.float64).reshape(-1) / num_samples,
        ops.convert_to_numpy(consistent).astype(np.float64).reshape(-1) / num_samples,
        np.repeat(np.arange(first[0]), first[1]),
        first[0],
        num_samples,
    )


def _checked_labels(labels: Any, num_images: int, num_classes: int | None) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape not in ((num_images,), (num_images, 1)):
        raise InputError(
            f"labels have shape {labels.shape} for {num_images} images; give one label per image"
        )
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels have dtype {labels.dtype}; give integers")
    labels = labels.reshape(-1).astype(np.int64)
    if labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes):
        allowed = "0 or more" if num_classes is None else f"0..{num_classes - 1}"
        raise InputError(f"labels range from {labels.min()} to {labels.max()}; give {allowed}")
    return labels


def _num_classes(model: Any, labels: np.ndarray) -> int:
    try:
        shape = model.output_shape
    except AttributeError:  # not a functional model
        shape = None
    if isinstance(shape, tuple) and shape and isinstance(shape[-1], int):
        return shape[-1]
    return int(labels.max()) + 1


def expected_kl(
    model: Any,
    images: Any,
    labels: Any,
    transform: Transform,
    num_samples: int = 10,
    *,
    num_classes: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    preprocess: Callable[[Any], Any] | None = None,
    from_logits: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> ExpectedKLResult:
    """Measures eKLD and prediction consistency per class.

    A compiled function (XLA on JAX and TensorFlow) loops over the draws of a batch inside, so
    memory does not grow with `num_samples`; the function is kept for the next call with the same
    model and transformation, also after the weights have changed. The last batch is padded, so
    there is one compilation. The parameters of the transformation depend only on `seed`, the
    position of the image and `num_samples`: they are the same for every model, backend and batch
    size.

    Args:
        model: Keras model (or function) from float32 images `(B, H, W, C)` to `(B, K)`.
        images: untransformed images `(N, H, W, C)`, uint8 or float, 0..255; may be a memory map.
        labels: integers `(N,)`, 0..num_classes-1.
        transform: the nuisance transformation.
        num_samples: draws per image, 1 or more.
        num_classes: C; by default the number of outputs of the model.
        batch_size: images per call, 1 or more.
        seed: seed of the draws, 0 or more.
        preprocess: applied to float32 images 0..255 before the model; None if the model scales its
            input itself.
        from_logits: False if the model returns probabilities (less exact, see
            `divergence.log_probabilities`).
        progress: called with the number of images measured so far and that of all.

    Returns:
        The result over C classes.

    Raises:
        InputError: no images, images of another rank, labels that do not fit, numbers out of range.

    Reference: Zhou et al., ICLR 2022, section 3.
    """
    if not isinstance(transform, Transform):
        raise InputError(f"transform is {transform!r}; give an instance of Transform")
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if int(value) != value or value < 1:
            raise InputError(f"{name} is {value}; give a whole number of 1 or more")
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    if len(getattr(images, "shape", ())) != 4 or images.shape[0] == 0:
        raise InputError(
            f"images have shape {tuple(getattr(images, 'shape', ()))}; give (N, H, W, C), N > 0"
        )
    number = int(images.shape[0])
    labels = _checked_labels(labels, number, num_classes)
    if num_classes is None:
        num_classes = _num_classes(model, labels)
        _checked_labels(labels, number, num_classes)

    predict = prediction_function(model, preprocess, from_logits)
    measure = draws_function(model, transform, preprocess, from_logits)
    batch_size = min(batch_size, number)
    divergence, consistent = np.empty(number), np.empty(number)
    for start in range(0, number, batch_size):
        stop = min(start + batch_size, number)
        # Padding repeats the first image of the batch; its results are dropped.
        positions = np.arange(start, start + batch_size)
        positions[stop - start :] = start
        parameters = sampled_parameters(transform, seed, positions, num_samples)
        batch = np.asarray(images[start:stop])
        if batch.dtype != np.uint8:
            batch = batch.astype(np.float32)
        tensor = ops.cast(ops.convert_to_tensor(batch[positions - start]), "float32")
        sums = measure(
            tensor, predict(tensor), labels[positions], parameters, np.int32(num_samples)
        )
        sums = ops.convert_to_numpy(sums).astype(np.float64)
        divergence[start:stop], consistent[start:stop] = (
            sums[row, : stop - start] / num_samples for row in (0, 2)
        )
        if progress is not None:
            progress(stop, number)
    return _result(divergence, consistent, labels, num_classes, num_samples)


@keras.saving.register_keras_serializable(package="keras_git")
class ExpectedKL(keras.metrics.Metric):
    """Running eKLD: `update_state(labels, original_logits, transformed_logits)`.

    `result()` is the mean over the classes seen so far; `per_class()` and
    `consistency_per_class()` give vectors.

    Args:
        num_classes: number of classes C, 1 or more.
        name: name of the metric.
        **kwargs: further arguments of `keras.metrics.Metric`.

    Raises:
        InputError: `num_classes` below 1.

    Reference: Zhou et al., ICLR 2022, section 3.
    """

    def __init__(self, num_classes: int, name: str = "ekld", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        if num_classes < 1:
            raise InputError(f"num_classes is {num_classes}; give 1 or more")
        self.num_classes = int(num_classes)
        shape = (self.num_classes,)
        self.divergence = self.add_variable(shape, "zeros", dtype="float32", name="divergence")
        self.agreement = self.add_variable(shape, "zeros", dtype="float32", name="agreement")
        self.weight = self.add_variable(shape, "zeros", dtype="float32", name="weight")

    def update_state(
        self,
        labels: Any,
        original_logits: Any,
        transformed_logits: Any,
        sample_weight: Any = None,
    ) -> None:
        """Adds a batch.

        Args:
            labels: integers `(B,)` or `(B, 1)`.
            original_logits: `(B, K)`.
            transformed_logits: `(B, K)` or, for S draws of each image, `(B, S, K)`.
            sample_weight: `(B,)` or None.
        """
        labels = ops.reshape(ops.convert_to_tensor(labels), (-1,))
        original = ops.convert_to_tensor(original_logits)
        transformed = ops.convert_to_tensor(transformed_logits)
        if len(transformed.shape) == len(original.shape):
            transformed = ops.expand_dims(transformed, 1)
        original = ops.expand_dims(original, 1)
        divergence = ops.mean(kl_divergence(original, transformed), axis=1)
        consistent = ops.mean(agreement(original, transformed), axis=1)
        weights = ops.one_hot(ops.cast(labels, "int32"), self.num_classes, dtype="float32")
        if sample_weight is not None:
            weights = weights * ops.reshape(ops.cast(sample_weight, "float32"), (-1, 1))
        # Sums, not products of matrices: reduced-precision matrix units would round
        self.divergence.assign_add(ops.sum(weights * ops.expand_dims(divergence, 1), axis=0))
        self.agreement.assign_add(ops.sum(weights * ops.expand_dims(consistent, 1), axis=0))
        self.weight.assign_add(ops.sum(weights, axis=0))

    def result(self) -> Any:
        """Mean over the seen classes of the eKLD per class, nats; 0 before any update."""
        weight = ops.convert_to_tensor(self.weight)
        seen = weight > 0
        means = ops.where(seen, self.divergence / ops.where(seen, weight, 1.0), 0.0)
        return ops.sum(means) / ops.maximum(ops.sum(ops.cast(seen, "float32")), 1.0)

    def per_class(self) -> np.ndarray:
        """eKLD per class, nats, float64 `(C,)`; NaN for classes that were not seen."""
        return self._divided(self.divergence)

    def consistency_per_class(self) -> np.ndarray:
        """Consistency per class, 0..1, float64 `(C,)`; NaN for classes that were not seen."""
        return self._divided(self.agreement)

    def _divided(self, sums: Any) -> np.ndarray:
        weight = ops.convert_to_numpy(self.weight).astype(np.float64)
        with np.errstate(invalid="ignore"):
            return ops.convert_to_numpy(sums).astype(np.float64) / weight

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_classes": self.num_classes}
