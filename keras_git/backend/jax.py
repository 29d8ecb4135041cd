"""JAX: the only stateless code of the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras

from keras_git.backend.common import (
    AugmentedModelBase,
    StepModelBase,
    sharpness_perturbations,
)


class StepModel(StepModelBase):
    def _groups(self, training: bool) -> list[list[Any]]:
        optimizer = [self.optimizer.variables] if training else []
        return [
            self.trainable_variables,
            self.non_trainable_variables,
            *optimizer,
            self.metrics_variables,
        ]

    def _stateless(self, state: Any, data: Any, training: bool) -> Any:
        groups = self._groups(training)
        pairs = [
            pair
            for variables, values in zip(groups, state, strict=True)
            for pair in zip(variables, values, strict=True)
        ]
        with keras.StatelessScope(state_mapping=pairs) as scope:
            logs = self._run(data, training)
        return logs, tuple([scope.get_current_value(v) for v in group] for group in groups)

    def train_step(self, state: Any, data: Any) -> Any:
        return self._stateless(state, data, training=True)

    def test_step(self, state: Any, data: Any) -> Any:
        return self._stateless(state, data, training=False)

    def minimize(
        self,
        loss_function: Callable[[], tuple[Any, dict[str, Any]]],
        variables: Sequence[Any],
        optimizer: Any,
    ) -> dict[str, Any]:
        """One update of `variables` by the gradient of `loss_function() -> (loss, logs)`."""
        wanted = {id(v) for v in variables}
        others = [v for group in self._groups(True) for v in group if id(v) not in wanted]
        # An inner scope does not see the outer one, so everything has to be handed in.
        fixed = [(v, v.value) for v in others]

        def pure(values: Any) -> Any:
            mapping = [*zip(variables, values, strict=True), *fixed]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                loss, logs = loss_function()
            return loss, (logs, [scope.get_current_value(v) for v in others])

        (_, (logs, updated)), gradients = jax.value_and_grad(pure, has_aux=True)(
            [v.value for v in variables]
        )
        for variable, value in zip(others, updated, strict=True):  # statistics, seeds, metrics
            variable.assign(value)
        optimizer.apply(gradients, variables)
        return logs


class AugmentedModel(AugmentedModelBase):
    def train_step(self, state: Any, data: Any) -> Any:
        trainable, non_trainable, *rest = state
        variables = [*self.trainable_variables, *self.non_trainable_variables]
        mapping = zip(variables, [*trainable, *non_trainable], strict=True)
        with keras.StatelessScope(state_mapping=list(mapping)) as scope:
            data = self._augmented(data)
        non_trainable = [scope.get_current_value(v) for v in self.non_trainable_variables]
        return super().train_step((trainable, non_trainable, *rest), data)

    def compute_loss_and_updates(
        self, trainable_variables: Any, *args: Any, training: bool = False, **kwargs: Any
    ) -> Any:
        """What the stock step differentiates: for a radius, the loss at the moved weights, and
        all updates and predictions of the pass before."""

        def loss_and_updates(values: Any) -> Any:
            stock = super(AugmentedModel, self).compute_loss_and_updates
            return stock(values, *args, training=training, **kwargs)

        if not (training and self.sharpness_radius):
            return loss_and_updates(trainable_variables)
        # without tracers, or the second derivative would be traced for nothing
        weights = [jax.lax.stop_gradient(value) for value in trainable_variables]
        (_, updates), gradients = jax.value_and_grad(loss_and_updates, has_aux=True)(weights)
        steps = sharpness_perturbations(gradients, self.sharpness_radius)
        moved = [w + e for w, e in zip(trainable_variables, steps, strict=True)]
        loss, _ = loss_and_updates(moved)
        return loss, updates


def compiled(function: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    """`function(*tensors)` compiled by XLA; it may read `variables` but not assign them."""
    variables = list(variables)

    @jax.jit
    def pure(values: Any, *tensors: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*tensors)

    def call(*tensors: Any) -> Any:
        return pure([v.value for v in variables], *tensors)

    return call


def num_replicas() -> int:
    """Parts into which a batch is divided; the devices of `keras.distribution.DataParallel`."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else int(distribution.device_mesh.devices.size)


def replica_mean(tensors: list[Any]) -> list[Any]:
    """Means over replicas: arrays are global here, the compiler puts in the reductions."""
    return tensors


def separate_replicas() -> int:
    """Copies of a step that each see a part of the batch only: arrays are global here."""
    return 1


def rows_of_replica(draw: Callable[[Any], Any], number: Any) -> Any:
    """`draw(number)`, since `number` rows are all of the batch."""
    return draw(number)


def num_devices() -> int:
    """Devices for data-parallel training: those of this process."""
    return int(jax.local_device_count())


def data_parallel_scope() -> Any:
    """Context in which variables are on all devices and batches divided among them."""
    devices = [f"{device.platform}:{device.id}" for device in jax.local_devices()]
    return keras.distribution.DataParallel(devices=devices).scope()
