"""Families of the whitened layers: isqrt, deconv, delinear, deconvT, box filter, rfnorm, net3."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git import backend, layers
from keras_git.layers.normalization import box_sum
from tests.reference.gradients import Passes
from tests.reference.registry import Arrays, Check
from tests.reference.weights import channels_first, channels_last

_NORMALIZATIONS = {"none": None, "layernorm": "sample", "l1norm": "l1", "rfconv": "receptive_field"}
_OUTPUT, _GRADIENT, _STEM = 2e-5, 5e-5, 3e-3


def _compiled(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, compiled on JAX alone, which is slow operation by operation."""
    if keras.config.backend() == "jax":
        return backend.compiled(function, [])
    return lambda values: function(ops.convert_to_tensor(values))


def _inverse_sqrt(name: str, matrices: np.ndarray) -> np.ndarray:
    """What a key such as "inverse_newton_trace_it5_n4_c10" asks for."""
    found = re.match(r"(.+?)(_trace)?_it(\d+)", name)
    if found is None:
        raise ValueError(f"unknown key {name!r}")
    method, trace, iterations = found.groups()
    root = _root(method, "trace" if trace else "frobenius", int(iterations))
    return ops.convert_to_numpy(root(matrices))


@functools.cache  # compiled once for all matrices of a size
def _root(method: str, normalizer: str, iterations: int) -> Callable[[Any], Any]:
    return _compiled(
        functools.partial(
            layers.inverse_sqrt, iterations=iterations, method=method, normalizer=normalizer
        )
    )


