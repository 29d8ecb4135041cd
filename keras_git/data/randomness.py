"""Where the random numbers of the data part come from.

Every draw is made on the host by a numpy generator that is a pure function of a seed, a purpose and
a position (epoch, batch, class, ...). Nothing is carried from one draw to the next: a resumed run
sees what an uninterrupted one would, and the tf.data and the plain numpy pipeline agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_git.errors import InputError

# Purposes: one number each, so that two uses of one seed never share random numbers.
SAMPLER = 1
AUGMENTATION = 2
SUBSET = 3
VALIDATION = 4
GLYPH_PROTOTYPES = 5
GLYPH_SHAPES = 6
GLYPH_NUISANCES = 7
VARIANT = 8
K49_SPLIT = 20
K49_CLASS_ORDER = 21
K49_BASE_IMAGES = 22
K49_NUISANCE = 23
GTSRB_TRACKS = 24
NUISANCE = 25

Seed = int | Sequence[int]


def generator(seed: Seed, purpose: int, *position: int) -> np.random.Generator:
    """A numpy generator for one purpose at one position.

    Args:
        seed: a non-negative integer, or several (say, `(seed, 1)` for a second, independent stream
            of the same experiment).
        purpose: one of the constants of this module.
        *position: non-negative integers such as epoch and batch.

    Raises:
        InputError: if a number is negative or not an integer.
    """
    parts = [seed] if isinstance(seed, int | np.integer) else list(seed)
    # A bare seed and a sequence must not collide with each other's positions: lead with a length.
    numbers = [len(parts), *parts, purpose, *position]
    if any(not isinstance(n, int | np.integer) or n < 0 for n in numbers):
        raise InputError(f"seed is {seed!r}; it must be a non-negative integer or several")
    return np.random.default_rng([int(n) for n in numbers])
