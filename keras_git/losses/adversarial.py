"""Adversarial objectives of the discriminator and the generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_git.errors import InputError

ADVERSARIAL_LOSSES = ("lsgan", "nsgan", "hinge")


def _check(kind: str) -> None:
    if kind not in ADVERSARIAL_LOSSES:
        raise InputError(f"adversarial loss {kind!r} is unknown: use one of {ADVERSARIAL_LOSSES}")


def _total(terms: list[Any]) -> Any:
    return sum(terms[1:], terms[0])


def discriminator_loss(
    fake_scores: Sequence[Any], real_scores: Sequence[Any], kind: str = "lsgan"
) -> Any:
    """Loss of the discriminator: scores of generated images down, of real images up.

    Args:
        fake_scores: one tensor of raw patch scores per scale, any shape, for generated images.
        real_scores: the same for real images.
        kind: `"lsgan"` (least squares), `"nsgan"` (binary cross-entropy) or `"hinge"`.

    Returns:
        Scalar: the mean over images and patches, summed over the scales.

    Raises:
        InputError: `kind` is unknown.

    Reference: Huang et al., *Multimodal Unsupervised Image-to-Image Translation*, ECCV 2018,
    equation 3; least squares: Mao et al., ICCV 2017.
    """
    _check(kind)
    terms = []
    for fake, real in zip(fake_scores, real_scores, strict=True):
        if kind == "lsgan":
            terms.append(ops.mean(ops.square(fake)) + ops.mean(ops.square(real - 1.0)))
        elif kind == "nsgan":
            terms.append(ops.mean(ops.softplus(fake)) + ops.mean(ops.softplus(-real)))
        else:
            terms.append(ops.mean(ops.relu(1.0 + fake)) + ops.mean(ops.relu(1.0 - real)))
    return _total(terms)


def generator_loss(fake_scores: Sequence[Any], kind: str = "lsgan") -> Any:
    """Loss of the generator: scores of generated images up. See `discriminator_loss`."""
    _check(kind)
    terms = []
    for fake in fake_scores:
        if kind == "lsgan":
            terms.append(ops.mean(ops.square(fake - 1.0)))
        elif kind == "nsgan":
            terms.append(ops.mean(ops.softplus(-fake)))
        else:
            terms.append(-ops.mean(fake))
    return _total(terms)
