"""Families of the networks: resnet, fourconv, adaingen, msdis."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_git import losses
from keras_git.models import discriminator, four_conv, generator_networks, resnet, torch_parameters
from tests.reference import weights
from tests.reference.gradients import Probe
from tests.reference.registry import Arrays, Check, Skip


def _loss(text: str, arrays: Arrays) -> keras.losses.Loss:
    """The loss that a configuration names, such as "CE" or "LDAM(max_m=0.5,s=30)"."""
    name = text.partition("(")[0]
    options = {key: float(value) for key, value in re.findall(r"(\w+)=([-+.\deE]+)", text)}
    if name == "CE":
        return losses.CrossEntropy()
    if name == "LDAM":
        counts = arrays["class_counts"]
        margin, scale = options.get("max_m", 0.5), options.get("s", 30.0)
        return losses.LDAM(counts, max_margin=margin, scale=scale)
    if name.lower().startswith("focal"):
        return losses.Focal(options.get("gamma", 1.0))
    raise ValueError(f"unknown loss {text!r}")


def _classifier(
    arrays: Arrays,
    config: dict,
    network: keras.Model,
    parameters: weights.Parameters,
    tolerance: dict[str, float],
    gradient_measure: str,
) -> Iterator[Check | Skip]:
    weights.assign(parameters, arrays, "w/")
    images = weights.channels_last(arrays["x"])
    # before the training pass, which changes the running statistics
    logits = keras.ops.convert_to_numpy(network(images, training=False))
    yield Check("logits_eval", logits, "abs", tolerance["logits"])
    loss = _loss(config["loss"], arrays)
    logs, gradients = Probe(network, loss).gradients(images, arrays["labels"])
    by_variable = {id(v): g for v, g in zip(network.trainable_variables, gradients, strict=True)}
    yield Check("logits_train", logs["logits"], "abs", tolerance["logits"])
    yield Check("loss_train", logs["loss"], "abs", tolerance["loss"])
    for name, parameter in parameters.items():
        if id(parameter.variable) in by_variable:
            gradient = parameter.from_keras(by_variable[id(parameter.variable)])
            yield Check(f"grad/{name}", gradient, gradient_measure, tolerance["gradient"])
        else:
            updated = parameter.from_keras(parameter.variable)
            yield Check(f"after_train_forward/{name}", updated, "abs", tolerance["statistics"])


def resnet_family(arrays: Arrays, config: dict) -> Iterator[Check | Skip]:
    """CIFAR ResNets of any depth, with the plain or the normalized head."""
    head = "cosine" if config["normalized_head"] else "linear"
    depth = int(re.fullmatch(r"resnet(\d+)", config["arch"])[1])
    shape = (config["size"], config["size"], config["channels"])
    network = resnet(shape, config["classes"], depth, head=head, seed=0)
    tolerance = {"logits": 2e-4, "loss": 1e-5, "gradient": 1e-4, "statistics": 2e-5}
    if head == "cosine":
        tolerance |= {"logits": 2e-5}
    if config["loss"].startswith("LDAM"):
        tolerance |= {"loss": 1e-4}
    parameters = torch_parameters.resnet_parameters(network, depth, head)
    return _classifier(arrays, config, network, parameters, tolerance, "rel")


def four_conv_family(arrays: Arrays, config: dict) -> Iterator[Check | Skip]:
    """The four-convolution classifier."""
    shape = (config["size"], config["size"], config["channels"])
    network = four_conv(shape, config["classes"], width=config["hidden"], seed=0)
    tolerance = dict.fromkeys(("logits", "loss", "gradient", "statistics"), 2e-5)
    parameters = weights.four_conv_parameters(network)
    return _classifier(arrays, config, network, parameters, tolerance, "abs")


def generator_options(config: dict) -> dict[str, Any]:
    """Options of ``generator_networks`` from the names of the reference."""
    return {
        "width": config["dim"],
        "style_dim": config["style_dim"],
        "mlp_width": config["mlp_dim"],
        "num_downsamplings": config["n_downsample"],
        "num_residual_blocks": config["n_res"],
        "padding": config["pad_type"],
        "activation": config["activ"],
    }


def discriminator_options(config: dict) -> dict[str, Any]:
    """Options of ``discriminator`` from the names of the reference, without the scales."""
    if config.get("norm", "none") != "none":
        raise ValueError(f"no discriminator with normalization {config['norm']!r}")
    return {
        "width": config["dim"],
        "num_layers": config["n_layer"],
        "padding": config["pad_type"],
        "activation": config["activ"],
    }


def generator_family(arrays: Arrays, config: dict) -> Iterator[Check | Skip]:
    """Content encoder, style encoder, decoder and the AdaIN parameters."""
    shape = (config["size"], config["size"], config["channels"])
    networks = generator_networks(shape, seed=0, **generator_options(config))
    parameters = weights.generator_parameters(networks, config["n_downsample"], config["n_res"])
    weights.assign(parameters, arrays, "w/")
    for key in arrays:
        if re.fullmatch(r"w/dec\..*\.running_(mean|var)", key):
            yield Skip(key, "unused placeholder")

    images = keras.ops.convert_to_tensor(weights.channels_last(arrays["x"]))
    given = keras.ops.convert_to_tensor(arrays["style_given"][:, :, 0, 0])
    content = networks.content_encoder(images)
    style = networks.style_encoder(images)

    def map_of(values: Any) -> np.ndarray:
        return keras.ops.convert_to_numpy(values)[:, :, None, None]

    yield Check("content", weights.channels_first(content), "abs", 1e-4)
    yield Check("style_encoded", map_of(style), "abs", 1e-5)
    layer = networks.decoder.get_layer(f"{networks.decoder.name}_mlp_output")
    adain = keras.Model(networks.decoder.inputs, layer.output)([content, given])
    yield Check("adain_params", keras.ops.convert_to_numpy(adain), "abs", 1e-5)
    # the same result two ways: the decoder on the code, the whole generator on the image
    decoded = networks.generator([images, given])
    yield Check("decoded_given_style", weights.channels_first(decoded), "abs", 1e-4)
    reconstruction = networks.decoder([content, style])
    yield Check("reconstruction", weights.channels_first(reconstruction), "abs", 1e-4)
    again = networks.content_encoder(decoded)
    yield Check("reencoded_content", weights.channels_first(again), "abs", 3e-4)
    yield Check("reencoded_style", map_of(networks.style_encoder(decoded)), "abs", 3e-4)


def discriminator_family(arrays: Arrays, config: dict) -> Iterator[Check | Skip]:
    """Scores of the multi-scale discriminator and the adversarial losses."""
    shape = (config["size"], config["size"], config["channels"])
    for num_scales in np.atleast_1d(config["num_scales"]).tolist():
        here = f"scales{num_scales}/"
        network = discriminator(
            shape, num_scales=num_scales, seed=0, **discriminator_options(config)
        )
        parameters = weights.discriminator_parameters(network, config["n_layer"], num_scales)
        weights.assign(parameters, arrays, f"{here}w/")
        scores = {}
        for kind in ("fake", "real"):
            outputs = network(weights.channels_last(arrays[f"{here}x_{kind}"]))
            scores[kind] = outputs if isinstance(outputs, (list, tuple)) else [outputs]
            for scale, output in enumerate(scores[kind]):
                key = f"{here}out_{kind}_{scale}"
                yield Check(key, weights.channels_first(output), "abs", 2e-5)
        for loss in losses.ADVERSARIAL_LOSSES:
            value = losses.discriminator_loss(scores["fake"], scores["real"], loss)
            yield Check(f"{here}dis_loss_{loss}", keras.ops.convert_to_numpy(value), "abs", 1e-5)
            value = losses.generator_loss(scores["fake"], loss)
            yield Check(f"{here}gen_loss_{loss}", keras.ops.convert_to_numpy(value), "abs", 1e-5)


FAMILIES = {
    "resnet": resnet_family,
    "fourconv": four_conv_family,
    "adaingen": generator_family,
    "msdis": discriminator_family,
}
