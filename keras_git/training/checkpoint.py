"""State of a training in one file, written so that a half-written one is never read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_git.errors import InputError
from keras_git.files import load_archive, save_archive


def training_variables(model: Any) -> dict[str, list[Any]]:
    """Everything that a `keras_git.training` model needs to go on: network, optimizer, seeds.

    With the optimizer come its averages of the weights. A `Classifier` adds the statistics of
    `feature_augmentation` and the random state of Keras layers in `augmentation`, if it has any.
    The frozen generator of a `GITClassifier` is left out, so that a plain and a generating
    training of one network can continue from each other's state.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    network = getattr(model, "network", model)
    variables = {
        "network": network.variables if network is not model else _unique(model),
        "optimizer": model.optimizer.variables,
        "seed": [model.seed_generator.state],
    }
    statistics = getattr(model, "feature_statistics", None)
    policies = getattr(model, "augmentation", ())
    others = {
        "feature_statistics": statistics.variables if statistics is not None else [],
        "augmentation": [
            v for policy in policies if isinstance(policy, keras.Layer) for v in policy.variables
        ],
    }
    return {**variables, **{group: members for group, members in others.items() if members}}


def _unique(model: Any) -> list[Any]:
    own = {id(v) for v in (*model.metrics_variables, model.seed_generator.state)}
    return [v for v in model.variables if id(v) not in own]


def save_checkpoint(
    path: str | Path, variables: Mapping[str, Sequence[Any]], progress: Mapping[str, Any]
) -> None:
    """Writes variables and a JSON-serializable `progress` to `path` (.npz), all or nothing.

    Args:
        path: file to write; its folder must exist.
        variables: Keras variables by group, as from `training_variables`.
        progress: what else is needed to continue, for example the epoch and the history.
    """
    arrays = {
        f"{group}/{i}": ops.convert_to_numpy(variable)
        for group, members in variables.items()
        for i, variable in enumerate(members)
    }
    save_archive(path, arrays, progress)


def load_checkpoint(
    path: str | Path, variables: Mapping[str, Sequence[Any]]
) -> dict[str, Any] | None:
    """Reads a checkpoint into `variables` and returns its progress; None if there is no file.

    Raises:
        InputError: the file is not a checkpoint, or one of other networks or optimizers.
    """
    path = Path(path)
    if not path.exists():
        return None
    remedy = "delete it to train from the start"
    arrays, progress = load_archive(path, "checkpoint", remedy)
    wanted = {
        f"{group}/{i}": variable
        for group, members in variables.items()
        for i, variable in enumerate(members)
    }
    shapes = {name: tuple(variable.shape) for name, variable in wanted.items()}
    if shapes != {name: array.shape for name, array in arrays.items()}:
        raise InputError(f"{path} is a checkpoint of other networks: {remedy}")
    for name, variable in wanted.items():
        variable.assign(arrays[name])
    return progress
