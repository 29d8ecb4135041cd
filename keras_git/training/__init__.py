"""Training of the generator and of the classifier."""

from __future__ import annotations

from keras_git.training.checkpoint import load_checkpoint, save_checkpoint, training_variables
from keras_git.training.classifier import Classifier
from keras_git.training.decoupling import (
    adjust_logits,
    begin_classifier_retraining,
    end_retraining,
    fold_weight_scaling,
    linear_head,
    tau_normalize,
    weight_scaling_network,
)
from keras_git.training.generator_bank import GeneratorBank, generate_images, generator_bank
from keras_git.training.git_classifier import (
    REJECTED,
    GITClassifier,
    check_generator,
    keep_probability,
    mix,
)
from keras_git.training.isda import ISDA
from keras_git.training.munit import MUNIT
from keras_git.training.on_device import fit_on_device, fit_seeds_on_device
from keras_git.training.weight_averaging import (
    refresh_batch_normalization,
    use_averaged_weights,
)

__all__ = [
    "ISDA",
    "MUNIT",
    "REJECTED",
    "Classifier",
    "GITClassifier",
    "GeneratorBank",
    "adjust_logits",
    "begin_classifier_retraining",
    "check_generator",
    "end_retraining",
    "fold_weight_scaling",
    "fit_on_device",
    "fit_seeds_on_device",
    "generate_images",
    "generator_bank",
    "keep_probability",
    "linear_head",
    "load_checkpoint",
    "mix",
    "refresh_batch_normalization",
    "save_checkpoint",
    "tau_normalize",
    "training_variables",
    "use_averaged_weights",
    "weight_scaling_network",
]
