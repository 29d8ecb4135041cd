"""Long-tailed image data: sources, subsets, samplers, augmentation and pipelines.

Importing this package loads neither TensorFlow nor tensorflow_datasets; both are imported where
they are used.
"""

from keras_git.data.augmentation import RandomCropFlip
from keras_git.data.dataset import ImageDataset, Splits
from keras_git.data.glyphs import glyphs
from keras_git.data.gtsrb import load_gtsrb
from keras_git.data.image_files import read_image
from keras_git.data.image_folder import (
    ImageFolder,
    default_image_size,
    load_class_folder,
    load_image_folder,
)
from keras_git.data.k49 import K49LongTail, K49Version, k49_class_order, load_k49
from keras_git.data.long_tail import (
    channel_statistics,
    cyclic_indices,
    long_tail,
    long_tailed_indices,
    stratified_group_split,
    stratified_split,
)
from keras_git.data.pipeline import Stream, choose_pipeline, evaluation_data, training_data
from keras_git.data.profiles import class_sizes
from keras_git.data.samplers import (
    ClassBalanced,
    Deferred,
    EffectiveNumber,
    InstanceBalanced,
    InverseFrequency,
    Progressive,
    Sampler,
    SquareRoot,
    sampler,
)
from keras_git.data.sources import from_arrays, load, load_npz, load_tfds

__all__ = [
    "ClassBalanced",
    "Deferred",
    "EffectiveNumber",
    "ImageDataset",
    "ImageFolder",
    "InstanceBalanced",
    "InverseFrequency",
    "K49LongTail",
    "K49Version",
    "Progressive",
    "RandomCropFlip",
    "Sampler",
    "Splits",
    "SquareRoot",
    "Stream",
    "channel_statistics",
    "choose_pipeline",
    "class_sizes",
    "cyclic_indices",
    "default_image_size",
    "glyphs",
    "evaluation_data",
    "from_arrays",
    "k49_class_order",
    "load",
    "load_class_folder",
    "load_image_folder",
    "load_gtsrb",
    "load_k49",
    "load_npz",
    "load_tfds",
    "long_tail",
    "long_tailed_indices",
    "read_image",
    "sampler",
    "stratified_group_split",
    "stratified_split",
    "training_data",
]
