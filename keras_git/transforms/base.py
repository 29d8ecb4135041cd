"""What a nuisance transformation is: parameters drawn on the host, images changed on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted((key, _hashable(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(item) for item in value)
    return value


class Transform:
    """Base class of the nuisance transformations.

    A subclass writes `sample`, which draws one set of parameters per image with numpy (so the
    draws are the same on every backend and for every classifier that is measured), and `apply`,
    which changes a batch with `keras.ops` and can be traced.

    Images are `(N, H, W, C)`, float32 grey levels 0..255 in and out.

    Attributes:
        name: the name under which results of this transformation are reported.
    """

    name = "transform"

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws the parameters of `number` images.

        Args:
            number: how many images.
            rng: numpy generator that decides the draws.

        Returns:
            Arrays, float32 or int32, whose first dimension is `number`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define sample(number, rng)")

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        """Transforms a batch.

        Args:
            images: float32 `(N, H, W, C)`, 0..255.
            parameters: what `sample(N, rng)` returned, as arrays or tensors.

        Returns:
            float32 tensor of the same shape, 0..255.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply(images, parameters)")

    @property
    def variables(self) -> list[Any]:
        """The Keras variables that `apply` reads; a compiled caller has to hand them in."""
        return []

    @property
    def deterministic(self) -> bool:
        """Whether every draw is the same, so that one per image tells all."""
        return False

    @property
    def function_key(self) -> Any:
        """Hashable; where it is equal, `apply` is the same function of images and parameters.

        Most transformations differ in strength only in what `sample` draws: their `apply` is
        compiled once for all strengths.
        """
        return self._identity()

    def __call__(self, images: Any, seed: int = 0) -> Any:
        """Draws parameters from `seed` and applies them.

        Args:
            images: `(N, H, W, C)`, uint8 or float, 0..255.
            seed: integer seed; equal seeds give equal draws on every backend.

        Returns:
            float32 tensor `(N, H, W, C)`, 0..255.

        Raises:
            InputError: images that are not of rank 4.
        """
        if len(images.shape) != 4:
            raise InputError(f"images have shape {tuple(images.shape)}; give (N, H, W, C)")
        parameters = self.sample(int(images.shape[0]), np.random.default_rng(seed))
        return self.apply(ops.cast(ops.convert_to_tensor(images), "float32"), parameters)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Transform:
        """The inverse of `get_config`."""
        return cls(**config)

    def _identity(self) -> Any:
        """Two transformations of equal identity compute the same function."""
        return type(self), _hashable(self.get_config())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transform) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({options})"


class SampledTransform(Transform):
    """A transformation whose `apply` reads its parameters alone, not how they were drawn."""

    @property
    def function_key(self) -> Any:
        return type(self)


@keras.saving.register_keras_serializable(package="keras_git")
class Identity(Transform):
    """Leaves images as they are; its eKLD is 0, which makes it a check of a measurement."""

    name = "identity"

    @property
    def deterministic(self) -> bool:
        return True

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {}

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        return ops.convert_to_tensor(images)


@keras.saving.register_keras_serializable(package="keras_git")
class Compose(Transform):
    """Several transformations, one after the other.

    Args:
        transforms: instances of `Transform`, applied in this order.
        name: name in results; the default joins the names of the parts with "+".

    Raises:
        InputError: no transformation, or something that is not one.
    """

    def __init__(self, transforms: Sequence[Any], name: str | None = None) -> None:
        # keras.saving hands over the parts as configurations
        parts = [
            keras.saving.deserialize_keras_object(part) if isinstance(part, dict) else part
            for part in transforms
        ]
        for part in parts:
            if not isinstance(part, Transform):
                raise InputError(f"Compose got {part!r}; give instances of Transform")
        if not parts:
            raise InputError("Compose got no transformation; give at least one")
        self.transforms: list[Transform] = parts
        self.name = name or "+".join(part.name for part in parts)

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        drawn = {}
        for index, part in enumerate(self.transforms):
            for key, value in part.sample(number, rng).items():
                drawn[f"{index}_{key}"] = value
        return drawn

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        for index, part in enumerate(self.transforms):
            prefix = f"{index}_"
            own = {
                key[len(prefix) :]: value
                for key, value in parameters.items()
                if key.startswith(prefix)
            }
            images = part.apply(images, own)
        return images

    @property
    def variables(self) -> list[Any]:
        return [variable for part in self.transforms for variable in part.variables]

    @property
    def deterministic(self) -> bool:
        return all(part.deterministic for part in self.transforms)

    @property
    def function_key(self) -> Any:
        return type(self), tuple(part.function_key for part in self.transforms)

    def get_config(self) -> dict[str, Any]:
        parts = [keras.saving.serialize_keras_object(part) for part in self.transforms]
        return {"transforms": parts, "name": self.name}

    def _identity(self) -> Any:
        return type(self), tuple(part._identity() for part in self.transforms)
