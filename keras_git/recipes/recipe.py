"""One way to train a classifier, as one frozen record."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_git import data, losses, training
from keras_git.errors import InputError
from keras_git.training.classifier import ClassWeights

# What a part is called when two of a sum decide it.
_KINDS = {
    "sampling": "samplings",
    "loss": "losses",
    "class_weights": "weightings",
    "label_smoothing": "label smoothings",
    "feature_augmentation": "augmentations of features",
    "augmentation": "image policies",
    "mixing": "mixings",
    "learning_rate": "learning rate schedules",
    "sharpness_radius": "sharpness radii",
    "averaged_part": "averages of the weights",
    "cutout": "cutouts",
    "second_stage": "second stages",
    "post_hoc": "post-hoc steps",
}
# These decide nothing about an epoch of the first stage.
_AFTER = ("name", "summary", "reference", "second_stage", "post_hoc", "corrects_prior")


@dataclass(frozen=True)
class Deferred:
    """A choice that changes at the epoch of the deferral.

    Attributes:
        first: before it.
        then: from it on.
    """

    first: Any
    then: Any


@dataclass(frozen=True)
class Schedule:
    """When things happen; epochs count from 0.

    Attributes:
        epochs: of the first stage.
        defer_epoch: from which on what is deferred takes place.
        generation_epoch: first epoch with generated images; None: `defer_epoch` + 1.
    """

    epochs: int
    defer_epoch: int
    generation_epoch: int | None = None

    @property
    def first_generation(self) -> int:
        """First epoch with generated images."""
        return self.defer_epoch + 1 if self.generation_epoch is None else self.generation_epoch


@dataclass(frozen=True)
class SecondStage:
    """Further training of the head on class-balanced draws, the features as they are.

    Attributes:
        begin: `begin(network, seed)` prepares a trained network and returns what is to be trained.
        end: `end(trained, network)` brings the result into `network`, a plain classifier.
        sampling: as in `Recipe`.
    """

    begin: Callable[[keras.Model, int], keras.Model]
    end: Callable[[keras.Model, keras.Model], None]
    sampling: Any = "class_balanced"


@dataclass(frozen=True)
class Recipe:
    """One way to train a classifier: what is drawn, minimized, augmented, and done afterwards.

    A field that is None says nothing, so that recipes add up (`combined`); the defaults are those
    of plain training.

    Attributes:
        name: its name in a sum such as `"git+logit_adjustment"`, or that sum.
        summary: what it does, in a line.
        reference: where it comes from.
        sampling: a name of `keras_git.data.SAMPLERS` or a function `(labels, seed, schedule)` that
            gives a sampler, or two of these as `Deferred`; default: every image once per epoch.
        loss: function `(class_counts, label_smoothing=...)` that gives the Keras loss, for integer
            and for soft labels; default: cross-entropy.
        head: of the network, `"linear"` (default) or `"cosine"`.
        cosine_scale: what the cosines are multiplied with before a softmax is taken of them.
        corrects_prior: the loss or the post-hoc step makes up for the class sizes, so that
            class-balanced sampling would do it twice.
        class_weights: function of the class counts that gives one weight per class, or two of
            these as `Deferred`; default: none.
        label_smoothing: part of each target that is spread over all classes.
        feature_augmentation: function of the schedule, see `keras_git.training.Classifier`.
        augmentation: function that gives an image policy (`keras_git.augmentation`).
        cutout: function of the mean colour, grey levels 0..255 (channels,), that gives another one,
            which comes after it.
        mixing: function of the class counts that gives a mixing of images and labels.
        source_sampling: as `sampling`, for the second stream of a mixing that needs one.
        learning_rate: function `(base, steps_per_epoch, epochs, warmup_epochs)` that gives a
            schedule; default: the steps of the experiment.
        sharpness_radius: of sharpness-aware minimization.
        averaged_part: the network's weights are exponential averages; the part of the training
            over which they reach, see `ema_momentum`.
        generates: whether a part of the batch is generated (GIT).
        factors: whether that part is instead transformed by the factors of variation of large
            classes; everything else is as with `generates`.
        oracle: whether images get a new draw of the true nuisance in every step.
        second_stage: training of the head that follows.
        post_hoc: `post_hoc(network, class_counts)` changes the trained network in place.
    """

    name: str
    summary: str = ""
    reference: str = ""
    sampling: Any = None
    loss: Callable[..., keras.losses.Loss] | None = None
    head: str | None = None
    cosine_scale: float | None = None
    corrects_prior: bool | None = None
    class_weights: Any = None
    label_smoothing: float | None = None
    feature_augmentation: Callable[[Schedule], Any] | None = None
    augmentation: Callable[[], Any] | None = None
    cutout: Callable[[Any], Any] | None = None
    mixing: Callable[..., Any] | None = None
    source_sampling: Any = None
    learning_rate: Callable[[float, int, int, int], Any] | None = None
    sharpness_radius: float | None = None
    averaged_part: float | None = None
    generates: bool | None = None
    factors: bool | None = None
    oracle: bool | None = None
    second_stage: SecondStage | None = None
    post_hoc: Callable[[keras.Model, np.ndarray], None] | None = None

    @property
    def replaces(self) -> bool:
        """Whether images of the batch are replaced by those of a generator, learned or made."""
        return bool(self.generates or self.factors)

    @property
    def head_of_network(self) -> str:
        """The head of the network, `"linear"` or `"cosine"`."""
        return self.head or "linear"

    @property
    def logit_scale(self) -> float:
        """What the network's outputs are multiplied with before a softmax is taken of them."""
        return self.cosine_scale or 1.0

    @property
    def needs_linear_head(self) -> bool:
        """Whether the network has to end in a `keras.layers.Dense`."""
        parts = (self.second_stage, self.post_hoc, self.feature_augmentation)
        return any(part is not None for part in parts)

    def ema_momentum(self, steps: int) -> float:
        """Momentum of the averages in a training of so many steps; 0 without any.

        1 - 1 / (averaged_part * steps): where a training is short, averages of a fixed momentum
        would mostly be of weights from before the last decay.
        """
        if self.averaged_part is None:
            return 0.0
        return 1.0 - 1.0 / max(self.averaged_part * steps, 2.0)

    @property
    def defers(self) -> bool:
        """Whether something changes at the deferral."""
        return any(isinstance(value, Deferred) for value in (self.sampling, self.class_weights))

    def stage(self, epoch: int, schedule: Schedule) -> tuple[tuple[str, Any], ...]:
        """All that decides what an epoch does: recipes with equal stages share epochs."""
        parts = {}
        for field in dataclasses.fields(self):
            value = _at(getattr(self, field.name), epoch, schedule)
            if field.name not in _AFTER and value is not None:
                parts[field.name] = _identity(value)
        for name in ("generates", "factors"):
            if epoch < schedule.first_generation:
                parts.pop(name, None)
        parts.setdefault("sampling", _identity("instance_balanced"))
        if isinstance(self.class_weights, Deferred) and epoch < schedule.defer_epoch:
            parts["class_weights"] = "deferred"  # ones: the same sums, but compiled otherwise
        return tuple(sorted(parts.items()))

    def step_key(self) -> tuple[tuple[str, Any], ...]:
        """Equal for recipes whose training steps are the same compiled function."""
        free = (*_AFTER, "sampling", "source_sampling", "generates")
        return tuple(
            (field.name, _identity(getattr(self, field.name)))
            for field in dataclasses.fields(self)
            if field.name not in free and getattr(self, field.name) is not None
        )

    def make_sampler(
        self, labels: np.ndarray, seed: data.randomness.Seed, schedule: Schedule
    ) -> data.Sampler:
        """Which images the epochs of the first stage visit.

        Args:
            labels: integers (N,) of the training images.
            seed: a non-negative integer, or several.
            schedule: when things happen.
        """
        return _sampler(self.sampling or "instance_balanced", labels, seed, schedule)

    def make_source_sampler(
        self, labels: np.ndarray, seed: data.randomness.Seed, schedule: Schedule
    ) -> data.Sampler | None:
        """Which images the second stream visits that `mixing` needs; None if it needs none."""
        if self.source_sampling is None:
            return None
        return _sampler(self.source_sampling, labels, seed, schedule)

    def make_loss(self, class_counts: np.ndarray) -> keras.losses.Loss:
        """The Keras loss, for integer labels (B,) and for soft ones (B, C)."""
        smoothing = self.label_smoothing or 0.0
        if self.loss is None:
            return losses.CrossEntropy(label_smoothing=smoothing)
        return self.loss(class_counts, label_smoothing=smoothing)

    def make_class_weights(self, class_counts: np.ndarray, schedule: Schedule) -> ClassWeights:
        """Argument `class_weights` of `keras_git.training.Classifier`."""
        chosen = self.class_weights
        if not isinstance(chosen, Deferred):
            return None if chosen is None else chosen(class_counts)
        first, then = chosen.first(class_counts), chosen.then(class_counts)
        return lambda epoch: then if epoch >= schedule.defer_epoch else first

    def step_arguments(
        self, class_counts: np.ndarray, schedule: Schedule, mean: Any = 0.0
    ) -> dict[str, Any]:
        """What `Classifier` and `GITClassifier` take from this recipe, by argument.

        Args:
            class_counts: training images per class, (C,).
            schedule: when things happen.
            mean: mean colour of the training images, grey levels 0..255, (channels,) or one.
        """
        policies = [self.augmentation()] if self.augmentation is not None else []
        if self.cutout is not None:
            policies.append(self.cutout(mean))
        given = {
            "class_weights": self.make_class_weights(class_counts, schedule),
            "augmentation": policies or None,
            "mixing": self.mixing and self.mixing(class_counts),
            "feature_augmentation": self.feature_augmentation
            and self.feature_augmentation(schedule),
            "sharpness_radius": self.sharpness_radius,
        }
        return {name: value for name, value in given.items() if value is not None}

    def classifier(
        self, network: keras.Model, class_counts: Any, schedule: Schedule, seed: int = 0
    ) -> training.Classifier:
        """A model for `fit` that trains `network` as this recipe says, without a generator.

        Compile it with `make_loss(class_counts)` and `keras_git.metrics.LabelAccuracy()`, and give
        `fit` batches of `make_sampler(...)`. What is not in a step is yours: `learning_rate` and
        `ema_momentum(steps)` belong to the optimizer (`use_ema=True`, then
        `keras_git.training.use_averaged_weights`), `second_stage` and `post_hoc` come afterwards.

        Args:
            network: from images (B, H, W, C) to logits (B, C).
            class_counts: training images per class, (C,).
            schedule: when things happen.
            seed: of the random numbers drawn in the step.

        Raises:
            InputError: the recipe replaces images (use `keras_git.training.GITClassifier` with
                `step_arguments`), or has the true nuisance as augmentation.
        """
        if self.replaces or self.oracle:
            raise InputError(
                f"{self.name} replaces images: make a GITClassifier, or a Classifier with a "
                "transform, and give it recipe.step_arguments(...)"
            )
        counts = np.asarray(class_counts)
        return training.Classifier(network, seed=seed, **self.step_arguments(counts, schedule))


