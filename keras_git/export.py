"""Exports of a trained classifier: with its preprocessing inside, and for programs without Keras.

The `.keras` file stays the first choice: it opens on every backend. These formats are for serving,
and what can be written depends on the backend and on the packages that are installed:

    format           TensorFlow   JAX              PyTorch
    tf_saved_model   yes          with TensorFlow  no
    onnx             tf2onnx      jax2onnx         onnx

ONNX also needs onnxruntime: a converter can write a graph that no runtime accepts (jax2onnx does so
for max pooling), so a file counts as exported only after it gave the network's logits.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_git.errors import InputError

SUFFIXES = {"tf_saved_model": "_saved_model", "onnx": ".onnx"}
FORMATS = tuple(SUFFIXES)

# What Keras needs beside the backend itself, and how to get it.
_PACKAGES = {
    ("tf_saved_model", "tensorflow"): (["tensorflow"], "tensorflow"),
    ("tf_saved_model", "jax"): (["tensorflow"], "tensorflow"),
    ("onnx", "tensorflow"): (["tf2onnx", "onnxruntime"], "'keras-git[onnx]'"),
    ("onnx", "jax"): (["jax2onnx", "onnxruntime"], "'keras-git[onnx-jax]'"),
    ("onnx", "torch"): (["onnx", "onnxruntime"], "'keras-git[onnx]'"),
}

# Largest difference of a logit that two runtimes' float32 arithmetic may explain, as a part of the
# largest logit; the converters reach 1e-7 to 1e-6.
_TOLERANCE = 1e-4

_LUMA = (0.299, 0.587, 0.114)


def export_classifier(
    model: keras.Model,
    path: str | Path,
    formats: Sequence[str] = ("tf_saved_model", "onnx"),
) -> dict[str, Path | str]:
    """Export a classifier network; say for each format where it is, or why it could not be made.

    The export has one input, the images (batch, height, width, channels), float32, scaled as for
    the network itself (0..255 for a network that owns its scaling), and one output, the logits
    (batch, classes), float32. The size of the batch is free. What was at the target is replaced
    only by a finished export.

    Args:
        model: Functional classifier network (not the trainer around it); one input, one output,
            float32 dtype policy.
        path: Target without its ending: `models/classifier` becomes the folder
            `models/classifier_saved_model` and the file `models/classifier.onnx`.
        formats: Any of "tf_saved_model" and "onnx".

    Returns:
        For each format, in the order given, the `Path` of the export or, where this backend or
        these packages cannot write it, a `str` of one line that says why and what to do.

    Raises:
        InputError: Unknown format, or a model that is not a functional network with one input.
        OSError: The folder cannot be written.
    """
    unknown = [name for name in formats if name not in SUFFIXES]
    if unknown:
        raise InputError(
            f"unknown export format {unknown[0]!r}; allowed are {', '.join(sorted(SUFFIXES))}"
        )
    if len(getattr(model, "inputs", None) or ()) != 1:
        raise InputError(
            f"cannot export {getattr(model, 'name', model)!r}: pass the functional classifier "
            "network, with images as its one input"
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return {
        name: _obstacle(model, name)
        or _export(model, path.with_name(path.name + SUFFIXES[name]), name)
        for name in formats
    }


def with_preprocessing(network: keras.Model, *, logit_scale: float = 1.0) -> keras.Model:
    """A classifier for images as they are in files: any size in, class probabilities out.

    Inside are, in this order: a cast to float32 (a `Rescaling` by 1: resizing 8-bit images rounds
    on some backends), a bilinear, antialiased `Resizing` to the size of the network - which
    stretches both sides, and changes nothing for images that have it already -, for a network of
    one channel the conversion to grey (Rec. 601 luma), the network and a softmax. All layers are
    Keras' own: `keras.models.load_model` opens the saved model without keras_git.

    Args:
        network: functional classifier, float32 (N, h, w, 1 or 3) in 0..255 to logits (N, C).
        logit_scale: what logits are multiplied with before the softmax (30 for the cosines of an
            LDAM head).

    Returns:
        Functional model from uint8 (N, H, W, 3), any H and W, in 0..255, to float32
        probabilities (N, C). It shares its weights with `network`.

    Raises:
        InputError: not a functional network with one input of images and one output (N, C).

    Reference: ITU-R BT.601 (luma).
    """
    shapes = [tuple(tensor.shape) for tensor in getattr(network, "inputs", None) or ()]
    outputs = [tuple(tensor.shape) for tensor in getattr(network, "outputs", None) or ()]
    if len(shapes) != 1 or len(outputs) != 1 or len(shapes[0]) != 4 or len(outputs[0]) != 2:
        raise InputError(
            f"cannot wrap a model with inputs {shapes} and outputs {outputs}: pass a functional "
            "classifier, images (N, H, W, channels) to logits (N, C)"
        )
    _, height, width, channels = shapes[0]
    if None in (height, width) or channels not in (1, 3):
        raise InputError(
            f"cannot wrap a model for images of shape {shapes[0][1:]}: it needs one size, and 1 or "
            "3 channels"
        )
    inputs = keras.Input((None, None, 3), dtype="uint8", name="images")
    x = keras.layers.Rescaling(1.0, name="as_float")(inputs)
    x = keras.layers.Resizing(height, width, antialias=True, name="resizing")(x)
    if channels == 1:
        # A convolution with constant weights: the operation of Keras differs in the third digit.
        grey = keras.layers.Conv2D(1, 1, use_bias=False, trainable=False, name="grey")
        x = grey(x)
        grey.set_weights([np.array(_LUMA, "float32").reshape(1, 1, 3, 1)])
    x = network(x)
    if logit_scale != 1.0:
        x = keras.layers.Rescaling(logit_scale, name="logit_scale")(x)
    probabilities = keras.layers.Softmax(name="probabilities")(x)
    return keras.Model(inputs, probabilities, name="image_classifier")


def _obstacle(model: keras.Model, export_format: str) -> str:
    """Why `model` cannot be exported here, as far as it can be known beforehand, or ''."""
    backend = keras.config.backend()
    if (export_format, backend) not in _PACKAGES:
        return (
            f"the {backend} backend cannot write {export_format}: save the model as .keras, and "
            "load and export it with KERAS_BACKEND=tensorflow"
        )
    modules, to_install = _PACKAGES[export_format, backend]
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"{export_format} on the {backend} backend needs {' and '.join(modules)}, but "
            f"{' and '.join(missing)} cannot be found: pip install {to_install}"
        )
    if export_format == "onnx" and model.dtype_policy.name != "float32":
        return (
            f"onnx needs a model of dtype policy float32, this one has {model.dtype_policy.name}: "
            "build it as float32 and copy the weights"
        )
    return ""


def _export(model: keras.Model, target: Path, export_format: str) -> Path | str:
    """Export to a temporary place beside the target, then move it there in one step."""
    workspace = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        written = workspace / target.name
        try:
            if export_format == "onnx":
                network = _with_constants_inside(model)
                images = _noise_images(network)
                network(images, training=False)  # Keras exports only what was called before
                network.export(str(written), format="onnx", verbose=False)
                _check_onnx(written, images, network)
            else:
                model.export(str(written), format=export_format, verbose=False)
        except OSError:
            raise  # no space, no permission: not a matter of the format
        except Exception as error:
            # The converters are other projects that follow the frameworks' releases late and raise
            # anything. A missing export must not cost a finished training run its results.
            first_line = (str(error).strip() or "no message").splitlines()[0]
            # Its random name would make two equal runs report different things.
            first_line = first_line.replace(str(workspace), str(target.parent))
            return (
                f"{export_format} failed on the {keras.config.backend()} backend: "
                f"{type(error).__name__}: {first_line}"
            )
        if target.is_dir():
            # A folder cannot be replaced by another in one step: move the old one away first.
            os.replace(target, workspace / "previous")
        os.replace(written, target)
        return target
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _with_constants_inside(model: keras.Model) -> keras.Model:
    """A copy of the network with each constant Normalization written as a Rescaling.

    tf2onnx turns tensors that exist before tracing, such as the mean given to a Normalization, into
    required inputs of the ONNX graph; plain numbers, such as those of a Rescaling, stay inside.
    (x - mean) / std = x * (1 / std) - mean / std. Other backends have no such difficulty.
    """
    if keras.config.backend() != "tensorflow":
        return model

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if not isinstance(layer, keras.layers.Normalization) or config["mean"] is None:
            return type(layer).from_config(config)
        mean = keras.ops.convert_to_numpy(layer.mean).reshape(-1)
        # The layer itself keeps the deviation above this, so that it never divides by zero.
        std = keras.ops.convert_to_numpy(layer.variance).reshape(-1) ** 0.5
        std = std.clip(min=keras.config.epsilon())
        scale, offset = 1 / std, -mean / std
        if config["invert"]:
            scale, offset = std, mean
        return keras.layers.Rescaling(scale.tolist(), offset.tolist(), name=layer.name)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def _noise_images(model: keras.Model) -> np.ndarray:
    """A batch of two noise images, (2, height, width, channels) float32 in 0..255."""
    shape = (2, *model.input_shape[1:])
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


def _check_onnx(path: Path, images: np.ndarray, model: keras.Model) -> None:
    """Run the graph on images alone and compare with the network, or raise what went wrong."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    if len(names) != 1:
        raise ValueError(f"the graph needs inputs beside the images: {', '.join(names[1:])}")
    (logits,) = session.run(None, {names[0]: images})
    expected = keras.ops.convert_to_numpy(model(images, training=False))
    error = np.max(np.abs(logits - expected))
    if not error <= _TOLERANCE * max(1.0, float(np.max(np.abs(expected)))):
        raise ValueError(f"the graph's logits differ from the network's by up to {error:.1e}")
