"""The whitened convolution."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.layers import normalization
from keras_git.layers.blocks import Blocks, ChannelBlocks, InterleavedBlocks
from keras_git.layers.patches import padding_sizes, patches, sampled_every
from keras_git.layers.whitened import NORMALIZATION_EPSILON, Whitened

# What the original adds to the deviation of a receptive field.
_ORIGINAL_FIELD_EPSILON = 1.0
# Deviation that counts for flat surroundings, as a part of the sample's.
_FLAT = 1e-2


@keras.saving.register_keras_serializable("keras_git")
class WhitenedConv2D(Whitened, keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose input windows are whitened with the statistics of the batch.

    Takes the arguments of `Conv2D` and those of `Whitened` below. Zeros of the padding belong to
    the data that are whitened, so that the fold is exact at borders. A block of constant inputs is
    only centred; a batch with fewer rows than features is whitened as far as `iterations` go; where
    the iteration would diverge it stops at the last good step (`inverse_sqrt`).

    With "receptive_field", each window is standardized by mean and deviation of the
    `2 (k - 1) d + 3` pixels around its centre, all channels, inside the image; the zeros of the
    padding are the image's mean then.

    Arguments besides those of `Conv2D`: `block_size` (channels), `epsilon`, `iterations`,
    `momentum`, `sampling_stride`, `update_interval`, `frozen`, `freeze_iterations`,
    `differentiate_statistics`, `feature_normalization`, `rules`; see
    `keras_git.layers.Whitened`.

    Input and output: those of `Conv2D`.

    Raises:
        InputError: an impossible value.

    Reference: Ye et al., "Exploiting Invariance in Training Deep Neural Networks", 2021; Ye et
    al., "Network Deconvolution", 2020.
    """

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        first = self.data_format == "channels_first"
        channels = int(input_shape[1 if first else -1])
        sizes = input_shape[2:] if first else input_shape[1:3]
        self._padding_of(sizes)  # a size may be missing
        kind = InterleavedBlocks if self.original else ChannelBlocks
        blocks: Blocks = kind(
            math.prod(self.kernel_size), channels, self.filters, self.groups, self.block_size
        )
        self._build_statistics(blocks)

    @property
    def symmetric_padding(self) -> list[tuple[int, int]] | None:
        """Zeros per axis where "same" pads symmetrically, as the original does, and Keras not."""
        odd = all(extent % 2 for extent in self._extents)
        if self.original and self.padding == "same" and max(self.strides) > 1 and odd:
            return [((extent - 1) // 2,) * 2 for extent in self._extents]
        return None

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """The convolution alone."""
        if self.symmetric_padding is None:
            return super().convolution_op(inputs, kernel)
        first = self.data_format == "channels_first"
        zeros = self.symmetric_padding
        pads = ((0, 0), (0, 0), *zeros) if first else ((0, 0), *zeros, (0, 0))
        return ops.conv(
            ops.pad(inputs, pads),
            kernel,
            strides=list(self.strides),
            padding="valid",
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )

    @property
    def _extents(self) -> tuple[int, ...]:
        """Pixels that a window spans."""
        pairs = zip(self.kernel_size, self.dilation_rate, strict=True)
        return tuple((taps - 1) * rate + 1 for taps, rate in pairs)

    def call(self, inputs: Any, training: Any = None) -> Any:
        x = self.normalized(inputs)
        local = self.local_moments(x)
        mean, whitening = self.statistics.current(
            lambda: self._blocks.rows(self._windows(self._wide_images(x), local)),
            self._updating(training),
        )
        kernel, offset = self._folded(mean, whitening)
        bias = -offset if self.bias is None else ops.cast(self.bias, self._wide) - offset
        if self.data_format == "channels_first":
            bias = bias[:, None, None]
        outputs = self.convolution_op(x, ops.cast(kernel, self.compute_dtype))
        if local is not None:
            gain, centre = self.local_correction(local, outputs.shape)
            sums = self.kernel_sums(kernel)
            if self.data_format == "channels_first":
                sums = sums[:, None, None]
            outputs = outputs * ops.cast(gain, outputs.dtype)
            bias = bias - centre * sums
        outputs = outputs + ops.cast(bias, outputs.dtype)
        return outputs if self.activation is None else self.activation(outputs)

    def _wide_images(self, x: Any) -> Any:
        """Channels last, in the dtype of the statistics."""
        x = x if self.data_format == "channels_last" else ops.transpose(x, (0, 2, 3, 1))
        return ops.cast(x, self._wide)

    def _folded(self, mean: Any, whitening: Any) -> tuple[Any, Any]:
        """The whitened kernel in its own shape, and what the mean adds to each output."""
        kernel = ops.cast(ops.convert_to_tensor(self.kernel), self._wide)
        shape = tuple(kernel.shape)
        flat, offset = self._whitened_kernel(mean, whitening, ops.reshape(kernel, (-1, *shape[2:])))
        return ops.reshape(flat, shape), offset

    def _padding_of(self, sizes: Any) -> list[tuple[int, int]]:
        """Zeros before and after, per axis; sizes may differ from call to call."""
        return self.symmetric_padding or padding_sizes(
            self.padding, sizes, self._extents, self.strides
        )

    def _sampling(self, sizes: Any) -> tuple[int, ...]:
        """Positions from one sampled window to the next, in pixels."""
        found = []
        for size, extent, stride, pair in zip(
            sizes, self._extents, self.strides, self._padding_of(sizes), strict=True
        ):
            every = self.sampling_stride
            if not self.original and size is not None:
                every = sampled_every(every, (size + sum(pair) - extent) // stride + 1)
            found.append(every * stride)
        return tuple(found)

    def _windows(self, images: Any, local: tuple[Any, Any] | None) -> Any:
        """Sampled windows of the channels-last images, as `Blocks.rows` takes them."""
        if self.original and math.prod(self.kernel_size) == 1:
            # every n-th pixel of the flat list
            flat = ops.reshape(images, (1, -1, 1, images.shape[-1]))
            return flat[:, :: math.prod(self._sampling(images.shape[1:3]))]
        steps = self._sampling(images.shape[1:3])
        windows = patches(
            images,
            self.kernel_size,
            strides=steps,
            dilation_rate=self.dilation_rate,
            padding=self._padding_of(images.shape[1:3]),
            slices=self._blocks.num_slices,
        )
        if local is None:
            return windows
        if self.original:
            mean = ops.mean(windows, axis=(2, 3), keepdims=True)  # one slice
            number = math.prod(windows.shape[2:])
            squares = ops.sum(ops.square(windows - mean), axis=(2, 3), keepdims=True)
            deviation = ops.sqrt(squares / max(number - 1, 1) + 1e-30)
            return (windows - mean) / (deviation + _ORIGINAL_FIELD_EPSILON)
        mean, deviation = (ops.reshape(self._at_windows(part, steps), (-1, 1, 1)) for part in local)
        return (windows - mean) / deviation

    def local_moments(self, x: Any) -> tuple[Any, Any] | None:
        """Mean and deviation around each pixel of the input, each `(N, H, W, 1)`.

        None without normalization by receptive fields. The deviation includes its epsilon: flat
        surroundings count as a hundredth of the sample's own deviation.
        """
        if self.feature_normalization != "receptive_field":
            return None
        images = self._wide_images(x)
        mean, variance, _ = normalization.box_moments(images, 2 * max(self._extents) + 1)
        if self.original:
            # the root of 0 has no gradient
            return mean, ops.sqrt(variance + 1e-30) + _ORIGINAL_FIELD_EPSILON
        floor = NORMALIZATION_EPSILON + _FLAT * normalization.deviation_of(images)
        return mean, ops.sqrt(variance + ops.square(floor))

    def _at_windows(self, maps: Any, steps: tuple[int, ...]) -> Any:
        """Values at the centres of the windows, `(N, rows, columns, 1)`."""
        slices = []
        for size, extent, pair, step in zip(
            ops.shape(maps)[1:3],
            self._extents,
            self._padding_of(maps.shape[1:3]),
            steps,
            strict=True,
        ):
            positions = (size + sum(pair) - extent) // step + 1
            start = (extent - 1) // 2 - pair[0]
            slices.append(slice(start, start + (positions - 1) * step + 1, step))
        return maps[:, slices[0], slices[1]]

    def local_correction(self, local: tuple[Any, Any], shape: Any) -> tuple[Any, Any]:
        """What standardizes the convolution's windows, in the data format of the layer.

        Args:
            local: from `local_moments`.
            shape: of the convolution's output.

        Returns:
            1 / deviation and mean / deviation at each output position, one channel each.
        """
        first = self.data_format == "channels_first"
        mean, deviation = local
        if self.original:
            rows, columns = shape[2:] if first else shape[1:3]
            gain, centre = (
                normalization.resized(part, rows, columns)
                for part in (1.0 / deviation, mean / deviation)
            )
        else:
            mean, deviation = (self._at_windows(part, self.strides) for part in local)
            gain, centre = 1.0 / deviation, mean / deviation
        if first:
            gain, centre = (ops.transpose(part, (0, 3, 1, 2)) for part in (gain, centre))
        return gain, centre

    def kernel_sums(self, kernel: Any) -> Any:
        """Sum of each output's whitened kernel `(O,)`; the original took the raw one."""
        if self.original:
            kernel = ops.cast(ops.convert_to_tensor(self.kernel), self._wide)
        return ops.sum(kernel, axis=(0, 1, 2))

    def folded_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel and bias of the `Conv2D` that computes the same in inference."""
        mean, whitening = self.running()
        kernel, offset = self._folded(mean, whitening)
        bias = -offset if self.bias is None else ops.cast(self.bias, self._wide) - offset
        return ops.convert_to_numpy(kernel), ops.convert_to_numpy(bias)
