"""Draws of a transformation through a classifier: the compiled part of every measurement.

Transformed images stay on the device; what comes back are a few numbers per image.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.backend import compiled
from keras_git.errors import InputError
from keras_git.metrics.divergence import agreement, kl_from_log_probabilities, log_probabilities
from keras_git.transforms import Transform

_FUNCTIONS_PER_MODEL = 32
_POSITIONS_PER_GENERATOR = 64
# model -> {what it computes: compiled function}; an entry goes with its model
_functions: weakref.WeakKeyDictionary[Any, OrderedDict[Any, Callable[..., Any]]] = (
    weakref.WeakKeyDictionary()
)


def _cached(model: Any, key: Any, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    of_model = _functions.setdefault(model, OrderedDict())
    if key in of_model:
        of_model.move_to_end(key)
        return of_model[key]
    of_model[key] = make()
    while len(of_model) > _FUNCTIONS_PER_MODEL:
        of_model.popitem(last=False)
    return of_model[key]


def _predictor(
    model: Any, preprocess: Callable[[Any], Any] | None, from_logits: bool
) -> Callable[[Any], Any]:
    """Log-probabilities of float32 images 0..255."""
    # The cache must not keep the model alive, so the function refers to it weakly.
    reference = weakref.ref(model)

    def predict(images: Any) -> Any:
        if preprocess is not None:
            images = preprocess(images)
        network = reference()
        if isinstance(network, keras.layers.Layer):
            return log_probabilities(network(images, training=False), from_logits)
        return log_probabilities(network(images), from_logits)  # type: ignore[misc]

    return predict


def _variables(model: Any, transform: Transform | None = None) -> list[Any]:
    variables = [*getattr(model, "variables", []), *(transform.variables if transform else [])]
    return list({id(variable): variable for variable in variables}.values())


def prediction_function(
    model: Any, preprocess: Callable[[Any], Any] | None, from_logits: bool
) -> Callable[..., Any]:
    """Compiled `predict(images) -> log_probabilities`, made once per model and options.

    `images` are float32 `(B, H, W, C)`, 0..255; the result is float32 `(B, K)`.
    """

    def make() -> Callable[..., Any]:
        return compiled(_predictor(model, preprocess, from_logits), _variables(model))

    return _cached(model, ("predict", preprocess, from_logits), make)


def draws_function(
    model: Any,
    transform: Transform,
    preprocess: Callable[[Any], Any] | None,
    from_logits: bool,
) -> Callable[..., Any]:
    """The compiled loop over draws, made once per model, function of a transformation and options.

    Transformations that differ only in what they draw (the rungs of a ladder) share it.

    Returns:
        `measure(images, log_probabilities, labels, parameters, num_samples)` with float32 images
        `(B, H, W, C)`, 0..255, what `prediction_function` gives for them `(B, K)`, labels `(B,)`
        and parameters whose first two dimensions are (draws, B), of which the first `num_samples`
        draws are used. It returns float32 `(4, B)`: sum over the draws of the divergence (nats),
        sum of its squared deviations from its mean, number of draws with an unchanged prediction,
        number of draws with a correct one.
    """

    def make() -> Callable[..., Any]:
        predict = _predictor(model, preprocess, from_logits)

        def measure(
            images: Any, original: Any, labels: Any, parameters: dict[str, Any], num_samples: Any
        ) -> Any:
            labels = ops.cast(labels, "int32")

            def add_draw(index: Any, sums: Any) -> Any:
                drawn = {name: ops.take(value, index, axis=0) for name, value in parameters.items()}
                moved = predict(transform.apply(images, drawn))
                divergence = kl_from_log_probabilities(original, moved)
                correct = ops.cast(ops.argmax(moved, axis=-1), "int32") == labels
                # Deviations from the running mean (Welford), since E[x^2] - E[x]^2 cancels
                before = sums[0] / ops.maximum(ops.cast(index, "float32"), 1.0)
                total = sums[0] + divergence
                after = total / (ops.cast(index, "float32") + 1.0)
                deviation = ops.where(index > 0, (divergence - before) * (divergence - after), 0.0)
                return (
                    total,
                    sums[1] + deviation,
                    sums[2] + agreement(original, moved),
                    sums[3] + ops.cast(correct, "float32"),
                )

            zeros = ops.zeros((images.shape[0],), dtype="float32")
            return ops.stack(ops.fori_loop(0, num_samples, add_draw, (zeros,) * 4))

        return compiled(measure, _variables(model, transform))

    return _cached(model, ("draws", transform.function_key, preprocess, from_logits), make)


def sampled_parameters(
    transform: Transform,
    seed: int,
    positions: Sequence[int] | np.ndarray,
    num_samples: int,
    stream: int = 0,
) -> dict[str, np.ndarray]:
    """Parameters of `num_samples` draws for each of B images.

    They depend on the seed, the stream, `num_samples` and the position of an image alone, not on
    the batch it is in, the model or the backend. A numpy generator belongs to 64 neighbouring
    positions, whose draws are made in one call: a generator per image would cost more than a small
    model.

    Args:
        transform: the transformation.
        seed: 0 or more.
        positions: position of each image in the data, B non-negative integers.
        num_samples: draws per image, S.
        stream: 0 or more; another one gives independent draws.

    Returns:
        Arrays whose first two dimensions are (S, B).

    Raises:
        InputError: a transformation whose `sample` gives arrays of another length.
    """
    places = np.asarray(positions, np.int64)
    blocks = places // _POSITIONS_PER_GENERATOR
    number = num_samples * _POSITIONS_PER_GENERATOR
    parameters: dict[str, np.ndarray] = {}
    for block in np.unique(blocks).tolist():
        # Trailing zeros do not change a seed, hence the fixed order: stream 0 is [seed, block]
        drawn = transform.sample(number, np.random.default_rng([seed, block, stream]))
        here = blocks == block
        columns = places[here] % _POSITIONS_PER_GENERATOR
        for name, value in drawn.items():
            value = np.asarray(value)
            if value.shape[:1] != (number,):
                raise InputError(
                    f"transformation {transform.name!r}: sample gave {name!r} with shape "
                    f"{value.shape} for {number} images; the first dimension must be {number}"
                )
            value = value.reshape(num_samples, _POSITIONS_PER_GENERATOR, *value.shape[1:])
            if name not in parameters:
                shape = (num_samples, len(places), *value.shape[2:])
                parameters[name] = np.empty(shape, value.dtype)
            parameters[name][:, here] = value[:, columns]
    return parameters
