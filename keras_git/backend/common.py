"""What the three backends share: state of the random generator, the contracts of the steps."""

from __future__ import annotations

from typing import Any

import keras


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


class AugmentedModelBase(SeededModel):
    """Contract: a subclass writes `augment`, the backend calls it before the stock step."""

    def augment(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Return the `(x, y, sample_weight)` that the stock training step is to see."""
        raise NotImplementedError(f"{type(self).__name__} must define augment(x, y, sample_weight)")

    def _augmented(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x, y, sample_weight = self.augment(x, y, sample_weight)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
