"""Losses for long-tailed classification, on logits and integer or soft labels.

All of them take integer labels `(B,)` or `(B, 1)`, or soft labels `(B, C)` with rows that sum to 1
(of mixed images, say), and logits `(B, C)`, C >= 2. They compute in float32 whatever the dtype of
the logits, and return one value per example whose mean over the batch is the loss. The loss of a
soft label t is `sum_y t_y L(y)`, L(y) the loss of the hard label y.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git import backend
from keras_git.errors import InputError
from keras_git.losses.labels import label_probabilities
from keras_git.losses.weights import checked_counts, checked_weights, ldam_margins


class ClassificationLoss(keras.losses.Loss):
    """Cross-entropy of adjusted logits, with optional class weights and label smoothing.

    With class weights w the batch loss is the weighted mean `sum_i w_i l_i / sum_i w_i` over the
    examples, not the sum over B (w_i is the weight of the label of example i). Keras averages over
    the batch, so each example returns `w_i l_i B / sum_j w_j`. Sample weights multiply on top. For
    a soft label t, `w_i l_i` is `sum_y t_y w_y L(y)` and w_i is `sum_y t_y w_y`.

    Args:
        class_weights: one weight per class, 0 or more, or None for ones.
        label_smoothing: epsilon in [0, 1): labels t become `(1 - epsilon) t + epsilon / C`.
        reduction: Keras reduction; the default is the mean over the batch.
        name: name of the loss.
        **kwargs: further arguments of `keras.losses.Loss`.

    Raises:
        InputError: weights that are not a finite, non-negative vector, or of another length than
            the logits; smoothing out of range; labels of another shape.

    Reference: label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer
    Vision", CVPR 2016, section 7.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | np.ndarray | None = None,
        *,
        label_smoothing: float = 0.0,
        reduction: str = "sum_over_batch_size",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        name = name or _snake_case(type(self).__name__)
        super().__init__(name=name, reduction=reduction, **kwargs)
        self.class_weights = checked_weights(class_weights)
        if not 0 <= label_smoothing < 1:
            raise InputError(
                f"label_smoothing is {label_smoothing}; give a value of at least 0 and below 1"
            )
        self.label_smoothing = float(label_smoothing)

    def adjust(self, logits: Any) -> Any:
        """The logits `(B, C)` that enter the cross-entropy."""
        return logits

    def label_losses(self, logits: Any) -> Any:
        """Loss of every label y that an example could have, without weights: `(B, C)`."""
        return -ops.log_softmax(self.adjust(logits), axis=-1)

    def per_example(self, label_losses: Any, labels: Any, weights: Any) -> Any:
        """Per-example values `(B,)` whose batch mean is the loss.

        Args:
            label_losses: `(B, C)`, see `label_losses`.
            labels: probability of every label `(B, C)`.
            weights: of the classes `(C,)`, or None.
        """
        if weights is None:
            return ops.sum(labels * label_losses, axis=-1)
        labels = labels * weights
        batch_size = ops.cast(ops.shape(labels)[0], "float32")
        (total,) = backend.replica_mean([ops.sum(labels)])
        return ops.sum(labels * label_losses, axis=-1) * batch_size / total

    def call(self, y_true: Any, y_pred: Any) -> Any:
        logits = ops.cast(y_pred, "float32")
        if len(logits.shape) != 2:
            raise InputError(f"logits have shape {tuple(logits.shape)}; give (batch, classes)")
        num_classes = int(logits.shape[-1])
        self._check_length(num_classes)
        labels = label_probabilities(y_true, num_classes)
        if self.label_smoothing:
            labels = (1.0 - self.label_smoothing) * labels + self.label_smoothing / num_classes
        weights = None if self.class_weights is None else _constant(self.class_weights)
        return self.per_example(self.label_losses(logits), labels, weights)

    def _vectors(self) -> dict[str, np.ndarray | None]:
        """The per-class vectors, by the name of their argument."""
        return {"class_weights": self.class_weights}

    def _check_length(self, num_classes: int) -> None:
        for name, vector in self._vectors().items():
            if vector is not None and len(vector) != num_classes:
                raise InputError(
                    f"{name} has {len(vector)} entries but the logits have {num_classes} classes"
                )

    def with_class_weights(
        self, class_weights: Sequence[float] | np.ndarray | None
    ) -> ClassificationLoss:
        """The same loss with other class weights, e.g. for the next phase of a schedule.

        Args:
            class_weights: one weight per class, or None for ones.

        Returns:
            A new loss.

        Raises:
            InputError: this loss takes no class weights, or they are not valid.
        """
        config = self.get_config()
        if "class_weights" not in config:
            raise InputError(f"{type(self).__name__} takes no class weights")
        weights = checked_weights(class_weights)
        config["class_weights"] = None if weights is None else weights.tolist()
        return type(self).from_config(config)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "label_smoothing": self.label_smoothing}
        for name, vector in self._vectors().items():
            config[name] = None if vector is None else vector.tolist()
        return config


