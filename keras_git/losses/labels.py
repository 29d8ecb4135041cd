"""Labels as integers or as probabilities."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_git.errors import InputError


def are_soft(labels: Any, num_classes: int) -> bool:
    """Whether labels are probabilities `(B, C)`, C >= 2, and not integers `(B,)` or `(B, 1)`.

    The static shape decides, so that a compiled step has no branch.

    Args:
        labels: tensor.
        num_classes: C.

    Raises:
        InputError: any other shape.
    """
    shape = tuple(labels.shape)
    # An unknown number of columns was not made by mixing: labels of a generator of integers.
    if len(shape) == 1 or (len(shape) == 2 and shape[1] in (1, None)):
        return False
    if len(shape) != 2 or shape[1] != num_classes:
        raise InputError(
            f"labels have shape {shape} for {num_classes} classes; give integers (batch,) or "
            f"(batch, 1), or probabilities (batch, {num_classes})"
        )
    return True


def _with_shape(labels: Any) -> Any:
    # arrays and symbolic tensors are fine as they are
    return labels if hasattr(labels, "shape") else ops.convert_to_tensor(labels)


def label_probabilities(labels: Any, num_classes: int) -> Any:
    """Probability of every label.

    Args:
        labels: integers `(B,)` or `(B, 1)`, 0..C-1, of any dtype, or probabilities `(B, C)`.
        num_classes: C.

    Returns:
        float32 `(B, C)`: one-hot for integers, the probabilities as they are.

    Raises:
        InputError: any other shape.
    """
    labels = _with_shape(labels)
    if are_soft(labels, num_classes):
        return ops.cast(labels, "float32")
    indices = ops.cast(ops.reshape(labels, (-1,)), "int32")
    return ops.one_hot(indices, num_classes, dtype="float32")


def label_indices(labels: Any, num_classes: int) -> Any:
    """The integer label, for probabilities the largest (the first of equals).

    Args:
        labels: integers `(B,)` or `(B, 1)`, 0..C-1, of any dtype, or probabilities `(B, C)`.
        num_classes: C.

    Returns:
        int32 `(B,)`.

    Raises:
        InputError: any other shape.
    """
    labels = _with_shape(labels)
    if are_soft(labels, num_classes):
        return ops.cast(ops.argmax(labels, axis=-1), "int32")
    return ops.cast(ops.reshape(labels, (-1,)), "int32")
