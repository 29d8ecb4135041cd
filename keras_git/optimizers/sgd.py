"""Stochastic gradient descent with coupled L2 decay and the learning rate outside the velocity."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_git.optimizers._common import check_fraction, check_l2, check_no_decoupled_decay


@keras.saving.register_keras_serializable(package="keras_git")
class SGD(keras.optimizers.Optimizer):
    """SGD with momentum in the form of the paper.

    g <- g + l2 * w;  v <- momentum * v + g;  w <- w - learning_rate * v.

    The learning rate multiplies the whole velocity, so a drop acts at once; Keras' own SGD folds
    the rate into the velocity, where the old one lingers for tens of steps. The decay is coupled
    (part of the gradient) and acts on every variable, biases and normalizations included, but those
    named to `exclude_from_weight_decay`.

    Args:
        learning_rate: Float, schedule, or callable without arguments.
        momentum: In [0, 1).
        l2: Coefficient of the L2 decay, at least 0.
        name: Name of the optimizer.
        **kwargs: Options of every Keras optimizer, such as clipnorm or
            gradient_accumulation_steps; not weight_decay, which is decoupled.

    Raises:
        InputError: for values out of range, or weight_decay.

    Reference:
        Sutskever et al. (2013), "On the importance of initialization and momentum in deep
        learning", section 2, with the rate outside the velocity.
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.9,
        l2: float = 0.0,
        *,
        name: str = "sgd",
        **kwargs: Any,
    ):
        check_no_decoupled_decay(kwargs)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = check_fraction("momentum", momentum)
        self.l2 = check_l2(l2)

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates one velocity per variable."""
        if self.built:
            return
        super().build(variables)
        self.velocities = [
            self.add_variable_from_reference(variable, name="velocity") for variable in variables
        ]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable and its velocity."""
        # the lookup of the base class: on TensorFlow it is given the backend's variable
        velocity = self.velocities[self._get_variable_index(variable)]
        dtype = keras.backend.standardize_dtype(variable.dtype)
        gradient = ops.cast(gradient, dtype)
        if self.l2 and self._use_weight_decay(variable):
            gradient = gradient + self.l2 * ops.convert_to_tensor(variable)
        new_velocity = self.momentum * ops.convert_to_tensor(velocity) + gradient
        self.assign(velocity, new_velocity)
        self.assign_sub(variable, ops.cast(learning_rate, dtype) * new_velocity)

    def get_config(self) -> dict[str, Any]:
        """Settings to rebuild the optimizer from."""
        config = super().get_config()
        config.update(momentum=self.momentum, l2=self.l2)
        return config