def _snake_case(name: str) -> str:
    return "".join(
        "_" + letter.lower()
        if letter.isupper() and index and not name[index - 1].isupper()
        else letter.lower()
        for index, letter in enumerate(name)
    )


def _constant(values: np.ndarray) -> Any:
    return ops.convert_to_tensor(values.astype(np.float32))


# Enters a log-sum-exp as nothing, and unlike -inf has finite differences.
_NEVER = -1e30


@keras.saving.register_keras_serializable(package="keras_git")
class CrossEntropy(ClassificationLoss):
    """Softmax cross-entropy (natural logarithm), optionally class-weighted.

    With `class_weights=class_balanced_weights(class_counts)` it is the class-balanced loss of
    Cui et al. (CVPR 2019). See `ClassificationLoss` for the arguments and the weighted mean.
    """


@keras.saving.register_keras_serializable(package="keras_git")
class Focal(ClassificationLoss):
    """Focal loss: `mean((1 - exp(-l))^gamma * l)`, l the cross-entropy.

    With class weights, `l = w * cross-entropy`, the modulating factor sees `exp(-l) = p^w`, not p,
    and the mean divides by B, not by the sum of the weights. Both are peculiarities of the original
    program, kept so that its numbers can be reproduced. A soft label gives the weighted sum of the
    focal losses of its hard labels.

    Args:
        gamma: focusing exponent, 0 or more; 0 is the cross-entropy.
        class_weights: one weight per class, 0 or more, or None for ones.
        **kwargs: see `ClassificationLoss`.

    Raises:
        InputError: a negative `gamma`, invalid weights.

    Reference: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4.
    """

    def __init__(
        self,
        gamma: float = 1.0,
        class_weights: Sequence[float] | np.ndarray | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_weights, **kwargs)
        if not gamma >= 0:
            raise InputError(f"gamma is {gamma}; give 0 or more")
        self.gamma = float(gamma)

    def per_example(self, label_losses: Any, labels: Any, weights: Any) -> Any:
        loss = label_losses if weights is None else label_losses * weights
        if self.gamma > 0:
            # expm1 is exact for confident examples; the floor keeps the gradient of the power
            # finite
            error = ops.maximum(-ops.expm1(-loss), 1e-12)
            loss = ops.power(error, self.gamma) * loss
        return ops.sum(labels * loss, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="keras_git")
class LDAM(ClassificationLoss):
    """Label-distribution-aware margin loss on cosines.

    Subtracts the margin of the class from the cosine of the label, multiplies all cosines by
    `scale` and takes the (weighted) cross-entropy. Meant for a classifier with the cosine head.
    Predictions use the plain cosines: the margin exists only in the loss. A soft label gives the
    weighted sum of the losses of its hard labels, each with the margin of its own class.

    Args:
        class_counts: training images per class, `(C,)`, each 1 or more.
        max_margin: margin of the rarest class, above 0.
        scale: factor of the cosines, above 0.
        class_weights: one weight per class, 0 or more, or None for ones.
        **kwargs: see `ClassificationLoss`.

    Raises:
        InputError: an empty class, `max_margin` or `scale` not above 0, invalid weights.

    Reference: Cao et al., NeurIPS 2019, equations 11 to 13.
    """

    def __init__(
        self,
        class_counts: Sequence[int] | np.ndarray,
        max_margin: float = 0.5,
        scale: float = 30.0,
        class_weights: Sequence[float] | np.ndarray | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_weights, **{"name": "ldam", **kwargs})
        if not scale > 0:
            raise InputError(f"scale is {scale}; give a value above 0")
        self.class_counts = checked_counts(class_counts)
        self.margins = ldam_margins(class_counts, max_margin)
        self.max_margin = float(max_margin)
        self.scale = float(scale)

    def adjust(self, logits: Any) -> Any:
        return self.scale * logits

    def label_losses(self, logits: Any) -> Any:
        # The margin moves only the logit of the label, so each label has a softmax of its own. Its
        # loss is softplus(rest_y - z_y + margin_y), rest_y the log-sum-exp of the logits but z_y.
        # Only for the largest logit would the difference of sums lose digits: it is left out of a
        # sum instead, from which the others follow by adding it and subtracting their own.
        z = self.adjust(logits)
        top = ops.one_hot(ops.argmax(z, axis=-1), z.shape[-1], dtype="float32")
        largest = ops.sum(top * z, axis=-1, keepdims=True)
        rest_of_top = ops.logsumexp(ops.where(top > 0, _NEVER, z), axis=-1, keepdims=True)
        others = 1.0 + ops.exp(rest_of_top - largest)
        # 0 for the largest itself, where the branch is not taken: the log must stay finite there
        own = (1.0 - top) * ops.exp(z - largest)
        rest = ops.where(top > 0, rest_of_top, largest + ops.log(others - own))
        return ops.softplus(rest - z + self.scale * _constant(self.margins))

    def _vectors(self) -> dict[str, np.ndarray | None]:
        return {**super()._vectors(), "class_counts": self.class_counts}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_margin": self.max_margin, "scale": self.scale}


