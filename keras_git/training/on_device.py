"""Training on images that lie on the device, many steps in one compiled call.

The pipelines of `keras_git.data` send every batch to the device, and Keras calls a compiled
function for every step. Here the uint8 images of a dataset go there once; for an epoch, only the
plan does (which images, crops and flips, drawn by the `Stream` as for the pipelines), and batches
are made where they are used. It pays for small images on an accelerator, where the host is slow.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git import backend
from keras_git.data.dataset import MAX_BYTES_IN_MEMORY, ImageDataset
from keras_git.data.pipeline import Stream, check_sources, element, position
from keras_git.errors import InputError
from keras_git.training.classifier import Classifier

# dataset -> its tensors; model -> (what it was compiled to, batches it was made for, function)
_tables: weakref.WeakKeyDictionary[ImageDataset, Any] = weakref.WeakKeyDictionary()
_functions: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def fit_on_device(
    model: keras.Model,
    stream: Stream,
    *,
    sources: Stream | None = None,
    epochs: int,
    initial_epoch: int = 0,
    steps_per_call: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int = 0,
) -> keras.callbacks.History:
    """What `model.fit(training_data(stream, sources=sources), ...)` does, on the device.

    Batches, steps and so the weights are those of `fit` with the same streams, up to rounding. On
    JAX and TensorFlow many steps are one compiled call; on PyTorch they are single calls, on images
    that are on the device already. Keras's dtype policies apply:
    `keras.config.set_dtype_policy("mixed_bfloat16")` before the network is made.

    Meant for accelerators. On a CPU `fit` is the better choice: the pipelines keep up there, and on
    JAX a step of convolutions inside a compiled loop takes about 20 times as long as alone.

    Args:
        model: compiled; a `keras_git.training.Classifier` or `GITClassifier`, or another model
            whose `train_step` takes such batches.
        stream: batches for the classifier.
        sources: second stream, of the images to generate from, as for `training_data`.
        epochs: the epoch before which the training ends.
        initial_epoch: epoch to start with, for a resumed run.
        steps_per_call: steps in one call; None: all equally large batches of an epoch. Callbacks
            see the last batch of each call only.
        callbacks: Keras callbacks. The variables of the model are up to date in all of them.
        verbose: as in `fit`.

    Returns:
        The `History`, which has a row per epoch.

    Raises:
        InputError: the model is not compiled, a stream has a transformation, images in a file that
            is too large for memory (4 GiB), several devices, or impossible numbers.
    """
    (history,) = fit_seeds_on_device(
        [model],
        [stream],
        sources=None if sources is None else [sources],
        epochs=epochs,
        initial_epoch=initial_epoch,
        steps_per_call=steps_per_call,
        callbacks=[callbacks],
        verbose=verbose,
    )
    return history


def fit_seeds_on_device(
    models: Sequence[keras.Model],
    streams: Sequence[Stream],
    *,
    sources: Sequence[Stream] | None = None,
    epochs: int,
    initial_epoch: int = 0,
    steps_per_call: int | None = None,
    callbacks: Sequence[Sequence[keras.callbacks.Callback]] | None = None,
    verbose: int = 0,
) -> list[keras.callbacks.History]:
    """Several trainings of one kind, such as those of several seeds, at the same time.

    Each gives what `fit_on_device` gives for it alone, up to rounding. On JAX a step of all models
    is one vectorized computation, which fills an accelerator that one small network leaves idle;
    on the other backends the models take turns.

    Args:
        models: networks, losses and optimizers of one kind, each with weights of its own. A frozen
            generator may be one object in all of them, which saves memory and time.
        streams: one for each model, alike but for samplers and seeds, of one dataset.
        sources: likewise, or None.
        epochs, initial_epoch, steps_per_call, verbose: see `fit_on_device`.
        callbacks: the callbacks of each model, or None. A model whose training a callback stops
            stays as it is then; the others go on.

    Returns:
        The `History` of each model.

    Raises:
        InputError: as `fit_on_device`; also for models or streams that are not alike.
    """
    callbacks = [()] * len(models) if callbacks is None else callbacks
    parts = [streams] if sources is None else [streams, sources]
    _check(models, parts, callbacks, epochs, initial_epoch, steps_per_call)
    tables = [_table(part[0].dataset) for part in parts]
    steps = streams[0].steps_per_epoch
    trainings = [
        _Training(model, of_model, epochs, steps, verbose)
        for model, of_model in zip(models, callbacks, strict=True)
    ]
    run = _steps_of(models, parts)
    active = list(range(len(models)))
    for i in active:
        trainings[i].callbacks.on_train_begin()
    for epoch in range(initial_epoch, epochs):
        for i in active:
            trainings[i].begin(epoch)
        for first, plans in _plans([[part[i] for part in parts] for i in active], epoch):
            number = len(next(iter(plans[0].values())))
            for start in range(0, number, steps_per_call or number):
                stop = min(start + (steps_per_call or number), number)
                for i in active:
                    trainings[i].callbacks.on_train_batch_begin(first + start)
                run(tables, plans, start, stop)
                for i in active:
                    logs = trainings[i].logs()
                    trainings[i].callbacks.on_train_batch_end(first + stop - 1, logs)
        for i in active:
            trainings[i].end(epoch)
        remaining = [i for i in active if not models[i].stop_training]
        if remaining != active:
            active = remaining
            if not active:
                break
            run = _steps_of([models[i] for i in active], parts)
    for training in trainings:
        training.finish()
    return [training.history for training in trainings]


class _Training:
    """One model's side of `fit`: what is called around the steps."""

    def __init__(
        self,
        model: Any,
        callbacks: Sequence[keras.callbacks.Callback],
        epochs: int,
        steps: int,
        verbose: int,
    ) -> None:
        self.model = model
        self.history = keras.callbacks.History()
        self.callbacks = keras.callbacks.CallbackList(
            [*callbacks, self.history],
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=epochs,
            steps=steps,
            model=model,
        )
        self._last: dict[str, float] = {}
        model.stop_training = False

    def begin(self, epoch: int) -> None:
        self.model.reset_metrics()
        if hasattr(self.model, "start_epoch_state"):  # a Classifier's class weights, generation
            self.model.start_epoch_state(epoch)
        self.callbacks.on_epoch_begin(epoch)

    def logs(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.model.get_metrics_result().items()}

    def end(self, epoch: int) -> None:
        self._last = self.logs()
        self.callbacks.on_epoch_end(epoch, self._last)

    def finish(self) -> None:
        if not isinstance(self.model, Classifier):  # which goes on from its own weights, see `fit`
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        self.callbacks.on_train_end(self._last)


