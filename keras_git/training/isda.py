"""Implicit semantic data augmentation: features varied as their class varies, in closed form.

A feature a of class y, drawn infinitely often from N(a, lambda Sigma_y), has an expected
cross-entropy that is bounded by the cross-entropy of logits with a margin for each other class.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_git.errors import InputError


@keras.saving.register_keras_serializable(package="keras_git")
class ISDA:
    """Settings of implicit semantic data augmentation, for `Classifier(feature_augmentation=...)`.

    The training loss gets the logits z_j + lambda / 2 (w_j - w_y)^T Sigma_y (w_j - w_y), where w
    are the weights of the last layer and Sigma_y the covariance of the features of class y, an
    online estimate from all batches so far, this one included. Gradients flow through w and z,
    not through Sigma. Metrics and evaluation see z.

    Args:
        strength: lambda at the end of the training, 0 or more; 0 is the plain loss.
        epochs: length of the training: lambda is strength times epoch / epochs, the epoch counted
            from 0, since early covariances say little. None: lambda is strength from the start.

    Raises:
        InputError: a negative strength, or less than one epoch.

    Reference: Wang et al., *Implicit Semantic Data Augmentation for Deep Networks*, NeurIPS 2019,
    section 3.
    """

    def __init__(self, strength: float = 0.5, epochs: int | None = None) -> None:
        if not (math.isfinite(strength) and strength >= 0.0):
            raise InputError(f"strength is {strength}; use a number of 0 or more")
        if epochs is not None and epochs < 1:
            raise InputError(f"epochs is {epochs}; use 1 or more, or None for a constant strength")
        self.strength, self.epochs = float(strength), epochs

    def strength_at(self, epoch: int) -> float:
        """lambda in the 0-based `epoch`."""
        if self.epochs is None:
            return self.strength
        return self.strength * min(epoch / self.epochs, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength, "epochs": self.epochs}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ISDA:
        return cls(**config)


class FeatureStatistics(keras.layers.Layer):
    """Mean and covariance of the features of each class, over all batches given to `update`.

    Weights, float32, not trained: `count` (C,), `mean` (C, D), `covariance` (C, D, D), divided by
    the count. A layer so that Keras saves it.

    Reference: Wang et al., NeurIPS 2019, equations of the online estimation in section 3.1.
    """

    def __init__(self, num_classes: int, num_features: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        shape = (num_classes, num_features)
        for name, of in (("count", shape[:1]), ("mean", shape), ("covariance", (*shape, shape[1]))):
            weight = self.add_weight(name=name, shape=of, initializer="zeros", trainable=False)
            setattr(self, name, weight)
        self.built = True

    def update(self, features: Any, labels: Any) -> None:
        """Adds a batch: `features` (B, D), integer `labels` (B,)."""
        features = ops.stop_gradient(ops.cast(features, "float32"))
        one_hot = ops.one_hot(labels, self.count.shape[0], dtype="float32")
        number = ops.sum(one_hot, axis=0)
        divisor = ops.maximum(number, 1.0)
        mean = ops.matmul(ops.transpose(one_hot), features) / divisor[:, None]
        centred = features - ops.take(mean, labels, axis=0)
        by_class = one_hot[:, :, None] * centred[:, None, :]
        covariance = ops.einsum("bcd,be->cde", by_class, centred) / divisor[:, None, None]

        count = ops.convert_to_tensor(self.count)
        # part of the new images in all; 0 where there are none
        part = number / ops.maximum(count + number, 1.0)
        moved = mean - ops.convert_to_tensor(self.mean)
        between = moved[:, :, None] * moved[:, None, :]
        part_of_mean, part = part[:, None], part[:, None, None]
        old = ops.convert_to_tensor(self.covariance)
        self.covariance.assign((1 - part) * old + part * covariance + part * (1 - part) * between)
        self.mean.assign(ops.convert_to_tensor(self.mean) + part_of_mean * moved)
        self.count.assign(count + number)


def augmented_logits(logits: Any, labels: Any, kernel: Any, covariance: Any, strength: Any) -> Any:
    """Logits whose cross-entropy bounds the expected one of the varied features.

    Args:
        logits: (B, C).
        labels: integers (B,).
        kernel: weights of the last layer (D, C).
        covariance: of the features of each class (C, D, D); constant, no gradient.
        strength: lambda, the part of the covariance by which features vary.

    Returns:
        float32 (B, C).

    Reference: Wang et al., NeurIPS 2019, proposition 1.
    """
    kernel = ops.cast(ops.convert_to_tensor(kernel), "float32")
    covariance = ops.stop_gradient(ops.convert_to_tensor(covariance))
    # The form depends on the label alone, so it is computed for all pairs (y, j), not per image.
    products = ops.einsum("yde,ej->ydj", covariance, kernel)
    of_label = ops.einsum("yde,ey->yd", covariance, kernel)
    squares = ops.einsum("ydj,dj->yj", products, kernel)
    crossed = ops.matmul(of_label, kernel)
    own = ops.einsum("yd,dy->y", of_label, kernel)
    form = squares - 2.0 * crossed + own[:, None]
    margin = ops.take(form, labels, axis=0)
    return ops.cast(logits, "float32") + 0.5 * ops.convert_to_tensor(strength) * margin
