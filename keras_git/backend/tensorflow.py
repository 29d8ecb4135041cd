"""TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_git.backend.common import AugmentedModelBase, StatefulStepModelBase


class StepModel(StatefulStepModelBase):
    def minimize(
        self,
        loss_function: Callable[[], tuple[Any, dict[str, Any]]],
        variables: Sequence[Any],
        optimizer: Any,
    ) -> dict[str, Any]:
        """One update of `variables` by the gradient of `loss_function() -> (loss, logs)`."""
        tensors = [v.value for v in variables]
        # A Keras variable with trainable=False is still watched by default.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            loss, logs = loss_function()
        optimizer.apply(tape.gradient(loss, tensors), variables)
        return logs


class AugmentedModel(AugmentedModelBase):
    def train_step(self, data: Any) -> Any:
        return super().train_step(self._augmented(data))


def compiled(function: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    """`function(*tensors)` compiled by XLA; it may read `variables` but not assign them."""
    del variables  # captured by the graph
    graph = tf.function(function, jit_compile=True, autograph=False)

    def call(*tensors: Any) -> Any:
        # Python numbers and arrays would be retraced for every value.
        return graph(*keras.tree.map_structure(tf.convert_to_tensor, tensors))

    return call


def num_replicas() -> int:
    """Parts into which a batch is divided; the replicas of `tf.distribute.MirroredStrategy`."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else int(context.num_replicas_in_sync)


def replica_mean(tensors: list[Any]) -> list[Any]:
    """Means over replicas, one reduction for all tensors; gradients pass through."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensors
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, tensors)