def inverse_sqrt_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """Matrices, their exact inverse roots and those after some iterations."""
    del config
    for key in arrays:
        if key == "A" or key.startswith("A_"):
            matrices = arrays[key].astype(np.float64)
            values, vectors = np.linalg.eigh(matrices)
            exact = (vectors / np.sqrt(values)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
            yield Check(f"exact{key[1:]}", exact, "rel", 1e-4)
            for other in arrays:
                if "_it" in other and (key == "A" or other.endswith(key[1:])):
                    iterations = int(re.search(r"_it(\d+)", other)[1])
                    tolerance = 2e-5 if iterations <= 5 else 2e-4
                    ours = _inverse_sqrt(other, arrays[key])
                    yield Check(other, ours, "rel", tolerance)


def _options(arrays: Arrays) -> dict[str, Any]:
    """Arguments of a layer from the `cfg_` scalars."""

    def value(name: str, default: Any = None) -> Any:
        return arrays[f"cfg_{name}"].item() if f"cfg_{name}" in arrays else default

    for name in ("effective_block", "effective_sampling_stride", "kernel_size"):
        value(name)  # follow from the others
    value("rf_size")
    value("rf_eps")
    return {
        "stride": int(value("stride", 1)),
        "padding": int(value("padding", 0)),
        "dilation": int(value("dilation", 1)),
        "groups": int(value("groups", 1)),
        "norm": str(value("norm_type", "none")),
        "whitening": {
            "block_size": int(value("block")),
            "epsilon": float(np.float32(value("eps", 1e-5))),
            "iterations": int(value("n_iter", 5)),
            "momentum": 1.0 - round(float(value("momentum", 0.1)), 6),
            "sampling_stride": int(value("sampling_stride", 1)),
            "rules": "original",
        },
    }


def _conv_network(arrays: Arrays, shape: tuple[int, ...]) -> tuple[keras.Model, Any]:
    """A network of one whitened convolution with the weights of the file, and the layer."""
    options = _options(arrays)
    weight = arrays["weight"]
    size, dilation, padding = weight.shape[2:], options["dilation"], options["padding"]
    same = all(padding == (k - 1) * dilation // 2 and k % 2 for k in size)
    inputs = keras.Input((*shape[2:], shape[1]))
    x, norm = inputs, _NORMALIZATIONS[options["norm"]]
    if padding and not same:
        if norm == "receptive_field":
            raise ValueError(f"padding {padding} is neither none nor that of 'same'")
        if norm is not None:
            kind = layers.SampleNormalization if norm == "sample" else layers.L1Normalization
            x, norm = kind(options["whitening"]["epsilon"])(x), None
        x = keras.layers.ZeroPadding2D(padding)(x)
    layer = layers.WhitenedConv2D(
        weight.shape[0],
        size,
        strides=options["stride"],
        padding="same" if padding and same else "valid",
        dilation_rate=dilation,
        groups=options["groups"],
        feature_normalization=norm,
        **options["whitening"],
    )
    network = keras.Model(inputs, layer(x))
    layer.kernel.assign(weight.transpose(2, 3, 1, 0))
    layer.bias.assign(arrays["bias"])
    return network, layer


def _state(layer: Any, arrays: Arrays, tolerance: float) -> Iterator[Check]:
    """Running mean and matrix in the shapes of the file."""
    mean = ops.convert_to_numpy(layer.statistics.moving_mean)
    matrix = ops.convert_to_numpy(layer.statistics.moving_whitening)
    matrix = matrix[0] if len(matrix) == 1 else matrix
    yield Check("running_mean", mean.reshape(-1), "rel", tolerance)
    yield Check("running_cov_isqrt", matrix, "rel", tolerance)
    yield Check("running_cov_isqrt_rows0to63", matrix[:64], "rel", tolerance)
    if matrix.ndim == 2:
        yield Check("running_cov_isqrt_diag", np.diagonal(matrix), "rel", tolerance)
        # the reference sums the squares in float32
        norm = np.linalg.norm(matrix.astype(np.float64))
        yield Check("running_cov_isqrt_fro", norm, "rel", 1e-4)


def conv_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """One whitened convolution: training, gradients, running statistics, inference."""
    del config
    images = channels_last(arrays["input"])
    network, layer = _conv_network(arrays, arrays["input"].shape)
    # a large window with many iterations is ill-conditioned
    tolerance = _STEM if layer.iterations > 10 else _OUTPUT
    passes = Passes(network, images)
    outputs, (images_grad, kernel_grad, bias_grad) = passes.gradients(images, np.float32(1.0))
    yield Check("output_train", channels_first(outputs), "rel", tolerance)
    yield Check("grad_input", channels_first(images_grad), "rel", _GRADIENT)
    yield Check("grad_weight", kernel_grad.transpose(3, 2, 0, 1), "rel", _GRADIENT)
    yield Check("grad_bias", bias_grad, "rel", _GRADIENT)
    yield from _state(layer, arrays, tolerance)
    outputs = passes.infer(images)
    yield Check("output_eval", channels_first(outputs), "rel", tolerance)


def two_updates_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """Two updates of the running statistics, then inference."""
    del config
    network, layer = _conv_network(arrays, arrays["input_a"].shape)
    passes = Passes(network, channels_last(arrays["input_a"]))
    for name in ("a", "b"):
        outputs = passes.train(channels_last(arrays[f"input_{name}"]))
        yield Check(f"train_{name}", channels_first(outputs), "rel", _OUTPUT)
    outputs = passes.infer(channels_last(arrays["input_c"]))
    yield Check("eval_c", channels_first(outputs), "rel", _OUTPUT)
    yield from _state(layer, arrays, _OUTPUT)


def dense_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """One whitened dense layer."""
    del config
    options, weight = _options(arrays), arrays["weight"]
    features = arrays["input"]
    inputs = keras.Input(features.shape[1:])
    layer = layers.WhitenedDense(
        weight.shape[0],
        feature_normalization=_NORMALIZATIONS[options["norm"]],
        **options["whitening"],
    )
    network = keras.Model(inputs, layer(inputs))
    layer.kernel.assign(weight.T)
    layer.bias.assign(arrays["bias"])
    passes = Passes(network, features)
    outputs, (input_grad, kernel_grad, bias_grad) = passes.gradients(features, np.float32(1.0))
    yield Check("output_train", outputs, "rel", _OUTPUT)
    yield Check("grad_input", input_grad, "rel", _GRADIENT)
    yield Check("grad_weight", kernel_grad.T, "rel", _GRADIENT)
    yield Check("grad_bias", bias_grad, "rel", _GRADIENT)
    yield from _state(layer, arrays, _OUTPUT)
    outputs = passes.infer(features)
    yield Check("output_eval", outputs, "rel", _OUTPUT)


def _transposed(arrays: Arrays, rules: str, **changes: Any) -> tuple[Any, Any]:
    """A whitened transposed convolution without padding, and the outputs cut to the padding."""
    options, weight = _options(arrays), arrays["weight"]
    whitening = {**options["whitening"], "rules": rules, **changes}
    padding, stride = options["padding"], options["stride"]
    size = weight.shape[2:]
    same = rules == "original" and stride == 1 and all(padding == (k - 1) // 2 for k in size)
    layer = layers.WhitenedConv2DTranspose(
        weight.shape[1],
        size,
        strides=stride,
        padding="same" if same and padding else "valid",
        **whitening,
    )
    layer.build((None, *arrays["input"].shape[2:], weight.shape[0]))
    layer.kernel.assign(weight.transpose(2, 3, 1, 0))
    layer.bias.assign(arrays["bias"])
    cut = 0 if same else padding

    passes = Passes(layer, channels_last(arrays["input"]))

    def call(images: Any, training: bool) -> np.ndarray:
        run = passes.train if training else passes.infer
        outputs = channels_first(run(channels_last(images)))
        return outputs[..., cut : outputs.shape[2] - cut, cut : outputs.shape[3] - cut]

    return layer, call


def original_transposed_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """The original transposed layer, exchange of axes included."""
    del config
    layer, call = _transposed(arrays, "original")
    yield Check("output_train", call(arrays["input"], True), "rel", _OUTPUT)
    yield from _state(layer, arrays, _OUTPUT)
    yield Check("output_eval", call(arrays["input"], False), "rel", _OUTPUT)


def recommended_transposed_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """The careful transposed layer; its reference has an absolute ridge."""
    del config
    # One ridge for all blocks: a part of the variance of each block here, so block by block.
    variances = arrays["input"].var(axis=(0, 2, 3))
    layer, call = _transposed(arrays, "careful", standardization="block", momentum=0.0)
    blocks = variances.reshape(layer.statistics.moving_whitening.shape[0], -1)
    ridge = (layer.epsilon / blocks.mean(axis=1)).astype("float32")
    layer.statistics._epsilon = ops.convert_to_tensor(ridge[:, None, None])
    yield Check("output_train", call(arrays["input"], True), "rel", _OUTPUT)
    mean = ops.convert_to_numpy(layer.statistics.moving_mean)
    yield Check("batch_mean", mean.reshape(-1), "rel", _OUTPUT)
    deviation = np.sqrt(variances.reshape(len(ridge), -1).mean(axis=1))
    matrix = ops.convert_to_numpy(layer.statistics.moving_whitening)
    matrix = matrix / deviation[:, None, None]
    yield Check("batch_isqrt_per_block", matrix, "rel", _OUTPUT)


def box_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """Sums over windows; "k4_becomes_5" is a window of 4 pixels."""
    del config
    images = arrays["input"]
    maps = images.reshape(-1, *images.shape[2:], 1)
    for key in arrays:
        found = re.match(r"k(\d+)", key)
        if found:
            function = functools.partial(box_sum, window=int(found[1]))
            sums = ops.convert_to_numpy(_compiled(function)(maps))
            yield Check(key, sums.reshape(images.shape), "rel", _OUTPUT)


def field_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """The stand-alone receptive-field normalization; options are in the keys."""
    del config
    for key in arrays:
        if not key.startswith("out_"):
            continue
        options: dict[str, Any] = {"coarse_to_fine": "fine_to_coarse" not in key}
        names = {"min": "min_scale", "max": "max_scale", "eps": "epsilon", "rate": "rate"}
        for name, number in re.findall(r"(min|max|eps|rate|sub)([\d.]+(?:e-?\d+)?)", key):
            options[names.get(name, "subsample")] = float(number)
        layer = layers.ReceptiveFieldNormalization(relative_epsilon=False, **options)
        images = channels_last(arrays["input"])
        outputs = _compiled(layer)(images)
        loose = min(arrays["input"].shape[2:]) < 30 and options["coarse_to_fine"]
        tolerance = 3e-3 if loose else 5e-5
        yield Check(key, channels_first(outputs), "rel", tolerance)


def schedule_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """In which steps the original's schedule updates the statistics."""
    del config
    layer = layers.WhitenedDense(
        2, block_size=2, rules="original", freeze_iterations=int(arrays["freeze_iter"])
    )
    layer.build((None, 2))
    features = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    passes = Passes(layer, features)
    updated, before = [], ops.convert_to_numpy(layer.statistics.moving_mean)
    for _ in range(len(arrays.peek("updated"))):
        passes.train(features)
        after = ops.convert_to_numpy(layer.statistics.moving_mean)
        updated.append(int((after != before).any()))
        before = after
    yield Check("updated", np.array(updated), "exact")


def network_family(arrays: Arrays, config: dict) -> Iterator[Check]:
    """Two convolutions and a dense layer, trained by plain gradient descent."""
    del config
    norm = _NORMALIZATIONS[str(arrays["cfg_norm_type"].item())]
    blocks = {
        name: int(arrays[f"cfg_block_{there}"])
        for name, there in (("c1", "conv1"), ("c2", "conv2"), ("fc", "dense"))
    }
    options: dict[str, Any] = {
        "epsilon": float(arrays["cfg_eps"]),
        "iterations": int(arrays["cfg_n_iter"]),
        "momentum": 1.0 - round(float(arrays["cfg_momentum"]), 6),
        "feature_normalization": norm,
        "rules": "original",
    }
    stride = {"sampling_stride": int(arrays["cfg_sampling_stride"])}
    weights = arrays.under("init_")
    conv = layers.WhitenedConv2D
    images = channels_last(arrays["input"])
    parts = [
        conv(8, 3, padding="same", block_size=blocks["c1"], **options, **stride),
        conv(12, 3, 2, padding="same", block_size=blocks["c2"], **options, **stride),
        layers.WhitenedDense(5, block_size=blocks["fc"], **options),
    ]
    network = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            parts[0],
            keras.layers.ReLU(),
            parts[1],
            keras.layers.ReLU(),
            keras.layers.AveragePooling2D(2),
            keras.layers.Permute((3, 1, 2)),
            keras.layers.Flatten(),
            parts[2],
        ]
    )
    axes = {"c1": (2, 3, 1, 0), "c2": (2, 3, 1, 0), "fc": (1, 0)}
    named = dict(zip(axes, parts, strict=True))
    for name, layer in named.items():
        layer.kernel.assign(weights[f"{name}_weight"].transpose(axes[name]))
        layer.bias.assign(weights[f"{name}_bias"])
    network.compile(
        optimizer=keras.optimizers.SGD(float(arrays["lr"])),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    labels = arrays["labels"]
    losses = [network.train_on_batch(images, labels) for _ in arrays.peek("losses")]
    yield Check("losses", np.array(losses), "abs", 1e-5)
    for name, layer in named.items():
        kernel = ops.convert_to_numpy(layer.kernel)
        back = np.argsort(axes[name])
        yield Check(f"final_{name}_weight", kernel.transpose(back), "rel", 1e-4)
        yield Check(f"final_{name}_bias", ops.convert_to_numpy(layer.bias), "rel", 1e-4)
    # one more pass in training, which moves nothing but the running statistics
    network.optimizer.learning_rate = 0.0
    loss = network.train_on_batch(images, labels)
    yield Check("loss_after_step5_train_mode", np.array(loss), "abs", 1e-5)
    for name, layer in named.items():
        state = layer.statistics
        mean = ops.convert_to_numpy(state.moving_mean).reshape(-1)
        yield Check(f"final_{name}_running_mean", mean, "rel", 1e-4)
        matrix = ops.convert_to_numpy(state.moving_whitening)[0]
        yield Check(f"final_{name}_running_cov_isqrt", matrix, "rel", 1e-4)
    logits = network.predict_on_batch(images)
    yield Check("eval_logits_after", logits, "rel", 1e-4)


FAMILIES = {
    "isqrt": inverse_sqrt_family,
    "deconv": conv_family,
    "deconv_two_updates": two_updates_family,
    "rfconv": conv_family,
    "delinear": dense_family,
    "deconvT_official": original_transposed_family,
    "deconvT_RECOMMENDED": recommended_transposed_family,
    "box_filter": box_family,
    "rfnorm_standalone": field_family,
    "freeze_schedule": schedule_family,
    "net3": network_family,
}
