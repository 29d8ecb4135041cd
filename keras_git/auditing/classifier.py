"""Opens any Keras classifier and finds out how to talk to it."""

from __future__ import annotations

import dataclasses
import numbers
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.auditing.statistics import EKLD_RESOLUTION
from keras_git.errors import InputError

PREPROCESSING = ("none", "0_1", "minus1_1", "caffe", "tf", "torch")
OUTPUTS = ("auto", "logits", "probabilities")
# Rows of probabilities may miss 1 by the rounding of float32, or of half precision.
_SUM_TOLERANCE = {"float32": 1e-3, "half": 2e-2}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to grey levels 0..255 before a classifier sees them; compares by value.

    Args:
        mode: one of `PREPROCESSING`, or a function of float32 images `(B, H, W, C)`, 0..255,
            written with `keras.ops`. "none": left as they are; "0_1": divided by 255;
            "minus1_1" (the same as "tf"): to -1..1; "caffe", "tf", "torch": the modes of
            `keras.applications.imagenet_utils.preprocess_input`.
        size: (height, width) to resize to (bilinear), or None.
        colour: whether grey images become three equal channels.
    """

    mode: str | Callable[[Any], Any] = "none"
    size: tuple[int, int] | None = None
    colour: bool = False

    def __call__(self, images: Any) -> Any:
        if self.colour:
            images = ops.repeat(images, 3, axis=-1)
        if self.size is not None:
            images = ops.image.resize(
                images, self.size, interpolation="bilinear", data_format="channels_last"
            )
        if callable(self.mode):
            return self.mode(images)
        if self.mode == "0_1":
            return images / 255.0
        if self.mode in ("minus1_1", "tf"):
            return images / 127.5 - 1.0
        if self.mode in ("caffe", "torch"):
            return keras.applications.imagenet_utils.preprocess_input(
                images, data_format="channels_last", mode=self.mode
            )
        return images


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier that is ready to be measured.

    Attributes:
        name: for people.
        network: what is called with preprocessed images; weakly referable, hashable.
        preprocessing: what happens before.
        outputs: `"logits"` or `"probabilities"`.
        num_classes: K.
        parameters: number of weights.
        ekld_resolution: eKLD below it is what rounding makes of an invariant model, nats.
        weights: its variables.
        probe: what it gave for the images with which it was opened, float64 `(B, K)`.
    """

    name: str
    network: Any
    preprocessing: Preprocessing
    outputs: str
    num_classes: int
    parameters: int
    ekld_resolution: float = EKLD_RESOLUTION["float32"]
    weights: tuple[Any, ...] = ()
    probe: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def from_logits(self) -> bool:
        """Whether outputs are logits."""
        return self.outputs == "logits"


class _Adapted:
    """A callable that can be referred to weakly, whose one output unit has become two classes.

    Args:
        network: model or function.
        binary: `"logits"` or `"probabilities"` if it has one unit, the second of two classes.
    """

    def __init__(self, network: Any, binary: str | None = None) -> None:
        self.network, self.binary = network, binary
        self.variables = list(getattr(network, "variables", None) or [])

    def __call__(self, images: Any) -> Any:
        outputs = _call(self.network, images)
        if self.binary is None:
            return outputs
        other = ops.zeros_like(outputs) if self.binary == "logits" else 1.0 - outputs
        return ops.concatenate([other, outputs], axis=-1)


def _call(network: Any, images: Any) -> Any:
    if isinstance(network, keras.layers.Layer):
        return network(images, training=False)
    return network(images)


