"""Which parameter of a reference file is which variable of a Keras network, and the layouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_git.models import GeneratorNetworks
from keras_git.models.torch_parameters import Parameter, Parameters, affine, batch_normalization


def channels_last(images: np.ndarray) -> np.ndarray:
    """NCHW to NHWC."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def channels_first(images: Any) -> np.ndarray:
    """NHWC to NCHW."""
    return keras.ops.convert_to_numpy(images).transpose(0, 3, 1, 2)


def assign(parameters: Parameters, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
    """Copies every parameter from ``arrays[prefix + name]``."""
    for name, parameter in parameters.items():
        parameter.variable.assign(parameter.to_keras(arrays[prefix + name]))


def four_conv_parameters(network: keras.Model) -> Parameters:
    """Parameters of ``keras_git.models.four_conv``."""
    name, get = network.name, network.get_layer
    found: Parameters = {}
    for block in range(4):
        found |= affine(get(f"{name}_block{block}_conv"), f"features.{block}.0", "conv")
        found |= batch_normalization(get(f"{name}_block{block}_bn"), f"features.{block}.1")
    return found | affine(get(f"{name}_head"), "classifier", "dense")


def generator_parameters(
    networks: GeneratorNetworks, num_downsamplings: int, num_residual_blocks: int
) -> Parameters:
    """Parameters of ``keras_git.models.generator_networks``."""
    prefix = networks.generator.name
    found: Parameters = {}

    def conv(network: keras.Model, layer: str, name: str) -> None:
        nonlocal found
        found |= affine(network.get_layer(f"{prefix}_{layer}"), f"{name}.conv", "conv")

    style = networks.style_encoder
    conv(style, "style_encoder_stem", "enc_style.model.0")
    for index in range(4):
        conv(style, f"style_encoder_down{index}", f"enc_style.model.{index + 1}")
    output = style.get_layer(f"{prefix}_style_encoder_output")
    found |= affine(output, "enc_style.model.6", "conv1x1")

    content, last = networks.content_encoder, num_downsamplings + 1
    conv(content, "content_stem", "enc_content.model.0")
    for index in range(num_downsamplings):
        conv(content, f"content_down{index}", f"enc_content.model.{index + 1}")
    decoder = networks.decoder
    for block in range(num_residual_blocks):
        for part in range(2):
            there = f"model.{block}.model.{part}"
            conv(content, f"content_block{block}_conv{part}", f"enc_content.model.{last}.{there}")
            conv(decoder, f"decoder_block{block}_conv{part}", f"dec.model.0.{there}")
    for index in range(num_downsamplings):
        there = f"dec.model.{2 + 2 * index}"
        conv(decoder, f"decoder_up{index}", there)
        norm = decoder.get_layer(f"{prefix}_decoder_up{index}_norm")
        found[f"{there}.norm.gamma"] = Parameter(norm.kernel)
        found[f"{there}.norm.beta"] = Parameter(norm.bias)
    conv(decoder, "decoder_image", f"dec.model.{2 * num_downsamplings + 1}")
    for index, layer in enumerate(("mlp0", "mlp1", "mlp_output")):
        dense = decoder.get_layer(f"{prefix}_decoder_{layer}")
        found |= affine(dense, f"mlp.model.{index}.fc", "dense")
    return found


def discriminator_parameters(network: keras.Model, num_layers: int, num_scales: int) -> Parameters:
    """Parameters of ``keras_git.models.discriminator``."""
    found: Parameters = {}
    for scale in range(num_scales):
        here = f"{network.name}_scale{scale}"
        for index in range(num_layers):
            layer = network.get_layer(f"{here}_conv{index}")
            found |= affine(layer, f"cnns.{scale}.{index}.conv", "conv")
        layer = network.get_layer(f"{here}_scores")
        found |= affine(layer, f"cnns.{scale}.{num_layers}", "conv")
    return found
