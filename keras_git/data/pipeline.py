"""Batches for training and evaluation, the same through tf.data and through plain numpy.

What a batch holds is decided in `Stream.plan` by (seed, epoch, step) alone. The two pipelines only
carry the plan out, so they give the same bytes, and a run resumed at an epoch sees what an
uninterrupted one would.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from typing import Any

import keras
import numpy as np

from keras_git.data import randomness
from keras_git.data.augmentation import Parameters, RandomCropFlip
from keras_git.data.dataset import ImageDataset
from keras_git.data.randomness import Seed
from keras_git.data.samplers import Sampler
from keras_git.errors import InputError
from keras_git.transforms import Transform

PIPELINES = ("auto", "tf_data", "numpy")
_PREFETCHED_BATCHES = 4
_BYTES_PER_CALL = 1 << 26


class Stream:
    """The batches of a dataset under a sampler and an augmentation.

    Args:
        dataset: the images.
        sampler: decides the order of every epoch; made for the labels of `dataset`. None visits
            the images in their order, every epoch the same.
        batch_size: images per batch.
        augmentation: random crop and flip, or None.
        seed: seed of the augmentation; a non-negative integer, or several. Two streams that are
            to be independent need different seeds (also in their samplers).
        drop_remainder: leave the last, smaller batch of an epoch out.
        transform: a transformation with fresh parameters for every image of every step, or None.
            Only the parameters are drawn here; they travel with the batch, and
            `keras_git.training.Classifier(transform=...)` applies them on its device.

    Raises:
        InputError: if the sampler is of another dataset or the batch size is impossible.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: Sampler | None,
        batch_size: int,
        augmentation: RandomCropFlip | None = None,
        seed: Seed = 0,
        drop_remainder: bool = False,
        transform: Transform | None = None,
    ) -> None:
        if sampler is not None and not np.array_equal(sampler.labels, dataset.labels):
            raise InputError(
                f"the sampler was made for {len(sampler)} other labels than those of the dataset "
                f"({len(dataset)} images); make it with dataset.labels"
            )
        if batch_size < 1 or (drop_remainder and batch_size > len(dataset)):
            raise InputError(
                f"batch_size is {batch_size}; it must be between 1 and the {len(dataset)} images"
            )
        self.dataset = dataset
        self.sampler = sampler
        self.batch_size = int(batch_size)
        self.augmentation = augmentation
        self.seed = seed
        self.drop_remainder = drop_remainder
        self.transform = transform
        self._epoch_indices: tuple[int, np.ndarray] | None = None
        randomness.generator(seed, randomness.AUGMENTATION)  # reject a bad seed now

    @property
    def images_per_epoch(self) -> int:
        """Images that are drawn in an epoch, those of a left-out last batch included."""
        return len(self.dataset if self.sampler is None else self.sampler)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        number, rest = divmod(self.images_per_epoch, self.batch_size)
        return number + (rest > 0 and not self.drop_remainder)

    def plan(self, epoch: int, step: int) -> tuple[np.ndarray, Parameters]:
        """What a batch consists of.

        Args:
            epoch: 0-based.
            step: 0-based position inside the epoch, below `steps_per_epoch`.

        Returns:
            `(indices, (offsets, flips))`: int64 (n,), int32 (n, 2) and bool (n,). Without an
            augmentation, offsets are 0 and flips False.

        Raises:
            InputError: if the step is out of range.
        """
        if not 0 <= step < self.steps_per_epoch or epoch < 0:
            raise InputError(
                f"epoch {epoch}, step {step} does not exist; an epoch has {self.steps_per_epoch} "
                "steps"
            )
        start = step * self.batch_size
        indices = self._indices(epoch)[start : start + self.batch_size]
        if self.augmentation is None:
            offsets = np.zeros((len(indices), 2), dtype=np.int32)
            return indices, (offsets, np.zeros(len(indices), dtype=bool))
        rng = randomness.generator(self.seed, randomness.AUGMENTATION, epoch, step)
        return indices, self.augmentation.parameters(rng, len(indices))

    def batch(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """A batch as numpy arrays.

        Args:
            epoch: 0-based.
            step: 0-based position inside the epoch.

        Returns:
            `(images, labels)`: uint8 (n, height, width, channels), 0..255, and int64 (n,).

        Raises:
            InputError: if the step is out of range.
        """
        indices, parameters = self.plan(epoch, step)
        images = np.asarray(self.dataset.images[indices])
        if self.augmentation is not None:
            images = self.augmentation.apply_numpy(images, parameters)
        return images, self.dataset.labels[indices]

    def transform_parameters(self, epoch: int, step: int, number: int) -> dict[str, np.ndarray]:
        """Parameters of `transform` for the `number` images of a batch; empty without one."""
        if self.transform is None:
            return {}
        rng = randomness.generator(self.seed, randomness.NUISANCE, epoch, step)
        return self.transform.sample(number, rng)

    def _indices(self, epoch: int) -> np.ndarray:
        # Read once into a local: another thread may replace the pair meanwhile, but never half.
        kept = self._epoch_indices
        if kept is None or kept[0] != epoch:
            if self.sampler is None:
                kept = (epoch, np.arange(len(self.dataset)))
            else:
                kept = (epoch, self.sampler.indices(epoch))
            self._epoch_indices = kept
        return kept[1]


def choose_pipeline(pipeline: str = "auto") -> str:
    """`"tf_data"` or `"numpy"`; `"auto"` takes tf.data where TensorFlow is installed.

    Raises:
        InputError: for an unknown name, or tf.data without TensorFlow.
    """
    if pipeline not in PIPELINES:
        raise InputError(f"unknown pipeline {pipeline!r}; use one of {', '.join(PIPELINES)}")
    available = importlib.util.find_spec("tensorflow") is not None
    if pipeline == "tf_data" and not available:
        raise InputError("pipeline 'tf_data' needs TensorFlow; install it or use 'numpy'")
    if pipeline == "auto":
        return "tf_data" if available else "numpy"
    return pipeline


def training_data(
    stream: Stream,
    *,
    sources: Stream | None = None,
    initial_epoch: int = 0,
    initial_step: int = 0,
    epochs: int | None = None,
    pipeline: str = "auto",
) -> Any:
    """An endless supply of training batches, from the first batch of `initial_epoch` on.

    Use it as `model.fit(data, steps_per_epoch=stream.steps_per_epoch, initial_epoch=e, epochs=E)`.

    Args:
        stream: batches for the classifier, or for the generator on its own.
        sources: second stream, of the images that a generator transforms. Its batch of the same
            epoch and step is added to each batch; if its epoch has fewer steps, they are gone
            through again.
        initial_epoch: epoch to start with, for a resumed run.
        initial_step: steps to leave out from there on, for a run that counts steps, not epochs.
        epochs: the epoch before which the tf.data pipeline ends, the same number as the `epochs`
            of `fit`; None never ends. The numpy pipeline never ends, because `fit` would shuffle
            the batches of a finite `PyDataset`.
        pipeline: `"tf_data"`, `"numpy"` or `"auto"` (tf.data where TensorFlow is installed).

    Returns:
        A `tf.data.Dataset` or a `keras.utils.PyDataset` without end. An element is
        `(images, labels)`, or with sources
        `({"images": ..., "source_images": ..., "source_labels": ...}, labels)`; images are uint8
        (n, height, width, channels), labels int64 (n,). A stream with a transformation adds
        `"parameters"`, a dictionary of arrays (n,), to the dictionary.

    Raises:
        InputError: for an unknown pipeline or sources with images of another shape.
    """
    check_sources(stream, sources)
    if initial_epoch < 0 or initial_step < 0:
        raise InputError(
            f"initial_epoch is {initial_epoch} and initial_step {initial_step}; both must be 0 or "
            "more"
        )
    steps = stream.steps_per_epoch
    first = initial_epoch * steps + initial_step
    if epochs is not None and epochs * steps <= first:
        raise InputError(f"epochs is {epochs}; it must be above initial_epoch ({initial_epoch})")
    streams = [stream] if sources is None else [stream, sources]
    if choose_pipeline(pipeline) == "numpy":
        return _NumpyBatches(streams, steps, first, None)
    return _tensorflow_batches(streams, steps, first, epochs)


def evaluation_data(dataset: ImageDataset, batch_size: int, pipeline: str = "auto") -> Any:
    """All images once, in their order, unaugmented; the last batch may be smaller.

    Args:
        dataset: the images.
        batch_size: images per batch.
        pipeline: `"tf_data"`, `"numpy"` or `"auto"`.

    Returns:
        A finite `tf.data.Dataset` or `keras.utils.PyDataset` of `(images, labels)`, for
        `evaluate` and `predict`.

    Raises:
        InputError: for an unknown pipeline or an impossible batch size.
    """
    stream = Stream(dataset, None, batch_size)
    steps = stream.steps_per_epoch
    if choose_pipeline(pipeline) == "numpy":
        return _NumpyBatches([stream], steps, 0, 1)
    return _tensorflow_batches([stream], steps, 0, 1)


def check_sources(stream: Stream, sources: Stream | None) -> None:
    """Raises InputError for source images of another shape, or with a transformation."""
    if sources is None:
        return
    if sources.dataset.image_shape != stream.dataset.image_shape:
        raise InputError(
            f"source images have shape {sources.dataset.image_shape}, training images "
            f"{stream.dataset.image_shape}; they must agree"
        )
    if sources.transform is not None:
        raise InputError("source images cannot have a transform; give it to the first stream")


def position(stream: Stream, steps: int, index: int) -> tuple[int, int]:
    """(epoch, step) of a stream at a running batch number of `steps` per epoch."""
    epoch, step = divmod(index, steps)
    return epoch, step % stream.steps_per_epoch


def element(pairs: list[tuple[Any, Any]], parameters: dict[str, Any]) -> tuple[Any, Any]:
    """What one batch looks like to `fit`; `parameters` are those of a transformation, or empty."""
    images, labels = pairs[0]
    inputs = {"images": images}
    if parameters:
        inputs["parameters"] = parameters
    if len(pairs) > 1:
        inputs["source_images"], inputs["source_labels"] = pairs[1]
    return (inputs if len(inputs) > 1 else images), labels


class _NumpyBatches(keras.utils.PyDataset):
    """Batches made by numpy; item i is a pure function of i, so the order of calls is free."""

    def __init__(self, streams: list[Stream], steps: int, first: int, epochs: int | None) -> None:
        super().__init__()
        self._streams = streams
        self._steps = steps
        self._start = first
        self._epochs = epochs

    @property
    def num_batches(self) -> int | None:
        # Endless unless for evaluation: `fit` shuffles the item numbers of a finite PyDataset.
        return None if self._epochs is None else self._epochs * self._steps

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if self._epochs is not None and not 0 <= index < self._epochs * self._steps:
            raise IndexError(index)
        number = self._start + index
        pairs = [s.batch(*position(s, self._steps, number)) for s in self._streams]
        drawn_at = position(self._streams[0], self._steps, number)
        parameters = self._streams[0].transform_parameters(*drawn_at, len(pairs[0][1]))
        return element(pairs, parameters)


def _tensorflow_batches(streams: list[Stream], steps: int, first: int, epochs: int | None) -> Any:
    """The same batches as a tf.data pipeline, from batch `first` on, up to epoch `epochs`.

    numpy makes the batches, because it copies whole rows of a crop and no gather of TensorFlow
    does; several in one call, which TensorFlow then hands out one by one without a copy. A call
    for every batch would be slower, and could hang when the interpreter ends while a prefetch is
    under way.
    """
    import tensorflow as tf

    hide_accelerators()
    names, examples = [], []
    if streams[0].transform is not None:
        sample = streams[0].transform.sample(1, np.random.default_rng(0))
        names, examples = list(sample), list(sample.values())
    dtypes: list[Any] = []  # of one batch
    shapes: list[tuple[Any, ...]] = []
    for stream in streams:
        dtypes += [tf.uint8, tf.int64]
        shapes += [(None, *stream.dataset.image_shape), (None,)]
    dtypes += [tf.as_dtype(example.dtype) for example in examples]
    shapes += [(None, *example.shape[1:]) for example in examples]
    nothing = [
        np.zeros([size or 0 for size in shape], dtype.as_numpy_dtype)
        for dtype, shape in zip(dtypes, shapes, strict=True)
    ]
    at_a_time = min(_steps_per_call(streams), steps)
    first_epoch, first_step = divmod(first, steps)

    def make(epoch: np.ndarray, begin: np.ndarray) -> list[np.ndarray]:
        arrays: list[np.ndarray] = []
        for step in range(int(begin), int(begin) + at_a_time):
            if step >= steps:  # the number of results is fixed
                arrays += nothing
                continue
            pairs = [s.batch(*position(s, steps, int(epoch) * steps + step)) for s in streams]
            arrays += itertools.chain(*pairs)
            drawn = streams[0].transform_parameters(int(epoch), step, len(pairs[0][1]))
            arrays += [drawn[name] for name in names]
        return arrays

    def batches_of(epoch: Any, begin: Any) -> Any:
        flat = tf.numpy_function(make, [epoch, begin], dtypes * at_a_time, stateful=False)

        def batch(number: int) -> tuple[Any, Any]:
            parts = flat[number * len(shapes) : (number + 1) * len(shapes)]
            parts = [tf.ensure_shape(p, shape) for p, shape in zip(parts, shapes, strict=True)]
            pairs = [(parts[i], parts[i + 1]) for i in range(0, 2 * len(streams), 2)]
            return element(pairs, dict(zip(names, parts[2 * len(streams) :], strict=True)))

        choices = [functools.partial(batch, number) for number in range(at_a_time)]
        return tf.data.Dataset.range(tf.minimum(np.int64(at_a_time), steps - begin)).map(
            lambda number: tf.switch_case(tf.cast(number, tf.int32), choices)
        )

    def calls_of(epoch: Any) -> Any:
        begin = tf.where(epoch == first_epoch, np.int64(first_step), np.int64(0))
        begins = tf.data.Dataset.range(begin, steps, at_a_time)
        return begins.flat_map(lambda begin: batches_of(epoch, begin))

    stop = np.iinfo(np.int64).max if epochs is None else epochs
    return tf.data.Dataset.range(first_epoch, stop).flat_map(calls_of).prefetch(_PREFETCHED_BATCHES)


def _steps_per_call(streams: list[Stream]) -> int:
    """Batches that Python makes at a time: some megabytes, and more than are prefetched."""
    bytes_per_step = sum(s.batch_size * int(np.prod(s.dataset.image_shape)) for s in streams)
    few, many = 2 * _PREFETCHED_BATCHES, 4 * _PREFETCHED_BATCHES
    return min(max(_BYTES_PER_CALL // bytes_per_step, few), many)


def hide_accelerators() -> None:
    """Keep TensorFlow off the GPU where it only reads data for another backend."""
    if keras.config.backend() == "tensorflow":
        return
    import tensorflow as tf

    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        # TensorFlow already runs; whoever started it has decided about its devices.
        pass
