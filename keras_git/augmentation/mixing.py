"""Mixing of the images of a batch together with their labels.

`mix` takes a batch and returns one of the same shape whose targets are distributions over the
classes. What is drawn (`draw`) is apart from what is done with it (`combine`).

Why these are not `keras.layers.MixUp` and `keras.layers.CutMix`:

- Both draw by `keras.random.beta`, which does not compile by XLA on TensorFlow, where a training
  step is compiled so; and replicas that share a batch would all draw the same.
- That CutMix weights labels by the area of a box of broken numbers, and pastes the pixels whose
  corners lie in it: labels differ from the share of pixels by up to a row and a column. It draws
  the parameter of the distribution as well, up to 1, and places boxes within the image, while the
  paper's may be cut by the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_git.augmentation import draws, rectangles
from keras_git.errors import InputError

Batch = tuple[Any, Any]


def _column(values: Any, like: Any) -> Any:
    return ops.reshape(values, (-1,) + (1,) * (len(like.shape) - 1))


def _weighted(weight: Any, first: Any, second: Any) -> Any:
    """weight * first + (1 - weight) * second, row by row."""
    weight = _column(weight, first)
    return weight * first + (1.0 - weight) * second


def _checked_alpha(alpha: float) -> float:
    if not 0.0 < alpha < float("inf"):
        raise InputError(f"alpha is {alpha}; use a number above 0")
    return float(alpha)


def _checked_fraction(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{name} is {value}; use a number in 0..1")
    return float(value)


class Mixing:
    """What is mixed, and how.

    Attributes:
        needs_sources: whether `mix` needs images of a second stream, as `sources`.
    """

    needs_sources: ClassVar[bool] = False

    def draw(self, shape: Any, seed: Any) -> dict[str, Any]:
        """Parameters of each image.

        Args:
            shape: (B, H, W, C) of the images; B may be a tensor.
            seed: a `keras.random.SeedGenerator`.
        """
        raise NotImplementedError

    def combine(self, batch: Batch, others: Batch, parameters: dict[str, Any]) -> Batch:
        """Mixes two batches of the same shape by what `draw` gave."""
        raise NotImplementedError

    def mix(self, images: Any, targets: Any, seed: Any, sources: Batch | None = None) -> Batch:
        """Mixes a batch.

        Args:
            images: `(B, H, W, C)`, 0..255; B may be unknown.
            targets: `(B, num_classes)`, one-hot or soft, each with the sum 1.
            seed: a `keras.random.SeedGenerator`, the only source of draws.
            sources: images `(n, H, W, C)` and targets `(n, num_classes)` with n >= B, for those
                that need them; the first B are used. Others leave them alone.

        Returns:
            Images and targets, float32, of the same shapes.

        Raises:
            InputError: shapes that do not go together, or sources that are missing.
        """
        if len(images.shape) != 4 or len(targets.shape) != 2:
            raise InputError(
                f"images have shape {tuple(images.shape)} and targets {tuple(targets.shape)}; give "
                "(batch, height, width, channels) and one-hot (batch, classes)"
            )
        images, targets = ops.cast(images, "float32"), ops.cast(targets, "float32")
        shape = ops.shape(images)
        parameters = self.draw(shape, seed)
        if not self.needs_sources:
            order = draws.permutation(seed, shape[0])
            others = ops.take(images, order, axis=0), ops.take(targets, order, axis=0)
            return self.combine((images, targets), others, parameters)
        if sources is None:
            raise InputError(f"{type(self).__name__} needs sources: (images, targets)")
        available = ops.shape(sources[0])[0]
        if isinstance(available, int) and isinstance(shape[0], int) and available < shape[0]:
            raise InputError(f"{available} sources for a batch of {shape[0]}: give as many or more")
        first = (ops.cast(part[: shape[0]], "float32") for part in sources)
        source_images, source_targets = first
        return self.combine((images, targets), (source_images, source_targets), parameters)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_git")
class MixUp(Mixing):
    """mixup: each image is averaged with another of the batch, and so are the targets.

    The weight of the image itself is drawn for each from Beta(alpha, alpha).

    Args:
        alpha: above 0; 1 draws weights uniformly, towards 0 nothing is mixed.

    Raises:
        InputError: alpha is not above 0.

    Reference: Zhang et al., *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, section 2.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = _checked_alpha(alpha)

    def draw(self, shape: Any, seed: Any) -> dict[str, Any]:
        """`"weight"` `(B,)` of the image itself."""
        return {"weight": draws.beta(seed, shape[0], self.alpha)}

    def combine(self, batch: Batch, others: Batch, parameters: dict[str, Any]) -> Batch:
        weight = parameters["weight"]
        label_weight = self.label_weight(weight, batch[1], others[1])
        images = _weighted(weight, batch[0], others[0])
        return images, _weighted(label_weight, batch[1], others[1])

    def label_weight(self, weight: Any, targets: Any, other_targets: Any) -> Any:
        """Weight `(B,)` of the own target, given that of the own image."""
        del targets, other_targets
        return weight

    def get_config(self) -> dict[str, Any]:
        return {"alpha": self.alpha}


