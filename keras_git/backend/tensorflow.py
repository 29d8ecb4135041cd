"""TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_git.backend.common import (
    SeededModel,
    StatefulAugmentedModelBase,
    StatefulStepModelBase,
)
from keras_git.errors import InputError


class _DividedBatches(SeededModel):
    """Gives each replica of a strategy its part of every batch of `fit`."""

    def fit(
        self, x: Any, y: Any = None, batch_size: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        number = self.distribute_strategy.num_replicas_in_sync
        if number > 1:
            if isinstance(x, tf.data.Dataset):
                data = _divided(x, number)
                x = self.distribute_strategy.distribute_datasets_from_function(lambda _: data)
            elif all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x)):
                _check_division(len(keras.tree.flatten(x)[0]), batch_size or 32, number)
            elif not isinstance(x, tf.distribute.DistributedDataset):
                # Keras would divide all arrays of a batch as if they had the length of the first.
                raise InputError(
                    "data-parallel training on TensorFlow takes a tf.data.Dataset or arrays, not a "
                    f"{type(x).__name__}: use pipeline='tf_data'"
                )
        return super().fit(x, y, batch_size, *args, **kwargs)


def _check_division(images: int, batch_size: int, number: int) -> None:
    for size in (min(batch_size, images), images % batch_size):
        if size % number:
            raise InputError(
                f"a batch of {size} images cannot be divided evenly among {number} devices: use "
                f"batches of a multiple of {number}, and leave a smaller last one out"
            )


def _divided(dataset: Any, number: int) -> Any:
    """Each batch as `number` elements, one after the other: the rows r, r + number, ... for r.

    Not halves: a GITClassifier fills the last places of each part with generated images, and so
    they are those that it fills on one device. Strategies' own division takes halves, and needs
    arrays of one length, which images and sources of a GITClassifier do not have.
    """

    def parts(*element: Any) -> Any:
        def of(rows: Any) -> Any:
            size = tf.shape(rows)[0]
            message = (
                f"a batch cannot be divided evenly among {number} devices: use batches of a "
                f"multiple of {number} images, and leave a smaller last one out"
            )
            with tf.control_dependencies([tf.debugging.assert_equal(size % number, 0, message)]):
                return tf.stack([rows[r::number] for r in range(number)])

        batch = element if isinstance(dataset.element_spec, tuple) else element[0]
        return tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(of, batch))

    return dataset.flat_map(parts).prefetch(2 * number)


class StepModel(_DividedBatches, StatefulStepModelBase):
    def minimize(
        self,
        loss_function: Callable[[], tuple[Any, dict[str, Any]]],
        variables: Sequence[Any],
        optimizer: Any,
    ) -> dict[str, Any]:
        """One update of `variables` by the gradient of `loss_function() -> (loss, logs)`.

        The loss is a mean over the rows of the batch; replicas have as many rows each.
        """
        tensors = [v.value for v in variables]
        # A Keras variable with trainable=False is still watched by default.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            loss, logs = loss_function()
            loss = loss / num_replicas()  # the optimizer adds up the gradients of all replicas
        optimizer.apply(tape.gradient(loss, tensors), variables)
        return logs


class AugmentedModel(_DividedBatches, StatefulAugmentedModelBase):
    def _loss_and_gradients(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        return loss, y_pred, tape.gradient(scaled, self.trainable_weights)


def compiled(function: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    """`function(*tensors)` compiled by XLA; it may read `variables` but not assign them."""
    del variables  # captured by the graph
    graph = tf.function(function, jit_compile=True, autograph=False)

    def call(*tensors: Any) -> Any:
        # Python numbers and arrays would be retraced for every value.
        return graph(*keras.tree.map_structure(tf.convert_to_tensor, tensors))

    return call


def repeated_steps(
    models: Sequence[Any], batch: Callable[[Any, Any], Any]
) -> Callable[[Any, Any, int, int], None]:
    """Training steps of several models, as many as wanted in one call; one model after the other.

    See the function of this name for JAX. A step is compiled by XLA if Keras would do so.
    """
    if any(model.distribute_strategy.num_replicas_in_sync > 1 for model in models):
        raise InputError("images on the device need a single device: use fit without data_parallel")

    def steps_of(model: Any) -> Callable[..., None]:
        @tf.function(jit_compile=model.jit_compile, autograph=False)
        def step(table: Any, plan: Any) -> None:
            model.train_step(batch(table, plan))

        @tf.function(autograph=False)
        def steps(table: Any, plan: Any, start: Any, stop: Any) -> None:
            def body(i: Any) -> Any:
                step(table, tf.nest.map_structure(lambda part: part[i], plan))
                return i + 1

            tf.while_loop(lambda i: i < stop, body, [start], parallel_iterations=1)

        return steps

    functions = [steps_of(model) for model in models]

    def run(table: Any, plans: Any, start: int, stop: int) -> None:
        for function, plan in zip(functions, plans, strict=True):
            plan = tf.nest.map_structure(tf.convert_to_tensor, plan)
            function(table, plan, tf.constant(start), tf.constant(stop))

    return run


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


def separate_replicas() -> int:
    """Copies of a step that each see a part of the batch only: all replicas."""
    return num_replicas()


def rows_of_replica(draw: Callable[[Any], Any], number: Any) -> Any:
    """What `draw` gives for the rows of this replica, out of those of the whole batch.

    Replicas have the same seeds: each draws for the whole batch and takes its part.

    Args:
        draw: from a number of rows to a tensor of as many.
        number: rows of this replica.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return draw(number)
    replicas = context.num_replicas_in_sync
    return draw(number * replicas)[context.replica_id_in_sync_group :: replicas]


def _devices() -> list[str]:
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name for device in found]


def num_devices() -> int:
    """Devices for data-parallel training: GPUs, or else CPUs."""
    return len(_devices())


def data_parallel_scope() -> Any:
    """Context in which variables are on all devices; `fit` divides batches among them."""
    return _strategy().scope()


@functools.cache
def _strategy() -> Any:
    # One for the process: the reductions of a second one would be taken for those of the first.
    return tf.distribute.MirroredStrategy(_devices())
