"""What the three backends share: state of the random generator, the contracts of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


class SeededModel(keras.Model):
    """A model that owns one `SeedGenerator` whose state is saved with the weights.

    Keras saves weights and optimizers but not the state of seed generators: without this a
    resumed run would repeat its first random draws.
    """

    def __init__(self, *, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = int(seed)
        self.seed_generator = keras.random.SeedGenerator(self.seed)

    def save_own_variables(self, store: Any) -> None:
        store["seed_generator_state"] = keras.ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        self.seed_generator.state.assign(store["seed_generator_state"])

    def make_train_function(self, force: bool = False) -> Any:
        # The TensorFlow trainer builds the optimizer only inside the first step, too late for a
        # step that hands groups of variables to inner optimizers, or for loading a checkpoint.
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)


class StepModelBase(SeededModel):
    """Contract: a subclass writes `step`, the backend writes `train_step` and `minimize`."""

    def step(self, data: Any, training: bool) -> dict[str, Any]:
        """Run one batch and return `{metric name: scalar}`; ordinary stateful Keras code."""
        raise NotImplementedError(f"{type(self).__name__} must define step(data, training)")

    def _run(self, data: Any, training: bool) -> dict[str, Any]:
        logs = self.step(data, training)
        if training and isinstance(self.optimizer, keras.optimizers.MultiOptimizer):
            # Inner optimizers count their own updates; callbacks read the outer counter.
            self.optimizer.iterations.assign_add(1)
        return logs


class StatefulStepModelBase(StepModelBase):
    """The steps of the backends whose trainers work on variables in place (all but JAX)."""

    def train_step(self, data: Any) -> Any:
        return self._run(data, training=True)

    def test_step(self, data: Any) -> Any:
        return self._run(data, training=False)


def sharpness_perturbations(gradients: Sequence[Any], radius: float) -> list[Any]:
    """The step of length `radius` along the gradients, radius g / |g|; None where there is none.

    Reference: Foret et al., ICLR 2021, equation 2 for p = 2.
    """
    squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients if g is not None]
    scale = radius / ops.maximum(ops.sqrt(sum(squares)), 1e-12)
    return [None if g is None else ops.cast(scale, g.dtype) * g for g in gradients]


class AugmentedModelBase(SeededModel):
    """Contract: a subclass writes `augment`, the backend calls it before the stock step.

    Attributes:
        sharpness_radius: 0.0 for the stock step; above, the gradient is taken at that distance
            along the gradient, both for the same state of statistics and random numbers, and
            what the step changes and logs besides the weights is what its first pass did.
    """

    sharpness_radius = 0.0

    def augment(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Return the `(x, y, sample_weight)` that the stock training step is to see."""
        raise NotImplementedError(f"{type(self).__name__} must define augment(x, y, sample_weight)")

    def _augmented(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x, y, sample_weight = self.augment(x, y, sample_weight)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)


class StatefulAugmentedModelBase(AugmentedModelBase):
    """The steps of the backends whose trainers work on variables in place (all but JAX)."""

    def train_step(self, data: Any) -> Any:
        data = self._augmented(data)
        return self._sharpness_step(data) if self.sharpness_radius else super().train_step(data)

    def _loss_and_gradients(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Loss, predictions, and gradients by the trainable variables, of one pass."""
        raise NotImplementedError

    def _apply_gradients(self, gradients: Any) -> None:
        self.optimizer.apply(gradients, self.trainable_variables)

    def _sharpness_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weights, state = self.trainable_variables, self.non_trainable_variables
        before = _copies(state)
        loss, y_pred, gradients = self._loss_and_gradients(x, y, sample_weight)
        after, start = _copies(state), _copies(weights)
        _assign(state, before)
        steps = sharpness_perturbations(gradients, self.sharpness_radius)
        _assign(weights, [w if e is None else w + e for w, e in zip(start, steps, strict=True)])
        _, _, gradients = self._loss_and_gradients(x, y, sample_weight)
        _assign(weights, start)
        _assign(state, after)
        self._apply_gradients(gradients)
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        tracker.update_state(loss, sample_weight=ops.shape(keras.tree.flatten(x)[0])[0])
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def _copies(variables: Sequence[Any]) -> list[Any]:
    return [ops.stop_gradient(ops.copy(ops.convert_to_tensor(v))) for v in variables]


def _assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
