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
from keras_git.errors import InputError


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


def repeated_steps(
    models: Sequence[Any], batch: Callable[[Any, Any], Any]
) -> Callable[[Any, Any, int, int], None]:
    """Training steps of several models, as many as wanted in one compiled call.

    One compilation for any number of steps. Several models train together: the compiler sees one
    step with an additional axis (`jax.vmap`).

    Args:
        models: built and compiled, all alike but for the values of their variables.
        batch: from a table and the plan of one step to the data of `train_step`.

    Returns:
        `run(table, plans, start, stop)`: steps `start` to `stop` of each model by its entry of
        `plans`, trees of arrays whose first axis is the step. Weights, optimizers and metrics of
        the models are changed.
    """
    if num_replicas() > 1:
        raise InputError("images on the device need a single device: use fit without data_parallel")

    def groups(model: Any) -> tuple[list[Any], ...]:
        return (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )

    def step(state: Any, table: Any, plan: Any) -> Any:
        return models[0].train_step(state, batch(table, plan))[1]

    def together(states: Any, shared: Any, table: Any, plans: Any, start: Any, stop: Any) -> Any:
        # What the models have in common, such as a frozen generator, gets no additional axis.
        axes = jax.tree.map(lambda same: None if same else 0, shared)
        state = jax.tree.map(
            lambda same, *values: values[0] if same else jax.numpy.stack(values), shared, *states
        )
        many = jax.vmap(step, in_axes=(axes, None, 0), out_axes=axes)
        stacked = jax.tree.map(lambda *parts: jax.numpy.stack(parts), *plans)

        def body(i: Any, state: Any) -> Any:
            return many(state, table, jax.tree.map(lambda part: part[:, i], stacked))

        state = jax.lax.fori_loop(start, stop, body, state)
        return [
            jax.tree.map(lambda same, value: value if same else value[m], shared, state)  # noqa: B023
            for m in range(len(states))
        ]

    def alone(states: Any, table: Any, plans: Any, start: Any, stop: Any) -> Any:
        def body(i: Any, state: Any) -> Any:
            return step(state, table, jax.tree.map(lambda part: part[i], plans[0]))

        return [jax.lax.fori_loop(start, stop, body, states[0])]

    variables = [groups(model) for model in models]
    shared = jax.tree.map(
        lambda *same: all(v is same[0] for v in same),
        *variables,
        is_leaf=lambda v: hasattr(v, "assign"),
    )
    if len(models) == 1:
        compiled_steps = jax.jit(alone)
    else:
        compiled_steps = jax.jit(lambda states, *arguments: together(states, shared, *arguments))

    def run(table: Any, plans: Any, start: int, stop: int) -> None:
        states = [tuple([v.value for v in group] for group in groups(model)) for model in models]
        # Not donated: whatever interrupts the call, the variables keep their values.
        states = compiled_steps(states, table, plans, start, stop)
        for model, state in zip(models, states, strict=True):
            for group, values in zip(groups(model), state, strict=True):
                for variable, value in zip(group, values, strict=True):
                    variable.assign(value)

    return run


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
