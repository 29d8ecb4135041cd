"""Mean and whitening matrix of the features that a layer sees: of the batch, and running ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_git.backend import num_replicas, replica_mean
from keras_git.layers.blocks import Blocks, ChannelBlocks
from keras_git.layers.inverse_sqrt import inverse_sqrt

# A block is constant, and so centred but not scaled, if its mean variance is below this, or below
# this part of its mean square: there, float32 holds nothing but rounding.
CONSTANT_VARIANCE = 1e-12
# Above it, or not a number: the loss shows that, and the running statistics survive.
_LARGEST_VARIANCE = 1e30
# Rows whose mean is near enough to that of all.
_FEW = 64


class _Statistics(keras.layers.Layer):
    """State and update of statistics; a layer so that Keras saves it. Nothing in it is trained.

    Args:
        blocks: the division of the features into S sets of F.
        epsilon: ridge.
        iterations: of the inverse square root.
        momentum: share of the old running values in an update.
        update_interval: training steps from one whitening matrix to the next.
        freeze_iterations: None, or the original's schedule: matrices in the first f steps of every
            10 f.
        differentiate: whether gradients flow through the statistics.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        epsilon: float,
        iterations: int,
        momentum: float,
        update_interval: int,
        freeze_iterations: int | None,
        differentiate: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self._shape = blocks.num_sets, blocks.num_features
        self._epsilon, self._iterations, self._momentum = epsilon, iterations, momentum
        self._interval, self._freeze_iterations = update_interval, freeze_iterations
        self._differentiate = differentiate

    def _add(self, name: str, shape: tuple[int, ...], initializer: Any, dtype: str) -> Any:
        # Replicas hold the same values, since what is averaged is global.
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype=dtype,
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    @property
    def _wide(self) -> str:
        return "float64" if self.variable_dtype == "float64" else "float32"

    def _build_state(self) -> None:
        sets, features = self._shape
        self.moving_mean = self._add("moving_mean", self._shape, "zeros", self._wide)
        self.moving_whitening = self._add(
            "moving_whitening", (sets, features, features), _identity, self._wide
        )
        self.steps = self._add("steps", (), "zeros", "int32")
        self.updates = self._add("updates", (), "zeros", "int32")
        self.built = True

    def _due(self) -> Any:
        """Whether this step computes whitening matrices."""
        if self._interval == 1 and self._freeze_iterations is None:
            return True
        step = ops.convert_to_tensor(self.steps)
        if self._freeze_iterations is not None:
            return (step + 1) % (10 * self._freeze_iterations) <= self._freeze_iterations
        return ops.equal(step % self._interval, 0)

    def _value(self, variable: Any) -> Any:
        # A copy: PyTorch writes to variables in place, which must not reach what a gradient needs.
        return ops.copy(ops.convert_to_tensor(variable))

    def _move(self, variable: Any, new: Any, weight: Any, due: Any) -> None:
        # the sum of two products, exact for a weight of 1 whatever the old value is
        old = ops.convert_to_tensor(variable)
        average = weight * ops.stop_gradient(new) + (1.0 - weight) * old
        variable.assign(ops.where(due, average, old))