def one_line(error: BaseException) -> str:
    """The first line of an error that says something, short."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:200] for line in lines if line), type(error).__name__)


def failure(what: str, error: BaseException, batch_size: int) -> InputError:
    """What to tell of an error inside somebody's model or transformation, in one line.

    Args:
        what: names it.
        error: whatever the framework raised.
        batch_size: of the call that failed.
    """
    text = f"{type(error).__name__} {error}".lower()
    signs = ("out of memory", "outofmemory", "resource_exhausted", "resourceexhausted", "oom when")
    if isinstance(error, MemoryError) or any(sign in text for sign in signs):
        return InputError(
            f"{what}: {batch_size} images at a time do not fit into memory: use a smaller "
            "batch_size (--batch_size)"
        )
    return InputError(
        f"{what} cannot be compiled or run on batches of {batch_size} images: {one_line(error)} - "
        "write it with keras.ops, without numpy and for any batch size"
    )


def load_classifier(path: str | Path) -> keras.Model:
    """Opens a `.keras` file in safe mode: nothing in it is run as Python code.

    Args:
        path: the file.

    Returns:
        The model, uncompiled.

    Raises:
        InputError: no such file, another format, a damaged file, a layer that is not registered,
            or one that holds code.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise InputError(f"model {path}: give a .keras file (model.save('model.keras'))")
    if not path.is_file():
        raise InputError(f"model {path}: no such file")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds, for a file that is not its own too
        text = " ".join(str(error).split())
        missing = re.search(r"[Cc]ould not locate (?:class|function|object) '([^']+)'", text)
        if missing:
            raise InputError(
                f"model {path} uses {missing[1]!r}, which is not registered: put "
                "@keras.saving.register_keras_serializable() above its definition and import that "
                "module first (--import_module=MODULE)"
            ) from error
        if "safe_mode" in text or "ambda" in text:
            raise InputError(
                f"model {path} holds Python code (a Lambda layer), which is never run: make it a "
                "registered layer and save the model again"
            ) from error
        raise InputError(f"model {path} cannot be opened: {one_line(error)}") from error
    if not isinstance(model, keras.Model):
        raise InputError(f"model {path} holds a {type(model).__name__}, not a model")
    return model


def checked_size(resize: Any) -> tuple[int, int]:
    """(height, width) from a side or a pair."""
    sides = (resize, resize) if isinstance(resize, numbers.Integral) else resize
    if (
        isinstance(sides, (tuple, list))
        and len(sides) == 2
        and all(isinstance(side, numbers.Integral) and int(side) > 0 for side in sides)
    ):
        return int(sides[0]), int(sides[1])
    raise InputError(f"resize is {resize!r}; give True, or (height, width) in whole pixels")


def _ekld_resolution(model: Any, half: bool) -> float:
    """By the precision in which the model, or a layer of it, computes."""
    waiting = [model]
    while waiting and not half:
        layer = waiting.pop()
        half = "16" in str(getattr(layer, "compute_dtype", ""))
        waiting += getattr(layer, "layers", [])
    return EKLD_RESOLUTION["half" if half else "float32"]


def input_shape(model: Any) -> tuple[int | None, ...] | None:
    """(height, width, channels) that a model wants, None where it is free or not known."""
    inputs = getattr(model, "inputs", None)
    if not inputs or len(inputs) != 1 or len(inputs[0].shape) != 4:
        return None
    return tuple(inputs[0].shape[1:])


def _last_activation(model: Any) -> str:
    """Name of the activation that ends a model, "" if it is not known."""
    layer = model
    while isinstance(layer, keras.Model) and getattr(layer, "layers", None):
        layer = layer.layers[-1]
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    return str(getattr(getattr(layer, "activation", None), "__name__", ""))


def _preprocessing(
    name: str, model: Any, images: np.ndarray, preprocess: Any, resize: Any
) -> Preprocessing:
    """Checks what the model wants against what the images are."""
    mode = "none" if preprocess is None else preprocess
    if not callable(mode) and mode not in PREPROCESSING:
        raise InputError(
            f"preprocess is {mode!r}; use a function or one of {', '.join(PREPROCESSING)}"
        )
    inputs = getattr(model, "inputs", None)
    if inputs and len(inputs) != 1:
        raise InputError(f"model {name!r} has {len(inputs)} inputs; give one that takes images")
    if inputs and len(inputs[0].shape) != 4:
        raise InputError(
            f"model {name!r} takes inputs of shape {tuple(inputs[0].shape)}; give one that takes "
            "images (N, H, W, C)"
        )
    height, width, channels = images.shape[1:]
    wanted = input_shape(model) or (None, None, None)
    size: tuple[int, int] | None = None
    if resize is not None and not isinstance(resize, bool):
        size = checked_size(resize)
    elif resize and wanted[0] and wanted[1]:
        size = int(wanted[0]), int(wanted[1])
    if size == (height, width):
        size = None
    got = size or (height, width)
    if callable(mode):  # it may change size and channels; the call will tell
        return Preprocessing(mode, size, False)
    if any(want and want != have for want, have in zip(wanted[:2], got, strict=True)):
        raise InputError(
            f"model {name!r} takes images of {wanted[0]} x {wanted[1]} pixels, the data are "
            f"{height} x {width}: resize them with resize=True (--resize), or in a preprocess "
            "function"
        )
    colour = wanted[2] == 3 and channels == 1
    if wanted[2] and wanted[2] != channels and not colour:
        raise InputError(
            f"model {name!r} takes images of {wanted[2]} channels, the data have {channels}: "
            "convert them in a preprocess function"
        )
    if mode in ("caffe", "torch") and channels != 3 and not colour:
        raise InputError(f"preprocess={mode!r} needs colour images, the data have one channel")
    return Preprocessing(mode, size, colour)


