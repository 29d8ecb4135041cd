"""A module that fails when it is imported."""

from __future__ import annotations

RATE = 1 / 0
