"""Invariance measured at the end of epochs of `fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_git.errors import InputError
from keras_git.metrics.expected_kl import expected_kl
from keras_git.transforms import Transform


class ExpectedKLCallback(keras.callbacks.Callback):
    """Logs eKLD and consistency of `self.model` at the end of epochs.

    Adds `ekld_<name>` and `consistency_<name>` (means over classes) to the logs, so they appear in
    the history and in other callbacks, and keeps the values per class in `history`. The draws are
    the same at each epoch, so a difference between epochs is one of the model.

    Args:
        images: untransformed images `(N, H, W, C)`, uint8 or float, 0..255.
        labels: integers `(N,)`.
        transforms: name -> transformation.
        every: measure every so many epochs (and not in between), 1 or more.
        num_samples: draws per image.
        **options: further arguments of `expected_kl` (`batch_size`, `seed`, `preprocess`, ...).

    Attributes:
        history: name -> list of `{"epoch", "ekld", "ekld_standard_error", "consistency",
            "consistency_standard_error"}`, lists over classes.

    Raises:
        InputError: no transformation, `every` below 1.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        transforms: Mapping[str, Transform],
        every: int = 1,
        num_samples: int = 10,
        **options: Any,
    ) -> None:
        super().__init__()
        if not transforms:
            raise InputError("transforms is empty; give at least one name and transformation")
        if every < 1:
            raise InputError(f"every is {every}; give 1 or more")
        self.images, self.labels = images, labels
        self.transforms = dict(transforms)
        self.every, self.num_samples, self.options = every, num_samples, options
        self.history: dict[str, list[dict[str, Any]]] = {name: [] for name in self.transforms}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures and logs."""
        if (epoch + 1) % self.every:
            return
        # The property brings the weights of a running JAX `fit` up to date.
        model: Callable[..., Any] = self.model
        for name, transform in self.transforms.items():
            result = expected_kl(
                model, self.images, self.labels, transform, self.num_samples, **self.options
            )
            self.history[name].append({"epoch": epoch, **result.to_dict()})
            if logs is not None:
                logs[f"ekld_{name}"] = result.mean_ekld
                logs[f"consistency_{name}"] = result.mean_consistency
