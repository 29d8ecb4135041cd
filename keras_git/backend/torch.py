"""PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch

from keras_git.backend.common import StatefulAugmentedModelBase, StatefulStepModelBase
from keras_git.errors import InputError


class StepModel(StatefulStepModelBase):
    def minimize(
        self,
        loss_function: Callable[[], tuple[Any, dict[str, Any]]],
        variables: Sequence[Any],
        optimizer: Any,
    ) -> dict[str, Any]:
        """One update of `variables` by the gradient of `loss_function() -> (loss, logs)`."""
        loss, logs = loss_function()
        gradients = torch.autograd.grad(loss, [v.value for v in variables], allow_unused=True)
        with torch.no_grad():
            optimizer.apply(gradients, variables)
        return keras.tree.map_structure(lambda tensor: tensor.detach(), logs)


class AugmentedModel(StatefulAugmentedModelBase):
    def _augmented(self, data: Any) -> Any:
        with torch.no_grad():
            return super()._augmented(data)

    def _loss_and_gradients(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        y_pred = self(x, training=True)
        loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
        values = [v.value for v in self.trainable_weights]
        gradients = torch.autograd.grad(self.optimizer.scale_loss(loss), values, allow_unused=True)
        return loss, y_pred, gradients

    def _apply_gradients(self, gradients: Any) -> None:
        with torch.no_grad():
            super()._apply_gradients(gradients)


def compiled(function: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    """`function(*tensors)` without gradients; `torch.compile` is slower than eager here."""
    del variables

    def call(*tensors: Any) -> Any:
        with torch.no_grad():
            return function(*keras.tree.map_structure(keras.ops.convert_to_tensor, tensors))

    return call


def repeated_steps(
    models: Sequence[Any], batch: Callable[[Any, Any], Any]
) -> Callable[[Any, Any, int, int], None]:
    """Training steps of several models, one after the other, on data that lie on the device.

    See the function of this name for JAX.
    """

    def run(table: Any, plans: Any, start: int, stop: int) -> None:
        for model, plan in zip(models, plans, strict=True):
            plan = keras.tree.map_structure(keras.ops.convert_to_tensor, plan)
            for i in range(start, stop):
                model.train_step(batch(table, keras.tree.map_structure(lambda a: a[i], plan)))  # noqa: B023

    return run


def num_replicas() -> int:
    """Parts into which a batch is divided: Keras does not divide it here."""
    return 1


def replica_mean(tensors: list[Any]) -> list[Any]:
    """Means over replicas, of which there is one."""
    return tensors


def separate_replicas() -> int:
    """Copies of a step that each see a part of the batch only: there is one, which sees all."""
    return 1


def rows_of_replica(draw: Callable[[Any], Any], number: Any) -> Any:
    """`draw(number)`, since `number` rows are all of the batch."""
    return draw(number)


def num_devices() -> int:
    """Raises InputError: Keras does not divide batches among devices on PyTorch."""
    raise InputError(
        "data-parallel training is not possible on PyTorch, where Keras does not divide batches "
        "among devices: use KERAS_BACKEND=jax or KERAS_BACKEND=tensorflow"
    )


def data_parallel_scope() -> Any:
    """Raises InputError, see `num_devices`."""
    return num_devices()
