"""Optimizers with coupled L2 decay, as the paper uses them, and learning rate schedules."""

from __future__ import annotations

from keras_git.optimizers.adam import Adam
from keras_git.optimizers.schedules import ConstantThenLinear, StepDecay, WarmUpStep
from keras_git.optimizers.sgd import SGD

__all__ = ["SGD", "Adam", "ConstantThenLinear", "StepDecay", "WarmUpStep"]
