"""Generated variants of a dataset, computed once instead of in every step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git import backend
from keras_git.data import randomness
from keras_git.data.dataset import ImageDataset, ImageSink
from keras_git.data.randomness import Seed
from keras_git.data.samplers import Sampler
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


@dataclass(frozen=True, eq=False)
class GeneratorBank:
    """Generated variants of a dataset, and how to draw from them.

    Attributes:
        dataset: each image and after it its variants, in the order of the images.
        first: int64 (N,), where each image stands.
        variants: int64 (N,), how many variants follow it.
    """

    dataset: ImageDataset
    first: np.ndarray
    variants: np.ndarray

    def sampler(
        self, sampler: Sampler, seed: Seed = 0, keep_probability: np.ndarray | None = None
    ) -> Sampler:
        """A sampler of the bank: what `sampler` draws from the images, each as a random variant.

        An image without variants comes as it is.

        Args:
            sampler: made for the labels of the images.
            seed: of the choice of the variant.
            keep_probability: probability with which an image of each class comes as a variant,
                and not as it is, (num_classes,) in 0..1; None: always.
        """
        return _VariantSampler(self, sampler, seed, keep_probability)


class _VariantSampler(Sampler):
    def __init__(
        self, bank: GeneratorBank, sampler: Sampler, seed: Seed, keep_probability: np.ndarray | None
    ) -> None:
        super().__init__(bank.dataset.labels, seed)
        self._bank, self._sampler, self._keep_probability = bank, sampler, keep_probability

    def __len__(self) -> int:
        return len(self._sampler)

    def class_probabilities(self, epoch: int) -> np.ndarray:
        return self._sampler.class_probabilities(epoch)

    def indices(self, epoch: int) -> np.ndarray:
        drawn = self._sampler.indices(epoch)
        rng = randomness.generator(self.seed, randomness.VARIANT, epoch)
        first, number = self._bank.first[drawn], self._bank.variants[drawn]
        varied = number > 0
        variant = rng.integers(np.maximum(number, 1))
        if self._keep_probability is not None:
            label = self._bank.dataset.labels[first]
            varied &= rng.random(len(drawn)) < np.asarray(self._keep_probability)[label]
        return first + np.where(varied, 1 + variant, 0)


def generator_bank(
    generator: keras.Model,
    dataset: ImageDataset,
    variants: int,
    *,
    skip_classes: Any = None,
    batch_size: int = 64,
    seed: int = 0,
    path: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GeneratorBank:
    """Generates `variants` images for each image of `dataset`.

    With it as the source of a `GITClassifier(network, generator=None)` no step generates
    anything: the classifier trains at the speed of a plain one. Values are rounded to 8 bits.

    Args:
        generator: as trained by `MUNIT`.
        dataset: images to vary.
        variants: generated images per image, at least 1.
        skip_classes: bool (num_classes,): classes whose keep probability is 0. Their images
            get no variants.
        batch_size: images at a time.
        seed: seed of the styles, which are drawn from N(0, I).
        path: a `.npy` file for the images of a bank that is too large for memory (4 GiB).
        progress: called with the number of images generated so far and that of all.

    Raises:
        InputError: `variants` is smaller than 1, or the generator is for another image shape.
    """
    if variants < 1:
        raise InputError(f"a generator bank of {variants} variants: use 1 or more")
    skip = np.zeros(dataset.num_classes, bool) if skip_classes is None else np.asarray(skip_classes)
    skipped = skip[dataset.labels]
    number = np.where(skipped, 0, variants).astype("int64")
    first = np.concatenate([[0], np.cumsum(1 + number)[:-1]])
    source = np.repeat(np.arange(len(dataset)), 1 + number)  # which image each row is made of
    sink = ImageSink(None if path is None else Path(path))
    images = sink.make((len(source), *dataset.image_shape))
    images[first] = dataset.images
    generated_rows = np.ones(len(source), bool)
    generated_rows[first] = False
    rows = np.flatnonzero(generated_rows)
    style_dim = int(generator.inputs[1].shape[-1])
    rng = randomness.generator(seed, randomness.VARIANT)
    styles = rng.standard_normal((len(rows), style_dim))
    chunk = batch_size * 8
    for start in range(0, len(rows), chunk):  # never all float images at once
        part = rows[start : start + chunk]
        generated = generate_images(
            generator,
            dataset.images[source[part]],
            styles[start : start + chunk],
            batch_size=batch_size,
        )
        images[part] = np.clip(np.rint(generated), 0, 255)
        if progress is not None:
            progress(start + len(part), len(rows))
    bank = ImageDataset(
        sink.finished(images),
        dataset.labels[source],
        dataset.num_classes,
        dataset.class_names,
        f"{dataset.name} (with variants)",
    )
    return GeneratorBank(bank, first, number)
