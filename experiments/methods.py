"""The language of methods: a name, or a sum of names such as `git+ldam`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import keras_git as kg
from keras_git.errors import InputError

_LOSSES = {
    "ce": "cross-entropy",
    "focal": "focal loss",
    "ldam": "label-distribution-aware margin, cosine head",
    "balanced_softmax": "balanced softmax",
    "logit_adjustment": "logit-adjusted cross-entropy",
}
_SAMPLINGS = {
    "erm": "every image once per epoch",
    "drs": "class-balanced sampling from --defer_epoch on",
    "class_balanced_sampling": "class-balanced sampling from the start",
    "square_root_sampling": "square-root sampling from the start",
    "effective_number_sampling": "sampling by the effective number of images",
}
_WEIGHTINGS = {
    "drw": "class-balanced weights from --defer_epoch on",
    "class_balanced_loss": "class-balanced weights from the start",
}
_SAMPLERS = {
    "erm": "instance_balanced",
    "class_balanced_sampling": "class_balanced",
    "square_root_sampling": "square_root",
    "effective_number_sampling": "effective_number",
}
NAMES = {
    **_LOSSES,
    **_SAMPLINGS,
    **_WEIGHTINGS,
    "git": "generated images; with drs unless said",
    "factors": "factors of variation (--augment_from_factors) in the generator's place",
    "oracle": "the true nuisance as augmentation, where it is known (k49_lt)",
}


@dataclass(frozen=True)
class Method:
    """One way to train a classifier.

    Attributes:
        key: as given on the command line; the key in the results.
        loss: `"ce"`, `"focal"`, `"ldam"`, `"balanced_softmax"` or `"logit_adjustment"`.
        sampling: `"erm"`, `"drs"` or the name of another sampling.
        weighting: None, `"drw"` or `"class_balanced_loss"`.
        generates: whether a part of the batch is generated (GIT).
        factors: whether that part is instead transformed by the factors of variation of large
            classes; everything else is as with `generates`.
        oracle: whether images get a new draw of the true nuisance in every step.
    """

    key: str
    loss: str = "ce"
    sampling: str = "erm"
    weighting: str | None = None
    generates: bool = False
    factors: bool = False
    oracle: bool = False

    @property
    def replaces(self) -> bool:
        """Whether images of the batch are replaced by those of a generator, learned or made."""
        return self.generates or self.factors

    @property
    def head(self) -> str:
        """Head of the network: LDAM needs cosines."""
        return "cosine" if self.loss == "ldam" else "linear"

    def stage(self, epoch: int, defer_epoch: int, generation_epoch: int) -> tuple[Any, ...]:
        """All that decides what epoch `epoch` does: methods with equal stages share epochs."""
        deferred = epoch >= defer_epoch
        sampling = self.sampling
        if sampling == "drs":
            sampling = "class_balanced_sampling" if deferred else "erm"
        weighting = self.weighting
        if weighting == "drw":
            weighting = "class_balanced_loss" if deferred else "ones"
        generates: bool | str = self.replaces and epoch >= generation_epoch
        if generates and self.factors:
            generates = "factors"
        return self.loss, sampling, weighting, generates, self.oracle

    def sampler(self, labels: np.ndarray, seed: Any, defer_epoch: int) -> Any:
        """The `keras_git.data` sampler of this method."""
        if self.sampling == "drs":
            return kg.data.Deferred(
                kg.data.InstanceBalanced(labels, seed),
                kg.data.ClassBalanced(labels, seed),
                defer_epoch,
            )
        return kg.data.sampler(_SAMPLERS[self.sampling], labels, seed)

    def class_weights(
        self, class_counts: np.ndarray, defer_epoch: int
    ) -> np.ndarray | Callable[[int], Any] | None:
        """Argument `class_weights` of `keras_git.training.Classifier`."""
        if self.weighting == "drw":
            return kg.losses.deferred_reweighting(class_counts, defer_epoch)
        if self.weighting == "class_balanced_loss":
            return kg.losses.class_balanced_weights(class_counts)
        return None

    def make_loss(self, class_counts: np.ndarray) -> Any:
        """The Keras loss of this method."""
        makers = {
            "ce": lambda: kg.losses.CrossEntropy(),
            "focal": lambda: kg.losses.Focal(gamma=1.0),
            "ldam": lambda: kg.losses.LDAM(class_counts),
            "balanced_softmax": lambda: kg.losses.BalancedSoftmax(class_counts),
            "logit_adjustment": lambda: kg.losses.LogitAdjustment(class_counts),
        }
        return makers[self.loss]()

    @property
    def logit_scale(self) -> float:
        """What the outputs are multiplied with before a softmax is taken of them."""
        return 30.0 if self.loss == "ldam" else 1.0


def parse_method(key: str) -> Method:
    """Reads a method such as `"drs"`, `"ldam+drs"` or `"git+ldam"`.

    Raises:
        InputError: an unknown name, one name twice, or two names of one kind.
    """
    names = key.split("+")
    for name in names:
        if name not in NAMES:
            raise InputError(f"method {key!r}: {name!r} is unknown; use {', '.join(NAMES)}")
    if len(set(names)) != len(names):
        raise InputError(f"method {key!r} names something twice")

    def only(table: dict[str, str], kind: str) -> str | None:
        chosen = [name for name in names if name in table]
        if len(chosen) > 1:
            raise InputError(f"method {key!r} has two {kind}: {chosen[0]} and {chosen[1]}")
        return chosen[0] if chosen else None

    generates, factors, oracle = (name in names for name in ("git", "factors", "oracle"))
    if generates and oracle:
        raise InputError(f"method {key!r}: git learns the nuisance that oracle knows; use one")
    if factors and (generates or oracle):
        raise InputError(f"method {key!r}: factors take the place of git and oracle; use one")
    return Method(
        key,
        loss=only(_LOSSES, "losses") or "ce",
        sampling=only(_SAMPLINGS, "samplings") or ("drs" if generates or factors else "erm"),
        weighting=only(_WEIGHTINGS, "weightings"),
        generates=generates,
        factors=factors,
        oracle=oracle,
    )