@keras.saving.register_keras_serializable(package="keras_git")
class Remix(MixUp):
    """Remix: mixup whose labels lean to the smaller class.

    Images are mixed as by `MixUp`, with the weight w. Of an image of a class of n_i images and
    another of n_j, the weight of the own target is

    - 0 where n_i / n_j >= kappa and w < tau (the other's class is much smaller);
    - 1 where n_i / n_j <= 1 / kappa and 1 - w < tau (the own class is much smaller);
    - w otherwise.

    Args:
        class_counts: training images per class, (num_classes,).
        alpha: see `MixUp`.
        kappa: how many times larger a class is that gives way, above 1.
        tau: 0..1, weight of an image from which on its label is never dropped; 0 is `MixUp`.

    Raises:
        InputError: an argument out of range, or as many counts as there are no classes.

    The class of a soft target is its largest entry.

    Reference: Chou et al., *Remix: Rebalanced Mixup*, ECCV Workshops 2020, section 3.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        alpha: float = 1.0,
        kappa: float = 3.0,
        tau: float = 0.5,
    ) -> None:
        counts = np.asarray(class_counts)
        if counts.ndim != 1 or not len(counts) or not np.all(counts >= 0):
            raise InputError("class_counts must be the training images per class, 0 or more each")
        if not kappa > 1.0:
            raise InputError(f"kappa is {kappa}; use a number above 1")
        super().__init__(alpha)
        self.class_counts = tuple(int(count) for count in counts)
        self.kappa, self.tau = float(kappa), _checked_fraction("tau", tau)

    def label_weight(self, weight: Any, targets: Any, other_targets: Any) -> Any:
        if int(targets.shape[-1]) != len(self.class_counts):
            raise InputError(
                f"class_counts has {len(self.class_counts)} entries; targets have "
                f"{targets.shape[-1]} classes"
            )
        counts = ops.convert_to_tensor(np.asarray(self.class_counts, np.float32))
        own = ops.take(counts, ops.argmax(targets, axis=-1))
        other = ops.take(counts, ops.argmax(other_targets, axis=-1))
        given_way = ops.logical_and(own >= self.kappa * other, weight < self.tau)
        kept = ops.logical_and(other >= self.kappa * own, 1.0 - weight < self.tau)
        return ops.where(given_way, 0.0, ops.where(kept, 1.0, weight))

    def get_config(self) -> dict[str, Any]:
        return {
            "class_counts": list(self.class_counts),
            **super().get_config(),
            "kappa": self.kappa,
            "tau": self.tau,
        }


class _Pasting(Mixing):
    """Pastes a rectangle of another image; targets are weighted by the pixels of each."""

    def __init__(self, alpha: float = 1.0, probability: float = 0.5) -> None:
        self.alpha = _checked_alpha(alpha)
        self.probability = _checked_fraction("probability", probability)

    def draw(self, shape: Any, seed: Any) -> dict[str, Any]:
        """`"box"` int32 `(B, 4)`, see `rectangles`; without pixels where nothing is pasted."""
        part = ops.sqrt(1.0 - draws.beta(seed, shape[0], self.alpha))
        centres = rectangles.draw_centres(shape, seed)
        part = ops.where(draws.uniform(seed, shape[0]) < self.probability, part, 0.0)
        lengths = [ops.floor(part * float(int(side))) for side in shape[1:3]]
        sides = ops.cast(ops.stack(lengths, axis=1), "int32")
        return {"box": rectangles.clipped(centres, sides, shape)}

    def combine(self, batch: Batch, others: Batch, parameters: dict[str, Any]) -> Batch:
        box, shape = parameters["box"], ops.shape(batch[0])
        images = ops.where(rectangles.mask(box, shape), others[0], batch[0])
        return images, _weighted(1.0 - rectangles.share(box, shape), batch[1], others[1])

    def get_config(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "probability": self.probability}


@keras.saving.register_keras_serializable(package="keras_git")
class CutMix(_Pasting):
    """CutMix: a rectangle of another image of the batch is pasted into each.

    It has the sides floor(H sqrt(1 - l)) and floor(W sqrt(1 - l)) with l drawn for each image from
    Beta(alpha, alpha), and its centre anywhere; the border cuts it. The weight of a target is the
    share of pixels that are left of its image.

    Args:
        alpha: above 0; 1 draws l uniformly.
        probability: with which an image gets a rectangle. Drawn for each image; the authors'
            program draws it for each batch.

    Raises:
        InputError: an argument out of range.

    Reference: Yun et al., *CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features*, ICCV 2019, section 3.1 and 3.2.
    """


@keras.saving.register_keras_serializable(package="keras_git")
class TailPasting(_Pasting):
    """Context-rich oversampling (CMO): rectangles of tail images on the images of the batch.

    The batch, as the data are distributed, is the background; `sources`, drawn by weights that
    favour small classes, are the foreground. Rectangles and targets are those of `CutMix`; image
    i of the batch gets one of source i.

    Args:
        probability: with which an image gets a rectangle. Drawn for each image; the authors'
            program draws it for each batch.
        alpha: above 0; see `CutMix`.

    Raises:
        InputError: an argument out of range.

    Reference: Park et al., *The Majority Can Help the Minority: Context-rich Minority Oversampling
    for Long-tailed Classification*, CVPR 2022, section 3.2 and algorithm 1.
    """

    needs_sources: ClassVar[bool] = True

    def __init__(self, probability: float = 0.5, alpha: float = 1.0) -> None:
        super().__init__(alpha, probability)
