"""Which parameter of a PyTorch network is which variable of a Keras network, and the layouts."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

# Position in Keras of each axis of PyTorch: "conv" OIHW to HWIO, "conv1x1" (a Dense here) and
# "dense" (out, in) to (in, out).
_AXES = {"conv": (3, 2, 0, 1), "dense": (1, 0)}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A Keras variable and the layout that PyTorch has it in.

    Attributes:
        variable: of Keras.
        layout: "conv", "conv1x1" (a Dense here), "dense" or "same".
    """

    variable: Any
    layout: str = "same"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in PyTorch."""
        shape = tuple(self.variable.shape)
        if self.layout == "conv1x1":
            return (*shape[::-1], 1, 1)
        return tuple(shape[axis] for axis in _AXES.get(self.layout, range(len(shape))))

    def to_keras(self, value: np.ndarray) -> np.ndarray:
        """From OIHW or (out, in) to the layout of Keras."""
        if self.layout == "conv1x1":
            return value[:, :, 0, 0].T
        axes = _AXES.get(self.layout)
        return value if axes is None else value.transpose(np.argsort(axes))

    def from_keras(self, value: Any) -> np.ndarray:
        """The inverse of `to_keras`, for an array or a variable."""
        value = keras.ops.convert_to_numpy(value)
        if self.layout == "conv1x1":
            return value.T[:, :, None, None]
        axes = _AXES.get(self.layout)
        return value if axes is None else value.transpose(axes)


Parameters = dict[str, Parameter]


def affine(layer: Any, name: str, layout: str) -> Parameters:
    """Weight and, where there is one, bias of a convolution or a linear layer.

    Args:
        layer: of Keras, built.
        name: of the layer in PyTorch.
        layout: of its weight.
    """
    found = {f"{name}.weight": Parameter(layer.kernel, layout)}
    if getattr(layer, "use_bias", True):
        found[f"{name}.bias"] = Parameter(layer.bias)
    return found


def batch_normalization(layer: Any, name: str) -> Parameters:
    """Factors, shifts and running statistics of a batch normalization.

    Args:
        layer: of Keras, built.
        name: of the layer in PyTorch.
    """
    return {
        f"{name}.weight": Parameter(layer.gamma),
        f"{name}.bias": Parameter(layer.beta),
        f"{name}.running_mean": Parameter(layer.moving_mean),
        f"{name}.running_var": Parameter(layer.moving_variance),
    }


def resnet_parameters(network: keras.Model, depth: int, head: str) -> Parameters:
    """Parameters of `keras_git.models.resnet` with the names of the public CIFAR ResNets.

    Args:
        network: from `resnet`, with batch normalization.
        depth: of it.
        head: of it.
    """
    name, get = network.name, network.get_layer
    found = affine(get(f"{name}_stem_conv"), "conv1", "conv")
    found |= batch_normalization(get(f"{name}_stem_bn"), "bn1")
    for stage in (1, 2, 3):
        for block in range((depth - 2) // 6):
            for part in (1, 2):
                here, there = f"{name}_stage{stage}_block{block}", f"layer{stage}.{block}"
                found |= affine(get(f"{here}_conv{part}"), f"{there}.conv{part}", "conv")
                found |= batch_normalization(get(f"{here}_bn{part}"), f"{there}.bn{part}")
    # the normalized head is stored as (in, out) already
    return found | affine(get(f"{name}_head"), "linear", "dense" if head == "linear" else "same")