def open_classifier(
    model: Any,
    name: str,
    images: np.ndarray,
    *,
    preprocess: str | Callable[[Any], Any] | None = None,
    outputs: str = "auto",
    resize: bool | int | tuple[int, int] | None = None,
) -> Classifier:
    """Makes a classifier ready to be measured, after looking at what it says about a few images.

    Args:
        model: Keras model, or function, from float32 images `(B, H, W, C)` to `(B, K)`; one unit
            counts as the second of two classes.
        name: for messages.
        images: a few images of the data, `(B, H, W, C)`, 0..255.
        preprocess: see `Preprocessing`; None is "none".
        outputs: "logits", "probabilities", or "auto": probabilities if the last activation is a
            softmax or all rows are 0 or more and sum to 1.
        resize: True to resize images to what the model takes, (height, width), or one side.

    Returns:
        The classifier.

    Raises:
        InputError: a model that cannot be called with these images, has several inputs or outputs,
            whose output is not one distribution per image, or is not finite.
    """
    if outputs not in OUTPUTS:
        raise InputError(f"outputs is {outputs!r}; use one of {', '.join(OUTPUTS)}")
    if not callable(model):
        raise InputError(f"model {name!r} is {model!r}; give a Keras model, a function or a path")
    preprocessing = _preprocessing(name, model, images, preprocess, resize)
    try:
        tensor = ops.cast(ops.convert_to_tensor(images), "float32")
        result = _call(model, preprocessing(tensor))
    except InputError:
        raise
    except Exception as error:  # whatever a foreign model or function raises
        raise InputError(
            f"model {name!r} cannot be called with images of shape {images.shape}: "
            f"{one_line(error)}"
        ) from error
    if isinstance(result, (dict, list, tuple)):
        if len(result) != 1:
            raise InputError(
                f"model {name!r} has {len(result)} outputs: give a model with one, such as "
                "keras.Model(model.inputs, model.outputs[0])"
            )
        raise InputError(
            f"model {name!r} returns a {type(result).__name__}: give a model that returns a tensor"
        )
    shape = tuple(result.shape)
    if len(shape) != 2 or shape[0] != len(images) or shape[1] < 1:
        raise InputError(
            f"model {name!r} gives outputs of shape {shape} for {len(images)} images: a classifier "
            "gives (N, classes)"
        )
    half = "16" in keras.backend.standardize_dtype(result.dtype)
    values = ops.convert_to_numpy(ops.cast(result, "float32")).astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(
            f"model {name!r} gives outputs that are NaN or infinite: check its weights"
        )
    kind = _kind(name, values, outputs, _last_activation(model), half)
    binary = shape[1] == 1
    network: Any = model
    if binary or not isinstance(model, keras.layers.Layer):
        network = _Adapted(model, kind if binary else None)
    variables = getattr(model, "weights", None) or getattr(model, "variables", None) or []
    parameters = int(sum(np.prod(variable.shape) for variable in variables))
    return Classifier(
        name,
        network,
        preprocessing,
        kind,
        max(shape[1], 2),
        parameters,
        _ekld_resolution(model, half),
        tuple(variables),
        values,
    )


def _kind(name: str, values: np.ndarray, outputs: str, activation: str, half: bool) -> str:
    """`"logits"` or `"probabilities"`, or an error if it is neither."""
    inside = bool(((values >= 0) & (values <= 1)).all())
    one_unit = values.shape[1] == 1
    tolerance = _SUM_TOLERANCE["half" if half else "float32"]
    sums = values.sum(axis=1)
    distribution = inside and (one_unit or bool((np.abs(sums - 1) <= tolerance).all()))
    if outputs == "probabilities" and not distribution:
        raise InputError(
            f"the outputs of model {name!r} are no probabilities (from {values.min():.4g} to "
            f"{values.max():.4g}, sums of rows from {sums.min():.4g} to {sums.max():.4g}): use "
            "outputs='logits' (--outputs=logits) or end the model with a softmax"
        )
    if outputs != "auto":
        return outputs
    if one_unit:
        if not inside:
            return "logits"
        if activation == "sigmoid":
            return "probabilities"
    elif distribution:
        return "probabilities"
    if inside and activation != "linear":
        raise InputError(
            f"the outputs of model {name!r} are within 0..1 but no distribution over classes: if "
            "they are logits, say outputs='logits' (--outputs=logits), else end the model with a "
            "softmax"
        )
    return "logits"
