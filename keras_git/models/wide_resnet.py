"""The wide residual networks of ImageNet: ResNet-18, -34 and -50, for small and large images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from keras_git.errors import InputError
from keras_git.models import _blocks
from keras_git.models.heads import HEADS, classifier_head
from keras_git.models.normalized_convolution import Whitening, convolution_unit

STEMS = ("auto", "small", "large")
# Blocks of the four stages, and whether they are bottlenecks.
_STAGES = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}
_LARGE_IMAGES = 96
_EXPANSION = 4


def wide_resnet(
    input_shape: Sequence[int],
    num_classes: int,
    depth: int = 18,
    *,
    head: str = "linear",
    stem: str = "auto",
    width: int = 64,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    whitening: Whitening = False,
    feature_normalization: str | None = None,
    seed: int | None = None,
    name: str = "classifier",
) -> keras.Model:
    """ResNet-18, -34 or -50 of ImageNet, or with the stem for CIFAR's small images.

    Four stages of 64, 128, 256 and 512 channels (bottlenecks: four times as many); shortcuts are
    projections where the shape changes; convolutions pad symmetrically. Bottlenecks have their
    stride in the 3x3 convolution.

    Args:
        input_shape: (height, width, channels), at least 8 pixels, with the large stem 32; 1 or 3
            channels.
        num_classes: Number of classes, at least 2.
        depth: 18, 34 or 50.
        head: "linear" (weights and bias), or "cosine" (normalized weights and features, logits in
            [-1, 1], made for the LDAM loss).
        stem: "small", a 3x3 convolution; "large", a 7x7 convolution and max pooling, which halve
            the image twice; "auto", large from 96 pixels on.
        width: Channels of the first stage.
        mean: Channel means in [0, 1] units. With mean and std the network takes images 0..255;
            without them it takes images that are normalized already.
        std: Channel standard deviations in [0, 1] units.
        whitening: False for batch normalization; True, or a mapping of arguments, for
            `keras_git.layers.WhitenedConv2D` in its place. Such a network opens after
            `import keras_git`; `keras_git.layers.fold` makes it plain.
        feature_normalization: of the whitened convolutions: None, "sample", "l1" or
            "receptive_field".
        seed: Seed of the initial weights; None draws fresh ones.
        name: Name of the model and prefix of its layers.

    Returns:
        Functional model from float32 (N, height, width, channels) to logits (N, num_classes).

    Raises:
        InputError: for an impossible depth, head, stem, width or shape.

    Reference:
        He et al. (2016), "Deep residual learning for image recognition", table 1; whitened: Ye et
        al. (2021), "Exploiting invariance in training deep neural networks".
    """
    _blocks.check_positive(num_classes=num_classes, width=width)
    if depth not in _STAGES:
        raise InputError(f"depth is {depth!r}; allowed: {', '.join(map(str, _STAGES))}")
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}; it must be at least 2")
    _blocks.check_choice("stem", stem, STEMS)
    _blocks.check_choice("head", head, HEADS)
    shape = _blocks.check_image_shape(input_shape, smallest=32 if stem == "large" else 8)
    large = stem == "large" or (stem == "auto" and min(shape[:2]) >= _LARGE_IMAGES)
    conv = convolution_unit(whitening, feature_normalization, seed)

    def relu(x: Any, layer: str) -> Any:
        return layers.ReLU(name=layer)(x)

    inputs = keras.Input(shape, name=f"{name}_images")
    x = _blocks.image_normalization(inputs, mean, std, shape[-1], name)
    size, strides = (7, 2) if large else (3, 1)
    x = conv(x, width, size, strides, f"{name}_stem_conv", f"{name}_stem_bn")
    x = relu(x, f"{name}_stem_relu")
    if large:
        # after a ReLU, zeros pad as well as minus infinity
        x = layers.ZeroPadding2D(1, name=f"{name}_stem_pool_pad")(x)
        x = layers.MaxPooling2D(3, 2, name=f"{name}_stem_pool")(x)
    blocks, bottleneck = _STAGES[depth]
    for stage, number in enumerate(blocks):
        filters = width * 2**stage
        outputs = filters * _EXPANSION if bottleneck else filters
        for block in range(number):
            prefix = f"{name}_stage{stage + 1}_block{block}"
            strides = 2 if stage > 0 and block == 0 else 1
            # (filters, kernel size, strides) of each convolution
            plan = [(filters, 3, strides), (filters, 3, 1)]
            if bottleneck:
                plan = [(filters, 1, 1), (filters, 3, strides), (outputs, 1, 1)]
            y = x
            for index, (channels, size, step) in enumerate(plan, 1):
                y = conv(y, channels, size, step, f"{prefix}_conv{index}", f"{prefix}_bn{index}")
                if index < len(plan):
                    y = relu(y, f"{prefix}_relu{index}")
            if strides != 1 or x.shape[-1] != outputs:
                x = conv(x, outputs, 1, strides, f"{prefix}_shortcut", f"{prefix}_shortcut_bn")
            x = layers.Add(name=f"{prefix}_add")([y, x])
            x = relu(x, f"{prefix}_relu{len(plan)}")
    x = layers.GlobalAveragePooling2D(name=f"{name}_pool")(x)
    outputs = classifier_head(x, head, num_classes, seed, f"{name}_head")
    return keras.Model(inputs, outputs, name=name)
