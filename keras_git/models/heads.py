"""The last layer of the residual networks."""

from __future__ import annotations

import math
from typing import Any

from keras import layers, ops

from keras_git.models import _blocks

HEADS = ("linear", "cosine")


def classifier_head(x: Any, head: str, num_classes: int, seed: int | None, name: str) -> Any:
    """Logits of pooled features `(N, D)`: weights N(0, 2 / D) and bias, or cosines.

    Args:
        x: Keras tensor.
        head: one of `HEADS`.
        num_classes: C.
        seed: of the weights.
        name: of the layer.

    Returns:
        Keras tensor `(N, C)`.
    """
    dtype = _blocks.logits_dtype()
    if dtype is not None:
        x = layers.Activation("linear", dtype=dtype, name=f"{name}_float32")(x)
    if head == "cosine":
        return cosine_head(x, num_classes, seed, name)
    return layers.Dense(
        num_classes,
        dtype=dtype,
        kernel_initializer=_blocks.he_normal(seed, name),
        bias_initializer=_blocks.uniform(1.0 / math.sqrt(x.shape[-1]), seed, f"{name}_bias"),
        name=name,
    )(x)


def cosine_head(x: Any, num_classes: int, seed: int | None, name: str) -> Any:
    """Cosines between the features and one weight vector per class, in [-1, 1]; no scale.

    Weights start as U(-1, 1), each class vector then scaled to unit length; only their direction
    matters for the output, but the length matters for the size of a gradient step.
    """
    # The weight matrix has to be divided by its column norms, and a Dense layer shows its weights
    # only through its output: on the identity matrix that is the matrix itself. The identity is
    # made from x because a functional graph starts at its inputs.
    # Not ops.diag, which PyTorch cannot export to ONNX.
    ones = ops.ones_like(ops.sum(x, axis=0))
    identity = ops.triu(ops.tril(ones[:, None] * ones[None, :]))
    dense = layers.Dense(
        num_classes,
        use_bias=False,
        dtype=_blocks.logits_dtype(),
        kernel_initializer=_blocks.uniform(1.0, seed, name),
        name=name,
    )
    weights = dense(identity)
    kernel = dense.kernel
    norms = ops.norm(kernel, axis=0, keepdims=True)
    kernel.assign(ops.convert_to_tensor(kernel) / ops.maximum(norms, 1e-12))
    weights = layers.UnitNormalization(
        axis=0, dtype=_blocks.logits_dtype(), name=f"{name}_unit_weights"
    )(weights)
    directions = layers.UnitNormalization(
        axis=-1, dtype=_blocks.logits_dtype(), name=f"{name}_unit_features"
    )(x)
    return ops.matmul(directions, weights)
