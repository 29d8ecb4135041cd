"""The whitened dense layer."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.layers.blocks import Blocks, ChannelBlocks, SliceBlocks
from keras_git.layers.patches import sliced
from keras_git.layers.whitened import Whitened


@keras.saving.register_keras_serializable("keras_git")
class WhitenedDense(Whitened, keras.layers.Dense):
    """`keras.layers.Dense` whose input is whitened with the statistics of the batch.

    Takes the arguments of `Dense` and those of `keras_git.layers.Whitened` (`block_size` counts
    input features; `sampling_stride` has no meaning here). All axes but the last count as rows.

    Input and output: those of `Dense`.

    Raises:
        InputError: an impossible value.

    Reference: Ye et al., "Exploiting Invariance in Training Deep Neural Networks", 2021.
    """

    default_block_sizes: ClassVar[dict[str, int]] = {"careful": 64, "original": 512}

    def __init__(self, units: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(units, *args, **kwargs)
        if self.feature_normalization == "receptive_field":
            raise InputError(
                "feature_normalization is 'receptive_field', which dense layers do not have; use "
                "'sample', 'l1' or None"
            )

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        features = int(input_shape[-1])
        blocks: Blocks
        if self.original:
            blocks = SliceBlocks(features, self.units, self.block_size)
        else:
            blocks = ChannelBlocks(1, features, self.units, 1, self.block_size)
        self._build_statistics(blocks)
        self.built = True

    def call(self, inputs: Any, training: Any = None) -> Any:
        x = self.normalized(inputs)
        mean, whitening = self.statistics.current(
            lambda: self._blocks.rows(self._windows(ops.cast(x, self._wide))),
            self._updating(training),
        )
        kernel, bias = self._folded(mean, whitening)
        outputs = x @ ops.cast(kernel, self.compute_dtype)
        outputs = outputs + ops.cast(bias, outputs.dtype)
        return outputs if self.activation is None else self.activation(outputs)

    def _windows(self, x: Any) -> Any:
        return sliced(ops.reshape(x, (-1, 1, x.shape[-1])), self._blocks.num_slices)

    def _folded(self, mean: Any, whitening: Any) -> tuple[Any, Any]:
        kernel = ops.cast(ops.convert_to_tensor(self.kernel), self._wide)
        flat, offset = self._whitened_kernel(mean, whitening, kernel[None])
        bias = -offset if self.bias is None else ops.cast(self.bias, self._wide) - offset
        return flat[0], bias

    def folded_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel and bias of the `Dense` that computes the same in inference."""
        kernel, bias = self._folded(*self.running())
        return ops.convert_to_numpy(kernel), ops.convert_to_numpy(bias)
