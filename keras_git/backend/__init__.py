"""Everything that differs between JAX, TensorFlow and PyTorch, and nothing else.

`StepModel`: a model whose `step` asks for gradients through `minimize`.
`AugmentedModel`: stock Keras training on batches first passed through `augment`.
`compiled`: a function of tensors that reads Keras variables, compiled where the backend can.
`repeated_steps`: many training steps in one call, on data that lie on the device.
`num_replicas`, `replica_mean`: of the copies of a model that share a batch.
`separate_replicas`, `rows_of_replica`: where each copy runs a step on its part, and sees no more.
`num_devices`, `data_parallel_scope`: see `keras_git.distribution`.

The rest of the package is written once, with `keras.ops`.
"""

from __future__ import annotations

import importlib

import keras

_MODULES = ("jax", "tensorflow", "torch")

if keras.config.backend() not in _MODULES:
    raise ImportError(
        f"keras_git runs on the Keras backends {', '.join(_MODULES)}, "
        f"not on {keras.config.backend()!r}: set KERAS_BACKEND"
    )

_module = importlib.import_module(f"keras_git.backend.{keras.config.backend()}")

StepModel = _module.StepModel
AugmentedModel = _module.AugmentedModel
compiled = _module.compiled
repeated_steps = _module.repeated_steps
num_replicas = _module.num_replicas
replica_mean = _module.replica_mean
separate_replicas = _module.separate_replicas
rows_of_replica = _module.rows_of_replica
num_devices = _module.num_devices
data_parallel_scope = _module.data_parallel_scope

__all__ = [
    "AugmentedModel",
    "StepModel",
    "compiled",
    "data_parallel_scope",
    "num_devices",
    "num_replicas",
    "repeated_steps",
    "replica_mean",
    "rows_of_replica",
    "separate_replicas",
]
