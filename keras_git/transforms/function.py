"""Anybody's function as a transformation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.transforms.base import Transform


@keras.saving.register_keras_serializable(package="keras_git")
class FunctionTransform(Transform):
    """A function of images, for example `lambda images: 255.0 - images`.

    Args:
        function: from float32 images `(N, H, W, C)`, 0..255, to images of the same shape, written
            with `keras.ops` (or the backend's own functions) so that it can be traced; a Keras
            layer or model that is not random will do. With `sample`, `function(images,
            parameters)`.
        name: name in results.
        sample: `sample(number, rng)` draws one set of parameters for each of `number` images with
            the numpy generator `rng`: arrays whose first dimension is `number`. None for a
            function without randomness, of which one draw per image is enough.
        variables: Keras variables that `function` reads; those of a layer are found.

    Raises:
        InputError: something that cannot be called, an empty name, or a layer that draws its own
            random numbers (they would neither repeat nor be the same for two classifiers).

    To save and load the transformation, register the functions with
    `keras.saving.register_keras_serializable`.
    """

    def __init__(
        self,
        function: Any,
        name: str = "function",
        sample: Any = None,
        variables: Sequence[Any] | None = None,
    ) -> None:
        # keras.saving hands over functions as configurations
        if isinstance(function, dict):
            function = keras.saving.deserialize_keras_object(function)
        if isinstance(sample, dict):
            sample = keras.saving.deserialize_keras_object(sample)
        if not callable(function) or not (sample is None or callable(sample)):
            raise InputError(f"FunctionTransform {name!r}: give functions that can be called")
        if not name or not isinstance(name, str):
            raise InputError(f"FunctionTransform got the name {name!r}; give a text")
        if variables is None:
            variables = getattr(function, "variables", None) or []
        if any("seed_generator" in str(getattr(v, "path", "")) for v in variables):
            raise InputError(
                f"FunctionTransform {name!r}: the layer draws its own random numbers; write a "
                "function of images and parameters, and give sample=... to draw them"
            )
        self.function, self.name, self._sample = function, name, sample
        self._variables = list(variables)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if self._sample is None:
            return {}
        drawn = {key: np.asarray(value) for key, value in self._sample(number, rng).items()}
        for key, value in drawn.items():
            if value.ndim == 0 or len(value) != number:
                raise InputError(
                    f"transformation {self.name!r}: sample gave {key!r} with shape {value.shape} "
                    f"for {number} images; the first dimension must be {number}"
                )
            if value.dtype.kind == "f":
                drawn[key] = value.astype(np.float32)
            elif value.dtype.kind in "iub":
                drawn[key] = value.astype(np.int32)
        return drawn

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        images = ops.cast(images, "float32")
        moved = self.function(images) if self._sample is None else self.function(images, parameters)
        moved = ops.cast(moved, "float32")
        if tuple(moved.shape) != tuple(images.shape):
            raise InputError(
                f"transformation {self.name!r} made {tuple(moved.shape)} of images of shape "
                f"{tuple(images.shape)}; the shape must stay"
            )
        return moved

    @property
    def variables(self) -> list[Any]:
        return self._variables

    @property
    def deterministic(self) -> bool:
        return self._sample is None

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            "function": serialize(self.function),
            "name": self.name,
            "sample": None if self._sample is None else serialize(self._sample),
        }

    def _identity(self) -> Any:
        return type(self), self.name, self.function, self._sample

    def __repr__(self) -> str:
        return f"FunctionTransform({self.name!r})"
