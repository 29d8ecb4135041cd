"""CIFAR residual networks."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers, ops

from keras_git.errors import InputError
from keras_git.models import _blocks
from keras_git.models.heads import HEADS, classifier_head
from keras_git.models.normalized_convolution import Whitening, convolution_unit


def resnet(
    input_shape: Sequence[int],
    num_classes: int,
    depth: int = 32,
    *,
    head: str = "linear",
    width: int = 16,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    whitening: Whitening = False,
    feature_normalization: str | None = None,
    seed: int | None = None,
    name: str = "classifier",
) -> keras.Model:
    """CIFAR ResNet: a stem, three stages of (depth - 2) / 6 basic blocks, pooling and a head.

    Where the width doubles, the shortcut takes every second row and column and pads channels with
    zeros on both sides ("option A"): it has no parameters. Convolutions pad symmetrically, also
    at stride 2. Keras updates the running variance of batch normalization with the biased batch
    variance; train through ``keras_git.models.call_in_training`` to get the unbiased one.

    Args:
        input_shape: (height, width, channels), at least 8 pixels, 1 or 3 channels.
        num_classes: Number of classes, at least 2.
        depth: 6 n + 2 for n >= 1: 8, 14, 20, 32, 44, 56, 110, 1202, ...
        head: "linear" (weights and bias), or "cosine" (normalized weights and features, logits in
            [-1, 1], made for the LDAM loss).
        width: Channels of the first stage, even; the next two have twice and four times as many.
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
        InputError: for an impossible depth, head, width or shape.

    Reference:
        He et al. (2016), "Deep residual learning for image recognition", section 4.2; the cosine
        head: Cao et al. (2019), "Learning imbalanced datasets with label-distribution-aware
        margin loss", appendix B.
    """
    _blocks.check_positive(num_classes=num_classes, width=width, depth=depth)
    if depth < 8 or (depth - 2) % 6:
        raise InputError(
            f"depth is {depth!r}; allowed: 6n+2 for n >= 1, such as 8, 14, 20, 32, 44, 56, 110"
        )
    if width % 2:
        raise InputError(f"width is {width}; it must be even (channels are padded on both sides)")
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}; it must be at least 2")
    _blocks.check_choice("head", head, HEADS)
    shape = _blocks.check_image_shape(input_shape, smallest=8)

    conv = convolution_unit(whitening, feature_normalization, seed)
    inputs = keras.Input(shape, name=f"{name}_images")
    x = _blocks.image_normalization(inputs, mean, std, shape[-1], name)
    x = conv(x, width, 3, 1, f"{name}_stem_conv", f"{name}_stem_bn")
    x = layers.ReLU(name=f"{name}_stem_relu")(x)
    for stage in range(3):
        filters = width * 2**stage
        for block in range((depth - 2) // 6):
            prefix = f"{name}_stage{stage + 1}_block{block}"
            strides = 2 if stage > 0 and block == 0 else 1
            y = conv(x, filters, 3, strides, f"{prefix}_conv1", f"{prefix}_bn1")
            y = layers.ReLU(name=f"{prefix}_relu1")(y)
            y = conv(y, filters, 3, 1, f"{prefix}_conv2", f"{prefix}_bn2")
            if strides == 2:
                side = filters // 4
                x = ops.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (side, side)))
            x = layers.Add(name=f"{prefix}_add")([y, x])
            x = layers.ReLU(name=f"{prefix}_relu2")(x)
    x = layers.GlobalAveragePooling2D(name=f"{name}_pool")(x)
    outputs = classifier_head(x, head, num_classes, seed, f"{name}_head")
    return keras.Model(inputs, outputs, name=name)
