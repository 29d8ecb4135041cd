"""The recipes by name. To add one, write its record here; everything else finds it."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np

from keras_git import augmentation, data, losses, training
from keras_git.recipes.recipe import Deferred, Recipe, Schedule, SecondStage

_LDAM_SCALE = 30.0


def _cross_entropy(class_counts: np.ndarray, **options: Any) -> keras.losses.Loss:
    return losses.CrossEntropy(**options)


def _focal(class_counts: np.ndarray, **options: Any) -> keras.losses.Loss:
    return losses.Focal(gamma=1.0, **options)


def _vector_scaling(class_counts: np.ndarray, **options: Any) -> keras.losses.Loss:
    # the values of the paper for CIFAR-LT, which it chose for each of the two
    few = len(class_counts) <= 10
    return losses.VS(
        class_counts, gamma=0.15 if few else 0.05, tau=1.25 if few else 0.75, **options
    )


def _progressive(labels: np.ndarray, seed: Any, schedule: Schedule) -> data.Sampler:
    return data.Progressive(labels, seed, epochs=schedule.epochs)


def _isda(schedule: Schedule) -> Any:
    return training.ISDA(strength=0.5, epochs=schedule.epochs)


def _cutout(mean: Any) -> Any:
    return augmentation.Cutout(fill=[float(level) for level in np.atleast_1d(mean)])


def _mixup(class_counts: np.ndarray) -> Any:
    return augmentation.MixUp(alpha=1.0)


def _cutmix(class_counts: np.ndarray) -> Any:
    return augmentation.CutMix(alpha=1.0, probability=0.5)


def _tail_pasting(class_counts: np.ndarray) -> Any:
    return augmentation.TailPasting(probability=0.5, alpha=1.0)


def _cosine(base: float, steps_per_epoch: int, epochs: int, warmup_epochs: int) -> Any:
    warmup = warmup_epochs * steps_per_epoch
    rest = max(epochs * steps_per_epoch - warmup, 1)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(base, rest)
    return keras.optimizers.schedules.CosineDecay(
        base / warmup, rest, warmup_target=base, warmup_steps=warmup
    )


def _tau_normalize(network: keras.Model, class_counts: np.ndarray) -> None:
    training.tau_normalize(network, 1.0)


def _begin_weight_scaling(network: keras.Model, seed: int) -> keras.Model:
    return training.weight_scaling_network(network)


def _begin_retraining(network: keras.Model, seed: int) -> keras.Model:
    training.begin_classifier_retraining(network, seed)
    return network


def _end_retraining(trained: keras.Model, network: keras.Model) -> None:
    training.end_retraining(network)


_LDAM = "Cao et al., NeurIPS 2019"
_DECOUPLING = "Kang et al., ICLR 2020"

_ALL = (
    # --- what is drawn
    Recipe("erm", "every image once per epoch", sampling="instance_balanced"),
    Recipe(
        "drs",
        "class-balanced sampling from --defer_epoch on",
        _LDAM,
        sampling=Deferred("instance_balanced", "class_balanced"),
    ),
    Recipe(
        "class_balanced_sampling",
        "class-balanced sampling from the start",
        sampling="class_balanced",
    ),
    Recipe(
        "square_root_sampling",
        "class probabilities by the square root of the class size",
        _DECOUPLING,
        sampling="square_root",
    ),
    Recipe(
        "progressive_sampling",
        "from every image once to class-balanced, a little more in every epoch",
        _DECOUPLING,
        sampling=_progressive,
    ),
    Recipe(
        "effective_number_sampling",
        "sampling by the effective number of images",
        "Cui et al., CVPR 2019",
        sampling="effective_number",
    ),
    # --- weights of the loss
    Recipe(
        "inverse_weighting",
        "weights inverse to the class size from the start",
        class_weights=losses.inverse_frequency_weights,
    ),
    Recipe(
        "class_balanced_loss",
        "weights by the effective number of images from the start",
        "Cui et al., CVPR 2019",
        class_weights=losses.class_balanced_weights,
    ),
    Recipe(
        "drw",
        "weights by the effective number of images from --defer_epoch on",
        _LDAM,
        class_weights=Deferred(np.ones_like, losses.class_balanced_weights),
    ),
    # --- losses
    Recipe("ce", "cross-entropy", loss=_cross_entropy),
    Recipe("focal", "focal loss, gamma 1", "Lin et al., ICCV 2017", loss=_focal),
    Recipe(
        "ldam",
        "label-distribution-aware margin, cosine head",
        _LDAM,
        loss=functools.partial(losses.LDAM, scale=_LDAM_SCALE),
        head="cosine",
        cosine_scale=_LDAM_SCALE,
    ),
    Recipe(
        "ldam_drw",
        "ldam+drw",
        _LDAM,
        loss=functools.partial(losses.LDAM, scale=_LDAM_SCALE),
        head="cosine",
        cosine_scale=_LDAM_SCALE,
        class_weights=Deferred(np.ones_like, losses.class_balanced_weights),
    ),
    Recipe(
        "balanced_softmax",
        "balanced softmax",
        "Ren et al., NeurIPS 2020",
        loss=losses.BalancedSoftmax,
        corrects_prior=True,
    ),
    Recipe(
        "logit_adjustment",
        "logit-adjusted cross-entropy",
        "Menon et al., ICLR 2021",
        loss=losses.LogitAdjustment,
        corrects_prior=True,
    ),
    Recipe(
        "vs",
        "vector scaling: logits shifted and scaled by class size",
        "Kini et al., NeurIPS 2021",
        loss=_vector_scaling,
        corrects_prior=True,
    ),
    Recipe(
        "label_smoothing",
        "a tenth of each target spread over all classes",
        "Szegedy et al., CVPR 2016",
        label_smoothing=0.1,
    ),
    Recipe(
        "isda",
        "implicit augmentation of features by the covariance of their class",
        "Wang et al., NeurIPS 2019",
        feature_augmentation=_isda,
    ),
    # --- images
    Recipe(
        "randaugment",
        "two random operations on each image",
        "Cubuk et al., CVPRW 2020",
        augmentation=augmentation.RandAugment,
    ),
    Recipe(
        "autoaugment",
        "the policy found for CIFAR-10",
        "Cubuk et al., CVPR 2019",
        augmentation=augmentation.AutoAugment,
    ),
    Recipe(
        "cutout",
        "a square of each image has the mean colour",
        "DeVries and Taylor, 2017",
        cutout=_cutout,
    ),
    Recipe(
        "mixup", "images and labels averaged in pairs", "Zhang et al., ICLR 2018", mixing=_mixup
    ),
    Recipe("cutmix", "rectangles of other images pasted", "Yun et al., ICCV 2019", mixing=_cutmix),
    Recipe(
        "remix",
        "mixup whose labels favour the smaller class",
        "Chou et al., ECCVW 2020",
        mixing=augmentation.Remix,
    ),
    Recipe(
        "cmo",
        "rectangles of images of small classes pasted onto the batch",
        "Park et al., CVPR 2022",
        mixing=_tail_pasting,
        source_sampling="inverse_frequency",
    ),
    # --- how it is optimized
    Recipe(
        "cosine",
        "the learning rate falls by a cosine after the warm-up",
        "Loshchilov and Hutter, ICLR 2017",
        learning_rate=_cosine,
    ),
    Recipe(
        "sam",
        "sharpness-aware minimization, radius 0.05",
        "Foret et al., ICLR 2021",
        sharpness_radius=0.05,
    ),
    Recipe(
        "ema",
        "the weights are their exponential average over a twentieth of the training",
        "Polyak and Juditsky, 1992; Tarvainen and Valpola, NeurIPS 2017",
        averaged_part=0.05,
    ),
    # --- what follows the training
    Recipe(
        "crt",
        "the head is trained again on class-balanced draws, the features as they are",
        _DECOUPLING,
        second_stage=SecondStage(_begin_retraining, _end_retraining),
    ),
    Recipe(
        "lws",
        "a scale for each class is learned on class-balanced draws",
        _DECOUPLING,
        second_stage=SecondStage(_begin_weight_scaling, training.fold_weight_scaling),
    ),
    Recipe(
        "tau_normalization",
        "the head's weight vectors get unit length",
        _DECOUPLING,
        post_hoc=_tau_normalize,
    ),
    Recipe(
        "post_hoc_logit_adjustment",
        "the log class frequencies are taken off the logits after the training",
        "Menon et al., ICLR 2021",
        post_hoc=training.adjust_logits,
        corrects_prior=True,
    ),
    # --- generative invariance transfer
    Recipe(
        "git",
        "generated images; with drs unless said, or a loss that corrects for the class sizes",
        "Zhou et al., ICLR 2022",
        generates=True,
    ),
    Recipe(
        "factors",
        "factors of variation (--augment_from_factors) in the generator's place",
        "Bouchacourt et al., NeurIPS 2021",
        factors=True,
    ),
    Recipe(
        "oracle",
        "the true nuisance as augmentation, where it is known (k49_lt)",
        "Zhou et al., ICLR 2022",
        oracle=True,
    ),
)

BOOK: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
