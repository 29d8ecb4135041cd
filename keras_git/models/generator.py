"""The image-to-image generator: content encoder, style encoder and AdaIN decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import layers

from keras_git.errors import InputError
from keras_git.models import _blocks


class GeneratorNetworks(NamedTuple):
    """The networks of one domain; generator shares the weights of the other two.

    Attributes:
        content_encoder: image [-1, 1] (N, H, W, C) -> content code (N, H/2^n, W/2^n, width*2^n).
        style_encoder: image -> style code (N, style_dim).
        decoder: [content, style] -> image in [-1, 1].
        generator: [image, style] -> image; the decoder applied to the content of the image.
    """

    content_encoder: keras.Model
    style_encoder: keras.Model
    decoder: keras.Model
    generator: keras.Model


def generator_networks(
    input_shape: Sequence[int],
    *,
    width: int = 64,
    style_dim: int = 8,
    mlp_width: int = 256,
    num_downsamplings: int = 2,
    num_residual_blocks: int = 4,
    style_downsamplings: int = 4,
    outer_kernel: int = 7,
    upsampling_kernel: int = 5,
    padding: str = "reflect",
    activation: str = "relu",
    seed: int | None = None,
    prefix: str = "generator",
) -> GeneratorNetworks:
    """Builds the MUNIT generator of one domain.

    Randomness is an input: a style drawn from N(0, I) gives a random variant of the image. The
    output of layer ``{prefix}_decoder_mlp_output`` of the decoder holds the AdaIN parameters: for
    each convolution of the residual blocks in order, first the shifts, then the scales.

    Args:
        input_shape: (height, width, channels): multiples of 2^num_downsamplings from 16 to 64,
            1 or 3 channels.
        width: Channels of the first convolution; each downsampling doubles them.
        style_dim: Entries of the style code.
        mlp_width: Hidden units of the network that turns a style into AdaIN parameters.
        num_downsamplings: Halvings of the content encoder.
        num_residual_blocks: Residual blocks of the content encoder, and again of the decoder.
        style_downsamplings: Halvings of the style encoder (channels double in the first two).
        outer_kernel: Odd size of the first and last convolutions.
        upsampling_kernel: Odd size of the convolutions after an upsampling.
        padding: "reflect", "replicate" or "zero".
        activation: "relu" or "lrelu" (slope 0.2).
        seed: Seed of the initial weights; None draws fresh ones.
        prefix: Prefix of all model and layer names.

    Returns:
        Four functional models; images in and out are float32 in [-1, 1].

    Raises:
        InputError: for impossible sizes or unknown options.

    Reference:
        Huang et al. (2018), "Multimodal unsupervised image-to-image translation", section 5.1 and
        appendix B; Zhou et al. (2022), "Do deep networks transfer invariances across classes?".
    """
    _blocks.check_positive(
        width=width,
        style_dim=style_dim,
        mlp_width=mlp_width,
        num_residual_blocks=num_residual_blocks,
        num_downsamplings=num_downsamplings,
        style_downsamplings=style_downsamplings,
        outer_kernel=outer_kernel,
        upsampling_kernel=upsampling_kernel,
    )
    for option, size in (("outer_kernel", outer_kernel), ("upsampling_kernel", upsampling_kernel)):
        if size % 2 == 0:
            raise InputError(f"{option} is {size}; it must be odd")
    _blocks.check_choice("padding", padding, _blocks.PADDINGS)
    _blocks.check_choice("activation", activation, _blocks.ACTIVATIONS)
    shape = _blocks.check_image_shape(
        input_shape, smallest=16, largest=64, multiple=2**num_downsamplings
    )

    def conv(x: Any, filters: int, kernel: int, name: str, strides: int = 1) -> Any:
        return _blocks.convolution(
            x,
            filters,
            kernel,
            strides=strides,
            padding=padding,
            kernel_initializer=_blocks.he_normal(seed, name),
            name=name,
        )

    def dense(x: Any, units: int, name: str) -> Any:
        return layers.Dense(units, kernel_initializer=_blocks.he_normal(seed, name), name=name)(x)

    def content_encoder() -> keras.Model:
        start = f"{prefix}_content"
        inputs = x = keras.Input(shape, name=f"{start}_images")
        x = conv(x, width, outer_kernel, f"{start}_stem")
        x = _blocks.instance_normalization(x)
        x = _blocks.activation(x, activation, f"{start}_stem")
        filters = width
        for index in range(num_downsamplings):
            filters *= 2
            name = f"{start}_down{index}"
            x = conv(x, filters, 4, name, strides=2)
            x = _blocks.instance_normalization(x)
            x = _blocks.activation(x, activation, name)
        for index in range(num_residual_blocks):
            name = f"{start}_block{index}"
            y = conv(x, filters, 3, f"{name}_conv0")
            y = _blocks.instance_normalization(y)
            y = _blocks.activation(y, activation, name)
            y = conv(y, filters, 3, f"{name}_conv1")
            x = layers.Add(name=f"{name}_add")([x, _blocks.instance_normalization(y)])
        return keras.Model(inputs, x, name=f"{prefix}_content_encoder")

    def style_encoder() -> keras.Model:
        start = f"{prefix}_style_encoder"
        inputs = x = keras.Input(shape, name=f"{start}_images")
        filters = width
        x = conv(x, filters, outer_kernel, f"{start}_stem")
        x = _blocks.activation(x, activation, f"{start}_stem")
        for index in range(style_downsamplings):
            filters *= 2 if index < 2 else 1
            name = f"{start}_down{index}"
            x = conv(x, filters, 4, name, strides=2)
            x = _blocks.activation(x, activation, name)
        x = layers.GlobalAveragePooling2D(name=f"{start}_pool")(x)
        # a 1x1 convolution of a 1x1 map
        return keras.Model(inputs, dense(x, style_dim, f"{start}_output"), name=start)

    def decoder(content_shape: tuple[int, int, int]) -> keras.Model:
        start = f"{prefix}_decoder"
        content = x = keras.Input(content_shape, name=f"{start}_content")
        style = keras.Input((style_dim,), name=f"{start}_style")
        filters = content_shape[-1]
        hidden = style
        for index in range(2):
            hidden = dense(hidden, mlp_width, f"{start}_mlp{index}")
            hidden = _blocks.activation(hidden, activation, f"{start}_mlp{index}")
        parameters = dense(hidden, 4 * filters * num_residual_blocks, f"{start}_mlp_output")
        for index in range(num_residual_blocks):
            name = f"{start}_block{index}"
            y = x
            for part in range(2):
                offset = (2 * index + part) * 2 * filters
                shift = parameters[:, offset : offset + filters]
                scale = parameters[:, offset + filters : offset + 2 * filters]
                y = conv(y, filters, 3, f"{name}_conv{part}")
                y = _blocks.adaptive_instance_normalization(y, shift, scale)
                if part == 0:
                    y = _blocks.activation(y, activation, name)
            x = layers.Add(name=f"{name}_add")([x, y])
        for index in range(num_downsamplings):
            filters //= 2
            name = f"{start}_up{index}"
            x = layers.UpSampling2D(2, interpolation="nearest", name=f"{name}_nearest")(x)
            x = conv(x, filters, upsampling_kernel, name)
            x = _blocks.layer_normalization(x, seed, f"{name}_norm")
            x = _blocks.activation(x, activation, name)
        x = conv(x, shape[-1], outer_kernel, f"{start}_image")
        x = layers.Activation("tanh", name=f"{start}_tanh")(x)
        return keras.Model([content, style], x, name=start)

    encoder = content_encoder()
    decoding = decoder(tuple(encoder.output.shape[1:]))
    image = keras.Input(shape, name=f"{prefix}_image_input")
    code = keras.Input((style_dim,), name=f"{prefix}_style_input")
    generator = keras.Model([image, code], decoding([encoder(image), code]), name=prefix)
    return GeneratorNetworks(encoder, style_encoder(), decoding, generator)
