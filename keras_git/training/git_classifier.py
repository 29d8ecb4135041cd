"""Training of the classifier with generated images."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git import backend
from keras_git.errors import InputError
from keras_git.training.classifier import Classifier, ClassWeights

REJECTED = ("batch", "source")


def keep_probability(class_counts: Any, threshold: float | None) -> np.ndarray:
    """Probability with which a generated image of each class is kept.

    `clip((T - n_c) / (T - min n), 0, 1)`: 1 for the smallest class, 0 from `T` images on.

    Args:
        class_counts: images per class, (C,).
        threshold: T, the class size from which on no generated image is kept; None keeps all.

    Returns:
        float64 array (C,) in 0..1.

    Raises:
        InputError: `threshold` is not larger than the smallest class.

    Reference: Zhou et al., ICLR 2022, appendix on CIFAR-LT (class-size dependent generation).
    """
    counts = np.asarray(class_counts, "float64")
    if threshold is None:
        return np.ones_like(counts)
    if threshold <= counts.min():
        raise InputError(
            f"keep threshold {threshold:g} must be larger than the smallest class "
            f"({counts.min():g} images): raise it, or leave it out to keep all generated images"
        )
    return np.clip((threshold - counts) / (threshold - counts.min()), 0.0, 1.0)


def mix(
    images: Any,
    labels: Any,
    generated: Any,
    source_labels: Any,
    generated_fraction: float = 0.5,
    keep: Any = None,
) -> tuple[Any, Any]:
    """Puts generated images into the last places of a batch of real ones.

    Args:
        images: real images (B, ...).
        labels: their labels (B,).
        generated: generated images (n, ...) with n >= trunc(generated_fraction * B), of which
            the last trunc(generated_fraction * B) are used; same scale as `images`.
        source_labels: their labels (n,).
        generated_fraction: 0..1.
        keep: bool (n,): False keeps the real image in that place. None keeps all generated ones.

    Returns:
        images (B, ...) and labels (B,).

    Reference: Zhou et al., ICLR 2022, section 4.2.
    """
    batch = ops.shape(images)[0]
    count = _num_generated(batch, generated_fraction)
    if isinstance(count, int) and count == 0:
        return images, labels
    num_real, first = batch - count, ops.shape(generated)[0] - count
    generated, source_labels = generated[first:], ops.cast(source_labels[first:], labels.dtype)
    generated = ops.cast(generated, images.dtype)
    if keep is not None:
        keep = keep[first:]
        spread = ops.reshape(keep, (-1,) + (1,) * (len(images.shape) - 1))
        generated = ops.where(spread, generated, images[num_real:])
        source_labels = ops.where(keep, source_labels, labels[num_real:])
    return (
        ops.concatenate([images[:num_real], generated]),
        ops.concatenate([labels[:num_real], source_labels]),
    )


def _num_generated(batch: Any, fraction: float) -> Any:
    if isinstance(batch, int):
        return int(fraction * batch)
    # float64, as Python's own: in float32, 0.29 * 100 would be another number of images. Only
    # TensorFlow has batches of unknown size, and it has float64.
    return ops.cast(ops.floor(fraction * ops.cast(batch, "float64")), "int32")


@keras.saving.register_keras_serializable(package="keras_git")
class GITClassifier(Classifier):
    """Classifier training in which a part of each batch is generated: GIT.

    A frozen generator gives images of the second stream a new, random style and puts them into
    the last places of the batch. Only images that are kept are generated.

    Args:
        network: the classifier, from images 0..255 to logits; see `Classifier`.
        generator: from `[image in [-1, 1], style]` to images in [-1, 1], as trained by `MUNIT`.
            None means that the source images are generated ones already (a generator bank).
        class_counts: training images per class, (num_classes,); needed with `keep_threshold`.
        generated_fraction: part of the batch that is generated, 0..1.
        keep_threshold: class size from which on no generated image is kept, see
            `keep_probability`; None keeps all.
        rejected: what takes the place of a generated image that is not kept. `"batch"`, as in
            the paper's program: the image of the batch in that place, whatever its class, so that
            with class-balanced streams small classes get more than their share. `"source"`: the
            source image itself, so that the classes stay as the streams have them.
        start_epoch: 0-based epoch from which on images are generated. The paper defers
            re-sampling to epoch E and generation to E + 1.
        generation_batch: images generated at a time, so that the cost follows the number kept.
        class_weights, seed: see `Classifier`; `seed` also draws styles and what is kept.
        **kwargs: `augmentation`, `mixing`, `feature_augmentation` and `sharpness_radius`, see
            `Classifier`. Augmentation sees the batch with its generated images, mixing does after
            it. Not `transform`, nor a mixing that needs sources.

    Data of `fit`: `x` is a dictionary of `"images"` (B, H, W, C) in 0..255, `"source_images"`
    (n, H, W, C) in 0..255 and `"source_labels"` (n,), with n >= trunc(generated_fraction * B);
    `y` the labels (B,) of `"images"`. Batches `(images, labels)` without sources train plainly.
    `keras_git.data.training_data(stream, sources=...)` makes both. Within
    `keras_git.distribution.data_parallel` the batch, the sources and what is generated of a batch
    are best multiples of the number of devices: on TensorFlow each device generates
    trunc(generated_fraction * its part).

    Raises:
        InputError: `keep_threshold` without `class_counts`, a fraction outside 0..1, an unknown
            `rejected`, a generator whose image shape is not the network's, a transform, or a
            mixing that needs sources.

    Reference: Zhou et al., *Do Deep Networks Transfer Invariances Across Classes?*, ICLR 2022,
    section 4.2.
    """

    def __init__(
        self,
        network: keras.Model,
        generator: keras.Model | None,
        *,
        class_counts: Any = None,
        generated_fraction: float = 0.5,
        keep_threshold: float | None = None,
        rejected: str = "batch",
        start_epoch: int = 0,
        generation_batch: int = 16,
        class_weights: ClassWeights = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if not 0.0 <= generated_fraction <= 1.0:
            raise InputError(f"generated_fraction is {generated_fraction}; use a number in 0..1")
        if rejected not in REJECTED:
            raise InputError(f"rejected is {rejected!r}; use {' or '.join(REJECTED)}")
        if keep_threshold is not None and class_counts is None:
            raise InputError("keep_threshold needs class_counts, the training images per class")
        if generator is not None:
            check_generator(generator, network.input_shape[1:])
        super().__init__(network, class_weights=class_weights, seed=seed, **kwargs)
        if self.transform is not None:
            raise InputError("GITClassifier takes no transform: use Classifier")
        if getattr(self.mixing, "needs_sources", False):
            raise InputError(
                f"{type(self.mixing).__name__} needs the second stream, which is the generator's: "
                "use it in a Classifier"
            )
        self.generator: Any = generator
        if generator is not None:
            generator.trainable = False
            self.style_dim = int(generator.inputs[1].shape[-1])
        self.class_counts = None if class_counts is None else np.asarray(class_counts, "int64")
        self.generated_fraction = float(generated_fraction)
        self.keep_threshold = keep_threshold
        self.rejected = rejected
        self.start_epoch = int(start_epoch)
        self.generation_batch = int(generation_batch)
        keep = np.ones(self.num_classes)
        if keep_threshold is not None:
            keep = keep_probability(self.class_counts, keep_threshold)
        self._keep_probability = keep.astype("float32")
        self.generating = self.add_weight(
            shape=(), initializer="ones", trainable=False, name="generating"
        )

    def start_epoch_state(self, epoch: int) -> None:
        super().start_epoch_state(epoch)
        self.generating.assign(float(epoch >= self.start_epoch))

    def augment(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        if isinstance(x, dict) and "source_images" in x:
            if sample_weight is not None:
                raise InputError("GITClassifier replaces images of the batch: use class_weights")
            x, y = self._with_generated(x, y)
        return self._finished(x, y, sample_weight)

    def _with_generated(self, x: Any, y: Any) -> tuple[Any, Any]:
        images = ops.cast(x["images"], "float32")
        batch = ops.shape(images)[0]
        count = _num_generated(batch, self.generated_fraction)
        if isinstance(count, int) and count == 0:
            return images, y
        available = ops.shape(x["source_images"])[0]
        if isinstance(available, int) and isinstance(count, int) and available < count:
            raise InputError(
                f"{available} source images for a batch of {batch}: generated_fraction "
                f"{self.generated_fraction:g} needs {count}"
            )
        sources = ops.cast(x["source_images"][available - count :], "float32")
        labels = ops.cast(x["source_labels"][available - count :], "int32")
        probability = ops.take(ops.convert_to_tensor(self._keep_probability), labels)
        draw = backend.rows_of_replica(
            lambda rows: keras.random.uniform((rows,), seed=self.seed_generator), count
        )
        keep = draw < probability * self.generating
        generated = sources
        if self.generator is not None:
            style = backend.rows_of_replica(
                lambda rows: keras.random.normal((rows, self.style_dim), seed=self.seed_generator),
                count,
            )
            generated = self._generate(sources, style, keep)
        if self.rejected == "source":
            spread = ops.reshape(keep, (-1, 1, 1, 1))
            generated = ops.where(spread, generated, sources)
            keep = ops.broadcast_to(ops.convert_to_tensor(self.generating) > 0.5, (count,))
        return mix(images, y, generated, labels, self.generated_fraction, keep)

    def _generate(self, sources: Any, style: Any, keep: Any) -> Any:
        """Generates the images to keep, `generation_batch` at a time; the rest is no image."""
        count, step = ops.shape(sources)[0], self.generation_batch
        positions = ops.arange(count)
        order = ops.argsort(ops.where(keep, positions, positions + count))  # kept ones first
        padding = (-count) % step
        order = ops.concatenate([order, ops.zeros((padding,), order.dtype)])
        sources, style = ops.take(sources, order, axis=0), ops.take(style, order, axis=0)
        num_kept = ops.sum(ops.cast(keep, "int32"))
        shape = tuple(sources.shape[1:])

        def unfinished(start: Any, generated: Any) -> Any:
            return start < num_kept

        def generate(start: Any, generated: Any) -> tuple[Any, Any]:
            x = ops.slice(sources, (start, 0, 0, 0), (step, *shape))
            s = ops.slice(style, (start, 0), (step, self.style_dim))
            images = (self.generator([x / 127.5 - 1.0, s], training=False) + 1.0) * 127.5
            return start + step, ops.slice_update(generated, (start, 0, 0, 0), images)

        start = ops.zeros((), "int32")
        _, generated = ops.while_loop(unfinished, generate, (start, ops.zeros_like(sources)))
        return ops.take(generated, ops.argsort(order[:count]), axis=0)

    def get_config(self) -> dict[str, Any]:
        generator = self.generator
        return {
            **super().get_config(),
            "generator": generator and keras.saving.serialize_keras_object(generator),
            "class_counts": None if self.class_counts is None else self.class_counts.tolist(),
            "generated_fraction": self.generated_fraction,
            "keep_threshold": self.keep_threshold,
            "rejected": self.rejected,
            "start_epoch": self.start_epoch,
            "generation_batch": self.generation_batch,
        }


def check_generator(generator: Any, image_shape: tuple[int, ...]) -> None:
    """Raises `InputError` unless `generator` maps `[image, style]` to images of that shape."""
    inputs = getattr(generator, "inputs", None)
    if not inputs or len(inputs) != 2 or len(inputs[0].shape) != 4 or len(inputs[1].shape) != 2:
        raise InputError("the generator must take [image (N, H, W, C), style (N, style_dim)]")
    if tuple(inputs[0].shape[1:]) != tuple(image_shape):
        raise InputError(
            f"the generator is for images {tuple(inputs[0].shape[1:])}, the data are "
            f"{tuple(image_shape)}: train a generator on these images"
        )
    outputs = list(getattr(generator, "outputs", None) or [])
    if len(outputs) != 1 or tuple(outputs[0].shape[1:]) != tuple(image_shape):
        shapes = ", ".join(str(tuple(output.shape[1:])) for output in outputs)
        raise InputError(
            f"the generator must return one image of shape {tuple(image_shape)}, not {shapes}"
        )
