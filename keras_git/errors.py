"""The exceptions for bad input, so that programs can tell it from a defect."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: a value, file, shape, dtype or label that cannot be used.

    The message is one line that names what was received, what is allowed and what to do.
    Command-line programs print it and exit with code 2.
    """


class DivergenceError(InputError):
    """A training whose loss or whose outputs became NaN: its settings do not work, others may."""
