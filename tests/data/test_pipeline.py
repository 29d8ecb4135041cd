"""Both pipelines carry out the same plan, and `fit` sees exactly that."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_git import transforms
from keras_git.data import (
    ImageDataset,
    RandomCropFlip,
    Stream,
    choose_pipeline,
    evaluation_data,
    sampler,
    training_data,
)
from keras_git.errors import InputError

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
PIPELINES = ["numpy"] + (["tf_data"] if HAS_TENSORFLOW else [])


def dataset(number: int = 50, channels: int = 3) -> ImageDataset:
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (number, 10, 8, channels), dtype=np.uint8)
    return ImageDataset(images, np.sort(np.arange(number) % 5), 5)


def stream(data: ImageDataset | None = None, batch_size: int = 16, **options) -> Stream:
    data = data or dataset()
    options = {"augmentation": RandomCropFlip(padding=2), "seed": 3, **options}
    order = sampler("deferred", data.labels, options["seed"], epoch=1)
    return Stream(data, order, batch_size, **options)


def elements(data, number: int) -> list:
    """The first elements of either pipeline as numpy arrays."""
    if isinstance(data, keras.utils.PyDataset):
        return [data[i] for i in range(number)]
    return [
        (keras.tree.map_structure(lambda t: t.numpy(), x), y.numpy()) for x, y in data.take(number)
    ]


def assert_same(one: list, other: list) -> None:
    assert len(one) == len(other)
    for (x, y), (z, w) in zip(one, other, strict=True):
        for name in x if isinstance(x, dict) else [None]:
            a, b = (x, z) if name is None else (x[name], z[name])
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        assert y.dtype == w.dtype == np.int64
        np.testing.assert_array_equal(y, w)


def test_batches_follow_the_plan():
    batches = stream()
    assert batches.steps_per_epoch == 4
    seen = []
    for step in range(4):
        indices, parameters = batches.plan(0, step)
        images, labels = batches.batch(0, step)
        assert images.dtype == np.uint8 and labels.dtype == np.int64
        expected = batches.augmentation.apply_numpy(batches.dataset.images[indices], parameters)
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, batches.dataset.labels[indices])
        seen.extend(indices)
    assert sorted(seen) == list(range(50))  # the last batch is the remaining 2
    assert len(batches.batch(0, 3)[1]) == 2
    dropped = stream(drop_remainder=True)
    assert dropped.steps_per_epoch == 3
    np.testing.assert_array_equal(dropped.batch(1, 2)[0], batches.batch(1, 2)[0])


def test_batches_are_functions_of_seed_epoch_and_step():
    one, same = stream(), stream()
    later = one.batch(5, 2)
    one.batch(0, 0)
    np.testing.assert_array_equal(one.batch(5, 2)[0], later[0])
    np.testing.assert_array_equal(same.batch(5, 2)[0], later[0])
    assert (stream(seed=4).batch(5, 2)[0] != later[0]).any()
    assert (one.batch(6, 2)[0] != later[0]).any()


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize(
    "augmentation", [RandomCropFlip(padding=2), RandomCropFlip(2, crop=False), None]
)
def test_training_data_equals_the_batches(pipeline, augmentation):
    batches = stream(augmentation=augmentation)
    expected = [batches.batch(*divmod(n, 4)) for n in range(4, 15)]
    assert_same(elements(training_data(batches, initial_epoch=1, pipeline=pipeline), 11), expected)
    resumed = training_data(batches, initial_epoch=1, initial_step=6, pipeline=pipeline)
    assert_same(elements(resumed, 5), expected[6:])


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_sources_come_with_the_batch_of_the_same_epoch_and_step(pipeline):
    main = stream()
    for batch_size, steps in ((8, 7), (25, 2)):  # more and fewer steps than the main stream
        sources = stream(batch_size=batch_size, seed=(3, 1), augmentation=None)
        assert sources.steps_per_epoch == steps
        expected = []
        for n in range(9):
            epoch, step = divmod(n, 4)
            images, labels = main.batch(epoch, step)
            source_images, source_labels = sources.batch(epoch, step % steps)
            inputs = {
                "images": images,
                "source_images": source_images,
                "source_labels": source_labels,
            }
            expected.append((inputs, labels))
        assert_same(elements(training_data(main, sources=sources, pipeline=pipeline), 9), expected)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_files_stay_files_and_give_the_same_batches(pipeline, tmp_path):
    data = dataset()
    filed = data.take(np.arange(50), tmp_path / "images.npy")
    assert isinstance(filed.images, np.memmap)
    one = training_data(stream(data), pipeline=pipeline)
    assert_same(elements(training_data(stream(filed), pipeline=pipeline), 6), elements(one, 6))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_evaluation_data_is_every_image_once_in_order(pipeline):
    data = dataset()
    batches = evaluation_data(data, 16, pipeline)
    pairs = elements(batches, 4)
    assert [len(labels) for _, labels in pairs] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in pairs]), data.images)
    np.testing.assert_array_equal(np.concatenate([y for _, y in pairs]), data.labels)
    model = linear_model()
    logits = model.predict(batches, verbose=0)
    direct = keras.ops.convert_to_numpy(model(data.images.astype("float32")))
    np.testing.assert_allclose(logits, direct, rtol=1e-4, atol=1e-4)


def linear_model() -> keras.Model:
    inputs = keras.Input((10, 8, 3))
    scaled = keras.layers.Rescaling(1 / 255)(inputs)
    start = keras.initializers.RandomNormal(stddev=0.1, seed=1)
    outputs = keras.layers.Dense(5, kernel_initializer=start)(keras.layers.Flatten()(scaled))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss)
    return model


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_fit_sees_every_batch_once_and_in_order(pipeline):
    """The weights depend on the order; a skipped, repeated or shuffled batch would show."""
    batches = stream()
    by_hand = linear_model()
    for epoch, step in itertools.product((1, 2), range(4)):
        by_hand.train_on_batch(*batches.batch(epoch, step))
    fitted = linear_model()
    fitted.fit(
        training_data(batches, initial_epoch=1, pipeline=pipeline),
        steps_per_epoch=4,
        initial_epoch=1,
        epochs=3,
        verbose=0,
    )
    for one, other in zip(fitted.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.skipif(not HAS_TENSORFLOW, reason="needs TensorFlow")
def test_the_tensorflow_pipeline_can_end():
    batches = stream()
    data = training_data(batches, initial_epoch=1, epochs=3, pipeline="tf_data")
    assert sum(1 for _ in data) == 8


def test_choice_of_the_pipeline(monkeypatch):
    assert choose_pipeline("auto") == ("tf_data" if HAS_TENSORFLOW else "numpy")
    assert choose_pipeline("numpy") == "numpy"
    monkeypatch.setattr("keras_git.data.pipeline.importlib.util.find_spec", lambda name: None)
    assert choose_pipeline("auto") == "numpy"
    with pytest.raises(InputError, match="TensorFlow"):
        choose_pipeline("tf_data")
    with pytest.raises(InputError, match="auto, tf_data, numpy"):
        choose_pipeline("torch")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: stream(batch_size=0), "batch_size"),
        (lambda: stream(batch_size=51, drop_remainder=True), "batch_size"),
        (lambda: Stream(dataset(), sampler("class_balanced", [0, 1]), 4), "dataset.labels"),
        (lambda: Stream(dataset(), None, 4, seed=-1), "seed"),
        (lambda: stream().plan(0, 4), "4 steps"),
        (lambda: training_data(stream(), initial_epoch=-1), "initial_epoch"),
        (lambda: training_data(stream(), initial_epoch=2, epochs=2), "epochs"),
        (lambda: training_data(stream(), sources=stream(dataset(channels=1))), "shape"),
        (lambda: evaluation_data(dataset(), 8, "grain"), "grain"),
    ],
)
def test_bad_requests(make, words):
    with pytest.raises(InputError, match=words):
        make()


LEAVES_EARLY = """
import numpy as np
from keras_git.data import ImageDataset, RandomCropFlip, Stream, sampler, training_data
data = ImageDataset(np.zeros((4000, 32, 32, 3), np.uint8), np.arange(4000) % 10, 10)
stream = Stream(data, sampler("class_balanced", data.labels), 64, RandomCropFlip())
batches = iter(training_data(stream, pipeline="tf_data"))
next(batches)
print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TENSORFLOW, reason="needs TensorFlow")
def test_a_program_ends_while_the_pipeline_is_reading_ahead():
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", LEAVES_EARLY],
            env=dict(os.environ),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and done.stdout.strip() == "done", done.stderr


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_parameters_of_a_transformation_travel_with_the_batch(pipeline):
    """Fresh in every step, a function of (seed, epoch, step) alone, in both pipelines."""
    options = {"transform": transforms.DilationErosion(), "augmentation": None}
    made = stream(**options)
    found = elements(training_data(made, pipeline=pipeline), 8)
    steps = made.steps_per_epoch
    for number, (x, y) in enumerate(found):
        epoch, step = divmod(number, steps)
        expected = stream(**options).transform_parameters(epoch, step, len(y))
        assert list(x) == ["images", "parameters"] and set(x["parameters"]) == {"dilate", "erode"}
        for name, values in x["parameters"].items():
            assert np.asarray(values).dtype == np.int32
            np.testing.assert_array_equal(values, expected[name])
        images, labels = stream(augmentation=None).batch(epoch, step)
        np.testing.assert_array_equal(x["images"], images)  # as they are: untransformed
        np.testing.assert_array_equal(y, labels)
    drawn = [np.asarray(x["parameters"]["dilate"]).tolist() for x, _ in found]
    assert len(set(map(tuple, drawn))) > 6
    resumed = elements(training_data(made, initial_epoch=1, pipeline=pipeline), 2)
    for (x, _), (z, _) in zip(resumed, found[steps:], strict=False):
        np.testing.assert_array_equal(x["parameters"]["erode"], z["parameters"]["erode"])


def test_sources_have_no_transformation():
    with pytest.raises(InputError, match="source images cannot have a transform"):
        training_data(stream(), sources=stream(transform=transforms.Rotation()))
