"""The whitened transposed convolution."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.layers.blocks import Blocks, ChannelBlocks, InterleavedBlocks
from keras_git.layers.patches import patches, sampled_every, sliced
from keras_git.layers.whitened import Whitened


@keras.saving.register_keras_serializable("keras_git")
class WhitenedConv2DTranspose(Whitened, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` whose input channels are whitened.

    Takes the arguments of `Conv2DTranspose` and those of `keras_git.layers.Whitened`. The channels
    of single pixels are whitened, not windows; the mean is subtracted from the input, since what it
    adds to the output differs between borders and phases of the stride.

    The rules "original" whiten nothing, as the original program: they multiply the kernel along
    its output channels, and need as many of them as input channels.

    Input and output: those of `Conv2DTranspose`.

    Raises:
        InputError: an impossible value.

    Reference: Ye et al., "Exploiting Invariance in Training Deep Neural Networks", 2021.
    """

    def __init__(self, filters: int, kernel_size: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(filters, kernel_size, *args, **kwargs)
        if self.feature_normalization == "receptive_field":
            raise InputError(
                "feature_normalization is 'receptive_field', which transposed convolutions do not "
                "have; use 'sample', 'l1' or None"
            )

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        first = self.data_format == "channels_first"
        channels = int(input_shape[1 if first else -1])
        taps = math.prod(self.kernel_size)
        blocks: Blocks
        if self.original:
            if channels != self.filters:
                raise InputError(
                    f"rules='original' need as many filters as input channels, not {self.filters} "
                    f"and {channels}; use rules='careful'"
                )
            # outputs in the place of inputs: the original's exchange of axes
            blocks = InterleavedBlocks(taps, self.filters, channels, 1, self.block_size)
        else:
            blocks = ChannelBlocks(1, channels, taps * self.filters, 1, self.block_size)
        self._build_statistics(blocks)
        self.built = True

    def call(self, inputs: Any, training: Any = None) -> Any:
        x = self.normalized(inputs)
        last = x if self.data_format == "channels_last" else ops.transpose(x, (0, 2, 3, 1))
        mean, whitening = self.statistics.current(
            lambda: self._blocks.rows(self._windows(ops.cast(last, self._wide))),
            self._updating(training),
        )
        kernel, bias = self._folded(mean, whitening)
        if not self.original:
            centre = ops.reshape(mean, (-1,))
            if self.data_format == "channels_first":
                centre = centre[:, None, None]
            x = x - ops.cast(centre, x.dtype)
        outputs = ops.conv_transpose(
            x,
            ops.cast(kernel, self.compute_dtype),
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        if bias is not None:
            if self.data_format == "channels_first":
                bias = bias[:, None, None]
            outputs = outputs + ops.cast(bias, outputs.dtype)
        return outputs if self.activation is None else self.activation(outputs)

    def _windows(self, images: Any) -> Any:
        """Sampled pixels (rules "original": windows), as `Blocks.rows` takes them."""
        if not self.original:
            rows, columns = (
                sampled_every(self.sampling_stride, size) for size in images.shape[1:3]
            )
            pixels = ops.reshape(images[:, ::rows, ::columns], (-1, 1, images.shape[-1]))
            return sliced(pixels, self._blocks.num_slices)
        steps = [self.sampling_stride * stride for stride in self.strides]
        pads = [
            (0, 0) if self.padding == "valid" else ((taps - 1) * rate // 2,) * 2
            for taps, rate in zip(self.kernel_size, self.dilation_rate, strict=True)
        ]
        return patches(
            images,
            self.kernel_size,
            strides=steps,
            dilation_rate=self.dilation_rate,
            padding=pads,
        )

    def _folded(self, mean: Any, whitening: Any) -> tuple[Any, Any]:
        """The kernel in its own shape `(height, width, outputs, inputs)`, and the bias or None."""
        kernel = ops.cast(ops.convert_to_tensor(self.kernel), self._wide)
        height, width, outputs, inputs = kernel.shape
        bias = None if self.bias is None else ops.cast(self.bias, self._wide)
        if self.original:
            # as a correlation, whose kernel is the flipped one
            taps = ops.reshape(ops.flip(kernel, (0, 1)), (height * width, outputs, inputs))
            flat, offset = self._whitened_kernel(mean, whitening, taps)
            flat = ops.flip(ops.reshape(flat, kernel.shape), (0, 1))
            return flat, -offset if bias is None else bias - offset
        parts = ops.reshape(ops.transpose(kernel, (3, 0, 1, 2)), (1, inputs, -1))
        flat, _ = self._whitened_kernel(mean, whitening, parts)
        flat = ops.reshape(flat, (inputs, height, width, outputs))
        return ops.transpose(flat, (1, 2, 3, 0)), bias

    def folded_weights(self) -> tuple[np.ndarray, ...]:
        """Kernel, bias (0 without one) and what is subtracted from the input's channels."""
        mean, whitening = self.running()
        kernel, bias = self._folded(mean, whitening)
        kernel = ops.convert_to_numpy(kernel)
        subtracted = np.zeros(kernel.shape[-1], kernel.dtype)
        if not self.original:
            subtracted = ops.convert_to_numpy(mean).reshape(-1)
        bias = np.zeros(self.filters, kernel.dtype) if bias is None else ops.convert_to_numpy(bias)
        return kernel, bias, subtracted
