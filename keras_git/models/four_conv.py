"""A small classifier of four convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
from keras import layers

from keras_git.errors import InputError
from keras_git.models import _blocks
from keras_git.models.normalized_convolution import batch_normalization


def four_conv(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 64,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    seed: int | None = None,
    name: str = "classifier",
) -> keras.Model:
    """Four times (3x3 convolution, batch normalization, ReLU, 2x2 max pooling), then a linear head.

    The four halvings must end at 1x1, so images have 16 to 31 pixels. All weights and biases
    start as U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Args:
        input_shape: (height, width, channels), 16 to 31 pixels, 1 or 3 channels.
        num_classes: Number of classes, at least 2.
        width: Channels of every convolution.
        mean: Channel means in [0, 1] units; with mean and std the network takes images 0..255,
            without them images that are normalized already.
        std: Channel standard deviations in [0, 1] units.
        seed: Seed of the initial weights; None draws fresh ones.
        name: Name of the model and prefix of its layers.

    Returns:
        Functional model from float32 (N, height, width, channels) to logits (N, num_classes).

    Raises:
        InputError: for an impossible width or shape.

    Reference:
        Snell et al. (2017), "Prototypical networks for few-shot learning", section 3.1 (the
        four-block embedding network).
    """
    _blocks.check_positive(num_classes=num_classes, width=width)
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}; it must be at least 2")
    shape = _blocks.check_image_shape(input_shape, smallest=16, largest=31)
    inputs = keras.Input(shape, name=f"{name}_images")
    x = _blocks.image_normalization(inputs, mean, std, shape[-1], name)
    for index in range(4):
        layer = f"{name}_block{index}_conv"
        limit = 1.0 / math.sqrt(9 * x.shape[-1])
        x = _blocks.convolution(
            x,
            width,
            3,
            kernel_initializer=_blocks.uniform(limit, seed, layer),
            bias_initializer=_blocks.uniform(limit, seed, f"{layer}_bias"),
            name=layer,
        )
        x = batch_normalization(x, f"{name}_block{index}_bn")
        x = layers.ReLU(name=f"{name}_block{index}_relu")(x)
        x = layers.MaxPooling2D(2, name=f"{name}_block{index}_pool")(x)
    x = layers.Flatten(name=f"{name}_flatten")(x)
    limit = 1.0 / math.sqrt(x.shape[-1])
    outputs = layers.Dense(
        num_classes,
        dtype=_blocks.logits_dtype(),
        kernel_initializer=_blocks.uniform(limit, seed, f"{name}_head"),
        bias_initializer=_blocks.uniform(limit, seed, f"{name}_head_bias"),
        name=f"{name}_head",
    )(x)
    return keras.Model(inputs, outputs, name=name)
