"""Layers with invariance built in: whitened inputs, and normalization by a sample's own values."""

from keras_git.layers.folding import fold
from keras_git.layers.inverse_sqrt import inverse_sqrt
from keras_git.layers.normalization import (
    L1Normalization,
    ReceptiveFieldNormalization,
    SampleNormalization,
)
from keras_git.layers.whitened import FEATURE_NORMALIZATIONS, Whitened
from keras_git.layers.whitened_conv import WhitenedConv2D
from keras_git.layers.whitened_conv_transpose import WhitenedConv2DTranspose
from keras_git.layers.whitened_dense import WhitenedDense

__all__ = [
    "FEATURE_NORMALIZATIONS",
    "L1Normalization",
    "ReceptiveFieldNormalization",
    "SampleNormalization",
    "Whitened",
    "WhitenedConv2D",
    "WhitenedConv2DTranspose",
    "WhitenedDense",
    "fold",
    "inverse_sqrt",
]
