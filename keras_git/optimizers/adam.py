"""Adam with coupled L2 decay and epsilon beside the corrected root."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_git.errors import InputError
from keras_git.optimizers._common import check_fraction, check_l2, check_no_decoupled_decay


@keras.saving.register_keras_serializable(package="keras_git")
class Adam(keras.optimizers.Optimizer):
    """Adam in the form of the paper.

    g <- g + l2 * w;  m <- beta_1 m + (1 - beta_1) g;  v <- beta_2 v + (1 - beta_2) g^2;
    w <- w - learning_rate * m_hat / (sqrt(v_hat) + epsilon), with the bias-corrected m_hat, v_hat.

    Keras' own Adam decouples the decay and adds epsilon to the uncorrected root, which is another
    epsilon in the first steps.

    Args:
        learning_rate: Float, schedule, or callable without arguments.
        beta_1: Decay of the first moment, in [0, 1).
        beta_2: Decay of the second moment, in [0, 1).
        epsilon: Added to the corrected root, above 0.
        l2: Coefficient of the L2 decay, at least 0.
        name: Name of the optimizer.
        **kwargs: Options of every Keras optimizer, such as clipnorm or
            gradient_accumulation_steps; not weight_decay, which is decoupled.

    Raises:
        InputError: for values out of range, or weight_decay.

    Reference:
        Kingma and Ba (2015), "Adam: a method for stochastic optimization", algorithm 1.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-4,
        beta_1: float = 0.5,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        l2: float = 0.0,
        *,
        name: str = "adam",
        **kwargs: Any,
    ):
        check_no_decoupled_decay(kwargs)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.beta_1 = check_fraction("beta_1", beta_1)
        self.beta_2 = check_fraction("beta_2", beta_2)
        if not epsilon > 0.0:
            raise InputError(f"epsilon is {epsilon!r}; it must be above 0")
        self.epsilon = float(epsilon)
        self.l2 = check_l2(l2)

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the two moments of every variable."""
        if self.built:
            return
        super().build(variables)
        self.first_moments = [
            self.add_variable_from_reference(variable, name="first_moment")
            for variable in variables
        ]
        self.second_moments = [
            self.add_variable_from_reference(variable, name="second_moment")
            for variable in variables
        ]

    def _correction(self, beta: float, dtype: str) -> Any:
        """1 - beta^t, by expm1: in float32 the plain difference loses digits at small t."""
        if beta == 0.0:
            return ops.cast(1.0, dtype)
        step = ops.cast(self.iterations + 1, "float32")
        return ops.cast(-ops.expm1(step * math.log(beta)), dtype)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable and its moments."""
        # the lookup of the base class: on TensorFlow it is given the backend's variable
        slot = self._get_variable_index(variable)
        dtype = keras.backend.standardize_dtype(variable.dtype)
        gradient = ops.cast(gradient, dtype)
        if self.l2:
            gradient = gradient + self.l2 * ops.convert_to_tensor(variable)
        first, second = self.first_moments[slot], self.second_moments[slot]
        mean = self.beta_1 * ops.convert_to_tensor(first) + (1.0 - self.beta_1) * gradient
        square = self.beta_2 * ops.convert_to_tensor(second) + (1.0 - self.beta_2) * ops.square(
            gradient
        )
        self.assign(first, mean)
        self.assign(second, square)
        rate = ops.cast(learning_rate, dtype) / self._correction(self.beta_1, dtype)
        root = ops.sqrt(square / self._correction(self.beta_2, dtype))
        self.assign_sub(variable, rate * mean / (root + self.epsilon))

    def get_config(self) -> dict[str, Any]:
        """Settings to rebuild the optimizer from."""
        config = super().get_config()
        config.update(beta_1=self.beta_1, beta_2=self.beta_2, epsilon=self.epsilon, l2=self.l2)
        return config
