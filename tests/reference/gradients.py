"""Losses and gradients through the project's own training step, outside of ``fit``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.backend import StepModel
from keras_git.models import call_in_training


class GradientRecorder:
    """Stands in for an optimizer: keeps the gradients and changes nothing."""

    def __init__(self) -> None:
        self.gradients: list[Any] = []

    def apply(self, gradients: Any, variables: Any) -> None:
        """Records the gradients, in the order of the variables."""
        del variables
        self.gradients = list(gradients)


class Step:
    """A function of arrays that may read and assign the variables of a model.

    On JAX it is compiled as a whole, once: one by one, the operations of a gradient take minutes.

    Args:
        model: The model whose variables, optimizer and metrics the function may use.
        function: Takes and returns nested structures of tensors.
    """

    def __init__(self, model: StepModel, function: Callable[..., Any]):
        self.model = model
        self.function = function
        if keras.config.backend() == "jax":
            import jax

            self.variables = [v for group in model._groups(True) for v in group]
            self.compiled = jax.jit(self._pure)

    def _pure(self, values: Any, arguments: Any) -> Any:
        mapping = list(zip(self.variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            outputs = self.function(*arguments)
        return outputs, [scope.get_current_value(v) for v in self.variables]

    def __call__(self, *arguments: Any) -> Any:
        """Numpy arrays, in the structure that the function returns."""
        if keras.config.backend() == "jax":
            result, updated = self.compiled([v.value for v in self.variables], arguments)
            for variable, value in zip(self.variables, updated, strict=True):
                variable.assign(value)
        else:
            arguments = keras.tree.map_structure(keras.ops.convert_to_tensor, arguments)
            result = keras.tree.map_structure(keras.ops.stop_gradient, self.function(*arguments))
        return keras.tree.map_structure(keras.ops.convert_to_numpy, result)


class Passes(StepModel):
    """Passes through a network or layer, each compiled as a whole where that is needed.

    Args:
        network: built, with one input.
        inputs: an example; the shape of all that follow.
    """

    def __init__(self, network: Any, inputs: np.ndarray):
        super().__init__(seed=0)
        self.network = network
        self.inputs_variable = self.add_weight(
            shape=inputs.shape, initializer="zeros", dtype=inputs.dtype.name, name="inputs"
        )
        self.built = True
        self.compile(optimizer="sgd")
        self.optimizer.build(self.trainable_variables)
        self._passes = {
            training: Step(self, functools.partial(self._pass, training))
            for training in (True, False)
        }
        self._gradients_step = Step(self, self._gradients)

    def _pass(self, training: bool, inputs: Any) -> Any:
        return self.network(inputs, training=training)

    def _gradients(self, inputs: Any, factors: Any) -> Any:
        self.inputs_variable.assign(inputs)
        recorder = GradientRecorder()

        def objective() -> tuple[Any, dict[str, Any]]:
            outputs = self.network(ops.convert_to_tensor(self.inputs_variable), training=True)
            return ops.sum(factors * ops.square(outputs)), {"outputs": outputs}

        variables = [self.inputs_variable, *self.network.trainable_variables]
        logs = self.minimize(objective, variables, recorder)
        return logs["outputs"], recorder.gradients

    def train(self, inputs: np.ndarray) -> Any:
        """Outputs in training mode; updates running statistics."""
        return self._passes[True](inputs)

    def infer(self, inputs: np.ndarray) -> Any:
        """Outputs in inference mode."""
        return self._passes[False](inputs)

    def gradients(self, inputs: np.ndarray, factors: Any) -> tuple[Any, list[np.ndarray]]:
        """Outputs in training mode, and gradients of ``sum(factors * outputs ** 2)``.

        Returns:
            The outputs; the gradients for the inputs, then for the trainable variables in order.
        """
        return self._gradients_step(inputs, factors)


class _Objective(StepModel):
    def __init__(self, layer: Any, objective: Callable[[], Any]):
        super().__init__(seed=0)
        self.network, self.objective = layer, objective
        self.built = True
        self.compile(optimizer="sgd")
        self.optimizer.build(self.trainable_variables)

    def gradients(self) -> list[Any]:
        """Gradients of the objective for the trainable variables."""
        recorder = GradientRecorder()
        self.minimize(lambda: (self.objective(), {}), self.network.trainable_variables, recorder)
        return recorder.gradients


def gradients_of(objective: Callable[[], Any], layer: Any) -> np.ndarray:
    """Gradient of a scalar function without arguments for the layer's first trainable variable."""
    model = _Objective(layer, objective)
    return Step(model, model.gradients)()[0]


class Probe(StepModel):
    """A classifier, its loss and its gradients, one batch at a time."""

    def __init__(self, network: keras.Model, loss: keras.losses.Loss, optimizer: Any = "sgd"):
        super().__init__(seed=0)
        self.network = network
        self.loss_function = loss
        self.built = True
        self.compile(optimizer=optimizer)
        self.optimizer.build(self.trainable_variables)
        self._gradient_step = Step(self, self._gradients)
        self._apply_step = Step(self, self._apply)

    def _gradients(self, images: Any, labels: Any) -> Any:
        recorder = GradientRecorder()

        def objective() -> tuple[Any, dict[str, Any]]:
            logits = call_in_training(self.network, images)
            value = self.loss_function(labels, logits)
            return value, {"loss": value, "logits": logits}

        logs = self.minimize(objective, self.network.trainable_variables, recorder)
        return logs, recorder.gradients

    def _apply(self, *gradients: Any) -> Any:
        self.optimizer.apply(list(gradients), self.network.trainable_variables)
        return ()

    def gradients(self, images: Any, labels: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
        """One pass in training mode, which updates the running statistics and nothing else.

        Returns:
            Loss and logits, and the gradients in the order of the trainable variables.
        """
        return self._gradient_step(images, labels)

    def apply(self, gradients: list[np.ndarray]) -> None:
        """One update of the optimizer."""
        self._apply_step(*gradients)
