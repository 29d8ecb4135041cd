"""What varies in the data, and what a network is invariant to.

`explain_variation` finds which transformations make images of a class more alike;
`measure_invariance` and `measure_equivariance` what a network does with each; `compare` several
networks; `lines_up` asks whether the two agree. `TransformSet` holds the transformations,
`similarity_checks` asks whether similarity in an embedding means anything.

The parts of standard augmentation as Keras layers: `crop_decomposition`, `LearnedCrop`, and
`ClassPolicy`, which makes factors the augmentation of a class (`select_augmentations`) or of small
classes (`factor_generator`). `foreground_statistics`: how much place and size vary.

Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
2021. `official` has that study's own definitions; the others are estimates with less variance,
controls and confidence intervals.
"""

from __future__ import annotations

from keras_git.analysis import official
from keras_git.analysis.cells import DifferenceTable
from keras_git.analysis.checks import CheckTable, similarity_checks
from keras_git.analysis.class_policy import (
    ClassPolicy,
    factor_generator,
    read_factors,
    select_augmentations,
)
from keras_git.analysis.comparison import compare
from keras_git.analysis.crops import CropDecomposition, crop_decomposition
from keras_git.analysis.embeddings import FEATURES, EmbeddingCache, pixel_embedding
from keras_git.analysis.equivariance import EquivarianceTable, measure_equivariance
from keras_git.analysis.foreground import ForegroundTable, foreground_statistics
from keras_git.analysis.images import ImageSample, sample_images
from keras_git.analysis.invariance import InvarianceTable, measure_invariance
from keras_git.analysis.learned_crop import LearnedCrop
from keras_git.analysis.line_up import LineUpResult, lines_up
from keras_git.analysis.taxonomy import mantel, wordnet_similarity
from keras_git.analysis.transform_sets import Candidate, TransformSet
from keras_git.analysis.variation import FactorTable, explain_variation

__all__ = [
    "FEATURES",
    "Candidate",
    "CheckTable",
    "ClassPolicy",
    "CropDecomposition",
    "DifferenceTable",
    "EmbeddingCache",
    "EquivarianceTable",
    "FactorTable",
    "ForegroundTable",
    "ImageSample",
    "InvarianceTable",
    "LearnedCrop",
    "LineUpResult",
    "TransformSet",
    "compare",
    "crop_decomposition",
    "explain_variation",
    "factor_generator",
    "foreground_statistics",
    "lines_up",
    "mantel",
    "measure_equivariance",
    "measure_invariance",
    "official",
    "pixel_embedding",
    "read_factors",
    "sample_images",
    "select_augmentations",
    "similarity_checks",
    "wordnet_similarity",
]
