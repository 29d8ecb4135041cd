"""Data whose factors of variation are known, and embeddings of which the answer is known."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_git.analysis import TransformSet
from keras_git.transforms.affine import affine_matrix, warp

SIDE = 16
FAMILIES = ("rotate", "brightness", "translateX")
_ANGLES = (-60.0, -30.0, 30.0, 60.0)
_SHIFTS = (-4.0, -2.0, 2.0, 4.0)
_FACTORS = (0.25, 0.5, 2.0, 4.0)


def _smooth(generator: np.random.Generator) -> np.ndarray:
    """A base picture with structure at the centre, dark outside, (SIDE, SIDE, 3) in [0, 1]."""
    coarse = generator.random((4, 4, 3))
    image = np.kron(coarse, np.ones((SIDE // 4, SIDE // 4, 1)))
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    window = np.clip(1.4 - np.sqrt(x**2 + y**2) / (SIDE / 2.6), 0, 1)[..., None]
    return (0.55 * image * window).astype(np.float32)


def planted_images(number: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes: one picture each, turned, made brighter or darker, or moved to the side."""
    generator = np.random.default_rng(seed)
    images, labels = [], []
    for label, family in enumerate(FAMILIES):
        base = np.repeat(_smooth(generator)[None], number, axis=0)
        if family == "brightness":
            factors = 2.0 ** generator.uniform(-2.5, 1, (number, 1, 1, 1))
            made = np.clip(base * factors, 0, 1)
        else:
            spread = {"rotate": 60.0, "translateX": 4.0}[family]
            argument = {"rotate": "rotate", "translateX": "translate_x"}[family]
            amounts = generator.uniform(-spread, spread, number)
            maps = np.stack([affine_matrix(**{argument: float(a)}) for a in amounts])
            made = ops.convert_to_numpy(warp(base, ops.convert_to_tensor(maps.astype("float32"))))
        noise = generator.normal(0, 0.004, made.shape)
        images.append(np.clip(made + noise, 0, 1).astype(np.float32))
        labels += [label] * number
    return np.concatenate(images), np.array(labels)


def planted_set() -> TransformSet:
    """Each planted family at several strengths, an operation that is in no class, an identity."""

    def brightness(images, factor):
        return ops.clip(images * factor, 0.0, 1.0)

    geometric = TransformSet.geometric(
        SIDE, rotate=_ANGLES, translate=[s / SIDE for s in _SHIFTS], scale=(0.6,), shear=()
    )
    own = TransformSet.custom(
        {
            "brightness": (brightness, _FACTORS),
            "invert": lambda images: 1.0 - images,
            "identity": lambda images: images,
        }
    )
    chosen = [c for c in geometric if c.transform != "translateY"]
    return TransformSet([*chosen, *own], (SIDE, SIDE))


def pixels(images: object) -> object:
    """An embedding that sees everything: the pixels, lightly smoothed, and a constant."""
    pooled = ops.average_pool(images, 2, 2, data_format="channels_last")
    flat = ops.reshape(pooled, (ops.shape(images)[0], -1))
    return ops.concatenate([flat, 1.5 * ops.ones_like(flat[:, :1])], axis=1)


def network(width: int = 6, seed: int = 0, side: int = SIDE) -> keras.Model:
    """A tiny classifier on images in [0, 1] whose layer "pool" is an embedding."""
    keras.utils.set_random_seed(seed)
    images = keras.Input((side, side, 3))
    x = keras.layers.Conv2D(width, 3, activation="relu", name="maps")(images)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, keras.layers.Dense(3, name="head")(x))


REMOVABLE = ("tint", "noise")


def removable_images(number: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Two classes of one grey picture each: one varies by its tint alone, one by noise alone."""
    generator = np.random.default_rng(1)
    shape = (number, SIDE, SIDE, 3)
    one, two = (
        np.kron(generator.random((4, 4, 1)), np.ones((SIDE // 4, SIDE // 4, 1))) for _ in range(2)
    )
    tinted = np.broadcast_to(one, shape) * generator.uniform(0.1, 1.0, (number, 1, 1, 3))
    noisy = 0.5 * two + 0.2 + generator.uniform(-0.4, 0.4, (*shape[:3], 1))
    noisy = np.broadcast_to(noisy, shape)
    images = np.concatenate([tinted, noisy]).clip(0, 1).astype(np.float32)
    return images, np.repeat([0, 1], number)


def removable_set() -> TransformSet:
    """What takes away tint or noise, and what does neither."""

    def grey(images):
        return ops.mean(images, axis=-1, keepdims=True) + 0 * images

    def smooth(images):
        pooled = ops.average_pool(images, 4, 4, data_format="channels_last")
        return ops.repeat(ops.repeat(pooled, 4, axis=1), 4, axis=2)

    return TransformSet.custom(
        {
            "tint": grey,
            "noise": smooth,
            "flip": lambda images: ops.flip(images, axis=2),
            "identity": lambda images: images,
        }
    )


def centred_pixels(images: object) -> object:
    """Pixels less the mean of the image: pictures of different classes have nothing in common."""
    flat = ops.reshape(images, (ops.shape(images)[0], -1))
    return flat - ops.mean(flat, axis=1, keepdims=True)
