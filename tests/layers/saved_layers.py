"""Run in another process: opens what `test_saving.py` saved, folded networks before the project.

``python saved_layers.py FOLDER ROOT``
"""

from __future__ import annotations

import importlib
import pathlib
import sys

import keras
import numpy as np


def check(path: pathlib.Path) -> None:
    """The outputs equal the stored ones."""
    # not compiled: Keras saves PyTorch's optimizers under names that fail on JAX
    network = keras.saving.load_model(path, safe_mode=True, compile=False)
    with np.load(path.with_suffix(".npz")) as expected:
        outputs = network.predict_on_batch(expected["images"])
        error = float(np.abs(outputs - expected["outputs"]).max())
        assert error <= 1e-3 * np.abs(expected["outputs"]).max(), f"{path.name}: {error}"
    print(keras.config.backend(), path.name, error)


def main(folder: str, root: str) -> None:
    paths = sorted(pathlib.Path(folder).glob("*.keras"))
    for path in paths:
        if path.stem.startswith("folded"):
            check(path)
    assert "keras_git" not in sys.modules
    sys.path.append(root)
    importlib.import_module("keras_git")
    for path in paths:
        if not path.stem.startswith("folded"):
            check(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
