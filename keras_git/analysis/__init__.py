"""What varies in the data, and what a model is invariant to.

The parts of standard augmentation as Keras layers: random-resized-crop taken apart, a learned crop,
augmentation by class; and how much place and size of foregrounds vary.
"""

from __future__ import annotations

from keras_git.analysis.class_policy import (
    ClassPolicy,
    factor_generator,
    read_factors,
    select_augmentations,
)
from keras_git.analysis.crops import CropDecomposition, crop_decomposition
from keras_git.analysis.foreground import ForegroundTable, foreground_statistics
from keras_git.analysis.learned_crop import LearnedCrop

__all__ = [
    "ClassPolicy",
    "CropDecomposition",
    "ForegroundTable",
    "LearnedCrop",
    "crop_decomposition",
    "factor_generator",
    "foreground_statistics",
    "read_factors",
    "select_augmentations",
]
