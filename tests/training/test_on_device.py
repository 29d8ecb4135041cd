"""The device mode against `fit` on the same streams: same losses, same weights."""

from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest

import keras_git as kg
from keras_git.errors import InputError

SHAPE = (6, 6, 1)


def dataset(number: int = 26) -> kg.data.ImageDataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, *SHAPE), dtype=np.uint8)
    return kg.data.ImageDataset(images, np.arange(number) % 3, 3)


DATASET = dataset()


def stream(batch_size: int = 8, seed: int = 0, data=DATASET, **options) -> kg.data.Stream:
    order = kg.data.sampler("instance_balanced", data.labels, seed)
    options = {"augmentation": kg.data.RandomCropFlip(padding=1), **options}
    return kg.data.Stream(data, order, batch_size, seed=seed, **options)


def model(seed: int = 0, **options) -> kg.training.Classifier:
    """A dense network with batch normalization: weights, statistics, momentum, class weights."""
    inputs = keras.Input(SHAPE)
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    start = keras.initializers.RandomNormal(stddev=0.3, seed=seed)
    network = keras.Model(inputs, keras.layers.Dense(3, kernel_initializer=start)(x))
    weights = kg.losses.deferred_reweighting([9, 9, 8], 1)
    made = kg.training.GITClassifier(
        network, options.pop("generator", None), class_weights=weights, seed=seed, **options
    )
    made.compile(
        # averages stay with the optimizer, or a training in two calls would go on from them
        kg.optimizers.SGD(0.05, momentum=0.9, l2=1e-3, use_ema=True, ema_momentum=0.9),
        kg.losses.CrossEntropy(),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    return made


def assert_same(one, other, tolerance: float = 1e-5) -> None:
    for a, b in zip(one.variables, other.variables, strict=True):
        a, b = keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    for a, b in zip(one.optimizer.variables, other.optimizer.variables, strict=True):
        a, b = keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def fitted(made, batches, epochs: int, initial_epoch: int = 0, sources=None):
    data = kg.data.training_data(
        batches, sources=sources, initial_epoch=initial_epoch, pipeline="numpy"
    )
    return made.fit(
        data,
        steps_per_epoch=batches.steps_per_epoch,
        initial_epoch=initial_epoch,
        epochs=epochs,
        verbose=0,
    )


class Events(keras.callbacks.Callback):
    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.seen: list = []
        self.stop_at = stop_at

    def on_train_begin(self, logs=None):
        self.seen.append("train")

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(("epoch", epoch, int(self.model.optimizer.iterations)))

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(("batch", batch, int(self.model.optimizer.iterations)))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(("end", epoch, set(logs)))
        self.model.stop_training = epoch == self.stop_at

    def on_train_end(self, logs=None):
        self.seen.append("end of training")


@pytest.mark.slow_on("jax", "tensorflow")
def test_training_is_that_of_fit_and_callbacks_see_it():
    """Three full batches and one of 2 images; resumed at epoch 1; sources of an own stream."""
    batches, sources = stream(), stream(5, seed=1, drop_remainder=True)
    by_fit, here = model(), model()
    expected = fitted(by_fit, batches, 3, sources=sources)
    kg.training.fit_on_device(here, batches, sources=sources, epochs=1)
    events = Events()
    history = kg.training.fit_on_device(
        here,
        batches,
        sources=sources,
        epochs=3,
        initial_epoch=1,
        steps_per_call=2,
        callbacks=[events],
    )
    assert history.epoch == [1, 2]
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(history.history[name], expected.history[name][1:], atol=1e-5)
    assert_same(here, by_fit)
    assert events.seen[:5] == ["train", ("epoch", 1, 4), ("batch", 1, 6), ("batch", 2, 7),
                               ("batch", 3, 8)]  # fmt: skip
    assert events.seen[5] == ("end", 1, {"loss", "accuracy"})
    assert events.seen[-1] == "end of training"


@pytest.mark.slow_on("jax", "tensorflow")
def test_training_goes_on_in_fit_and_ends_where_a_callback_says():
    batches, here, by_fit = stream(drop_remainder=True), model(), model()
    history = kg.training.fit_on_device(here, batches, epochs=9, callbacks=[Events(stop_at=0)])
    assert history.epoch == [0]
    fitted(here, batches, 2, initial_epoch=1)
    fitted(by_fit, batches, 2)
    assert_same(here, by_fit)


@pytest.mark.slow_on("jax")
def test_compiled_steps_follow_compile_and_go_with_their_model():
    batches, here = stream(drop_remainder=True), model()
    kg.training.fit_on_device(here, batches, epochs=1)
    before = [keras.ops.convert_to_numpy(v) for v in here.trainable_variables]
    here.compile(
        kg.optimizers.SGD(0.0),
        kg.losses.CrossEntropy(),
        metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top_2")],
    )
    history = kg.training.fit_on_device(here, batches, epochs=1)
    assert set(history.history) == {"loss", "top_2"}
    for old, variable in zip(before, here.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(variable))
    if keras.config.backend() != "tensorflow":  # Keras itself keeps models there
        gone = weakref.ref(here)
        del here, history
        gc.collect()
        assert gone() is None


def generator() -> keras.Model:
    image, style = keras.Input(SHAPE), keras.Input((2,))
    weight = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(0.1))(style)
    made = keras.Model([image, style], image * keras.layers.Reshape((1, 1, 1))(weight))
    return made


