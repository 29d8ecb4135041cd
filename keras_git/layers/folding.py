"""Whitened layers, and batch normalization, folded into plain Keras layers for inference."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.layers.normalization import SampleStatisticsLayer
from keras_git.layers.whitened import Whitened
from keras_git.layers.whitened_conv import WhitenedConv2D
from keras_git.layers.whitened_conv_transpose import WhitenedConv2DTranspose
from keras_git.layers.whitened_dense import WhitenedDense

_PLAIN: dict[type, Any] = {
    WhitenedConv2D: keras.layers.Conv2D,
    WhitenedConv2DTranspose: keras.layers.Conv2DTranspose,
    WhitenedDense: keras.layers.Dense,
}
# Layers into which a batch normalization behind them can go.
_SCALABLE = (
    *_PLAIN,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
)


def fold(model: keras.Model) -> keras.Model:
    """A model of plain Keras layers with the same outputs in inference.

    Whitening goes into kernels and biases, and so does a `BatchNormalization` that directly follows
    a convolution or dense layer without activation. Normalization by a sample's own statistics, in
    a whitened layer or as a layer of its own, cannot be folded and becomes plain operations;
    without it inference costs what the plain layers cost. A whitened transposed convolution keeps a
    layer that subtracts the mean. The result opens with ``import keras`` alone, on every backend,
    and is for inference: trained further, it is an ordinary network without whitening.

    Args:
        model: functional or sequential, built; models inside it are folded too.

    Returns:
        A functional model with weights of its own, not compiled.

    Raises:
        InputError: a subclassed or an unbuilt model, or a whitened layer inside another layer.
    """
    functional = _functional(model)
    merged = _merged_normalizations(functional)
    made: dict[int, Any] = {}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if any(layer is normalization for normalization in merged.values()):
            return args[0]  # it is in the layer before
        if isinstance(layer, (Whitened, SampleStatisticsLayer)):
            x = args[0] if args else next(iter(kwargs.values()))
            if isinstance(layer, SampleStatisticsLayer):
                return layer.normalized(x)
            return _call_whitened(layer, merged.get(layer.name), made, x)
        if id(layer) not in made:
            made[id(layer)] = _copied(layer, biased=layer.name in merged)
        plain = made[id(layer)]
        outputs = plain(*args, **kwargs)
        if not isinstance(plain, keras.Model) and getattr(layer, "weights", None):
            weights = layer.get_weights()
            if layer.name in merged:
                kernel, bias = (*weights, np.zeros(1, "float32"))[:2]
                weights = _scaled(layer, kernel, bias, merged[layer.name])
            plain.set_weights(weights)
            if isinstance(plain, keras.layers.Normalization):
                plain.finalize_state()  # what it applies are constants made of its weights
        return outputs

    # The copies are made in `call`, which knows what a layer becomes.
    clone = keras.models.clone_model(
        functional, clone_function=lambda layer: layer, call_function=call
    )
    return clone


def _functional(model: keras.Model) -> keras.Model:
    """The layers of a model as an uncompiled functional one."""
    if not isinstance(model, keras.Model):
        raise InputError(f"fold takes a Keras model, not {type(model).__name__}")
    try:
        inputs, outputs = model.inputs, model.outputs
    except (AttributeError, ValueError):
        inputs = outputs = None
    if not inputs or not outputs:
        raise InputError(
            f"model {model.name!r} is subclassed or not built: fold takes functional and "
            "sequential models; build it first, or fold the network inside"
        )
    if isinstance(model, keras.Sequential):
        return keras.Model(inputs[0], outputs[0], name=model.name)
    return keras.Model(model.input, model.output, name=model.name)


def _histories(value: Any) -> Iterator[str]:
    """Names of the layers whose outputs a serialized call takes."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]["keras_history"][0]
        else:
            for item in value.values():
                yield from _histories(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _histories(item)


def _merged_normalizations(model: keras.Model) -> dict[str, keras.layers.BatchNormalization]:
    """Name of a layer -> the batch normalization that is its only consumer and goes into it."""
    config = model.get_config()
    sources = {
        entry["name"]: list(_histories(entry["inbound_nodes"])) for entry in config["layers"]
    }
    calls = {entry["name"]: len(entry["inbound_nodes"]) for entry in config["layers"]}
    consumers: dict[str, list[str]] = {}
    for name, inputs in sources.items():
        for source in inputs:
            consumers.setdefault(source, []).append(name)
    ends = _leaves(config["output_layers"])
    layers: dict[str, Any] = {layer.name: layer for layer in model.layers}
    found = {}
    for name, inputs in sources.items():
        normalization = layers.get(name)
        if not isinstance(normalization, keras.layers.BatchNormalization) or len(inputs) != 1:
            continue
        before: Any = layers.get(inputs[0])
        if (
            # no subclass: it may do something else with its kernel
            type(before) in _SCALABLE
            and len(before.weights) - len(_state(before)) == 1 + before.use_bias
            and calls[before.name] == 1
            and consumers[before.name] == [name]
            and before.name not in ends
            and before.activation is keras.activations.linear
            and _axis(normalization) == _channel_axis(before)
            and not _always_training(config, name)
        ):
            found[before.name] = normalization
    return found


def _state(layer: Any) -> list[Any]:
    """Running statistics of a whitened layer."""
    return layer.statistics.weights if isinstance(layer, Whitened) else []


def _always_training(config: dict[str, Any], name: str) -> bool:
    """Whether a layer is called with ``training=True``, in inference too."""
    (entry,) = (entry for entry in config["layers"] if entry["name"] == name)
    return any(node["kwargs"].get("training") for node in entry["inbound_nodes"])


def _leaves(value: Any) -> set[str]:
    """All strings in a nested structure."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, (list, tuple)):
        return set().union(*map(_leaves, value))
    if isinstance(value, dict):
        return set().union(*map(_leaves, value.values()))
    return set()


def _axis(normalization: Any) -> int:
    rank = len(normalization.input.shape)
    axis = normalization.axis
    axis = axis[0] if isinstance(axis, (list, tuple)) else axis
    return axis % rank


def _channel_axis(layer: Any) -> int:
    rank = len(layer.output.shape)
    return 1 if getattr(layer, "data_format", "") == "channels_first" else rank - 1


def _affine(normalization: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift per channel that a batch normalization is in inference, float64."""

    def value(name: str, default: float) -> np.ndarray:
        variable = getattr(normalization, name, None)
        if variable is None:
            return np.asarray(default)
        return ops.convert_to_numpy(variable).astype(np.float64)

    deviation = np.sqrt(value("moving_variance", 1.0) + normalization.epsilon)
    scale = value("gamma", 1.0) / deviation
    return scale, value("beta", 0.0) - value("moving_mean", 0.0) * scale


def _scaled(layer: Any, kernel: np.ndarray, bias: Any, normalization: Any) -> list[np.ndarray]:
    """Kernel and bias of a layer with a batch normalization behind it."""
    scale, shift = _affine(normalization)
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        factor = scale.reshape(kernel.shape[2:])
    elif isinstance(layer, keras.layers.Conv2DTranspose):
        factor = scale[:, None]  # the kernel's last axis is the input
    else:
        factor = scale
    return [(kernel * factor).astype(kernel.dtype), (bias * scale + shift).astype(kernel.dtype)]


def _copied(layer: Any, biased: bool) -> Any:
    """A plain layer, an operation or a model of the same configuration, without weights."""
    if isinstance(layer, keras.Model):
        return fold(layer)
    inside = getattr(layer, "_flatten_layers", lambda **options: ())
    for part in inside(include_self=False):
        if isinstance(part, (Whitened, SampleStatisticsLayer)):
            raise InputError(
                f"layer {layer.name!r} holds {part.name!r}, a {type(part).__name__}: fold takes "
                "models whose whitened layers are not inside other layers"
            )
    config = layer.get_config()
    if biased:
        config["use_bias"] = True
    return type(layer).from_config(config)


def _plain_layer(layer: Whitened, **changes: Any) -> Any:
    """The Keras layer of the same name without "Whitened"."""
    kind = next(plain for whitened, plain in _PLAIN.items() if isinstance(layer, whitened))
    config = layer.get_config()
    for name in inspect.signature(Whitened.__init__).parameters:
        config.pop(name, None)
    return kind.from_config({**config, "use_bias": True, **changes})


def _call_whitened(layer: Whitened, normalization: Any, made: dict[int, Any], x: Any) -> Any:
    """Applies the plain layers that stand for a whitened one."""
    if id(layer) not in made:
        made[id(layer)] = _replacement(layer, normalization)
    return made[id(layer)](x)


def _replacement(layer: Whitened, normalization: Any) -> Callable[[Any], Any]:
    """A function of the input that applies plain layers, each made once."""
    kernel, bias, *centre = layer.folded_weights()
    sums = None
    if layer.feature_normalization == "receptive_field":
        sums = ops.convert_to_numpy(layer.kernel_sums(kernel))
    if normalization is not None:
        kernel, bias = _scaled(layer, kernel, bias, normalization)
        sums = None if sums is None else (sums * _affine(normalization)[0]).astype(sums.dtype)
    before: list[Any] = []
    changes: dict[str, Any] = {}
    if centre and centre[0].any():
        mean = [float(value) for value in centre[0]]
        axis = 1 if layer.data_format == "channels_first" else -1
        before.append(
            keras.layers.Normalization(
                axis,
                mean=mean,
                variance=[1.0] * len(mean),
                dtype=layer.dtype_policy,
                name=f"{layer.name}_mean",
            )
        )
    if isinstance(layer, WhitenedConv2D) and layer.symmetric_padding is not None:
        pads = layer.symmetric_padding
        before.append(
            keras.layers.ZeroPadding2D(
                pads,
                data_format=layer.data_format,
                dtype=layer.dtype_policy,
                name=f"{layer.name}_padding",
            )
        )
        changes["padding"] = "valid"
    if sums is None:
        plain = _plain_layer(layer, **changes)
    else:
        plain = _plain_layer(layer, use_bias=False, activation=None, **changes)
        shift = keras.layers.Conv2D(
            layer.filters,
            1,
            data_format=layer.data_format,
            dtype=layer.dtype_policy,
            name=f"{layer.name}_shift",
        )
        activation = keras.layers.Activation(
            layer.activation, dtype=layer.dtype_policy, name=f"{layer.name}_activation"
        )

    def apply(x: Any) -> Any:
        x = layer.normalized(x)
        padded = x
        for step in before:
            padded = step(padded)
        outputs = plain(padded)
        if sums is None:
            plain.set_weights([kernel, bias])
            return outputs
        plain.set_weights([kernel])
        gain, moved = layer.local_correction(layer.local_moments(x), outputs.shape)
        offset = shift(-moved)
        shift.set_weights([sums.reshape(1, 1, 1, -1), bias])
        return activation(outputs * ops.cast(gain, outputs.dtype) + offset)

    return apply
