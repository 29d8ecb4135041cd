"""Networks: classifiers, the image-to-image generator and the discriminator.

All are functional models of built-in Keras layers and operations: a saved ``.keras`` file opens
with ``import keras`` alone, on any backend, in safe mode. Networks made with ``whitening`` need
``import keras_git`` besides, until `keras_git.layers.fold` has made them plain.
"""

from __future__ import annotations

from keras_git.models.batch_norm import call_in_training
from keras_git.models.discriminator import discriminator
from keras_git.models.four_conv import four_conv
from keras_git.models.generator import GeneratorNetworks, generator_networks
from keras_git.models.resnet import resnet
from keras_git.models.torch_checkpoints import import_torch_resnet
from keras_git.models.wide_resnet import wide_resnet

__all__ = [
    "GeneratorNetworks",
    "call_in_training",
    "discriminator",
    "four_conv",
    "generator_networks",
    "import_torch_resnet",
    "resnet",
    "wide_resnet",
]