def _at(value: Any, epoch: int, schedule: Schedule) -> Any:
    if isinstance(value, Deferred):
        return value.first if epoch < schedule.defer_epoch else value.then
    return value


def _identity(value: Any) -> Any:
    """The same in every process: functions by their place, not by their address."""
    if isinstance(value, functools.partial):
        return _identity(value.func), repr(value.args), repr(sorted(value.keywords.items()))
    if isinstance(value, Deferred):
        return "deferred", _identity(value.first), _identity(value.then)
    if callable(value) and "<" in value.__qualname__:
        raise InputError(
            f"{value.__qualname__}: two such functions cannot be told apart; define it with "
            "`def` at the top of a module"
        )
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value


def _sampler(
    choice: Any, labels: np.ndarray, seed: data.randomness.Seed, schedule: Schedule
) -> data.Sampler:
    if isinstance(choice, Deferred):
        return data.Deferred(
            _sampler(choice.first, labels, seed, schedule),
            _sampler(choice.then, labels, seed, schedule),
            schedule.defer_epoch,
        )
    if callable(choice):
        return choice(labels, seed, schedule)
    return data.sampler(choice, labels, seed)


def combined(key: str, parts: Sequence[Recipe]) -> Recipe:
    """The sum of recipes: all that any of them says.

    Args:
        key: name of the sum.
        parts: one recipe or more.

    Raises:
        InputError: two of them decide the same, or what they decide does not go together.
    """
    decided: dict[str, tuple[str, Any]] = {}
    for part in parts:
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if field.name in ("name", "summary", "reference") or value is None:
                continue
            if field.name in decided and field.name in _KINDS:
                raise InputError(
                    f"method {key!r} has two {_KINDS[field.name]}: {decided[field.name][0]} and "
                    f"{part.name}"
                )
            decided[field.name] = part.name, value
    values: dict[str, Any] = {name: value for name, (_, value) in decided.items()}
    for name in ("summary", "reference"):
        values[name] = "; ".join(text for part in parts if (text := getattr(part, name)))
    recipe = Recipe(key, **values)
    _check(recipe, {name: part for name, (part, _) in decided.items()})
    corrected = recipe.corrects_prior or recipe.class_weights is not None
    if recipe.replaces and recipe.sampling is None and not corrected:
        # as in the paper; what corrects for the class sizes otherwise would do so twice
        recipe = dataclasses.replace(
            recipe, sampling=Deferred("instance_balanced", "class_balanced")
        )
    return recipe


