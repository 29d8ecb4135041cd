"""The multi-scale patch discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from keras_git.models import _blocks

INITIAL_DEVIATION = 0.02


def half_size(x: Any, name: str) -> Any:
    """3x3 average pooling at stride 2, symmetric padding of 1 that does not count.

    "same" pooling of Keras would pad on the right only.
    """
    ones = ops.ones_like(x[..., :1])

    def pooled(values: Any, part: str) -> Any:
        values = layers.ZeroPadding2D(1, name=f"{name}_{part}_pad")(values)
        return layers.AveragePooling2D(3, strides=2, name=f"{name}_{part}")(values)

    return pooled(x, "sum") / pooled(ones, "count")


def discriminator(
    input_shape: Sequence[int],
    *,
    width: int = 64,
    num_layers: int = 4,
    num_scales: int = 1,
    padding: str = "reflect",
    activation: str = "lrelu",
    seed: int | None = None,
    prefix: str = "discriminator",
) -> keras.Model:
    """Builds the discriminator: per scale num_layers 4x4 convolutions at stride 2, then 1x1.

    Channels double from layer to layer; no normalization. Every further scale sees the image
    average-pooled to half the size. Weights start as N(0, 0.02^2), biases as 0.

    Args:
        input_shape: (height, width, channels): 16 to 64 pixels, 1 or 3 channels.
        width: Channels of the first convolution.
        num_layers: Convolutions at stride 2 per scale.
        num_scales: Number of scales.
        padding: "reflect", "replicate" or "zero".
        activation: "lrelu" (slope 0.2) or "relu".
        seed: Seed of the initial weights; None draws fresh ones.
        prefix: Name of the model and prefix of its layers.

    Returns:
        Functional model from images in [-1, 1] to a list with one map of raw scores
        (N, height, width, 1) per scale.

    Raises:
        InputError: if the maps get too small, or for unknown options.

    Reference:
        Huang et al. (2018), "Multimodal unsupervised image-to-image translation", appendix B;
        Wang et al. (2018), "High-resolution image synthesis and semantic manipulation with
        conditional GANs", section 3.2.
    """
    _blocks.check_positive(width=width, num_layers=num_layers, num_scales=num_scales)
    _blocks.check_choice("padding", padding, _blocks.PADDINGS)
    _blocks.check_choice("activation", activation, _blocks.ACTIVATIONS)
    shape = _blocks.check_image_shape(input_shape, smallest=16, largest=64)

    def normal(name: str) -> keras.initializers.Initializer:
        return keras.initializers.RandomNormal(
            0.0, INITIAL_DEVIATION, seed=_blocks.layer_seed(seed, name)
        )

    inputs = image = keras.Input(shape, name=f"{prefix}_images")
    scores = []
    for scale in range(num_scales):
        if scale > 0:
            image = half_size(image, f"{prefix}_half{scale}")
        x = image
        for index in range(num_layers):
            name = f"{prefix}_scale{scale}_conv{index}"
            x = _blocks.convolution(
                x,
                width * 2**index,
                4,
                strides=2,
                padding=padding,
                kernel_initializer=normal(name),
                name=name,
            )
            x = _blocks.activation(x, activation, name)
        name = f"{prefix}_scale{scale}_scores"
        scores.append(layers.Conv2D(1, 1, kernel_initializer=normal(name), name=name)(x))
    return keras.Model(inputs, scores, name=prefix)