def _check(
    models: Sequence[Any],
    parts: list[Sequence[Stream]],
    callbacks: Sequence[Any],
    epochs: int,
    initial_epoch: int,
    steps_per_call: int | None,
) -> None:
    for name, given in (("streams", parts[0]), ("sources", parts[-1]), ("callbacks", callbacks)):
        if not models or len(given) != len(models):
            raise InputError(f"{len(models)} models and {len(given)} {name}: give one for each")
    if not 0 <= initial_epoch < epochs:
        raise InputError(f"epochs is {epochs}; it must be above initial_epoch ({initial_epoch})")
    if steps_per_call is not None and steps_per_call < 1:
        raise InputError(f"steps_per_call is {steps_per_call}; it must be 1 or more, or None")
    if any(getattr(model, "optimizer", None) is None for model in models):
        raise InputError("the model has no optimizer: call model.compile(...) first")
    shapes = [[tuple(v.shape) for v in model.variables] for model in models]
    if any(others != shapes[0] for others in shapes):
        raise InputError("the models have different weights: make them by the same function")
    for streams in parts:
        kinds = [(s.dataset, s.batch_size, s.steps_per_epoch, s.augmentation) for s in streams]
        if any(kind[0] is not kinds[0][0] or kind[1:] != kinds[0][1:] for kind in kinds):
            raise InputError(
                "the streams differ in more than samplers and seeds: give them one dataset, batch "
                "size and augmentation"
            )
    if parts[0][0].transform is not None:
        raise InputError(
            "images on the device cannot have a transform: use fit with training_data(stream)"
        )
    check_sources(parts[0][0], parts[1][0] if len(parts) > 1 else None)
    for streams in parts:
        images = streams[0].dataset.images
        if isinstance(images, np.memmap) and images.nbytes > MAX_BYTES_IN_MEMORY:
            raise InputError(
                f"{images.nbytes / 2**30:.0f} GiB of images in a file are too many for the memory "
                "of the device: use fit with training_data(stream)"
            )


