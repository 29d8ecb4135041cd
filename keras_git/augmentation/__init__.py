"""What happens to a batch inside the training step: image policies, and mixing with labels.

Compiled with the step, on its device, for each image its own draw. Random crops and flips on the
host are in `keras_git.data`.
"""

from __future__ import annotations

from keras_git.augmentation.cutout import Cutout
from keras_git.augmentation.image_policy import ImagePolicy
from keras_git.augmentation.mixing import CutMix, Mixing, MixUp, Remix, TailPasting
from keras_git.augmentation.policies import AutoAugment, RandAugment

__all__ = [
    "AutoAugment",
    "CutMix",
    "Cutout",
    "ImagePolicy",
    "MixUp",
    "Mixing",
    "RandAugment",
    "Remix",
    "TailPasting",
]
