"""Versions of the software that made a result."""

from __future__ import annotations

import importlib.metadata
import platform

import keras

_PACKAGES = (
    "keras",
    "numpy",
    "scipy",
    "tensorflow",
    "jax",
    "torch",
    "tensorflow-datasets",
    "keras-git",
)


def versions() -> dict[str, str]:
    """Versions of Python, of the packages in use, and the Keras backend."""
    found = {"python": platform.python_version(), "backend": keras.config.backend()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