def _table(dataset: ImageDataset) -> Any:
    """Images and labels as tensors; they stay on the device as long as the dataset is there."""
    if dataset not in _tables:
        _tables[dataset] = (
            ops.convert_to_tensor(np.asarray(dataset.images)),
            ops.convert_to_tensor(dataset.labels),
        )
    return _tables[dataset]


def _plans(
    streams: list[list[Stream]], epoch: int
) -> Iterator[tuple[int, list[dict[str, np.ndarray]]]]:
    """What the steps of an epoch consist of, in runs of batches of the same sizes.

    Args:
        streams: for each model its stream and, if there are any, its sources.
        epoch: 0-based.

    Yields:
        The first step of the run, and for each model the plans of all its steps, stacked.
    """
    steps = streams[0][0].steps_per_epoch
    drawn = [
        [
            [s.plan(*position(s, steps, epoch * steps + step)) for s in of_model]
            for step in range(steps)
        ]
        for of_model in streams
    ]

    def sizes(step: int) -> list[int]:
        return [len(indices) for indices, _ in drawn[0][step]]

    for _, group in itertools.groupby(range(steps), key=sizes):
        run = list(group)
        plans = []
        for of_model in drawn:
            plan: dict[str, np.ndarray] = {}
            for k in range(len(streams[0])):
                chosen = [of_model[step][k] for step in run]
                plan[f"indices_{k}"] = np.stack([i for i, _ in chosen]).astype("int32")
                plan[f"offsets_{k}"] = np.stack([offsets for _, (offsets, _) in chosen])
                plan[f"flips_{k}"] = np.stack([flips for _, (_, flips) in chosen])
            plans.append(plan)
        yield run[0], plans


def _steps_of(
    models: Sequence[Any], parts: list[Sequence[Stream]]
) -> Callable[[Any, Any, int, int], None]:
    """The compiled steps; made once for models that are trained several times."""
    augmentations = tuple(part[0].augmentation for part in parts)

    def batch(tables: Any, plan: dict[str, Any]) -> Any:
        pairs = []
        for k, ((images, labels), augmentation) in enumerate(
            zip(tables, augmentations, strict=True)
        ):
            indices = plan[f"indices_{k}"]
            x = ops.take(images, indices, axis=0)
            if augmentation is not None:
                x = augmentation.apply(x, (plan[f"offsets_{k}"], plan[f"flips_{k}"]))
            pairs.append((x, ops.take(labels, indices, axis=0)))
        return element(pairs, {})

    for model in models:
        model.make_train_function()  # builds the optimizer; new after each compile()
    key = ([weakref.ref(model.train_function) for model in models], augmentations)
    known = _functions.get(models[0])
    if known is not None and known[0] == key:
        return known[1]
    for model in models:
        _build_metrics(model, parts)
    # A compiled function must not keep its models alive, or it would never be dropped with them.
    run = backend.repeated_steps([weakref.proxy(model) for model in models], batch)
    _functions[models[0]] = key, run
    return run


def _build_metrics(model: Any, parts: list[Sequence[Stream]]) -> None:
    """Makes the variables of the metrics, which Keras makes in the first step of `fit`."""
    shape = parts[0][0].dataset.image_shape
    pairs = [
        (keras.KerasTensor((1, *shape), "uint8"), keras.KerasTensor((1,), "int32")) for _ in parts
    ]
    x, _ = element(pairs, {})
    outputs = model.compute_output_spec(x)
    predictions = keras.tree.map_structure(lambda o: ops.zeros(o.shape, o.dtype), outputs)
    y = ops.zeros((1,), "int32")
    model.compute_metrics(None, y, predictions)
    model.compute_loss(None, y, predictions)
    model.reset_metrics()