class _PriorLoss(ClassificationLoss):
    """Cross-entropy of logits shifted by a multiple of the log class frequencies."""

    def __init__(self, class_counts: Sequence[int] | np.ndarray, **kwargs: Any) -> None:
        super().__init__(None, **kwargs)
        self.class_counts = checked_counts(class_counts)
        self.log_prior = np.log(self.class_counts / self.class_counts.sum())

    def _vectors(self) -> dict[str, np.ndarray | None]:
        return {"class_counts": self.class_counts}


@keras.saving.register_keras_serializable(package="keras_git")
class BalancedSoftmax(_PriorLoss):
    """Cross-entropy of `logits + log(class_counts)`: the softmax carries the training prior.

    Args:
        class_counts: training images per class, `(C,)`, each 1 or more.
        **kwargs: `label_smoothing`, `reduction`, `name` and other arguments of `keras.losses.Loss`.

    Raises:
        InputError: an empty class, counts of another length than the logits.

    Reference: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS
    2020, equation 4.
    """

    def adjust(self, logits: Any) -> Any:
        return logits + _constant(self.log_prior)


@keras.saving.register_keras_serializable(package="keras_git")
class LogitAdjustment(_PriorLoss):
    """Cross-entropy of `logits + tau * log(prior)`, prior = the training class frequencies.

    Args:
        class_counts: training images per class, `(C,)`, each 1 or more.
        tau: strength, 0 or more; 0 is the cross-entropy, 1 the balanced softmax.
        **kwargs: `label_smoothing`, `reduction`, `name` and other arguments of `keras.losses.Loss`.

    Raises:
        InputError: an empty class, a negative `tau`, counts of another length than the logits.

    Reference: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 10.
    """

    def __init__(
        self, class_counts: Sequence[int] | np.ndarray, tau: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(class_counts, **kwargs)
        if not tau >= 0:
            raise InputError(f"tau is {tau}; give 0 or more")
        self.tau = float(tau)

    def adjust(self, logits: Any) -> Any:
        return logits + self.tau * _constant(self.log_prior)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "tau": self.tau}


@keras.saving.register_keras_serializable(package="keras_git")
class VS(_PriorLoss):
    """Vector-scaling loss: cross-entropy of `(n / n_max)^gamma * logits + tau * log(prior)`.

    The factors make the classifier that the data are separable for depend on the class sizes late
    in training; the shifts, those of `LogitAdjustment`, speed up its start. The defaults are the
    authors' for long-tailed CIFAR-10; for CIFAR-100 they give gamma 0.05 and tau 0.75.

    Args:
        class_counts: training images per class, `(C,)`, each 1 or more.
        gamma: exponent of the factors, 0 or more; 0 is the logit adjustment.
        tau: strength of the shifts, 0 or more.
        **kwargs: `label_smoothing`, `reduction`, `name` and other arguments of `keras.losses.Loss`.

    Raises:
        InputError: an empty class, a negative `gamma` or `tau`, counts of another length than the
            logits.

    Reference: Kini et al., "Label-Imbalanced and Group-Sensitive Classification under
    Overparameterization", NeurIPS 2021: the VS-loss, and the parameters of its experiments.
    """

    def __init__(
        self,
        class_counts: Sequence[int] | np.ndarray,
        gamma: float = 0.15,
        tau: float = 1.25,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_counts, **kwargs)
        for name, value in (("gamma", gamma), ("tau", tau)):
            if not (np.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}; give 0 or more")
        self.gamma, self.tau = float(gamma), float(tau)
        self.factors = (self.class_counts / self.class_counts.max()) ** self.gamma

    def adjust(self, logits: Any) -> Any:
        return _constant(self.factors) * logits + self.tau * _constant(self.log_prior)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma, "tau": self.tau}
