"""Everything that differs between JAX, TensorFlow and PyTorch, and nothing else.

`StepModel`: a model whose `step` asks for gradients through `minimize`.
`AugmentedModel`: stock Keras training on batches first passed through `augment`.
`compiled`: a function of tensors that reads Keras variables, compiled where the backend can.

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

__all__ = ["AugmentedModel", "StepModel", "compiled"]
