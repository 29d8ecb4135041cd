"""Generated variants of a dataset, computed once instead of in every step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git import backend
from keras_git.data.dataset import ImageDataset
from keras_git.errors import InputError
from keras_git.training.git_classifier import check_generator

# generator -> its compiled function, made once; an entry goes with its generator
_translations: weakref.WeakKeyDictionary[Any, Callable[..., Any]] = weakref.WeakKeyDictionary()


def _translation(generator: keras.Model) -> Callable[..., Any]:
    reference: Any = weakref.ref(generator)  # the cache must not keep the generator alive

    def translate(x: Any, style: Any) -> Any:
        x = ops.cast(x, "float32") / 127.5 - 1.0
        return (reference()([x, style], training=False) + 1.0) * 127.5

    return backend.compiled(translate, generator.variables)


def generate_images(
    generator: keras.Model, images: Any, styles: Any, *, batch_size: int = 64
) -> np.ndarray:
    """Generates one image for each pair of image and style, in one compiled function.

    Args:
        generator: from `[image in [-1, 1], style]` to images in [-1, 1].
        images: (N, H, W, C) in 0..255.
        styles: (N, style_dim).
        batch_size: images at a time.

    Returns:
        float32 array (N, H, W, C) in 0..255, neither clipped nor rounded.
    """
    check_generator(generator, images.shape[1:])
    if generator not in _translations:
        _translations[generator] = _translation(generator)
    run = _translations[generator]
    generated = []
    for start in range(0, len(images), batch_size):
        x = np.asarray(images[start : start + batch_size])
        s = np.asarray(styles[start : start + batch_size], "float32")
        missing = batch_size - len(x)  # one shape, one compilation
        x, s = (np.concatenate([a, np.repeat(a[:1], missing, axis=0)]) for a in (x, s))
        generated.append(ops.convert_to_numpy(run(x, s))[: batch_size - missing])
    return np.concatenate(generated)


def generator_bank(
    generator: keras.Model,
    dataset: ImageDataset,
    variants: int,
    *,
    skip_classes: Any = None,
    batch_size: int = 64,
    seed: int = 0,
) -> ImageDataset:
    """A dataset of `variants` generated images for each image of `dataset`.

    With it as the source of a `GITClassifier(network, generator=None)` no step generates
    anything: the classifier trains at the speed of a plain one. Values are rounded to 8 bits.

    Args:
        generator: as trained by `MUNIT`.
        dataset: images to vary.
        variants: generated images per image, at least 1.
        skip_classes: bool (num_classes,): classes whose keep probability is 0. Their images
            stand in the bank once, as they are, so that class-balanced draws stay what they are.
        batch_size: images at a time.
        seed: seed of the styles, which are drawn from N(0, I).

    Raises:
        InputError: `variants` is smaller than 1, or the generator is for another image shape.
    """
    if variants < 1:
        raise InputError(f"a generator bank of {variants} variants: use 1 or more")
    skip = np.zeros(dataset.num_classes, bool) if skip_classes is None else np.asarray(skip_classes)
    kept = np.flatnonzero(~skip[dataset.labels])
    as_is = np.flatnonzero(skip[dataset.labels])
    indices = np.repeat(kept, variants)
    style_dim = int(generator.inputs[1].shape[-1])
    styles = np.random.default_rng([seed, 0xBA]).standard_normal((len(indices), style_dim))
    images = np.empty((len(indices) + len(as_is), *dataset.image_shape), "uint8")
    chunk = batch_size * 32
    for start in range(0, len(indices), chunk):  # never all float images at once
        part = slice(start, min(start + chunk, len(indices)))
        generated = generate_images(
            generator, dataset.images[indices[part]], styles[part], batch_size=batch_size
        )
        images[part] = np.clip(np.rint(generated), 0, 255)
    images[len(indices) :] = dataset.images[as_is]
    labels = dataset.labels[np.concatenate([indices, as_is])]
    return ImageDataset(
        images, labels, dataset.num_classes, dataset.class_names, f"{dataset.name} (generated)"
    )
