"""The recipe book: every method as one frozen record, by name, and sums of them.

recipe = kg.recipes.get("git+logit_adjustment+randaugment")
"""

from __future__ import annotations

from keras_git.errors import InputError
from keras_git.recipes.book import BOOK
from keras_git.recipes.recipe import Deferred, Recipe, Schedule, SecondStage, combined

NAMES = tuple(BOOK)


def get(key: str) -> Recipe:
    """Reads a recipe such as `"drs"`, `"ldam+drs"` or `"git+logit_adjustment+ema"`.

    Args:
        key: a name of `NAMES`, or several joined by `+`.

    Returns:
        The recipe, or the sum of the recipes.

    Raises:
        InputError: an unknown name, one name twice, two that decide the same, or two that do not
            go together.
    """
    names = key.split("+")
    for name in names:
        if name not in BOOK:
            raise InputError(f"method {key!r}: {name!r} is unknown; use {', '.join(NAMES)}")
    if len(set(names)) != len(names):
        raise InputError(f"method {key!r} names something twice")
    return combined(key, [BOOK[name] for name in names])


__all__ = [
    "BOOK",
    "NAMES",
    "Deferred",
    "Recipe",
    "Schedule",
    "SecondStage",
    "combined",
    "get",
]
