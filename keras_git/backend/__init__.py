"""Everything that differs between JAX, TensorFlow and PyTorch, and nothing else.

`StepModel`: a model whose `step` asks for gradients through `minimize`.
`AugmentedModel`: stock Keras training on batches first passed through `augment`.
`compiled`: a function of tensors that reads Keras variables, compiled where the backend can.
`num_replicas`, `replica_mean`: of the copies of a model that share a batch.

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
num_replicas = _module.num_replicas
replica_mean = _module.replica_mean

__all__ = ["AugmentedModel", "StepModel", "compiled", "num_replicas", "replica_mean"]
