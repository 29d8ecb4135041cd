"""Which training images an epoch visits, as a function of the epoch."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_git.data import randomness
from keras_git.data.randomness import Seed
from keras_git.errors import InputError

SAMPLERS = (
    "instance_balanced",
    "class_balanced",
    "square_root",
    "effective_number",
    "inverse_frequency",
    "progressive",
    "deferred",
)


class Sampler:
    """Base of the samplers: an order of training images for every epoch.

    The order is a pure function of (labels, seed, epoch). An epoch always has as many draws as
    there are images, so that all samplers take the same number of steps.

    Args:
        labels: integer array (N,) of the training images, every class 0..max present.
        seed: non-negative integer, or several.

    Raises:
        InputError: if labels are not a vector of integers or a class has no image.
    """

    def __init__(self, labels: np.ndarray, seed: Seed = 0) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 1 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
            raise InputError(
                f"labels have shape {labels.shape} and dtype {labels.dtype}; a sampler needs a "
                "non-empty vector of integers"
            )
        if labels.min() < 0:
            raise InputError(f"labels start at {labels.min()}; they must not be negative")
        self.labels = labels.astype(np.int64)
        self.seed = seed
        self.class_counts = np.bincount(self.labels).astype(np.int64)
        empty = np.flatnonzero(self.class_counts == 0)
        if empty.size:
            raise InputError(f"class {empty[0]} has no training image; every class needs one")

    def __len__(self) -> int:
        return int(self.labels.size)

    def class_probabilities(self, epoch: int) -> np.ndarray:
        """Probability that a draw of this epoch is of each class, float64 (num_classes,)."""
        raise NotImplementedError(f"{type(self).__name__} must define class_probabilities(epoch)")

    def indices(self, epoch: int) -> np.ndarray:
        """The images of an epoch in order, int64 (N,).

        The default draws a class and then an image of it, both with replacement, which is the same
        as weighting every image by the class probability divided by the class size.
        """
        rng = randomness.generator(self.seed, randomness.SAMPLER, epoch)
        weights = (self.class_probabilities(epoch) / self.class_counts)[self.labels]
        cumulative = np.cumsum(weights)
        draws = rng.random(len(self)) * cumulative[-1]
        # The last bin also takes a draw that rounding puts on the upper end.
        return np.minimum(np.searchsorted(cumulative, draws, side="right"), len(self) - 1)


class InstanceBalanced(Sampler):
    """Every image once per epoch, shuffled."""

    def class_probabilities(self, epoch: int) -> np.ndarray:
        return self.class_counts / self.class_counts.sum()

    def indices(self, epoch: int) -> np.ndarray:
        rng = randomness.generator(self.seed, randomness.SAMPLER, epoch)
        return rng.permutation(len(self)).astype(np.int64)


class ClassBalanced(Sampler):
    """Every class equally often, N draws with replacement, each image weighted by 1 / n_c."""

    def class_probabilities(self, epoch: int) -> np.ndarray:
        return np.full(self.class_counts.size, 1.0 / self.class_counts.size)


class SquareRoot(Sampler):
    """Class probability proportional to the square root of the class size, with replacement.

    Reference:
        - [Decoupling Representation and Classifier for Long-Tailed Recognition](
          https://arxiv.org/abs/1910.09217), section 3.
    """

    def class_probabilities(self, epoch: int) -> np.ndarray:
        roots = np.sqrt(self.class_counts)
        return roots / roots.sum()


class EffectiveNumber(Sampler):
    """Each image weighted by (1 - beta) / (1 - beta ** n_c), with replacement.

    Args:
        labels: integer array (N,).
        seed: non-negative integer, or several.
        beta: in [0, 1); 0 weights all images alike, values towards 1 balance the classes.

    Reference:
        - [Class-Balanced Loss Based on Effective Number of Samples](
          https://arxiv.org/abs/1901.05555), equation 2.
    """

    def __init__(self, labels: np.ndarray, seed: Seed = 0, beta: float = 0.9999) -> None:
        super().__init__(labels, seed)
        if not 0 <= beta < 1:
            raise InputError(f"beta is {beta}; it must be at least 0 and below 1")
        self.beta = float(beta)

    def class_probabilities(self, epoch: int) -> np.ndarray:
        weights = (1.0 - self.beta) / (1.0 - self.beta ** self.class_counts.astype(np.float64))
        mass = weights * self.class_counts
        return mass / mass.sum()


class InverseFrequency(Sampler):
    """Class probability proportional to `n_c ** -power`, with replacement.

    Args:
        labels: integer array (N,).
        seed: non-negative integer, or several.
        power: finite; 0 balances the classes, -1 gives their frequencies, 1 reverses the ratios of
            their sizes.

    Raises:
        InputError: if the power is not finite, or the labels are not as `Sampler` needs them.

    Reference:
        - [The Majority Can Help the Minority: Context-rich Minority Oversampling for Long-tailed
          Classification](https://arxiv.org/abs/2112.00412), equation 1.
    """

    def __init__(self, labels: np.ndarray, seed: Seed = 0, power: float = 1.0) -> None:
        super().__init__(labels, seed)
        if not np.isfinite(power):
            raise InputError(f"power is {power}; it must be a finite number")
        self.power = float(power)

    def class_probabilities(self, epoch: int) -> np.ndarray:
        logarithms = -self.power * np.log(self.class_counts)
        mass = np.exp(logarithms - logarithms.max())
        return mass / mass.sum()


class Progressive(Sampler):
    """From the frequencies of the data in the first epoch to balanced classes in the last.

    Class probability `(1 - t / T) n_c / N + (t / T) / C` in epoch t, with replacement. The paper
    calls T the total number of epochs; here t counts from 0 and T = epochs - 1, so that both ends
    are reached. Later epochs stay balanced; a single one is as the data.

    Args:
        labels: integer array (N,).
        seed: non-negative integer, or several.
        epochs: of the whole training, 1 or more.

    Raises:
        InputError: if there are no epochs, or the labels are not as `Sampler` needs them.

    Reference:
        - [Decoupling Representation and Classifier for Long-Tailed Recognition](
          https://arxiv.org/abs/1910.09217), section 3 (progressively-balanced sampling).
    """

    def __init__(self, labels: np.ndarray, seed: Seed, epochs: int) -> None:
        super().__init__(labels, seed)
        if int(epochs) != epochs or epochs < 1:
            raise InputError(f"epochs is {epochs}; it must be a whole number of 1 or more")
        self.epochs = int(epochs)

    def class_probabilities(self, epoch: int) -> np.ndarray:
        share = min(1.0, epoch / max(1, self.epochs - 1))
        frequencies = self.class_counts / self.class_counts.sum()
        return (1.0 - share) * frequencies + share / self.class_counts.size


class Deferred(Sampler):
    """One sampler, then another from an epoch on.

    Args:
        first: sampler of the epochs before `epoch`.
        second: sampler from `epoch` on (0-based), for the same images.
        epoch: index of the first epoch of `second`.

    Raises:
        InputError: if the two have different labels or the epoch is negative.

    Reference:
        - [Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss](
          https://arxiv.org/abs/1906.07413), section 3.3 (deferred re-balancing).
    """

    def __init__(self, first: Sampler, second: Sampler, epoch: int) -> None:
        if not np.array_equal(first.labels, second.labels):
            raise InputError("the two samplers of a deferred one must be of the same labels")
        if epoch < 0:
            raise InputError(f"the deferral epoch is {epoch}; it must be 0 or more")
        super().__init__(first.labels, first.seed)
        self.first = first
        self.second = second
        self.epoch = int(epoch)

    def _at(self, epoch: int) -> Sampler:
        return self.first if epoch < self.epoch else self.second

    def class_probabilities(self, epoch: int) -> np.ndarray:
        return self._at(epoch).class_probabilities(epoch)

    def indices(self, epoch: int) -> np.ndarray:
        return self._at(epoch).indices(epoch)


def sampler(name: str, labels: np.ndarray, seed: Seed = 0, **options: Any) -> Sampler:
    """A sampler by name.

    Args:
        name: one of `SAMPLERS`. `"deferred"` is instance-balanced, then class-balanced from the
            option `epoch` on; its options `first` and `second` name other samplers.
        labels: integer array (N,).
        seed: non-negative integer, or several.
        **options: `beta` for `"effective_number"`, `power` for `"inverse_frequency"`, `epochs` for
            `"progressive"`; `epoch`, `first`, `second` for `"deferred"`.

    Raises:
        InputError: for an unknown name or option, or one that is missing.
    """
    allowed = {
        "effective_number": {"beta"},
        "inverse_frequency": {"power"},
        "progressive": {"epochs"},
        "deferred": {"epoch", "first", "second"},
    }
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}; use one of {', '.join(SAMPLERS)}")
    unknown = set(options) - allowed.get(name, set())
    if unknown:
        raise InputError(f"sampler {name!r} has no option {sorted(unknown)[0]!r}")
    if name == "instance_balanced":
        return InstanceBalanced(labels, seed)
    if name == "class_balanced":
        return ClassBalanced(labels, seed)
    if name == "square_root":
        return SquareRoot(labels, seed)
    if name == "effective_number":
        return EffectiveNumber(labels, seed, **options)
    if name == "inverse_frequency":
        return InverseFrequency(labels, seed, **options)
    if name == "progressive":
        if "epochs" not in options:
            raise InputError("sampler 'progressive' needs the option epochs")
        return Progressive(labels, seed, **options)
    if "epoch" not in options:
        raise InputError("sampler 'deferred' needs the option epoch")
    first = sampler(options.get("first", "instance_balanced"), labels, seed)
    second = sampler(options.get("second", "class_balanced"), labels, seed)
    return Deferred(first, second, options["epoch"])
