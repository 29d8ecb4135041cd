"""Learning rate schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_git.errors import InputError


def _check_count(name: str, value: int, smallest: int = 1) -> int:
    if isinstance(value, bool) or int(value) != value or value < smallest:
        raise InputError(f"{name} is {value!r}; it must be an integer of at least {smallest}")
    return int(value)


def _check_rate(name: str, value: float) -> float:
    if not value >= 0.0:
        raise InputError(f"{name} is {value!r}; it must be a number of at least 0")
    return float(value)


@keras.saving.register_keras_serializable(package="keras_git")
class WarmUpStep(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up by epochs, then constant, then one factor from each milestone on.

    The rate is constant within an epoch e = step // steps_per_epoch, counted from 0: during the
    warm-up base * (e + 1) / warmup_epochs; from milestone i on base * factors[i].

    Args:
        base: Learning rate after the warm-up.
        steps_per_epoch: Batches per epoch (Keras counts every batch, also with gradient
            accumulation).
        warmup_epochs: Epochs of the warm-up, 0 for none.
        milestones: Epochs of the drops, increasing.
        factors: Factor of the base rate from each milestone on (not cumulative).

    Raises:
        InputError: for numbers out of range, or milestones and factors that do not match.

    Reference:
        Cao et al. (2019), "Learning imbalanced datasets with label-distribution-aware margin
        loss", section 4, with the warm-up of their training program.
    """

    def __init__(
        self,
        base: float,
        steps_per_epoch: int,
        warmup_epochs: int = 5,
        milestones: Sequence[int] = (160, 180),
        factors: Sequence[float] = (1e-2, 1e-4),
    ):
        self.base = _check_rate("base", base)
        self.steps_per_epoch = _check_count("steps_per_epoch", steps_per_epoch)
        self.warmup_epochs = _check_count("warmup_epochs", warmup_epochs, 0)
        self.milestones = tuple(_check_count("milestones", value, 0) for value in milestones)
        self.factors = tuple(_check_rate("factors", value) for value in factors)
        if len(self.milestones) != len(self.factors):
            raise InputError(
                f"{len(self.milestones)} milestones but {len(self.factors)} factors; "
                "give one factor per milestone"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise InputError(f"milestones {self.milestones} must increase")

    def __call__(self, step: Any) -> Any:
        """Learning rate at an optimizer update counted from 0."""
        epoch = ops.floor_divide(ops.cast(step, "int32"), self.steps_per_epoch)
        rate = ops.convert_to_tensor(self.base, "float32")
        for milestone, factor in zip(self.milestones, self.factors, strict=True):
            rate = ops.where(epoch >= milestone, self.base * factor, rate)
        if self.warmup_epochs:
            share = ops.cast(epoch + 1, "float32") / self.warmup_epochs
            rate = ops.where(epoch < self.warmup_epochs, self.base * share, rate)
        return rate

    def get_config(self) -> dict[str, Any]:
        """Settings to rebuild the schedule from."""
        return {
            "base": self.base,
            "steps_per_epoch": self.steps_per_epoch,
            "warmup_epochs": self.warmup_epochs,
            "milestones": list(self.milestones),
            "factors": list(self.factors),
        }


@keras.saving.register_keras_serializable(package="keras_git")
class ConstantThenLinear(keras.optimizers.schedules.LearningRateSchedule):
    """Constant for a fraction of all steps, then linear; the last step is just above 0.

    Args:
        base: Learning rate of the constant part.
        total_steps: Number of steps; from there on the rate stays at its last value.
        constant_fraction: Share of the steps before the descent, in [0, 1].

    Raises:
        InputError: for numbers out of range.
    """

    def __init__(self, base: float, total_steps: int, constant_fraction: float = 0.5):
        self.base = _check_rate("base", base)
        self.total_steps = _check_count("total_steps", total_steps)
        if not 0.0 <= constant_fraction <= 1.0:
            raise InputError(f"constant_fraction is {constant_fraction!r}; it must be in [0, 1]")
        self.constant_fraction = float(constant_fraction)

    def __call__(self, step: Any) -> Any:
        """Learning rate at an optimizer update counted from 0."""
        constant = int(self.total_steps * self.constant_fraction)
        falling = max(self.total_steps - constant, 1)
        # step constant still has the full rate, step total_steps - 1 has base / falling
        past = ops.cast(ops.cast(step, "int32") - constant, "float32")
        past = ops.clip(past, 0.0, float(falling - 1))
        return self.base * (1.0 - past / falling)

    def get_config(self) -> dict[str, Any]:
        """Settings to rebuild the schedule from."""
        return {
            "base": self.base,
            "total_steps": self.total_steps,
            "constant_fraction": self.constant_fraction,
        }


@keras.saving.register_keras_serializable(package="keras_git")
class StepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """base * factor^(step // step_size).

    Args:
        base: Initial learning rate.
        step_size: Steps between two drops.
        factor: Factor of a drop.

    Raises:
        InputError: for numbers out of range.

    Reference:
        Huang et al. (2018), "Multimodal unsupervised image-to-image translation", appendix B.1
        (halved every 100,000 iterations).
    """

    def __init__(self, base: float, step_size: int = 100_000, factor: float = 0.5):
        self.base = _check_rate("base", base)
        self.step_size = _check_count("step_size", step_size)
        self.factor = _check_rate("factor", factor)

    def __call__(self, step: Any) -> Any:
        """Learning rate at an optimizer update counted from 0."""
        drops = ops.cast(ops.floor_divide(ops.cast(step, "int32"), self.step_size), "float32")
        return self.base * ops.power(ops.convert_to_tensor(self.factor, "float32"), drops)

    def get_config(self) -> dict[str, Any]:
        """Settings to rebuild the schedule from."""
        return {"base": self.base, "step_size": self.step_size, "factor": self.factor}