def _check(recipe: Recipe, said_by: dict[str, str]) -> None:
    """Raises `InputError` for what cannot go together."""
    key = recipe.name
    if recipe.generates and recipe.oracle:
        raise InputError(f"method {key!r}: git learns the nuisance that oracle knows; use one")
    if recipe.factors and (recipe.generates or recipe.oracle):
        raise InputError(f"method {key!r}: factors take the place of git and oracle; use one")
    if recipe.replaces and recipe.source_sampling is not None:
        raise InputError(
            f"method {key!r}: {said_by['mixing']} and {said_by.get('generates', 'factors')} both "
            "need the second stream of images; use one"
        )
    if recipe.mixing and recipe.feature_augmentation:
        raise InputError(
            f"method {key!r}: {said_by['feature_augmentation']} needs one label per image, and "
            f"{said_by['mixing']} mixes them; use one"
        )
    if recipe.post_hoc is not None and recipe.corrects_prior:
        balancing = ("loss", "sampling", "class_weights", "second_stage")
        others = [said_by[name] for name in balancing if name in said_by]
        others = [other for other in others if other not in ("erm", "ce", "focal")]
        if others:
            raise InputError(
                f"method {key!r}: {said_by['post_hoc']} corrects for the class sizes, and so does "
                f"{others[0]}; use one"
            )
    for name in ("second_stage", "post_hoc", "feature_augmentation"):
        if getattr(recipe, name) is not None and recipe.head_of_network != "linear":
            raise InputError(
                f"method {key!r}: {said_by[name]} needs a linear head, and {said_by['head']} has "
                "cosines; use one"
            )
