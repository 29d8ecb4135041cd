"""Mean and whitening matrix of the rows that a layer sees: of the batch, and running ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_git.backend import num_replicas, replica_mean
from keras_git.layers.inverse_sqrt import inverse_sqrt

# A set of features is constant, and so centred but not scaled, if its mean variance is below this,
# or below this part of its mean square: there, float32 holds nothing but rounding.
CONSTANT_VARIANCE = 1e-12


def mean_and_covariance(rows: Any, pivot: Any | None = None) -> tuple[Any, Any]:
    """Mean and biased covariance of each set of rows; of all replicas together under a strategy.

    The products are of rows less a pivot, so that a large mean does not cancel the covariance.

    Args:
        rows: `(S, M, F)`.
        pivot: `(S, F)`, any value near the mean that is the same on all replicas; by default the
            mean of the rows.

    Returns:
        `(S, F)` and `(S, F, F)`.
    """
    number = ops.cast(ops.shape(rows)[1], rows.dtype)
    if pivot is None:
        pivot = ops.mean(rows, axis=1)
    # neither result depends on the pivot, so its gradient is 0
    pivot = ops.stop_gradient(pivot)
    centred = rows - pivot[:, None, :]
    mean = ops.mean(centred, axis=1)
    moment = ops.transpose(centred, (0, 2, 1)) @ centred / number
    mean, moment = replica_mean([mean, moment])
    return mean + pivot, moment - mean[:, :, None] * mean[:, None, :]


def with_ridge(covariance: Any, mean: Any, epsilon: float, relative: bool) -> Any:
    """Covariance matrices `(S, F, F)` to be inverted.

    Args:
        covariance: positive semidefinite.
        mean: `(S, F)`, by whose size a constant set is told from a varying one.
        epsilon: what is added to the diagonal.
        relative: whether epsilon is a part of the mean variance of the set; a set that is constant
            then becomes the identity.
    """
    identity = ops.eye(covariance.shape[-1], dtype=covariance.dtype)
    if not relative:
        return covariance + epsilon * identity
    trace = ops.trace(covariance, axis1=-2, axis2=-1)[..., None, None]
    variance = trace / covariance.shape[-1]
    square = ops.mean(ops.square(ops.stop_gradient(mean)), axis=-1)[:, None, None]
    least = CONSTANT_VARIANCE * ops.maximum(square, 1.0)
    # NaN and infinity count as constant too; the mean carries them to the outputs
    alive = ops.logical_and(variance > least, variance < 1e30)
    return ops.where(alive, covariance + epsilon * variance * identity, identity)


class WhiteningStatistics(keras.layers.Layer):
    """State and update of the statistics of a whitened layer; a layer so that Keras saves it.

    Weights, none of them trained: `moving_mean` (S, F), `moving_whitening` (S, F, F), `steps` and
    `updates` (integers).

    Args:
        num_sets: S.
        num_features: F.
        epsilon: ridge; see `with_ridge`.
        iterations: of the inverse square root.
        momentum: share of the old running values in an update.
        update_interval: training steps from one update to the next; in between, the running
            values serve as constants.
        freeze_iterations: None, or the original's schedule: an update in the first f steps of
            every 10 f.
        differentiate: whether gradients flow through the statistics.
        original: the original's rules: an absolute ridge, running values that start from 0 and the
            identity and keep a part of that. Otherwise the first updates are plain averages.
    """

    def __init__(
        self,
        num_sets: int,
        num_features: int,
        *,
        epsilon: float,
        iterations: int,
        momentum: float,
        update_interval: int,
        freeze_iterations: int | None,
        differentiate: bool,
        original: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self._shape = num_sets, num_features
        self._epsilon, self._iterations, self._momentum = epsilon, iterations, momentum
        self._interval, self._freeze_iterations = update_interval, freeze_iterations
        self._differentiate, self._original = differentiate, original

    def build(self) -> None:
        sets, features = self._shape
        # Replicas hold the same values, since what is averaged is global.
        same = {"trainable": False, "autocast": False, "aggregation": "only_first_replica"}
        dtype = "float64" if self.variable_dtype == "float64" else "float32"
        self.moving_mean = self.add_weight(
            name="moving_mean", shape=(sets, features), initializer="zeros", dtype=dtype, **same
        )
        self.moving_whitening = self.add_weight(
            name="moving_whitening",
            shape=(sets, features, features),
            initializer=_identity,
            dtype=dtype,
            **same,
        )
        self.steps = self.add_weight(
            name="steps", shape=(), initializer="zeros", dtype="int32", **same
        )
        self.updates = self.add_weight(
            name="updates", shape=(), initializer="zeros", dtype="int32", **same
        )
        self.built = True

    def current(self, rows: Callable[[], Any], training: bool) -> tuple[Any, Any]:
        """What whitens the input of this call; in training, an update if one is due.

        Args:
            rows: gives the rows `(S, M, F)`; called only where they may be needed.
            training: False takes the running values.

        Returns:
            mean `(S, F)` and whitening matrices `(S, F, F)`.
        """
        running = (
            ops.convert_to_tensor(self.moving_mean),
            ops.convert_to_tensor(self.moving_whitening),
        )
        if not training or not self.trainable:
            return running
        always = self._interval == 1 and self._freeze_iterations is None
        if always:
            due = ops.convert_to_tensor(True)
            found = self._of_batch(rows(), running[0])
        else:
            due = self._due()
            # PyTorch writes to variables in place, which must not reach what a gradient needs
            running = tuple(map(ops.copy, running))
            if num_replicas() > 1:
                # no reduction over replicas can stand inside a condition
                batch = self._of_batch(rows(), running[0])
                found = tuple(ops.where(due, b, r) for b, r in zip(batch, running, strict=True))
            else:
                found = ops.cond(due, lambda: self._of_batch(rows(), running[0]), lambda: running)
        self._update(found, running, due)
        return found

    def _due(self) -> Any:
        step = ops.convert_to_tensor(self.steps)
        if self._freeze_iterations is not None:
            return (step + 1) % (10 * self._freeze_iterations) <= self._freeze_iterations
        return ops.equal(step % self._interval, 0)

    def _of_batch(self, rows: Any, moving_mean: Any) -> tuple[Any, Any]:
        if not self._differentiate:
            rows = ops.stop_gradient(rows)
        # Several replicas have no mean in common before the reduction; theirs is the running one.
        pivot = moving_mean if num_replicas() > 1 else None
        mean, covariance = mean_and_covariance(rows, pivot)
        covariance = with_ridge(covariance, mean, self._epsilon, relative=not self._original)
        return mean, inverse_sqrt(covariance, self._iterations)

    def _update(self, found: tuple[Any, Any], running: tuple[Any, Any], due: Any) -> None:
        self.steps.assign_add(1)
        dtype = self.moving_mean.dtype
        weight = ops.cast(1.0 - self._momentum, dtype)
        if not self._original:
            number = ops.cast(ops.convert_to_tensor(self.updates), dtype)
            weight = ops.maximum(weight, 1.0 / (number + 1.0))
        # One batch with NaN or infinity would stay in the running values forever.
        finite = ops.isfinite(sum(ops.sum(ops.stop_gradient(new)) for new in found))
        due = ops.logical_and(due, finite)
        variables = (self.moving_mean, self.moving_whitening)
        for variable, new, old in zip(variables, found, running, strict=True):
            # the sum of two products, exact for a weight of 1 whatever the old value is
            average = weight * ops.stop_gradient(new) + (1.0 - weight) * old
            variable.assign(ops.where(due, average, old))
        self.updates.assign_add(ops.cast(due, "int32"))


def _identity(shape: Any, dtype: Any = None) -> Any:
    # a copy for each set: PyTorch cannot write to a broadcast tensor
    return ops.tile(ops.eye(shape[-1], dtype=dtype)[None], (shape[0], 1, 1))
