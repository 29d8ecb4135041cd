"""Training of the generator and of the classifier."""

from __future__ import annotations

from keras_git.training.checkpoint import load_checkpoint, save_checkpoint, training_variables
from keras_git.training.generator_bank import GeneratorBank, generate_images, generator_bank
from keras_git.training.git_classifier import (
    REJECTED,
    Classifier,
    GITClassifier,
    check_generator,
    keep_probability,
    mix,
)
from keras_git.training.munit import MUNIT
from keras_git.training.on_device import fit_on_device, fit_seeds_on_device

__all__ = [
    "MUNIT",
    "REJECTED",
    "Classifier",
    "GITClassifier",
    "GeneratorBank",
    "check_generator",
    "fit_on_device",
    "fit_seeds_on_device",
    "generate_images",
    "generator_bank",
    "keep_probability",
    "load_checkpoint",
    "mix",
    "save_checkpoint",
    "training_variables",
]
