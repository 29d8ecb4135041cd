"""What image policies have in common."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_git.errors import InputError


class ImagePolicy(keras.layers.Layer):
    """A random change of the images of a batch, in training only.

    `layer(images, training=True)` and `augment(images, seed)` take images `(N, H, W, C)`, uint8 or
    float, 0..255, N known or not, and return float32 of the same shape. In inference images only
    become float32. Subclasses have `draw` and `transform`.

    Args:
        seed: of the draws of `layer(images)`; None: any. `augment` has its own.
        **kwargs: further arguments of `keras.layers.Layer`.

    Raises:
        InputError: images of another rank, or of unknown height, width or channels.
    """

    def __init__(self, seed: int | None = 0, **kwargs: Any) -> None:
        # grey levels have no place in float16
        super().__init__(**{"dtype": "float32", **kwargs})
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def draw(self, shape: Any, seed: Any) -> dict[str, Any]:
        """Parameters of each image of a batch.

        Args:
            shape: (N, H, W, C) of the batch; N may be a tensor.
            seed: a `keras.random.SeedGenerator`.

        Returns:
            Tensors whose first dimension is N.
        """
        raise NotImplementedError

    def transform(self, images: Any, parameters: dict[str, Any]) -> Any:
        """float32 images `(N, H, W, C)` changed by what `draw` gave."""
        raise NotImplementedError

    def augment(self, images: Any, seed: Any) -> Any:
        """Images changed by draws from `seed`, a `keras.random.SeedGenerator`."""
        if len(images.shape) != 4 or None in tuple(images.shape[1:]):
            raise InputError(
                f"images have shape {tuple(images.shape)}; give (batch, height, width, channels)"
            )
        images = ops.cast(images, "float32")
        return self.transform(images, self.draw(ops.shape(images), seed))

    def call(self, images: Any, training: bool = False) -> Any:
        if not training:
            return ops.cast(images, "float32")
        return self.augment(images, self.seed_generator)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}
