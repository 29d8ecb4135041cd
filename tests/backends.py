"""Files that are written on one backend and opened on another, in a process of its own."""

from __future__ import annotations

import keras
import pytest

BACKENDS = ("tensorflow", "jax", "torch")

_OWN = BACKENDS.index(keras.config.backend())
# All nine pairs are tested; the fast ones are a ring, so that each backend writes and opens.
OPENED_ON = [
    pytest.param(name, marks=() if name == BACKENDS[(_OWN + 1) % 3] else pytest.mark.slow)
    for name in BACKENDS
]
