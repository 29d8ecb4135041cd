"""A trained generator as a transformation: its random style is the nuisance it has learnt."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.transforms.base import Transform


def is_generator(model: Any) -> bool:
    """Whether it is a model with the two inputs of a generator, an image and a style."""
    inputs = getattr(model, "inputs", None)
    return bool(
        inputs and len(inputs) == 2 and len(inputs[0].shape) == 4 and len(inputs[1].shape) == 2
    )


@keras.saving.register_keras_serializable(package="keras_git")
class GeneratorTransform(Transform):
    """Re-renders an image with a style drawn from N(0, I).

    Args:
        generator: Keras model with the inputs `[image, style]`, image `(N, H, W, C)` in [-1, 1],
            style `(N, style_dim)`, and an image in [-1, 1] as output. Its weights are read at
            each call and never changed.
        name: name in results.

    Raises:
        InputError: a model that does not take an image and a style.

    Reference: Zhou et al., ICLR 2022, section 4 (Generative Invariance Transfer).
    """

    def __init__(self, generator: keras.Model, name: str = "generator") -> None:
        if isinstance(generator, dict):
            generator = keras.saving.deserialize_keras_object(generator)
        inputs: Any = getattr(generator, "inputs", None)
        if not is_generator(generator):
            shapes = (
                [tuple(tensor.shape) for tensor in inputs] if inputs else "no functional inputs"
            )
            raise InputError(
                f"the generator takes {shapes}; give a model with the inputs "
                "(None, H, W, C) and (None, style_dim)"
            )
        self.generator = generator
        self.style_dim = int(inputs[1].shape[-1])
        self.name = name

    def sample(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"style": rng.standard_normal((number, self.style_dim)).astype(np.float32)}

    def apply(self, images: Any, parameters: dict[str, Any]) -> Any:
        scaled = ops.cast(images, "float32") / 127.5 - 1.0
        style = ops.cast(ops.convert_to_tensor(parameters["style"]), "float32")
        generated = self.generator([scaled, style], training=False)
        return (ops.cast(generated, "float32") + 1.0) * 127.5

    @property
    def variables(self) -> list[Any]:
        return list(self.generator.variables)

    def get_config(self) -> dict[str, Any]:
        generator = keras.saving.serialize_keras_object(self.generator)
        return {"generator": generator, "name": self.name}

    def _identity(self) -> Any:
        return type(self), id(self.generator)

    def __repr__(self) -> str:
        return f"GeneratorTransform({self.generator.name!r}, style_dim={self.style_dim})"
