"""Programs run in other processes: networks saved on one backend, opened on another.

``python saved_models.py open FOLDER`` imports Keras and numpy alone: that is the point.
"""

from __future__ import annotations

import pathlib
import sys

import keras
import numpy as np


def inputs_of(model: keras.Model) -> list[np.ndarray]:
    """Two deterministic examples for every input."""
    rng = np.random.default_rng(5)
    return [rng.uniform(-1, 1, (2, *x.shape[1:])).astype("float32") for x in model.inputs]


def outputs_of(model: keras.Model) -> list[np.ndarray]:
    """All outputs as numpy arrays."""
    inputs = [keras.ops.convert_to_tensor(x) for x in inputs_of(model)]
    # predict rather than a plain call: JAX compiles the network once, not every operation
    outputs = model.predict_on_batch(inputs if len(inputs) > 1 else inputs[0])
    return keras.tree.flatten(outputs)


def open_all(folder: pathlib.Path) -> None:
    """Opens every network in safe mode and compares its outputs with the stored ones."""
    for path in sorted(folder.glob("*.keras")):
        model = keras.saving.load_model(path, safe_mode=True)
        with np.load(path.with_suffix(".npz")) as expected:
            outputs = outputs_of(model)
            assert len(outputs) == len(expected.files), path
            for name, ours in zip(expected.files, outputs, strict=True):
                error = float(np.abs(ours - expected[name]).max())
                assert error <= 1e-4, f"{path.name} {name}: {error}"
                print(keras.config.backend(), path.name, name, error)
    imported = {name.partition(".")[0] for name in sys.modules}
    assert "keras_git" not in imported


if __name__ == "__main__":
    open_all(pathlib.Path(sys.argv[2]))