@pytest.mark.slow_on("jax", "tensorflow")
def test_seeds_together_are_the_seeds_alone():
    """With a generator that is the same object in all, and random styles of each."""
    shared = generator()
    seeds, batches = (0, 1, 2), [stream(seed=s, drop_remainder=True) for s in (0, 1, 2)]
    sources = [stream(4, seed=s + 10, drop_remainder=True) for s in seeds]

    def make(seed):
        return model(seed, generator=shared, class_counts=[9, 9, 8])

    alone = [make(seed) for seed in seeds]
    losses = [
        kg.training.fit_on_device(m, b, sources=s, epochs=2).history["loss"]
        for m, b, s in zip(alone, batches, sources, strict=True)
    ]
    together = [make(seed) for seed in seeds]
    histories = kg.training.fit_seeds_on_device(together, batches, sources=sources, epochs=2)
    assert len({round(values[-1], 4) for values in losses}) == 3
    for m, n, history, expected in zip(together, alone, histories, losses, strict=True):
        np.testing.assert_allclose(history.history["loss"], expected, atol=1e-4)
        assert_same(m, n, 1e-4)


@pytest.mark.slow_on("jax", "tensorflow")
def test_a_stopped_seed_stays_as_it_is():
    batches = [stream(seed=s, drop_remainder=True) for s in (0, 1)]
    models, events = [model(0), model(1)], [[Events(stop_at=0)], []]
    histories = kg.training.fit_seeds_on_device(models, batches, epochs=2, callbacks=events)
    assert [h.epoch for h in histories] == [[0], [0, 1]]
    alone = [model(0), model(1)]
    fitted(alone[0], batches[0], 1)
    fitted(alone[1], batches[1], 2)
    for one, other in zip(models, alone, strict=True):
        assert_same(one, other, 1e-4)


@pytest.mark.slow
def test_a_resnet_trains_as_in_fit_also_in_bfloat16():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    data = kg.data.ImageDataset(images, np.arange(40) % 4, 4)

    def make():
        network = kg.models.resnet((8, 8, 3), 4, 8, mean=[0.5] * 3, std=[0.25] * 3, seed=0)
        made = kg.training.Classifier(network)
        made.compile(kg.optimizers.SGD(0.01, momentum=0.9), kg.losses.CrossEntropy())
        return made

    batches = stream(16, data=data)
    for policy, tolerance in (("float32", 1e-5), ("mixed_bfloat16", 3e-2)):
        keras.config.set_dtype_policy(policy)
        try:
            by_fit, here = make(), make()
        finally:
            keras.config.set_dtype_policy("float32")
        expected = fitted(by_fit, batches, 2).history["loss"]
        history = kg.training.fit_on_device(here, batches, epochs=2)
        np.testing.assert_allclose(history.history["loss"], expected, rtol=tolerance)
        if policy == "float32":
            assert_same(here, by_fit, 1e-4)


def test_bad_requests(tmp_path, monkeypatch):
    made, batches = model(), stream()
    fit, fit_seeds = kg.training.fit_on_device, kg.training.fit_seeds_on_device
    with pytest.raises(InputError, match="above initial_epoch"):
        fit(made, batches, epochs=1, initial_epoch=1)
    with pytest.raises(InputError, match="steps_per_call"):
        fit(made, batches, epochs=1, steps_per_call=0)
    transformed = stream(transform=kg.transforms.Rotation())
    with pytest.raises(InputError, match="cannot have a transform: use fit"):
        fit(made, transformed, epochs=1)
    with pytest.raises(InputError, match="source images cannot have a transform"):
        fit(made, batches, sources=transformed, epochs=1)
    with pytest.raises(InputError, match="compile"):
        fit(kg.training.Classifier(made.network), batches, epochs=1)
    with pytest.raises(InputError, match="1 models and 2 streams"):
        fit_seeds([made], [batches, batches], epochs=1)
    with pytest.raises(InputError, match="more than samplers and seeds"):
        fit_seeds([made, made], [batches, stream(9)], epochs=1)
    filed = DATASET.take(np.arange(len(DATASET)), tmp_path / "images.npy")
    monkeypatch.setattr("keras_git.training.on_device.MAX_BYTES_IN_MEMORY", 100)
    with pytest.raises(InputError, match="too many for the memory of the device"):
        fit(made, stream(data=filed), epochs=1)
