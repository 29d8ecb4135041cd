"""Building blocks shared by the networks: functions that add built-in layers to a Keras graph.

Nothing here is a layer class of its own: a saved network must open with ``import keras`` alone,
on every backend and in safe mode.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_git.errors import InputError

PADDINGS = ("reflect", "replicate", "zero")
ACTIVATIONS = ("relu", "lrelu")
LEAKY_SLOPE = 0.2
NORM_EPSILON = 1e-5


def layer_seed(seed: int | None, layer_name: str) -> int | None:
    """A seed of its own for each layer: two layers of one shape must not start equal."""
    if seed is None:
        return None
    # crc32 rather than hash(): the latter changes from process to process
    sequence = np.random.SeedSequence([int(seed), zlib.crc32(layer_name.encode())])
    return int(sequence.generate_state(1)[0] & 0x7FFFFFFF)


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises InputError unless value is one of allowed."""
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def check_positive(**values: int) -> None:
    """Raises InputError unless every value is an integer of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(f"{name} is {value!r}; it must be an integer of at least 1")


def check_image_shape(
    input_shape: Sequence[int], *, smallest: int, largest: int | None = None, multiple: int = 1
) -> tuple[int, int, int]:
    """Validates (height, width, channels) and returns it as a tuple of int.

    Raises:
        InputError: if the shape is not (height, width, 1 or 3), or a side is out of range or not
            a multiple.
    """
    try:
        height, width, channels = (int(size) for size in input_shape)
    except (TypeError, ValueError):
        raise InputError(
            f"input_shape is {input_shape!r}; it must be (height, width, channels)"
        ) from None
    if channels not in (1, 3):
        raise InputError(f"input_shape {input_shape!r} has {channels} channels; allowed: 1 or 3")
    upper = np.inf if largest is None else largest
    for side in (height, width):
        if not smallest <= side <= upper or side % multiple:
            span = f"at least {smallest}" if largest is None else f"from {smallest} to {largest}"
            rule = "" if multiple == 1 else f", multiples of {multiple}"
            raise InputError(
                f"image size {height}x{width} is not possible here; allowed: {span} pixels{rule}"
            )
    return height, width, channels


def he_normal(seed: int | None, layer_name: str) -> keras.initializers.Initializer:
    """N(0, 2 / fan_in), not truncated (Keras' own HeNormal is truncated)."""
    return keras.initializers.VarianceScaling(
        2.0, "fan_in", "untruncated_normal", seed=layer_seed(seed, layer_name)
    )


def uniform(
    limit: float, seed: int | None, layer_name: str, low: float | None = None
) -> keras.initializers.Initializer:
    """U(-limit, limit), or U(low, limit)."""
    lower = -limit if low is None else low
    return keras.initializers.RandomUniform(lower, limit, seed=layer_seed(seed, layer_name))


def pad(x: Any, size: int, mode: str, name: str) -> Any:
    """Pads height and width by size on all four sides.

    Args:
        x: Keras tensor (N, H, W, C).
        size: Pixels per side, 0 for none.
        mode: "reflect" (border pixel not repeated), "replicate" or "zero".
        name: Name of the zero padding layer.

    Returns:
        Keras tensor (N, H + 2 size, W + 2 size, C).

    Raises:
        InputError: if a reflection would need more pixels than there are.
    """
    if size == 0:
        return x
    if mode == "zero":
        return layers.ZeroPadding2D(size, name=f"{name}_pad")(x)
    if mode == "reflect":
        height, width = x.shape[1:3]
        if min(height, width) <= size:
            raise InputError(
                f"reflect padding by {size} is impossible for a map of {height}x{width} pixels "
                f"({name}); allowed: larger images, fewer downsamplings, layers or scales, or "
                "padding 'replicate' or 'zero'"
            )
        return ops.pad(x, ((0, 0), (size, size), (size, size), (0, 0)), mode="reflect")
    # ops.pad has no "edge" mode on TensorFlow
    x = ops.concatenate([x[:, :1]] * size + [x] + [x[:, -1:]] * size, axis=1)
    return ops.concatenate([x[:, :, :1]] * size + [x] + [x[:, :, -1:]] * size, axis=2)


def convolution(
    x: Any,
    filters: int,
    kernel_size: int,
    *,
    strides: int = 1,
    padding: str = "zero",
    pad_size: int | None = None,
    use_bias: bool = True,
    kernel_initializer: Any,
    bias_initializer: Any = "zeros",
    name: str,
    layer: Callable[..., Any] = layers.Conv2D,
    **options: Any,
) -> Any:
    """Symmetric explicit padding, then a convolution without padding of its own.

    Keras' "same" pads (0, 1) at stride 2 and even kernels; the networks here pad symmetrically.
    `layer` is the class of the convolution, `options` are further arguments of it.
    """
    size = (kernel_size - 1) // 2 if pad_size is None else pad_size
    # at stride 1 and odd kernels "same" is symmetric: one operation less
    same = padding == "zero" and strides == 1 and kernel_size % 2 == 1 and size == kernel_size // 2
    if not same:
        x = pad(x, size, padding, name)
        height, width = x.shape[1:3]
        if min(height, width) < kernel_size:
            raise InputError(
                f"a map of {height}x{width} pixels is too small for the {kernel_size}x"
                f"{kernel_size} convolution {name}; allowed: larger images, fewer downsamplings, "
                "layers or scales"
            )
    return layer(
        filters,
        kernel_size,
        strides=strides,
        padding="same" if same else "valid",
        use_bias=use_bias,
        kernel_initializer=kernel_initializer,
        bias_initializer=bias_initializer,
        name=name,
        **options,
    )(x)


def activation(x: Any, kind: str | None, name: str) -> Any:
    """ReLU ("relu"), leaky ReLU of slope 0.2 ("lrelu") or nothing (None)."""
    if kind is None:
        return x
    if kind == "relu":
        return layers.ReLU(name=f"{name}_relu")(x)
    # Not layers.LeakyReLU: TensorFlow's graph optimizer gives up on its gradient, and with it on
    # all fusions of the step (a generator step took 170 ms instead of 144).
    return ops.maximum(x, LEAKY_SLOPE * x)


def instance_normalization(x: Any) -> Any:
    """Per image and channel over H x W: biased variance, epsilon inside the root, no affine."""
    centred = x - ops.mean(x, axis=(1, 2), keepdims=True)
    variance = ops.mean(ops.square(centred), axis=(1, 2), keepdims=True)
    return centred * ops.rsqrt(variance + NORM_EPSILON)


def adaptive_instance_normalization(x: Any, shift: Any, scale: Any) -> Any:
    """Instance normalization, then times scale plus shift, both (N, C); scale is used as it is.

    Reference: Huang and Belongie (2017), "Arbitrary style transfer in real-time with adaptive
    instance normalization", eq. 8.
    """
    channels = x.shape[-1]
    shift = ops.reshape(shift, (-1, 1, 1, channels))
    scale = ops.reshape(scale, (-1, 1, 1, channels))
    return instance_normalization(x) * scale + shift


def layer_normalization(x: Any, seed: int | None, name: str) -> Any:
    """Over C, H, W together: unbiased deviation, epsilon added to the deviation, affine.

    Gamma starts as U(0, 1), beta as 0, one pair per channel.
    """
    height, width, channels = x.shape[1:]
    count = height * width * channels
    centred = x - ops.mean(x, axis=(1, 2, 3), keepdims=True)
    variance = ops.sum(ops.square(centred), axis=(1, 2, 3), keepdims=True) / (count - 1)
    # the floor keeps the gradient of the root finite for a constant image; 1e-6 << epsilon
    deviation = ops.sqrt(ops.maximum(variance, 1e-12))
    normalized = centred / (deviation + NORM_EPSILON)
    return layers.EinsumDense(
        "bhwc,c->bhwc",
        output_shape=(height, width, channels),
        bias_axes="c",
        kernel_initializer=uniform(1.0, seed, name, low=0.0),
        name=name,
    )(normalized)


def logits_dtype() -> str | None:
    """float32 under a policy of 16 bits, too coarse for logits; None: as the policy says."""
    policy = keras.config.dtype_policy()
    return "float32" if policy.compute_dtype in ("float16", "bfloat16") else None


def image_normalization(x: Any, mean: Any, std: Any, channels: int, prefix: str) -> Any:
    """Scales 0..255 to [0, 1] and subtracts mean, divides by std (both in [0, 1] units).

    Raises:
        InputError: if only one of mean and std is given, or their length is wrong.
    """
    if mean is None and std is None:
        return x
    if mean is None or std is None:
        raise InputError("mean and std must be given together, or neither")
    try:
        means = np.broadcast_to(np.asarray(mean, np.float64), (channels,))
        deviations = np.broadcast_to(np.asarray(std, np.float64), (channels,))
    except ValueError:
        raise InputError(
            f"mean and std must be scalars or have one entry for each of the {channels} channels"
        ) from None
    if not (np.isfinite(means).all() and np.isfinite(deviations).all() and (deviations > 0).all()):
        raise InputError(
            f"mean {means.tolist()} and std {deviations.tolist()} must be finite and std above 0: "
            "give std 1 for a channel that never changes"
        )
    x = layers.Rescaling(1.0 / 255.0, name=f"{prefix}_rescaling")(x)
    return layers.Normalization(
        axis=-1,
        mean=[float(value) for value in means],
        variance=[float(value) ** 2 for value in deviations],
        name=f"{prefix}_normalization",
    )(x)