class WhiteningStatistics(_Statistics):
    """Statistics of the careful rules.

    Every training step takes mean and variance of the features from the batch; the whitening
    matrix is that of the features divided by their deviation. A later step may use the running one
    (`update_interval`), while mean and scale are always those of the batch: with stale ones,
    activations grow without bound at high learning rates.

    Weights: `moving_mean` (S, F), `moving_variance` (C,), `moving_whitening` (S, F, F), `steps`,
    `updates`. Averages are plain until they would forget faster than the momentum asks.

    Args:
        blocks: the division of the features.
        by_channel: whether features are divided by the deviation of their channel, or all by that
            of their block.
        **kwargs: of all statistics.
    """

    def __init__(self, blocks: ChannelBlocks, by_channel: bool, **kwargs: Any) -> None:
        super().__init__(blocks, **kwargs)
        self._blocks, self._by_channel = blocks, by_channel

    def build(self) -> None:
        self._build_state()
        channels = (self._blocks.num_channels,)
        self.moving_variance = self._add("moving_variance", channels, "ones", self._wide)

    def current(self, rows: Callable[[], Any], training: bool) -> tuple[Any, Any]:
        """What whitens the input of this call; in training the statistics are updated.

        Args:
            rows: gives the features of sampled positions, `(S, M, F)`.
            training: False takes the running values.

        Returns:
            mean `(S, F)` and matrices `(S, F, F)`, by which a kernel is multiplied.
        """
        old = self._value(self.moving_whitening)
        if not training or not self.trainable:
            mean = ops.convert_to_tensor(self.moving_mean)
            deviation, _ = self._deviation(mean, ops.convert_to_tensor(self.moving_variance))
            return mean, old / deviation[:, :, None]
        features = rows() if self._differentiate else ops.stop_gradient(rows())
        # Products are of differences to a pivot, so that a large mean does not cancel them: a few
        # rows' mean is near enough. Replicas have no mean in common before the one reduction.
        several = num_replicas() > 1
        pivot = self._value(self.moving_mean) if several else ops.mean(features[:, :_FEW], axis=1)
        pivot = ops.stop_gradient(pivot)
        moved = features - pivot[:, None, :]
        first = ops.mean(moved, axis=1)

        def whitening(second: Any) -> Any:
            covariance = second - first[:, :, None] * first[:, None, :]
            return self._inverse_root(covariance, deviation, alive)

        due = self._due()
        # no reduction over replicas can stand inside a condition
        second = _second_moments(moved) if several or due is True else None
        if several:
            first, second = replica_mean([first, second])
        if second is None:
            squares = ops.mean(ops.square(moved), axis=1)
        else:
            squares = ops.diagonal(second, axis1=1, axis2=2)
        mean = first + pivot
        variance = self._blocks.by_channel(squares - ops.square(first))
        deviation, alive = self._deviation(mean, variance)
        if due is True:
            matrix = whitening(second)
        elif several:
            matrix = ops.where(due, whitening(second), old)
        else:
            matrix = ops.cond(due, lambda: whitening(_second_moments(moved)), lambda: old)
        self._update(mean, variance, matrix, due)
        return mean, matrix / deviation[:, :, None]

    def _deviation(self, mean: Any, variance: Any) -> tuple[Any, Any]:
        """Of each feature `(S, F)`, never near 0; and whether a set is alive `(S, 1)`."""
        by_block = ops.reshape(variance, (self._shape[0], -1))
        whole = ops.mean(by_block, axis=1, keepdims=True)
        squares = ops.mean(ops.square(ops.stop_gradient(mean)), axis=1, keepdims=True)
        size = ops.maximum(squares, 1.0)
        alive = ops.logical_and(whole > CONSTANT_VARIANCE * size, whole < _LARGEST_VARIANCE)
        if self._by_channel:
            floored = ops.maximum(by_block, 0.0) + self._epsilon * whole
        else:
            floored = ops.broadcast_to(whole, ops.shape(by_block))
        deviation = ops.sqrt(ops.where(alive, floored, ops.ones_like(floored)))
        return self._blocks.spread(ops.reshape(deviation, (-1,))), alive

    def _inverse_root(self, covariance: Any, deviation: Any, alive: Any) -> Any:
        """Whitening matrices of the features divided by their deviation."""
        correlation = covariance / (deviation[:, :, None] * deviation[:, None, :])
        identity = ops.eye(covariance.shape[-1], dtype=covariance.dtype)
        correlation = correlation + self._epsilon * identity
        return inverse_sqrt(ops.where(alive[:, :, None], correlation, identity), self._iterations)

    def _update(self, mean: Any, variance: Any, matrix: Any, due: Any) -> None:
        def weight(number: Any) -> Any:
            count = ops.cast(ops.convert_to_tensor(number), self._wide)
            return ops.maximum(1.0 - self._momentum, 1.0 / (count + 1.0))

        # One batch with NaN or infinity would stay in the running values forever.
        finite = ops.isfinite(ops.sum(ops.stop_gradient(mean)) + ops.sum(variance))
        scale = weight(self.steps)
        self._move(self.moving_mean, mean, scale, finite)
        self._move(self.moving_variance, variance, scale, finite)
        due = ops.logical_and(due, finite)
        self._move(self.moving_whitening, matrix, weight(self.updates), due)
        self.updates.assign_add(ops.cast(due, "int32"))
        self.steps.assign_add(1)


class OriginalStatistics(_Statistics):
    """Statistics of the original program: an absolute ridge, running values that keep a rest of
    their start at 0 and the identity, stale values as they are between updates.

    Weights: `moving_mean` (S, F), `moving_whitening` (S, F, F), `steps`, `updates`.
    """

    def build(self) -> None:
        self._build_state()

    def current(self, rows: Callable[[], Any], training: bool) -> tuple[Any, Any]:
        """As in `WhiteningStatistics`."""
        mean, matrix = self._value(self.moving_mean), self._value(self.moving_whitening)
        if not training or not self.trainable:
            return mean, matrix

        def of_batch() -> tuple[Any, Any]:
            features = rows() if self._differentiate else ops.stop_gradient(rows())
            several = num_replicas() > 1
            # as in `WhiteningStatistics`
            pivot = ops.stop_gradient(mean if several else ops.mean(features, axis=1))
            moved = features - pivot[:, None, :]
            first, product = replica_mean([ops.mean(moved, axis=1), _second_moments(moved)])
            product = product - first[:, :, None] * first[:, None, :]
            ridge = self._epsilon * ops.eye(product.shape[-1], dtype=product.dtype)
            return first + pivot, inverse_sqrt(product + ridge, self._iterations)

        due = self._due()
        old = mean, matrix
        if due is True:
            found = of_batch()
        elif num_replicas() > 1:
            found = tuple(ops.where(due, a, b) for a, b in zip(of_batch(), old, strict=True))
        else:
            found = ops.cond(due, of_batch, lambda: old)
        due = ops.logical_and(due, ops.isfinite(ops.sum(ops.stop_gradient(found[0]))))
        for variable, new in zip((self.moving_mean, self.moving_whitening), found, strict=True):
            self._move(variable, new, 1.0 - self._momentum, due)
        self.updates.assign_add(ops.cast(due, "int32"))
        self.steps.assign_add(1)
        return found[0], found[1]


def _second_moments(rows: Any) -> Any:
    """Mean product of the features of rows `(S, M, F)` with each other, `(S, F, F)`."""
    number = ops.cast(ops.shape(rows)[1], rows.dtype)
    half = ops.transpose(ops.stop_gradient(rows), (0, 2, 1)) @ rows / number
    # The gradient of both factors as one product with the rows instead of two.
    return half + ops.transpose(half, (0, 2, 1)) - ops.stop_gradient(half)


def _identity(shape: Any, dtype: Any = None) -> Any:
    # a copy for each set: PyTorch cannot write to a broadcast tensor
    return ops.tile(ops.eye(shape[-1], dtype=dtype)[None], (shape[0], 1, 1))
